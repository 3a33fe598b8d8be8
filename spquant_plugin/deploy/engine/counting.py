"""Counting rows of bits: how often each bit is set, all channels at once, in planes.

A count of each channel is kept as planes: plane ``p`` is a row that holds bit ``p`` of all counts.
Adding a row to counts is then a few logic operations on whole registers, whatever the number of
channels, and carries are put off: sixteen rows are added with fifteen full adders.
"""

from __future__ import annotations

from .jit import inner
from .simd import both, differ, everything, load, most, nothing, odd, small_number, store

# Rows that are counted at a time, and the planes that hold so many.
BLOCK = 112
PLANES = 7
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
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = nothing(width)
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
        p6 = differ(p6, both(p5, b))
        p5 = differ(p5, b)
        i += GROUP
    size = 8 * len(width)
    store(p0, target)
    store(p1, target + size)
    store(p2, target + 2 * size)
    store(p3, target + 3 * size)
    store(p4, target + 4 * size)
    store(p5, target + 5 * size)
    store(p6, target + 6 * size)


@inner
def add_planes(width, counts, shift, sums, planes):
    """Add ``counts << shift`` to sums of so many planes; both are addresses."""
    size = 8 * len(width)
    carry = nothing(width)
    for p in range(shift, min(planes, shift + PLANES)):
        a, c = load(width, sums + p * size), load(width, counts + (p - shift) * size)
        store(odd(a, c, carry), sums + p * size)
        carry = most(a, c, carry)
    for p in range(shift + PLANES, planes):
        a = load(width, sums + p * size)
        store(differ(a, carry), sums + p * size)
        carry = both(a, carry)


@inner
def subtract_planes(width, counts, shift, sums, planes):
    """Subtract ``counts << shift`` from sums of so many planes, in two's complement."""
    size = 8 * len(width)
    full = everything(width)
    carry = full
    for p in range(shift, min(planes, shift + PLANES)):
        a = load(width, sums + p * size)
        c = differ(load(width, counts + (p - shift) * size), full)
        store(odd(a, c, carry), sums + p * size)
        carry = most(a, c, carry)
    for p in range(shift + PLANES, planes):
        a = load(width, sums + p * size)
        store(odd(a, full, carry), sums + p * size)
        carry = most(a, full, carry)
