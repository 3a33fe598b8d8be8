"""Arithmetic between the layers of a model, as operations on symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import DeployError
from .calls import Call, Refused, handles, symbol_of
from .symbol import Symbol, is_power_of_two

aten = torch.ops.aten
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
REVERSED = (aten.rsub.Scalar, aten.rsub.Tensor)


# --- sums ---------------------------------------------------------------------------------------


def _check_plain(call: Call) -> None:
    if call.kwargs.get("alpha", 1) != 1 or call.arg(2, 1) != 1:
        raise DeployError("a sum has weights (alpha): must be plain.")


@handles(aten.add.Tensor, aten.add_.Tensor)
def _add(call: Call) -> Symbol:
    _check_plain(call)
    one, other = call.args[:2]
    if not isinstance(one, Symbol) or not isinstance(other, Symbol):
        return _plus_constant(call, one, other)
    successive = one.time != other.time and one.same(other, but_time=True)
    if successive or "partial" in (one.over_time, other.over_time):
        return _running_sum(one, other)
    return _joined(one, other, call.draft.sum)


@handles(aten.sub.Tensor, aten.sub_.Tensor, *REVERSED)
def _subtract(call: Call) -> Symbol:
    _check_plain(call)
    one, other = call.args[:2]
    if call.operation in REVERSED:
        one, other = other, one
    if isinstance(one, Symbol) and isinstance(other, Symbol):
        return _joined(one, other, lambda a, b: call.draft.sum(a, call.draft.negated(b)))
    if isinstance(one, Symbol):
        return _plus_constant(call, one, other if _number(other) is None else -other)
    if call.operation == aten.sub_.Tensor:
        symbol_of(one)  # it is written to, so that nobody can tell what it was
    return _plus_constant(call, one, other, sign=-1)


@handles(aten.neg.default)
def _negate(call: Call) -> Symbol:
    return call.draft.negated(symbol_of(call.args[0]))


def _joined(one: Symbol, other: Symbol, join: Callable[[Symbol, Symbol], Symbol]) -> Symbol:
    """Two values of one step, made into one."""
    if one.time != other.time and None not in (one.time, other.time):
        raise DeployError("values of different steps are joined: must be of the same step.")
    if one.shape != other.shape or one.lead != other.lead:
        raise DeployError(
            f"values of shapes {(*one.lead, *one.shape)} and {(*other.lead, *other.shape)} are "
            "joined: must be the same."
        )
    later = one.time if one.time is not None else other.time
    return join(one, other).but(time=later, once=one.once and other.once)


def _plus_constant(call: Call, one: Any, other: Any, sign: int = 1) -> Symbol:
    """``sign`` times a symbol, and a constant."""
    x, constant = (one, other) if isinstance(one, Symbol) else (other, one)
    zero = bool((constant == 0).all()) if isinstance(constant, Tensor) else constant == 0
    written = constant is one and call.operation == aten.add_.Tensor
    if written:
        zero = call.added_to_zeros
    if isinstance(constant, Refused):
        raise DeployError(constant.reason)
    if zero:
        return symbol_of(x) if sign > 0 else call.draft.negated(symbol_of(x))
    number, x = _number(constant), call.draft.settled(symbol_of(x))
    if number is None or not x.exact or written:
        raise DeployError(
            "a constant is added: must be the bias of a layer or a norm, or a number that is added "
            "to spikes."
        )
    return call.draft.shifted(x, sign, number)


def _running_sum(one: Symbol, other: Symbol) -> Symbol:
    """``total = total + spikes`` in a loop over time; ``time`` is the last step in it."""
    if other.over_time == "partial" or (one.over_time is None and one.time == 1):
        one, other = other, one  # the new step may stand in front of the total
    begun = one if one.over_time == "partial" else one.but(over_time="partial")
    whole = begun.but(over_time=None)
    if one.over_time is None and one.time != 0:
        raise DeployError("a sum over time begins late: must take every step, from the first on.")
    if not whole.same(other, but_time=True) or other.time != (one.time or 0) + 1:
        raise DeployError("a sum over time leaves out steps: must take each, in their order.")
    return begun.but(time=other.time)


# --- products -----------------------------------------------------------------------------------


@handles(aten.mul.Tensor, aten.div.Tensor, aten.mul_.Tensor, aten.div_.Tensor)
def _times(call: Call) -> Symbol:
    one, other = call.args
    if isinstance(one, Symbol) and isinstance(other, Symbol) and call.operation in PRODUCTS:
        return _joined(one, other, call.draft.product)
    divides = call.operation in (aten.div.Tensor, aten.div_.Tensor)
    if isinstance(other, Symbol) and not isinstance(one, Symbol) and not divides:
        one, other = other, one
    x = call.draft.whole_only(symbol_of(one))
    factor = _number(other)
    if factor is None:
        raise DeployError(
            other.reason
            if isinstance(other, Refused)
            else "a value is multiplied by a tensor, or divides another: must be multiplied by one "
            "number, or spikes by spikes."
        )
    if divides and x.over_time == "partial" and factor == call.steps == (x.time or 0) + 1:
        return x.but(over_time="running mean", time=None)
    if factor > 0 and is_power_of_two(factor) and not x.steps and x.added is None:
        return x.but(unit=x.unit / factor if divides else x.unit * factor)
    if x.over_time is not None:
        raise DeployError("a sum over time is scaled: must be read out as it is, or as a mean.")
    if divides or x.added is not None or x.gate is not None:
        raise DeployError(f"a value is scaled by {factor:g}: must be a power of two here.")
    return x.but(
        steps=(*x.steps, ("multiply", torch.tensor(factor, dtype=torch.float64))), dyadic=None
    )


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.ndim == 0:
        return float(value)
    return None
