"""Integer graphs whose weights, tables and factors change from step to step, drawn at random."""

from __future__ import annotations

from dataclasses import replace

import torch

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.bounds import channel_bounds
from spquant_plugin.deploy.steps import together

from . import graphs


def varied(graph: g.Graph, steps: int, seed: int = 0) -> g.Graph:
    """The graph with every layer but the first, and every table behind them, changing."""
    generator = torch.Generator().manual_seed(seed)
    stem = graph.layers[0].name
    each = [[] for _ in range(steps)]
    known: dict[str, g.Node] = {}
    for node in graph.nodes:
        nodes = [_other(node, t, generator) for t in range(steps)]
        if node.name == stem or stem in node.inputs:
            nodes = [node] * steps
        sources = [known[name] for name in node.inputs]
        pairs = [channel_bounds(one, sources) for one in nodes]
        low = min(int(least.min()) for least, _ in pairs)
        high = max(int(most.max()) for _, most in pairs)
        nodes = [replace(one, low=low, high=high) for one in nodes]
        if isinstance(node, g.Neuron) and node.counts is not None:
            added = known[node.inputs[1]]
            nodes = [replace(one, counts=(added.low, added.high)) for one in nodes]
        known[node.name] = nodes[0]
        for t in range(steps):
            each[t].append(nodes[t])
    found = []
    for t in range(steps):
        unit = torch.tensor([2.0**-t])
        outputs = tuple(
            replace(output, unit=unit, steps=(("multiply", torch.tensor(1.0 + t)),))
            for output in graph.outputs
        )
        found.append(replace(graph, nodes=tuple(each[t]), outputs=outputs))
    return together(found)


def _other(node: g.Node, step: int, generator: torch.Generator) -> g.Node:
    if step == 0:
        return node
    if isinstance(node, g.Convolution | g.Dense):
        # Few patterns: what is 0 stays 0, and each level becomes one other level.
        return replace(node, weight=node.weight * (-1) ** step * (node.weight % (step + 1) != 0))
    if isinstance(node, g.Neuron):
        moved = torch.randint(-2, 3, node.breaks.shape[:1], generator=generator)
        breaks = node.breaks + moved.view(-1, 1, 1, 1).to(torch.int32)
        return replace(node, breaks=breaks, sign=node.sign * (-1) ** step)
    if isinstance(node, g.Affine):
        return replace(node, offset=node.offset + step)
    return node


def chain(steps: int = 3, seed: int = 0, **options: int) -> g.Graph:
    return varied(
        graphs.chain(seed, **{"size": 6, "width": 4, "classes": 3, **options}), steps, seed
    )


def everything(steps: int = 3, seed: int = 0) -> g.Graph:
    return varied(graphs.everything(seed), steps, seed)
