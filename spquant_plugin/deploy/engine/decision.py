"""A channel decision, ready for its kernel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import ChannelDecision, Node, Shape, size
from .deciding import decide
from .rows import LANES, WIDEST, Words

LARGEST = 2**31 - 1  # of what the kernel adds up
HEAVIEST = 128  # magnitude of a weight


class Decision:
    """Weights and thresholds, one behind the other for the channels that are decided on."""

    def __init__(self, node: ChannelDecision) -> None:
        outputs, inputs = node.weight.shape
        self.words = -(-outputs // LANES)
        self.weights: NDArray[np.int8] = np.zeros((inputs, LANES * self.words), np.int8)
        self.weights[:, :outputs] = node.weight.numpy().T
        self.thresholds = np.full(LANES * self.words, LARGEST, np.int32)
        limits = node.threshold.numpy().clip(-LARGEST - 1, LARGEST)
        self.thresholds[:outputs] = limits

    @staticmethod
    def knows(node: ChannelDecision, source: Node) -> bool:
        """Whether no score of these levels can leave 32 bits, and levels are spikes or stored."""
        if node.reads != "membrane" and not source.binary:
            return False
        low, high = (getattr(source, end) for end in _ends(node))
        most = size(source.shape[1:]) * max(-low, high)
        return bool(HEAVIEST * node.weight.shape[1] * most < LARGEST)

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes + self.thresholds.nbytes

    def restored(self, shape: Shape) -> Tensor:
        """The decision's own weights, int8 in this shape."""
        return torch.from_numpy(self.weights[:, : shape[0]].T.copy())

    def open(self, levels: Words, first: int, lowest: int) -> Words:
        """Open channels ``[B, words]`` by levels ``[B, places, bits, words]``.

        A level is the number in the bits from ``first`` on, plus ``lowest``.
        """
        batch, area, bits, words = levels.shape
        width = next(width for width in (WIDEST, 4, 2, 1) if bits * words % width == 0)
        found = np.empty((batch, self.words), np.uint64)
        decide(
            (0,) * width,
            levels,
            first,
            area * lowest,
            self.weights,
            self.thresholds,
            found,
        )
        return found


def _ends(node: ChannelDecision) -> tuple[str, str]:
    return ("lowest", "highest") if node.reads == "membrane" else ("low", "high")
