"""Operations between layers, on packed values where that is exact and cheap.

Counts stay planes of bits; sums of wide numbers are put off until somebody reads them, so that
norms and joins before a neuron are one pass. The rest runs as the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

from ..graph import (
    Add,
    Affine,
    Concat,
    Mask,
    MaxPool,
    Node,
    Product,
    SumPool,
)
from . import reference
from .counts import add_counts, join
from .rows import LANES, unpack
from .values import Terms, Value, Window

# Bits of counts that stay planes; events of wider ones are longer lists than the numbers.
MOST_BITS = 4

Packed = Callable[[Any, Sequence[Node], Sequence[Value]], Value | None]


def operate(node: Node, sources: Sequence[Node], parts: Sequence[Value]) -> Value:
    """What a node gives that is no layer, neuron or decision."""
    packed = PACKED.get(type(node))
    found = None if packed is None else packed(node, sources, parts)
    if found is not None:
        return found
    given = [part.whole() for part in parts]
    return Value(node.shape, parts[0].batch, whole=reference.OPERATIONS[type(node)](node, *given))


def counted(*nodes: Node) -> bool:
    """Whether all are counts of few bits."""
    return all(node.low >= 0 and node.high < 2**MOST_BITS for node in nodes)


def _sum_pool(node: SumPool, sources: Sequence[Node], parts: Sequence[Value]) -> Value | None:
    if not counted(*sources):
        return None
    window = Window(node.kernel, node.stride, node.padding)
    return Value(node.shape, parts[0].batch, pooled=(parts[0], window))


def _max_pool(node: MaxPool, sources: Sequence[Node], parts: Sequence[Value]) -> Value | None:
    if not sources[0].binary:
        return None
    window = Window(node.kernel, node.stride, node.padding, node.dilation)
    return parts[0].any_of(window, node.shape)


def _add(node: Add, sources: Sequence[Node], parts: Sequence[Value]) -> Value:
    batch = parts[0].batch
    if counted(node, *sources) and all(bool((factor == 1).all()) for factor in node.factors):
        words, bits = -(-node.shape[0] // LANES), node.high.bit_length()
        planes = [part.planes(words) for part in parts]
        total = reduce(lambda one, other: add_counts(one, other, bits), planes)
        return Value(node.shape, batch, planes=total)
    weighed = [part.terms().times(factor) for part, factor in zip(parts, node.factors, strict=True)]
    return Value(node.shape, batch, terms=reduce(Terms.plus, weighed))


def _affine(node: Affine, sources: Sequence[Node], parts: Sequence[Value]) -> Value:
    terms = parts[0].terms().times(node.multiplier).plus(Terms((), node.offset))
    return Value(node.shape, parts[0].batch, terms=terms)


def _concat(node: Concat, sources: Sequence[Node], parts: Sequence[Value]) -> Value | None:
    if not counted(*sources):
        return None
    planes = join([part.planes() for part in parts], [source.shape[0] for source in sources])
    return Value(node.shape, parts[0].batch, planes=planes)


def _product(node: Product, sources: Sequence[Node], parts: Sequence[Value]) -> Value:
    words = -(-node.shape[0] // LANES)
    one, other = (part.words(words) for part in parts)
    return Value(node.shape, parts[0].batch, words=one & other)


def _mask(node: Mask, sources: Sequence[Node], parts: Sequence[Value]) -> Value:
    value, decided = parts
    words = -(-node.shape[0] // LANES)
    opened = decided.words(words)
    if counted(sources[0]):
        return Value(node.shape, value.batch, planes=value.planes(words) & opened[:, :, None])
    lanes = torch.from_numpy(unpack(opened, LANES * words)).to(torch.int32)
    return Value(node.shape, value.batch, rows=value.rows() * lanes)


PACKED: dict[type[Node], Packed] = {
    SumPool: _sum_pool,
    MaxPool: _max_pool,
    Add: _add,
    Affine: _affine,
    Concat: _concat,
    Product: _product,
    Mask: _mask,
}
