"""Running a network whose weights change: each step with the engine of its own graph.

All engines work on one state, since what changes are weights and tables and never what a neuron
stores. The state knows how many steps there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...errors import DeployError
from ..graph import Graph, Neuron
from ..steps import together
from .record import Engine, Record
from .reference import ReferenceEngine

One = TypeVar("One", bound=Engine)


class State(dict[str, Any]):
    """States of all neurons by their names, and how many steps there were since rest."""

    step = 0


class Stepped(Generic[One]):
    """An engine made of one for each step."""

    name: str

    def __init__(self, engines: Sequence[One]) -> None:
        self.engines = engines
        self._graph: Graph | None = None

    @property
    def graph(self) -> Graph:
        """What it runs; of weights that the engines hold packed only the shapes."""
        if self._graph is None:
            first, *later = [engine.graph for engine in self.engines]
            self._graph = replace(first, later=tuple(later))
        return self._graph

    def whole_graph(self) -> Graph:
        """The same with all weights."""
        return together([engine.whole_graph() for engine in self.engines])

    def rest(self, batch: int) -> State:
        """All neurons at rest, before the first step."""
        return State(self.engines[0].rest(batch))

    def held_bytes(self, state: State) -> int:
        return self.engines[0].held_bytes(state)

    def spike_bytes(self, neuron: Neuron, steps: int, batch: int) -> int:
        """Bytes of the spikes that a run keeps of a neuron layer."""
        engine: Any = self.engines[0]
        return int(engine.spike_bytes(neuron, steps, batch))

    def run(self, x: Tensor, state: State, wanted: set[Any]) -> Record:
        most = len(self.engines)
        if state.step + len(x) > most:
            after = f" after {state.step} others" if state.step else ""
            raise DeployError(
                f"received {len(x)} steps{after}: the weights of this network change from step to "
                f"step and are known for {most}. Pass at most {most} steps, and call reset() "
                "before a stream begins anew."
            )
        parts = []
        for one in x.split(1):
            parts.append(self.engines[state.step].run(one, state, wanted).values)
            state.step += 1
        return Record({key: torch.cat([part[key] for part in parts]) for key in parts[0]})


class SteppedEngine(Stepped[ReferenceEngine]):
    """The reference, step by step."""

    name = ReferenceEngine.name

    def __init__(self, graph: Graph) -> None:
        alone = [replace(one, later=()) for one in graph.by_step]
        super().__init__([ReferenceEngine(one) for one in alone])
