"""Counting rows of bits: how often each bit is set, all channels at once, in planes.

A count of each channel is kept as planes: plane ``p`` is a row that holds bit ``p`` of all counts.
Adding a row to counts is then a few logic operations on whole registers, whatever the number of
channels, and carries are put off: sixteen rows are added with fifteen full adders.

In working memory planes lie APART bytes apart, and what reads or writes them takes the widest row
from wherever a place's part begins: behind that part it finds and leaves what does not matter.
"""

from __future__ import annotations

from .jit import inner
from .layout import APART
from .simd import WIDE, both, differ, everything, load, most, nothing, odd, small_number, store

# Rows that are counted at a time, and the planes that hold so many.
BLOCK = 240
PLANES = 8
GROUP = 16


@inner
def _pair(width, low, base, places, i):
    """A plane and two rows: the new plane and what it carries."""
    first = load(width, base + small_number(places, i))
    second = load(width, base + small_number(places, i + 1))
    return odd(low, first, second), most(low, first, second)


@inner
def _carry(low, first, second):
    """A plane and two carries to it: the new plane and what it carries."""
    return odd(low, first, second), most(low, first, second)


@inner
def count_rows(width, places, rows, base, target):
    """Counts of the rows ``base + places[i]`` (a byte offset each), as planes at ``target``.

    Their number is a multiple of GROUP, at most BLOCK; ``places`` is the address of int32.
    """
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = nothing(width)
    i = 0
    while i < rows:
        p0, a = _pair(width, p0, base, places, i)
        p0, b = _pair(width, p0, base, places, i + 2)
        p1, c = _carry(p1, a, b)
        p0, a = _pair(width, p0, base, places, i + 4)
        p0, b = _pair(width, p0, base, places, i + 6)
        p1, d = _carry(p1, a, b)
        p2, e = _carry(p2, c, d)
        p0, a = _pair(width, p0, base, places, i + 8)
        p0, b = _pair(width, p0, base, places, i + 10)
        p1, c = _carry(p1, a, b)
        p0, a = _pair(width, p0, base, places, i + 12)
        p0, b = _pair(width, p0, base, places, i + 14)
        p1, d = _carry(p1, a, b)
        p2, f = _carry(p2, c, d)
        p3, a = _carry(p3, e, f)
        b = both(p4, a)
        p4 = differ(p4, a)
        a = both(p5, b)
        p5 = differ(p5, b)
        p7 = differ(p7, both(p6, a))
        p6 = differ(p6, a)
        i += GROUP
    store(p0, target)
    store(p1, target + APART)
    store(p2, target + 2 * APART)
    store(p3, target + 3 * APART)
    store(p4, target + 4 * APART)
    store(p5, target + 5 * APART)
    store(p6, target + 6 * APART)
    store(p7, target + 7 * APART)


@inner
def start_sums(counts, sums, planes):
    """Sums of so many planes that are the counts."""
    for p in range(min(planes, PLANES)):
        store(load(WIDE, counts + p * APART), sums + p * APART)
    for p in range(PLANES, planes):
        store(nothing(WIDE), sums + p * APART)


@inner
def add_planes(counts, shift, sums, planes):
    """Add ``counts << shift`` to sums of so many planes; both are addresses."""
    carry = nothing(WIDE)
    for p in range(shift, min(planes, shift + PLANES)):
        a, c = load(WIDE, sums + p * APART), load(WIDE, counts + (p - shift) * APART)
        store(odd(a, c, carry), sums + p * APART)
        carry = most(a, c, carry)
    for p in range(shift + PLANES, planes):
        a = load(WIDE, sums + p * APART)
        store(differ(a, carry), sums + p * APART)
        carry = both(a, carry)


@inner
def subtract_planes(counts, shift, sums, planes):
    """Subtract ``counts << shift`` from sums of so many planes, in two's complement."""
    full = everything(WIDE)
    carry = full
    for p in range(shift, min(planes, shift + PLANES)):
        a = load(WIDE, sums + p * APART)
        c = differ(load(WIDE, counts + (p - shift) * APART), full)
        store(odd(a, c, carry), sums + p * APART)
        carry = most(a, c, carry)
    for p in range(shift + PLANES, planes):
        a = load(WIDE, sums + p * APART)
        store(odd(a, full, carry), sums + p * APART)
        carry = most(a, full, carry)
