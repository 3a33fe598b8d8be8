"""Small networks of both hosts, for the tests of conversion."""

from __future__ import annotations

import snntorch as snn
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq


def spiking_jelly(step_mode: str = "m") -> nn.Sequential:
    """Conv, norm, neuron, pool, conv, norm, neuron, linear: the usual order."""
    from spikingjelly.activation_based import functional

    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.LIFNode(decay_input=False),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 6, 3, padding=1),
        layer.BatchNorm2d(6),
        neuron.IFNode(),
        layer.Flatten(),
        layer.Linear(6 * 4 * 4, 3),
    )
    functional.set_step_mode(net, step_mode)
    return net


def lively(net: nn.Module) -> nn.Module:
    """Weights that are mostly positive, so that spikes reach the output."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -0.4, 1.0)
    return net


def snn_torch() -> nn.Module:
    """The hidden-state idiom: one step per call."""
    net = nn.Sequential(
        nn.Linear(5, 7),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Linear(7, 7),
        snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="zero"),
        nn.Linear(7, 2),
        snn.Leaky(beta=0.8, init_hidden=True, output=True),
    )
    return lively(net)


class Loop(nn.Module):
    """The explicit-state idiom: a loop over time inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(6, 2), snn.Leaky(beta=0.9)
        lively(self)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        total = 0
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            total = total + spk
        return total


def uneven(*modules: nn.Module) -> None:
    for root in modules:
        for norm in root.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(norm.weight, -1.5, 1.5)
                nn.init.normal_(norm.bias)
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.2, 3)


def run_from_rest(net: nn.Module, x: Tensor) -> Tensor:
    spq.reset(net)
    y = net(x)
    spq.reset(net)
    return y
