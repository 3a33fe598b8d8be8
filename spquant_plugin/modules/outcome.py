"""What one step of a neuron comes to, for who has to know it value by value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outcome(NamedTuple):
    """What a neuron makes of one step: its spikes, the stored levels, what it compared, and the
    levels of the potential before any reset."""

    spikes: Tensor
    levels: Tensor
    fired: Tensor
    scores: Tensor
