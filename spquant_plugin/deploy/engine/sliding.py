"""The sums of depthwise layers: each channel reads its own input channel only.

A row of input bits and the row of weight bits of one place of the kernel are multiplied by one AND,
all channels of places side by side at once. Nobody lists events, and places that lie side by side
in memory are one load.
"""

from __future__ import annotations

from .jit import inner
from .layout import (
    APART,
    COUNTS,
    FULL,
    GAP_X,
    GAP_Y,
    HEIGHT,
    INPUT,
    INPUT_BITS,
    KERNEL_X,
    KERNEL_Y,
    NUMBERS_AT,
    OUT_WIDTH,
    PAD_X,
    PAD_Y,
    ROW,
    STRIDE_X,
    STRIDE_Y,
    TILES,
    WEIGHT_PLANES,
    WEIGHTS,
    WEIGHTS_TILE,
    WIDTH,
    WORDS,
)
from .simd import WIDE, both, differ, load, nothing, number, store, without, write_number


@inner
def _add(row, shift, sums, planes):
    """Add ``row << shift`` to sums of so many planes."""
    for p in range(shift, planes):
        a = load(WIDE, sums + p * APART)
        store(differ(a, row), sums + p * APART)
        row = both(a, row)


@inner
def _subtract(row, shift, sums, planes):
    """Subtract ``row << shift`` from sums of so many planes, in two's complement."""
    for p in range(shift, planes):
        a = load(WIDE, sums + p * APART)
        store(differ(a, row), sums + p * APART)
        row = without(row, a)


@inner
def _begin(table, first, count, begins):
    """Write where the windows of places begin in an image; whether they lie side by side there."""
    across, size = number(table, OUT_WIDTH), 8 * number(table, WORDS)
    wide = number(table, WIDTH) + 2 * number(table, PAD_X)
    for i in range(count):
        y, x = (first + i) // across, (first + i) % across
        place = y * number(table, STRIDE_Y) * wide + x * number(table, STRIDE_X)
        write_number(place * size, begins + 8 * i)
    return number(table, STRIDE_X) == 1 and first % across + count <= across


@inner
def _input(words, source, count, begins, beside, target):
    """Where to load a row of the input of places, whose windows begin there."""
    if beside:
        return source + number(begins, 0)
    for i in range(count):
        at = source + number(begins, i)
        for word in range(words):
            write_number(number(at, word), target + 8 * (i * words + word))
    return target


@inner
def slide(table, tile, step, first, count, scratch):
    """The sums of places side by side from ``first`` on, as planes; returns how many planes.

    The input is ``[steps * samples, bits, tiles, height, width, words]`` with zeros around, the
    weights are ``[tiles, kernel, planes, 8]``.
    """
    words, bits, planes = number(table, WORDS), number(table, INPUT_BITS), number(table, FULL)
    wide = number(table, WIDTH) + 2 * number(table, PAD_X)
    image = (number(table, HEIGHT) + 2 * number(table, PAD_Y)) * wide * 8 * words
    gap = number(table, TILES) * image
    source = number(table, INPUT) + step * bits * gap + tile * image
    weights = number(table, WEIGHTS) + tile * number(table, WEIGHTS_TILE)
    last = number(table, WEIGHT_PLANES) - 1
    begins, target = scratch + NUMBERS_AT * APART, scratch + COUNTS * APART
    beside = _begin(table, first, count, begins)
    for p in range(planes):
        store(nothing(WIDE), scratch + p * APART)
    for ky in range(number(table, KERNEL_Y)):
        for kx in range(number(table, KERNEL_X)):
            place = ky * number(table, GAP_Y) * wide + kx * number(table, GAP_X)
            at = source + place * 8 * words
            for bit in range(bits):
                row = load(WIDE, _input(words, at + bit * gap, count, begins, beside, target))
                for plane in range(last):
                    product = both(row, load(WIDE, weights + plane * ROW))
                    _add(product, plane + bit, scratch, planes)
                product = both(row, load(WIDE, weights + last * ROW))
                _subtract(product, last + bit, scratch, planes)
            weights += (last + 1) * ROW
    return planes
