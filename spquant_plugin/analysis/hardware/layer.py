"""A layer as the accelerator sees it: channels, sizes and bits."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import Any

from ...records import Record, fail, is_finite_number, whole

LARGEST = 2**31


@dataclass(frozen=True)
class Layer(Record):
    """A convolution, or with :meth:`linear` a linear layer.

    Sizes and kernel are tuples, ``(height, width)``; a number stands for a square. ``out_size`` is
    the number of positions at which the layer is computed.

    ``weight_bits`` None is one column per weight, ``membrane_bits`` (of the neurons that it feeds)
    and ``input_bits`` (of those that it reads) None are the accelerator's ``neuron_bits``: what the
    public tool assumes. ``spike_rate`` is the share of inputs that are not zero, ``gate_factor``
    the share of the layer that gates leave to be computed. ``steps`` is how often it is computed
    for one sample, where that is not once per time step. ``matrices`` are how many weight matrices
    the layer holds, each time step driving one of them: as many as steps where the weights change
    with the step, since a crossbar computes with what its cells hold and decodes nothing.

    >>> Layer("conv1", 3, 64, 32, 16, weight_bits=8).out_size
    (16, 16)
    """

    path: str
    in_channels: int
    out_channels: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    kernel: tuple[int, ...] = (3, 3)
    groups: int = field(default=1, kw_only=True)
    weight_bits: int | None = field(default=None, kw_only=True)
    membrane_bits: int | None = field(default=None, kw_only=True)
    input_bits: int | None = field(default=None, kw_only=True)
    spike_rate: float = field(default=1.0, kw_only=True)
    gate_factor: float = field(default=1.0, kw_only=True)
    steps: float | None = field(default=None, kw_only=True)
    matrices: int = field(default=1, kw_only=True)
    type: str = field(default="Conv", kw_only=True)
    note: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("path", "type", "note"):
            if not isinstance(getattr(self, name), str):
                raise fail(self, name, getattr(self, name), "must be text.")
        for name in ("in_channels", "out_channels", "groups", "matrices"):
            whole(self, name, 1, LARGEST)
        for name in ("in_size", "out_size", "kernel"):
            self._sizes(name)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            both = f"in_channels = {self.in_channels} and out_channels = {self.out_channels}"
            rule = f"must divide {both}. Correct the groups or the channels."
            raise fail(self, "groups", self.groups, rule)
        for name in ("weight_bits", "membrane_bits", "input_bits"):
            if getattr(self, name) is not None:
                whole(self, name, 1, 64 if name == "weight_bits" else 1024)
        for name in ("spike_rate", "gate_factor"):
            value = getattr(self, name)
            if not is_finite_number(value) or not 0 <= value <= 1:
                raise fail(
                    self, name, value, "must be a share from 0 to 1. Divide percents by 100."
                )
            object.__setattr__(self, name, float(value))
        if self.steps is not None and (not is_finite_number(self.steps) or self.steps <= 0):
            rule = "must be a number above 0. Leave it out for once per time step."
            raise fail(self, "steps", self.steps, rule)

    def _sizes(self, name: str) -> None:
        """Whole numbers above 0; one of them alone stands for a square."""
        value = getattr(self, name)
        sizes = (value, value) if isinstance(value, numbers.Integral) else value
        is_whole = isinstance(sizes, tuple | list) and all(
            isinstance(size, numbers.Integral) and not isinstance(size, bool) and int(size) > 0
            for size in sizes
        )
        if not is_whole:
            rule = "must be a whole number above 0, or a tuple of them: (height, width)."
            raise fail(self, name, value, f"{rule} Correct it, or use Layer.linear for no size.")
        object.__setattr__(self, name, tuple(int(size) for size in sizes))

    @classmethod
    def linear(
        cls, path: str, in_features: int, out_features: int, tokens: int = 1, **options: Any
    ) -> Layer:
        """A linear layer: a kernel of one position, computed once, or for each of ``tokens``.

        >>> Layer.linear("fc", 4608, 10).macs
        46080
        """
        size = () if tokens == 1 else (tokens,)
        options = {"type": "Linear", **options}
        return cls(path, in_features, out_features, size, size, (), **options)

    @property
    def positions(self) -> int:
        """Kernel positions, each a crossbar of its own."""
        return math.prod(self.kernel)

    @property
    def inputs(self) -> int:
        """Values that it reads in one step."""
        return self.in_channels * math.prod(self.in_size)

    @property
    def outputs(self) -> int:
        """Values that it gives in one step."""
        return self.out_channels * math.prod(self.out_size)

    @property
    def macs(self) -> int:
        """Multiplications with an addition in one step, zero padding counted."""
        return self.outputs * (self.in_channels // self.groups) * self.positions
