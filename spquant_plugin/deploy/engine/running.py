"""One run of the fast engine: the values that are there, and how each node makes its own of them.

What the kernels do not know runs as the reference does, on the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..graph import ChannelDecision, Neuron, Node
from . import reference
from .counts import with_bits
from .depthwise import Depthwise
from .operations import counted, operate
from .prepared import Prepared
from .rows import LANES, Words, pack
from .stages import NO_WORDS, Stage, levels_of, states_of
from .values import Value

State = dict[str, Any]
# Events of one element beyond which a list of them is longer than what it lists.
MOST_COUNT = 2**15


class Run:
    """All steps and samples of one call, with the state that they begin from and change.

    ``path`` is what every layer takes where it can; ``choices`` notes what each took.
    """

    def __init__(
        self,
        prepared: Prepared,
        sizes: tuple[int, int],
        threads: int,
        state: State,
        path: str | None,
        choices: dict[str, str],
    ) -> None:
        self.prepared, self.graph = prepared, prepared.graph
        self.steps, self.samples = sizes
        self.batch = self.steps * self.samples
        self.threads, self.state = threads, state
        self.begun = state[""].numpy().astype(np.uint64)
        self.path, self.choices = path, choices
        self.values: dict[str, Value] = {}
        self.history: dict[str, Words] = {}

    def operation(self, node: Node) -> Value:
        """What a node gives that is no neuron and no input."""
        flat = self.prepared.flat
        if node.name in flat:
            return self._sums(node, self.values[flat[node.name]])
        if isinstance(node, ChannelDecision):
            return self._decide(node)
        sources = [self.graph[name] for name in node.inputs]
        return operate(node, sources, [self.values[name] for name in node.inputs])

    def _decide(self, node: ChannelDecision) -> Value:
        source: Any = self.graph[node.inputs[0]]
        decision = self.prepared.decisions.get(node.name)
        if node.reads != "membrane":
            given = self.values[source.name]
            if decision is not None:
                spikes = given.words()[:, :, None]
                return Value(node.shape, self.batch, words=decision.open(spikes, 0, 0)[:, None])
            levels = given.whole()
        else:
            past = self.history[source.name]
            if decision is not None:
                found = decision.open(past, int(source.remembers), source.lowest)
                return Value(node.shape, self.batch, words=found[:, None])
            levels = levels_of(source, past)
        return Value(node.shape, self.batch, whole=reference.decide(node, levels))

    def _sums(self, layer: Any, source: Value) -> Value:
        """Sums of a layer alone."""
        stage = self.prepared.stage_of(layer)
        if self._path(layer, stage, source) == "dense":
            return self._multiplied(layer, stage, source)
        rows = stage.sums(source, self.steps, self.threads)
        return Value(layer.shape, self.batch, rows=rows)

    def _multiplied(self, layer: Any, stage: Stage, source: Value) -> Value:
        return Value(layer.shape, self.batch, rows=stage.dense(source))

    def _path(self, layer: Any, stage: Stage, source: Value) -> str:
        """Whether a layer goes event by event or multiplies whole matrices."""
        given = self.graph[self.prepared.flat[layer.name]]
        if isinstance(stage.weights, Depthwise):
            chosen = "planes"
        elif given.low < 0 or given.high > MOST_COUNT:
            chosen = "dense"
        elif self.path is not None:
            chosen = self.path
        else:
            chosen = stage.faster(source)
        self.choices[layer.name] = chosen
        return chosen

    def neuron(self, node: Neuron, membrane: bool) -> Value:
        """Spikes; with ``membrane``, or where a decision reads them, the states are kept too."""
        keeps = membrane or node.name in self.prepared.levels
        stage = self.prepared.stages.get(node.name)
        if stage is None:
            return self._slow_neuron(node, keeps)
        layer = self.prepared.fused.get(node.name)
        summed = layer is None or layer in self.values
        if layer is None or summed:
            source = self.values[node.inputs[0]]
        else:
            source = self.values[self.prepared.flat[layer]]
            if self._path(self.graph[layer], stage, source) == "dense":
                source, summed = self._multiplied(node, stage, source), True
        opened = NO_WORDS
        if node.gate is not None and node.closed is not None:
            opened = self.values[node.gate].words(stage.words)
        added = NO_WORDS
        if node.counts is not None:
            added = self._added(node, stage.words)
        spikes, past = stage.fire(
            source,
            self.state[node.name],
            self.steps,
            self.threads,
            summed=summed,
            begun=self.begun,
            opened=opened,
            added=added,
            history=keeps,
        )
        if keeps:
            self.history[node.name] = past
        return Value(node.shape, self.batch, words=spikes)

    def _added(self, node: Neuron, words: int) -> Words:
        """The added numbers as planes ``[B, places, bits, words]``."""
        value = self.values[node.inputs[1]]
        low, high = node.counts or (0, 0)
        bits = max(1, (high - low).bit_length())
        if low == 0 and counted(self.graph[node.inputs[1]]):
            return with_bits(value.planes(words), bits)
        numbers = value.rows(LANES * words).numpy() - low
        return pack(numbers[:, :, None] >> np.arange(bits)[:, None] & 1, words)

    def _slow_neuron(self, node: Neuron, keeps: bool) -> Value:
        """As the reference does it, on unpacked states."""
        bits, words = self.prepared.room(node)
        kept = self.state[node.name]
        state = {node.name: states_of(node, kept), "": self.state[""].clone()}
        given: dict[Any, Tensor] = {
            name: self.values[name].whole().view(self.steps, self.samples, *self.graph[name].shape)
            for name in (*node.inputs, *([node.gate] if node.gate else []))
        }
        spikes, levels = reference._neuron(node, given, state)
        kept[...] = _planes(state[node.name], bits, words)
        if keeps:
            states = (levels - node.lowest) << int(node.remembers)
            self.history[node.name] = _planes(states.flatten(0, 1), bits, words)
        return Value(node.shape, self.batch, whole=spikes.flatten(0, 1))


def _rowed(value: Tensor) -> Tensor:
    """``[B, C, *space]`` to ``[B, places, C]``."""
    return value.flatten(2).transpose(1, 2) if value.ndim > 2 else value[:, None]


def _planes(states: Tensor, bits: int, words: int) -> Words:
    numbers = _rowed(states).numpy()
    return pack(numbers[:, :, None] >> np.arange(bits)[:, None] & 1, words)
