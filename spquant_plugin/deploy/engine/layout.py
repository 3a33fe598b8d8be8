"""Where the kernels find the sizes and arrays of a layer, and how they share working memory.

All of it is one table of int64, arrays as addresses: what numba compiles grows with the number and
kinds of arguments. An address of 0 means that there is none.
"""

from __future__ import annotations

# What the table holds: sizes,
(
    STEPS, SAMPLES, HEIGHT, WIDTH, CHANNELS, KERNEL_Y, KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X,
    GAP_Y, GAP_X, OUT_HEIGHT, OUT_WIDTH, TILES, WEIGHT_PLANES, SMALL, FULL, STATES, NUMBERS, BREAKS,
    BITS, NUMBER_BITS, START, WORK,
) = range(26)  # fmt: skip
# what a layer holds, with the bytes of one tile of it,
(
    WEIGHTS, WEIGHTS_TILE, VALID, SMALL_AT, SMALL_TILE, FULL_AT, FULL_TILE, CLOSED, CLOSED_TILE,
    FLIPS,
) = range(26, 36)  # fmt: skip
# and what it reads and writes in a run.
STARTS, CODES_AT, OPENED, ADDED_AT, SPIKES, STATES_AT, HISTORY, SUMS = range(36, 44)
# What there is to do: fire on sums of events, write such sums, fire on sums that are there.
FIRE, SUM, FIRE_ON_SUMS = range(3)

# Rows of working memory: planes of sums, of counts, states, states before, added numbers, numbers.
COUNTS, NOW, BEFORE, ADDED, NUMBERS_AT, SCRATCH = 33, 40, 45, 50, 56, 88
