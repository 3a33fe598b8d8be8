"""The plan of a conversion: a row for every module, and the steps that will be taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..config import SpQuantConfig, UniformInput, _Weights
from ..errors import UnsupportedModuleError
from ..modules.host import Host
from ..modules.neuron import SelfFiring
from ..modules.quantized_layer import QuantizedLayer
from ..table import no_such_row, render


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan: ``action`` is convert, quantize, keep, shared or refuse."""

    path: str
    type: str
    action: str
    reason: str
    shape: tuple[int, ...] | None = None
    bits: str = ""


@dataclass(frozen=True)
class NeuronStep:
    """A neuron to rebuild."""

    path: str
    host: Host
    config: SpQuantConfig
    channels: int | None


@dataclass(frozen=True)
class LayerStep:
    """A weight layer to quantise."""

    path: str
    target: type[QuantizedLayer]
    weights: _Weights | None
    input: UniformInput | None


@dataclass
class ConversionPlan:
    """The whole conversion as a table: ``print(plan)`` shows every row, paths never shortened.

    ``rows`` holds a :class:`~spquant_plugin.convert.PlanRow` for every module with weights or state
    and for every leaf module. ``refused`` are the rows that stop a conversion.
    """

    rows: list[PlanRow] = field(default_factory=list)
    steps: list[NeuronStep | LayerStep] = field(default_factory=list)
    self_firing: dict[str, SelfFiring] = field(default_factory=dict)

    @property
    def refused(self) -> list[PlanRow]:
        return [row for row in self.rows if row.action == "refuse"]

    def __getitem__(self, path: str) -> PlanRow:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(no_such_row(path, [row.path for row in self.rows]))

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.action] = counts.get(row.action, 0) + 1
        summary = ", ".join(f"{count} {action}" for action, count in sorted(counts.items()))
        header = ("path", "type", "action", "bits", "shape", "reason")
        lines = [
            (
                row.path or "(model)",
                row.type,
                row.action,
                row.bits,
                "x".join(map(str, row.shape)) if row.shape else "",
                row.reason,
            )
            for row in self.rows
        ]
        return f"{render(header, lines)}\n{len(self.rows)} rows: {summary}"

    __repr__ = __str__

    def raise_if_refused(self) -> None:
        """Raise an error that names every module that stops the conversion."""
        if not self.refused:
            return
        listed = "\n".join(
            f"  {row.path or '(model)'} ({row.type}): {row.reason}" for row in self.refused
        )
        raise UnsupportedModuleError(
            f"{len(self.refused)} selected modules cannot be converted:\n{listed}\n"
            "Mend what the reason names, or leave them alone with exclude=[...] or "
            "overrides={path: None}."
        )
