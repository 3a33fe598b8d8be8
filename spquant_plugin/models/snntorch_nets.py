"""snnTorch's networks: a ``Sequential`` for one time step, with hidden states."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..snntorch.surrogate import ATan
from .hidden import let_fire
from .neurons import Neurons
from .plans import CONVOLUTIONAL, MLP
from .request import Request
from .stack import Stack


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
    return mlp(request, new_neuron) if request.name == "mlp" else convolutional(request, new_neuron)


def convolutional(request: Request, new_neuron: Neurons) -> nn.Module:
    stack = Stack()
    channels, height, width = request.in_channels, request.height, request.width
    for step in CONVOLUTIONAL[request.name]:
        if isinstance(step, int):
            before, channels = channels, request.channels(step)
            stack.add("conv", nn.Conv2d(before, channels, 3, padding=1, bias=False))
            stack.add("norm", nn.BatchNorm2d(channels))
            stack.add("neuron", new_neuron())
        else:
            stack.add("pool", nn.AvgPool2d(2))
            height, width = height // 2, width // 2
    stack.add("flatten", nn.Flatten())
    stack.add("fc", nn.Linear(channels * height * width, request.num_classes))
    return stack.network()


def mlp(request: Request, new_neuron: Neurons) -> nn.Module:
    stack = Stack().add("flatten", nn.Flatten())
    features = request.in_channels * request.height * request.width
    for count in MLP:
        before, features = features, request.channels(count)
        stack.add("fc", let_fire(nn.Linear(before, features)))
        stack.add("neuron", new_neuron())
    stack.add("fc", nn.Linear(features, request.num_classes))
    return stack.network()
