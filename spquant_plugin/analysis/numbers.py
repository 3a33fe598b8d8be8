"""Which numbers a module adds and multiplies: floats, or whole numbers, and of how many bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.quantized_layer import QuantizedLayer
from .tally import LayerTally

FINEST = 40  # weights are whole numbers over at most this power of two
FLOATS = {torch.float16: "FP16", torch.bfloat16: "FP16"}


def computes_on_integers(module: nn.Module, tally: LayerTally) -> bool:
    """Whether quantised weights meet whole numbers, so that sums are exact integers.

    Whole numbers over a power of two, as average pools of spikes give, are such: the power belongs
    to the layer's scale.
    """
    quantized = isinstance(module, QuantizedLayer) and module.weight_quantizer is not None
    return quantized and tally.halvings is not None


def numbers_of(module: nn.Module, tally: LayerTally) -> str:
    """``INT``, ``FP16`` or ``FP32``, as which wider floats count as well."""
    return "INT" if computes_on_integers(module, tally) else float_of(module)


def float_of(module: nn.Module) -> str:
    """The floats that a module's parameters or buffers are of."""
    own: Any = (*module.parameters(), *module.buffers())
    dtype = next((held.dtype for held in own if held.is_floating_point()), torch.float32)
    return FLOATS.get(dtype, "FP32")


def input_bits(module: nn.Module, tally: LayerTally) -> int:
    """Bits of one input: 1 for spikes, enough for whole numbers, or those of a float."""
    if tally.binary:
        return 1
    if computes_on_integers(module, tally):
        return max(math.ceil(math.log2(_largest(tally) + 1)), 1) + tally.signed
    return int(float_of(module).removeprefix("FP"))


def weight_steps(rows: Tensor) -> float:
    """The largest weight of any output channel ``[C, ...]`` in units of that channel.

    The unit is the largest number that divides all weights of the channel; what scales a channel
    as a whole, in its weights or beside them, is no part of its sums.

    >>> weight_steps(torch.tensor([[0.5, -0.125, 0.0], [4.0, 8.0, 8.0]]))
    4.0
    """
    values = rows.detach().flatten(1).abs().double()
    smallest = values.where(values > 0, math.inf).amin(1, keepdim=True)
    multiples = values / smallest
    if torch.equal(multiples, multiples.round()):
        return float(multiples.max())  # as nearly always
    for _ in range(FINEST):
        if torch.equal(values, values.round()):
            break
        values = values * 2
    unit = sizes = values.long()
    while unit.shape[1] > 1:
        half = unit.shape[1] // 2
        folded = torch.gcd(unit[:, :half], unit[:, half : 2 * half])
        unit = torch.cat([folded, unit[:, 2 * half :]], 1)
    return float((sizes.amax(1) / unit[:, 0].clamp(min=1)).max())


def sum_bits(module: nn.Module, tally: LayerTally) -> int:
    """Bits that hold any sum of an output, by its fan-in and the largest weight and input."""
    if not computes_on_integers(module, tally):
        return int(float_of(module).removeprefix("FP"))
    bound = tally.fan_in * tally.weight_steps * _largest(tally)
    return math.ceil(math.log2(bound + 1)) + 1


def _largest(tally: LayerTally) -> float:
    """The largest input in whole numbers."""
    return tally.largest * 2 ** (tally.halvings or 0)
