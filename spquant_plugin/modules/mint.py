"""MINT's parameters: the scale of a weight layer, and its share in the neuron behind the layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..errors import ConversionError
from ..functional import mint as fmint
from ..functional.weights import per_channel
from .gate_source import GateSource
from .quantized_layer import QuantizedLayer
from .weight_quantizer import QUANTIZERS, WeightQuantizer


class MintQuantizer(WeightQuantizer):
    """Evenly spaced levels of the weight's tanh, with one learned scale ``beta`` for the layer."""

    rule: cfg.MintWeights

    def __init__(self, rule: cfg.MintWeights, channels: int) -> None:
        super().__init__(rule, channels)
        self.beta = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def initialize(self, rows: Tensor) -> None:
        begins = {"mean": fmint.initial_scale, "fit": fmint.fitted_scale}[self.rule.start]
        scale = begins(rows, self.rule.bits)
        if not bool(scale.isfinite()):
            raise ConversionError(
                "the weights hold NaN or infinite values: every weight must be finite. Repair them."
            )
        # The precision of the weights, and at least single, in the very same parameter.
        self.beta.data = scale.to(torch.promote_types(rows.dtype, torch.float32))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        bits = self.rule.bits
        wide = torch.promote_types(self.beta.dtype, torch.float32)
        scale = fmint.scale_in_use(self.beta.to(wide), rows.numel(), bits)
        levels = fmint.weight_levels(rows.to(wide), scale, bits)
        unit = scale / fmint.top_level(bits)
        return levels.to(rows.dtype), per_channel(unit.expand(rows.shape[0]), rows)


QUANTIZERS[cfg.MintWeights] = MintQuantizer


class MintNeuron(GateSource):
    """What a neuron adds that stores its membrane after MINT, in units of ``beta / Q``.

    ``membrane_scale`` is beta: the very parameter of the layer in front where they share it, else
    one of its own. A neuron that multiplies its input by a gain has a unit smaller by that gain, so
    that one level of the layer is one level of the membrane.
    """

    membrane: cfg._Membrane | None
    membrane_scale: nn.Parameter
    scale_count: int | None = None  # weights of the layer that shares the scale

    @property
    def follows_mint(self) -> bool:
        """Whether the membrane is MINT's."""
        return isinstance(self.membrane, cfg.MintMembrane)

    def input_gain(self) -> float:
        """What the neuron multiplies its input by."""
        return 1.0

    def mint_obstacle(self) -> str | None:
        """What of this neuron a shift by one bit and a reset to 0 cannot do, or None."""
        raise NotImplementedError

    def check_mint(self) -> None:
        """Refuse a neuron with other dynamics than MINT's."""
        found = self.mint_obstacle() if self.follows_mint else None
        if found is not None:
            raise ConversionError(
                f"{type(self).__name__}(membrane={self.membrane}): {found}. Its membrane is halved "
                "by a shift and set to 0 in the step of the spike: needs a fixed decay of 0.5, "
                "rest 0 and a hard reset. Use LIFNode(tau=2.0, v_reset=0.0) or "
                "Leaky(beta=0.5, reset_mechanism='zero'), or another membrane."
            )

    def add_scale(self, like: Tensor) -> None:
        """Add a scale of its own; ``like`` has the precision and place of the constants."""
        self.membrane_scale = nn.Parameter(torch.ones_like(like))
        self.scale_count = None

    @torch.no_grad()
    def fit_scale(self, threshold: float) -> None:
        """Give a scale of its own the value at which the levels just hold what a silent neuron
        keeps: the threshold is ``2 Q + 1`` units."""
        if self.scale_count is not None or not isinstance(self.membrane, cfg.MintMembrane):
            return
        if not threshold > 0:
            raise ConversionError(
                f"{type(self).__name__}: threshold {threshold:g} is not above 0, so it gives the "
                "membrane no scale. Set a threshold above 0."
            )
        top = fmint.top_level(self.membrane.bits)
        self.membrane_scale.fill_(threshold * top / (2 * top + 1) / self.input_gain())

    def unit_in_use(self, like: Tensor) -> Tensor:
        """Size of one level, differentiable; ``like`` is one step ``[N, C, ...]``."""
        bits = cast(cfg.MintMembrane, self.membrane).bits
        own = like[0].numel() if like.ndim > 1 else like.numel()
        count = own if self.scale_count is None else self.scale_count
        scale = fmint.scale_in_use(self.membrane_scale.to(like.dtype), count, bits)
        return scale / fmint.top_level(bits) * self.input_gain()

    def silent_mint_level(self, threshold: float) -> int:
        """Highest level that a neuron below its threshold can store."""
        bits = cast(cfg.MintMembrane, self.membrane).bits
        unit = float(self.unit_in_use(self.membrane_scale.double()).detach())
        below = torch.tensor(threshold, dtype=torch.float64).div(unit).ceil() - 1
        return int(below.div(2).floor().clamp(0, fmint.top_level(bits)))

    def mint_charge(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        """The potential in units before firing, and the unit."""
        unit = self.unit_in_use(current)
        return fmint.charge(membrane, current * self.input_gain(), unit), unit

    def mint_store(self, levels: Tensor, spikes: Tensor, unit: Tensor) -> Tensor:
        """The membrane that is kept of a potential in units."""
        bits = cast(cfg.MintMembrane, self.membrane).bits
        return fmint.leak_and_store(levels, spikes, bits) * unit


def share_scale(neuron: Any, layer: QuantizedLayer) -> None:
    """Let a neuron store its membrane on the scale of the layer in front of it.

    >>> import spquant_plugin as spq
    >>> from spquant_plugin.spikingjelly import layer, neuron
    >>> fc = layer.QuantizedLinear(3, 2, weights=spq.MintWeights(4))
    >>> lif = neuron.TernaryMembraneLIFNode(membrane=spq.MintMembrane(4), decay_input=False)
    >>> share_scale(lif, fc)
    >>> lif.membrane_scale is fc.weight_quantizer.beta
    True
    """
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, MintQuantizer) or not neuron.follows_mint:
        raise ConversionError(
            f"share_scale({type(neuron).__name__} with {neuron.membrane}, {type(layer).__name__} "
            f"with {None if quantizer is None else quantizer.rule}): needs a MintMembrane and "
            "MintWeights. Convert both with them."
        )
    if quantizer.rule.bits != neuron.membrane.bits:
        raise ConversionError(
            f"share_scale: the membrane has {neuron.membrane.bits} bits and the weights "
            f"{quantizer.rule.bits}: one scale needs the same number. Use the same bits for both."
        )
    neuron.membrane_scale = quantizer.beta
    neuron.scale_count = layer.rows(layer.weight).numel()
    neuron.refit()


def scale_words(neuron: Any) -> str:
    """Whose scale a neuron's membrane follows, in words."""
    return "own scale" if neuron.scale_count is None else "its layer's scale"
