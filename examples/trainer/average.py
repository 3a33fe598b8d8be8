"""A running average of a network's parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import spquant_plugin as spq


class Average:
    r"""A copy whose parameters follow the network's, :math:`a \leftarrow d\,a + (1-d)\,p`.

    Buffers are copied: the average of two scales that have to be powers of two would be none. Only
    those of the state dict are: states of snnTorch's neurons are buffers too.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        spq.reset(net)
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._follow = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Follow one step of the optimizer."""
        self._follow(list(self.net.parameters()), list(net.parameters()), None)
        own, theirs = stored_buffers(self.net), stored_buffers(net)
        for name, buffer in own.items():
            buffer.copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state)


def stored_buffers(net: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of the state dict, by name."""
    kept = net.state_dict()
    return {name: buffer for name, buffer in net.named_buffers() if name in kept}
