"""How much of a network is silent or shut on the data that it ran on, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .part import ReportPart
from .sparsity_plots import plot_sparsity
from .units import share_text

HEADER = (
    *("path", "type", "zero weights", "firing rate", "channels closed", "pixels masked"),
    *("membrane levels", "note"),
)
MEASURED = ("zero_weights", "firing_rate", "channels_closed", "pixels_masked")
FEW = 4  # levels that a line of the table holds


@dataclass(frozen=True)
class SparsityRow:
    """Shares of 1, over all samples and steps; None for what the module does not have.

    ``zero_weights`` are weights that are 0 as the layer computes with them, ``firing_rate`` is
    nonzero outputs over neurons times steps, ``channels_closed`` and ``pixels_masked`` are what a
    gate shut over all that it decided on. ``level_shares`` holds for each step the shares of the
    neurons whose stored membrane lay on each of ``levels``; both are empty for float membranes.
    """

    path: str
    type: str
    firing_rate: float | None = None
    channels_closed: float | None = None
    pixels_masked: float | None = None
    zero_weights: float | None = None
    levels: tuple[int, ...] = ()
    level_shares: tuple[tuple[float, ...], ...] = ()
    note: str = ""

    @property
    def mean_level_shares(self) -> tuple[float, ...]:
        """``level_shares``, averaged over the steps."""
        columns = zip(*self.level_shares, strict=True)
        return tuple(sum(column) / len(self.level_shares) for column in columns)

    def _levels_text(self) -> str:
        if not self.levels or len(self.levels) > FEW:
            return f"{len(self.levels)} levels" if self.levels else ""
        pairs = zip(self.levels, self.mean_level_shares, strict=True)
        return ", ".join(f"{level}: {share:.1%}" for level, share in pairs)

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        shares = (share_text(getattr(self, name)) for name in MEASURED)
        return (self.path or "(model)", self.type, *shares, self._levels_text(), self.note)


@dataclass(frozen=True)
class SparsityReport(ReportPart[SparsityRow]):
    """The sparsity part of a report: a row for each weight layer, spiking neuron layer and gate."""

    header = HEADER

    layers: tuple[SparsityRow, ...] = ()

    def _mean(self, name: str) -> float | None:
        found = [value for row in self.layers if (value := getattr(row, name)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def zero_weights(self) -> float | None:
        """Plain mean over the weight layers, whatever their size; None without any."""
        return self._mean("zero_weights")

    @property
    def firing_rate(self) -> float | None:
        """Plain mean over the neuron layers, whatever their size; None without any."""
        return self._mean("firing_rate")

    @property
    def channels_closed(self) -> float | None:
        """Plain mean over the channel gates; None without any."""
        return self._mean("channels_closed")

    @property
    def pixels_masked(self) -> float | None:
        """Plain mean over the spatial gates; None without any."""
        return self._mean("pixels_masked")

    def plot(self) -> Any:
        """A matplotlib figure: firing rates, zero weights, and each membrane's levels by step."""
        return plot_sparsity(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the means, and ``layers``, a list with a record per row."""
        means = {name: getattr(self, name) for name in MEASURED}
        # JSON knows lists only.
        rows = [asdict(row) for row in self.layers]
        for row in rows:
            row["levels"] = list(row["levels"])
            row["level_shares"] = [list(shares) for shares in row["level_shares"]]
        return {**means, "layers": rows}

    @property
    def title(self) -> str:
        return "sparsity: shares of 1 over all samples and steps"

    @property
    def footnotes(self) -> tuple[str, ...]:
        return ("mean: plain mean of the rows above, whatever their size",)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the means, as text."""
        means = (share_text(getattr(self, name)) for name in MEASURED)
        return [*(row.cells() for row in self.layers), ("mean", "", *means, "", "")]
