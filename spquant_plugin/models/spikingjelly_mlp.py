"""Linear layers with neurons between, for anything that has no use for space."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .hidden import let_fire
from .plans import MLP
from .request import Request
from .spikingjelly_parts import multi_step, neurons
from .stack import Stack


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)
    stack = Stack().add("flatten", layer.Flatten())
    features = request.in_channels * request.height * request.width
    for count in MLP:
        before, features = features, request.channels(count)
        stack.add("fc", let_fire(layer.Linear(before, features)))
        stack.add("neuron", new_neuron())
    stack.add("fc", layer.Linear(features, request.num_classes))
    return multi_step(stack)
