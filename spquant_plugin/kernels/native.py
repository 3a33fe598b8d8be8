"""Calls the recurrence that is compiled for this processor."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..functional.membrane import state_dtype
from .build import library
from .constants import constants
from .inputs import CELLS, CODES, Gradients, Inputs, Needs, Outputs, Wanted
from .rule import Rule

# Neurons that stay in the cache while all steps pass over them: few, but of many steps more, whose
# rows would be too short for the processor to see what comes next.
BLOCK, LONG_BLOCK, MANY_STEPS = 256, 1024, 24
SMALLEST_BLOCK = 64
# Fewer elements than this are done before a second thread has woken up.
ELEMENTS_PER_THREAD = 16384

_pointer = ctypes.c_void_p
_integer = ctypes.c_int64


class _Shared(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("x", "state", "fired")),
        *((name, _pointer) for name in ("threshold", "decay", "gain", "mask", "code")),
        *((name, ctypes.c_double) for name in ("unit", "code_scale")),
        *((name, _integer) for name in ("steps", "neurons", "row", "block", "threads")),
        *((name, _integer) for name in ("wide_code", "each_threshold", "each_decay", "each_gain")),
    )


class _Forward(ctypes.Structure):
    _fields_ = (
        ("shared", _Shared),
        *((name, _pointer) for name in ("spikes", "final", "potentials", "membranes")),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        ("shared", _Shared),
        *((name, _pointer) for name in ("spikes", "final", "potentials", "membranes")),
        *((name, _pointer) for name in ("grad_x", "grad_state", "grad_mask")),
        *((name, _pointer) for name in ("threshold_each", "decay_each", "gain_each")),
        *((name, _pointer) for name in ("threshold_parts", "decay_parts", "gain_parts")),
    )


def forward(inputs: Inputs, rule: Rule, wanted: Wanted) -> tuple[Outputs, Tensor | None]:
    """Spikes, last membrane and what else is wanted; and the code for the backward pass."""
    x = _wide(inputs.x)
    call, held = _Forward(), _Held()
    code = None
    if wanted.code_bits:
        code = x.new_empty(x.shape, dtype=getattr(torch, CODES[wanted.code_bits]))
    spikes, final = torch.empty_like(x), x.new_empty(x.shape[1])
    potentials = torch.empty_like(x) if wanted.potentials else None
    membranes = torch.empty_like(x) if wanted.membranes else None
    held.share(call.shared, inputs._replace(x=x), code)
    for name, tensor in zip(Outputs._fields, (spikes, final, potentials, membranes), strict=True):
        held.put(call, name, tensor)
    _library(rule, inputs.unit is not None, x.dtype).forward(ctypes.byref(call))
    return Outputs(spikes.to(inputs.x.dtype), final, potentials, membranes), code


def backward(
    inputs: Inputs, code: Tensor | None, rule: Rule, arriving: Outputs, needs: Needs
) -> Gradients:
    """Gradients of the inputs that need one."""
    x = _wide(inputs.x)
    inputs = inputs._replace(x=x)
    call, held = _Backward(), _Held()
    blocks, parts = held.share(call.shared, inputs, code)
    for name, tensor in zip(Outputs._fields, arriving, strict=True):
        held.put(call, name, None if tensor is None else tensor.to(x.dtype).contiguous())
    state = x.new_empty(x.shape[1]) if needs.state else None
    mask = None
    if needs.mask and inputs.mask is not None:
        mask = x.new_empty(*inputs.mask.shape, parts)
    grad_x = torch.empty_like(x) if needs.x else None
    for name, tensor in (("grad_x", grad_x), ("grad_state", state), ("grad_mask", mask)):
        held.put(call, name, tensor)
    sums = {}
    for name in ("threshold", "decay", "gain"):
        value = getattr(inputs, name)
        if getattr(needs, name) and value is not None:
            each = value.ndim > 0
            size, dtype = (x.shape[1], x.dtype) if each else (blocks, torch.float64)
            sums[name] = x.new_empty(size, dtype=dtype)
            held.put(call, f"{name}_{'each' if each else 'parts'}", sums[name])
    _library(rule, inputs.unit is not None, x.dtype).backward(ctypes.byref(call))
    for name, values in sums.items():
        if not getattr(inputs, name).ndim:
            sums[name] = values.sum().to(x.dtype)
    return Gradients(grad_x, state, mask=None if mask is None else mask.sum(-1), **sums)


@cache
def _library(rule: Rule, quantized: bool, dtype: torch.dtype) -> ctypes.CDLL:
    built = library("membrane", constants(rule, quantized, dtype))
    built.forward.argtypes, built.backward.argtypes = (
        [ctypes.POINTER(_Forward)],
        [ctypes.POINTER(_Backward)],
    )
    built.forward.restype = built.backward.restype = None
    return built


def _wide(x: Tensor) -> Tensor:
    return x.to(state_dtype(x)).contiguous()


class _Held:
    """Fills the fields of a call, and keeps alive what they point to."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def put(self, call: Any, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.tensors.append(tensor)
            setattr(call, name, tensor.data_ptr())

    def share(self, shared: Any, inputs: Inputs, code: Tensor | None) -> tuple[int, int]:
        """Set what both passes take; return the number of blocks, and of parts of a mask's row."""
        steps, neurons = inputs.x.shape
        for name in ("x", "state", "fired", "threshold", "decay", "gain", "mask"):
            value = getattr(inputs, name)
            self.put(shared, name, None if value is None else value.contiguous())
        self.put(shared, "code", code)
        unit = 1.0 if inputs.unit is None else float(inputs.unit)
        shared.unit = unit
        if code is not None:
            bits = 8 * code.element_size()
            shared.code_scale, shared.wide_code = CELLS[bits] / unit, bits == 16
        for name in ("threshold", "decay", "gain"):
            value = getattr(inputs, name)
            setattr(shared, f"each_{name}", value is not None and value.ndim > 0)
        rows = 1 if inputs.mask is None else inputs.mask.shape[1]
        threads = min(torch.get_num_threads(), 1 + steps * neurons // ELEMENTS_PER_THREAD)
        largest = LONG_BLOCK if steps >= MANY_STEPS else BLOCK
        block = max(SMALLEST_BLOCK, min(largest, -(-neurons // threads)))
        shared.steps, shared.neurons, shared.row = steps, neurons, neurons // rows
        shared.block, shared.threads = block, threads
        return _blocks(rows, neurons // rows, block)


def _blocks(rows: int, row: int, block: int) -> tuple[int, int]:
    """How ``membrane.cpp`` cuts the neurons."""
    if row < block:
        group = block // row
        return -(-rows // group), 1
    parts = -(-row // block)
    return rows * parts, parts
