r"""Memory of a network per sample, module by module.

.. math::

    M = b_w N_w + b_u N_f + b_s N_f

with :math:`N_w` synaptic weights and :math:`N_f` spiking neurons, in stored bits. Biases, norms,
thresholds, decays and scales are no term of it: they are counted beside it, in ``other_bytes``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .part import ReportPart
from .units import bits_text, bytes_text

MODES = ("equation", "paper_tables", "measured")

EXPLAINED = {
    "equation": "spikes take 1 bit",
    "paper_tables": "spikes take 8 bits in a quantised network and 32 in a float one",
    "measured": "bytes that are held; spikes are what one call of the neuron returns",
}


@dataclass(frozen=True)
class MemoryRow:
    """What one module holds for one sample.

    ``kind`` is ``weights``, ``neuron``, ``norm``, ``state`` (keeps a state but is no spiking
    neuron), ``other`` or ``shared`` (counted at its first path). ``state_bits`` are the bits per
    neuron of states beside the membrane, such as ``syn``; they are part of ``membrane_bytes``.
    ``weight_bits`` of weights that change with the time step are those of the code that stores all
    their steps, and ``weight_information_bits`` what it can hold; 0 for other weights.
    ``parameters`` is the number of the module's own parameters, weights and biases alike, each
    counted once in the whole network. ``saved_bytes`` is what training keeps of the module for the
    backward pass, 0 where that was not asked for.
    """

    path: str
    type: str
    kind: str
    weights: int = 0
    weight_bits: int = 0
    weight_information_bits: float = 0.0
    neurons: int = 0
    membrane_bits: int = 0
    information_bits: float = 0.0
    state_bits: int = 0
    spike_bits: int = 0
    parameters: int = 0
    weight_bytes: float = 0.0
    membrane_bytes: float = 0.0
    spike_bytes: float = 0.0
    other_bytes: float = 0.0
    saved_bytes: float = 0.0
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.path or "(model)",
            self.kind,
            f"{self.weights:,}" if self.weights else "",
            self._weight_text() if self.weights else "",
            bytes_text(self.weight_bytes) if self.weights else "",
            f"{self.neurons:,}" if self.neurons else "",
            self._membrane_text(),
            bytes_text(self.membrane_bytes) if self.membrane_bytes else "",
            bytes_text(self.spike_bytes) if self.spike_bytes else "",
            bytes_text(self.other_bytes) if self.other_bytes else "",
            self.note,
        )

    def _weight_text(self) -> str:
        return bits_text(self.weight_bits, self.weight_information_bits or None)

    def _membrane_text(self) -> str:
        text = bits_text(self.membrane_bits, self.information_bits) if self.membrane_bits else ""
        return " + ".join(part for part in (text, bits_text(self.state_bits)) if part)


HEADER = (
    "path",
    "kind",
    "weights",
    "bits each",
    "in bytes",
    "neurons",
    "bits each",
    "membranes",
    "spikes",
    "other",
    "note",
)


@dataclass(frozen=True)
class MemoryReport(ReportPart[MemoryRow]):
    """The memory part of a report: totals in bytes per sample, and a row for each module.

    ``training_bytes`` is what one sample's training forward saves for the backward pass; None where
    that was not measured.
    """

    mode: str
    layers: tuple[MemoryRow, ...]
    notes: tuple[str, ...] = ()
    training_bytes: float | None = None

    @property
    def weight_bytes(self) -> float:
        """Synaptic weights."""
        return sum(row.weight_bytes for row in self.layers)

    @property
    def membrane_bytes(self) -> float:
        """Membranes, and what else neurons keep from step to step."""
        return sum(row.membrane_bytes for row in self.layers)

    @property
    def spike_bytes(self) -> float:
        """Spikes."""
        return sum(row.spike_bytes for row in self.layers)

    @property
    def other_bytes(self) -> float:
        """Biases, norms, thresholds, decays, scales: all that the equation has no term for."""
        return sum(row.other_bytes for row in self.layers)

    @property
    def total_bytes(self) -> float:
        """Weights, membranes and spikes; what was measured includes the rest as well."""
        total = self.weight_bytes + self.membrane_bytes + self.spike_bytes
        return total + self.other_bytes if self.mode == "measured" else total

    @property
    def header(self) -> tuple[str, ...]:  # type: ignore[override]
        """Its own column for what training saves, where that was measured."""
        return HEADER if self.training_bytes is None else (*HEADER[:-1], "saved", HEADER[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the totals, the mode, and ``layers``, a list with a record per row."""
        return {
            "mode": self.mode,
            "weight_bytes": self.weight_bytes,
            "membrane_bytes": self.membrane_bytes,
            "spike_bytes": self.spike_bytes,
            "other_bytes": self.other_bytes,
            "total_bytes": self.total_bytes,
            "training_bytes": self.training_bytes,
            "notes": list(self.notes),
            "layers": [asdict(row) for row in self.layers],
        }

    @property
    def title(self) -> str:
        return f"memory per sample, mode {self.mode!r}: {EXPLAINED[self.mode]}"

    @property
    def footnotes(self) -> tuple[str, ...]:
        """What the total is, and the notes."""
        sums = "weights + membranes + spikes"
        if self.mode == "measured":
            total = f"total {bytes_text(self.total_bytes)} = {sums} + other"
        else:
            total = (
                f"total {bytes_text(self.total_bytes)} = {sums}; other (biases, norms, thresholds, "
                f"decays, scales), {bytes_text(self.other_bytes)}, is not in it"
            )
        notes = self.notes
        if self.training_bytes is not None:
            held = bytes_text(self.training_bytes)
            notes = (f"saved for backward {held} per sample, in no total: see its column", *notes)
        units = "kB and MB are 10^3 and 10^6 bytes; bits are stored bits (information in brackets)"
        return (total, units, *notes)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the sums, as text."""
        total = (
            "sum",
            "",
            f"{sum(row.weights for row in self.layers):,}",
            "",
            bytes_text(self.weight_bytes),
            f"{sum(row.neurons for row in self.layers):,}",
            "",
            bytes_text(self.membrane_bytes),
            bytes_text(self.spike_bytes),
            bytes_text(self.other_bytes),
            "",
        )
        lines = [*(row.cells() for row in self.layers), total]
        if self.training_bytes is None:
            return lines
        saved = [*(row.saved_bytes for row in self.layers), self.training_bytes]
        return [
            (*line[:-1], bytes_text(size) if size else "", line[-1])
            for line, size in zip(lines, saved, strict=True)
        ]
