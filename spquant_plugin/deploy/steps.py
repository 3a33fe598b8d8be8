"""Networks whose weights change from step to step: what their graphs share, and what they do not.

A weight of such a network follows one of a few patterns over the steps. So all its weights are one
small code per weight and a table of patterns, which is how files and exports hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .graph import Graph, Node

MOST_PATTERNS = 255


class Patterns(NamedTuple):
    """``codes`` (int8, shaped like the weight) and ``levels [P, T]`` (int8): the weight of a step
    is ``levels[codes + P // 2, step]``, so that code 0 is the pattern in the middle."""

    codes: Tensor
    levels: Tensor

    def at(self, step: int) -> Tensor:
        """The weight of a step, int8."""
        return self.levels[self.codes.long() + len(self.levels) // 2, step].contiguous()


def together(graphs: Sequence[Graph]) -> Graph:
    """One graph of those of all steps, in which equal nodes are the very same."""
    first, *others = graphs
    kept = {node.name: node for node in first.nodes}

    def shared(node: Node) -> Node:
        return kept[node.name] if same(node, kept[node.name]) else node

    later = tuple(
        replace(graph, nodes=tuple(shared(node) for node in graph.nodes)) for graph in others
    )
    return replace(first, later=later)


def same(one: Any, other: Any) -> bool:
    """Whether two nodes, or what they hold, are equal.

    >>> same((torch.ones(2), "a"), (torch.ones(2), "a")), same(torch.ones(1), torch.zeros(1))
    (True, False)
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        return alike and not one.is_meta and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Node):
        names = [field.name for field in fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def changing(graph: Graph) -> set[str]:
    """Names of the nodes that are not the same in all steps."""
    return {
        node.name
        for other in graph.later
        for node, first in zip(other.nodes, graph.nodes, strict=True)
        if node is not first
    }


def variants(graph: Graph, name: str) -> list[Any]:
    """The node of this name in each step, or alone where it is the same in all."""
    nodes = [each[name] for each in graph.by_step]
    return nodes if any(node is not nodes[0] for node in nodes) else nodes[:1]


def distinct(graph: Graph) -> Iterator[Node]:
    """All nodes of all steps; what is the same in several comes once."""
    yield from {id(node): node for each in graph.by_step for node in each.nodes}.values()


def patterns(weights: Sequence[Tensor]) -> Patterns | None:
    """What the weights of all steps follow: patterns in ascending order, as few as there are.

    None where a code for each of them needs more than a byte.

    >>> found = patterns([torch.tensor([1, 0, -1]).char(), torch.tensor([1, 0, -1]).char()])
    >>> found.codes.tolist(), found.levels.tolist()
    ([1, 0, -1], [[-1, -1], [0, 0], [1, 1]])
    """
    stacked = torch.stack([weight.flatten() for weight in weights], 1)
    levels, index = torch.unique(stacked, dim=0, return_inverse=True)
    if len(levels) > MOST_PATTERNS:
        return None
    codes = index - len(levels) // 2
    return Patterns(codes.to(torch.int8).view(weights[0].shape), levels)


def changing_weights(graph: Graph) -> dict[str, Patterns]:
    """Patterns of every layer whose weights change, by its name; of those that have few."""
    found = {}
    for layer in graph.layers:
        nodes = variants(graph, layer.name)
        if len(nodes) > 1:
            follows = patterns([node.weight for node in nodes])
            if follows is not None:
                found[layer.name] = follows
    return found
