"""Configurations with a name, after the publications that describe them."""

from __future__ import annotations

from typing import Any

from .config import (
    AdditivePowerOfTwoWeights,
    ChannelGate,
    LearnableThreshold,
    MintMembrane,
    MintWeights,
    PowerOfTwoWeights,
    QuantizedNorm,
    SpatialGate,
    SpQuantConfig,
    TemporalTernaryWeights,
    TernaryMembrane,
    Triangle,
    UniformMembrane,
    UniformWeights,
)
from .errors import ConfigError


def quant_snn(weight_bits: int = 2, adaptive: bool = False, **fields: Any) -> SpQuantConfig:
    """Quant-SNN: ternary membranes, triangle surrogate and power-of-two weights.

    ``weight_bits`` from 2 to 4 gives powers of two, from 5 to 8 sums of them. ``adaptive=True``
    adds the learnable threshold. Any further keyword is a field of
    :class:`~spquant_plugin.SpQuantConfig` and overrides the preset.

    >>> quant_snn(weight_bits=2).weights
    PowerOfTwoWeights(bits=2, per_channel=True)
    >>> quant_snn(8, adaptive=True).threshold.gradient
    'gpw'
    """
    return _quantized("quant_snn", weight_bits, adaptive, fields)


def spquant_snn(weight_bits: int = 2, adaptive: bool = False, **fields: Any) -> SpQuantConfig:
    """SpQuant-SNN: :func:`quant_snn` with spatial gates and channel gates. Convert with a sample.

    >>> spquant_snn().spatial_gate, spquant_snn(channel_gate=None).channel_gate
    (SpatialGate(sparsity=0.35, score='current'), None)
    """
    gates = {"spatial_gate": SpatialGate(), "channel_gate": ChannelGate()}
    return _quantized("spquant_snn", weight_bits, adaptive, {**gates, **fields})


def tawq(timesteps: int, **fields: Any) -> SpQuantConfig:
    """TaWQ: ternary weights that change with the time step; first and last layer stay in float.

    >>> tawq(4).weights
    TemporalTernaryWeights(bits=2, scale='per_step', timesteps=4)
    """
    defaults = {"weights": TemporalTernaryWeights(timesteps=timesteps), "edge_weights": None}
    return _config("tawq", ("timesteps",), defaults, fields)


def mint(bits: int = 4, **fields: Any) -> SpQuantConfig:
    """MINT: one learned scale for a layer's weights and the membrane behind it, norms folded.

    ``bits`` from 2 to 8. From 4 bits on the scale starts where the weights fit best: the mean would
    clip them, and the network would be silent. Convert with a sample.

    >>> mint(4).membrane.highest, mint(4).weights.start, mint(4).norm.mode
    (7, 'fit', 'fold')
    """
    _check_bits("mint", "bits", bits)
    defaults = {
        "membrane": MintMembrane(bits),
        "weights": MintWeights(bits, start="mean" if bits < 4 else "fit"),
        "norm": QuantizedNorm("fold"),
    }
    return _config("mint", ("bits",), defaults, fields)


def md_snn(bits: int = 4, **fields: Any) -> SpQuantConfig:
    """MD-SNN's student: membranes and weights of ``bits`` (2 to 8) bits, dyadic norms.

    Train it with :class:`~spquant_plugin.distill.DistillationLoss`. Convert with a sample.

    >>> md_snn(4).membrane.bits, md_snn(4).norm.mode
    (4, 'dyadic')
    """
    _check_bits("md_snn", "bits", bits)
    defaults = {
        "membrane": UniformMembrane(bits),
        "weights": UniformWeights(bits),
        "norm": QuantizedNorm("dyadic"),
    }
    return _config("md_snn", ("bits",), defaults, fields)


def _check_bits(preset: str, name: str, bits: Any) -> None:
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ConfigError(
            f"{preset}({name}={bits!r}): must be a whole number from 2 to 8. "
            "Pass weights=... for another quantiser."
        )


def _quantized(
    name: str, weight_bits: int, adaptive: object, fields: dict[str, Any]
) -> SpQuantConfig:
    _check_bits(name, "weight_bits", weight_bits)
    if not isinstance(adaptive, bool):
        raise ConfigError(
            f"{name}(adaptive={adaptive!r}): must be True or False. "
            "Pass threshold=LearnableThreshold(...) to choose how it learns."
        )
    defaults: dict[str, Any] = {
        "membrane": TernaryMembrane(),
        "surrogate": Triangle(),
        "weights": PowerOfTwoWeights(weight_bits)
        if weight_bits <= 4
        else AdditivePowerOfTwoWeights(weight_bits),
        "threshold": LearnableThreshold() if adaptive else None,
    }
    return _config(name, ("weight_bits", "adaptive"), defaults, fields)


def _config(
    preset: str, arguments: tuple[str, ...], defaults: dict[str, Any], fields: dict[str, Any]
) -> SpQuantConfig:
    """The preset with what ``fields`` override."""
    unknown = sorted(set(fields) - set(SpQuantConfig.__dataclass_fields__))
    if unknown:
        listed = ", ".join((*arguments, *SpQuantConfig.__dataclass_fields__))
        raise ConfigError(f"{preset} received unknown field {unknown[0]!r}: it takes {listed}.")
    return SpQuantConfig(**{**defaults, **fields})
