"""VGG: 3x3 convolutions, average pools behind neurons, one linear layer at the end."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .request import Request
from .spikingjelly_parts import add_conv, multi_step, neurons
from .stack import Stack

POOL = "AP"
PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg5": (32, 32, POOL, 64, 64, POOL),
    "vgg7": (32, 32, POOL, 64, 64, POOL, 128, 128, POOL, 256, 256, POOL),
    "vgg9": (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg11": (64, 128, POOL, 256, 256, POOL, 512, 512, 512, 512, POOL, 1024, POOL),
}


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)
    stack = Stack()
    channels, height, width = request.in_channels, request.height, request.width
    for step in PLANS[request.name]:
        if isinstance(step, int):
            before, channels = channels, request.channels(step)
            add_conv(stack, before, channels, new_neuron)
        else:
            stack.add("pool", layer.AvgPool2d(2))
            height, width = height // 2, width // 2
    stack.add("flatten", layer.Flatten())
    stack.add("fc", layer.Linear(channels * height * width, request.num_classes))
    return multi_step(stack)
