"""Pools between the layers of a model, as sums and maxima of whole numbers."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import DeployError
from ..graph import MaxPool, SumPool, size
from .calls import Call, Refused, handles, symbol_of
from .draft import Draft
from .symbol import Symbol, is_power_of_two
from .windows import windows

aten = torch.ops.aten


def sum_pool(
    draft: Draft,
    x: Symbol,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Symbol:
    """Sums over windows of whole numbers."""
    x = draft.settled(x)
    if not x.exact:
        raise DeployError(
            "an average pool stands before a neuron and averages float currents: must average "
            "spikes. Put it behind the neuron."
        )
    shape = (x.shape[0], *windows(x.shape[1:], kernel, stride, padding))
    node = SumPool(
        name="(pool)",
        inputs=(x.node,),
        shape=shape,
        low=0,
        high=0,
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    key = ("sum pool", x.node, kernel, stride, padding)
    return x.but(node=draft.add(key, draft.fitting(node)).name, shape=shape)


def pool_all(draft: Draft, x: Symbol, *, average: bool) -> Symbol:
    """Sum or average over all of space."""
    whole = x.shape[1:]
    pooled = sum_pool(draft, x, whole, whole, (0,) * len(whole))
    return averaged(pooled, size(whole)) if average else pooled


def averaged(x: Symbol, window: int) -> Symbol:
    """Divided by a window that is a power of two, which is exact."""
    if not is_power_of_two(window):
        raise DeployError(
            f"an average over {window} pixels: must be a power of two of them, so that dividing is "
            "exact. Use a window of 2, 4 or 8 pixels a side."
        )
    return x.but(unit=x.unit / window)


def _sides(value: Any, axes: int) -> tuple[int, ...]:
    listed = tuple(value) if isinstance(value, list | tuple) else (value,)
    return listed * axes if len(listed) == 1 else listed


@handles(aten.avg_pool2d.default, aten.avg_pool1d.default)
def _average_pool(call: Call) -> Symbol:
    x = symbol_of(call.args[0])
    axes = len(x.shape) - 1
    kernel = _sides(call.args[1], axes)
    stride = _sides(call.arg(2) or kernel, axes)
    padding = _sides(call.arg(3, 0), axes)
    divisor = call.arg(6) or size(kernel)
    if any(padding) and not call.arg(5, True):
        raise DeployError(
            f"an average pool with padding={padding} and count_include_pad=False divides by "
            "another number at the edge: must divide by the same one. Use count_include_pad=True "
            "or no padding."
        )
    pooled = averaged(sum_pool(call.draft, x, kernel, stride, padding), divisor)
    return _checked(call, pooled)


@handles(aten._adaptive_avg_pool2d.default)
def _adaptive_average(call: Call) -> Symbol:
    x = symbol_of(call.args[0])
    kernel = _even_windows(x, call.args[1])
    return averaged(sum_pool(call.draft, x, kernel, kernel, (0,) * len(kernel)), size(kernel))


def _even_windows(x: Symbol, target: Any) -> tuple[int, ...]:
    sides = _sides(target, len(x.shape) - 1)
    if any(n % side for n, side in zip(x.shape[1:], sides, strict=True)):
        raise DeployError(
            f"an adaptive pool from {x.shape[1:]} to {sides}: its windows must have one size."
        )
    return tuple(n // side for n, side in zip(x.shape[1:], sides, strict=True))


@handles(aten.max_pool2d_with_indices.default, aten.max_pool2d.default, aten.max_pool1d.default)
def _max_pool(call: Call) -> Any:
    x = call.draft.settled(symbol_of(call.args[0]))
    if not x.exact:
        raise DeployError(
            "a max pool stands before a neuron and compares float currents: must compare spikes. "
            "Put it behind the neuron."
        )
    axes = len(x.shape) - 1
    kernel = _sides(call.args[1], axes)
    stride = _sides(call.arg(2) or kernel, axes)
    padding, dilation = _sides(call.arg(3, 0), axes), _sides(call.arg(4, 1), axes)
    result = call.result[0] if isinstance(call.result, tuple) else call.result
    shape = tuple(result.shape[len(x.lead) :])
    node = MaxPool(
        name="(pool)",
        inputs=(x.node,),
        shape=shape,
        low=0,
        high=0,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    key = ("max pool", x.node, kernel, stride, padding, dilation)
    pooled = x.but(node=call.draft.add(key, node).name, shape=shape)
    if shape[1:] != windows(x.shape[1:], kernel, stride, padding, dilation):
        raise DeployError(_CEILED)
    return [pooled, Refused("the places of a max pool are used: must be its values.")]


_CEILED = "a pool with ceil_mode=True has windows that are cut off: must be whole. Use False."


def _checked(call: Call, pooled: Symbol) -> Symbol:
    if tuple(call.result.shape[len(pooled.lead) :]) != pooled.shape:
        raise DeployError(_CEILED)
    return pooled
