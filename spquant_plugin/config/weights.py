"""Records of weights and of the input."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ConfigError
from ..records import Record, choice, fail, flag, real, whole


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
class TemporalTernaryWeights(_Weights):
    """Weights that change with the time step, after TaWQ: -a, 0 or a in each.

    A ternary neuron without input noise, driven by the normalised weight, says what the weight is
    in each of ``timesteps`` steps; so one stored code gives all of them. ``scale="per_step"`` has
    one ``a`` per output channel and step, ``"shared"`` one per output channel. ``bits`` 3 and 4
    have 7 and 15 levels in each step, an extension of this package. ``timesteps=None`` takes the
    number of steps from the input, where a layer is given all of them at once.
    """

    bits: int = 2
    scale: str = field(default="per_step", kw_only=True)
    timesteps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "bits", 2, 4)
        choice(self, "scale", ("per_step", "shared"))
        if self.timesteps is not None:
            whole(self, "timesteps", 1, 32)


@dataclass(frozen=True)
class MintWeights(_Weights):
    """Symmetric weights in ``bits`` (2 to 8) bits, with one learned scale for the layer.

    The membrane of the neuron behind the layer shares the scale where it is a ``MintMembrane``.
    ``start`` says where the scale begins: ``"mean"`` at ``2 mean|W| / sqrt(Q)``, as MINT's authors
    have it, which clips ever more weights the more bits there are; ``"fit"``, an addition of this
    package, where the squared error of the weights is least.
    """

    bits: int = 2
    start: str = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "bits", 2, 8)
        choice(self, "start", ("mean", "fit"))


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
