"""What SpikingJelly's networks are made of."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn

from .neurons import MakeNeuron, Neurons
from .request import Request
from .stack import Stack


def lif() -> nn.Module:
    """The paper's neuron: decay 0.5, threshold 1, hard reset to 0."""
    return neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan())


def neurons(request: Request) -> Neurons:
    return Neurons(request, lif, fault, "functools.partial(neuron.LIFNode, tau=2.0)")


def fault(made: Any) -> str | None:
    """Why these networks cannot use a neuron."""
    name = type(made).__name__
    bases = [kind.__module__ for kind in type(made).__mro__]
    of_host = any(module.startswith(neuron.__name__) for module in bases)
    if not of_host or not isinstance(made, base.StepModule):
        return f"returned {name}, which is no neuron of SpikingJelly"
    if isinstance(made, neuron.NonSpikingBaseNode):
        return f"returned {name}, which emits no spikes"
    if "m" not in made.supported_step_mode():
        return f"returned {name}, which has no multi-step mode"
    return None


def add_conv(
    stack: Stack,
    inputs: int,
    outputs: int,
    new_neuron: MakeNeuron,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
) -> None:
    """Convolution, normalisation, neuron."""
    stack.add("conv", conv(inputs, outputs, kernel=kernel, stride=stride, groups=groups))
    stack.add("norm", layer.BatchNorm2d(outputs))
    stack.add("neuron", new_neuron())


def conv(inputs: int, outputs: int, *, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    return layer.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )


def multi_step(stack: Stack) -> nn.Sequential:
    """The network, which takes whole sequences."""
    network = stack.network()
    functional.set_step_mode(network, "m")
    return network
