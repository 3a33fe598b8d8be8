"""Counting the time steps of a layer that is given one step after the other."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import TimestepError


class StepCounter(nn.Module):
    """Knows in which time step a layer is. Hosts say what brings it to rest.

    ``held`` is what the layer keeps for the rest of the sequence. It is not part of a copy.
    """

    step: int = 0
    held: Any = None

    @property
    def takes_sequences(self) -> bool:
        """Whether the layer is given all steps at once, so that nothing is to be counted."""
        return False

    def next(self, timesteps: int) -> int:
        """The step of this call, from 0; the next call is one step later."""
        step = self.step
        if step >= timesteps:
            raise TimestepError(
                f"received step {step + 1} of a sequence of {timesteps} steps, and the weights of "
                "further steps do not exist. Reset the network before each sequence, and give "
                "timesteps= the number of steps."
            )
        self.step = step + 1
        return step

    def rest(self) -> None:
        """Back to before the first step."""
        self.step = 0
        self.held = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "held": None}  # a graph can neither be copied nor stored

    def extra_repr(self) -> str:
        return f"step={self.step}"
