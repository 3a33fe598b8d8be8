"""Records of firing: its surrogate and its threshold."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Record, choice, fail, flag, is_finite_number, real


@dataclass(frozen=True)
class Triangle(Record):
    """Firing surrogate ``max(0, width - |u - V|) / width**2``."""

    width: float = 1.0

    def __post_init__(self) -> None:
        real(self, "width", positive=True)


@dataclass(frozen=True)
class LearnableThreshold(Record):
    """A threshold that learns, along its own gradient.

    ``gradient="gpw"`` passes only what fired, weighed by the gradient penalty window;
    ``"shared"`` uses the membrane's own surrogate; ``"doubled"`` adds both. ``per_channel`` learns
    one threshold per channel instead of one per layer. ``bounds`` are relative to the initial
    threshold: forward uses the clamped value, and the gradient leads back inside.
    """

    gradient: str = "gpw"
    per_channel: bool = False
    bounds: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        choice(self, "gradient", ("gpw", "shared", "doubled"))
        flag(self, "per_channel")
        rule = "must be two numbers (low, high) with 0 < low <= 1 <= high."
        pair = self.bounds
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise fail(self, "bounds", pair, rule)
        if not all(map(is_finite_number, pair)) or not 0 < pair[0] <= 1 <= pair[1]:
            raise fail(self, "bounds", pair, rule)
        object.__setattr__(self, "bounds", (float(pair[0]), float(pair[1])))
