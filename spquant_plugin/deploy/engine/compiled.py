"""The fast engine: event-driven kernels on rows of bits, compiled by numba.

A layer and the neurons behind it are one pass where nobody asks for the sums between them. What the
kernels do not know runs as the reference does, on the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DeployError
from ..graph import (
    ChannelDecision,
    Convolution,
    Dense,
    Graph,
    Input,
    MaxPool,
    Neuron,
    Node,
    Reshape,
    SumPool,
    size,
)
from . import reference
from .decision import Decision
from .jit import use_threads
from .record import Record
from .rows import LANES, Words, pack
from .stages import (
    MOST_NUMBERS,
    MOST_PLANES,
    NO_WORDS,
    Stage,
    Weights,
    levels_of,
    planes_needed,
    states_of,
    stripped,
)
from .values import Value, Window

State = dict[str, Any]
MEMORY = ("fast", "small")
PATHS = ("events", "dense")
# Events of one element beyond which a list of them is longer than what it lists.
MOST_COUNT = 2**15


@dataclass
class _Run:
    """What one run knows: its sizes, its state, and the values that are there."""

    steps: int
    samples: int
    threads: int
    state: State
    values: dict[str, Value] = field(default_factory=dict)
    history: dict[str, Words] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return self.steps * self.samples


class CompiledEngine:
    """Runs a graph with compiled kernels.

    Weights are held packed, one bit plane after the other. ``memory="fast"`` also keeps the
    numbers of layers that were multiplied densely; ``"small"`` unpacks them each time. ``path``
    makes every layer take one of PATHS where it can, which else follows the measured rates.
    """

    name = "numba"

    def __init__(self, graph: Graph, *, memory: str = "fast", path: str | None = None) -> None:
        if memory not in MEMORY:
            raise DeployError(f"memory = {memory!r}: must be {' or '.join(map(repr, MEMORY))}.")
        if path is not None and path not in PATHS:
            raise DeployError(f"path = {path!r}: must be {' or '.join(map(repr, PATHS))}, or None.")
        self.graph, self.memory, self.path = graph, memory, path
        self.choices: dict[str, str] = {}
        self.rates: dict[str, float] = {}
        self._stages: dict[str, Stage] = {}
        self._fused: dict[str, str] = {}  # layers by the neuron that alone reads them
        self._decisions: dict[str, Decision] = {}
        self._flat: dict[str, str] = {}  # what a dense layer reads before it was flattened
        for node in graph.nodes:
            if isinstance(node, Neuron):
                self._prepare_neuron(node)
            elif isinstance(node, (Convolution, Dense)):
                self._prepare_layer(node)
            elif isinstance(node, ChannelDecision) and Decision.knows(
                node, self.graph[node.inputs[0]]
            ):
                self._decisions[node.name] = Decision(node)
        for weights in filter(None, (stage.weights for stage in self._stages.values())):
            weights.keep = memory == "fast"

    # --- preparing ------------------------------------------------------------------------------

    def _prepare_layer(self, node: Any) -> None:
        if getattr(node, "groups", 1) > 1 or planes_needed(node.low, node.high) > MOST_PLANES:
            return
        source = self.graph[node.inputs[0]]
        while isinstance(node, Dense) and isinstance(source, Reshape):
            source = self.graph[source.inputs[0]]
        self._flat[node.name] = source.name
        readers = list(self.graph.readers(node.name))
        behind = readers[0] if len(readers) == 1 else None
        if isinstance(behind, Neuron) and behind.inputs[0] == node.name and _is_known(behind):
            weights = Weights.of(node, source.shape, behind.sign)
            self._stages[behind.name] = Stage(behind, weights, behind, node.low, node.high)
            self._fused[behind.name] = node.name
        else:
            weights = Weights.of(node, source.shape, None)
            self._stages[node.name] = Stage(node, weights, None, node.low, node.high)

    def _prepare_neuron(self, node: Neuron) -> None:
        source = self.graph[node.inputs[0]]
        known = planes_needed(source.low, source.high) <= MOST_PLANES
        if node.name not in self._stages and known and _is_known(node):
            self._stages[node.name] = Stage(node, None, node, source.low, source.high)

    @property
    def packed_bytes(self) -> int:
        """Bytes that the engine made beside the graph."""
        made = (*self._stages.values(), *self._decisions.values())
        return sum(part.nbytes for part in made)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and tables."""
        kept = self.packed_bytes
        for node in self.graph.nodes:
            if isinstance(node, Convolution) and node.groups > 1:
                kept += node.weight.numel()
            if isinstance(node, Neuron) and node.name not in self._stages:
                kept += node.breaks.numel() * node.breaks.element_size()
        return kept

    def strip(self) -> None:
        """Let go of the numbers in the graph that the packed rows hold as well."""
        light = {name: stripped(stage) for name, stage in self._stages.items()}
        packed = {self._fused.get(name, name) for name in self._stages}
        nodes = []
        for node in self.graph.nodes:
            if isinstance(node, Convolution | Dense) and node.name in packed:
                node = replace(node, weight=node.weight.to("meta"))
            nodes.append(light.get(node.name, node))
        self.graph = replace(self.graph, nodes=tuple(nodes))

    # --- states ---------------------------------------------------------------------------------

    def rest(self, batch: int) -> State:
        """All neurons at rest, packed: a plane for each bit of a state."""
        states: State = {"": torch.zeros(batch, dtype=torch.bool)}
        for node in self.graph.neurons:
            bits, words = self._room(node)
            state = np.zeros((batch, size(node.shape[1:]), bits, words), np.uint64)
            for bit in range(bits):
                if node.rest >> bit & 1:
                    state[:, :, bit] = np.uint64(2**64 - 1)
            states[node.name] = state
        return states

    def _room(self, node: Neuron) -> tuple[int, int]:
        stage = self._stages.get(node.name)
        words = stage.words if stage is not None else -(-node.shape[0] // LANES)
        return max(1, (node.states - 1).bit_length()), words

    def held_bytes(self, state: State) -> int:
        return sum(part.nbytes for part in state.values())

    def spike_bytes(self, neuron: Neuron, steps: int, batch: int) -> int:
        """Bytes of the spikes that a run keeps of a neuron layer."""
        return 8 * self._room(neuron)[1] * steps * batch * size(neuron.shape[1:])

    # --- running --------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, x: Tensor, state: State, wanted: set[Any]) -> Record:
        steps, samples = x.shape[:2]
        now = _Run(steps, samples, use_threads(torch.get_num_threads()), state)
        found: dict[Any, Tensor] = {}
        order = self._order(wanted)
        last = {name: i for i, (_, reads) in enumerate(order) for name in reads}
        for i, (node, _) in enumerate(order):
            if isinstance(node, Input):
                value = Value(node.shape, now.batch, whole=x.to(torch.int32).flatten(0, 1))
            elif isinstance(node, Neuron):
                value = self._neuron(node, now, wanted)
            else:
                value = self._operation(node, now)
            now.values[node.name] = value
            if node.name in wanted:
                found[node.name] = value.whole().view(steps, samples, *node.shape)
            if (node.name, "membrane") in wanted and isinstance(node, Neuron):
                levels = levels_of(node, now.history[node.name])
                found[node.name, "membrane"] = levels.view(steps, samples, *node.shape)
            for name in [name for name in now.values if last.get(name, -1) <= i]:
                del now.values[name]
                now.history.pop(name, None)
        state[""].fill_(True)
        return Record(found)

    def _order(self, wanted: set[Any]) -> list[tuple[Node, list[str]]]:
        """Nodes that must run, in order, with the values that each reads."""
        needed = {name for name in wanted if isinstance(name, str)}
        order: list[tuple[Node, list[str]]] = []
        for node in reversed(self.graph.nodes):
            if not isinstance(node, Neuron) and node.name not in needed:
                continue
            reads = list(node.inputs)
            if isinstance(node, Neuron):
                layer = self._fused.get(node.name)
                if layer is not None and layer not in needed:
                    reads[0] = self._flat[layer]
                if node.gate is not None:
                    reads.append(node.gate)
            elif node.name in self._flat:
                reads = [self._flat[node.name]]
            needed.update(reads)
            order.append((node, reads))
        return order[::-1]

    def _operation(self, node: Node, now: _Run) -> Value:
        if node.name in self._flat:
            source = now.values[self._flat[node.name]]
            return Value(node.shape, now.batch, whole=_planar(self._sums(node, source, now), node))
        given = now.values.get(node.inputs[0])
        if isinstance(node, SumPool) and self.graph[node.inputs[0]].binary and given is not None:
            window = Window(node.kernel, node.stride, node.padding)
            return Value(node.shape, now.batch, pooled=(given, window))
        if isinstance(node, MaxPool) and self.graph[node.inputs[0]].binary and given is not None:
            window = Window(node.kernel, node.stride, node.padding, node.dilation)
            return given.any_of(window, node.shape)
        if isinstance(node, ChannelDecision):
            return self._decide(node, now)
        parts = [now.values[name].whole() for name in node.inputs]
        return Value(node.shape, now.batch, whole=reference.OPERATIONS[type(node)](node, *parts))

    def _decide(self, node: ChannelDecision, now: _Run) -> Value:
        source: Any = self.graph[node.inputs[0]]
        decision = self._decisions.get(node.name)
        if node.reads != "membrane":
            given = now.values[source.name]
            if decision is not None:
                spikes = given.words()[:, :, None]
                return Value(node.shape, now.batch, words=decision.open(spikes, 0, 0)[:, None])
            levels = given.whole()
        else:
            past = now.history[source.name]
            if decision is not None:
                found = decision.open(past, int(source.remembers), source.lowest)
                return Value(node.shape, now.batch, words=found[:, None])
            levels = levels_of(source, past)
        return Value(node.shape, now.batch, whole=reference.decide(node, levels))

    def _sums(self, layer: Any, source: Value, now: _Run) -> Tensor:
        """Sums ``[B, places, O]`` of a layer alone."""
        stage = self._stage_of(layer)
        if self._path(layer, stage, source) == "dense":
            return stage.dense(source)
        return stage.sums(source, now.steps, now.threads)

    def _stage_of(self, layer: Any) -> Stage:
        for neuron, name in self._fused.items():
            if name == layer.name:
                return self._stages[neuron]
        return self._stages[layer.name]

    def _path(self, layer: Any, stage: Stage, source: Value) -> str:
        """Whether a layer goes event by event or multiplies whole matrices."""
        given = self.graph[self._flat[layer.name]]
        if given.low < 0 or given.high > MOST_COUNT:
            chosen = "dense"
        elif self.path is not None:
            chosen = self.path
        else:
            chosen = stage.faster(source)
        self.choices[layer.name] = chosen
        return chosen

    def _neuron(self, node: Neuron, now: _Run, wanted: set[Any]) -> Value:
        keeps = (node.name, "membrane") in wanted or any(
            isinstance(reader, ChannelDecision) and reader.reads == "membrane"
            for reader in self.graph.readers(node.name)
        )
        stage = self._stages.get(node.name)
        if stage is None:
            return self._slow_neuron(node, now, keeps)
        layer = self._fused.get(node.name)
        source: Value | Tensor
        if layer is not None and layer not in now.values:
            source = now.values[self._flat[layer]]
            if self._path(self.graph[layer], stage, source) == "dense":
                source = stage.dense(source)
        else:
            source = _rowed(now.values[node.inputs[0]].whole())
        opened = NO_WORDS
        if node.gate is not None and node.closed is not None:
            opened = now.values[node.gate].words(stage.words)
        added = NO_WORDS
        if node.counts is not None:
            added = self._added(node, now, stage.words)
        spikes, past = stage.fire(
            source,
            now.state[node.name],
            now.steps,
            now.threads,
            opened=opened,
            added=added,
            history=keeps,
        )
        if keeps:
            now.history[node.name] = past
        return Value(node.shape, now.batch, words=spikes)

    def _added(self, node: Neuron, now: _Run, words: int) -> Words:
        """The added numbers as planes ``[B, places, bits, words]``."""
        value = now.values[node.inputs[1]]
        low, high = node.counts or (0, 0)
        bits = max(1, (high - low).bit_length())
        if low == 0 and bits == 1 and self.graph[node.inputs[1]].binary:
            return value.words(words)
        numbers = _rowed(value.whole()).numpy() - low
        return pack(numbers[:, :, None] >> np.arange(bits)[:, None] & 1, words)

    def _slow_neuron(self, node: Neuron, now: _Run, keeps: bool) -> Value:
        """As the reference does it, on unpacked states."""
        bits, words = self._room(node)
        kept = now.state[node.name]
        state = {node.name: states_of(node, kept), "": now.state[""].clone()}
        given: dict[Any, Tensor] = {
            name: now.values[name].whole().view(now.steps, now.samples, *self.graph[name].shape)
            for name in (*node.inputs, *([node.gate] if node.gate else []))
        }
        spikes, levels = reference._neuron(node, given, state)
        kept[...] = _planes(state[node.name], bits, words)
        if keeps:
            states = (levels - node.lowest) << int(node.remembers)
            now.history[node.name] = _planes(states.flatten(0, 1), bits, words)
        return Value(node.shape, now.batch, whole=spikes.flatten(0, 1))


def _is_known(node: Neuron) -> bool:
    numbers = 1 if node.counts is None else node.counts[1] - node.counts[0] + 1
    return node.pixels is None and numbers <= MOST_NUMBERS


def _rowed(value: Tensor) -> Tensor:
    """``[B, C, *space]`` to ``[B, places, C]``."""
    return value.flatten(2).transpose(1, 2) if value.ndim > 2 else value[:, None]


def _planar(sums: Tensor, node: Node) -> Tensor:
    """``[B, places, C]`` to ``[B, C, *space]``."""
    return sums.transpose(1, 2).reshape(len(sums), *node.shape)


def _planes(states: Tensor, bits: int, words: int) -> Words:
    numbers = _rowed(states).numpy()
    return pack(numbers[:, :, None] >> np.arange(bits)[:, None] & 1, words)
