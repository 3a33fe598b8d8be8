"""The fast engine for a network whose weights change; what no step changes is packed once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..graph import Graph
from ..steps import changing
from .compiled import CompiledEngine
from .stepped import Stepped


class SteppedCompiledEngine(Stepped[CompiledEngine]):
    """Takes the options of :class:`~.compiled.CompiledEngine`."""

    name = CompiledEngine.name

    def __init__(self, graph: Graph, **options: Any) -> None:
        first, *later = [replace(one, later=()) for one in graph.by_step]
        begun = CompiledEngine(first, **options)
        shared = begun.prepared.without(changing(graph))
        others = [CompiledEngine(one, **options, shared=shared) for one in later]
        super().__init__([begun, *others])

    @property
    def memory(self) -> str:
        """How it trades memory for time."""
        return self.engines[0].memory

    @property
    def path(self) -> str | None:
        """The path that every layer must take, where one was asked for."""
        return self.engines[0].path

    @property
    def choices(self) -> dict[str, str]:
        """The path that each layer took last."""
        return {name: path for engine in self.engines for name, path in engine.choices.items()}

    @property
    def packed_bytes(self) -> int:
        """Bytes that the engines made beside their graphs; what they share counts once."""
        made = {id(one): one for engine in self.engines for one in engine.prepared.made}
        return sum(one.nbytes for one in made.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and tables."""
        kept = {id(one): one for engine in self.engines for one in engine.prepared.kept}
        return self.packed_bytes + sum(tensor.nbytes for tensor in kept.values())

    def strip(self) -> None:
        """Let go of the neurons' tables in the graphs too."""
        for engine in self.engines:
            engine.strip()
        self._graph = None
