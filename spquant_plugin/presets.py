"""Configurations with a name, after the publications that describe them."""

from __future__ import annotations

from typing import Any

from .config import (
    AdditivePowerOfTwoWeights,
    ChannelGate,
    LearnableThreshold,
    PowerOfTwoWeights,
    SpatialGate,
    SpQuantConfig,
    TernaryMembrane,
    Triangle,
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


def _quantized(
    name: str, weight_bits: object, adaptive: object, fields: dict[str, Any]
) -> SpQuantConfig:
    if type(weight_bits) is not int or not 2 <= weight_bits <= 8:
        raise ConfigError(
            f"{name}(weight_bits={weight_bits!r}): must be a whole number from 2 to 8. "
            "Pass weights=... for another quantiser."
        )
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
    unknown = sorted(set(fields) - set(SpQuantConfig.__dataclass_fields__))
    if unknown:
        listed = ", ".join(("weight_bits", "adaptive", *SpQuantConfig.__dataclass_fields__))
        raise ConfigError(f"{name} received unknown field {unknown[0]!r}: it takes {listed}.")
    return SpQuantConfig(**{**defaults, **fields})
