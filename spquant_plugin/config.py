"""What is asked for: frozen, validated records that ``convert`` reads.

A record refuses a bad value when it is made, so that no later step needs to check again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ConfigError
from .records import Record, choice, fail, flag, is_finite_number, real, whole

SHAPES = ("sigmoid", "arctan", "triangle", "piecewise")


# --- membranes ----------------------------------------------------------------------------------


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


# --- firing -------------------------------------------------------------------------------------


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


# --- weights and input --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights(Record):
    """What every weight quantiser shares."""

    @property
    def stored_bits(self) -> int:
        """Bits that one stored weight takes in memory."""
        return self.bits  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PowerOfTwoWeights(_Weights):
    """Weights ``±alpha * 2**-k`` and 0 in ``bits`` (2 to 4) bits, alpha a power of two."""

    bits: int = 2
    per_channel: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "bits", 2, 4)
        flag(self, "per_channel")


@dataclass(frozen=True)
class AdditivePowerOfTwoWeights(_Weights):
    """Weights that are sums of powers of two, in ``bits`` (5 to 8) bits, alpha a power of two."""

    bits: int = 8
    per_channel: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "bits", 5, 8)
        flag(self, "per_channel")


@dataclass(frozen=True)
class UniformWeights(_Weights):
    """Evenly spaced symmetric weights in ``bits`` (2 to 8) bits, one scale per output channel.

    ``scale="auto"`` takes the largest magnitude from 6 bits on and the least squared error over 16
    ratios of it below; ``"sawb"`` (4 bits) derives it from the weights' statistics.
    """

    bits: int = 8
    scale: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "bits", 2, 8)
        choice(self, "scale", ("auto", "sawb"))
        if self.scale == "sawb" and self.bits != 4:
            rule = "its two constants are known for bits=4 only. Use bits=4 or scale='auto'."
            raise fail(self, "scale", self.scale, f"received with bits={self.bits}; {rule}")


@dataclass(frozen=True)
class TernaryWeights(_Weights):
    """Weights -a, 0 or a: zero up to 5 % of the largest magnitude, one ``a`` per output channel."""

    bits = property(lambda self: 2)


@dataclass(frozen=True)
class UniformInput(Record):
    """An analogue input put on an integer grid: ``2**bits`` levels from ``low`` to ``high``.

    Zero always lies on the grid, so that padding stays exact.
    """

    bits: int = 8
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        whole(self, "bits", 1, 8)
        real(self, "low")
        real(self, "high")
        if not self.low <= 0.0 <= self.high or self.low == self.high:
            received = f"UniformInput(low={self.low}, high={self.high})"
            raise ConfigError(
                f"{received}: must hold low <= 0 <= high and low < high, because padding adds "
                "zeros. Shift the input so that its range contains zero."
            )


# --- the whole ----------------------------------------------------------------------------------

_FIELD_KINDS: dict[str, type] = {
    "membrane": _Membrane,
    "surrogate": Triangle,
    "threshold": LearnableThreshold,
    "weights": _Weights,
    "edge_weights": _Weights,
    "input": UniformInput,
}


@dataclass(frozen=True)
class SpQuantConfig(Record):
    """Everything that ``convert`` may change; a field left at None leaves that part alone.

    ``edge_weights`` serves the first and the last weight layer wherever ``weights`` is set; None
    keeps those two in float. ``overrides`` maps a selector (an exact path, ``"re:"`` and a regular
    expression, or a class name) to the configuration of what it selects, None for "leave alone".
    An override replaces the whole configuration: start from ``dataclasses.replace`` to keep parts.

    >>> config = SpQuantConfig(membrane=TernaryMembrane(), weights=PowerOfTwoWeights(2))
    >>> SpQuantConfig.from_dict(config.to_dict()) == config
    True
    """

    membrane: _Membrane | None = None
    surrogate: Triangle | None = None
    threshold: LearnableThreshold | None = None
    weights: _Weights | None = None
    edge_weights: _Weights | None = field(default_factory=lambda: UniformWeights(8))
    input: UniformInput | None = None
    overrides: Mapping[str, SpQuantConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in _FIELD_KINDS.items():
            check_kind(self, name, getattr(self, name), kind)
        self._check_overrides()

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise fail(self, "overrides", self.overrides, "must map selectors to configurations.")
        for selector, config in self.overrides.items():
            if not isinstance(selector, str) or not selector:
                raise fail(self, "overrides", selector, "must have non-empty strings as keys.")
            if config is not None and not isinstance(config, SpQuantConfig):
                rule = "must be a SpQuantConfig, or None to leave the module alone."
                raise fail(self, f"overrides[{selector!r}]", config, rule)
            if config is not None and config.overrides:
                rule = "must not hold overrides of its own. Put every selector at the top level."
                raise fail(self, f"overrides[{selector!r}]", config, rule)
        object.__setattr__(self, "overrides", dict(self.overrides))

    @property
    def changes_neurons(self) -> bool:
        """Whether this configuration rebuilds the neurons that it selects."""
        return any(part is not None for part in (self.membrane, self.surrogate, self.threshold))

    @property
    def changes_layers(self) -> bool:
        """Whether this configuration quantises the layers that it selects."""
        return self.weights is not None or self.input is not None


def check_kind(owner: object, name: str, value: object, kind: type) -> None:
    """Refuse what is neither None nor a record of this kind."""
    if value is None or isinstance(value, kind):
        return
    listed = ", ".join(_kind_names(kind))
    call = f" Call it: {value.__name__}()." if isinstance(value, type) else ""
    raise fail(owner, name, value, f"must be None or one of {listed}.{call}")


def _kind_names(kind: type) -> list[str]:
    if not kind.__name__.startswith("_"):
        return [kind.__name__]
    return sorted(name for name, known in Record.known.items() if issubclass(known, kind))
