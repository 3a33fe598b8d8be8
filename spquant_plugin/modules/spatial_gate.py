"""The spatial gate as a module: a neuron owns one and calls it in each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..errors import GateError
from ..functional.gates import kept_pixels


class SpatialGate(nn.Module):
    """Picks the pixels of one step that take part, by the levels of the neurons there.

    Hand one to a neuron of this package as ``spatial_gate``, or call it from a neuron of your own:
    levels ``[N, C, *space]`` give a Boolean ``[N, 1, *space]``, false where a pixel is masked.

    >>> gate = SpatialGate(sparsity=0.5)
    >>> gate(torch.tensor([[[1.0, 0.0, 0.0, -1.0]]])).flatten().tolist()
    [True, False, False, True]
    """

    def __init__(self, sparsity: float = 0.35, score: str = "current") -> None:
        super().__init__()
        self.rule = cfg.SpatialGate(sparsity, score)

    @property
    def sparsity(self) -> float:
        """Share of the pixels that is masked."""
        return self.rule.sparsity

    @property
    def score(self) -> str:
        """What ranks the pixels: the ``"current"`` potential or the ``"prior"`` membrane."""
        return self.rule.score

    def forward(self, levels: Tensor, first: Tensor | bool = False) -> Tensor:
        """Mask of one step; where ``first`` is true nothing is known yet, so nothing is masked."""
        if levels.ndim < 3:
            raise GateError(
                f"SpatialGate: received levels of shape {tuple(levels.shape)}: must be "
                "[N, C, ...] with at least one axis of space. Leave layers without space ungated."
            )
        if first is True:
            return torch.ones_like(levels[:, :1], dtype=torch.bool)
        kept = kept_pixels(levels, self.sparsity)
        return kept if first is False else kept | first

    def extra_repr(self) -> str:
        return f"sparsity={self.sparsity:g}, score={self.score!r}"


# What a neuron takes: the gate, or the record that describes one.
_SpatialGate = SpatialGate | cfg.SpatialGate
