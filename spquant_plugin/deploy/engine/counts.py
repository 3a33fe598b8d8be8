"""Counts as planes of bits, all channels at once: sums, pools and joins by logic on words.

Planes are ``[B, places, bits, words]``, the lowest bit first; spikes are counts of one bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Shape
from .rows import LANES, Words, pack, unpack


def with_bits(planes: Words, bits: int) -> Words:
    """Counts in this many planes: what is cut off must be zero."""
    missing = bits - planes.shape[2]
    if missing <= 0:
        return np.ascontiguousarray(planes[:, :, :bits])
    return np.pad(planes, ((0, 0), (0, 0), (0, missing), (0, 0)))


def add_counts(one: Words, other: Words, bits: int) -> Words:
    """Sums of counts that need at most so many bits.

    >>> add_counts(np.array([[[[3]]]]), np.array([[[[2], [1]]]]), 2).tolist()
    [[[[1], [3]]]]
    """
    found = np.empty((*one.shape[:2], bits, one.shape[3]), one.dtype)
    carry = None
    for bit in range(bits):
        parts = [planes[:, :, bit] for planes in (one, other) if bit < planes.shape[2]]
        parts += [] if carry is None else [carry]
        carry = None
        if len(parts) == 3:
            odd = parts[0] ^ parts[1]
            found[:, :, bit] = odd ^ parts[2]
            carry = (parts[0] & parts[1]) | (odd & parts[2])
        elif len(parts) == 2:
            found[:, :, bit] = parts[0] ^ parts[1]
            carry = parts[0] & parts[1]
        else:
            found[:, :, bit] = parts[0] if parts else 0
    return found


def add_windows(
    planes: Words, sides: Shape, out: Shape, kernel: Shape, stride: Shape, padding: Shape
) -> Words:
    """Sums over windows of a plane of these sides: the places ``out``, zeros around."""
    batch, _, bits, words = planes.shape
    (up, aside), (sy, sx) = padding, stride
    image = planes.reshape(batch, *sides, bits, words)
    if up or aside:
        image = np.pad(image, ((0, 0), (up, up), (aside, aside), (0, 0), (0, 0)))
    total, high = np.zeros((batch, out[0] * out[1], 1, words), planes.dtype), 0
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            part = image[:, ky : ky + sy * out[0] : sy, kx : kx + sx * out[1] : sx]
            high += 2**bits - 1
            part = part[:, : out[0], : out[1]].reshape(batch, -1, bits, words)
            total = add_counts(total, part, high.bit_length())
    return total


def join(parts: Sequence[Words], channels: Sequence[int]) -> Words:
    """Counts of several values, one behind the other along the channels."""
    bits = max(part.shape[2] for part in parts)
    wide = [with_bits(part, bits) for part in parts]
    total = -(-sum(channels) // LANES)
    if all(count % LANES == 0 for count in channels[:-1]):
        kept = [part[..., : -(-count // LANES)] for part, count in zip(wide, channels, strict=True)]
        return np.concatenate(kept, -1)
    loose = [unpack(part, count) for part, count in zip(wide, channels, strict=True)]
    return pack(np.concatenate(loose, -1), total)
