"""Where the weights that a layer computes with are not zero: one set, or one for each time step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modules.quantized_layer import QuantizedLayer
from .numbers import weight_steps
from .pairs import is_one_to_one
from .taps import Taps


class StepWeights(NamedTuple):
    """A layer's weight as zeros and ones, and how large a sum of it may grow."""

    nonzero: Tensor
    fan_in: int
    zeros: int
    steps: float  # the largest weight in units of its output channel
    sums: list[Tensor]  # over the outputs, once something asks

    @classmethod
    def of(cls, layer: nn.Module, weight: Tensor) -> StepWeights:
        """``weight`` is what the layer computes with: levels where it is quantised."""
        nonzero = weight.ne(0)
        zeros = weight.numel() - int(nonzero.count_nonzero())
        rows = layer.rows(weight) if isinstance(layer, QuantizedLayer) else weight
        quantized = isinstance(layer, QuantizedLayer) and layer.weight_quantizer is not None
        steps = weight_steps(rows) if quantized else 0.0
        fan_in = 1 if is_one_to_one(layer) else rows[0].numel()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            # An output meets each input channel of its group through up to all taps.
            fan_in = weight.shape[0] // layer.groups * math.prod(layer.kernel_size)
        return cls(nonzero.float(), fan_in, zeros, steps, [])

    def per_input(self, taps: Taps) -> Tensor:
        """Nonzero weights on each input channel and tap."""
        if not self.sums:
            self.sums.append(taps.per_input(self.nonzero))
        return self.sums[0]


class LayerWeights(NamedTuple):
    """All weights of a layer, for as long as the tensor that it trains stays the same."""

    key: Tensor
    version: int
    each: tuple[StepWeights, ...]  # one, or one for each time step

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Module, key: Tensor) -> LayerWeights:
        weights = computed_weights(layer) if isinstance(layer, QuantizedLayer) else (key.detach(),)
        return cls(key, _version(key), tuple(StepWeights.of(layer, held) for held in weights))

    def is_of(self, key: Tensor) -> bool:
        """Whether they are still those of this tensor."""
        return self.key is key and self.version == _version(key)


def computed_weights(layer: QuantizedLayer) -> tuple[Tensor, ...]:
    """The levels that a layer computes with, in the weight's own layout.

    One tensor, or one for each time step where the weights change with it.
    """
    if layer.is_temporal:
        return tuple(layer.step_weights()[0].detach().unbind(0))
    return (layer.quantized_weight()[0].detach(),)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version
