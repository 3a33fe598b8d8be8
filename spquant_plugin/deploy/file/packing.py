"""Whole numbers in the fewest bytes: bits, ternary digits, or the narrowest type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import FormatError
from ...functional.packing import pack_bits, pack_trits, unpack_bits, unpack_trits
from .container import Array, Stored

BITS = {"1 bit": 1, "2 bit": 2, "4 bit": 4}
TRITS = "trits"
WHOLE = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
REAL = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
TYPES = {getattr(torch, name): kind for name, kind in (WHOLE | REAL).items()} | {torch.uint8: "U8"}
BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def choose(values: Tensor) -> tuple[str, int]:
    """Packing of fewest bytes, and the lowest number it starts from."""
    low, high = int(values.min()), int(values.max())
    if high - low < 2:
        return "1 bit", low
    if low >= -1 and high <= 1:
        return TRITS, -1
    for name in ("2 bit", "4 bit"):
        if high - low < 2 ** BITS[name]:
            return name, low
    spans = {name: torch.iinfo(getattr(torch, name)) for name in WHOLE}
    return next(name for name, span in spans.items() if span.min <= low and high <= span.max), 0


def pack(values: Tensor, packing: str, lowest: int) -> Array:
    """Numbers as the container holds them."""
    if packing == TRITS:
        stored = pack_trits(values)
    elif packing in BITS:
        stored = pack_bits(values.to(torch.int64) - lowest, BITS[packing])
    elif packing in WHOLE:
        stored = values.to(getattr(torch, packing))
    else:
        stored = values.detach()
    return TYPES[stored.dtype], tuple(stored.shape), _bytes(stored)


def _bytes(values: Tensor) -> bytes:
    # As whole numbers, since numpy has no bfloat16.
    same_size = values.contiguous().view(BY_SIZE[values.element_size()]).numpy()
    return same_size.astype(same_size.dtype.newbyteorder("<")).tobytes()


def _numbers(stored: Stored, data: bytes, dtype: torch.dtype) -> Tensor:
    """All numbers of a tensor, in one axis and a memory of their own."""
    import numpy as np

    place = BY_SIZE[dtype.itemsize]
    little = np.dtype(str(place).removeprefix("torch.")).newbyteorder("<")
    count = (stored.end - stored.begin) // dtype.itemsize
    raw = np.frombuffer(data, little, count, stored.begin)
    return torch.from_numpy(raw.astype(little.newbyteorder("="))).view(dtype)


def expected(packing: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Type and shape that the container must have for numbers of this packing and shape."""
    count = math.prod(shape)
    if packing == TRITS:
        return "U8", (-(-count // 5),)
    if packing in BITS:
        return "U8", (-(-count * BITS[packing] // 8),)
    return (WHOLE | REAL)[packing], shape


def unpack(
    stored: Stored,
    data: bytes,
    packing: str,
    lowest: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    """The numbers of a tensor whose type and size are as :func:`expected`."""
    if packing in REAL:
        return _numbers(stored, data, dtype).view(shape)
    if packing == TRITS:
        values = _trits(_numbers(stored, data, torch.uint8), math.prod(shape))
    elif packing in BITS:
        raw = _numbers(stored, data, torch.uint8)
        values = _bits(raw, BITS[packing], math.prod(shape), lowest)
    else:
        values = _numbers(stored, data, getattr(torch, packing))
    span = torch.iinfo(dtype)
    low, high = int(values.min()), int(values.max())
    if low < span.min or high > span.max:
        raise FormatError(f"holds numbers from {low} to {high}: must fit {dtype}.")
    return values.to(dtype).view(shape)


def _trits(raw: Tensor, count: int) -> Tensor:
    used = count - 5 * (raw.numel() - 1)
    if int(raw.max()) >= 3**5 or int(raw[-1]) >= 3**used:
        raise FormatError(
            f"holds a byte of {int(raw.max())}, or digits behind the last number: a byte holds "
            "five ternary digits, and those that are left over are 0."
        )
    return unpack_trits(raw, count)


def _bits(raw: Tensor, bits: int, count: int, lowest: int) -> Tensor:
    used = bits * count - 8 * (raw.numel() - 1)
    if int(raw[-1]) >= 2**used:
        raise FormatError("holds bits behind the last number: those that are left over are 0.")
    return unpack_bits(raw, bits, count).to(torch.int64) + lowest
