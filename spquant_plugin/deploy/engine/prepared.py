"""What the fast engine makes of a graph before anything runs: rows of bits, and what is one pass.

A layer and the neurons behind it are one pass where nobody asks for the sums between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..graph import ChannelDecision, Convolution, Dense, Graph, Neuron, Node, Reshape
from .decision import Decision
from .depthwise import Depthwise
from .grouping import are_few
from .light import lighten, without_tables
from .rows import LANES, score_bits
from .stages import MOST_LEVEL_BITS, MOST_NUMBERS, MOST_PLANES, Stage, Weights, planes_needed


class Prepared:
    """Stages by the node whose value they give; what they do not know runs as the reference does.

    ``fused`` names the layer that a neuron's stage begins with; ``flat`` what a layer reads, a
    dense one before it was flattened; ``levels`` the neurons whose levels decisions read. ``keep``
    lets layers keep the numbers that they unpack. ``shared`` are stages that are there already, of
    the same nodes in the graph of another step.
    """

    def __init__(
        self, graph: Graph, keep: bool, shared: Mapping[str, Stage] = MappingProxyType({})
    ) -> None:
        self.graph = graph
        self.stages: dict[str, Stage] = {}
        self.shared = shared
        self.fused: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}
        self.flat: dict[str, str] = {}
        self.levels = _decisive(graph)
        for node in graph.nodes:
            if isinstance(node, Neuron):
                self._prepare_neuron(node)
            elif isinstance(node, (Convolution, Dense)):
                self._prepare_layer(node)
            elif isinstance(node, ChannelDecision) and Decision.knows(node, graph[node.inputs[0]]):
                self.decisions[node.name] = Decision(node)
        for weights in filter(None, (stage.weights for stage in self.stages.values())):
            weights.keep = keep
        self.shared = {}
        self._hold(lighten(self))

    def _prepare_layer(self, node: Any) -> None:
        source = self.graph[node.inputs[0]]
        while isinstance(node, Dense) and isinstance(source, Reshape):
            source = self.graph[source.inputs[0]]
        kind = _kind(node, source)
        if kind is None or planes_needed(node.low, node.high) > MOST_PLANES:
            return
        self.flat[node.name] = source.name
        readers = list(self.graph.readers(node.name))
        behind = readers[0] if len(readers) == 1 else None
        if isinstance(behind, Neuron) and behind.inputs[0] == node.name and _is_known(behind):
            self.fused[behind.name] = node.name
            self.stages[behind.name] = self.shared.get(behind.name) or Stage(
                behind, kind.of(node, source.shape, behind.sign), behind, node.low, node.high
            )
        else:
            self.stages[node.name] = self.shared.get(node.name) or Stage(
                node, kind.of(node, source.shape, None), None, node.low, node.high
            )

    def _prepare_neuron(self, node: Neuron) -> None:
        source = self.graph[node.inputs[0]]
        known = planes_needed(source.low, source.high) <= MOST_PLANES
        if node.name not in self.stages and known and _is_known(node):
            self.stages[node.name] = self.shared.get(node.name) or Stage(
                node, None, node, source.low, source.high
            )

    def without(self, changed: set[str]) -> dict[str, Stage]:
        """The stages in which none of these nodes takes part."""
        return {
            name: stage
            for name, stage in self.stages.items()
            if name not in changed and self.fused.get(name) not in changed
        }

    def stage_of(self, layer: Node) -> Stage:
        """The stage that holds a layer's weights."""
        for neuron, name in self.fused.items():
            if name == layer.name:
                return self.stages[neuron]
        return self.stages[layer.name]

    def room(self, node: Neuron) -> tuple[int, int]:
        """Planes of a packed state, and words of each."""
        stage = self.stages.get(node.name)
        words = stage.words if stage is not None else -(-node.shape[0] // LANES)
        return max(1, (node.states - 1).bit_length()), words

    @property
    def packed_bytes(self) -> int:
        """Bytes of all that was made beside the graph."""
        return sum(made.nbytes for made in self.made)

    @property
    def made(self) -> list[Stage | Decision]:
        """All that was made beside the graph."""
        return [*self.stages.values(), *self.decisions.values()]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and tables."""
        return self.packed_bytes + sum(tensor.nbytes for tensor in self.kept)

    @property
    def kept(self) -> list[Tensor]:
        """Weights and tables that the graph itself holds."""
        found = []
        for node in self.graph.nodes:
            if isinstance(node, Convolution | Dense) and node.name not in self.flat:
                found.append(node.weight)
            if isinstance(node, Neuron) and node.name not in self.stages:
                found.append(node.breaks)
        return found

    def strip(self) -> None:
        """Let go of the neurons' tables in the graph too."""
        self._hold(without_tables(self))

    def _hold(self, graph: Graph) -> None:
        """Keep this graph only."""
        self.graph = graph
        for stage in self.stages.values():
            stage.hold(graph)


def _kind(node: Convolution | Dense, source: Node) -> type[Weights] | None:
    """How a layer is held packed, where it is."""
    if isinstance(node, Dense) or node.groups == 1:
        return Weights
    if Depthwise.knows(node, source.low, source.high):
        return Depthwise
    return Weights if are_few(node) else None


def _decisive(graph: Graph) -> set[str]:
    decisions = [node for node in graph.nodes if isinstance(node, ChannelDecision)]
    return {node.inputs[0] for node in decisions if node.reads == "membrane"}


def _is_known(node: Neuron) -> bool:
    numbers = 1 if node.counts is None else node.counts[1] - node.counts[0] + 1
    return numbers <= MOST_NUMBERS and score_bits(node) <= MOST_LEVEL_BITS
