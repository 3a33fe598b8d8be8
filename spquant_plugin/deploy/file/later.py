"""The later steps of a network whose weights change, in a file.

A weight that changes is stored once: the graph holds its codes, and here stand the patterns that
they mean. Of everything else only what a step has of its own is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import FormatError
from ..check.rules import shown
from ..check.steps import FREE, STEPS
from ..graph import Graph, Node
from ..steps import MOST_PATTERNS, Patterns, changing_weights, same
from .container import Json
from .fields import Codec, Put, Take, Whole, fields, wrong
from .nodes import KINDS, OUTPUT

WEIGHT = "weight"
LEVELS = Whole(torch.int8)


def _coded(layers: set[str]) -> set[str]:
    """The fields of a layer, if there is one, whose weight is a code."""
    return {WEIGHT} if layers else set()


# --- writing ------------------------------------------------------------------------------------


def coded(graph: Graph) -> tuple[Graph, dict[str, Patterns]]:
    """The first step's graph with codes in place of weights that change, and what they mean."""
    known = changing_weights(graph)

    def stored(node: Node) -> Node:
        codes: dict[str, Any] = {WEIGHT: known[node.name].codes} if node.name in known else {}
        return replace(node, **codes)

    return replace(graph, nodes=tuple(stored(node) for node in graph.nodes), later=()), known


def write_later(graph: Graph, known: dict[str, Patterns], put: Put) -> Json:
    """What :func:`read_later` needs to make the later graphs of the first."""
    return {
        "patterns": {
            name: LEVELS.write(one.levels, f"later.patterns.{name}", put)
            for name, one in known.items()
        },
        "steps": [
            _write_step(graph, one, set(known), f"later.{step}", put)
            for step, one in enumerate(graph.later, 1)
        ],
    }


def _write_step(first: Graph, one: Graph, known: set[str], path: str, put: Put) -> Json:
    nodes = {}
    for before, node in zip(first.nodes, one.nodes, strict=True):
        codecs, but = KINDS[type(node)], _coded({node.name} & known)
        changed = _write_free(before, node, codecs, but, f"{path}.{node.name}", put)
        nodes.update({node.name: changed} if changed else {})
    outputs = [
        _write_free(before, output, OUTPUT.fields, set(), f"{path}.outputs.{index}", put)
        for index, (before, output) in enumerate(zip(first.outputs, one.outputs, strict=True))
    ]
    return {"nodes": nodes, "outputs": outputs}


def _write_free(
    before: Any, now: Any, codecs: dict[str, Codec], but: set[str], path: str, put: Put
) -> Json:
    """The fields that are not those of the first step."""
    names = [name for name in codecs if name in FREE - but]
    return {
        name: codecs[name].write(getattr(now, name), f"{path}.{name}", put)
        for name in names
        if not same(getattr(before, name), getattr(now, name))
    }


# --- reading ------------------------------------------------------------------------------------


def read_later(json: Json, first: Graph, take: Take) -> Graph:
    """The whole graph, of the first step's with codes in it and what the file says of the rest."""
    found = fields(json, {"patterns", "steps"}, "later")
    steps = found["steps"]
    if not isinstance(steps, list) or not 1 <= len(steps) < STEPS:
        raise wrong("later.steps", steps, f"a list of 1 to {STEPS - 1} steps")
    known = _read_patterns(found["patterns"], first, len(steps) + 1, take)

    def weights(step: int) -> dict[str, dict[str, Tensor]]:
        return {name: {WEIGHT: one.at(step)} for name, one in known.items()}

    begun = _replaced(first, weights(0), [{} for _ in first.outputs])
    later = []
    for step, own in enumerate(steps, 1):
        nodes, outputs = _read_step(own, first, set(known), f"later.{step}", take)
        for name, weight in weights(step).items():
            nodes[name] = {**nodes.get(name, {}), **weight}
        later.append(_replaced(begun, nodes, outputs))
    return replace(begun, later=tuple(later))


def _replaced(graph: Graph, nodes: dict[str, Any], outputs: list[Any]) -> Graph:
    """The graph with other numbers; a node that has none of its own stays the very same."""
    return replace(
        graph,
        nodes=tuple(
            replace(node, **nodes[node.name]) if node.name in nodes else node
            for node in graph.nodes
        ),
        outputs=tuple(
            replace(output, **own) for output, own in zip(graph.outputs, outputs, strict=True)
        ),
    )


def _read_patterns(json: Json, first: Graph, steps: int, take: Take) -> dict[str, Patterns]:
    found = {}
    for name, described in _items(json, {layer.name for layer in first.layers}, "later.patterns"):
        path = f"later.patterns.{name}"
        levels = LEVELS.read(described, path, take)
        if levels.ndim != 2 or levels.shape[1] != steps or len(levels) > MOST_PATTERNS:
            rule = f"at most {MOST_PATTERNS} patterns of {steps} steps, one for each of the network"
            raise wrong(path, tuple(levels.shape), rule)
        codes = first[name].weight  # type: ignore[attr-defined]
        _check_codes(name, codes, len(levels))
        found[name] = Patterns(codes, levels)
    return found


def _check_codes(name: str, codes: Tensor, count: int) -> None:
    if codes.is_meta:
        return
    least, most = int(codes.min()), int(codes.max())
    low = -(count // 2)
    if least < low or most >= low + count:
        raise FormatError(
            f"{shown(name)}: holds codes from {least} to {most}: its {count} patterns have those "
            f"from {low} to {low + count - 1}."
        )


def _read_step(
    json: Json, first: Graph, known: set[str], path: str, take: Take
) -> tuple[dict[str, Any], list[Any]]:
    found = fields(json, {"nodes", "outputs"}, path)
    nodes = {
        name: _read_free(
            own, KINDS[type(first[name])], _coded({name} & known), f"{path}.{name}", take
        )
        for name, own in _items(found["nodes"], {node.name for node in first.nodes}, path)
    }
    listed = found["outputs"]
    if not isinstance(listed, list) or len(listed) != len(first.outputs):
        raise wrong(f"{path}.outputs", listed, f"a list of {len(first.outputs)}, one per output")
    outputs = [
        _read_free(own, OUTPUT.fields, set(), f"{path}.outputs.{index}", take)
        for index, own in enumerate(listed)
    ]
    return nodes, outputs


def _read_free(
    json: Json, codecs: dict[str, Codec], but: set[str], path: str, take: Take
) -> dict[str, Any]:
    names = {name for name in codecs if name in FREE - but}
    return {
        name: codecs[name].read(described, f"{path}.{name}", take)
        for name, described in _items(json, names, path)
    }


def _items(json: Json, names: Iterable[str], path: str) -> list[tuple[str, Json]]:
    """An object whose keys are some of these names."""
    if not isinstance(json, dict):
        raise wrong(path, json, "a JSON object")
    odd = sorted(set(json) - set(names))
    if odd:
        raise wrong(path, odd[0], "the name of what can change there")
    return list(json.items())
