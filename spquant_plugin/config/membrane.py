"""Records of the stored membrane."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..records import Record, choice, fail, real, whole

SHAPES = ("sigmoid", "arctan", "triangle", "piecewise")


@dataclass(frozen=True)
class _Membrane(Record):
    """What every stored membrane shares: its unit and the surrogate of its quantiser."""

    unit: str | float = field(default="threshold", kw_only=True)
    shape: str = field(default="sigmoid", kw_only=True)
    temperature: float = field(default=2.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.unit != "threshold":
            if isinstance(self.unit, str):
                raise fail(self, "unit", self.unit, "must be 'threshold' or a number above 0.")
            real(self, "unit", positive=True)
        choice(self, "shape", SHAPES)
        real(self, "temperature", positive=True)

    @property
    def lowest(self) -> int:
        """Lowest stored level."""
        raise NotImplementedError

    @property
    def highest(self) -> int:
        """Highest stored level."""
        raise NotImplementedError

    @property
    def cut_points(self) -> tuple[float, ...] | None:
        """Boundaries between the levels, or None where they lie half way."""
        return None

    @property
    def stored_bits(self) -> int:
        """Bits that one stored level takes in memory."""
        return max(1, math.ceil(math.log2(self.highest - self.lowest + 1)))

    @property
    def information_bits(self) -> float:
        """Bits of information in one level: log2 of the number of levels."""
        return math.log2(self.highest - self.lowest + 1)

    @property
    def default_unit_factor(self) -> float:
        """What the default unit is multiplied by for this set of levels."""
        return 1.0


@dataclass(frozen=True)
class TernaryMembrane(_Membrane):
    """Membrane stored as -1, 0 or 1 (1.58 bit of information, 2 bits of memory).

    ``boundaries="nearest"`` rounds to the nearest level; ``"eq7"`` is the boundary pair 0 and 0.5
    that the SpQuant-SNN paper prints, under which a silent neuron becomes -1. ``unit`` is the size
    of one level: ``"threshold"`` takes it from the neuron's threshold and decay, a number is used
    as it is. ``shape`` and ``temperature`` set the stacked surrogate gradient.

    >>> TernaryMembrane().information_bits
    1.584962500721156
    """

    boundaries: str = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "boundaries", ("nearest", "eq7"))

    lowest = property(lambda self: -1)
    highest = property(lambda self: 1)

    @property
    def cut_points(self) -> tuple[float, ...] | None:
        return (0.0, 0.5) if self.boundaries == "eq7" else None


@dataclass(frozen=True)
class BinaryMembrane(_Membrane):
    """Membrane stored as 0 or 1: negative potentials are pruned to 0."""

    lowest = property(lambda self: 0)
    highest = property(lambda self: 1)


@dataclass(frozen=True)
class MintMembrane(_Membrane):
    """Membrane in ``bits`` (2 to 8) bits after MINT, which shares the scale of the layer before.

    Levels are -(2^(b-1) - 1) to 2^(b-1) - 1. The unit is learned and gradients go straight through,
    so ``unit``, ``shape`` and ``temperature`` stay at their defaults. Neurons need a fixed decay of
    one half, rest 0 and a hard reset.

    >>> MintMembrane(4).lowest, MintMembrane(4).highest
    (-7, 7)
    """

    bits: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "bits", 2, 8)
        for name, default in (("unit", "threshold"), ("shape", "sigmoid"), ("temperature", 2.0)):
            value = getattr(self, name)
            if value != default:
                rule = "cannot be set: the unit is learned, gradients go straight through."
                raise fail(self, name, value, rule)

    def __repr__(self) -> str:
        return f"MintMembrane(bits={self.bits})"

    highest = property(lambda self: 2 ** (self.bits - 1) - 1)
    lowest = property(lambda self: 1 - 2 ** (self.bits - 1))


@dataclass(frozen=True)
class UniformMembrane(_Membrane):
    """Membrane on an integer grid, given by ``bits`` (2 to 8) or by ``levels=(low, high)``.

    ``bits=b`` has the levels -2^(b-1) to 2^(b-1)-1 and shrinks the default unit by 2^(2-b), so that
    the range of potentials stays the same whatever ``b``.

    >>> UniformMembrane(bits=4).lowest, UniformMembrane(levels=(-3, 1)).highest
    (-8, 1)
    """

    bits: int | None = None
    levels: tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits is None) == (self.levels is None):
            received = f"bits={self.bits!r}, levels={self.levels!r}"
            raise ConfigError(f"UniformMembrane({received}): give bits or levels, exactly one.")
        if self.bits is not None:
            whole(self, "bits", 2, 8)
            return
        pair = self.levels
        rule = "must be two whole numbers (low, high) with low <= 0 < high and at most 256 levels."
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        if not is_pair or not all(type(level) is int for level in pair):  # type: ignore[union-attr]
            raise fail(self, "levels", pair, rule)
        low, high = pair  # type: ignore[misc]
        if not (low <= 0 < high and high - low < 256):
            raise fail(self, "levels", pair, rule)
        object.__setattr__(self, "levels", (low, high))

    @property
    def lowest(self) -> int:
        return self.levels[0] if self.levels else -(2 ** (self.bits - 1))  # type: ignore[operator]

    @property
    def highest(self) -> int:
        return self.levels[1] if self.levels else 2 ** (self.bits - 1) - 1  # type: ignore[operator]

    @property
    def default_unit_factor(self) -> float:
        return 1.0 if self.bits is None else 2.0 ** (2 - self.bits)
