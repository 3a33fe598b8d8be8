"""What a tensor of the trained model stands for, while its graph of integers is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..readout import Step


@dataclass(frozen=True, eq=False)
class Dyadic:
    """A norm whose steps are ``(multiplier * x + offset) / 2**shift`` with whole numbers (int64).

    The steps serve a neuron, which becomes a table anyway; where branches join, these do.
    """

    path: str
    multiplier: Tensor
    offset: Tensor
    shift: int


@dataclass(frozen=True, eq=False)
class Symbol:
    """Whole numbers of a node, and how the model's real numbers follow from them.

    ``lead`` are the axes of time and samples in front, ``shape`` those of one sample and step. The
    real numbers are the whole ones times ``unit`` (powers of two; one, or one per channel),
    exactly; then come ``steps``, float arithmetic on each channel, the ``gate`` that closes
    channels, and ``added``, another exact symbol. ``time`` is the step that this is of; None stands
    for all that there are. ``reads`` is "membrane" for a neuron's stored levels. ``once`` marks
    what comes of a single input before the steps begin, so that it is the same at each of them.
    """

    node: str
    shape: tuple[int, ...]
    lead: tuple[int, ...]
    unit: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float64))
    steps: tuple[Step, ...] = ()
    gate: str | None = None
    added: Symbol | None = None
    time: int | None = None
    reads: str = "value"
    over_time: str | None = None
    dyadic: Dyadic | None = None  # what all its steps are, in whole numbers
    once: bool = False
    analogue: bool = False  # the raw input, which the layers that read it quantise

    @property
    def exact(self) -> bool:
        """Whether this is whole numbers times a unit, and nothing else."""
        plain = self.gate is None and self.added is None and self.over_time is None
        return plain and not self.steps and self.reads == "value" and not self.analogue

    @property
    def uniform(self) -> bool:
        """Whether all channels have one unit."""
        return bool((self.unit == self.unit[0]).all())

    def but(self, **changes: Any) -> Symbol:
        """The same with some fields changed."""
        return replace(self, **changes)

    def same(self, other: Symbol, *, but_time: bool = False) -> bool:
        """Whether both stand for the same numbers."""
        alike = (self.node, self.shape, self.gate, self.reads, self.over_time) == (
            (other.node, other.shape, other.gate, other.reads, other.over_time)
        )
        if not alike or (not but_time and self.time != other.time):
            return False
        if not torch.equal(self.unit, other.unit) or not same_steps(self.steps, other.steps):
            return False
        if self.added is None or other.added is None:
            return self.added is other.added
        return self.added.same(other.added, but_time=but_time)


def same_steps(one: tuple[Step, ...], other: tuple[Step, ...]) -> bool:
    """Whether two chains of float arithmetic are the same."""
    return len(one) == len(other) and all(
        len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


def is_power_of_two(value: float) -> bool:
    """Whether multiplying by this number is exact.

    >>> is_power_of_two(0.25), is_power_of_two(3.0)
    (True, False)
    """
    mantissa, _ = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return bool(mantissa == 0.5)
