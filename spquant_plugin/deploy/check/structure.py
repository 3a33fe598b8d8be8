"""Rules of a graph that hold or break whatever the numbers in its weights and tables are.

Tensors may be on the ``meta`` device: a file is checked by these rules before anything is read.
"""

from __future__ import annotations

from ..graph import Graph, Input, Node, size
from .outputs import check_outputs
from .rules import ELEMENTS, LARGEST, must, text, whole
from .shapes import SHAPES
from .steps import check_steps

REPEATS = 2**16  # steps of a static input
TAKES = ("sequence", "step", "static")


def check_structure(graph: Graph) -> None:
    """Names, order, types, shapes and ranges of a whole graph."""
    check_steps(graph)
    for one in graph.by_step:
        _check_step(one)


def _check_step(graph: Graph) -> None:
    must(isinstance(graph.nodes, tuple) and len(graph.nodes) > 0, "nodes", graph.nodes, "a tuple")
    known: dict[str, Node] = {}
    for index, node in enumerate(graph.nodes):
        must(type(node) in SHAPES, f"nodes[{index}]", type(node).__name__, "a kind of node")
        text(f"nodes[{index}].name", node.name)
        must(node.name not in known, f"nodes[{index}].name", node.name, "used once")
        must(isinstance(node, Input) == (index == 0), node.name, node.kind, "first if it is Input")
        _common(node, known)
        SHAPES[type(node)](node, known)
        known[node.name] = node
    must(graph.takes in TAKES, "takes", graph.takes, f"one of {TAKES}")
    whole("repeats", graph.repeats, 1, REPEATS)
    must(isinstance(graph.single, bool), "single", graph.single, "True or False")
    text("model", graph.model, empty=True)
    check_outputs(graph, known)


def _common(node: Node, known: dict[str, Node]) -> None:
    """What every node has."""
    where = node.name
    fits = isinstance(node.inputs, tuple) and all(isinstance(name, str) for name in node.inputs)
    must(fits, f"{where}.inputs", node.inputs, "a tuple of names")
    for name in node.inputs:
        must(name in known, f"{where}.inputs", name, "the name of a node before it")
    fits = isinstance(node.shape, tuple) and 1 <= len(node.shape) <= 8
    fits = fits and all(type(side) is int and side >= 1 for side in node.shape)
    must(fits, f"{where}.shape", node.shape, "1 to 8 whole numbers of at least 1")
    must(size(node.shape) <= ELEMENTS, f"{where}.shape", node.shape, f"at most {ELEMENTS} elements")
    whole(f"{where}.low", node.low, -LARGEST, LARGEST)
    whole(f"{where}.high", node.high, node.low, LARGEST)
