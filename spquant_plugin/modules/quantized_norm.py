r"""What every quantised batch norm adds to its framework's norm.

It takes a layer's raw sums, before scale and bias, and returns :math:`(m_c x + n_c)\,2^{-k}` with
whole ``m`` and ``n``. Computed as written: exact as long as all whole numbers stay below 2^24.

In mode ``fold`` the layer computes with the norm's factors inside its weight and bias, and the norm
returns what it is given.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import QuantizedNorm, TemporalTernaryWeights
from ..errors import ConfigError, ConversionError
from ..functional.norm import Factors, dyadic_factors, folded_factors, moments
from ..functional.weights import per_channel
from .norm_statistics import channel_axis, follow_statistics, global_moments, processes
from .quantized_layer import QuantizedLayer, shallow


class DyadicFactors(NamedTuple):
    """A norm in whole numbers: ``(multiplier * x + offset) * 2**-shift``, ``x`` a raw sum."""

    multiplier: Tensor
    offset: Tensor
    shift: int


class QuantizedBatchNorm(nn.Module):
    """Mixin: put before a framework's batch norm class, and call ``follow`` once.

    The norm's parameters and buffers keep their keys, and it has no others. ``layer``, the
    quantised layer whose output it is given, hands its scale and bias on from then on: it returns
    raw sums, and the norm takes their statistics as if scale and bias had been applied. In mode
    ``fold`` the layer asks the norm for weight and bias instead, and the statistics are those of
    the layer in float.
    """

    weight: Any  # the framework's own
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    num_features: int
    eps: float
    momentum: float | None
    rule: QuantizedNorm
    plain_class: type[nn.Module] | None = None  # what it was made from, for the way back
    synchronized = False  # whether statistics are those of all processes' batches

    def __init__(
        self, *args: Any, layer: QuantizedLayer, norm: QuantizedNorm | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.follow(layer, QuantizedNorm() if norm is None else norm)

    @classmethod
    def from_float(
        cls, norm: nn.Module, rule: QuantizedNorm, layer: QuantizedLayer
    ) -> QuantizedBatchNorm:
        """Quantised twin of a norm: it shares the norm's parameters, buffers, mode and hooks."""
        twin = cls.__new__(cls)
        twin.__dict__.update({name: shallow(value) for name, value in norm.__dict__.items()})
        twin.plain_class = getattr(norm, "plain_class", None) or type(norm)
        twin.synchronized = getattr(norm, "synchronized", False)
        twin.follow(layer, rule)
        return twin

    def follow(self, layer: QuantizedLayer, rule: QuantizedNorm) -> None:
        """Normalise what ``layer`` gives from now on."""
        if not isinstance(rule, QuantizedNorm):
            raise ConfigError(
                f"{type(self).__name__}(norm={rule!r}): must be a QuantizedNorm record. Pass "
                "norm=spq.QuantizedNorm(bits=8), or leave it out."
            )
        fault = self._unfit(layer)
        if fault is not None:
            raise ConversionError(
                f"{self._name()}, layer={type(layer).__name__}: {fault}. "
                "Pass the quantised layer whose output this norm alone is given."
            )
        self.rule = rule
        # In a tuple: the layer is a module of the network, not of the norm.
        self._layer = (layer,)
        if rule.mode == "fold":
            layer.folded_norm = (self,)
            layer.refit()  # to the weight with the norm's factors
        else:
            layer.hands_scale_on = True

    def _unfit(self, layer: object) -> str | None:
        if not isinstance(layer, QuantizedLayer) or layer.weight_quantizer is None:
            return "the layer must have quantised weights, whose sums are whole numbers"
        if isinstance(layer.weight_quantizer.rule, TemporalTernaryWeights):
            return "the layer's weights must not change with the time step, or no one factor fits"
        if self.running_mean is None:
            return "the norm must keep running statistics, or it has no fixed factors"
        if layer.hands_scale_on or layer.folded_norm:
            return "the layer hands its scale on to another norm already, and must have one"
        channels = layer.rows(layer.weight).shape[0]
        if channels != self.num_features:
            return f"the layer gives {channels} channels and must give {self.num_features}"
        return None

    @property
    def layer(self) -> QuantizedLayer:
        """The layer that this norm follows."""
        return self._layer[0]

    # The norm.

    def forward(self, input: Tensor) -> Tensor:
        axis = channel_axis(self, input)
        if self.rule.mode == "fold":
            return input
        scale = self.layer.handed_scale
        if scale is None:
            raise ConversionError(
                f"{self._name()} ran before {type(self.layer).__name__}, the layer that it "
                "follows: must be given its output. Call the layer first."
            )
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        if self.training:
            mean, variance = self._measure(x, axis, scale)
        else:
            mean, variance = self.running_mean, self.running_var
        behind = (1,) * (input.ndim - axis - 1)
        multiplier, offset, step = self._factors(mean, variance, scale)
        multiplier, offset = (t.to(x.dtype).view(-1, *behind) for t in (multiplier, offset))
        return ((x * multiplier + offset) * step.to(x.dtype)).to(input.dtype)

    def folded(
        self, sums: Tensor | None = None, channel_dim: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the layer with this norm inside, before they are quantised.

        By the running statistics; or by those of a batch, of which ``sums`` are what the layer in
        float makes without its bias. ``channel_dim`` counts from the end.
        """
        if sums is None:
            mean, variance = self.running_mean, self.running_var
        else:
            sums = sums.to(torch.promote_types(sums.dtype, torch.float32))
            mean, variance = self._measure(sums, sums.ndim + channel_dim, 1.0)
        factor, offset = folded_factors(
            *self._affine(mean), mean, variance, self.eps, layer_bias=self._layer_bias()
        )
        layer = self.layer
        rows = layer.rows(layer.weight)
        wide = torch.promote_types(rows.dtype, torch.float32)
        folded = rows * per_channel(factor.to(wide), rows)
        return layer.unrows(folded.to(rows.dtype)), offset.to(rows.dtype)

    def _factors(self, mean: Tensor, variance: Tensor, scale: Tensor | float) -> Factors:
        if self.rule.bits is None:
            raise ConversionError(
                f"{self._name()}: in mode 'fold' a norm has no whole factors of its own. Read "
                "quantized_weight() and present_bias() of its layer."
            )
        return dyadic_factors(
            *self._affine(mean),
            mean,
            variance,
            self.eps,
            bits=self.rule.bits,
            powers=self.rule.mode == "shift",
            scale=scale,
            layer_bias=self._layer_bias(),
        )

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.ones_like(like) if self.weight is None else self.weight
        return weight, torch.zeros_like(like) if self.bias is None else self.bias

    def _layer_bias(self) -> Tensor | float:
        return 0.0 if self.layer.bias is None else self.layer.bias

    def _measure(self, x: Tensor, axis: int, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Statistics of this batch, of the sums with scale and bias."""
        mean, variance, count = self._moments(x, axis)
        factor = scale.double() if isinstance(scale, Tensor) else scale
        mean, variance = mean.double() * factor, variance.double() * factor**2
        if self.layer.bias is not None:
            mean = mean + self.layer.bias
        follow_statistics(self, mean.detach(), variance.detach() * (count / (count - 1)))
        return mean, variance

    def _moments(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean, variance and count of the batch, or of all processes' batches."""
        if self.synchronized and processes() > 1:
            return global_moments(x, axis)
        count = x.numel() // x.shape[axis]
        if count < 2:
            raise ValueError(
                f"{type(self).__name__}: expected more than 1 value per channel when training, but "
                f"got shape {tuple(x.shape)}. Use a larger batch, or eval mode."
            )
        return *moments(x, axis), count

    # In whole numbers.

    @torch.no_grad()
    def dyadic(self) -> DyadicFactors:
        """The whole numbers of eval mode: running statistics, the layer's present scale and bias.

        >>> import spquant_plugin as spq
        >>> from spquant_plugin.snntorch.layer import QuantizedBatchNorm1d, QuantizedLinear
        >>> layer = QuantizedLinear(4, 2, bias=False, weights=spq.PowerOfTwoWeights(2))
        >>> norm = QuantizedBatchNorm1d(2, layer=layer)
        >>> norm.dyadic()
        DyadicFactors(multiplier=tensor([64, 64]), offset=tensor([0, 0]), shift=6)
        """
        factors = self._factors(self.running_mean, self.running_var, self.layer.present_scale())
        whole = torch.stack([factors.multiplier, factors.offset])
        if not bool((whole.abs() < 2.0**62).all()):  # NaN is not below it either
            raise ConversionError(
                f"{self._name()} has factors that no 64-bit number holds: must have finite "
                "parameters and statistics. Look for NaN or infinity in them and in those of "
                f"{type(self.layer).__name__}, the layer that it follows."
            )
        multiplier, offset = whole.to(torch.int64).unbind()
        return DyadicFactors(multiplier, offset, 1 - math.frexp(float(factors.step))[1])

    @torch.no_grad()
    def plain_affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with which a plain norm behind a plain layer does the same in eval."""
        scale, layer_bias = self.layer.present_scale(), self.layer.bias
        multiplier, offset, step = self._factors(self.running_mean, self.running_var, scale)
        slope = multiplier * step / scale
        mean = self.running_mean.double() - (0.0 if layer_bias is None else layer_bias.double())
        weight = slope * (self.running_var.double() + self.eps).sqrt()
        dtype = self.running_mean.dtype
        return weight.to(dtype), (offset * step + slope * mean).to(dtype)

    def _name(self) -> str:
        return f"{type(self).__name__}({self.num_features})"

    def _replicate_for_data_parallel(self) -> Any:
        raise ConversionError(
            f"{type(self).__name__}: nn.DataParallel copies modules, but not the tie between a "
            "norm and its layer: must run in one process each. Use DistributedDataParallel."
        )

    def extra_repr(self) -> str:
        bits = "" if self.rule.bits is None else f" {self.rule.bits} bit"
        synchronized = ", synchronized" if self.synchronized else ""
        return f"{super().extra_repr()}, {self.rule.mode}{bits}{synchronized}"
