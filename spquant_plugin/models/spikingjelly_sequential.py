"""SpikingJelly's VGGs, small network and MLP, which take whole sequences."""

from __future__ import annotations

from spikingjelly.activation_based import functional, layer
from torch import nn

from .request import Request
from .sequential import sequential
from .spikingjelly_parts import neurons


def build(request: Request) -> nn.Module:
    network = sequential(request, layer, neurons(request))
    functional.set_step_mode(network, "m")
    return network
