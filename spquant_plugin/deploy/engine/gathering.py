"""The sums of one place of a layer from the events in its window.

Each event is the number of a row of weights. Rows hold one bit of the weight of every output
channel, a plane for each bit of the weights: they are counted, and the counts of all planes put
together in two's complement, so that sums lie in planes too. Wide weights are rows of int8.
"""

from __future__ import annotations

from .counting import (
    BLOCK,
    GROUP,
    add_planes,
    count_rows,
    start_sums,
    subtract_planes,
)
from .jit import inner
from .lanes import add_small, collect, load_numbers, store_numbers, zero_numbers
from .layout import (
    APART,
    CHANNELS,
    CODES_AT,
    COUNTS,
    GAP_X,
    GAP_Y,
    HEIGHT,
    KERNEL_X,
    KERNEL_Y,
    NUMBERS_AT,
    PART,
    STARTS,
    TOGETHER,
    WEIGHT_PLANES,
    WEIGHTS,
    WEIGHTS_TILE,
    WIDTH,
    WORDS,
)
from .simd import CODES, LANES, fill_codes, move_codes, number, small_number, write_number


@inner
def list_parts(table, top, left, target):
    """Write the parts of the window at ``top`` and ``left`` that lie inside; returns how many.

    A part is a line of the window, or a single place of it where there are gaps between places:
    where it begins and ends among the places of a step, and what makes its codes row numbers.
    """
    whole = number(table, GAP_X) == 1
    across = number(table, KERNEL_X)
    wide = across if whole else 1
    found = 0
    for part in range(number(table, KERNEL_Y) * (1 if whole else across)):
        ky, kx = (part, 0) if whole else (part // across, part % across)
        y = top + ky * number(table, GAP_Y)
        x = left + kx * number(table, GAP_X)
        first, last = max(x, 0), min(x + wide, number(table, WIDTH))
        if 0 <= y < number(table, HEIGHT) and first < last:
            at = target + PART * found
            write_number(y * number(table, WIDTH) + first, at)
            write_number(y * number(table, WIDTH) + last, at + 8)
            write_number((ky * across + kx - x) * number(table, CHANNELS), at + 16)
            found += 1
    return found


@inner
def count_events(table, begin, parts, count):
    """How many events lie in the window of these parts."""
    starts = number(table, STARTS) + 8 * begin
    found = 0
    for part in range(count):
        at = parts + PART * part
        found += number(starts, number(at, 1)) - number(starts, number(at, 0))
    return found


@inner
def _add_rows(width, table, places, filled, base, sums, planes, scratch, begun):
    """Count the gathered rows of every plane of weights, and add them to the sums."""
    counts, size = scratch + COUNTS * APART, 8 * number(table, WORDS)
    all_planes, together = number(table, WEIGHT_PLANES), number(table, TOGETHER)
    empty = number(table, KERNEL_Y) * number(table, KERNEL_X) * number(table, CHANNELS)
    fill_codes(places + 4 * filled, empty * all_planes * size)  # zeros, to the end of the group
    filled = (filled + GROUP - 1) & -GROUP
    for plane in range(all_planes):
        part = plane % together
        if part == 0:
            count_rows(width, places, filled, base + plane * size, counts)
        if plane == 0 and not begun:
            start_sums(counts, sums, planes)
        elif plane == all_planes - 1:
            subtract_planes(counts + part * size, plane, sums, planes)
        else:
            add_planes(counts + part * size, plane, sums, planes)


@inner
def _add_numbers(words, places, filled, base, numbers):
    """Add the gathered rows of int8 to numbers."""
    for word in range(words):
        at = numbers + 4 * LANES * word
        total = load_numbers(at)
        for i in range(filled):
            total = add_small(total, base + small_number(places, i) + LANES * word)
        store_numbers(total, at)


@inner
def read_sums(words, planes, sums, source):
    """Sums that are there as numbers, int32, to planes; some behind the last are written too."""
    for word in range(words):
        for plane in range(0, planes, 8):
            at = sums + plane * APART + 8 * word
            collect(source + word * LANES * 4, plane, at, APART)


@inner
def gather(width, table, tile, begin, parts, count, places, planes, sums, scratch):
    """The sums of one place as so many planes at ``sums``.

    ``parts`` are ``count`` parts of its window, in a step whose places start at ``begin``. All
    arrays are addresses. Weights of no planes are rows of int8.
    """
    starts, codes = number(table, STARTS) + 8 * begin, number(table, CODES_AT)
    base = number(table, WEIGHTS) + tile * number(table, WEIGHTS_TILE)
    words, weight_planes = number(table, WORDS), number(table, WEIGHT_PLANES)
    numbers = scratch + NUMBERS_AT * APART
    small = weight_planes == 0
    row = LANES * words if small else 8 * words * weight_planes
    if small:
        for word in range(words):
            store_numbers(zero_numbers(), numbers + 4 * LANES * word)
    begun, filled, i, end, shift, part = False, 0, 0, 0, 0, 0
    while True:
        while i == end and part < count:
            at = parts + PART * part
            i = number(starts, number(at, 0))
            end, shift = number(starts, number(at, 1)), number(at, 2)
            part += 1
        stop = min(end, i + BLOCK - filled)
        for k in range(0, stop - i, 2 * CODES):
            move_codes(codes + 4 * (i + k), places + 4 * (filled + k), shift, row)
            move_codes(codes + 4 * (i + k + CODES), places + 4 * (filled + k + CODES), shift, row)
        filled += stop - i
        i = stop
        ended = i == end and part == count
        if filled == BLOCK or ended:
            if small:
                _add_numbers(words, places, filled, base, numbers)
            else:
                _add_rows(width, table, places, filled, base, sums, planes, scratch, begun)
            begun, filled = True, 0
            if ended:
                break
    if small:
        read_sums(words, planes, sums, numbers)
