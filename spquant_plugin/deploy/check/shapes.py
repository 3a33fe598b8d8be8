"""Rules of each kind of node: how many inputs, which attributes, and the shape that follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...functional.inputs import input_range, input_scale
from ..graph import (
    Add,
    Affine,
    ChannelDecision,
    Concat,
    Convolution,
    Dense,
    Input,
    Mask,
    MaxPool,
    Neuron,
    Node,
    Product,
    Reshape,
    Shape,
    SumPool,
    size,
)
from .neuron import check_neuron
from .rules import ELEMENTS, is_whole, must, numbers, whole_tensor

Known = dict[str, Node]
# With fewer weights in a filter, its sum of products with 32 bit numbers fits 64 bits.
FILTER = 2**24


def _read(node: Node, known: Known, count: int | None = 1) -> list[Node]:
    rule = "one name at least" if count is None else f"{count} names"
    fits = len(node.inputs) >= 1 if count is None else len(node.inputs) == count
    must(fits, f"{node.name}.inputs", node.inputs, rule)
    return [known[name] for name in node.inputs]


def _shaped(node: Node, shape: Shape) -> None:
    must(node.shape == shape, f"{node.name}.shape", node.shape, f"{shape}, as its inputs give it")


def _input(node: Input, known: Known) -> None:
    _read(node, known, 0)
    quantizer = node.quantizer
    if quantizer is None:
        return
    where = f"{node.name}.quantizer"
    fits = isinstance(quantizer, tuple) and len(quantizer) == 3 and is_whole(quantizer[0], 1, 8)
    fits = fits and all(_is_real(value) for value in quantizer[1:])
    must(fits, where, quantizer, "None or (1 to 8 bits, low, high), both finite")
    bits, low, high = quantizer
    fits = low <= 0 <= high and math.isfinite(high - low) and input_scale(*quantizer) > 0
    must(fits, where, quantizer, "low <= 0 <= high, apart by a number that can be divided")
    bounds = input_range(bits, low, high)
    must(
        (node.low, node.high) == bounds,
        f"{node.name}.low, high",
        (node.low, node.high),
        f"{bounds}",
    )


def _is_real(value: Any) -> bool:
    # A larger integer than a float can hold is no number of a float model either.
    return (type(value) is float and math.isfinite(value)) or is_whole(value, -(2**53), 2**53)


def _convolution(node: Convolution, known: Known) -> None:
    where, (source,) = node.name, _read(node, known)
    axes = len(source.shape) - 1
    must(axes in (1, 2), f"{where}.inputs", source.shape, "a value with one or two axes of space")
    numbers(f"{where}.stride", node.stride, axes, 1)
    numbers(f"{where}.padding", node.padding, axes, 0)
    numbers(f"{where}.dilation", node.dilation, axes, 1)
    weight = node.weight
    fits = isinstance(weight, Tensor) and weight.ndim == axes + 2 and weight.numel() > 0
    must(fits, f"{where}.weight", weight, f"a tensor of {axes + 2} axes")
    channels = source.shape[0]
    fits = is_whole(node.groups, 1, channels) and channels % node.groups == 0
    fits = fits and weight.shape[0] % node.groups == 0
    must(fits, f"{where}.groups", node.groups, "a divisor of the channels before and behind")
    kernel = tuple(weight.shape[2:])
    filters = (weight.shape[0], channels // node.groups, *kernel)
    whole_tensor(f"{where}.weight", weight, torch.int8, filters)
    must(size(filters[1:]) < FILTER, f"{where}.weight", filters, f"filters below {FILTER} weights")
    _stored(node)
    _shaped(node, (weight.shape[0], *_places(node, source, kernel, node.dilation)))


def _places(node: Any, source: Node, kernel: Shape, dilation: Shape) -> Shape:
    """How many windows there are along each axis."""
    where, sides = node.name, source.shape[1:]
    padded = [side + 2 * more for side, more in zip(sides, node.padding, strict=True)]
    fits = math.prod(padded, start=source.shape[0]) <= ELEMENTS
    must(fits, f"{where}.padding", node.padding, f"less: at most {ELEMENTS} elements with zeros")
    places = []
    for side, taps, stride, gap in zip(padded, kernel, node.stride, dilation, strict=True):
        reach = gap * (taps - 1) + 1
        must(reach <= side, f"{where}.inputs", source.shape, "large enough for one window")
        places.append((side - reach) // stride + 1)
    return tuple(places)


def _dense(node: Dense, known: Known) -> None:
    where, (source,) = node.name, _read(node, known)
    must(len(source.shape) == 1, f"{where}.inputs", source.shape, "a flat value")
    _matrix(f"{where}.weight", node, source.shape[0])


def _matrix(where: str, node: Dense | ChannelDecision, columns: int) -> None:
    weight = node.weight
    rows = weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    must(rows > 0, where, weight, "a matrix")
    whole_tensor(where, weight, torch.int8, (rows, columns))
    must(columns < FILTER, where, columns, f"filters below {FILTER} weights")
    _stored(node)
    _shaped(node, (rows,))


def _stored(node: Convolution | Dense | ChannelDecision) -> None:
    must(is_whole(node.bits, 1, 8), f"{node.name}.bits", node.bits, "a whole number from 1 to 8")


def _pool(node: SumPool | MaxPool, known: Known) -> None:
    where, (source,) = node.name, _read(node, known)
    axes = len(source.shape) - 1
    must(axes in (1, 2), f"{where}.inputs", source.shape, "a value with one or two axes of space")
    numbers(f"{where}.kernel", node.kernel, axes, 1)
    numbers(f"{where}.stride", node.stride, axes, 1)
    numbers(f"{where}.padding", node.padding, axes, 0)
    gaps = (1,) * axes
    if isinstance(node, MaxPool):
        gaps = node.dilation
        numbers(f"{where}.dilation", gaps, axes, 1)
        sides = zip(source.shape[1:], node.kernel, node.padding, gaps, strict=True)
        for side, taps, padding, gap in sides:
            # Then the tap next to the border, at 0 to gap - 1 or from its other end, is inside.
            fits = padding <= gap * (taps - 1) and (gap <= side or taps == 1)
            must(fits, f"{where}.padding", node.padding, "so that every window holds an input")
    _shaped(node, (source.shape[0], *_places(node, source, node.kernel, gaps)))


def _reshape(node: Reshape, known: Known) -> None:
    (source,) = _read(node, known)
    fits = size(node.shape) == size(source.shape)
    must(fits, f"{node.name}.shape", node.shape, f"as many elements as {source.shape}")


def _concat(node: Concat, known: Known) -> None:
    sources = _read(node, known, None)
    for source in sources:
        same = source.shape[1:] == sources[0].shape[1:]
        must(same, f"{node.name}.inputs", source.shape, "alike in space")
    _shaped(node, (sum(source.shape[0] for source in sources), *sources[0].shape[1:]))


def _per_channel(where: str, value: Any, channels: int) -> None:
    shape = (1,) if isinstance(value, Tensor) and value.numel() == 1 else (channels,)
    whole_tensor(where, value, torch.int32, shape)


def _add(node: Add, known: Known) -> None:
    sources = _read(node, known, None)
    fits = isinstance(node.factors, tuple) and len(node.factors) == len(sources)
    must(fits, f"{node.name}.factors", node.factors, "a tuple of one tensor for each input")
    for index, (source, factor) in enumerate(zip(sources, node.factors, strict=True)):
        _shaped(node, source.shape)
        _per_channel(f"{node.name}.factors.{index}", factor, node.shape[0])


def _affine(node: Affine, known: Known) -> None:
    (source,) = _read(node, known)
    _shaped(node, source.shape)
    whole_tensor(f"{node.name}.multiplier", node.multiplier, torch.int32, node.shape[:1])
    whole_tensor(f"{node.name}.offset", node.offset, torch.int32, node.shape[:1])


def _product(node: Product, known: Known) -> None:
    for source in _read(node, known, 2):
        _shaped(node, source.shape)
        must(source.binary, f"{node.name}.inputs", source.name, "a value of 0 and 1")
    span = node.low, node.high
    must(span == (0, 1), f"{node.name}.low, high", span, "0 and 1")


def _decision(node: ChannelDecision, known: Known) -> None:
    where, (source,) = node.name, _read(node, known)
    must(node.reads in ("membrane", "value"), f"{where}.reads", node.reads, "membrane or value")
    fits = node.reads == "value" or isinstance(source, Neuron)
    must(fits, f"{where}.inputs", source.kind, "a Neuron, whose membrane is read")
    _matrix(f"{where}.weight", node, source.shape[0])
    whole_tensor(f"{where}.threshold", node.threshold, torch.int64, node.shape)
    must((node.low, node.high) == (0, 1), f"{where}.low, high", (node.low, node.high), "0 and 1")


def _mask(node: Mask, known: Known) -> None:
    source, decision = _read(node, known, 2)
    _shaped(node, source.shape)
    fits = isinstance(decision, ChannelDecision) and decision.shape == source.shape[:1]
    must(fits, f"{node.name}.inputs", decision.name, "a ChannelDecision on these channels")


SHAPES: dict[type[Node], Callable[[Any, Known], None]] = {
    Input: _input,
    Convolution: _convolution,
    Dense: _dense,
    SumPool: _pool,
    MaxPool: _pool,
    Reshape: _reshape,
    Concat: _concat,
    Add: _add,
    Affine: _affine,
    Product: _product,
    ChannelDecision: _decision,
    Mask: _mask,
    Neuron: check_neuron,
}
