"""What a value can be at most, proven from the weights and from what the inputs can be."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import Add, Affine, Concat, Mask, MaxPool, Node, Reshape, SumPool, _Sums, size

Bounds = tuple[Tensor, Tensor]


def channel_bounds(node: Node, inputs: list[Node]) -> Bounds:
    """Least and largest value (int64) of each channel, or one pair for all.

    Follows from the bounds of the ``inputs`` and the node's own numbers, and from nothing else.
    """
    lows, highs = [x.low for x in inputs], [x.high for x in inputs]
    if isinstance(node, _Sums):
        return node.bounds(lows[0], highs[0])
    if isinstance(node, Affine):
        return _affine(node, lows[0], highs[0])
    if isinstance(node, Add):
        return _added(node, lows, highs)
    if isinstance(node, SumPool):
        window, padded = size(node.kernel), any(node.padding)
        low, high = lows[0] * window, highs[0] * window
        return _pair(min(low, 0), max(high, 0)) if padded else _pair(low, high)
    if isinstance(node, Mask):
        return _pair(min(lows[0], 0), max(highs[0], 0))
    if isinstance(node, Concat):
        return _pair(min(lows), max(highs))
    if isinstance(node, MaxPool | Reshape):
        return _pair(lows[0], highs[0])
    return _pair(node.low, node.high)  # inputs, spikes and decisions say it themselves


def _pair(low: int, high: int) -> Bounds:
    return torch.tensor([low]), torch.tensor([high])


def _affine(node: Affine, low: int, high: int) -> Bounds:
    ends = torch.stack([node.multiplier.long() * low, node.multiplier.long() * high])
    return ends.amin(0) + node.offset, ends.amax(0) + node.offset


def _added(node: Add, lows: list[int], highs: list[int]) -> Bounds:
    least = most = torch.zeros(1, dtype=torch.int64)
    for factor, low, high in zip(node.factors, lows, highs, strict=True):
        ends = torch.stack([factor.long() * low, factor.long() * high])
        least, most = least + ends.amin(0), most + ends.amax(0)
    return least, most
