"""What a network costs, as one object: ``Report``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .agreement.record import Agreement
from .energy import EnergyReport
from .memory import MemoryReport, MemoryRow
from .operations import OperationReport
from .plots import plot_report
from .sparsity import SparsityReport


@dataclass(frozen=True)
class Report:
    """What a network costs. ``print(report)`` shows every row, paths never shortened.

    ``agreement`` holds what other tools say of it, where they were asked.
    """

    model: str
    memory: MemoryReport
    sparsity: SparsityReport = field(default_factory=SparsityReport)
    operations: OperationReport = field(default_factory=OperationReport)
    energy: EnergyReport = field(default_factory=EnergyReport)
    agreement: tuple[Agreement, ...] = ()

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (self.memory, self.sparsity, self.operations, self.energy, *self.agreement)

    @property
    def layers(self) -> tuple[MemoryRow, ...]:
        """A row of memory for every module with weights or state."""
        return self.memory.layers

    def table(self) -> str:
        """All rows, the sums, and what they mean, as text."""
        return f"{self.model}, " + "\n\n".join(part.table() for part in self._parts)

    __str__ = table

    def __repr__(self) -> str:
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON can hold them."""
        return {
            "model": self.model,
            "memory": self.memory.to_dict(),
            "sparsity": self.sparsity.to_dict(),
            "operations": self.operations.to_dict(),
            "energy": self.energy.to_dict(),
            "agreement": [tool.to_dict() for tool in self.agreement],
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        parts = (part.to_markdown() for part in self._parts)
        return "\n\n".join([f"### {self.model}", *parts]) + "\n"

    def plot(self) -> Any:
        """A matplotlib figure: memory, operations of layers and gates, and energy, by module."""
        return plot_report(self.model, self.memory, self.operations, self.energy)
