"""Energy, latency and area of a network, layer by layer and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..part import ReportPart
from ..units import count_text
from .crossbar import Crossbar
from .quantities import EDAPS, MICROMETRES, NANOSECONDS, PICOJOULES, number, text

HEADER = (
    *("path", "type", "PEs", "columns", "bits in/out", "rate", "open"),
    *("energy", "latency", "area", "note"),
)
TOTALS = (
    *("pes", "tiles", "energy_pj", "latency_ns", "area_um2", "edap"),
    *("macs", "tops", "tops_per_watt", "tops_per_mm2"),
)
BASIS = (
    "a public analytical model of 65 nm crossbars (SpikeSim); nothing here was measured on silicon",
)
AS_PUBLISHED = (
    "compat: one column per weight and 22 bits per neuron, whatever the network's bits",
    "compat: no spike rates, gates, groups, linear layers or second kernel size",
    "compat: memory of outputs is counted for the first five layers only, as the public tool does",
)
FALLING = "compat: the public tool refuses layers whose PEs become fewer along the list, as here"
EXTENDED = (
    "columns: cells that one weight takes, its bits over those of a cell, rounded up",
    "weights that are not quantised have the bits of their float, 32 for float32",
    "PEs: groups are packed along a crossbar's diagonal; PEs of one kernel size share tiles",
    "bits in/out: stored for each value that a layer reads, and for each that it gives",
    "area of a layer: its share of its tiles, and the memory of what it reads and gives",
    "latency: layers one after the other, all but the last for 0.75 of their outputs; bits do not "
    "change it",
    "rate: share of inputs that are not zero, scales the energy of the arrays alone",
    "open: what gates leave, scales a layer's energy and latency; their own cost is not in it",
    "not in it: norms, pooling, sums and products of branches (attention); a neuron's update is a "
    "constant of each PE",
)
SEVERAL = (
    "weights that change with the time step take a matrix for each step, since a crossbar decodes "
    "nothing: PEs and area of all count, energy of the one that a step drives; programming cells "
    "anew in each step is not in the model"
)


@dataclass(frozen=True)
class HardwareRow:
    """One layer on the accelerator, for one sample; ``mapped`` False says why in ``note``."""

    path: str
    type: str
    mapped: bool = False
    pes: int = 0
    columns: int = 0
    weight_bits: int | None = None
    matrices: int = 1
    input_bits: int = 0
    membrane_bits: int = 0
    spike_rate: float = 1.0
    gate_factor: float = 1.0
    steps: float = 0.0
    macs: float = 0.0
    energy_pj: float = 0.0
    latency_ns: float = 0.0
    area_um2: float = 0.0
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if not self.mapped:
            blank = [""] * (len(HEADER) - 4)
            return (self.path or "(model)", self.type, *blank, "not mapped", self.note)
        return (
            self.path or "(model)",
            self.type,
            f"{self.pes:,}",
            str(self.columns),
            f"{self.input_bits}/{self.membrane_bits}",
            number(self.spike_rate),
            number(self.gate_factor),
            text(self.energy_pj, PICOJOULES),
            text(self.latency_ns, NANOSECONDS),
            text(self.area_um2, MICROMETRES),
            self.note,
        )


@dataclass(frozen=True)
class HardwareReport(ReportPart[HardwareRow]):
    """What a network takes on one accelerator: totals for one sample, and a row for each layer."""

    header = HEADER

    model: str
    crossbar: Crossbar
    timesteps: int
    compat: bool
    tiles: int
    layers: tuple[HardwareRow, ...]

    @property
    def pes(self) -> int:
        """Processing elements of all layers."""
        return sum(row.pes for row in self.layers)

    @property
    def energy_pj(self) -> float:
        """Energy for one sample, over all its steps."""
        return sum(row.energy_pj for row in self.layers)

    @property
    def latency_ns(self) -> float:
        """Time for one sample, over all its steps."""
        return sum(row.latency_ns for row in self.layers)

    @property
    def area_um2(self) -> float:
        """Area of tiles and of the memory of neurons."""
        return sum(row.area_um2 for row in self.layers)

    @property
    def edap(self) -> float:
        """Energy times latency times area, in J·s·mm²."""
        return self.energy_pj * self.latency_ns * self.area_um2 * 1e-27

    @property
    def macs(self) -> float:
        """Dense multiplications with an addition for one sample, over all its steps."""
        return sum(row.macs for row in self.layers)

    @property
    def tops(self) -> float | None:
        """Dense operations per second, two per MAC, in 10^12; None where gates leave no time."""
        return 2 * self.macs / self.latency_ns / 1e3 if self.latency_ns else None

    @property
    def tops_per_watt(self) -> float | None:
        """Dense operations per energy."""
        return 2 * self.macs / self.energy_pj if self.energy_pj else None

    @property
    def tops_per_mm2(self) -> float | None:
        """Dense operations per second and area."""
        return None if self.tops is None else self.tops / self.area_um2 * 1e6

    @property
    def unmapped(self) -> tuple[HardwareRow, ...]:
        """Layers that are in no total, with the reason in their ``note``."""
        return tuple(row for row in self.layers if not row.mapped)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the settings, the totals, and ``layers``, a record for each row."""
        return {
            "model": self.model,
            "crossbar": self.crossbar.to_dict(),
            "timesteps": self.timesteps,
            "compat": self.compat,
            **{name: getattr(self, name) for name in TOTALS},
            "notes": list(self.footnotes),
            "layers": [asdict(row) for row in self.layers],
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(self) -> Any:
        """A matplotlib figure: energy, latency and area of each layer."""
        from .plots import plot_report

        return plot_report(self)

    def __repr__(self) -> str:
        return str(self)

    @property
    def title(self) -> str:
        own = self.crossbar
        cell = "" if self.compat else f", {own.cell_bits} bit per cell"
        grid = f"{own.size} x {own.size} {own.device} crossbars{cell}"
        chip = f"{own.pes_per_tile} PEs per tile, {own.clock_mhz:g} MHz"
        return f"{self.model}: {grid}, {chip}, {self.timesteps} time steps"

    @property
    def footnotes(self) -> tuple[str, ...]:
        """The totals, and what they do and do not hold."""
        rates = f"{number(self.tops)} TOPS, {number(self.tops_per_watt)} TOPS/W"
        chip = f"{self.tiles:,} tiles, EDAP {text(self.edap, EDAPS)}"
        counted = "TOPS: 2 per dense MAC, padding counted, whatever was skipped"
        pes = [row.pes for row in self.layers if row.mapped]
        left_out = f"{len(self.unmapped)} layers are not mapped and in no total"
        return (
            f"{chip}, {rates}, {number(self.tops_per_mm2)} TOPS/mm²",
            *([left_out] if self.unmapped else []),
            *BASIS,
            *(AS_PUBLISHED if self.compat else EXTENDED),
            *([SEVERAL] if any(row.matrices > 1 for row in self.layers) else []),
            *([FALLING] if self.compat and pes != sorted(pes) else []),
            f"{counted}; {count_text(self.macs)} MACs per sample",
        )

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the sums, as text."""
        total = (
            *("sum", "", f"{self.pes:,}", "", "", "", ""),
            text(self.energy_pj, PICOJOULES),
            text(self.latency_ns, NANOSECONDS),
            text(self.area_um2, MICROMETRES),
            "",
        )
        return [*(row.cells() for row in self.layers), total]
