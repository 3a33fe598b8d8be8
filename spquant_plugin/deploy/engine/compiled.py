"""The fast engine: event-driven kernels on rows of bits, compiled by numba."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DeployError
from ..graph import Graph, Input, Neuron, Node, size
from .jit import use_threads
from .light import restore
from .prepared import Prepared
from .record import Record
from .running import Run, State
from .stages import Stage, levels_of
from .values import Value

MEMORY = ("fast", "small")
PATHS = ("events", "dense")


class CompiledEngine:
    """Runs a graph with compiled kernels.

    Weights are held packed, one bit plane after the other. ``memory="fast"`` also keeps the
    numbers of layers that were multiplied densely; ``"small"`` unpacks them each time. ``path``
    makes every layer take one of PATHS where it can, which else follows the measured rates.
    ``shared`` are stages of the same nodes, which another engine prepared.
    """

    name = "numba"

    def __init__(
        self,
        graph: Graph,
        *,
        memory: str = "fast",
        path: str | None = None,
        shared: Mapping[str, Stage] = MappingProxyType({}),
    ) -> None:
        if memory not in MEMORY:
            raise DeployError(f"memory = {memory!r}: must be {' or '.join(map(repr, MEMORY))}.")
        if path is not None and path not in PATHS:
            raise DeployError(f"path = {path!r}: must be {' or '.join(map(repr, PATHS))}, or None.")
        self.memory, self.path = memory, path
        self.choices: dict[str, str] = {}
        self._prepared = Prepared(graph, memory == "fast", shared)
        self._orders: dict[frozenset[Any], list[tuple[Node, list[str]]]] = {}

    @property
    def prepared(self) -> Prepared:
        """What it made of the graph."""
        return self._prepared

    @property
    def graph(self) -> Graph:
        """What it runs; weights that it holds packed have shapes only."""
        return self._prepared.graph

    def whole_graph(self) -> Graph:
        """The same with all weights."""
        return restore(self._prepared)

    @property
    def packed_bytes(self) -> int:
        """Bytes that the engine made beside the graph."""
        return self._prepared.packed_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and tables."""
        return self._prepared.weight_bytes

    def strip(self) -> None:
        """Let go of the neurons' tables in the graph too."""
        self._prepared.strip()
        self._orders.clear()

    # --- states ---------------------------------------------------------------------------------

    def rest(self, batch: int) -> State:
        """All neurons at rest, packed: a plane for each bit of a state."""
        states: State = {"": torch.zeros(batch, dtype=torch.bool)}
        for node in self.graph.neurons:
            bits, words = self._prepared.room(node)
            state = np.zeros((batch, size(node.shape[1:]), bits, words), np.uint64)
            for bit in range(bits):
                if node.rest >> bit & 1:
                    state[:, :, bit] = np.uint64(2**64 - 1)
            states[node.name] = state
        return states

    def held_bytes(self, state: State) -> int:
        return sum(part.nbytes for part in state.values())

    def spike_bytes(self, neuron: Neuron, steps: int, batch: int) -> int:
        """Bytes of the spikes that a run keeps of a neuron layer."""
        return 8 * self._prepared.room(neuron)[1] * steps * batch * size(neuron.shape[1:])

    # --- running --------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, x: Tensor, state: State, wanted: set[Any]) -> Record:
        steps, samples = x.shape[:2]
        threads = use_threads(torch.get_num_threads())
        now = Run(self._prepared, (steps, samples), threads, state, self.path, self.choices)
        found: dict[Any, Tensor] = {}
        for node, read in self._order(frozenset(wanted)):
            if isinstance(node, Input):
                value = Value(node.shape, now.batch, whole=x.to(torch.int32).flatten(0, 1))
            elif isinstance(node, Neuron):
                value = now.neuron(node, (node.name, "membrane") in wanted)
            else:
                value = now.operation(node)
            now.values[node.name] = value
            if node.name in wanted:
                found[node.name] = value.whole().view(steps, samples, *node.shape)
            if (node.name, "membrane") in wanted and isinstance(node, Neuron):
                levels = levels_of(node, now.history[node.name])
                found[node.name, "membrane"] = levels.view(steps, samples, *node.shape)
            for name in read:
                del now.values[name]
                now.history.pop(name, None)
        state[""].fill_(True)
        return Record(found)

    def _order(self, wanted: frozenset[Any]) -> list[tuple[Node, list[str]]]:
        """Nodes that must run, in order, with the values that nobody reads any more after each."""
        if wanted in self._orders:
            return self._orders[wanted]
        reads = self._reads({name for name in wanted if isinstance(name, str)})
        last = {name: i for i, (node, names) in enumerate(reads) for name in (node.name, *names)}
        order = [
            (node, [name for name in last if last[name] == i]) for i, (node, _) in enumerate(reads)
        ]
        self._orders[wanted] = order
        return order

    def _reads(self, needed: set[str]) -> list[tuple[Node, list[str]]]:
        """Nodes that must run, in order, with the values that each reads."""
        order: list[tuple[Node, list[str]]] = []
        fused, flat = self._prepared.fused, self._prepared.flat
        for node in reversed(self.graph.nodes):
            if not isinstance(node, Neuron) and node.name not in needed:
                continue
            reads = list(node.inputs)
            if isinstance(node, Neuron):
                layer = fused.get(node.name)
                if layer is not None and layer not in needed:
                    reads[0] = flat[layer]
                if node.gate is not None:
                    reads.append(node.gate)
            elif node.name in flat:
                reads = [flat[node.name]]
            needed.update(reads)
            order.append((node, reads))
        return order[::-1]
