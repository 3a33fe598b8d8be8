"""What layers, gates and neurons do in a dry run, counted call by call while it runs.

Only counts are kept, no inputs: whole numbers, and for each layer that a gate may spare pixels of a
map with one number per output pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate, own_gate
from ..modules.quantized_layer import QuantizedLayer
from .dry_run import first_tensor
from .modules import kind_of
from .pairs import count_pairs, input_rows, is_countable, is_one_to_one


@dataclass
class LayerTally:
    """One weight layer: pairs of a weight and an input, over all samples and steps."""

    rows: int = 0
    outer: tuple[int, ...] = ()  # first axes of the input, one of which may be the batch
    space: tuple[int, ...] = ()
    dense: int = 0
    nonzero: int = 0
    open: int = 0
    binary: bool = True
    pixels: list[Tensor] = field(default_factory=list)  # open pairs, [rows, *space] for each call
    unanswered: int = 0  # calls that its gate did not follow


@dataclass
class NeuronTally:
    """One spiking neuron layer."""

    outputs: int = 0
    spikes: int = 0
    graded: bool = False


@dataclass
class GateTally:
    """One gate: what it shut, out of how much, and what deciding took."""

    decided: int = 0
    shut: int = 0
    dense: int = 0  # all operations, were no level zero
    additions: int = 0
    multiplications: int = 0
    comparisons: int = 0
    kept: list[Tensor] = field(default_factory=list)  # [N, *space] for each step


@dataclass
class Tallies:
    """Everything that :meth:`watch` saw, by the first path of each module."""

    layers: dict[str, LayerTally] = field(default_factory=dict)
    neurons: dict[str, NeuronTally] = field(default_factory=dict)
    channel_gates: dict[str, GateTally] = field(default_factory=dict)
    spatial_gates: dict[str, GateTally] = field(default_factory=dict)

    def watch(self, model: nn.Module) -> None:
        """Hang hooks into a model that is thrown away after its run."""
        modules = list(model.named_modules())
        keeps_pixels = any(
            isinstance(module, SpatialGate) and module.score == "prior" for _, module in modules
        )
        pending = _Pending(self.layers, keeps_pixels)
        owners = {id(gate): path for path, module in modules if (gate := own_gate(module))}
        hosts, levels = Hosts(), _Levels()
        for path, module in modules:
            hook: Callable[..., None] | None = None
            if isinstance(module, ChannelGate):
                levels.listen(module)
                owner = owners.get(id(module))
                hook = partial(self._channel_gate, path, owner, pending, levels)
            elif isinstance(module, SpatialGate):
                hook = partial(self._spatial_gate, path)
            elif kind_of(module, hosts) == "neuron":
                hook = partial(self._neuron, path)
            elif kind_of(module, hosts) == "weights" and is_countable(module):
                hook = partial(self._layer, path, pending, levels)
            if hook is not None:
                # Before a gate's own hooks, so that a layer is seen first and its gate after it.
                module.register_forward_hook(hook, with_kwargs=True, prepend=True)

    def _layer(
        self,
        path: str,
        pending: _Pending,
        levels: _Levels,
        layer: nn.Module,
        args: Any,
        kwargs: Any,
        output: Tensor,
    ) -> None:
        given = first_tensor((args, kwargs))
        if given is None:
            return
        x, weight = operands(layer, given)
        tally = self.layers.setdefault(path, LayerTally())
        tally.binary = tally.binary and bool(((x == 0) | (x == 1)).all())
        x = input_rows(layer, x)
        tally.rows, tally.outer = tally.rows + x.shape[0], tuple(given.shape[:2])
        tally.space = tuple(output.shape[output.ndim - (x.ndim - 2) :]) if x.ndim > 2 else ()
        if is_one_to_one(layer):
            tally.space = ()
            tally.dense += output.numel()
        else:
            whole = torch.ones_like(x[:1]), torch.ones_like(weight)
            one = count_pairs(layer, *whole, tally.space, per_channel=False)
            tally.dense += total(one) * x.shape[0]
        gated = own_gate(layer) is not None
        pending.add(path, count_pairs(layer, x, weight, tally.space, gated), gated)
        levels.heard[path] = (given.numel(), int(given.count_nonzero()))

    def _channel_gate(
        self,
        path: str,
        owner: str | None,
        pending: _Pending,
        levels: _Levels,
        gate: ChannelGate,
        args: Any,
        kwargs: Any,
        output: Tensor,
    ) -> None:
        mask: Any = gate.open_mask
        tally = self.channel_gates.setdefault(path, GateTally())
        tally.decided += mask.numel()
        tally.shut += int((mask == 0).sum())
        elements, nonzero = levels.read(gate, owner, (args, kwargs))
        products = mask.numel() * gate.weight.shape[1]
        tally.dense += elements + products + mask.numel()
        tally.additions += nonzero
        tally.multiplications += products
        tally.comparisons += mask.numel()
        if owner is not None:
            pending.close(owner, mask)

    def _spatial_gate(
        self, path: str, gate: SpatialGate, args: Any, kwargs: Any, kept: Tensor
    ) -> None:
        tally = self.spatial_gates.setdefault(path, GateTally())
        tally.decided += kept.numel()
        tally.shut += int((~kept.bool()).sum())
        if gate.score == "prior":
            tally.kept.append(kept.bool().squeeze(1))
        first = args[1] if len(args) > 1 else kwargs.get("first", False)
        levels = first_tensor((args, kwargs))
        if levels is None or bool(first):
            return  # without a step before there is nothing to rank
        comparisons = kept.numel() * math.ceil(math.log2(kept[0].numel()))
        tally.dense += levels.numel() + comparisons
        tally.comparisons += comparisons
        # The square of -1, 0 or 1 takes no multiplication.
        if bool((levels.abs() > 1).any()):
            tally.multiplications += int(levels.count_nonzero())
        else:
            tally.additions += int(levels.count_nonzero())

    def _neuron(self, path: str, neuron: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        spikes = first_tensor(output)
        if spikes is None:
            return
        tally = self.neurons.setdefault(path, NeuronTally())
        tally.outputs += spikes.numel()
        tally.spikes += int(spikes.count_nonzero())
        tally.graded = tally.graded or bool(((spikes != 0) & (spikes != 1)).any())


class _Pending:
    """Counts of gated layers, until their gate has decided."""

    def __init__(self, layers: dict[str, LayerTally], keeps_pixels: bool) -> None:
        self.layers, self.keeps_pixels = layers, keeps_pixels
        self.counts: dict[str, Tensor] = {}

    def add(self, path: str, counts: Tensor, gated: bool) -> None:
        """Take in one call: ``[rows, C, *space]``."""
        tally = self.layers[path]
        here = total(counts)
        tally.nonzero += here
        tally.open += here
        if not gated:
            self._keep(tally, counts)
            return
        if not self.keeps_pixels and counts.ndim > 2:
            counts = counts.flatten(2).sum(2, dtype=torch.float64)
        if path in self.counts:
            self._keep(tally, self.counts[path])
        tally.unanswered += 1
        self.counts[path] = counts

    def close(self, path: str, mask: Tensor) -> None:
        """Take off what the gate ``[..., C]`` closed of its layer's last call."""
        counts = self.counts.pop(path, None)
        if counts is None:
            return
        tally, mask = self.layers[path], mask.flatten(0, -2)
        # A row per sample and step; between them and the channels there may be tokens.
        opened = mask.repeat_interleave(counts.shape[0] // mask.shape[0], 0).to(counts.dtype)
        opened = counts * opened.reshape(*counts.shape[:2], *[1] * (counts.ndim - 2))
        tally.open -= total(counts) - total(opened)
        tally.unanswered -= 1
        self._keep(tally, opened)

    def _keep(self, tally: LayerTally, counts: Tensor) -> None:
        if self.keeps_pixels and counts.ndim > 2:
            tally.pixels.append(counts.sum(1, dtype=torch.float64))


class _Levels:
    """How many whole numbers the channel gates have to sum up, all and nonzero."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[int, int]] = {}  # inputs of layers by path
        self.told: dict[int, tuple[int, int]] = {}  # membranes of neurons

    def listen(self, gate: ChannelGate) -> None:
        """Count what the gate's neuron tells of each step; its sums alone do not say."""
        neuron: Any = gate.neuron
        if neuron is None or id(neuron) in self.told:
            return
        tell = neuron._tell
        self.told[id(neuron)] = (0, 0)

        def count(steps: list[Tensor], **options: Any) -> None:
            nonzero = [int(neuron.stored_levels(step).count_nonzero()) for step in steps]
            self.told[id(neuron)] = (len(steps) * steps[0].numel(), sum(nonzero))
            tell(steps, **options)

        neuron._tell = count

    def read(self, gate: ChannelGate, owner: str | None, call: Any) -> tuple[int, int]:
        """All and nonzero levels that one call of the gate sums up."""
        if gate.source == "membrane":
            return self.told[id(gate.neuron)]
        args, kwargs = call
        x = args[1] if len(args) > 1 else kwargs.get("x")
        if x is not None:
            return x.numel(), int(x.count_nonzero())
        return self.heard.get(owner or "", (0, 0))


def operands(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer really multiplies: its quantised input and the levels of its weight."""
    own: Any = layer
    if not isinstance(layer, QuantizedLayer):
        return x, own.V if is_one_to_one(layer) else own.weight
    if layer.input_quantizer is not None:
        x, _ = layer.input_quantizer(x)
    return x, layer.quantized_weight()[0]


def own_spatial_gate(module: nn.Module) -> SpatialGate | None:
    """The spatial gate that a neuron calls."""
    gate = module._modules.get("spatial_gate")
    return gate if isinstance(gate, SpatialGate) else None


def total(counts: Tensor) -> int:
    """Exact sum of whole numbers."""
    return int(counts.sum(dtype=torch.float64))
