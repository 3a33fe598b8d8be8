"""Rules of a graph that has others for its later steps: what must be the same in all of them."""

from __future__ import annotations

from dataclasses import fields

from ..graph import Graph, Node, Output
from ..steps import same
from .rules import must

STEPS = 32  # with weights of their own
# What a step may have of its own; all else, bounds and states above all, is that of the first.
FREE = {
    "weight", "sign", "breaks", "outcomes", "closed", "multiplier", "offset", "factors",
    "threshold", "unit", "steps",
}  # fmt: skip


def check_steps(graph: Graph) -> None:
    """That all graphs are the first one with other numbers."""
    where, later = "later", graph.later
    fits = isinstance(later, tuple) and all(isinstance(one, Graph) for one in later)
    must(fits, where, later, "a tuple of graphs")
    must(len(later) < STEPS, where, len(later), f"at most {STEPS - 1} graphs")
    if not later:
        return
    steps = len(later) + 1
    must(graph.repeats <= steps, "repeats", graph.repeats, f"at most {steps}, a graph for each")
    for step, one in enumerate(later, 1):
        _alike(f"{where}[{step - 1}]", graph, one)


def _alike(where: str, first: Graph, one: Graph) -> None:
    must(one.later == (), f"{where}.later", len(one.later), "()")
    for name in ("takes", "repeats", "single", "model"):
        wanted = getattr(first, name)
        must(getattr(one, name) == wanted, f"{where}.{name}", getattr(one, name), repr(wanted))
    for kind in ("nodes", "outputs"):
        wanted, found = getattr(first, kind), getattr(one, kind)
        count = len(wanted)
        fits = isinstance(found, tuple) and len(found) == count
        must(fits, f"{where}.{kind}", found, f"a tuple of {count}, as in the first step")
        for index, pair in enumerate(zip(wanted, found, strict=True)):
            _same_but_free(f"{where}.{kind}[{index}]", *pair)


def _same_but_free(where: str, first: Node | Output, one: Node | Output) -> None:
    must(type(one) is type(first), where, type(one).__name__, f"a {type(first).__name__}")
    for field in fields(first):
        wanted, found = getattr(first, field.name), getattr(one, field.name)
        if field.name not in FREE:
            rule = f"{wanted!r}, as in the first step"
            must(same(wanted, found), f"{where}.{field.name}", found, rule)
