"""Records of gates."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Record, choice, fail, real


@dataclass(frozen=True)
class SpatialGate(Record):
    """Mask the least important pixels of a neuron layer, anew in each step of each sample.

    ``sparsity`` is the share of pixels that are masked: they emit no spike and go to rest. A pixel
    is as important as the norm over channels of its quantised potential (``score="current"``), or
    of the membrane that the step before left (``score="prior"``), which is known before the layer
    in front computes.
    """

    sparsity: float = 0.35
    score: str = "current"

    def __post_init__(self) -> None:
        real(self, "sparsity")
        if not 0 <= self.sparsity < 1:
            rule = "must be at least 0 and below 1, the share of pixels to mask."
            raise fail(self, "sparsity", self.sparsity, f"{rule} For example 0.35.")
        choice(self, "score", ("current", "prior"))


@dataclass(frozen=True)
class ChannelGate(Record):
    """Close output channels of a layer, decided in each step by the neurons before it.

    A small linear layer scores every channel from the spatial mean of what ``source`` names: the
    stored ``"membrane"`` of the neuron before the layer, or the layer's ``"input"``. A channel is
    open where its score reaches ``threshold``: a ``"sigmoid"`` for each channel alone, or a
    ``"softmax"`` over all, under which few channels can be open.
    """

    threshold: float = 0.47
    score: str = "sigmoid"
    source: str = "membrane"

    def __post_init__(self) -> None:
        real(self, "threshold")
        if not 0 < self.threshold < 1:
            rule = "must be above 0 and below 1, what a sigmoid can reach. For example 0.47."
            raise fail(self, "threshold", self.threshold, rule)
        choice(self, "score", ("sigmoid", "softmax"))
        choice(self, "source", ("membrane", "input"))
