"""Reports side by side, with ratios against the first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..table import no_such_row, render
from .naming import names_of
from .operations import NUMBERS
from .plots import plot_comparison
from .report import Report
from .units import bytes_text, count_text, joules_text, ratio_text, table_markdown

PARTS = ("weight", "membrane", "spike", "other", "total")


COUNTS = ("effective", "gates", "total")
HEADER = (
    *("model", "mode", "weights", "ratio", "membranes", "ratio"),
    *("spikes", "ratio", "total", "ratio", "other", "accumulates", "ratio"),
    *("operations", "ratio", "energy", "ratio"),
)


@dataclass(frozen=True)
class Comparison:
    """One row per report. A ratio says how many times smaller a row is than the first."""

    names: tuple[str, ...]
    reports: tuple[Report, ...]

    def ratio(self, index: int, part: str) -> float | None:
        """First report over this one; None where this one has none of it."""
        _check_name(part, PARTS)
        first, own = (
            getattr(report.memory, f"{part}_bytes")
            for report in (self.reports[0], self.reports[index])
        )
        return first / own if own else None

    def operation_ratio(self, index: int, count: str = "total") -> float | None:
        """The same for operations: ``"effective"`` accumulates, or the ``"total"``."""
        _check_name(count, NUMBERS)
        first, own = (
            getattr(report.operations, count) for report in (self.reports[0], self.reports[index])
        )
        return first / own if own else None

    def energy_ratio(self, index: int, model: str = "compute_and_memory") -> float | None:
        """The same for energy, under one of the named models."""
        first, own = (
            report.energy.model(model) for report in (self.reports[0], self.reports[index])
        )
        return first / own if own else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``rows`` holds for each report its name, mode, bytes, counts and ratios."""
        rows = []
        for index, (name, report) in enumerate(zip(self.names, self.reports, strict=True)):
            sizes = {f"{part}_bytes": getattr(report.memory, f"{part}_bytes") for part in PARTS}
            ratios = {part: self.ratio(index, part) for part in PARTS}
            operations: dict[str, Any] = {
                count: getattr(report.operations, count) for count in COUNTS
            }
            operations["ratios"] = {
                count: self.operation_ratio(index, count) for count in ("effective", "total")
            }
            memory = {"name": name, "mode": report.memory.mode, **sizes, "ratios": ratios}
            models = dict(report.energy.models)
            energy = {
                "table": report.energy.table_name,
                "total_pj": report.energy.total_pj,
                "models": models,
                "ratios": {model: self.energy_ratio(index, model) for model in models},
            }
            rows.append({**memory, "operations": operations, "energy": energy})
        return {"rows": rows}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def _lines(self) -> list[tuple[str, ...]]:
        lines = []
        for index, (name, report) in enumerate(zip(self.names, self.reports, strict=True)):
            cells = [name, report.memory.mode]
            for part in ("weight", "membrane", "spike", "total"):
                cells.append(bytes_text(getattr(report.memory, f"{part}_bytes")))
                cells.append(ratio_text(self.ratio(index, part)))
            cells.append(bytes_text(report.memory.other_bytes))
            for count in ("effective", "total"):
                cells.append(count_text(getattr(report.operations, count)))
                cells.append(ratio_text(self.operation_ratio(index, count)))
            cells.append(joules_text(report.energy.total_pj))
            cells.append(ratio_text(self.energy_ratio(index)))
            lines.append(tuple(cells))
        return lines

    def table(self) -> str:
        """The comparison as text."""
        return "\n".join([render(HEADER, self._lines()), "", *self._footnotes()])

    __str__ = table

    def __repr__(self) -> str:
        return str(self)

    def to_markdown(self) -> str:
        """The comparison as a Markdown table."""
        body = table_markdown(HEADER, self._lines(), text_columns=(0, 1))
        return "\n\n".join([body, *self._footnotes()]) + "\n"

    def _footnotes(self) -> list[str]:
        modes = {report.memory.mode for report in self.reports}
        parts = "weights + membranes + spikes"
        total = f"total = {parts}"
        if modes == {"measured"}:
            total += " + other"
        elif "measured" in modes:
            total += ", and other where measured"
        counted = "accumulates = effective ones per sample, over all its steps"
        own = "operations = and what neurons and gates take themselves"
        tables = [report.energy.table_name for report in self.reports]
        priced = f"energy = compute and memory at {tables[0]}"
        if len(set(tables)) > 1:
            pairs = zip(self.names, tables, strict=True)
            priced += ", but not alike: " + ", ".join(f"{name} {table}" for name, table in pairs)
        return [
            f"bytes per sample; 2x is half of {self.names[0]}; {total}",
            f"{counted}; {own}",
            priced,
        ]

    def plot(self) -> Any:
        """A matplotlib figure: memory, operations and energy, a bar for each report."""
        memories = [report.memory for report in self.reports]
        operations = [report.operations for report in self.reports]
        return plot_comparison(
            self.names, memories, operations, [report.energy for report in self.reports]
        )


def _check_name(name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise KeyError(no_such_row(name, names))


def compare(*reports: Report, names: Iterable[str] | None = None) -> Comparison:
    """Set reports side by side, with ratios against the first.

    ``names`` label the rows; without them the models' class names do.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    >>> ternary = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    >>> x = torch.full((1, 4), 9.0)
    >>> both = spq.compare(spq.analyze(net, x), spq.analyze(ternary, x), names=["float", "ternary"])
    >>> both.to_dict()["rows"][1]["ratios"]["membrane"]
    16.0
    """
    given = names_of(reports, names, Report, "spq.analyze(model, sample)")
    return Comparison(given, reports)
