"""VGG and its like: 3x3 convolutions, average pools behind neurons, one linear layer at the end."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .plans import CONVOLUTIONAL
from .request import Request
from .spikingjelly_parts import add_conv, multi_step, neurons
from .stack import Stack


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)
    stack = Stack()
    channels, height, width = request.in_channels, request.height, request.width
    for step in CONVOLUTIONAL[request.name]:
        if isinstance(step, int):
            before, channels = channels, request.channels(step)
            add_conv(stack, before, channels, new_neuron)
        else:
            stack.add("pool", layer.AvgPool2d(2))
            height, width = height // 2, width // 2
    stack.add("flatten", layer.Flatten())
    stack.add("fc", layer.Linear(channels * height * width, request.num_classes))
    return multi_step(stack)
