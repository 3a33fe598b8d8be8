"""Converted networks that spike, with the statistics of trained ones, for the tests of lowering."""

from __future__ import annotations

import warnings
from dataclasses import replace

import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import spquant_plugin as spq
from spquant_plugin.deploy.graph import Graph
from spquant_plugin.modules.gates import ChannelGate
from spquant_plugin.modules.quantized_layer import QuantizedLayer


def events(*shape: int, rate: float = 0.4) -> Tensor:
    """Random spikes."""
    return (torch.rand(shape) < rate).float()


def converted(
    model: nn.Module, config: spq.SpQuantConfig, x: Tensor, sample: Tensor | None = None
) -> nn.Module:
    """Convert; give norms statistics of data and factors of either sign, and gates weights."""
    sample = x if sample is None else sample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spq.errors.SelfFiringWarning)
        model = spq.convert(model, config, sample)
    norms = [m for m in model.modules() if isinstance(m, _NormBase)]
    if any(norm.running_mean is not None for norm in norms):
        calls = [sample] if sample is x else list(x)
        spq.calibrate(model, [calls], forward=lambda net, batch: [net(part) for part in batch])
    for norm in norms:
        unsettle(norm)
    for gate in model.modules():
        if isinstance(gate, ChannelGate):
            nn.init.normal_(gate.weight, std=0.5)
            nn.init.normal_(gate.bias, std=0.3)
            gate.weight_quantizer.initialize(gate.weight)
    model.eval()
    spq.reset(model)
    return model


@torch.no_grad()
def unsettle(norm: _NormBase) -> None:
    """Some factors negative, one zero, offsets at random."""
    if norm.weight is None:
        return
    norm.weight.mul_(torch.where(torch.rand_like(norm.weight) < 0.25, -1.0, 1.0))
    norm.weight[:1] = 0 if norm.num_features > 2 else 1
    norm.bias.add_(torch.randn_like(norm.bias) * 0.3)


def positive(module: nn.Module) -> nn.Module:
    """Weights that are mostly positive, so that spikes go on."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            fan = part.weight[0].numel()
            nn.init.uniform_(part.weight, -3 / fan, 8 / fan)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -0.2, 0.2)
    return module


def jelly(*parts: nn.Module, step_mode: str = "m") -> nn.Sequential:
    """A SpikingJelly network."""
    net = nn.Sequential(*parts)
    positive(net)
    functional.set_step_mode(net, step_mode)
    return net


def small(node=neuron.LIFNode, norm: bool = True, step_mode: str = "m", **options) -> nn.Sequential:
    """Two convolutions, a pool between them, and a linear layer, for ``[T, N, 2, 8, 8]``."""
    conv = nn.Identity if not norm else lambda: layer.BatchNorm2d(6)
    return jelly(
        layer.Conv2d(2, 6, 3, padding=1, bias=not norm),
        conv(),
        node(**options),
        layer.MaxPool2d(2),
        layer.Conv2d(6, 6, 3, padding=1, stride=2, groups=2),
        conv(),
        node(**options),
        layer.Flatten(),
        layer.Linear(24, 5),
        node(**options),
        step_mode=step_mode,
    )


class Loop(nn.Module):
    """The explicit-state idiom of snnTorch: a loop over time, or over one input."""

    def __init__(self, make, read: str = "both", steps: int | None = None) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 9), make()
        self.fc2, self.lif2 = nn.Linear(9, 4), make()
        self.read, self.steps = read, steps
        positive(self)

    def forward(self, x: Tensor) -> object:
        mem1, mem2 = (_state(lif) for lif in (self.lif1, self.lif2))
        spikes, membranes, total = [], [], 0
        for t in range(self.steps or x.shape[0]):
            spk, mem1 = self.lif1(self.fc1(x if self.steps else x[t]), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
            total = total + spk
        return {
            "both": lambda: (torch.stack(spikes), torch.stack(membranes)),
            "stack": lambda: torch.stack(spikes),
            "total": lambda: total,
            "mean": lambda: total / len(spikes),
            "sum": lambda: torch.stack(spikes).sum(0),
            "average": lambda: torch.stack(spikes).mean(0),
            "last": lambda: spk,
            "membrane": lambda: mem2,
        }[self.read]()


def _state(lif: nn.Module) -> Tensor:
    return lif.init_leaky() if isinstance(lif, snn.Leaky) else lif.init_lapicque()


def moved_break(net: spq.IntegerNetwork, path: str, by: int = 1) -> spq.IntegerNetwork:
    """The same network with every comparison of one neuron layer off by one."""
    nodes = tuple(
        replace(node, breaks=node.breaks + by) if node.name == path else node
        for node in net.graph.nodes
    )
    return with_nodes(net, nodes)


def with_nodes(net: spq.IntegerNetwork, nodes: tuple) -> spq.IntegerNetwork:
    """A network of other nodes."""
    kept = {name: getattr(net.graph, name) for name in ("takes", "repeats", "single", "model")}
    graph = Graph(nodes, net.graph.outputs, **kept)
    return spq.IntegerNetwork(graph, net.sample, "torch")


def weights_of(model: nn.Module) -> list[QuantizedLayer]:
    """All quantised layers."""
    return [m for m in model.modules() if isinstance(m, QuantizedLayer)]
