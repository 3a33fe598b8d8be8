"""The networks that both hosts have, from either host's own layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .hidden import let_fire
from .neurons import MakeNeuron
from .request import Request
from .stack import Stack

POOL = "AP"  # a 2x2 average pool, behind a neuron
CONVOLUTIONAL: dict[str, tuple[int | str, ...]] = {
    "conv_net": (32, POOL, 64, POOL),
    "vgg5": (32, 32, POOL, 64, 64, POOL),
    "vgg7": (32, 32, POOL, 64, 64, POOL, 128, 128, POOL, 256, 256, POOL),
    "vgg9": (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg11": (64, 128, POOL, 256, 256, POOL, 512, 512, 512, 512, POOL, 1024, POOL),
}
MLP = (256, 256)


def sequential(request: Request, layers: Any, new_neuron: MakeNeuron) -> nn.Sequential:
    """The network of this name; ``layers`` is ``torch.nn`` or SpikingJelly's ``layer``."""
    if request.name == "mlp":
        return _mlp(request, layers, new_neuron)
    return _convolutional(request, layers, new_neuron)


def _convolutional(request: Request, layers: Any, new_neuron: MakeNeuron) -> nn.Sequential:
    """3x3 convolutions with norms and neurons, pools, and one linear layer at the end."""
    stack = Stack()
    channels, height, width = request.in_channels, request.height, request.width
    for step in CONVOLUTIONAL[request.name]:
        if isinstance(step, int):
            before, channels = channels, request.channels(step)
            stack.add("conv", layers.Conv2d(before, channels, 3, padding=1, bias=False))
            stack.add("norm", layers.BatchNorm2d(channels))
            stack.add("neuron", new_neuron())
        else:
            stack.add("pool", layers.AvgPool2d(2))
            height, width = height // 2, width // 2
    stack.add("flatten", layers.Flatten())
    stack.add("fc", layers.Linear(channels * height * width, request.num_classes))
    return stack.network()


def _mlp(request: Request, layers: Any, new_neuron: MakeNeuron) -> nn.Sequential:
    """Linear layers with neurons between, for what has no use for space."""
    stack = Stack().add("flatten", layers.Flatten())
    features = request.in_channels * request.height * request.width
    for count in MLP:
        before, features = features, request.channels(count)
        stack.add("fc", let_fire(layers.Linear(before, features)))
        stack.add("neuron", new_neuron())
    stack.add("fc", layers.Linear(features, request.num_classes))
    return stack.network()
