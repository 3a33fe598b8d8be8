"""Which engine runs a network."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ...errors import DeployError
from ..graph import Graph
from .record import Engine
from .reference import ReferenceEngine
from .stepped import SteppedEngine

ENGINES = ("auto", "numba", "torch")


def make_engine(graph: Graph, name: str, **options: Any) -> Engine:
    """The engine of this name; ``"auto"`` is numba where it is installed."""
    if name not in ENGINES:
        raise DeployError(f"engine = {name!r}: must be one of {', '.join(map(repr, ENGINES))}.")
    if name == "torch" or (name == "auto" and find_spec("numba") is None):
        return SteppedEngine(graph, **options) if graph.later else ReferenceEngine(graph, **options)
    from .compiled import CompiledEngine
    from .stepped_compiled import SteppedCompiledEngine

    return (
        SteppedCompiledEngine(graph, **options) if graph.later else CompiledEngine(graph, **options)
    )
