"""The teacher while it teaches: in eval mode, without gradient, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..convert.hosts import reset
from ..convert.trace import kept_generator


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself, at rest, in eval mode and without gradient.

    In the end its modes, its states and whatever else its modules hold are what they were, and so
    is the random generator: a student draws the numbers that it would draw without a teacher. No
    parameter is touched, and nothing is copied but references.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with frozen(net):
    ...     net.training, net(torch.ones(1, 2)).requires_grad
    (False, False)
    >>> net.training
    True
    """
    held = [(module, _remember(vars(module))) for module in model.modules()]
    try:
        with torch.no_grad(), kept_generator():
            model.eval()
            reset(model)
            yield model
    finally:
        for module, memory in held:
            _restore(vars(module), memory)


# A module's attributes, and what its own tables and lists hold: hosts keep states in both.
_Memory = dict[str, tuple[Any, Any]]


def _remember(attributes: dict[str, Any]) -> _Memory:
    kept = {name: _copied(value) for name, value in attributes.items()}
    return {name: (value, kept[name]) for name, value in attributes.items()}


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list) else None


def _restore(attributes: dict[str, Any], memory: _Memory) -> None:
    for name in [name for name in attributes if name not in memory]:
        del attributes[name]
    for name, (value, content) in memory.items():
        # In place, because others may hold the same table.
        if isinstance(value, dict):
            value.clear()
            value.update(content)
        elif isinstance(value, list):
            value[:] = content
        attributes[name] = value
