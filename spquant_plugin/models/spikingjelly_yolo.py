"""The detector of SpQuant-SNN: 3x3 and 1x1 convolutions with pools between, two linear layers."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .hidden import let_fire
from .request import Request
from .spikingjelly_parts import add_conv, multi_step, neurons
from .stack import Stack

# (channels, kernel) of each convolution; a max pool after each stage, but an average pool at last.
STAGES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((32, 3),),
    ((64, 3),),
    ((128, 3), (64, 1), (128, 3)),
    ((256, 3), (128, 1), (256, 3)),
    ((512, 3), (256, 1), (512, 3), (256, 1), (512, 3)),
    ((1024, 3), (512, 1), (1024, 3)),
)
HIDDEN = 512


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)
    stack = Stack()
    channels, height, width = request.in_channels, request.height, request.width
    for stage in STAGES:
        for count, kernel in stage:
            before, channels = channels, request.channels(count)
            add_conv(stack, before, channels, new_neuron, kernel=kernel)
        pool = layer.AvgPool2d if stage is STAGES[-1] else layer.MaxPool2d
        stack.add("pool", pool(2))
        height, width = height // 2, width // 2
    hidden = request.channels(HIDDEN)
    stack.add("flatten", layer.Flatten())
    stack.add("fc", let_fire(layer.Linear(channels * height * width, hidden)))
    stack.add("neuron", new_neuron())
    stack.add("fc", layer.Linear(hidden, request.num_classes))
    return multi_step(stack)
