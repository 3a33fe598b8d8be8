"""A network of either host as one function of whole sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import spquant_plugin as spq


class Sequence(nn.Module):
    """Frames ``[T, B, ...]`` to outputs ``[T, B, classes]``, from rest, for either host.

    A network of SpikingJelly takes all steps at once, one of snnTorch is run over them. As a module
    of its own it can be wrapped in ``DistributedDataParallel``; the network in it keeps its keys.

    >>> net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=4, width=0.25)
    >>> Sequence(net)(torch.zeros(3, 2, 2, 16, 16)).shape
    torch.Size([3, 2, 4])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.at_once = takes_sequences(net)

    def forward(self, frames: Tensor) -> Tensor:
        spq.reset(self.net)
        if self.at_once:
            return self.net(frames)
        if self.net._compiled_call_impl is not None:  # what is compiled is a call of one step
            return torch.stack([self.net(frame) for frame in frames])
        return spq.snntorch.run(self.net, frames)


def takes_sequences(net: nn.Module) -> bool:
    """Whether one call takes all steps, as SpikingJelly's networks in multi-step mode do."""
    return any(getattr(module, "step_mode", "s") == "m" for module in net.modules())


def first_call(net: nn.Module, frames: Tensor) -> Tensor:
    """What one call of the network takes of frames ``[T, B, ...]``: all of them, or one step."""
    return frames if takes_sequences(net) else frames[0]
