"""Where the kernels find the sizes and arrays of a layer, and how they share working memory.

All of it is one table of int64, arrays as addresses: what numba compiles grows with the number and
kinds of arguments. An address of 0 means that there is none.
"""

from __future__ import annotations

# What the table holds: sizes,
(
    STEPS, SAMPLES, HEIGHT, WIDTH, CHANNELS, KERNEL_Y, KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X,
    GAP_Y, GAP_X, OUT_HEIGHT, OUT_WIDTH, TILES, WORDS, WEIGHT_PLANES, TOGETHER, SMALL, FULL, STATES,
    NUMBERS, BREAKS, BITS, NUMBER_BITS, START, WORK, LEVEL_BITS, MASKED, SCORE_BITS, SCORE_FIRST,
    LOWEST, REST, INPUT_BITS,
) = range(35)  # fmt: skip
# what a layer holds, with the bytes of one tile of it,
(
    WEIGHTS, WEIGHTS_TILE, VALID, SMALL_AT, SMALL_TILE, FULL_AT, FULL_TILE, CLOSED, CLOSED_TILE,
    FLIPS,
) = range(35, 45)  # fmt: skip
# and what it reads and writes in a run.
(
    STARTS, CODES_AT, OPENED, ADDED_AT, SPIKES, STATES_AT, HISTORY, SUMS, SCORED, MASKS, BEGUN,
    INPUT,
) = range(45, 57)  # fmt: skip
# What there is to do: fire on sums of events, write such sums, fire on sums that are there.
FIRE, SUM, FIRE_ON_SUMS = range(3)

# Bytes of the widest row. Where the rows of a layer are shorter, those of places side by side fill
# one, and several planes of weights are counted at once.
ROW = 64
# Bytes between planes in working memory, which is shared by planes of sums, of counts, states with
# the levels of potentials behind them, states before, added numbers, open channels, and numbers (as
# many rows as one place's take).
APART = 2 * ROW
COUNTS, NOW, BEFORE, ADDED, OPEN, NUMBERS_AT, SCRATCH = 33, 41, 51, 56, 62, 63, 79
# Bytes that tell a part of a window.
PART = 24
