r"""Pairs of a nonzero weight and a nonzero input, counted without a convolution.

Which inputs a kernel position ("tap") reads follows from the geometry alone, axis by axis. With
:math:`A_{ky}` = how many outputs read place :math:`y` through tap :math:`k`,

.. math::

    n_{ik} = \sum_y A_{ky}\,[x_{iy} \ne 0], \qquad
    \mathrm{pairs}_o = \sum_{ik} [w_{oik} \ne 0]\, n_{ik}

so one small product per axis takes the place of a convolution. The first sum may run over all
samples and steps at once, unless a gate treats them differently.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pairs import CONVOLUTIONS, TRANSPOSED


class Taps:
    """A layer's taps on inputs of one size.

    >>> layer, x = nn.Conv1d(1, 2, 3, padding=1), torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])
    >>> taps = Taps(layer, (4,), (4,))
    >>> taps.seen(x).tolist()
    [[[2.0, 3.0, 2.0]]]
    >>> nonzero = torch.tensor([[[1.0, 1.0, 1.0]], [[0.0, 1.0, 0.0]]])
    >>> taps.pairs(x, nonzero).tolist(), taps.all_pairs(x, taps.per_input(nonzero))
    ([[7.0, 3.0]], 10)
    >>> taps.dense(nonzero)  # the two outermost taps on padding are none
    20
    """

    def __init__(self, layer: nn.Module, size: tuple[int, ...], space: tuple[int, ...]) -> None:
        own: Any = layer
        self.transposed = isinstance(layer, TRANSPOSED)
        convolves = self.transposed or isinstance(layer, CONVOLUTIONS)
        self.groups: int = own.groups if convolves else 1
        device = own.weight.device
        axes = range(len(size)) if convolves else ()
        table = _transposed_axis if self.transposed else _axis
        self.tables = [table(own, axis, size[axis], space[axis]).to(device) for axis in axes]

    def seen(self, ones: Tensor) -> Tensor:
        """How many nonzeros each tap meets: from ``[..., C_in, *size]`` to ``[..., *kernel]``."""
        with torch.autocast(ones.device.type, enabled=False):
            for table in self.tables:
                # The first axis of space becomes the last; after all of them each is in place.
                ones = ones.movedim(-len(self.tables), -1) @ table.to(ones.dtype).T
        return ones

    def per_input(self, nonzero: Tensor) -> Tensor:
        """Nonzero weights on each input channel and tap, ``[C_in, *kernel]``."""
        if self.transposed:
            return nonzero.sum(1)
        return nonzero.unflatten(0, (self.groups, -1)).sum(1).flatten(0, 1)

    def all_pairs(self, ones: Tensor, per_input: Tensor) -> int:
        """Pairs of all rows ``[rows, C_in, *size]`` and all outputs, exact."""
        met = self.seen(ones.sum(0).double())
        return int((met * per_input.double()).sum())

    def pairs(self, ones: Tensor, nonzero: Tensor) -> Tensor:
        """Pairs of each row and output channel, ``[rows, C_out]``, exact."""
        met = self.seen(ones).double().unflatten(1, (self.groups, -1))
        met = met.flatten(2)  # [rows, groups, C_in / groups * taps]
        if self.transposed:
            weights = nonzero.unflatten(0, (self.groups, -1)).transpose(1, 2)
        else:
            weights = nonzero.unflatten(0, (self.groups, -1))
        weights = weights.double().flatten(2)  # [groups, C_out / groups, ...]
        return torch.einsum("rgi,goi->rgo", met, weights).flatten(1)

    def dense(self, weight: Tensor) -> int:
        """Pairs of one row, were nothing zero."""
        channels = weight.shape[0] * weight.shape[1]
        return channels * math.prod(round(float(table.sum())) for table in self.tables)


def _axis(layer: Any, axis: int, size: int, out: int) -> Tensor:
    """``[kernel, size]``: how many outputs read each place through each tap."""
    from_end = 2 * (len(layer.kernel_size) - 1 - axis)
    padding = tuple(layer._reversed_padding_repeated_twice[from_end : from_end + 2])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # Places count from 1, so that 0 is what zero padding holds.
    numbers = F.pad(torch.arange(1.0, size + 1)[None, None], padding, mode)[0, 0].long()
    taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
    read = numbers[taps[:, None] + torch.arange(out) * layer.stride[axis]]
    times = torch.zeros(len(taps), size + 1, dtype=torch.float64)
    times.scatter_add_(1, read, torch.ones(read.shape, dtype=torch.float64))
    return times[:, 1:]


def _transposed_axis(layer: Any, axis: int, size: int, out: int) -> Tensor:
    """The same for a transposed layer, where each place writes one output through each tap."""
    taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
    written = torch.arange(size) * layer.stride[axis] - layer.padding[axis] + taps[:, None]
    return ((written >= 0) & (written < out)).double()
