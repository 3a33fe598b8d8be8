"""Packing small integers into bytes: 2 and 4 bits each, or five ternary digits per byte.

Codes are unsigned: the level minus the lowest level. Positions fill a byte from its low end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PackingError

TRITS_PER_BYTE = 5


def _codes(levels: Tensor, lowest: int, highest: int) -> Tensor:
    flat = levels.reshape(-1)
    if flat.is_floating_point() and not torch.equal(flat, flat.round()):
        raise PackingError("levels hold fractions: packing takes whole numbers. Round them first.")
    if flat.numel() and not lowest <= flat.min() <= flat.max() <= highest:
        span = f"{flat.min().item():g} to {flat.max().item():g}"
        raise PackingError(
            f"levels run from {span}: packing here takes {lowest} to {highest}. "
            "Use more bits or another lowest level."
        )
    return (flat.to(torch.int64) - lowest).to(torch.uint8)


def _padded(codes: Tensor, per_byte: int) -> Tensor:
    missing = -codes.numel() % per_byte
    return torch.nn.functional.pad(codes, (0, missing)).reshape(-1, per_byte)


def pack_bits(levels: Tensor, bits: int, lowest: int = 0) -> Tensor:
    """Pack whole numbers ``lowest`` to ``lowest + 2**bits - 1`` with ``bits`` of 1, 2, 4 or 8.

    >>> pack_bits(torch.tensor([-1, 0, 1, 1, -1]), bits=2, lowest=-1)
    tensor([164,   0], dtype=torch.uint8)
    """
    if bits not in (1, 2, 4, 8):
        raise PackingError(f"bits = {bits!r}: must be 1, 2, 4 or 8, so that they fill a byte.")
    rows = _padded(_codes(levels, lowest, lowest + 2**bits - 1), 8 // bits).to(torch.int64)
    weights = 2 ** (bits * torch.arange(8 // bits, device=rows.device))
    return (rows * weights).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int, lowest: int = 0) -> Tensor:
    """Undo :func:`pack_bits`; ``count`` is how many numbers were packed.

    >>> unpack_bits(torch.tensor([164, 0], dtype=torch.uint8), bits=2, count=5, lowest=-1)
    tensor([-1,  0,  1,  1, -1], dtype=torch.int8)
    """
    if bits not in (1, 2, 4, 8):
        raise PackingError(f"bits = {bits!r}: must be 1, 2, 4 or 8, so that they fill a byte.")
    shifts = bits * torch.arange(8 // bits, device=packed.device)
    rows = (packed.to(torch.int64)[:, None] >> shifts) & (2**bits - 1)
    fits = lowest >= -128 and lowest + 2**bits <= 128
    return _first(rows, count, lowest).to(torch.int8 if fits else torch.int16)


def pack_trits(levels: Tensor) -> Tensor:
    """Pack numbers -1, 0, 1 five to a byte, as digits of base 3.

    >>> pack_trits(torch.tensor([-1, 0, 1, 1, -1, 1]))
    tensor([75,  2], dtype=torch.uint8)
    """
    rows = _padded(_codes(levels, -1, 1), TRITS_PER_BYTE).to(torch.int64)
    weights = 3 ** torch.arange(TRITS_PER_BYTE, device=rows.device)
    return (rows * weights).sum(1).to(torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Undo :func:`pack_trits`.

    >>> unpack_trits(torch.tensor([75, 2], dtype=torch.uint8), count=6)
    tensor([-1,  0,  1,  1, -1,  1], dtype=torch.int8)
    """
    if packed.numel() and int(packed.max()) >= 3**TRITS_PER_BYTE:
        raise PackingError(
            f"a byte holds {int(packed.max())}: five ternary digits reach 242 at most. "
            "The data is not packed by pack_trits, or it is damaged."
        )
    weights = 3 ** torch.arange(TRITS_PER_BYTE, device=packed.device)
    return _first(packed.to(torch.int64)[:, None] // weights % 3, count, -1).to(torch.int8)


def _first(rows: Tensor, count: int, lowest: int) -> Tensor:
    least = max(0, rows.numel() - rows.shape[1] + 1)
    if not least <= count <= rows.numel():
        raise PackingError(
            f"count = {count}: {rows.shape[0]} bytes hold {least} to {rows.numel()} numbers. "
            "Pass the count that was packed."
        )
    return rows.reshape(-1)[:count] + lowest
