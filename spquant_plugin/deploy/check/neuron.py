"""Rules of a neuron's table: its size, its attributes, and what it reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import STATES, ChannelDecision, Neuron, Node, PixelMask, size
from .rules import ELEMENTS, LARGEST, must, text, whole, whole_tensor

OUTCOMES = 256  # an index of one fits a byte


def check_neuron(node: Neuron, known: dict[str, Node]) -> None:
    """All but the numbers in the tables."""
    where = node.name
    wanted = 1 if node.counts is None else 2
    must(len(node.inputs) == wanted, f"{where}.inputs", node.inputs, f"{wanted} names")
    for name in node.inputs:
        shape = known[name].shape
        must(shape == node.shape, f"{where}.inputs", shape, f"of shape {node.shape}")
    must((node.low, node.high) == (0, 1), f"{where}.low, high", (node.low, node.high), "0 and 1")
    whole(f"{where}.lowest", node.lowest, -STATES, 0)
    whole(f"{where}.highest", node.highest, 0, STATES)
    must(isinstance(node.remembers, bool), f"{where}.remembers", node.remembers, "True or False")
    must(node.states <= STATES, f"{where}.states", node.states, f"at most {STATES}")
    _gate(node, known)
    _tables(node, _numbers(node, known))
    _pixels(node)
    fits = isinstance(node.semantics, dict)
    must(fits, f"{where}.semantics", node.semantics, "a dictionary of words")
    for key, words in node.semantics.items():
        text(f"{where}.semantics", key)
        text(f"{where}.semantics[{key!r}]", words, empty=True)


def _numbers(node: Neuron, known: dict[str, Node]) -> int:
    """How many numbers the table expects of its second input."""
    if node.counts is None:
        return 1
    where = f"{node.name}.counts"
    must(isinstance(node.counts, tuple) and len(node.counts) == 2, where, node.counts, "a pair")
    whole(where, node.counts[0], -LARGEST, LARGEST)
    whole(where, node.counts[1], node.counts[0], LARGEST)
    added = known[node.inputs[1]]
    fits = node.counts[0] <= added.low and added.high <= node.counts[1]
    must(fits, where, node.counts, f"a range that holds {added.low} to {added.high}, its input's")
    return node.counts[1] - node.counts[0] + 1


def _gate(node: Neuron, known: dict[str, Node]) -> None:
    must((node.gate is None) == (node.closed is None), f"{node.name}.closed", node.closed,
         "there if and only if there is a gate")  # fmt: skip
    if node.gate is None:
        return
    decision = known.get(node.gate) if isinstance(node.gate, str) else None
    fits = isinstance(decision, ChannelDecision) and decision.shape == node.shape[:1]
    must(fits, f"{node.name}.gate", node.gate, "a ChannelDecision before it on these channels")


def _tables(node: Neuron, counts: int) -> None:
    where, channels = node.name, node.shape[0]
    whole_tensor(f"{where}.sign", node.sign, torch.int8, (channels,))
    fits = isinstance(node.outcomes, Tensor) and node.outcomes.ndim == 2
    rows = node.outcomes.shape[0] if fits else 0
    must(2 <= rows <= OUTCOMES, f"{where}.outcomes", rows, f"2 to {OUTCOMES} rows")
    whole_tensor(f"{where}.outcomes", node.outcomes, torch.int16, (rows, 3))
    shape = (channels, node.states, counts, rows - 1)
    must(size(shape) <= ELEMENTS, f"{where}.breaks", shape, f"at most {ELEMENTS} numbers")
    whole_tensor(f"{where}.breaks", node.breaks, torch.int32, shape)
    if node.closed is not None:
        whole_tensor(f"{where}.closed", node.closed, torch.uint8, shape[:-1])


def _pixels(node: Neuron) -> None:
    rule, where = node.pixels, f"{node.name}.pixels"
    if rule is None:
        return
    must(isinstance(rule, PixelMask), where, rule, "None or a PixelMask")
    must(len(node.shape) >= 2, where, node.shape, "on a value with space")
    must(rule.score in ("current", "prior"), f"{where}.score", rule.score, "current or prior")
    whole(f"{where}.masked", rule.masked, 0, size(node.shape[1:]))
