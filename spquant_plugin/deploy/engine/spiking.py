"""From spikes and counts as rows of bits to lists of events and back, and pools of spikes.

An event is the number ``x * channels + channel`` in its line; ``starts`` holds where the events of
each place ``[steps * samples, height, width]`` begin. A count is an event that many times, so that
a sum pool of spikes is one list after the other.
"""

from __future__ import annotations

from numba import prange

from .jit import inner, kernel
from .simd import list_bits, ones, rest_of, trailing

# What `shape` holds for a pool; the plain list of a value is a pool of one place.
(
    COUNT, HEIGHT, WIDTH, CHANNELS, KERNEL_Y, KERNEL_X, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, GAP_Y,
    GAP_X, OUT_HEIGHT, OUT_WIDTH, BITS,
) = range(15)  # fmt: skip


@inner
def _inside(shape, y, x, ky, kx, line):
    """The place of the input at ``ky``, ``kx`` of the window of an output, or -1 outside.

    ``line`` is the first line of the image among all lines.
    """
    y = y * shape[STRIDE_Y] - shape[PAD_Y] + ky * shape[GAP_Y]
    x = x * shape[STRIDE_X] - shape[PAD_X] + kx * shape[GAP_X]
    if y < 0 or y >= shape[HEIGHT] or x < 0 or x >= shape[WIDTH]:
        return -1
    return (line + y) * shape[WIDTH] + x


@inner
def _list_word(word, first, codes, at):
    """Write the events of a word; returns where the next go."""
    if not list_bits(word, first, codes.ctypes.data + 4 * at):
        place = at
        while word:
            codes[place] = first + trailing(word)
            place += 1
            word = rest_of(word)
    return at + ones(word)


@kernel
def count_events(shape, words, starts):
    """Write behind ``starts[0]`` how many events each place has in its window.

    A place's words are those of BITS planes: an event of plane ``b`` counts ``2**b`` times.
    """
    across = words.shape[1] // shape[BITS]
    for job in prange(shape[COUNT] * shape[OUT_HEIGHT]):
        y = job % shape[OUT_HEIGHT]
        line = job // shape[OUT_HEIGHT] * shape[HEIGHT]
        for x in range(shape[OUT_WIDTH]):
            spikes = 0
            for ky in range(shape[KERNEL_Y]):
                for kx in range(shape[KERNEL_X]):
                    source = _inside(shape, y, x, ky, kx, line)
                    if source >= 0:
                        for bit in range(shape[BITS]):
                            for word in range(across):
                                spikes += ones(words[source, bit * across + word]) << bit
            starts[job * shape[OUT_WIDTH] + x + 1] = spikes


@kernel
def list_events(shape, words, starts, codes):
    """Write the events of each place to where ``starts`` says."""
    across = words.shape[1] // shape[BITS]
    for job in prange(shape[COUNT] * shape[OUT_HEIGHT]):
        y = job % shape[OUT_HEIGHT]
        line = job // shape[OUT_HEIGHT] * shape[HEIGHT]
        for x in range(shape[OUT_WIDTH]):
            at = starts[job * shape[OUT_WIDTH] + x]
            for ky in range(shape[KERNEL_Y]):
                for kx in range(shape[KERNEL_X]):
                    source = _inside(shape, y, x, ky, kx, line)
                    if source >= 0:
                        first = x * shape[CHANNELS]
                        for bit in range(shape[BITS]):
                            for word in range(across):
                                found = words[source, bit * across + word]
                                for _ in range(1 << bit):
                                    at = _list_word(found, first + 64 * word, codes, at)


@kernel
def any_spike(shape, words, pooled):
    """A max pool of spikes: the OR of each window."""
    for job in prange(shape[COUNT] * shape[OUT_HEIGHT]):
        y = job % shape[OUT_HEIGHT]
        line = job // shape[OUT_HEIGHT] * shape[HEIGHT]
        for x in range(shape[OUT_WIDTH]):
            for ky in range(shape[KERNEL_Y]):
                for kx in range(shape[KERNEL_X]):
                    source = _inside(shape, y, x, ky, kx, line)
                    if source >= 0:
                        for word in range(words.shape[1]):
                            pooled[job * shape[OUT_WIDTH] + x, word] |= words[source, word]


@kernel
def sum_counts(counts, starts):
    """Write behind ``starts[0]`` how many events the numbers of each place are."""
    for place in prange(counts.shape[0]):
        total = 0
        for channel in range(counts.shape[1]):
            total += counts[place, channel]
        starts[place + 1] = total


@kernel
def list_counts(counts, width, starts, codes):
    """Events of whole numbers ``[places, channels]``: each as many times as it counts."""
    for place in prange(counts.shape[0]):
        at = starts[place]
        first = place % width * counts.shape[1]
        for channel in range(counts.shape[1]):
            for _ in range(counts[place, channel]):
                codes[at] = first + channel
                at += 1


@kernel
def count_codes(starts, codes, width, counts):
    """Whole numbers ``[steps * samples, places, channels]`` of events."""
    channels = counts.shape[2]
    for place in prange(counts.shape[0] * counts.shape[1]):
        inside = place % counts.shape[1]
        first = inside % width * channels
        for i in range(starts[place], starts[place + 1]):
            counts[place // counts.shape[1], inside, codes[i] - first] += 1
