"""What every neuron does for gates: it asks its own spatial gate, and tells channel gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .spatial_gate import SpatialGate


class GateSource(nn.Module):
    """Base of neurons that gates read."""

    spatial_gate: SpatialGate | None
    # For channel gates: set by one that reads this neuron; what the last forward stored, summed
    # over space; and whether it started from a state that this neuron had not left itself.
    watched = False
    level_sums: Tensor | None = None
    level_area = 1
    began = True
    _left: object = None
    _left_graph = False

    def levels(self, potential: Tensor) -> Tensor:
        """Levels of a potential."""
        raise NotImplementedError

    def stored_levels(self, membrane: Tensor) -> Tensor:
        """Levels that a stored membrane holds."""
        raise NotImplementedError

    def kept_pixels(
        self, potential: Tensor, membrane: Tensor, first: Tensor | bool
    ) -> Tensor | None:
        """Pixels that take part in this step, or None where no gate asks.

        ``membrane`` is what the step before left, and ``first`` says that there was none.
        """
        gate = self.spatial_gate
        if gate is None:
            return None
        if gate.score == "current":
            return gate(self.levels(potential))
        return gate(self.stored_levels(membrane), first)

    def _leave(self, state: Tensor) -> None:
        """Remember the state that a step left. The hosts detach it in place, so its graph too."""
        self._left, self._left_graph = state, state.requires_grad

    def _is_own(self, state: object) -> bool:
        """Whether a state is what the last step left, graph included, so that time goes on."""
        own = isinstance(state, Tensor) and state is self._left
        return own and state.requires_grad == self._left_graph  # type: ignore[attr-defined]

    @torch.no_grad()
    def _tell(self, steps: list[Tensor], *, sequence: bool, began: bool) -> None:
        """Keep for channel gates what each step stored, ``[N, C, *space]``, summed over space.

        Step by step, because only the sums need to stand side by side.
        """
        sums = [_over_space(self.stored_levels(membrane)) for membrane in steps]
        self.level_sums = torch.stack(sums) if sequence else sums[0]
        self.level_area = steps[0].shape[2:].numel()
        self.began = began

    def __getstate__(self) -> dict[str, Any]:
        # A copy goes on from a state of its own, and tells its gates when it has run.
        return {**self.__dict__, "_left": None, "level_sums": None}


def _over_space(levels: Tensor) -> Tensor:
    """Sums ``[N, C]`` of the whole numbers ``[N, C, *space]``, exact for any number of pixels."""
    if levels.ndim < 3:
        return levels
    pixels = levels.flatten(2)
    # A level has up to 8 bits, so this many pixels stay below the 2**24 that float32 can hold.
    return pixels.sum(-1, dtype=None if pixels.shape[-1] <= 2**16 else torch.float64)
