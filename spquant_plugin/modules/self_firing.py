"""What a neuron says of itself where it would fire without input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelfFiring:
    """A silent neuron that would fire without input, and the unit below which it would not."""

    decay: float
    unit: float
    threshold: float
    level: int
    largest_safe_unit: float

    def __str__(self) -> str:
        if not self.largest_safe_unit:
            return (
                f"fires without input: its threshold is {self.threshold:.4g} above rest, so at "
                "rest it is reached, whatever the unit. Raise the threshold."
            )
        return (
            f"fires without input: a silent neuron may store level {self.level}, and "
            f"{self.decay:.4g} * {self.level} * unit {self.unit:.4g} reaches the threshold "
            f"{self.threshold:.4g} above rest. Use a unit below {self.largest_safe_unit:.4g}."
        )
