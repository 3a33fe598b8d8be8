"""Weight quantisers as operators of torch: one pass over the weight for each question.

On a CPU they are compiled as the membrane recurrence is, elsewhere they are the functions of
:mod:`spquant_plugin.functional.weights`; both give the same numbers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import weights as fw
from . import choice
from .build import NoCompiler, library
from .operators import NAMESPACE

CHUNK = 8192  # weights that stay in the cache while several scales are tried
ELEMENTS_PER_THREAD = 32768


class Grid(NamedTuple):
    """Levels of a weight in units of its scale.

    Dyadic magnitudes have a ``table`` (see :class:`.functional.weights.Levels`); without one the
    levels are the whole numbers up to ``top``.
    """

    table: Tensor | None
    steps: int
    resolution: int
    top: float

    @property
    def reach(self) -> float:
        """Magnitude up to which the gradient passes: half a level of slack for whole numbers,
        since the largest weight may round to just above the top level."""
        return self.top if self.table is not None else self.top + 0.5

    @classmethod
    def dyadic(cls, levels: fw.Levels) -> Grid:
        """Powers of two and their sums."""
        return cls(levels.table, levels.steps, levels.resolution, levels.top)

    @classmethod
    def whole(cls, bits: int) -> Grid:
        """Symmetric whole numbers."""
        return cls(None, 1, 1, float(2 ** (bits - 1) - 1))


def scale_errors(rows: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """Squared errors ``[count, K]`` of quantising each row by each of its scales ``[count, K]``.

    In float64; a last column is the energy of the row. Dyadic errors are in units of the scale.
    """
    return torch.ops.spquant_plugin.scale_errors(rows.detach(), scales, *grid)


def quantize_rows(rows: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Levels of a weight ``[count, ...]``, differentiable straight through.

    ``scale`` has one value per row, or one in all. Dyadic levels come with their scale.
    """
    return torch.ops.spquant_plugin.quantize_rows(rows, scale.flatten(), *grid)


# --- plain torch --------------------------------------------------------------------------------


def _levels(grid: Grid) -> fw.Levels:
    if grid.table is None:
        raise ValueError("whole numbers have no table")
    return fw.Levels(grid.top, grid.steps, grid.resolution, grid.table)


def _errors_in_torch(rows: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    flat = rows.flatten(1)
    columns = []
    for scale in scales.unbind(1):
        wide = scale.unsqueeze(1)
        if grid.table is None:
            level = (flat / wide).round().clamp(-grid.top, grid.top)
            error = flat - level * wide
        else:
            magnitude = flat.abs() / wide
            error = fw.nearest_magnitude(magnitude, _levels(grid)).sub_(magnitude)
        columns.append(error.square_().sum(1, dtype=torch.float64))
    columns.append(flat.square().sum(1, dtype=torch.float64))
    return torch.stack(columns, 1)


def _quantize_in_torch(rows: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    wide = fw.per_channel(scale, rows)
    if grid.table is not None:
        return fw.dyadic_quantize(rows, wide.to(rows.dtype), _levels(grid))
    return (rows / wide).round().clamp(-grid.top, grid.top).to(rows.dtype)


def _pass_in_torch(grad: Tensor, rows: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    wide = fw.per_channel(scale, rows)
    inside = rows.abs() <= wide * grid.reach
    return (grad if grid.table is not None else grad / wide).to(rows.dtype) * inside


# --- compiled -----------------------------------------------------------------------------------


class _Weights(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rows", "scales", "grad", "table")),
        *((name, ctypes.c_void_p) for name in ("errors", "out")),
        *((name, ctypes.c_double) for name in ("steps", "resolution", "top", "reach")),
        *((name, ctypes.c_int64) for name in ("count", "size", "chunk", "each_scale")),
        *((name, ctypes.c_int64) for name in ("last", "divide", "threads")),
    )


@cache
def _library(single: bool, dyadic: bool, two_levels: bool, scales: int) -> ctypes.CDLL:
    header = "".join(
        (
            f"using real = {'float' if single else 'double'};\n",
            f"constexpr bool DYADIC = {int(dyadic)}, TWO_LEVELS = {int(two_levels)};\n",
            f"constexpr int SCALES = {scales};\n",
        )
    )
    built = library("weights", header)
    for name in ("errors", "quantize", "pass_gradient"):
        function = getattr(built, name)
        function.argtypes, function.restype = [ctypes.POINTER(_Weights)], None
    return built


def _can_compile(rows: Tensor) -> bool:
    return choice.native_runs(rows) and rows.dtype in (torch.float32, torch.float64)


def _call(name: str, rows: Tensor, scales: Tensor, grid: Grid, **tensors: Tensor) -> None:
    """Run one function of ``weights.cpp``; ``scales`` is ``[count or 1, K]``."""
    rows, scales = rows.contiguous(), scales.to(rows.dtype).contiguous()
    held = {"rows": rows, "scales": scales, **tensors}
    call = _Weights(steps=grid.steps, resolution=grid.resolution, top=grid.top, reach=grid.reach)
    if grid.table is not None:
        held["table"] = grid.table.contiguous()
        call.last = grid.table.numel() - 1
    for field, tensor in held.items():
        setattr(call, field, tensor.data_ptr())
    call.count, call.size = rows.shape[0], rows[0].numel()
    call.chunk, call.each_scale = CHUNK, scales.shape[0] > 1
    call.divide = grid.table is None
    call.threads = min(torch.get_num_threads(), 1 + rows.numel() // ELEMENTS_PER_THREAD)
    dyadic = grid.table is not None
    built = _library(
        rows.dtype == torch.float32, dyadic, dyadic and grid.steps == 2, scales.shape[1]
    )
    getattr(built, name)(ctypes.byref(call))


def _errors(rows: Tensor, scales: Tensor, *grid: Any) -> Tensor:
    levels = Grid(*grid)
    if _can_compile(rows):
        parts = -(-rows[0].numel() // CHUNK)
        shape = rows.shape[0], parts, scales.shape[1] + 1
        sums = torch.empty(shape, dtype=torch.float64)
        try:
            _call("errors", rows, scales, levels, errors=sums)
        except NoCompiler as error:
            choice.give_up(error)
        else:
            return sums.sum(1)
    return _errors_in_torch(rows, scales, levels)


def _quantize(rows: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    levels = Grid(*grid)
    if _can_compile(rows):
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        try:
            _call("quantize", rows, scale.unsqueeze(1), levels, out=out)
        except NoCompiler as error:
            choice.give_up(error)
        else:
            return out
    return _quantize_in_torch(rows, scale, levels).contiguous()


def _pass(grad: Tensor, rows: Tensor, scale: Tensor, *grid: Any) -> Tensor:
    levels = Grid(*grid)
    if _can_compile(rows):
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        held = grad.to(rows.dtype).contiguous()
        try:
            _call("pass_gradient", rows, scale.unsqueeze(1), levels, grad=held, out=out)
        except NoCompiler as error:
            choice.give_up(error)
        else:
            return out
    return _pass_in_torch(grad, rows, scale, levels).contiguous()


# --- operators ----------------------------------------------------------------------------------

_GRID = "Tensor? table, int steps, int resolution, float top"
_own = torch.library.Library(NAMESPACE, "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_own.define(f"scale_errors(Tensor rows, Tensor scales, {_GRID}) -> Tensor", tags=_TAGS)
_own.define(f"quantize_rows(Tensor rows, Tensor scale, {_GRID}) -> Tensor", tags=_TAGS)
_own.define(
    f"quantize_rows_backward(Tensor grad, Tensor rows, Tensor scale, {_GRID}) -> Tensor", tags=_TAGS
)


def _errors_fake(rows: Tensor, scales: Tensor, *grid: Any) -> Tensor:
    return rows.new_empty(rows.shape[0], scales.shape[1] + 1, dtype=torch.float64)


def _like_rows(rows: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, scale, table, *ctx.grid = inputs
    ctx.save_for_backward(rows, scale, table)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, scale, table = ctx.saved_tensors
    passed = torch.ops.spquant_plugin.quantize_rows_backward(grad, rows, scale, table, *ctx.grid)
    return passed, None, None, None, None, None


for _name, _function in (
    ("scale_errors", _errors),
    ("quantize_rows", _quantize),
    ("quantize_rows_backward", _pass),
):
    _own.impl(_name, _function, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::scale_errors", _errors_fake, lib=_own)
torch.library.register_fake(
    f"{NAMESPACE}::quantize_rows", lambda rows, *_: _like_rows(rows), lib=_own
)
torch.library.register_fake(
    f"{NAMESPACE}::quantize_rows_backward", lambda _, rows, *__: _like_rows(rows), lib=_own
)
torch.library.register_autograd(
    f"{NAMESPACE}::quantize_rows", _differentiate, setup_context=_setup, lib=_own
)
