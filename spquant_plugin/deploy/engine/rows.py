"""Weights and tables of a layer as rows of bits, one bit for each output channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Neuron

Words = NDArray[np.uint64]
LANES = 64
WIDEST = 8  # words of a row
# Time of a row of so many words, in units of the shortest.
COSTS = {1: 1.0, 2: 1.0, 4: 1.1, 8: 1.6}
# Weights of so many bits and more are rows of numbers.
FEWEST_OF_NUMBERS = 6


def width_for(channels: int) -> tuple[int, int]:
    """Words of a row and number of tiles of such rows that hold all channels the fastest way."""
    words = -(-channels // LANES)
    tiles = {width: -(-words // width) for width in COSTS}
    best = min(COSTS, key=lambda width: (tiles[width] * COSTS[width], tiles[width] * width))
    return best, tiles[best]


def width_of(words: int) -> tuple[int, ...]:
    """What tells kernels to take so many words at once, or the next number that registers hold."""
    return (0,) * next(width for width in (2, 4, 8) if words <= width)


def pack(bits: NDArray[Any], words: int) -> Words:
    """Bits along the last axis as ``words`` words, the lowest bit first."""
    packed = np.packbits(bits.astype(bool), axis=-1, bitorder="little")
    padded = np.zeros((*packed.shape[:-1], 8 * words), np.uint8)
    padded[..., : packed.shape[-1]] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)


def unpack(words: Words, count: int) -> NDArray[np.uint8]:
    """The first ``count`` bits of each row of words, as numbers 0 and 1."""
    flat = np.ascontiguousarray(words).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(flat, axis=-1, count=count, bitorder="little")


def tiled(rows: Words, tiles: int) -> Words:
    """``[..., words of all tiles]`` to ``[tiles, ..., words]``."""
    split = rows.reshape(*rows.shape[:-1], tiles, -1)
    return np.ascontiguousarray(np.moveaxis(split, -2, 0))


def planes_of(numbers: NDArray[Any], planes: int, words: int) -> Words:
    """Numbers along the last axis as planes of bits, in two's complement ``[..., planes, words]``.

    >>> planes_of(np.array([1, -1, 0]), 2, 1).tolist()
    [[3], [2]]
    """
    bits = numbers[..., None, :] >> np.arange(planes)[:, None] & 1
    return pack(bits, words)


def bits_for(low: int, high: int) -> int:
    """Bits of a number in two's complement between these; 2 at least.

    >>> bits_for(-1, 1), bits_for(-128, 127), bits_for(0, 128)
    (2, 8, 9)
    """
    return max(2, max(high, -low - 1, 0).bit_length() + 1)


def aligned(shape: tuple[int, ...]) -> Words:
    """Zeros that begin where a line of the cache does, with a row of memory behind them."""
    count = math.prod(shape)
    room = np.zeros(count + 2 * WIDEST, np.uint64)
    begin = -room.ctypes.data // 8 % WIDEST
    return room[begin : begin + count].reshape(shape)


class Aligned:
    """Copies of it have rows that begin at lines of the cache too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray) and value.dtype == np.uint64:
                rows = aligned(value.shape)
                rows[...] = value
                value = rows
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class WeightRows(Aligned):
    """Weights ``[inputs, outputs]`` as rows ``[tiles, inputs + 1, planes, words]``; the last is 0.

    Wide weights are rows of numbers instead, int8 ``[tiles, inputs, 1, lanes]``. Whoever reads the
    widest row from wherever one begins finds memory there.
    """

    words: Words
    outputs: int
    largest: int  # of all weights, without their signs
    planes: int  # 0 where they are rows of int8, which wide weights are faster as

    @classmethod
    def of(cls, weights: NDArray[Any]) -> WeightRows:
        """Pack, plane by plane, so that no large array is made of small weights."""
        width, tiles = width_for(weights.shape[1])
        low, high = int(weights.min(initial=0)), int(weights.max(initial=0))
        planes = bits_for(low, high)
        if FEWEST_OF_NUMBERS <= planes <= 8:
            numbers = np.zeros((weights.shape[0], tiles, LANES * width), np.int8)
            numbers.reshape(len(weights), -1)[:, : weights.shape[1]] = weights
            words = aligned((tiles, weights.shape[0], 1, LANES * width // 8))
            words[:, :, 0] = numbers.swapaxes(0, 1).view(np.uint64)
            return cls(words, weights.shape[1], max(-low, high), 0)
        words = aligned((tiles, weights.shape[0] + 1, planes, width))
        for plane in range(planes):
            packed = pack(weights >> plane & 1, width * tiles)
            words[:, :-1, plane] = tiled(packed, tiles)
        return cls(words, weights.shape[1], max(-low, high), planes)

    def unpacked(self) -> NDArray[np.int16]:
        """The weights ``[inputs, outputs]``."""
        if not self.planes:
            numbers = self.words.view(np.int8)[:, :, 0].swapaxes(0, 1)
            return numbers.reshape(len(numbers), -1)[:, : self.outputs].astype(np.int16)
        _, rows, planes, _ = self.words.shape
        found = np.zeros((rows - 1, self.outputs), np.int16)
        for plane in range(planes):
            joined = np.moveaxis(self.words[:, :-1, plane], 0, 1).reshape(rows - 1, -1)
            factor = -(1 << plane) if plane == planes - 1 else 1 << plane
            found += unpack(joined, self.outputs).astype(np.int16) * np.int16(factor)
        return found


@dataclass(frozen=True)
class NeuronRows(Aligned):
    """A neuron's tables: see the kernel that reads them."""

    valid: Words
    small: Words
    full: Words
    closed: Words
    flips: NDArray[np.int64]
    start: int
    states: int
    bits: int
    level_bits: int  # of potentials, without their signs, where a pixel mask ranks by them

    @classmethod
    def of(cls, node: Neuron, tiles: int, words: int, small: int, full: int) -> NeuronRows:
        """Breaks in ``small`` and ``full`` planes, inverted except for the sign's."""
        across = tiles * words
        channels = node.shape[0]
        breaks = np.moveaxis(node.breaks.numpy().astype(np.int64), 0, -1)
        codes = code_of(node)
        bits, level_bits = max(1, (node.states - 1).bit_length()), score_bits(node)
        planes = 1 + bits + level_bits
        closed = np.zeros((tiles, 0, 0, planes, words), np.uint64)
        if node.closed is not None:
            chosen = np.moveaxis(codes[node.closed.numpy().astype(np.int64)], 0, -1)
            closed = tiled(planes_of(chosen, planes, across), tiles)
        return cls(
            side_by_side(tiled(pack(np.ones(channels, bool), across), tiles)),
            side_by_side(tiled(_breaks(breaks, small, across), tiles)),
            side_by_side(tiled(_breaks(breaks, full, across), tiles)),
            side_by_side(closed),
            codes[1:] ^ codes[:-1],
            int(codes[0]),
            node.states,
            bits,
            level_bits,
        )

    @property
    def nbytes(self) -> int:
        tables = (self.valid, self.small, self.full, self.closed, self.flips)
        return sum(table.nbytes for table in tables)


def side_by_side(rows: Words) -> Words:
    """Rows repeated until they are as long as the widest."""
    found = aligned((*rows.shape[:-1], WIDEST))
    found[...] = np.tile(rows, WIDEST // rows.shape[-1])
    return found


def score_bits(node: Neuron) -> int:
    """Planes of a potential's level, without its sign; 0 where no pixel mask ranks by it."""
    if node.pixels is None or node.pixels.masked == 0 or node.pixels.score != "current":
        return 0
    return max(1, int(node.outcomes[:, 2].abs().max()).bit_length())


def code_of(node: Neuron) -> NDArray[np.int64]:
    """Each outcome as one number: the spike, the next state, and the level that a mask ranks by."""
    outcomes = node.outcomes.numpy().astype(np.int64)
    found: NDArray[np.int64] = outcomes[:, 0] | outcomes[:, 1] << 1
    if score_bits(node):
        found |= np.abs(outcomes[:, 2]) << 1 + max(1, (node.states - 1).bit_length())
    return found


def _breaks(breaks: NDArray[np.int64], planes: int, words: int) -> Words:
    limit = 1 << (planes - 1)
    flipped = np.clip(breaks, -limit, limit - 1) ^ (limit - 1)
    return planes_of(flipped, planes, words)


def window_rows(weight: Tensor, sign: Tensor | None) -> NDArray[np.int16]:
    """``weight [O, I, *kernel]`` as ``[kernel * I, O]``, times each channel's sign."""
    folded = weight.to(torch.int16)
    if sign is not None:
        folded = folded * sign.view(-1, *[1] * (weight.ndim - 1)).to(torch.int16)
    space = range(2, weight.ndim)
    found: NDArray[np.int16] = folded.permute(*space, 1, 0).flatten(0, -2).contiguous().numpy()
    return found
