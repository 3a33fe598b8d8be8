"""One row of ``evaluate.py``'s table."""

from __future__ import annotations

from dataclasses import dataclass

from spquant_plugin.analysis.units import bytes_text

HEADER = ("network", "accuracy", "points", "fires", "channels closed", "membranes", "total")


@dataclass(frozen=True)
class Row:
    """What was measured of one network; shares of 1, bytes of one sample, None for unknown."""

    name: str
    accuracy: float
    firing_rate: float | None = None
    channels_closed: float | None = None
    membrane_bytes: float | None = None
    total_bytes: float | None = None
    clipped: float | None = None
    exact: bool | None = None

    def cells(self, first: Row) -> tuple[str, ...]:
        """As text; ``first`` is what the accuracy is compared with."""
        points = "" if self is first else f"{100 * (self.accuracy - first.accuracy):+.2f}"
        shares = [_text(share, "{:.1%}") for share in (self.firing_rate, self.channels_closed)]
        sizes = [
            "" if size is None else bytes_text(size)
            for size in (self.membrane_bytes, self.total_bytes)
        ]
        return (self._told(), f"{100 * self.accuracy:.2f} %", points, *shares, *sizes)

    def _told(self) -> str:
        if self.clipped is not None:
            return f"{self.name} ({self.clipped:.1%} of the membranes)"
        if self.exact is not None:
            return f"{self.name}, {'equal' if self.exact else 'NOT equal'} to the model"
        return self.name


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
