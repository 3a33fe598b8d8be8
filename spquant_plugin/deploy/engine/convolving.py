"""A weight layer with the neurons behind it: place after place, all steps of each.

What the neurons compare with lies in planes of bits as the sums do, so that thresholds, states,
resets and spikes of all channels are logic on whole registers: no sum ever becomes a number.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .counting import BLOCK, GROUP, PLANES, add_planes, count_rows
from .firing import close, fire
from .gathering import gather, read_sums
from .jit import inner, kernel
from .lanes import spread
from .layout import (
    ADDED,
    ADDED_AT,
    BEFORE,
    BITS,
    CLOSED,
    CLOSED_TILE,
    COUNTS,
    FIRE_ON_SUMS,
    FULL,
    FULL_AT,
    FULL_TILE,
    HEIGHT,
    HISTORY,
    NOW,
    NUMBER_BITS,
    OPENED,
    OUT_HEIGHT,
    OUT_WIDTH,
    PAD_X,
    PAD_Y,
    SAMPLES,
    SCRATCH,
    SMALL,
    SMALL_AT,
    SMALL_TILE,
    SPIKES,
    STATES_AT,
    STEPS,
    STRIDE_X,
    STRIDE_Y,
    SUM,
    SUMS,
    TILES,
    VALID,
    WEIGHTS,
    WEIGHTS_TILE,
    WORK,
)
from .simd import CODES, both, load, nothing, number, store


@inner
def _write_sums(width, planes, sums, target):
    """Sums as numbers: int32, one for each lane, at the target."""
    size = 8 * len(width)
    for word in range(len(width)):
        for plane in range(planes):
            value = -(1 << plane) if plane == planes - 1 else 1 << plane
            spread(sums + plane * size + 8 * word, plane, value, target + word * 64 * 4)


@inner
def _copy(width, count, source, gap, target, wide):
    """Move rows from ``source``, ``gap`` bytes apart, to ``target``, ``wide`` bytes apart."""
    for i in range(count):
        store(load(width, source + i * gap), target + i * wide)


@inner
def _sums(width, table, step, tile, top, left, at, places, scratch):
    """The sums of one place and step as planes: of events, or as they are given."""
    if number(table, WORK) == FIRE_ON_SUMS:
        planes = number(table, FULL)
        read_sums(width, planes, scratch, number(table, SUMS) + 32 * at)
        return planes
    base = number(table, WEIGHTS) + tile * number(table, WEIGHTS_TILE)
    return gather(width, table, step * number(table, HEIGHT), top, left, places, base, scratch)


@inner
def _neurons(width, table, planes, step, tile, spot, at, sums):
    """One step of the neurons of a place whose sums are there; returns their spikes."""
    size = 8 * len(width)
    bits, wide = number(table, BITS), number(table, TILES) * size
    now, before, count = sums + NOW * size, sums + BEFORE * size, sums + ADDED * size
    if number(table, ADDED_AT):
        much = number(table, NUMBER_BITS)
        source = number(table, ADDED_AT) + spot * much * wide + tile * size
        _copy(width, much, source, wide, count, size)
    _copy(width, bits, now, size, before, size)
    breaks = number(table, FULL_AT) + tile * number(table, FULL_TILE)
    if planes == number(table, SMALL):
        breaks = number(table, SMALL_AT) + tile * number(table, SMALL_TILE)
    fired = fire(width, table, sums, planes, breaks, now, count)
    if number(table, OPENED):
        opened = load(width, number(table, OPENED) + step * wide + tile * size)
        rule = number(table, CLOSED) + tile * number(table, CLOSED_TILE)
        fired = close(width, table, fired, opened, rule, before, now, count)
    lanes = load(width, number(table, VALID) + tile * size)
    store(both(fired, lanes), number(table, SPIKES) + at)
    if number(table, HISTORY):
        past = number(table, HISTORY) + spot * bits * wide + tile * size
        for bit in range(bits):
            store(both(load(width, now + bit * size), lanes), past + bit * wide)


@inner
def _place(width, table, tile, sample, place, places, sums):
    """One place of one sample and tile, all steps."""
    size = 8 * len(width)
    bits, wide = number(table, BITS), number(table, TILES) * size
    across = number(table, OUT_WIDTH)
    area = number(table, OUT_HEIGHT) * across
    top = place // across * number(table, STRIDE_Y) - number(table, PAD_Y)
    left = place % across * number(table, STRIDE_X) - number(table, PAD_X)
    now = sums + NOW * size
    kept = number(table, STATES_AT) + (sample * area + place) * bits * wide + tile * size
    fires = number(table, WORK) != SUM
    if fires:
        _copy(width, bits, kept, wide, now, size)
    for t in range(number(table, STEPS)):
        step = t * number(table, SAMPLES) + sample
        spot = step * area + place
        at = spot * wide + tile * size
        planes = _sums(width, table, step, tile, top, left, at, places, sums)
        if fires:
            _neurons(width, table, planes, step, tile, spot, at, sums)
        else:
            _write_sums(width, planes, sums, number(table, SUMS) + 32 * at)
    if fires:
        _copy(width, bits, now, size, kept, wide)


@kernel
def run_layer(width, fields, parts):
    """A weight layer over all steps, with the neurons behind it, or one of both alone.

    ``fields`` is the table. Rows of bits are: the weights ``[tiles, planes, rows + 1, words]``; the
    tables ``valid [tiles, words]``, ``small`` and ``full [tiles, states, numbers, breaks, planes,
    words]``, ``closed [tiles, states, numbers, 1 + bits, words]``; and, of all tiles one behind the
    other, the open channels ``[steps * samples, words]``, the added numbers, the spikes, the states
    before, and the states after each step. Sums are int32 ``[steps * samples, places, lanes]``.
    """
    table = fields.ctypes.data
    tiles = fields[TILES]
    area = fields[OUT_HEIGHT] * fields[OUT_WIDTH]
    for job in prange(fields[SAMPLES] * tiles * parts):
        part, rest = job % parts, job // parts
        places = np.empty(BLOCK + 2 * CODES, np.int32)
        scratch = np.empty(SCRATCH * len(width), np.uint64)
        for place in range(area * part // parts, area * (part + 1) // parts):
            _place(
                width,
                table,
                rest % tiles,
                rest // tiles,
                place,
                places.ctypes.data,
                scratch.ctypes.data,
            )


@kernel
def sum_levels(width, history, first, planes, totals):
    """Sums over places of stored numbers, of ``history [steps, places, bits, words]``.

    Bits below ``first`` do not count. ``totals`` is int32 ``[steps, lanes]``.
    """
    size = 8 * len(width)
    steps, area, bits, words = history.shape
    tiles = words // len(width)
    gap = 8 * bits * words
    for job in prange(steps * tiles):
        step, tile = job // tiles, job % tiles
        room = np.empty(BLOCK + 2 * CODES, np.int32)
        scratch = np.zeros(SCRATCH * len(width), np.uint64)
        sums, places = scratch.ctypes.data, room.ctypes.data
        counts = sums + COUNTS * size
        start = history.ctypes.data + step * area * gap + tile * size
        for begin in range(0, area, BLOCK):
            rows = min(area - begin, BLOCK)
            whole = rows & -GROUP
            for i in range(whole):
                room[i] = i * gap
            for bit in range(first, bits):
                base = start + begin * gap + 8 * bit * words
                count_rows(width, places, whole, base, counts)
                add_planes(width, counts, bit - first, sums, planes)
                for i in range(whole, rows):
                    for plane in range(PLANES):
                        store(nothing(width), counts + plane * size)
                    store(load(width, base + i * gap), counts)
                    add_planes(width, counts, bit - first, sums, planes)
        _write_sums(
            width, planes, sums, totals.ctypes.data + 4 * 64 * (step * words + tile * len(width))
        )
