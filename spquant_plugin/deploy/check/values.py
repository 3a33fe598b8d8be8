"""Rules on the numbers in weights, tables and factors: proven bounds, and tables that lead on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bounds import channel_bounds
from ..graph import (
    Add,
    Affine,
    ChannelDecision,
    Graph,
    Neuron,
    Node,
    Output,
    SumPool,
    size,
)
from .rules import LARGEST, must


def check_values(graph: Graph) -> None:
    """Check the numbers of a graph whose structure is sound."""
    for one in graph.by_step:
        _step_values(one)


def _step_values(graph: Graph) -> None:
    for node in graph.nodes:
        sources = [graph[name] for name in node.inputs]
        _bounds(node, sources)
        if isinstance(node, Neuron):
            _tables(node)
        if isinstance(node, ChannelDecision):
            _scores(node, sources[0])
    for index, output in enumerate(graph.outputs):
        _output(f"outputs[{index}]", output)


# --- bounds -------------------------------------------------------------------------------------


def _reach(node: Node, sources: list[Node]) -> int:
    """Largest magnitude on the way to a value, where that is more than the value's own."""
    most = [max(-source.low, source.high) for source in sources]
    if isinstance(node, SumPool):
        return most[0] * size(node.kernel)
    if isinstance(node, Add):
        pairs = zip(most, node.factors, strict=True)
        return sum(reach * _magnitude(factor) for reach, factor in pairs)
    if isinstance(node, Affine):
        return most[0] * _magnitude(node.multiplier) + _magnitude(node.offset)
    return 0


def _magnitude(values: Tensor) -> int:
    return max(-int(values.min()), int(values.max()))


def _bounds(node: Node, sources: list[Node]) -> None:
    reach = _reach(node, sources)
    must(reach <= LARGEST, node.name, reach, f"sums that never exceed {LARGEST}, to fit 32 bits")
    least, most = channel_bounds(node, sources)
    proven = int(least.min()), int(most.max())
    fits = node.low <= proven[0] and proven[1] <= node.high
    rule = f"a range that holds {proven[0]} to {proven[1]}, which its inputs and weights can reach"
    must(fits, f"{node.name}.low, high", (node.low, node.high), rule)


# --- tables -------------------------------------------------------------------------------------


def _tables(node: Neuron) -> None:
    where, spike, after, level = node.name, *node.outcomes.unbind(1)
    signs = bool((node.sign.abs() == 1).all())
    must(signs, f"{where}.sign", node.sign.tolist(), "-1 or 1 in every channel")
    ascending = bool((node.breaks[..., 1:] >= node.breaks[..., :-1]).all())
    must(ascending, f"{where}.breaks", "not ascending", "ascending along their last axis")
    _within(f"{where}.outcomes, spikes", spike, 0, 1)
    _within(f"{where}.outcomes, states", after, 0, node.states - 1)
    _within(f"{where}.outcomes, levels", level, node.lowest, node.highest)
    if node.remembers:
        agree = bool((after % 2 == spike).all())
        must(agree, f"{where}.outcomes", node.outcomes.tolist(), "states that remember the spike")
    if node.closed is not None:
        _within(f"{where}.closed", node.closed, 0, node.outcomes.shape[0] - 1)


def _within(where: str, values: Tensor, low: int, high: int) -> None:
    span = int(values.min()), int(values.max())
    must(low <= span[0] and span[1] <= high, where, span, f"from {low} to {high}")


def _scores(node: ChannelDecision, source: Node) -> None:
    read = (source.low, source.high)
    if isinstance(source, Neuron) and node.reads == "membrane":
        read = (source.lowest, source.highest)
    area = size(source.shape[1:])
    rows = int(node.weight.to(torch.int64).abs().sum(1).max())
    reach = max(-read[0], read[1]) * area * rows
    must(reach < 2**62, node.name, reach, "scores below 2**62, to fit 64 bits")


# --- outputs ------------------------------------------------------------------------------------


def _output(where: str, output: Output) -> None:
    mantissa, _ = torch.frexp(output.unit.to(torch.float64))
    powers = bool((mantissa == 0.5).all())
    must(powers, f"{where}.unit", output.unit.tolist(), "powers of two")
    for index, step in enumerate(output.steps):
        for value in step[1:]:
            finite = not isinstance(value, Tensor) or bool(value.isfinite().all())
            must(finite, f"{where}.steps[{index}]", step[0], "finite numbers")
        if step[0] == "norm":
            variance: Any = step[2]
            positive = bool((variance.to(torch.float64) + step[5] > 0).all())
            must(positive, f"{where}.steps[{index}]", "norm", "of variance + eps above 0")
