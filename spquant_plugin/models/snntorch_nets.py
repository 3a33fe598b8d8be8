"""snnTorch's networks: a ``Sequential`` for one time step, with hidden states."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..snntorch.surrogate import ATan
from .neurons import Neurons
from .request import Request
from .sequential import sequential


def leaky() -> nn.Module:
    """The paper's neuron: decay 0.5, threshold 1, hard reset to 0."""
    return snn.Leaky(beta=0.5, spike_grad=ATan(), init_hidden=True, reset_mechanism="zero")


def fault(made: Any) -> str | None:
    """Why these networks cannot use a neuron."""
    name = type(made).__name__
    if not isinstance(made, SpikingNeuron):
        return f"returned {name}, which is no neuron of snnTorch"
    if not made.init_hidden:
        return f"returned {name} with init_hidden=False, which a Sequential cannot call"
    if made.output:
        return f"returned {name} with output=True, which passes a pair to the next layer"
    return None


def build(request: Request) -> nn.Module:
    example = "functools.partial(snn.Leaky, beta=0.9, init_hidden=True)"
    new_neuron = Neurons(request, leaky, fault, example)
    return sequential(request, nn, new_neuron)
