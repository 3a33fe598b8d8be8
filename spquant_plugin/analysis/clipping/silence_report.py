"""What :func:`~spquant_plugin.analysis.clipping.measure_silence` found, as table and record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..part import ReportPart
from .plots import plot_silence

HEADER = (
    *("path", "type", "steps", "lowest", "bound", "below", "fire later", "of those below"),
    *("woken", "note"),
)


@dataclass(frozen=True)
class SilentRegion:
    """The neurons below one bound after the first step, as shares of 1.

    ``share`` is how many of all neurons they are. ``rate`` is the mean over later steps of the
    share of *all* neurons that are among them and fire, as Eq. 6 prints it; ``rate_within`` the
    same over *them*. ``woken`` is the share of them that fires at least once later; what remains
    is the silent region. The last two are None where no neuron is below the bound.
    """

    bound: float
    share: float
    rate: float
    rate_within: float | None
    woken: float | None


@dataclass(frozen=True)
class SilenceRow:
    """One neuron layer: its steps, the lowest membrane of all steps, and a region per bound."""

    path: str
    type: str
    steps: int = 0
    lowest: float | None = None
    regions: tuple[SilentRegion, ...] = ()
    note: str = ""

    def at(self, bound: float) -> SilentRegion:
        """The region of one bound."""
        for region in self.regions:
            if region.bound == bound:
                return region
        listed = ", ".join(f"{region.bound:g}" for region in self.regions) or "none"
        raise KeyError(f"{bound!r} has no region here. There are: {listed}.")

    def lines(self) -> list[tuple[str, ...]]:
        """A line of text for each bound."""
        start = (self.path or "(model)", self.type, str(self.steps) if self.steps else "")
        if not self.regions or self.lowest is None:
            return [(*start, *[""] * 6, self.note)]
        lowest = f"{self.lowest:.4g}"
        return [
            (
                *start,
                lowest,
                f"{region.bound:g}",
                *map(_percent, (region.share, region.rate, region.rate_within, region.woken)),
                self.note,
            )
            for region in self.regions
        ]


@dataclass(frozen=True)
class SilenceReport(ReportPart[SilenceRow]):
    """A row for each neuron layer, by path; ``print(report)`` shows every bound."""

    header = HEADER

    model: str
    layers: tuple[SilenceRow, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.model}, silent region: neurons below a bound after the first step"

    @property
    def footnotes(self) -> tuple[str, ...]:
        return (
            "below: of all neurons; fire later: mean over the later steps, of all neurons (Eq. 6)\n"
            "of those below: the same over those below; woken: of those, fire at least once later",
        )

    def lines(self) -> list[tuple[str, ...]]:
        """All rows as text."""
        return [line for row in self.layers for line in row.lines()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        rows = [asdict(row) | {"regions": [asdict(r) for r in row.regions]} for row in self.layers]
        return {"model": self.model, "layers": rows}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(self) -> Any:
        """A matplotlib figure: bars for each layer and bound, as in Fig. 2."""
        return plot_silence(self)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
