"""What the kernels need to know of a neuron's pixel mask, and the memory in which they rank."""

from __future__ import annotations

import numpy as np

from ..graph import Neuron, size
from .rows import Words, score_bits

NO_MASK = (0,) * 6


def has_mask(node: Neuron | None) -> bool:
    """Whether any pixel is ever masked."""
    return node is not None and node.pixels is not None and node.pixels.masked > 0


def known_before(node: Neuron | None) -> float:
    """Share of the places that a step leaves out before it sums anything."""
    if node is None or node.pixels is None or node.pixels.score == "current":
        return 0.0
    return min(1.0, node.pixels.masked / size(node.shape[1:]))


def mask_sizes(node: Neuron | None) -> tuple[int, ...]:
    """Planes of the potential's level, masked pixels, what importance is made of, and rest.

    That is the number of planes, the first that counts, and the level that it counts from.
    """
    if node is None or node.pixels is None or not has_mask(node):
        return NO_MASK
    bits = score_bits(node)
    if bits:
        return bits, node.pixels.masked, bits, 0, 0, node.rest
    states = max(1, (node.states - 1).bit_length())
    return 0, node.pixels.masked, states, int(node.remembers), node.lowest, node.rest


def mask_memory(node: Neuron | None, state: Words, begun: Words) -> tuple[Words, Words, Words]:
    """The planes to rank by, room for ranks and masks, and which samples had a step before."""
    none = np.zeros(0, np.uint64)
    if node is None or not has_mask(node):
        return none, none, none
    samples, area, _, words = state.shape
    masks = np.empty((samples, area), np.uint64)
    bits = score_bits(node)
    if bits:  # by this step: there need be none before, and no mask before its sums
        return np.empty((samples, area, bits, words), np.uint64), masks, np.zeros_like(begun)
    return state, masks, begun
