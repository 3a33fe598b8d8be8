"""Potentials of snnTorch's own neurons: each hands the one that it compares to ``fire``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..modules.potential import Keep, Undo, replace_methods


def watch_stock(neuron: nn.Module, keep: Keep) -> Undo:
    """Hand on what the neuron fires by: after a late reset, before one at once."""
    own: Any = neuron
    fire, fire_inhibition = own.fire, own.fire_inhibition

    def firing(mem: Tensor) -> Tensor:
        keep(mem, False)
        return fire(mem)

    def firing_inhibited(batch_size: int, mem: Tensor) -> Tensor:
        keep(mem, False)
        return fire_inhibition(batch_size, mem)

    return replace_methods(neuron, fire=firing, fire_inhibition=firing_inhibited)
