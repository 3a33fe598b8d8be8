"""The sums of one place of a layer from the events in its window.

Each event is the number of a row of weights. Rows hold one bit of the weight of every output
channel, a plane for each bit of the weights: they are counted, and the counts of all planes put
together in two's complement, so that sums lie in planes too. Wide weights are rows of int8.
"""

from __future__ import annotations

from .counting import BLOCK, GROUP, PLANES, add_planes, count_rows, subtract_planes
from .jit import inner
from .lanes import add_small, collect, load_numbers, store_numbers
from .layout import (
    CHANNELS,
    CODES_AT,
    COUNTS,
    FULL,
    GAP_X,
    GAP_Y,
    HEIGHT,
    KERNEL_X,
    KERNEL_Y,
    NUMBERS_AT,
    SMALL,
    STARTS,
    WEIGHT_PLANES,
    WIDTH,
)
from .simd import (
    CODES,
    LANES,
    fill_codes,
    load,
    move_codes,
    nothing,
    number,
    small_number,
    store,
)


@inner
def _add_rows(width, table, places, filled, base, counts, sums, planes, begun):
    """Count the gathered rows of every plane of weights, and add them to the sums."""
    size = 8 * len(width)
    rows = number(table, KERNEL_Y) * number(table, KERNEL_X) * number(table, CHANNELS)
    fill_codes(places + 4 * filled, rows * size)  # rows of zeros, to the end of the group
    filled = (filled + GROUP - 1) & -GROUP
    last = number(table, WEIGHT_PLANES) - 1
    for plane in range(last + 1):
        first = plane == 0 and not begun
        count_rows(width, places, filled, base, sums if first else counts)
        if first:
            for empty in range(PLANES, planes):
                store(nothing(width), sums + empty * size)
        elif plane == last:
            subtract_planes(width, counts, plane, sums, planes)
        else:
            add_planes(width, counts, plane, sums, planes)
        base += (rows + 1) * size


@inner
def _add_numbers(width, places, filled, base, numbers):
    """Add the gathered rows of int8 to numbers."""
    for word in range(len(width)):
        at = numbers + 4 * LANES * word
        total = load_numbers(at)
        for i in range(filled):
            total = add_small(total, base + small_number(places, i) + LANES * word)
        store_numbers(total, at)


@inner
def _part(table, line, top, left, part):
    """Where a part of a window begins and ends in ``starts``, and what makes its codes row numbers.

    A part is a line of the window; a single place of it where there are gaps between places.
    """
    if number(table, GAP_X) == 1:
        ky, kx, wide = part, 0, number(table, KERNEL_X)
    else:
        ky, kx, wide = part // number(table, KERNEL_X), part % number(table, KERNEL_X), 1
    y = top + ky * number(table, GAP_Y)
    x = left + kx * number(table, GAP_X)
    first, last = max(x, 0), min(x + wide, number(table, WIDTH))
    if y < 0 or y >= number(table, HEIGHT) or first >= last:
        return 0, 0, 0
    row = (line + y) * number(table, WIDTH)
    return (
        row + first,
        row + last,
        (ky * number(table, KERNEL_X) + kx - x) * number(table, CHANNELS),
    )


@inner
def read_sums(width, planes, sums, source):
    """Sums that are there as numbers, int32, to planes."""
    size = 8 * len(width)
    for word in range(len(width)):
        for plane in range(planes):
            collect(source + word * 64 * 4, plane, sums + plane * size + 8 * word)


@inner
def _widen(width, sums, planes, wanted):
    """Sums of so many planes as sums of more: their sign goes on."""
    size = 8 * len(width)
    sign = load(width, sums + (planes - 1) * size)
    for plane in range(planes, wanted):
        store(sign, sums + plane * size)


@inner
def gather(width, table, line, top, left, places, base, scratch):
    """The sums of one place as planes at ``scratch``; returns how many planes.

    The window begins at ``top`` and ``left``; all arrays are addresses. Weights of no planes are
    rows of int8.
    """
    size = 8 * len(width)
    starts, codes = number(table, STARTS), number(table, CODES_AT)
    counts, numbers = scratch + COUNTS * size, scratch + NUMBERS_AT * size
    small = number(table, WEIGHT_PLANES) == 0
    row = LANES * len(width) if small else size
    if small:
        for word in range(NUMBERS_AT, NUMBERS_AT + 32):
            store(nothing(width), scratch + word * size)
    planes = number(table, SMALL)
    parts = (
        number(table, KERNEL_Y)
        if number(table, GAP_X) == 1
        else number(table, KERNEL_Y) * number(table, KERNEL_X)
    )
    blocks, filled, i, end, shift, part = 0, 0, 0, 0, 0, 0
    while True:
        while i == end and part < parts:
            first, last, shift = _part(table, line, top, left, part)
            i, end = number(starts, first), number(starts, last)
            part += 1
        stop = min(end, i + BLOCK - filled)
        for k in range(0, stop - i, CODES):
            move_codes(codes + 4 * (i + k), places + 4 * (filled + k), shift, row)
        filled += stop - i
        i = stop
        ended = i == end and part == parts
        if filled == BLOCK or ended:
            if blocks == 1:
                _widen(width, scratch, planes, number(table, FULL))
                planes = number(table, FULL)
            if small:
                _add_numbers(width, places, filled, base, numbers)
            else:
                _add_rows(width, table, places, filled, base, counts, scratch, planes, blocks)
            blocks, filled = blocks + 1, 0
            if ended:
                break
    if small:
        read_sums(width, planes, scratch, numbers)
    return planes
