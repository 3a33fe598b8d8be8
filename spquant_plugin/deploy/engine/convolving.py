"""A weight layer with the neurons behind it: a few places side by side, all steps of them.

What the neurons compare with lies in planes of bits as the sums do, so that thresholds, states,
resets and spikes of all channels are logic on whole registers: no sum ever becomes a number.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .counting import BLOCK
from .firing import close, fire
from .gathering import count_events, gather, list_parts, read_sums
from .jit import inner, kernel
from .lanes import spread
from .layout import (
    ADDED,
    ADDED_AT,
    APART,
    BEFORE,
    BITS,
    CLOSED,
    CLOSED_TILE,
    FIRE_ON_SUMS,
    FULL,
    FULL_AT,
    FULL_TILE,
    GAP_X,
    HEIGHT,
    HISTORY,
    INPUT,
    KERNEL_X,
    KERNEL_Y,
    LEVEL_BITS,
    MASKED,
    NOW,
    NUMBER_BITS,
    OPEN,
    OPENED,
    OUT_HEIGHT,
    OUT_WIDTH,
    PAD_X,
    PAD_Y,
    PART,
    ROW,
    SAMPLES,
    SCORED,
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
    WIDTH,
    WORDS,
    WORK,
)
from .masking import is_masked, mask_places
from .simd import CODES, WIDE, both, load, number, store, write_number
from .sliding import slide


@inner
def _write_sums(words, planes, sums, target):
    """Sums as numbers: int32, one for each lane, at the target."""
    for word in range(words):
        for plane in range(planes):
            value = -(1 << plane) if plane == planes - 1 else 1 << plane
            spread(sums + plane * APART + 8 * word, plane, value, target + word * 64 * 4)


@inner
def _copy(words, count, source, gap, target, wide):
    """Move rows of so many words, ``gap`` bytes apart, to ``target``, ``wide`` bytes apart."""
    for i in range(count):
        if words == 8:
            store(load(WIDE, source + i * gap), target + i * wide)
        else:
            for word in range(words):
                write_number(number(source + i * gap, word), target + i * wide + 8 * word)


@inner
def _room_of_window(table):
    """Numbers that list a window: how many parts it has, and the parts."""
    parts = number(table, KERNEL_Y) * (1 if number(table, GAP_X) == 1 else number(table, KERNEL_X))
    return 1 + parts * PART // 8


@inner
def _sums(width, table, tile, step, place, windows, counts, codes, scratch):
    """The sums of places side by side in one step, as planes; returns how many planes.

    ``place`` is the first of them; ``counts`` says how many parts the window of each has, and is
    negative where a place is left out, of which anything may be there then.
    """
    words = number(table, WORDS)
    if number(table, WORK) == FIRE_ON_SUMS:
        planes = number(table, FULL)
        gap = 256 * number(table, TILES) * words
        source = number(table, SUMS) + place * gap + 256 * tile * words
        for i in range(len(counts)):
            if counts[i] >= 0:
                read_sums(words, planes, scratch + 8 * i * words, source + i * gap)
        return planes
    if number(table, INPUT):
        first = place % (number(table, OUT_HEIGHT) * number(table, OUT_WIDTH))
        return slide(table, tile, step, first, len(counts), scratch)
    begin = step * number(table, HEIGHT) * number(table, WIDTH)
    gap = 8 * _room_of_window(table)
    most = 0
    for i in range(len(counts)):
        most = max(most, count_events(table, begin, windows + i * gap + 8, counts[i]))
    planes = number(table, SMALL if most <= BLOCK else FULL)
    for i in range(len(counts)):
        if counts[i] >= 0:
            sums = scratch + 8 * i * words
            at = windows + i * gap + 8
            gather(width, table, tile, begin, at, counts[i], codes, planes, sums, scratch)
    return planes


@inner
def _write_levels(table, tile, place, count, now):
    """Keep the levels of the potentials, which lie behind the states, for a mask to rank by."""
    words, bits = number(table, WORDS), number(table, LEVEL_BITS)
    wide = 8 * number(table, TILES) * words
    area = number(table, OUT_HEIGHT) * number(table, OUT_WIDTH)
    place = place % (number(table, SAMPLES) * area)  # those of one step only
    levels = number(table, SCORED) + place * bits * wide + 8 * tile * words
    for i in range(count):
        source = now + number(table, BITS) * APART + 8 * i * words
        _copy(words, bits, source, APART, levels + i * bits * wide, wide)


@inner
def _neurons(table, planes, tile, step, place, count, scratch):
    """One step of the neurons of places side by side whose sums are there.

    ``place`` is the first of them among those of all steps.
    """
    words, bits = number(table, WORDS), number(table, BITS)
    size = 8 * words
    wide = number(table, TILES) * size
    now, before, numbers = scratch + NOW * APART, scratch + BEFORE * APART, scratch + ADDED * APART
    if number(table, ADDED_AT):
        much = number(table, NUMBER_BITS)
        source = number(table, ADDED_AT) + place * much * wide + tile * size
        for i in range(count):
            _copy(words, much, source + i * much * wide, wide, numbers + i * size, APART)
    breaks = number(table, FULL_AT) + tile * number(table, FULL_TILE)
    if planes == number(table, SMALL):
        breaks = number(table, SMALL_AT) + tile * number(table, SMALL_TILE)
    if number(table, OPENED):
        _copy(8, bits, now, APART, before, APART)
    fired = fire(table, scratch, planes, breaks, now, numbers)
    if number(table, OPENED):
        source, opened = number(table, OPENED) + step * wide + tile * size, scratch + OPEN * APART
        _copy(words, count, source, 0, opened, size)
        rule = number(table, CLOSED) + tile * number(table, CLOSED_TILE)
        fired = close(table, fired, load(WIDE, opened), rule, before, now, numbers)
    if number(table, LEVEL_BITS):
        _write_levels(table, tile, place, count, now)
    valid = load(WIDE, number(table, VALID) + tile * ROW)
    store(both(fired, valid), scratch)
    _copy(words, count, scratch, size, number(table, SPIKES) + place * wide + tile * size, wide)
    if number(table, HISTORY):
        past = number(table, HISTORY) + place * bits * wide + tile * size
        for i in range(count):
            _copy(words, bits, now + i * size, APART, past + i * bits * wide, wide)


@inner
def _list_window(table, place, target):
    """List the window of a place."""
    across = number(table, OUT_WIDTH)
    top = place // across * number(table, STRIDE_Y) - number(table, PAD_Y)
    left = place % across * number(table, STRIDE_X) - number(table, PAD_X)
    write_number(list_parts(table, top, left, target + 8), target)


@inner
def _count_parts(table, sample, first, windows, counts):
    """How many parts the window of each place has, -1 where it is masked; whether any is not."""
    gap = 8 * _room_of_window(table)
    some = False
    for i in range(len(counts)):
        masked = is_masked(table, sample, first + i)
        counts[i] = -1 if masked else number(windows + i * gap, 0)
        some = some or not masked
    return some


@inner
def _places(width, table, begin, end, tile, sample, first, windows, counts, codes, scratch):
    """Places side by side of one sample and tile, these steps."""
    windows += 8 * first * _room_of_window(table)
    if not _count_parts(table, sample, first, windows, counts):
        return
    words, bits = number(table, WORDS), number(table, BITS)
    size = 8 * words
    wide = number(table, TILES) * size
    area = number(table, OUT_HEIGHT) * number(table, OUT_WIDTH)
    fires = number(table, WORK) != SUM
    now = scratch + NOW * APART
    kept = number(table, STATES_AT) + (sample * area + first) * bits * wide + tile * size
    if fires:
        for i in range(len(counts)):
            _copy(words, bits, kept + i * bits * wide, wide, now + i * size, APART)
    for t in range(begin, end):
        step = t * number(table, SAMPLES) + sample
        place = step * area + first
        planes = _sums(width, table, tile, step, place, windows, counts, codes, scratch)
        if fires:
            _neurons(table, planes, tile, step, place, len(counts), scratch)
        else:
            target = number(table, SUMS) + 32 * (place * wide + tile * size)
            for i in range(len(counts)):
                _write_sums(words, planes, scratch + i * size, target + 32 * i * wide)
    if fires:
        for i in range(len(counts)):
            _copy(words, bits, now + i * size, APART, kept + i * bits * wide, wide)


@kernel
def run_layer(width, fields, pieces):
    """A weight layer over all steps, with the neurons behind it, or one of both alone.

    ``fields`` is the table; ``width`` as many words as are counted at once. Rows of bits are: the
    weights ``[tiles, rows + 1, planes, words]``; the tables ``valid [tiles, 8]``, ``small`` and
    ``full [tiles, states, numbers, breaks, planes, 8]``, ``closed [tiles, states, numbers, 1 +
    bits, 8]``, which repeat a place as often as it fits; and, of all tiles one behind the other,
    the open channels ``[steps * samples, words]``, the added numbers, the spikes, the states
    before, and the states after each step. Sums are int32 ``[steps * samples, places, lanes]``.

    Where pixels are masked, all places of a step end before the next begins.
    """
    table = fields.ctypes.data
    tiles, samples, steps = fields[TILES], fields[SAMPLES], fields[STEPS]
    area = fields[OUT_HEIGHT] * fields[OUT_WIDTH]
    side = len(WIDE) // fields[WORDS]
    groups = (area + side - 1) // side
    masks = fields[MASKED] > 0
    windows = np.empty((area, _room_of_window(table)), np.int64)
    for place in prange(area):
        _list_window(table, place, windows[place].ctypes.data)
    for turn in range(-1 if masks else 0, steps if masks else 1):
        jobs = samples * tiles * pieces if turn >= 0 else 0  # prange(... if ...) is not parallel
        for job in prange(jobs):
            piece, rest = job % pieces, job // pieces
            codes = np.empty(BLOCK + 3 * CODES, np.int32)
            room = np.zeros(SCRATCH * APART // 8 + 8, np.uint64)
            scratch = (room.ctypes.data + ROW - 1) & -ROW
            counts = np.zeros(side, np.int64)
            for group in range(groups * piece // pieces, groups * (piece + 1) // pieces):
                first = group * side
                _places(
                    width,
                    table,
                    turn,
                    turn + 1 if masks else steps,
                    rest % tiles,
                    rest // tiles,
                    first,
                    windows.ctypes.data,
                    counts[: min(side, area - first)],
                    codes.ctypes.data,
                    scratch,
                )
        if masks and samples == 1:
            mask_places(table, turn, 0)  # starting threads takes longer
        elif masks:
            for sample in prange(samples):
                mask_places(table, turn, sample)
