r"""Pairs of a nonzero weight and a nonzero input of a layer of whole numbers, and all pairs.

Which inputs a kernel position reads follows from the geometry, axis by axis: with
:math:`A_{ky}` = how many outputs read place :math:`y` through position :math:`k`, an output's pairs
are :math:`\sum_{ik} [w_{oik} \ne 0] \sum_y A_{ky} [x_{iy} \ne 0]`. Zero padding is no input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph import Convolution, Dense, Node, Shape, SumPool

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d}
EXACT = 2**24  # whole numbers below are exact in float32


def places(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """``[kernel, size]``: how many outputs read each place through each kernel position.

    >>> places(4, 4, 3, 1, 1, 1).sum(1).tolist()
    [3.0, 4.0, 3.0]
    """
    read = torch.arange(kernel)[:, None] * dilation + torch.arange(out) * stride - padding
    inside = (read >= 0) & (read < size)
    table = torch.zeros(kernel, size, dtype=torch.float64)
    return table.scatter_add_(1, read.clamp(0, size - 1), inside.double())


class Pairs:
    """Counts the pairs of one weight layer, or of a pool, whose weights are all ones."""

    def __init__(self, node: Convolution | Dense | SumPool, source: Node) -> None:
        self.node, self.groups, kernel = node, 1, Shape()
        dilation: Shape = ()
        if isinstance(node, Convolution):
            self.groups, kernel, dilation = node.groups, node.weight.shape[2:], node.dilation
        elif isinstance(node, SumPool):
            self.groups, kernel, dilation = node.shape[0], node.kernel, (1,) * len(node.kernel)
        if isinstance(node, SumPool):
            self.weight = torch.ones(node.shape[0], 1, *kernel, dtype=torch.float64)
        else:
            self.weight = node.weight.ne(0).double()
        self.tables = (
            []
            if isinstance(node, Dense)
            else [
                places(*axis)
                for axis in zip(
                    source.shape[1:],
                    node.shape[1:],
                    kernel,
                    node.stride,
                    node.padding,
                    dilation,
                    strict=True,
                )
            ]
        )

    def _met(self, ones: Tensor) -> Tensor:
        """Nonzeros that each kernel position meets: ``[..., I, *size]`` to ``[..., *kernel]``."""
        for table in self.tables:
            # The first axis of space becomes the last; after all of them each is in place.
            ones = ones.movedim(-len(self.tables), -1) @ table.T
        return ones

    def dense(self) -> int:
        """Pairs of one row, were nothing zero."""
        channels = self.weight.shape[0] * self.weight.shape[1]
        return channels * math.prod(round(float(table.sum())) for table in self.tables)

    def all(self, ones: Tensor) -> int:
        """Pairs of all rows ``[rows, I, *size]`` and all outputs."""
        met = self._met(ones.sum(0, dtype=torch.float64))
        per_input = self.weight.unflatten(0, (self.groups, -1)).sum(1).flatten(0, 1)
        return int((met * per_input).sum())

    def by_channel(self, ones: Tensor) -> Tensor:
        """Pairs of each row and output channel, ``[rows, O]``."""
        met = self._met(ones.double()).unflatten(1, (self.groups, -1)).flatten(2)
        weight = self.weight.unflatten(0, (self.groups, -1)).flatten(2)
        return torch.einsum("rgi,goi->rgo", met, weight).flatten(1)

    def by_place(self, ones: Tensor, channels: bool) -> Tensor:
        """Pairs at each output, ``[rows, O, *space]``, or summed over the outputs of a group."""
        weight = self.weight
        if not channels:
            weight = weight.unflatten(0, (self.groups, -1)).sum(1)
        dtype = torch.float32 if float(weight.sum()) < EXACT else torch.float64
        node = self.node
        if not isinstance(node, Convolution):
            return F.linear(ones.to(dtype), weight.to(dtype))
        convolve = CONVOLUTIONS[len(self.tables)]
        geometry = (node.stride, node.padding, node.dilation, node.groups)
        # Rounded, because some fast convolutions transform their operands.
        return convolve(ones.to(dtype), weight.to(dtype), None, *geometry).round()
