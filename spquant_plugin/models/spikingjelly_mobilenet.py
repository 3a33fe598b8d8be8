"""MobileNet-Light: depthwise 3x3 and pointwise 1x1 convolutions, a neuron after each."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .hidden import let_fire
from .request import Request
from .spikingjelly_parts import add_conv, multi_step, neurons
from .stack import Stack

STEM, HIDDEN = 32, 256
STAGES = ((64, 64), (128, 128), (256,))  # an average pool after each


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)
    stack = Stack()
    channels = request.channels(STEM)
    add_conv(stack, request.in_channels, channels, new_neuron)
    height, width = request.height, request.width
    for stage in STAGES:
        for count in stage:
            before, channels = channels, request.channels(count)
            add_conv(stack, before, before, new_neuron, groups=before)
            add_conv(stack, before, channels, new_neuron, kernel=1)
        stack.add("pool", layer.AvgPool2d(2))
        height, width = height // 2, width // 2
    hidden = request.channels(HIDDEN)
    stack.add("flatten", layer.Flatten())
    stack.add("fc", let_fire(layer.Linear(channels * height * width, hidden)))
    stack.add("neuron", new_neuron())
    stack.add("fc", layer.Linear(hidden, request.num_classes))
    return multi_step(stack)
