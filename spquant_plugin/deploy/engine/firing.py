"""A neuron on planes of bits: comparisons, resets and states of all channels as logic on rows.

Rows are as long as registers get: where a layer has few channels, those of several places fill one.
"""

from __future__ import annotations

from .jit import inner
from .layout import (
    APART,
    BITS,
    BREAKS,
    FLIPS,
    LEVEL_BITS,
    NUMBER_BITS,
    NUMBERS,
    ROW,
    START,
    STATES,
)
from .simd import (
    WIDE,
    both,
    differ,
    either,
    everything,
    load,
    most,
    nothing,
    number,
    store,
    without,
)

IN_REGISTERS = 5  # planes of what a neuron becomes


@inner
def _at_least(sums, breaks, planes):
    """Where the sums reach the breaks, whose planes are stored inverted but for the sign's."""
    carry = everything(WIDE)
    for plane in range(planes):
        carry = most(load(WIDE, sums + plane * APART), load(WIDE, breaks + plane * ROW), carry)
    return carry


@inner
def _among(index, bits, planes, here):
    """Those bits of ``here`` where the planes hold this number."""
    for bit in range(bits):
        plane = load(WIDE, planes + bit * APART)
        here = both(here, plane) if index >> bit & 1 else without(here, plane)
    return here


@inner
def _flip(bits, planes, reached):
    """Change the planes of these bits where breaks are reached."""
    while bits:
        if bits & 1:
            store(differ(load(WIDE, planes), reached), planes)
        planes += APART
        bits >>= 1


@inner
def fire(table, sums, planes, breaks, states, numbers):
    """Spikes; the states are moved on. All are addresses of planes.

    What a neuron stores takes as many planes as its state has bits. Planes of its potential's level
    lie behind them, where a mask ranks by it. Registers hold the first of all those.
    """
    bits = number(table, BITS) + number(table, LEVEL_BITS)
    top = sums + (planes - 1) * APART
    full = everything(WIDE)
    store(differ(load(WIDE, top), full), top)
    start = number(table, START)
    spikes = full if start & 1 else nothing(WIDE)
    n0 = full if start & 2 else nothing(WIDE)
    n1 = full if start & 4 else nothing(WIDE)
    n2 = full if start & 8 else nothing(WIDE)
    n3 = full if start & 16 else nothing(WIDE)
    n4 = full if start & 32 else nothing(WIDE)
    for bit in range(IN_REGISTERS, bits):
        plane = full if start >> (1 + bit) & 1 else nothing(WIDE)
        store(plane, states + bit * APART)
    several = number(table, NUMBERS) > 1
    for state in range(number(table, STATES)):
        lanes = _among(state, number(table, BITS), states, full)
        for added in range(number(table, NUMBERS)):
            here = _among(added, number(table, NUMBER_BITS), numbers, lanes) if several else lanes
            for k in range(number(table, BREAKS)):
                reached = both(here, _at_least(sums, breaks, planes))
                breaks += planes * ROW
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
                    if flip >= 2 << IN_REGISTERS:
                        _flip(flip >> (1 + IN_REGISTERS), states + IN_REGISTERS * APART, reached)
    store(n0, states)
    if bits > 1:
        store(n1, states + APART)
    if bits > 2:
        store(n2, states + 2 * APART)
    if bits > 3:
        store(n3, states + 3 * APART)
    if bits > 4:
        store(n4, states + 4 * APART)
    return spikes


@inner
def close(table, spikes, opened, closed, before, states, numbers):
    """What closed channels do instead: their spikes; their states are put in place.

    ``closed`` holds for each state and number a row of spikes, the planes of the next state, and
    those of the potential's level.
    """
    bits = number(table, BITS) + number(table, LEVEL_BITS)
    spikes = both(spikes, opened)
    shut = without(everything(WIDE), opened)
    for bit in range(bits):
        at = states + bit * APART
        store(both(load(WIDE, at), opened), at)
    several = number(table, NUMBERS) > 1
    for state in range(number(table, STATES)):
        lanes = _among(state, number(table, BITS), before, shut)
        for added in range(number(table, NUMBERS)):
            here = _among(added, number(table, NUMBER_BITS), numbers, lanes) if several else lanes
            spikes = either(spikes, both(here, load(WIDE, closed)))
            for bit in range(bits):
                at = states + bit * APART
                row = both(here, load(WIDE, closed + (1 + bit) * ROW))
                store(either(load(WIDE, at), row), at)
            closed += (1 + bits) * ROW
    return spikes
