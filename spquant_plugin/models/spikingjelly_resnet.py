"""Residual networks: two 3x3 convolutions per block, the second neuron after the addition."""

from __future__ import annotations

from dataclasses import dataclass

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from .hidden import let_fire
from .neurons import MakeNeuron
from .request import Request
from .spikingjelly_parts import add_conv, conv, multi_step, neurons
from .stack import Stack

STEM = 64


@dataclass(frozen=True)
class Plan:
    """Stages of (channels, blocks, stride of the first block)."""

    stages: tuple[tuple[int, int, int], ...]
    imagenet: bool = False  # a 7x7 stem with a max pool
    hidden: int = 0  # a linear layer with neurons before the last one


PLANS = {
    "resnet19": Plan(((128, 3, 1), (256, 3, 2), (512, 2, 2)), hidden=256),
    "resnet26": Plan(((128, 3, 1), (256, 3, 2), (512, 5, 2)), hidden=256),
    "resnet34": Plan(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), imagenet=True),
}


class Block(nn.Module):
    """``neuron(norm(conv(neuron(norm(conv(x))))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int, new_neuron: MakeNeuron) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, kernel=3, stride=stride)
        self.norm1 = layer.BatchNorm2d(outputs)
        self.neuron1 = new_neuron()
        self.conv2 = conv(outputs, outputs, kernel=3, stride=1)
        self.norm2 = layer.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                Stack()
                .add("conv", conv(inputs, outputs, kernel=1, stride=stride))
                .add("norm", layer.BatchNorm2d(outputs))
                .network()
            )
        self.neuron2 = new_neuron()

    def forward(self, x: Tensor) -> Tensor:
        y = self.neuron1(self.norm1(self.conv1(x)))
        return self.neuron2(self.norm2(self.conv2(y)) + self.shortcut(x))


def build(request: Request) -> nn.Module:
    plan, new_neuron = PLANS[request.name], neurons(request)
    stack = Stack()
    channels = request.channels(STEM)
    if plan.imagenet:
        add_conv(stack, request.in_channels, channels, new_neuron, kernel=7, stride=2)
        stack.add("pool", layer.MaxPool2d(3, stride=2, padding=1))
    else:
        add_conv(stack, request.in_channels, channels, new_neuron)
    for count, blocks, stride in plan.stages:
        for block in range(blocks):
            before, channels = channels, request.channels(count)
            first = stride if block == 0 else 1
            stack.add("block", Block(before, channels, first, new_neuron))
    stack.add("pool", layer.AdaptiveAvgPool2d(1))
    stack.add("flatten", layer.Flatten())
    if plan.hidden:
        before, channels = channels, request.channels(plan.hidden)
        stack.add("fc", let_fire(layer.Linear(before, channels)))
        stack.add("neuron", new_neuron())
    stack.add("fc", layer.Linear(channels, request.num_classes))
    return multi_step(stack)
