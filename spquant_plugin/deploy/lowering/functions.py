"""Layout and time between the layers of a model, as operations on symbols."""

from __future__ import annotations

import torch

from ...errors import DeployError
from ..graph import size
from .calls import Call, handles, symbol_of
from .draft import Draft
from .pools import pool_all
from .symbol import Symbol

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
    if axis == 0 and x.once and len(x.lead) == 1:
        return x.but(lead=(1, *x.lead))
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
    folded = len(draft.lead) == 2 and x.time is None and not x.once
    lead = [*kept, *own, *fits][0] if folded else [*own, *kept, *fits][0]
    return draft.reshape(x, shape[len(lead) :]).but(lead=lead)


def _leads(draft: Draft, x: Symbol) -> list[tuple[int, ...]]:
    """Axes in front that a tensor of this symbol may have; more axes first."""
    samples = draft.lead[-1]
    if x.time is None and x.over_time is None and len(draft.lead) == 2 and not x.once:
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


# --- time ---------------------------------------------------------------------------------------


@handles(aten.repeat.default, aten.expand.default)
def _repeated(call: Call) -> Symbol:
    x = symbol_of(call.args[0])
    same = tuple(call.result.shape) == (*x.lead, *x.shape)
    return x if same and (not x.once or len(x.lead) == 1) else _at_every_step(call, x)


def _at_every_step(call: Call, x: Symbol) -> Symbol:
    """One input, which is shown again and again."""
    if not x.once or tuple(call.result.shape) != (*call.draft.lead, *x.shape):
        raise DeployError(
            f"a value of shape {(*x.lead, *x.shape)} is repeated to {tuple(call.result.shape)}: "
            "only one input [N, ...] may be, to [T, N, ...] in front of the first neuron. Repeat "
            "it there, or pass the sequence to the model."
        )
    return x.but(once=False, lead=call.draft.lead)


def _at(x: Symbol, step: int, lead: tuple[int, ...]) -> Symbol:
    if x.once and len(x.lead) == 2:
        return x.but(lead=lead)  # an axis of one step, not repeated yet
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
    if all(part.once and part.same(parts[0]) for part in parts):
        return _at_every_step(call, parts[0])
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
    if axis == 0 and all(part.once and part.same(parts[0]) for part in parts):
        return _at_every_step(call, parts[0])
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
