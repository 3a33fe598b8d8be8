"""Weights that change with the time step, as operators of torch: one pass over the weight.

On a CPU they are compiled as the membrane recurrence is, elsewhere they are the functions of
:mod:`spquant_plugin.functional.temporal`; both give the same levels.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..functional import temporal as ft
from . import choice
from .build import NoCompiler, library
from .operators import NAMESPACE
from .weights import ELEMENTS_PER_THREAD


class _StepLevels(torch.autograd.Function):
    """One output for each step, so that no gradient has to be put together again."""

    @staticmethod
    def forward(weight: Tensor, timesteps: int, bits: int) -> tuple[Tensor, ...]:
        drive, spread = ft.normalize(weight)
        levels, sums = torch.ops.spquant_plugin.temporal_levels(drive, timesteps, bits)
        return drive, spread, sums, *levels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        drive, spread, *_ = output
        ctx.mark_non_differentiable(drive, spread)
        ctx.save_for_backward(drive, spread)
        ctx.bits = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, spread = ctx.saved_tensors
        _, _, of_sums, *steps = grads
        passed = torch.ops.spquant_plugin.temporal_gradient(
            [grad.contiguous() for grad in steps], of_sums, drive, spread, ctx.bits
        )
        return passed, None, None


def step_levels(rows: Tensor, timesteps: int, bits: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Levels of each step, and sums ``[T, channels]`` of their magnitudes; both differentiable.

    The sums are in at least single precision.
    """
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).contiguous()
    _, _, sums, *levels = _StepLevels.apply(wide, timesteps, bits)
    return tuple(step.to(rows.dtype) for step in levels), sums


# --- plain torch --------------------------------------------------------------------------------


def _levels_in_torch(drive: Tensor, timesteps: int, bits: int) -> tuple[list[Tensor], Tensor]:
    levels = ft.pattern_levels(drive, timesteps, bits)
    return [step.clone() for step in levels], levels.abs().reshape(*levels.shape[:2], -1).sum(2)


def _gradient_in_torch(
    grads: list[Tensor], of_sums: Tensor, drive: Tensor, spread: Tensor, bits: int
) -> Tensor:
    levels = ft.pattern_levels(drive, len(grads), bits)
    wide = of_sums.view(*of_sums.shape, *[1] * (drive.ndim - 1))
    passed = ft.pattern_gradient(torch.stack(grads) + wide * levels.sign(), drive, bits)
    return ft.normalize_gradient(passed, drive, spread)


# --- compiled -----------------------------------------------------------------------------------


class _Temporal(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("drive", "limits", "levels", "gains")),
        *((name, ctypes.c_void_p) for name in ("steps_of", "sums", "out")),
        ("spread", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("rows", "size", "steps", "patterns", "threads")),
    )


@cache
def _library(single: bool, bits: int) -> ctypes.CDLL:
    real, whole = ("float", "int32_t") if single else ("double", "int64_t")
    header = f"using real = {real};\nusing bits = {whole};\n"
    built = library("temporal", f"{header}constexpr int TOP = {2 ** (bits - 1) - 1};\n")
    for name in ("levels", "gradient"):
        function = getattr(built, name)
        function.argtypes, function.restype = [ctypes.POINTER(_Temporal)], None
    return built


@cache
def _tables(timesteps: int, bits: int, single: bool) -> tuple[ctypes.Array[Any], ...]:
    """Limits, levels and gains as the kernel reads them."""
    patterns = ft.temporal_patterns(timesteps, bits)
    kind = ctypes.c_float if single else ctypes.c_double
    limits = ft.limits(timesteps, bits, torch.float32 if single else torch.float64)
    levels, gains = [], []
    for step in range(timesteps):
        for row, gained in zip(patterns.levels, patterns.gains, strict=True):
            levels.append(float(row[step]))
            # Its sign says whether the step fires.
            gains.append(float(gained[step]) * (-1 if row[step] else 1))
    rows = (limits, levels, gains)
    return tuple((kind * len(row))(*row) for row in rows)


def _can_compile(drive: Tensor) -> bool:
    return choice.native_runs(drive) and drive.dtype in (torch.float32, torch.float64)


def _call(
    name: str, drive: Tensor, bits: int, steps: list[Tensor], sums: Tensor, **held: Any
) -> None:
    """Run one function of ``temporal.cpp``. All tensors are contiguous."""
    timesteps = len(steps)
    pointers = (ctypes.c_void_p * timesteps)(*(step.data_ptr() for step in steps))
    single = drive.dtype == torch.float32
    tables = _tables(timesteps, bits, single)
    call = _Temporal(drive=drive.data_ptr(), steps=timesteps, patterns=len(tables[0]) + 1)
    for field, table in zip(("limits", "levels", "gains"), tables, strict=True):
        setattr(call, field, ctypes.addressof(table))
    call.steps_of, call.sums = ctypes.addressof(pointers), sums.data_ptr()
    for field, value in held.items():
        setattr(call, field, value.data_ptr() if isinstance(value, Tensor) else value)
    call.rows, call.size = drive.shape[0], drive[0].numel()
    call.threads = min(torch.get_num_threads(), 1 + drive.numel() // ELEMENTS_PER_THREAD)
    getattr(_library(single, bits), name)(ctypes.byref(call))


def _levels(drive: Tensor, timesteps: int, bits: int) -> tuple[list[Tensor], Tensor]:
    if _can_compile(drive):
        levels, sums = _levels_fake(drive, timesteps, bits)
        try:
            _call("levels", drive, bits, levels, sums)
        except NoCompiler as error:
            choice.give_up(error)
        else:
            return levels, sums
    return _levels_in_torch(drive, timesteps, bits)


def _gradient(
    grads: list[Tensor], of_sums: Tensor, drive: Tensor, spread: Tensor, bits: int
) -> Tensor:
    if _can_compile(drive):
        out = torch.empty_like(drive)
        try:
            _call(
                "gradient", drive, bits, grads, of_sums.contiguous(), out=out, spread=float(spread)
            )
        except NoCompiler as error:
            choice.give_up(error)
        else:
            return out
    return _gradient_in_torch(grads, of_sums, drive, spread, bits)


# --- operators ----------------------------------------------------------------------------------

_own = torch.library.Library(NAMESPACE, "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_own.define(
    "temporal_levels(Tensor drive, int timesteps, int bits) -> (Tensor[], Tensor)", tags=_TAGS
)
_own.define(
    "temporal_gradient(Tensor[] grads, Tensor of_sums, Tensor drive, Tensor spread, int bits) "
    "-> Tensor",
    tags=_TAGS,
)


def _levels_fake(drive: Tensor, timesteps: int, bits: int) -> tuple[list[Tensor], Tensor]:
    # Apart, because an allocator uses such pieces again and returns a large one to the system.
    levels = [torch.empty_like(drive) for _ in range(timesteps)]
    return levels, drive.new_empty(timesteps, drive.shape[0])


_own.impl("temporal_levels", _levels, "CompositeExplicitAutograd")
_own.impl("temporal_gradient", _gradient, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::temporal_levels", _levels_fake, lib=_own)
torch.library.register_fake(
    f"{NAMESPACE}::temporal_gradient",
    lambda grads, of_sums, drive, spread, bits: torch.empty_like(drive),
    lib=_own,
)
