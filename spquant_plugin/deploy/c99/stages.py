"""Which operations run together, row by row, so that no layer's sums are ever held whole.

A node that only one elementwise node reads gives it one row at a time: a convolution and its
neuron share a buffer of one row. What other nodes read, or what is read out, is kept whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import ExportError
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
    Product,
    Reshape,
    Shape,
    SumPool,
)

# Gives rows; reads whole values and, where it is elementwise, rows.
GIVES_ROWS = (Convolution, Dense, SumPool, MaxPool, Affine, Add, Product, Mask, Concat)
READS_ROWS = (Affine, Add, Product, Mask, Concat, Neuron)
KNOWN = (*GIVES_ROWS, Neuron, Input, Reshape, ChannelDecision)
AXES = 2


@dataclass(frozen=True)
class Stage:
    """Nodes that run together in the graph's order; the last, the root, is kept whole."""

    members: tuple[Node, ...]

    @property
    def root(self) -> Node:
        return self.members[-1]


def grid(shape: Shape) -> tuple[int, int, int]:
    """Channels, rows and columns. A line stands upright: its sums are then held place by place.

    >>> grid((4, 20)), grid((4, 3, 5)), grid((7,))
    ((4, 20, 1), (4, 3, 5), (7, 1, 1))
    """
    channels, *space = shape
    if len(space) < AXES:
        return channels, math.prod(space), 1
    return channels, math.prod(space[:-1]), space[-1]


def check(graph: Graph) -> None:
    """Refuse what the kernels do not do."""
    for node in graph.nodes:
        if not isinstance(node, KNOWN):
            raise ExportError(
                f"{node.name} is a {node.kind}: export_c writes only "
                f"{', '.join(sorted(kind.__name__ for kind in KNOWN))}."
            )
        axes = len(node.shape) - 1
        if isinstance(node, Convolution | SumPool | MaxPool) and axes > AXES:
            raise ExportError(
                f"{node.name} ({node.kind}) has {axes} axes of space: the C kernels have one or "
                "two. Run this network with the Python engine."
            )
        if not -(2**31) < node.low <= node.high < 2**31 - 1:
            raise ExportError(
                f"{node.name} ({node.kind}) runs from {node.low} to {node.high}: C sums have 32 "
                "bits. Use fewer bits for its weights, its factors or its input."
            )


def stages(graph: Graph) -> list[Stage]:
    """All stages, in the order of their roots."""
    roots: dict[str, str] = {}
    for node in reversed(graph.nodes):
        reader = row_reader(graph, node)
        roots[node.name] = node.name if reader is None else roots[reader.name]
    return [
        Stage(tuple(other for other in graph.nodes if roots[other.name] == node.name))
        for node in graph.nodes
        if roots[node.name] == node.name
    ]


def row_reader(graph: Graph, node: Node) -> Node | None:
    """The one node that takes this one's rows, if there is one."""
    readers = list(graph.readers(node.name))
    if not isinstance(node, GIVES_ROWS) or len(readers) != 1:
        return None
    if any(output.value == node.name for output in graph.outputs):
        return None
    reader = readers[0]
    same = grid(reader.shape)[1:] == grid(node.shape)[1:]
    # As a mask's or a neuron's gate it is read whole; gates are decisions, which give no rows.
    return reader if isinstance(reader, READS_ROWS) and same else None


def gate_of(graph: Graph, node: Node) -> str | None:
    """The decision that makes sums of closed channels irrelevant, so that they are left out."""
    reader = row_reader(graph, node)
    if isinstance(reader, Neuron):
        elsewhere = node.name in reader.inputs[1:]
        return None if reader.closed is None or elsewhere else reader.gate
    if isinstance(reader, Mask):
        return reader.inputs[1]
    return gate_of(graph, reader) if isinstance(reader, Affine) else None
