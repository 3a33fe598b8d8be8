"""A graph without the numbers that packed rows hold as well, and the whole graph made anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..graph import ChannelDecision, Convolution, Dense, Graph, Neuron, Node
from .decision import Decision
from .stages import Weights

if TYPE_CHECKING:
    from .prepared import Prepared


def lighten(prepared: Prepared) -> Graph:
    """The graph whose weights have shapes only where the engine holds them packed."""

    def light(node: Node) -> Node:
        if isinstance(node, Convolution | Dense | ChannelDecision) and _rows(prepared, node):
            return replace(node, weight=node.weight.to("meta"))
        return node

    return replace(prepared.graph, nodes=tuple(light(node) for node in prepared.graph.nodes))


def restore(prepared: Prepared) -> Graph:
    """The graph with all weights."""

    def whole(node: Node) -> Node:
        if isinstance(node, Convolution | Dense | ChannelDecision):
            rows = _rows(prepared, node)
            if rows is not None:
                return replace(node, weight=rows.restored(tuple(node.weight.shape)))
        return node

    return replace(prepared.graph, nodes=tuple(whole(node) for node in prepared.graph.nodes))


def without_tables(prepared: Prepared) -> Graph:
    """The graph without the neurons' tables too, which cannot be made from the rows."""

    def light(node: Node) -> Node:
        if isinstance(node, Neuron) and node.name in prepared.stages:
            return replace(node, breaks=node.breaks.to("meta"))
        return node

    return replace(prepared.graph, nodes=tuple(light(node) for node in prepared.graph.nodes))


def _rows(prepared: Prepared, node: Node) -> Decision | Weights | None:
    """What holds a node's weights packed."""
    if isinstance(node, ChannelDecision):
        return prepared.decisions.get(node.name)
    return prepared.stage_of(node).weights if node.name in prepared.flat else None
