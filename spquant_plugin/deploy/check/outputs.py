"""Rules of what is read out of a graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..graph import ChannelDecision, Graph, Neuron, Node, Output
from .rules import must, text

# How many values stand behind the name of each step of float arithmetic.
STEPS = {"multiply": 1, "add": 1, "norm": 5}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_outputs(graph: Graph, known: dict[str, Node]) -> None:
    """All but the numbers in their tensors."""
    fits = isinstance(graph.outputs, tuple) and len(graph.outputs) > 0
    must(fits, "outputs", graph.outputs, "a tuple with one output at least")
    for index, output in enumerate(graph.outputs):
        where = f"outputs[{index}]"
        must(isinstance(output, Output), where, type(output).__name__, "an Output")
        text(f"{where}.value", output.value)
        must(output.value in known, f"{where}.value", output.value, "the name of a node")
        _output(output, where, known)


def _output(output: Output, where: str, known: dict[str, Node]) -> None:
    node = known[output.value]
    must(output.reads in ("value", "membrane"), f"{where}.reads", output.reads, "value or membrane")
    fits = output.reads == "value" or isinstance(node, Neuron)
    must(fits, f"{where}.value", node.kind, "a Neuron, whose membrane is read")
    times = (None, "sum", "mean", "last", "running sum", "running mean")
    must(output.over_time in times, f"{where}.over_time", output.over_time, f"one of {times}")
    fits = isinstance(output.unit, Tensor) and output.unit.ndim == 1
    must(fits, f"{where}.unit", output.unit, "a tensor of one axis")
    _reals(f"{where}.unit", output.unit, node.shape[0])
    if output.gate is not None:
        decision = known.get(output.gate) if isinstance(output.gate, str) else None
        fits = isinstance(decision, ChannelDecision) and decision.shape == node.shape[:1]
        must(fits, f"{where}.gate", output.gate, "a ChannelDecision on these channels")
    must(isinstance(output.steps, tuple), f"{where}.steps", output.steps, "a tuple")
    for index, step in enumerate(output.steps):
        _step(f"{where}.steps[{index}]", step, node.shape[0])


def _step(where: str, step: Any, channels: int) -> None:
    fits = isinstance(step, tuple) and len(step) > 0 and isinstance(step[0], str)
    fits = fits and len(step) - 1 == STEPS.get(step[0])
    must(fits, where, step, "(multiply, x), (add, x) or (norm, mean, variance, weight, bias, eps)")
    for index, value in enumerate(step[1:], 1):
        if step[0] == "norm" and index == 5:
            fits = type(value) is float and math.isfinite(value) and value >= 0
            must(fits, f"{where}[{index}]", value, "a finite number of at least 0")
        elif step[0] != "norm" or index <= 2 or value is not None:
            _reals(f"{where}[{index}]", value, channels, alone=step[0] != "norm")


def _reals(where: str, value: Any, channels: int, *, alone: bool = True) -> None:
    must(isinstance(value, Tensor), where, value, "a tensor")
    must(value.dtype in FLOATS, where, value.dtype, "a floating-point type")
    must(value.device.type in ("cpu", "meta"), where, value.device, "on the CPU")
    fits = value.ndim <= 1 and (value.numel() == channels or (alone and value.numel() == 1))
    must(fits, where, tuple(value.shape), f"{'one number or ' if alone else ''}{channels} numbers")
