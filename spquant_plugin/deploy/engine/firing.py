"""A neuron on planes of bits: comparisons, resets and states of all channels as logic on rows."""

from __future__ import annotations

from .jit import inner
from .layout import (
    BITS,
    BREAKS,
    FLIPS,
    NUMBER_BITS,
    NUMBERS,
    START,
    STATES,
)
from .simd import both, differ, either, everything, load, most, nothing, number, store, without


@inner
def _at_least(width, sums, breaks, planes):
    """Where the sums reach the breaks, whose planes are stored inverted but for the sign's."""
    size = 8 * len(width)
    carry = everything(width)
    for plane in range(planes):
        carry = most(load(width, sums + plane * size), load(width, breaks + plane * size), carry)
    return carry


@inner
def _among(width, index, bits, planes, here):
    """Those bits of ``here`` where the planes hold this number."""
    size = 8 * len(width)
    for bit in range(bits):
        plane = load(width, planes + bit * size)
        here = both(here, plane) if index >> bit & 1 else without(here, plane)
    return here


@inner
def fire(width, table, sums, planes, breaks, states, numbers):
    """Spikes; the states are moved on. All are addresses of planes."""
    size = 8 * len(width)
    top = sums + (planes - 1) * size
    full = everything(width)
    store(differ(load(width, top), full), top)
    start = number(table, START)
    spikes = full if start & 1 else nothing(width)
    n0 = full if start & 2 else nothing(width)
    n1 = full if start & 4 else nothing(width)
    n2 = full if start & 8 else nothing(width)
    n3 = full if start & 16 else nothing(width)
    n4 = full if start & 32 else nothing(width)
    for case in range(number(table, STATES) * number(table, NUMBERS)):
        here = _among(width, case // number(table, NUMBERS), number(table, BITS), states, full)
        if number(table, NUMBERS) > 1:
            here = _among(
                width, case % number(table, NUMBERS), number(table, NUMBER_BITS), numbers, here
            )
        for k in range(number(table, BREAKS)):
            reached = both(here, _at_least(width, sums, breaks, planes))
            breaks += planes * size
            flip = number(number(table, FLIPS), k)
            if flip & 1:
                spikes = differ(spikes, reached)
            if flip & 2:
                n0 = differ(n0, reached)
            if flip & 4:
                n1 = differ(n1, reached)
            if flip > 7:
                if flip & 8:
                    n2 = differ(n2, reached)
                if flip & 16:
                    n3 = differ(n3, reached)
                if flip & 32:
                    n4 = differ(n4, reached)
    store(n0, states)
    if number(table, BITS) > 1:
        store(n1, states + size)
    if number(table, BITS) > 2:
        store(n2, states + 2 * size)
    if number(table, BITS) > 3:
        store(n3, states + 3 * size)
    if number(table, BITS) > 4:
        store(n4, states + 4 * size)
    return spikes


@inner
def close(width, table, spikes, opened, closed, before, states, numbers):
    """What closed channels do instead: their spikes; their states are put in place.

    ``closed`` holds for each state and number a row of spikes and the planes of the next state.
    """
    size = 8 * len(width)
    bits = number(table, BITS)
    spikes = both(spikes, opened)
    shut = without(everything(width), opened)
    for bit in range(bits):
        at = states + bit * size
        store(both(load(width, at), opened), at)
    for case in range(number(table, STATES) * number(table, NUMBERS)):
        here = _among(width, case // number(table, NUMBERS), bits, before, shut)
        if number(table, NUMBERS) > 1:
            here = _among(
                width, case % number(table, NUMBERS), number(table, NUMBER_BITS), numbers, here
            )
        spikes = either(spikes, both(here, load(width, closed)))
        for bit in range(bits):
            at = states + bit * size
            row = both(here, load(width, closed + (1 + bit) * size))
            store(either(load(width, at), row), at)
        closed += (1 + bits) * size
    return spikes
