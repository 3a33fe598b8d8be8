"""The graph in plain torch, on whole numbers only: the reference of every other engine.

Layers run over all steps at once, steps and samples in one axis; neurons go step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...functional.gates import kept_but
from ..graph import (
    Add,
    Affine,
    ChannelDecision,
    Concat,
    Convolution,
    Dense,
    Graph,
    Input,
    Mask,
    MaxPool,
    Neuron,
    Node,
    PixelMask,
    Product,
    Reshape,
    Shape,
    SumPool,
)
from .record import Record

State = dict[str, Tensor]
INT8 = 127


class ReferenceEngine:
    """Runs a graph with torch operations on integer tensors."""

    name = "torch"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def whole_graph(self) -> Graph:
        """What it runs."""
        return self.graph

    def rest(self, batch: int) -> State:
        """All neurons at rest; ``begun`` tells pixel masks whether there was a step before."""
        states = {
            neuron.name: torch.full((batch, *neuron.shape), neuron.rest, dtype=torch.uint8)
            for neuron in self.graph.neurons
        }
        return {**states, "": torch.zeros(batch, dtype=torch.bool)}

    def held_bytes(self, state: State) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def spike_bytes(self, neuron: Neuron, steps: int, batch: int) -> int:
        """Bytes of the spikes that a run keeps of a neuron layer."""
        return 4 * steps * batch * torch.Size(neuron.shape).numel()

    @torch.no_grad()
    def run(self, x: Tensor, state: State, wanted: set[Any]) -> Record:
        steps, batch = x.shape[:2]
        values: dict[Any, Tensor] = {}
        for node in self.graph.nodes:
            if isinstance(node, Input):
                values[node.name] = x.to(torch.int32)
            elif isinstance(node, Neuron):
                spikes, levels = _neuron(node, values, state)
                values[node.name], values[node.name, "membrane"] = spikes, levels
            else:
                given = [values[name] for name in _reads(node)]
                folded = [value.flatten(0, 1) for value in given]
                values[node.name] = OPERATIONS[type(node)](node, *folded).view(
                    steps, batch, *node.shape
                )
        state[""].fill_(True)
        return Record({key: value for key, value in values.items() if key in wanted})


def _reads(node: Node) -> list[Any]:
    if isinstance(node, ChannelDecision) and node.reads == "membrane":
        return [(node.inputs[0], "membrane")]
    return list(node.inputs)


# --- layers -------------------------------------------------------------------------------------


def whole_matmul(rows: Tensor, columns: Tensor) -> Tensor:
    """``rows [M, K] @ columns [K, N]`` of whole numbers in int32.

    Torch multiplies int8 fast and wider integers slowly, so wide columns go in base 128.
    """
    result = torch.zeros(rows.shape[0], columns.shape[1], dtype=torch.int32)
    if columns.shape[1] == 0 or rows.shape[1] == 0:
        return result
    weight, place = 1, columns.to(torch.int32)
    while True:
        # Digits from -64 to 63, which floor division by 128 after shifting by 64 leaves.
        small = int(place.min()) >= -INT8 - 1 and int(place.max()) <= INT8
        digit = place if small else (place + 64) % 128 - 64
        part = torch._int_mm(rows.to(torch.int8), digit.to(torch.int8).contiguous())
        result += part * weight
        if small:
            return result
        place, weight = (place - digit) // 128, weight * 128


def _windows(
    x: Tensor, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, fill: int
) -> Tensor:
    """All windows ``[B, C, *places, *kernel]`` of ``x [B, C, *space]``."""
    pads = [side for axis in reversed(padding) for side in (axis, axis)]
    x = F.pad(x, pads, value=fill)
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        reach = gap * (size - 1) + 1
        x = x.unfold(2 + axis, reach, step)[..., ::gap]
    return x


def _convolution(node: Convolution, x: Tensor) -> Tensor:
    kernel = tuple(node.weight.shape[2:])
    windows = _windows(x, kernel, node.stride, node.padding, node.dilation, 0)
    space = len(kernel)
    places = windows.shape[2 : 2 + space]
    # [G, I/G, *kernel, B, *places]: what a filter multiplies first, where it stands last.
    order = (1, *range(2 + space, 2 + 2 * space), 0, *range(2, 2 + space))
    columns = windows.permute(order).unflatten(0, (node.groups, -1)).flatten(1, 1 + space)
    columns = columns.flatten(2)
    rows = node.weight.flatten(1).unflatten(0, (node.groups, -1))
    if rows.shape[1] == 1 and node.groups > 1:  # depthwise: one filter for each group
        sums = (rows.to(torch.int32).transpose(1, 2) * columns).sum(1, dtype=torch.int32)
        sums = sums.unsqueeze(1)
    else:
        pairs = zip(rows, columns, strict=True)
        sums = torch.stack([whole_matmul(row, column) for row, column in pairs])
    return sums.flatten(0, 1).view(-1, x.shape[0], *places).transpose(0, 1).contiguous()


def _dense(node: Dense, x: Tensor) -> Tensor:
    return whole_matmul(node.weight, x.transpose(0, 1)).transpose(0, 1).contiguous()


def _sum_pool(node: SumPool, x: Tensor) -> Tensor:
    gaps = (1,) * len(node.kernel)
    windows = _windows(x, node.kernel, node.stride, node.padding, gaps, 0)
    return windows.flatten(-len(node.kernel)).sum(-1, dtype=torch.int32)


def _max_pool(node: MaxPool, x: Tensor) -> Tensor:
    lowest = torch.iinfo(torch.int32).min
    windows = _windows(x, node.kernel, node.stride, node.padding, node.dilation, lowest)
    return windows.flatten(-len(node.kernel)).amax(-1)


def _reshape(node: Reshape, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], *node.shape)


def _concat(node: Concat, *parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _add(node: Add, *parts: Tensor) -> Tensor:
    weighed = [
        part * _per_channel(factor, part) for part, factor in zip(parts, node.factors, strict=True)
    ]
    return torch.stack(weighed).sum(0, dtype=torch.int32)


def _affine(node: Affine, x: Tensor) -> Tensor:
    return x * _per_channel(node.multiplier, x) + _per_channel(node.offset, x)


def _product(node: Product, one: Tensor, other: Tensor) -> Tensor:
    return one * other


def decide(node: ChannelDecision, x: Tensor) -> Tensor:
    """Open channels by levels ``[B, C, *space]``."""
    sums = x.flatten(2).sum(-1) if x.ndim > 2 else x
    low, high = (int(end) for end in sums.aminmax()) if sums.numel() else (0, 0)
    # 128 is the largest magnitude of a weight: no sum of products can leave 32 bits.
    if 128 * node.weight.shape[1] * max(-low, high) < 2**31:
        scores = whole_matmul(node.weight, sums.T.contiguous()).T.contiguous()
    else:
        scores = sums.to(torch.int64) @ node.weight.to(torch.int64).T
    return (scores >= node.threshold).to(torch.int32)


def _mask(node: Mask, x: Tensor, decided: Tensor) -> Tensor:
    return x * decided.view(*decided.shape, *[1] * (x.ndim - 2))


OPERATIONS: dict[type[Node], Callable[..., Tensor]] = {
    Convolution: _convolution,
    Dense: _dense,
    SumPool: _sum_pool,
    MaxPool: _max_pool,
    Reshape: _reshape,
    Concat: _concat,
    Add: _add,
    Affine: _affine,
    Product: _product,
    ChannelDecision: decide,
    Mask: _mask,
}

# --- neurons ------------------------------------------------------------------------------------


def _neuron(node: Neuron, values: dict[Any, Tensor], state: State) -> tuple[Tensor, Tensor]:
    """Spikes and stored levels ``[T, N, *shape]`` of all steps."""
    sums = values[node.inputs[0]]
    added = values[node.inputs[1]] - node.counts[0] if node.counts is not None else None
    decided = values[node.gate] if node.gate is not None else None
    spikes, levels = [], []
    for t in range(sums.shape[0]):
        begun = state[""] if t == 0 else torch.ones_like(state[""])
        spike = _step(
            node,
            sums[t],
            None if added is None else added[t],
            None if decided is None else decided[t],
            state,
            begun,
        )
        spikes.append(spike)
        levels.append(node.level_of(state[node.name]).to(torch.int32))
    return torch.stack(spikes), torch.stack(levels)


def _step(
    node: Neuron,
    sums: Tensor,
    added: Tensor | None,
    decided: Tensor | None,
    state: State,
    begun: Tensor,
) -> Tensor:
    before = state[node.name].long()
    channel = _per_channel(torch.arange(node.shape[0]), before).expand_as(before)
    number = torch.zeros_like(before) if added is None else added.long()
    breaks = node.breaks[channel, before, number]
    signed = sums * _per_channel(node.sign.to(torch.int32), sums)
    outcome = (signed.unsqueeze(-1) >= breaks).sum(-1)
    if decided is not None and node.closed is not None:
        is_open = decided.view(*decided.shape, *[1] * (before.ndim - 2)).bool()
        outcome = torch.where(is_open, outcome, node.closed[channel, before, number].long())
    spike, after, level = (part.to(torch.int32) for part in node.outcomes[outcome].unbind(-1))
    if node.pixels is not None:
        kept = _kept(node, node.pixels, level, before, begun)
        spike, after = spike * kept, torch.where(kept, after, node.rest)
    state[node.name].copy_(after)
    return spike


def _kept(node: Neuron, rule: PixelMask, level: Tensor, before: Tensor, begun: Tensor) -> Tensor:
    """Pixels that take part: ``[N, 1, *space]``."""
    score = level if rule.score == "current" else node.level_of(before).to(torch.int32)
    kept = kept_but(score, rule.masked)
    if rule.score == "current":
        return kept
    return kept | ~begun.view(-1, *[1] * (kept.ndim - 1))
