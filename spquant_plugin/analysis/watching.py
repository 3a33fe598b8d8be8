"""Hooks that count what each module of a throw-away copy does while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.hosts import Hosts
from ..convert.trace import untraced
from ..modules.gates import ChannelGate, SpatialGate, own_gate
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from ..modules.step_counter import StepCounter
from .dry_run import first_tensor
from .layer_weights import LayerWeights, StepWeights
from .modules import kind_of
from .pairs import count_pairs, input_rows, is_countable, is_one_to_one
from .tally import GateTally, LayerTally, LevelTally, NeuronTally, Tallies, total
from .taps import Taps
from .temporal import is_temporal

# Behind three average pools of 4 x 4 pixels; what is finer counts as a float.
MOST_HALVINGS = 12


def watch(model: nn.Module, tallies: Tallies) -> None:
    """Hang counters into a model that is thrown away after its run."""
    _Watch(model, tallies)


class _Watch:
    """The counters of one copy."""

    def __init__(self, model: nn.Module, tallies: Tallies) -> None:
        self.tallies, self.levels = tallies, _Levels(tallies)
        modules = list(model.named_modules())
        keeps_pixels = any(
            isinstance(module, SpatialGate) and module.score == "prior" for _, module in modules
        )
        self.pending = _Pending(tallies.layers, keeps_pixels)
        self.weights: dict[str, LayerWeights] = {}
        self.steps: dict[str, int] = {}  # which step a layer computed last, where it is told
        self.taps: dict[tuple[Any, ...], Taps] = {}
        owners = {id(gate): path for path, module in modules if (gate := own_gate(module))}
        hosts = Hosts()
        for path, module in modules:
            if is_temporal(module) and module.counter is not None:
                self._hear_steps(path, module.counter)
            hook = self._hook(path, module, owners.get(id(module)), hosts)
            if hook is not None:
                # Before a gate's own hooks, so that a layer is seen first and its gate after it.
                quiet = partial(_count, hook)
                module.register_forward_hook(quiet, with_kwargs=True, prepend=True)

    def _hook(
        self, path: str, module: nn.Module, owner: str | None, hosts: Hosts
    ) -> Callable[..., None] | None:
        if isinstance(module, QuantizedNeuron) and module.membrane is not None:
            self.levels.listen(path, module)
        if isinstance(module, ChannelGate):
            return partial(self._channel_gate, path, owner)
        if isinstance(module, SpatialGate):
            return partial(self._spatial_gate, path)
        kind = kind_of(module, hosts)
        if kind == "neuron":
            return partial(self._neuron, path)
        if kind == "weights" and is_countable(module):
            return partial(self._layer, path)
        return None

    def _hear_steps(self, path: str, counter: StepCounter) -> None:
        """Remember which step a layer is told that it computes."""
        tell = counter.next

        def told(timesteps: int) -> int:
            self.steps[path] = tell(timesteps)
            return self.steps[path]

        counter.next = told  # type: ignore[method-assign]

    # Layers.

    def _layer(self, path: str, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        given = first_tensor((args, kwargs))
        if given is None:
            return
        tally = self.tallies.layers.setdefault(path, LayerTally())
        x, weights = input_rows(layer, _input(layer, given)), self._weights(path, layer)
        ones = x.ne(0).to(x.dtype)
        _describe(tally, x, ones)
        tally.rows += x.shape[0]
        tally.space = tuple(output.shape[output.ndim - (x.ndim - 2) :]) if x.ndim > 2 else ()
        tally.inputs, tally.outputs = tally.inputs + x.numel(), tally.outputs + output.numel()
        for held in weights:
            tally.fan_in, tally.weight_steps = held.fan_in, max(tally.weight_steps, held.steps)
        tally.weights = weights[0].nonzero.numel()
        tally.zero_weights = sum(held.zeros for held in weights) / len(weights)
        if is_one_to_one(layer):
            tally.space = ()
            tally.dense += output.numel()
        else:
            taps = self._taps(path, layer, tuple(x.shape[2:]), tally.space)
            tally.dense += taps.dense(weights[0].nonzero) * x.shape[0]
        gate = own_gate(layer)
        # The weights of this very step, or those of all steps, which then lead the rows.
        step = self.steps.pop(path, None)
        used = weights if step is None else weights[step : step + 1]
        counts = [
            self._pairs(path, layer, rows, held, tally.space, gate is not None)
            for rows, held in zip(ones.chunk(len(used)), used, strict=True)
        ]
        self.pending.add(path, _joined(counts), gate is not None)
        if gate is not None and gate.source == "input":
            self.levels.heard[path] = (given.numel(), int(given.count_nonzero()))

    def _pairs(
        self,
        path: str,
        layer: nn.Module,
        ones: Tensor,
        held: StepWeights,
        space: tuple[int, ...],
        gated: bool,
    ) -> int | Tensor:
        """Pairs of nonzeros that one set of weights meets; of each row where a gate needs them."""
        if is_one_to_one(layer):
            return count_pairs(layer, ones, held.nonzero, (), gated)
        if self.pending.keeps_pixels:
            return count_pairs(layer, ones, held.nonzero, space, gated)
        taps = self._taps(path, layer, tuple(ones.shape[2:]), space)
        if gated:
            return taps.pairs(_summable(ones), held.nonzero)
        return taps.all_pairs(_summable(ones), held.per_input(taps))

    def _weights(self, path: str, layer: nn.Module) -> tuple[StepWeights, ...]:
        """A layer's weights as zeros and ones, computed anew only where they changed."""
        own: Any = layer
        key = own.V if is_one_to_one(layer) else own.weight
        known = self.weights.get(path)
        if known is None or not known.is_of(key):
            known = self.weights[path] = LayerWeights.of(layer, key)
        return known.each

    def _taps(
        self, path: str, layer: nn.Module, size: tuple[int, ...], space: tuple[int, ...]
    ) -> Taps:
        if (path, size, space) not in self.taps:
            self.taps[path, size, space] = Taps(layer, size, space)
        return self.taps[path, size, space]

    # Neurons.

    def _neuron(self, path: str, neuron: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        spikes = first_tensor(output)
        if spikes is None:
            return
        tally = self.tallies.neurons.setdefault(path, NeuronTally())
        ones = spikes.ne(0)
        tally.outputs += spikes.numel()
        tally.spikes += int(ones.count_nonzero())
        tally.graded = tally.graded or not torch.equal(ones.to(spikes.dtype), spikes)

    # Gates.

    def _channel_gate(
        self,
        path: str,
        owner: str | None,
        gate: ChannelGate,
        args: Any,
        kwargs: Any,
        output: Tensor,
    ) -> None:
        mask: Any = gate.open_mask
        tally = self.tallies.channel_gates.setdefault(path, GateTally())
        tally.decided += mask.numel()
        tally.shut += int((mask == 0).sum())
        elements, nonzero = self.levels.read(gate, owner, (args, kwargs))
        products = mask.numel() * gate.weight.shape[1]
        tally.dense += elements + products + mask.numel()
        tally.additions += nonzero
        tally.multiplications += products
        tally.comparisons += mask.numel()
        if owner is not None:
            self.pending.close(owner, mask)

    def _spatial_gate(
        self, path: str, gate: SpatialGate, args: Any, kwargs: Any, kept: Tensor
    ) -> None:
        tally = self.tallies.spatial_gates.setdefault(path, GateTally())
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


def _joined(counts: list[int | Tensor]) -> int | Tensor:
    """What the weights of several steps met, as of one call."""
    tensors = [part for part in counts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else sum(part for part in counts if isinstance(part, int))


def _halvings(x: Tensor, known: int | None) -> int | None:
    """How often whole numbers were halved to give these: spikes behind average pools, say."""
    if known is None or not bool(x.isfinite().all()):
        return None
    for halvings in range(known, MOST_HALVINGS + 1):
        scaled = x * 2**halvings
        if torch.equal(scaled, scaled.round()):
            return halvings
    return None


def _describe(tally: LayerTally, x: Tensor, ones: Tensor) -> None:
    """What kind of numbers the inputs are."""
    if torch.equal(x, ones):
        tally.largest = max(tally.largest, 1.0)
        return
    tally.binary = False
    tally.halvings = _halvings(x, tally.halvings)
    low, high = (float(bound) for bound in x.aminmax()) if x.numel() else (0.0, 0.0)
    tally.signed = tally.signed or low < 0
    tally.largest = max(tally.largest, -low, high)


def _summable(ones: Tensor) -> Tensor:
    """Zeros and ones in a type whose sums are exact, up to 2**24 of them."""
    return ones if ones.dtype in (torch.float32, torch.float64) else ones.float()


class _Pending:
    """Counts of gated layers, until their gate has decided."""

    def __init__(self, layers: dict[str, LayerTally], keeps_pixels: bool) -> None:
        self.layers, self.keeps_pixels = layers, keeps_pixels
        self.counts: dict[str, Tensor] = {}

    def add(self, path: str, counts: int | Tensor, gated: bool) -> None:
        """Take in one call: all pairs, or those of ``[rows, C]`` or ``[rows, C, *space]``."""
        tally = self.layers[path]
        here = total(counts) if isinstance(counts, Tensor) else counts
        tally.nonzero += here
        tally.open += here
        if not isinstance(counts, Tensor):
            return
        if not gated:
            self._keep(tally, counts)
            return
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
    """What quantised neurons store, and how many whole numbers the channel gates sum up."""

    def __init__(self, tallies: Tallies) -> None:
        self.tallies = tallies
        self.heard: dict[str, tuple[int, int]] = {}  # inputs of layers by path
        self.told: dict[int, tuple[int, int]] = {}  # membranes of neurons

    def listen(self, path: str, neuron: QuantizedNeuron) -> None:
        """Count what a neuron tells of each step; the sums that it keeps do not say."""
        tell, rule = neuron._tell, neuron.membrane
        if rule is None:
            return
        tally, read_by_gates = LevelTally(rule.lowest, rule.highest), neuron.watched

        def count(steps: list[Tensor], **options: Any) -> None:
            own: Any = neuron
            with untraced():
                held, unit = self.tallies.levels.setdefault(path, tally), float(own.membrane_unit)
                nonzero = sum(held.add(step, neuron.rest, unit) for step in steps)
            self.told[id(neuron)] = (len(steps) * steps[0].numel(), nonzero)
            if read_by_gates:
                tell(steps, **options)

        neuron.watched = True
        neuron._tell = count  # type: ignore[method-assign]

    def read(self, gate: ChannelGate, owner: str | None, call: Any) -> tuple[int, int]:
        """All and nonzero levels that one call of the gate sums up."""
        if gate.source == "membrane":
            return self.told[id(gate.neuron)]
        args, kwargs = call
        x = args[1] if len(args) > 1 else kwargs.get("x")
        if x is not None:
            return x.numel(), int(x.count_nonzero())
        return self.heard.get(owner or "", (0, 0))


def _count(hook: Callable[..., None], *given: Any) -> None:
    with untraced():
        hook(*given)


def _input(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer really multiplies: whole numbers where it quantises its input."""
    if isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None:
        return layer.input_quantizer(x)[0]
    return x
