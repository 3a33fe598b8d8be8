"""What an engine takes and gives, and what every engine is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..graph import Graph


@dataclass
class Record:
    """What a run of all steps gave, each ``[T, N, *shape]``.

    ``values`` holds whole numbers (int32) of what was asked for: values by their name, stored
    levels by ``(name, "membrane")``.
    """

    values: dict[Any, Tensor] = field(default_factory=dict)

    def wanted(self, value: str, reads: str) -> Tensor:
        """What an output reads."""
        return self.values[value if reads == "value" else (value, reads)]


class Engine(Protocol):
    """Runs a graph on whole numbers."""

    name: str

    @property
    def graph(self) -> Graph:
        """What it runs; of weights that the engine holds packed only the shapes."""

    def whole_graph(self) -> Graph:
        """The same with all weights, perhaps made anew."""

    def rest(self, batch: int) -> Any:
        """States of all neurons at rest, for this many samples."""

    def run(self, x: Tensor, state: Any, wanted: set[Any]) -> Record:
        """Run all steps of ``x [T, N, *shape]`` (int32) from a state, which is changed."""

    def held_bytes(self, state: Any) -> int:
        """Bytes of the state."""
