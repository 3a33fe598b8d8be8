"""How much of a network is silent or shut on the data that it ran on, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .part import ReportPart
from .units import share_text

HEADER = ("path", "type", "firing rate", "channels closed", "pixels masked", "note")
MEASURED = ("firing_rate", "channels_closed", "pixels_masked")


@dataclass(frozen=True)
class SparsityRow:
    """Shares of 1, over all samples and steps; None for what the module does not have.

    ``firing_rate`` is nonzero outputs over neurons times steps, ``channels_closed`` and
    ``pixels_masked`` are what a gate shut over all that it decided on.
    """

    path: str
    type: str
    firing_rate: float | None = None
    channels_closed: float | None = None
    pixels_masked: float | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        shares = (share_text(getattr(self, name)) for name in MEASURED)
        return (self.path or "(model)", self.type, *shares, self.note)


@dataclass(frozen=True)
class SparsityReport(ReportPart[SparsityRow]):
    """The sparsity part of a report: a row for each spiking neuron layer and each gate."""

    header = HEADER

    layers: tuple[SparsityRow, ...] = ()

    def _mean(self, name: str) -> float | None:
        found = [value for row in self.layers if (value := getattr(row, name)) is not None]
        return sum(found) / len(found) if found else None

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the means, and ``layers``, a list with a record per row."""
        means = {name: getattr(self, name) for name in MEASURED}
        return {**means, "layers": [asdict(row) for row in self.layers]}

    @property
    def title(self) -> str:
        return "sparsity: shares of 1 over all samples and steps"

    @property
    def footnotes(self) -> tuple[str, ...]:
        return ("mean: plain mean of the rows above, whatever their size",)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the means, as text."""
        means = (share_text(getattr(self, name)) for name in MEASURED)
        return [*(row.cells() for row in self.layers), ("mean", "", *means, "")]
