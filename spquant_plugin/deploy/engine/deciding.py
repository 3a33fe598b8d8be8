"""Which channels are open: sums of levels over space, weighed and compared, for all samples."""

from __future__ import annotations

import numpy as np
from numba import prange

from .counting import BLOCK, GROUP, PLANES, count_rows
from .jit import inner, kernel
from .lanes import add_times, at_least, spread, zero_numbers
from .layout import APART, ROW
from .simd import CODES, LANES, small_number


@inner
def _add_planes(planes, counts, words, first, place, total, targets):
    """Add words of counts, in so many planes, to numbers.

    ``place`` is where the first word lies among ``total``, those of each bit of a level.
    """
    for word in range(words):
        bit = (place + word) // total - first
        target = targets + 4 * LANES * ((place + word) % total)
        if bit >= 0:
            for plane in range(planes):
                spread(counts + plane * APART + 8 * word, 1, 1 << (plane + bit), target)


@inner
def _sum_levels(width, start, area, bits, words, first, places, counts, totals):
    """Add up levels of so many places, whose bits before ``first`` do not count."""
    gap = 8 * bits * words
    for begin in range(0, area, BLOCK):
        rows = min(area - begin, BLOCK)
        whole = rows & -GROUP
        for word in range(0, bits * words, len(width)):
            base = start + begin * gap + 8 * word
            several = min(len(width), bits * words - word)
            if whole:
                count_rows(width, places, whole, base, counts)
                _add_planes(PLANES, counts, several, first, word, words, totals)
            for i in range(whole, rows):
                _add_planes(1, base + i * gap, several, first, word, words, totals)


@kernel
def decide(width, history, first, offset, weights, thresholds, opened):
    """Open channels ``[samples, words]`` by levels ``[samples, places, bits, words]``.

    A level is the number in the bits from ``first`` on; ``offset`` is added to each channel's sum.
    ``weights`` are int8 ``[channels, lanes]``, ``thresholds`` int32 ``[lanes]``.
    """
    count, area, bits, words = history.shape
    gap = 8 * bits * words
    for job in prange(count):
        places = np.empty(BLOCK + 2 * CODES, np.int32)
        for i in range(BLOCK):
            places[i] = i * gap
        room = np.empty((PLANES * APART + ROW) // 8, np.uint64)
        counts = (room.ctypes.data + ROW - 1) & -ROW
        totals = np.full(LANES * words, offset, np.int32)
        start = history.ctypes.data + job * area * gap
        _sum_levels(
            width, start, area, bits, words, first, places.ctypes.data, counts, totals.ctypes.data
        )
        for word in range(opened.shape[1]):
            scores = zero_numbers()
            for channel in range(weights.shape[0]):
                at = weights.ctypes.data + channel * weights.shape[1] + LANES * word
                scores = add_times(scores, at, small_number(totals.ctypes.data, channel))
            found = at_least(scores, thresholds.ctypes.data + 4 * LANES * word)
            opened[job, word] = found
