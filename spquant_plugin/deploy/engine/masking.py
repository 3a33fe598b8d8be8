"""Pixel masks: which places of a step are left out, by the levels of all their channels.

Importance is a sum of squares. Of levels in planes of bits it is made of counts of bits: those of
two planes at once times both places' values, for each pair of planes.
"""

from __future__ import annotations

import numpy as np

from .jit import inner
from .layout import (
    BEGUN,
    BITS,
    HISTORY,
    LEVEL_BITS,
    LOWEST,
    MASKED,
    MASKS,
    OUT_HEIGHT,
    OUT_WIDTH,
    REST,
    ROW,
    SAMPLES,
    SCORE_BITS,
    SCORE_FIRST,
    SCORED,
    SPIKES,
    STATES_AT,
    TILES,
    VALID,
    WORDS,
)
from .simd import number, ones, write_number


@inner
def _area(table):
    return number(table, OUT_HEIGHT) * number(table, OUT_WIDTH)


@inner
def _add_counts(area, gap, one, other, valid, factor, masks):
    """Add, to each place's number, how many of its bits are set in both words, times the factor."""
    for place in range(area):
        found = number(one, place * gap) & number(other, place * gap) & valid
        total = number(masks, place) + factor * ones(np.uint64(found))
        write_number(total, masks + 8 * place)


@inner
def _rank(table, sample, masks):
    """Write the importance of each place of a sample, without what all places have in common."""
    area, row = _area(table), number(table, WORDS)
    words, bits = number(table, TILES) * row, number(table, SCORE_BITS)
    first, lowest = number(table, SCORE_FIRST), number(table, LOWEST)
    planes = number(table, SCORED) + 8 * sample * area * bits * words
    for place in range(area):
        write_number(0, masks + 8 * place)
    for word in range(words):
        valid = number(number(table, VALID) + word // row * ROW, word % row)
        for b in range(first, bits):
            for c in range(b, bits):
                factor = 2 << (b + c - 2 * first)
                if b == c:
                    factor = (1 << 2 * (b - first)) + (2 * lowest << (b - first))
                one, other = planes + 8 * (b * words + word), planes + 8 * (c * words + word)
                _add_counts(area, bits * words, one, other, valid, factor, masks)


@inner
def _mark_least(masks, area, count):
    """Replace importance by 1 at that many least important places, by 0 elsewhere.

    Of equally important places those of lowest index go first. Halving finds the importance of the
    last that goes.
    """
    low = high = number(masks, 0)
    for place in range(area):
        score = number(masks, place)
        low, high = min(low, score), max(high, score)
    while low < high:
        middle = (low + high) >> 1
        reached = 0
        for place in range(area):
            reached += number(masks, place) <= middle
        if reached >= count:
            high = middle
        else:
            low = middle + 1
    left = count
    for place in range(area):
        left -= number(masks, place) < low
    for place in range(area):
        score = number(masks, place)
        equal = score == low and left > 0
        left -= equal
        write_number(1 if equal or score < low else 0, masks + 8 * place)


@inner
def _clear(table, step, sample, masks):
    """No spikes, and rest, of the neurons at masked places."""
    area, bits, rest = _area(table), number(table, BITS), number(table, REST)
    words = number(table, TILES) * number(table, WORDS)
    place = (step * number(table, SAMPLES) + sample) * area
    for i in range(area):
        if number(masks, i):
            spikes = number(table, SPIKES) + 8 * (place + i) * words
            state = number(table, STATES_AT) + 8 * (sample * area + i) * bits * words
            past = number(table, HISTORY) + 8 * (place + i) * bits * words
            for word in range(words):
                write_number(0, spikes + 8 * word)
            for at in range(bits * words):
                resting = -(rest >> (at // words) & 1)
                write_number(resting, state + 8 * at)
                if number(table, HISTORY):
                    write_number(resting, past + 8 * at)


@inner
def is_masked(table, sample, place):
    """Whether a place is left out of the step that comes, if that is known before its sums."""
    if number(table, MASKED) == 0 or number(table, LEVEL_BITS):
        return False
    return number(number(table, MASKS), sample * _area(table) + place) != 0


@inner
def mask_places(table, step, sample):
    """Finish a step, -1 for what was before the first: rank places, and clear the masked ones.

    By stored levels it is known then what the next step masks, which is nothing after rest.
    """
    area, current = _area(table), number(table, LEVEL_BITS) > 0
    masks = number(table, MASKS) + 8 * sample * area
    if step >= 0 and not current:
        _clear(table, step, sample, masks)
    if step >= 0 or number(number(table, BEGUN), sample):
        _rank(table, sample, masks)
        _mark_least(masks, area, number(table, MASKED))
    else:
        for place in range(area):
            write_number(0, masks + 8 * place)
    if step >= 0 and current:
        _clear(table, step, sample, masks)
