"""What a membrane recurrence fixes once for a layer: how it fires, resets, stores and learns."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import KernelError

RESETS = ("hard", "soft", "none", "late_subtract", "late_zero", "late_drop")
SLOPES = ("triangle", "window", "sigmoid", "arctan", "fast_sigmoid")
GRADIENTS = ("none", "host", "gpw", "shared", "doubled")
SHAPES = ("sigmoid", "arctan", "triangle", "piecewise")


class Rule(NamedTuple):
    """Everything about a layer's recurrence that is neither a tensor nor learned.

    ``reset`` acts at once (``"hard"``, ``"soft"``), never (``"none"``), or one step late as in
    snnTorch: ``"late_subtract"`` takes a threshold off, ``"late_zero"`` forgets the membrane,
    ``"late_drop"`` forgets the membrane and the step's input. ``strict`` fires above the threshold
    only, not on it. ``slope`` is the firing surrogate, and ``sharpness`` the width of a triangle
    (or of one inside the penalty window), else the factor of its argument.
    ``threshold_gradient`` is one of methods ``"gpw"``, ``"shared"`` and ``"doubled"``; ``"host"``
    is what autograd gives a threshold that is an ordinary parameter; ``"none"`` is no gradient. The
    levels go from ``lowest`` to ``highest`` with ``cut_points`` between them (empty: half way), and
    ``shape`` and ``temperature`` belong to their stacked surrogate. ``smooth`` replaces both steps
    by the integrals of their slopes, which makes gradients exact; for checks.
    """

    reset: str = "hard"
    detach_reset: bool = False
    strict: bool = False
    rest: float = 0.0
    slope: str = "triangle"
    sharpness: float = 1.0
    threshold_gradient: str = "none"
    lowest: int = -1
    highest: int = 1
    cut_points: tuple[float, ...] = ()
    shape: str = "sigmoid"
    temperature: float = 2.0
    smooth: bool = False

    @property
    def late(self) -> bool:
        """Whether a spike resets in the next step."""
        return self.reset.startswith("late_")

    @property
    def cuts(self) -> tuple[float, ...]:
        """Boundaries between neighbouring levels."""
        return tuple(self.cut_points) or tuple(k + 0.5 for k in range(self.lowest, self.highest))


def check_rule(rule: Rule) -> None:
    """Refuse what is no rule."""
    if not isinstance(rule, Rule):
        raise KernelError(
            f"rule={rule!r}: must be a Rule. Use spquant_plugin.kernels.Rule(reset=...)."
        )
    for name, choices in (
        ("reset", RESETS),
        ("slope", SLOPES),
        ("threshold_gradient", GRADIENTS),
        ("shape", SHAPES),
    ):
        value = getattr(rule, name)
        if value not in choices:
            raise KernelError(f"Rule({name}={value!r}): must be one of {', '.join(choices)}.")
    for name in ("sharpness", "temperature"):
        value = getattr(rule, name)
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise KernelError(f"Rule({name}={value!r}): must be a finite number above 0.")
    if not (isinstance(rule.rest, int | float) and -math.inf < rule.rest < math.inf):
        raise KernelError(f"Rule(rest={rule.rest!r}): must be a finite number.")
    _check_levels(rule)


def _check_levels(rule: Rule) -> None:
    if not (isinstance(rule.lowest, int) and isinstance(rule.highest, int)):
        raise KernelError(
            f"Rule(lowest={rule.lowest!r}, highest={rule.highest!r}): both must be whole numbers. "
            "Levels count units; for others choose another unit."
        )
    if rule.highest <= rule.lowest:
        raise KernelError(
            f"Rule(lowest={rule.lowest!r}, highest={rule.highest!r}): highest must be above "
            "lowest. A float membrane has no unit; its levels are left at their default."
        )
    if rule.cut_points and len(rule.cut_points) != rule.highest - rule.lowest:
        raise KernelError(
            f"Rule(cut_points={rule.cut_points!r}): must be {rule.highest - rule.lowest} numbers, "
            "one between each two levels, or none for half way."
        )
    if not all(isinstance(cut, int | float) and abs(cut) < math.inf for cut in rule.cut_points):
        raise KernelError(f"Rule(cut_points={rule.cut_points!r}): must be finite numbers.")
    if any(a > b for a, b in zip(rule.cut_points, rule.cut_points[1:], strict=False)):
        raise KernelError(f"Rule(cut_points={rule.cut_points!r}): must ascend. Sort them.")
