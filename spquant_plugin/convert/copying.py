"""A copy of a model at rest. The original is neither run nor reset nor changed.

A running state may carry a graph, which ``deepcopy`` refuses; so each state is replaced, while
copying, by its value at rest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..modules.step_counter import StepCounter
from .hosts import Hosts


def copy_at_rest(model: nn.Module) -> nn.Module:
    """Deep copy with every state at its reset value and every cached activation detached."""
    memo: dict[int, Any] = {}
    hosts = Hosts()
    for module in model.modules():
        for held in _held_tensors(module):
            if held.grad_fn is not None:
                memo[id(held)] = held.detach().clone()
        for host in hosts.all:
            for state, rest in host.states(module):
                memo[id(state)] = rest
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if isinstance(module, StepCounter):
            module.rest()
    return copied


def _held_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in plain attributes and buffers, and in lists, tuples and dicts of them."""
    for value in (*vars(module).values(), *module._buffers.values()):
        yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (list, tuple):
        for item in value:
            yield from _tensors_in(item)
    elif type(value) is dict:
        for item in value.values():
            yield from _tensors_in(item)
