"""How many pairs of a nonzero weight and a nonzero input meet at each output of a weight layer.

The layer's own geometry (stride, padding, dilation, groups, transposition) is applied to zeros and
ones, so that the result is a count. A tap on zero padding meets no input and is never counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
EXACT = 2**24  # whole numbers below are exact in float32, in whatever order they are summed


def is_countable(layer: nn.Module) -> bool:
    """Whether the layer is one whose multiplications are known."""
    return isinstance(layer, CONVOLUTIONS + TRANSPOSED + (nn.Linear,)) or is_one_to_one(layer)


def is_one_to_one(layer: nn.Module) -> bool:
    """A recurrent weight for each neuron, which is multiplied element by element."""
    return isinstance(getattr(layer, "V", None), Tensor)


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """The input with batch, time and whatever else leads folded into one axis."""
    if is_one_to_one(layer):
        return x
    inner = x.shape[-_dimensions(layer) - 1 :]
    return x.reshape(-1, *inner)


def _dimensions(layer: Any) -> int:
    """Axes of space that the layer computes over."""
    return layer.weight.ndim - 2 if isinstance(layer, CONVOLUTIONS + TRANSPOSED) else 0


@torch.no_grad()
def count_pairs(
    layer: nn.Module, x: Tensor, weight: Tensor, space: tuple[int, ...], per_channel: bool
) -> Tensor:
    """Pairs of nonzeros at each output: ``[rows, C, *space]``, whole numbers in floating point.

    ``x`` is ``[rows, C_in, *space_in]`` and ``space`` the layer's output space. Unless
    ``per_channel``, the output channels are summed up beforehand, which is that much cheaper, and
    ``C`` is the number of groups.

    >>> layer, x = nn.Conv1d(1, 2, 3, padding=1), torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])
    >>> weight = torch.tensor([[[1.0, 1.0, 1.0]], [[0.0, -2.0, 0.0]]])
    >>> count_pairs(layer, x, weight, (4,), per_channel=True).tolist()
    [[[1.0, 2.0, 2.0, 2.0], [1.0, 0.0, 1.0, 1.0]]]
    >>> count_pairs(layer, x, weight, (4,), per_channel=False).tolist()
    [[[2.0, 2.0, 3.0, 3.0]]]
    """
    nonzero = weight.ne(0)
    dtype = torch.float32 if int(nonzero.sum()) < EXACT else torch.float64
    ones = x.ne(0).to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        if is_one_to_one(layer):
            return ones * nonzero.to(dtype)
        taps = nonzero.to(dtype)
        if not per_channel:
            taps = _sum_of_outputs(layer, taps)
        # Rounded, because some fast convolutions transform their operands.
        return _apply(layer, ones, taps, space).round()


def _sum_of_outputs(layer: Any, taps: Tensor) -> Tensor:
    """The weight of a layer with one output channel for each group."""
    if isinstance(layer, nn.Linear):
        return taps.sum(0, keepdim=True)
    if isinstance(layer, TRANSPOSED):
        return taps.sum(1, keepdim=True)
    return taps.unflatten(0, (layer.groups, -1)).sum(1)


def _apply(layer: Any, x: Tensor, weight: Tensor, space: tuple[int, ...]) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    dimensions = _dimensions(layer)
    if isinstance(layer, CONVOLUTIONS):
        base: Any = CONVOLUTIONS[dimensions - 1]
        return base._conv_forward(layer, x, weight, None)
    padding = layer._output_padding(
        x,
        list(space),
        layer.stride,
        layer.padding,
        layer.kernel_size,
        dimensions,
        layer.dilation,
    )
    return TRANSPOSE[dimensions - 1](
        x, weight, None, layer.stride, layer.padding, padding, layer.groups, layer.dilation
    )
