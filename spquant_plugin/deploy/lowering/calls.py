"""Torch operations of a run, and who knows what they do to symbols.

Whatever has no handler leaves a :class:`Refused` behind, which is an error as soon as a layer, a
neuron or the read-out uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import DeployError
from .draft import Draft
from .symbol import Symbol


@dataclass(frozen=True)
class Refused:
    """What a tensor is that no whole number stands for, and why."""

    reason: str


@dataclass
class Call:
    """One torch operation: its arguments, with symbols in place of the tensors that have one."""

    operation: Any
    draft: Draft
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    steps: int  # time steps of the whole run
    added_to_zeros: bool = False  # whether what the operation wrote to held zeros before

    def arg(self, index: int, default: Any = None) -> Any:
        """Positional argument, or the default where it was left out."""
        return self.args[index] if len(self.args) > index else default


Handler = Callable[[Call], Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*operations: Any) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operations, handler))
        return handler

    return register


def symbol_of(value: Any) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, Refused):
        raise DeployError(value.reason)
    raise DeployError("a constant tensor takes part: must be a layer or a neuron of its own.")
