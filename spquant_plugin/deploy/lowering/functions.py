"""Layout, time and arithmetic between the layers of a model, as operations on symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import DeployError
from ..graph import size
from .calls import Call, Refused, handles, symbol_of
from .draft import Draft
from .pools import pool_all
from .symbol import Symbol, is_power_of_two

aten = torch.ops.aten


# --- layout -------------------------------------------------------------------------------------


@handles(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
)
def _view(call: Call) -> Symbol:
    return laid_out(call.draft, symbol_of(call.args[0]), tuple(call.result.shape))


@handles(aten.unsqueeze.default)
def _unsqueeze(call: Call) -> Symbol:
    x, shape = symbol_of(call.args[0]), tuple(call.result.shape)
    axis = call.args[1] % len(shape)
    if axis < len(x.lead):
        return laid_out(call.draft, x, shape)
    return call.draft.reshape(x, shape[len(x.lead) :])


def laid_out(draft: Draft, x: Symbol, shape: tuple[int, ...]) -> Symbol:
    """The symbol of a tensor that was given another shape: which axes are time and samples now."""
    fits = [
        lead
        for lead in _leads(draft, x)
        if shape[: len(lead)] == lead and size(shape[len(lead) :]) == size(x.shape)
    ]
    if not fits:
        raise DeployError(
            f"a value of shape {(*x.lead, *x.shape)} becomes {shape}: time and samples must stay "
            "in front, in their order, apart from channels and pixels."
        )
    kept = [lead for lead in fits if shape[len(lead) :] == x.shape]
    own = [lead for lead in fits if lead == x.lead]
    # With one sample, time folded into the samples looks like time alone.
    folded = len(draft.lead) == 2 and x.time is None
    lead = [*kept, *own, *fits][0] if folded else [*own, *kept, *fits][0]
    return draft.reshape(x, shape[len(lead) :]).but(lead=lead)


def _leads(draft: Draft, x: Symbol) -> list[tuple[int, ...]]:
    """Axes in front that a tensor of this symbol may have; more axes first."""
    samples = draft.lead[-1]
    if x.time is None and x.over_time is None and len(draft.lead) == 2:
        return [draft.lead, (size(draft.lead),)]
    return [(1, samples), (samples,)]


@handles(
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh.default,
    aten._to_copy.default,
)
def _same(call: Call) -> Symbol:
    return symbol_of(call.args[0])


@handles(aten.repeat.default, aten.expand.default)
def _repeated(call: Call) -> Symbol:
    raise DeployError(
        "a value is repeated: must be there once. To show one input at every step, pass the "
        "repeated sequence [T, N, ...] to the model."
    )


# --- time ---------------------------------------------------------------------------------------


def _at(x: Symbol, step: int, lead: tuple[int, ...]) -> Symbol:
    if x.time is not None or len(x.lead) < 2 or x.over_time is not None:
        raise DeployError("samples or channels are picked out: a network must take all of them.")
    return x.but(time=step % x.lead[0], lead=lead)


@handles(aten.select.int)
def _select(call: Call) -> Symbol:
    x, axis, index = symbol_of(call.args[0]), call.args[1], call.args[2]
    if axis % (len(call.result.shape) + 1) != 0:
        raise DeployError(
            f"index {index} of axis {axis} is picked out: only time, the first axis, may be taken "
            "step by step. Put time first."
        )
    return _at(x, index, x.lead[1:])


@handles(aten.unbind.int)
def _unbind(call: Call) -> list[Symbol]:
    x = symbol_of(call.args[0])
    if call.arg(1, 0) != 0:
        raise DeployError("an axis other than time is taken apart: only the first may be.")
    return [_at(x, step, x.lead[1:]) for step in range(x.lead[0])]


@handles(aten.split.Tensor, aten.unsafe_split.Tensor)
def _split(call: Call) -> list[Symbol]:
    x = symbol_of(call.args[0])
    if call.arg(2, 0) != 0 or call.args[1] != 1:
        raise DeployError("a value is split: only time may be, one step at a time.")
    return [_at(x, step, (1, *x.lead[1:])) for step in range(x.lead[0])]


def _all_steps(call: Call, parts: list[Symbol]) -> Symbol | None:
    """The symbol of all steps, where the parts are one after the other."""
    first, times = parts[0], [part.time for part in parts]
    if times != list(range(call.steps)):
        return None
    return first if all(first.same(part, but_time=True) for part in parts) else None


@handles(aten.stack.default)
def _stack(call: Call) -> Symbol:
    parts = [symbol_of(part) for part in call.args[0]]
    found = _all_steps(call, parts)
    if found is None or call.arg(1, 0) != 0:
        raise DeployError(
            "values are stacked that are not the same one at every step: must be all steps, in "
            "their order, along a new first axis."
        )
    return found.but(time=None, lead=(call.steps, *found.lead))


@handles(aten.cat.default)
def _cat(call: Call) -> Symbol:
    parts, axis = [symbol_of(part) for part in call.args[0]], call.arg(1, 0)
    axis %= len(call.result.shape)
    found = _all_steps(call, parts) if axis == 0 and parts[0].lead[:1] == (1,) else None
    if found is not None:
        return found.but(time=None, lead=(call.steps, *found.lead[1:]))
    if axis != len(parts[0].lead) or len({part.time for part in parts}) > 1:
        raise DeployError(
            f"values are concatenated along axis {axis}: only channels of one step may be, or all "
            "steps of one value."
        )
    return call.draft.concat(parts)


@handles(aten.mean.dim, aten.sum.dim_IntList)
def _reduce(call: Call) -> Symbol:
    x, axes = symbol_of(call.args[0]), call.arg(1)
    total = len(x.lead) + len(x.shape)
    axes = sorted(axis % total for axis in (axes or range(total)))
    kind = "mean" if call.operation == aten.mean.dim else "sum"
    space = list(range(len(x.lead) + 1, len(x.lead) + len(x.shape)))
    if axes == [0] and x.lead == call.draft.lead and len(x.lead) == 2 and x.over_time is None:
        call.draft.whole_only(x)
        return x.but(over_time=kind, lead=x.lead[1:])
    if axes == space:
        pooled = pool_all(call.draft, x, average=kind == "mean")
        return laid_out(call.draft, pooled, tuple(call.result.shape))
    raise DeployError(f"a {kind} over axes {axes}: only time, or all of space, may be summed up.")


# --- arithmetic ---------------------------------------------------------------------------------


@handles(aten.add.Tensor, aten.add_.Tensor)
def _add(call: Call) -> Symbol:
    one, other = call.args
    if call.kwargs.get("alpha", 1) != 1:
        raise DeployError("a sum has weights (alpha): must be plain.")
    if not isinstance(one, Symbol) or not isinstance(other, Symbol):
        return _plus_constant(call, one, other)
    successive = one.time != other.time and one.same(other, but_time=True)
    if successive or "partial" in (one.over_time, other.over_time):
        return _running_sum(one, other)
    if one.time != other.time and None not in (one.time, other.time):
        raise DeployError("values of different steps are added: must be of the same step.")
    if one.shape != other.shape or one.lead != other.lead:
        raise DeployError(
            f"values of shapes {(*one.lead, *one.shape)} and {(*other.lead, *other.shape)} are "
            "added: must be the same."
        )
    later = one.time if one.time is not None else other.time
    return call.draft.sum(one, other).but(time=later)


def _plus_constant(call: Call, one: Any, other: Any) -> Symbol:
    x, constant = (one, other) if isinstance(one, Symbol) else (other, one)
    zero = bool((constant == 0).all()) if isinstance(constant, Tensor) else constant == 0
    if constant is one and call.operation == aten.add_.Tensor:
        zero = call.added_to_zeros
    if isinstance(constant, Refused) or not zero:
        if isinstance(constant, Refused):
            raise DeployError(constant.reason)
        raise DeployError("a constant is added: must be the bias of a layer or a norm.")
    return symbol_of(x)


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


@handles(aten.mul.Tensor, aten.div.Tensor, aten.mul_.Tensor, aten.div_.Tensor)
def _times(call: Call) -> Symbol:
    one, other = call.args
    divides = call.operation in (aten.div.Tensor, aten.div_.Tensor)
    if isinstance(other, Symbol) and not isinstance(one, Symbol) and not divides:
        one, other = other, one
    x = call.draft.whole_only(symbol_of(one))
    factor = _number(other)
    if factor is None:
        raise DeployError("two values are multiplied: a product of spikes cannot be lowered.")
    if divides and x.over_time == "partial" and factor == call.steps == (x.time or 0) + 1:
        return x.but(over_time="running mean", time=None)
    if factor > 0 and is_power_of_two(factor) and not x.steps and x.added is None:
        return x.but(unit=x.unit / factor if divides else x.unit * factor)
    if x.over_time is not None:
        raise DeployError("a sum over time is scaled: must be read out as it is, or as a mean.")
    if divides or x.added is not None or x.gate is not None or x.over_time is not None:
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
