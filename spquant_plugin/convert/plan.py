"""The plan of a conversion: a row for every module, and the steps that will be taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..config import ChannelGate, QuantizedNorm, SpQuantConfig, UniformInput, _Weights
from ..errors import UnsupportedModuleError
from ..modules.host import Host
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from ..modules.self_firing import SelfFiring
from ..table import no_such_row, render
from .pairing import Pair


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan: ``action`` is convert, quantize, gate, keep, shared or refuse."""

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


@dataclass(frozen=True)
class NormStep:
    """A batch norm to quantise, behind the layer whose scale it takes over."""

    path: str
    target: type[QuantizedBatchNorm]
    rule: QuantizedNorm
    layer: str


@dataclass(frozen=True)
class GateStep:
    """A weight layer to put a channel gate behind."""

    path: str
    host: Host
    rule: ChannelGate
    pair: Pair


@dataclass
class ConversionPlan:
    """The whole conversion as a table: ``print(plan)`` shows every row, paths never shortened.

    ``rows`` holds a :class:`~spquant_plugin.convert.PlanRow` for every module with weights or state
    and for every leaf module. ``refused`` are the rows that stop a conversion. With a sample,
    ``pairs`` tells for every weight layer between which neurons it stands, and why it cannot have a
    channel gate where it cannot; they are printed where a gate is asked for.
    """

    rows: list[PlanRow] = field(default_factory=list)
    steps: list[NeuronStep | LayerStep] = field(default_factory=list)
    norms: list[NormStep] = field(default_factory=list)
    gates: list[GateStep] = field(default_factory=list)
    pairs: dict[str, Pair] = field(default_factory=dict)
    shows_pairs: bool = False
    self_firing: dict[str, SelfFiring] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)  # of neurons: the layer whose it is

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
        text = f"{render(header, lines)}\n{len(self.rows)} rows: {summary}"
        return f"{text}\n\n{self._pair_table()}" if self.shows_pairs else text

    def _pair_table(self) -> str:
        gated = {step.path for step in self.gates}
        lines = [
            (
                path,
                pair.source or "",
                pair.target or "",
                pair.end if path in gated and pair.end else "",
                "channel gate" if path in gated else pair.reason or "no channel gate asked",
            )
            for path, pair in self.pairs.items()
        ]
        return render(("weight layer", "from", "to", "gated after", "channel gate"), lines)

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
