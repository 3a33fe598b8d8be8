r"""Energy of a network per sample, layer by layer, under models that are named.

The model of the rows is *compute and memory*: each operation at the cost of its operands, and each
bit that is moved at the cost of the memory that it comes from. Beside its total stand the sums of
models that others use, and an artificial network of the same bits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..table import no_such_row
from .part import ReportPart
from .units import count_text, joules_text

MODELS = {
    "compute_and_memory": "the rows: operations by operand type, and memory traffic",
    "compute": "the same without memory",
    "eq31": "the publication's Eq. 31, integers as INT8; it lacks input channels and memory",
    "spikingjelly": "4.6 pJ a dense MAC, 0.9 an AC, 24.96 a byte: 4 for each, 8 a neuron's step",
    "quantised_ann": "one dense pass of an ANN with these weights",
}
CONVENTION = (
    "adds and products of whole numbers are INT8 where operands and sums fit 8 bits, else INT32;",
    "a comparison costs an addition; floats wider than 32 bits count as FP32",
    "memory: weights are read once per effective operation, inputs once per step, spikes written",
    "once and membranes read and written once per step, gates' weights once per product; bits cost",
    "their share of a word of 64, sums stay in registers. Each comes from the smallest SRAM that",
    "fits (weights of a layer, membranes, spikes of a step); none is off chip, which is dearer",
    "not counted: biases, scales, norms, pooling, input quantisers, attention's products, control,",
    "leakage, the membranes that gates read and the masks that they write",
    "the ANN's products are dense: no zero is skipped, and its sums stay in registers as well",
)
PARTS = ("compute_pj", "weight_pj", "input_pj", "membrane_pj", "spike_pj")
HEADER = (
    *("path", "kind", "numbers", "operations", "compute", "weights", "inputs", "membranes"),
    *("spikes", "total", "note"),
)


@dataclass(frozen=True)
class EnergyRow:
    """What one module takes for one sample, in pJ.

    ``kind`` and ``numbers`` are those of its row of operations. The memory's part is what it costs
    to read weights and inputs, to read and write membranes, and to write spikes.
    """

    path: str
    type: str
    kind: str
    numbers: str = ""
    operations: float = 0.0
    compute_pj: float = 0.0
    weight_pj: float = 0.0
    input_pj: float = 0.0
    membrane_pj: float = 0.0
    spike_pj: float = 0.0
    note: str = ""

    @property
    def memory_pj(self) -> float:
        """What moving data takes."""
        return self.weight_pj + self.input_pj + self.membrane_pj + self.spike_pj

    @property
    def total_pj(self) -> float:
        """Compute and memory."""
        return self.compute_pj + self.memory_pj

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        parts = (getattr(self, part) for part in PARTS)
        return (
            self.path or "(model)",
            self.kind if self.kind != "none" else "",
            self.numbers,
            count_text(self.operations),
            *(joules_text(part) if part else "" for part in parts),
            joules_text(self.total_pj) if self.total_pj else "",
            self.note,
        )


@dataclass(frozen=True)
class MemoryLevel:
    """What the rows move in and out of the memories of up to ``size`` bytes."""

    size: int
    bits: float
    energy_pj: float


@dataclass(frozen=True)
class EnergyReport(ReportPart[EnergyRow]):
    """The energy part of a report: a row for each layer, neuron and gate, and named models.

    ``models`` holds the total of each of the named models in pJ, ``memory_levels`` the traffic of
    the rows by memory, the smallest first.
    """

    header = HEADER

    table_name: str = "45nm"
    layers: tuple[EnergyRow, ...] = ()
    models: tuple[tuple[str, float], ...] = ()
    timesteps: int = 1
    ann_bits: int = 1
    memory_levels: tuple[MemoryLevel, ...] = ()

    def _sum(self, name: str) -> float:
        return sum((getattr(row, name) for row in self.layers), 0.0)

    @property
    def compute_pj(self) -> float:
        """Additions, products and comparisons."""
        return self._sum("compute_pj")

    @property
    def memory_pj(self) -> float:
        """Memory traffic."""
        return self._sum("memory_pj")

    @property
    def total_pj(self) -> float:
        """Compute and memory."""
        return self.compute_pj + self.memory_pj

    def model(self, name: str) -> float:
        """The total in pJ under one of the named models."""
        found = dict(self.models)
        if name not in found:
            raise KeyError(no_such_row(name, list(found)))
        return found[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: totals in pJ, the models, and ``layers``, a list with a record per row."""
        totals = {name: getattr(self, name) for name in ("compute_pj", "memory_pj", "total_pj")}
        return {
            "table": self.table_name,
            **totals,
            "models": dict(self.models),
            "timesteps": self.timesteps,
            "ann_bits": self.ann_bits,
            "memory_levels": [asdict(level) for level in self.memory_levels],
            "convention": list(CONVENTION),
            "layers": [asdict(row) for row in self.layers],
        }

    @property
    def title(self) -> str:
        return f"energy per sample, {self.table_name}: compute and memory"

    @property
    def footnotes(self) -> tuple[str, ...]:
        """The named models, and the convention."""
        total = dict(self.models).get("compute_and_memory", 0.0)
        lines = []
        for name, value in self.models:
            ratio = f", {value / total:.3g} of the rows' total" if total else ""
            text = MODELS[name]
            if name == "quantised_ann":
                text = f"{text}, activations of {self.ann_bits} bits for T = {self.timesteps}"
            lines.append(f"{name}: {joules_text(value)}{ratio} ({text})")
        levels = ", ".join(
            f"{_kibibytes(level.size)} {joules_text(level.energy_pj)}"
            for level in self.memory_levels
        )
        return (*lines, f"memory traffic by level: {levels}", *CONVENTION)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the sums, as text."""
        sums = (joules_text(self._sum(part)) for part in PARTS)
        operations = count_text(self._sum("operations"))
        return [
            *(row.cells() for row in self.layers),
            ("sum", "", "", operations, *sums, joules_text(self.total_pj), ""),
        ]


def _kibibytes(size: int) -> str:
    """The size of a memory, which is a power of two."""
    for power, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= power:
            return f"{size / power:.4g} {unit}"
    return f"{size} B"
