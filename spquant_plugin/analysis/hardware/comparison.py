"""Estimates side by side: float against quantised, as publications print them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import AnalysisError
from ...table import render
from ..naming import names_of
from ..units import ratio_text, table_markdown
from .quantities import EDAPS, MICROMETRES, NANOSECONDS, PICOJOULES, number, text
from .report import BASIS, HardwareReport

# Name, heading, units, and whether less of it is better.
QUANTITIES = (
    ("energy_pj", "energy", PICOJOULES, True),
    ("latency_ns", "latency", NANOSECONDS, True),
    ("area_um2", "area", MICROMETRES, True),
    ("edap", "EDAP", EDAPS, True),
    ("tops_per_watt", "TOPS/W", None, False),
    ("tops_per_mm2", "TOPS/mm²", None, False),
)
MAPPING = (
    "a weight takes the cells that its bits need, a float one up to 32 of them: how the float "
    "network is mapped decides the ratios"
)
SETTINGS = ("crossbar", "timesteps", "compat")


@dataclass(frozen=True)
class HardwareComparison:
    """One row per report. A ratio says how many times better a row is than the first."""

    names: tuple[str, ...]
    reports: tuple[HardwareReport, ...]

    def ratio(self, index: int, quantity: str) -> float | None:
        """How many times less energy, latency, area or EDAP, and how many times more TOPS."""
        less = {name: less for name, _, _, less in QUANTITIES}
        if quantity not in less:
            listed = ", ".join(map(repr, less))
            raise AnalysisError(f"ratio({quantity!r}): must be one of {listed}. Pass one of them.")
        first, own = (
            getattr(report, quantity) for report in (self.reports[0], self.reports[index])
        )
        above, below = (first, own) if less[quantity] else (own, first)
        return above / below if above is not None and below else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``rows`` holds for each report its name, its quantities and its ratios."""
        rows = []
        for index, (name, report) in enumerate(zip(self.names, self.reports, strict=True)):
            names = [quantity for quantity, *_ in QUANTITIES]
            values = {quantity: getattr(report, quantity) for quantity in names}
            ratios = {quantity: self.ratio(index, quantity) for quantity in names}
            rows.append({"name": name, "tiles": report.tiles, **values, "ratios": ratios})
        return {"rows": rows, "notes": self._footnotes()}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    @property
    def _header(self) -> tuple[str, ...]:
        pairs = (cell for _, heading, *_ in QUANTITIES for cell in (heading, "ratio"))
        return ("model", "tiles", *pairs)

    def _lines(self) -> list[tuple[str, ...]]:
        lines = []
        for index, (name, report) in enumerate(zip(self.names, self.reports, strict=True)):
            cells = [name, f"{report.tiles:,}"]
            for quantity, _, units, _ in QUANTITIES:
                value = getattr(report, quantity)
                cells.append(number(value) if units is None else text(value, units))
                cells.append(ratio_text(self.ratio(index, quantity)))
            lines.append(tuple(cells))
        return lines

    def table(self) -> str:
        """The comparison as text."""
        return "\n".join([render(self._header, self._lines()), "", *self._footnotes()])

    __str__ = table

    def __repr__(self) -> str:
        return str(self)

    def to_markdown(self) -> str:
        """The comparison as a Markdown table."""
        body = table_markdown(self._header, self._lines(), text_columns=(0,))
        return "\n\n".join([body, *self._footnotes()]) + "\n"

    def plot(self) -> Any:
        """A matplotlib figure: a panel for each quantity, a bar for each report."""
        from .plots import plot_comparison

        return plot_comparison(self)

    def _footnotes(self) -> list[str]:
        better = (
            f"per sample; 2x is twice as good as {self.names[0]}: half of it, or for TOPS twice"
        )
        first, notes = self.reports[0], [better]
        for name, report in zip(self.names, self.reports, strict=True):
            unlike = [s for s in SETTINGS if getattr(report, s) != getattr(first, s)]
            if unlike:
                notes.append(f"{name} has another {' and another '.join(unlike)}: {report.title}")
            if report.unmapped:
                paths = ", ".join(row.path or "(model)" for row in report.unmapped)
                notes.append(f"{name}: not mapped and in no total: {paths}")
        if not all(report.compat for report in self.reports):
            notes.append(MAPPING)
        return [*notes, *BASIS]


def compare(*reports: HardwareReport, names: Iterable[str] | None = None) -> HardwareComparison:
    """Set estimates side by side, with ratios against the first.

    ``names`` label the rows; without them the models' class names do.

    >>> from spquant_plugin.analysis import hardware
    >>> wide = hardware.Layer("conv", 64, 64, 8, 8, weight_bits=32, membrane_bits=32)
    >>> slim = hardware.Layer("conv", 64, 64, 8, 8, weight_bits=2, membrane_bits=2)
    >>> both = [hardware.estimate_layers([layer], timesteps=4) for layer in (wide, slim)]
    >>> hardware.compare(*both, names=["float", "quantised"]).ratio(1, "energy_pj")
    16.0
    """
    given = names_of(reports, names, HardwareReport, "hardware.estimate(model, sample)")
    return HardwareComparison(given, reports)
