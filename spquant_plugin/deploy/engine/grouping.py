"""Convolutions in groups, as ungrouped ones: zeros where a filter does not reach."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Convolution
from .rows import FEWEST_OF_NUMBERS, bits_for

# Bytes of zeros and weights that are few beside everything else, and stay in a cache.
FEW_BYTES = 2**16


def are_few(node: Convolution) -> bool:
    """Whether rows with all the zeros take no more than the int8 weights alone, or are few anyway.

    With them a layer goes event by event or as one product of matrices, and counting zeros costs
    nothing: a row holds all channels at once. But they must not undo what packing saves.
    """
    bits = bits_for(int(node.weight.min()), int(node.weight.max()))
    held = 8 if FEWEST_OF_NUMBERS <= bits <= 8 else bits
    return node.weight.numel() * node.groups * held // 8 <= max(node.weight.numel(), FEW_BYTES)


def filled(weight: Tensor, groups: int) -> Tensor:
    """``weight [O, I / groups, *kernel]`` as ``[O, I, *kernel]``."""
    outputs, inputs = weight.shape[:2]
    found = weight.new_zeros(outputs, inputs * groups, *weight.shape[2:])
    found[torch.arange(outputs)[:, None], _reached(outputs, inputs, groups)] = weight
    return found


def emptied(weight: Tensor, inputs: int) -> Tensor:
    """``weight [O, I, *kernel]`` of filters that reach so many inputs as ``[O, inputs, *kernel]``.

    >>> weight = torch.arange(4).view(4, 1, 1)
    >>> emptied(filled(weight, 2), 1).flatten().tolist()
    [0, 1, 2, 3]
    """
    outputs = len(weight)
    reached = _reached(outputs, inputs, weight.shape[1] // inputs)
    return weight[torch.arange(outputs)[:, None], reached]


def _reached(outputs: int, inputs: int, groups: int) -> Tensor:
    """The inputs of each output."""
    first = torch.arange(outputs) // (outputs // groups) * inputs
    return first[:, None] + torch.arange(inputs)
