r"""Operations of a network per sample, layer by layer.

An *effective accumulate* is a triple of a nonzero weight, a nonzero input and an open output
channel, counted on the data that the network ran on. Beside it stands the literal count of the
publication, for a layer of :math:`C` output channels and :math:`W \times H` output pixels:

.. math::

    2 C (1 - S_c) W H k^2 + T B C (1 - S_c) W H (1 - S_p), \qquad B = 1
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .part import ReportPart
from .units import count_text, ratio_text

CONVENTION = (
    "per sample, over all its steps; k, M and G are 10^3, 10^6 and 10^9",
    "dense: every weight, whatever its value and its input's; zero padding is never counted",
    "effective: nonzero weight x nonzero input x open output channel; skipped: what gates took off",
    "AC: inputs were only 0 and 1, so weights are added; MAC: a product with its addition is one",
    "neuron, gate: their own additions, products and comparisons, not in the sum of layers",
    "a neuron's step: a MAC for each decay (an AC in IF), an AC for each soft reset, a comparison;",
    "quantised: level x decay is one of few constants, so an AC, and log2(levels) more comparisons",
    "MINT: the leak is a shift, which is not counted, and two comparisons clip",
    "integer networks: a step looks its outcome up, log2(outcomes) comparisons, and adds nothing",
    "not counted: biases, norms, pooling, and products of activations (attention); pool, norm, add",
    "are rows of integer networks, in no total",
    "Eq. 30 as printed: 2 C (1 - S_c) W H k^2 + T B C (1 - S_c) W H (1 - S_p), B = 1: it lacks",
    "input channels and gate costs, and counts the convolution once; ungated: S_c = S_p = 0",
)
HEADER = (
    *("path", "kind", "dense", "effective", "share", "skipped"),
    *("Eq. 30", "ungated", "ratio", "note"),
)
NUMBERS = (
    *("dense", "dense_acs", "dense_macs", "effective", "effective_acs", "effective_macs"),
    *("skipped", "neurons", "gates", "total", "acs", "macs", "comparisons"),
)
LAYERS, NEURONS, GATES = ("AC", "MAC", "none"), ("neuron",), ("gate",)
# What an integer network does between its layers: no network's totals hold it.
JOINS = ("pool", "norm", "add")


@dataclass(frozen=True)
class OperationRow:
    """Operations of one module for one sample.

    ``kind`` is ``AC`` (the inputs were only 0 and 1), ``MAC``, ``neuron``, ``gate`` or ``none``
    (not counted, for the reason in ``note``); of integer networks also ``pool``, ``norm`` and
    ``add``, whose operations are in no total. ``nonzero`` are the pairs of a nonzero weight and a
    nonzero input before any gate, ``effective`` what is left after the gates; for a neuron or a
    gate, what its own updates or decisions took. ``effective`` = ``acs`` + ``macs`` +
    ``comparisons``.

    ``numbers`` says what is added and multiplied, ``FP32``, ``FP16`` or ``INT``, ``sum_bits`` how
    wide a sum of whole numbers may grow; ``inputs``, each of ``input_bits``, are read and
    ``outputs`` made, over all steps of a sample; ``input_size`` of the inputs are those of one
    step, or of one token. ``weights`` are those of the layer, and ``eq30_convolution`` is the first
    of the two terms of ``eq30``.
    """

    path: str
    type: str
    kind: str = "none"
    dense: float = 0.0
    nonzero: float = 0.0
    effective: float = 0.0
    acs: float = 0.0
    macs: float = 0.0
    comparisons: float = 0.0
    eq30: float = 0.0
    eq30_ungated: float = 0.0
    eq30_convolution: float = 0.0
    numbers: str = ""
    sum_bits: int = 0
    inputs: float = 0.0
    input_size: float = 0.0
    input_bits: int = 0
    outputs: float = 0.0
    weights: int = 0
    note: str = ""

    @property
    def skipped(self) -> float:
        """What the gates took off."""
        return self.nonzero - self.effective

    @property
    def eq30_ratio(self) -> float | None:
        """How many times fewer operations Eq. 30 gives than without gates."""
        return self.eq30_ungated / self.eq30 if self.eq30 else None

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        counted, printed = self.kind != "none", bool(self.eq30_ungated)
        return (
            self.path or "(model)",
            self.kind if counted else "",
            count_text(self.dense) if counted else "",
            count_text(self.effective) if counted else "",
            _share(self.effective, self.dense),
            count_text(self.skipped) if self.skipped else "",
            count_text(self.eq30) if printed else "",
            count_text(self.eq30_ungated) if printed else "",
            ratio_text(self.eq30_ratio) if printed else "",
            self.note,
        )


@dataclass(frozen=True)
class OperationReport(ReportPart[OperationRow]):
    """The operations part of a report: totals per sample, and a row for each layer and gate."""

    header = HEADER

    layers: tuple[OperationRow, ...] = ()

    def _sum(self, name: str, kinds: tuple[str, ...] = LAYERS + NEURONS + GATES) -> float:
        return sum((getattr(row, name) for row in self.layers if row.kind in kinds), 0.0)

    @property
    def dense(self) -> float:
        """All weights of all layers, whatever their value and their input's."""
        return self._sum("dense", LAYERS)

    @property
    def dense_acs(self) -> float:
        """Those of ``dense`` whose inputs are only 0 and 1."""
        return self._sum("dense", ("AC",))

    @property
    def dense_macs(self) -> float:
        """Those of ``dense`` whose inputs are other numbers too."""
        return self._sum("dense", ("MAC",))

    @property
    def effective_acs(self) -> float:
        """Those of ``effective`` whose inputs are only 0 and 1."""
        return self._sum("effective", ("AC",))

    @property
    def effective_macs(self) -> float:
        """Those of ``effective`` whose inputs are other numbers too."""
        return self._sum("effective", ("MAC",))

    @property
    def effective(self) -> float:
        """Effective accumulates of all layers."""
        return self._sum("effective", LAYERS)

    @property
    def skipped(self) -> float:
        """Pairs of nonzeros that the gates took off."""
        return self._sum("skipped", LAYERS)

    @property
    def neurons(self) -> float:
        """What the neurons' own updates took."""
        return self._sum("effective", NEURONS)

    @property
    def gates(self) -> float:
        """What the gates' own decisions took."""
        return self._sum("effective", GATES)

    @property
    def total(self) -> float:
        """Effective accumulates, and the own operations of neurons and gates."""
        return self.effective + self.neurons + self.gates

    @property
    def acs(self) -> float:
        """Additions of the total."""
        return self._sum("acs")

    @property
    def macs(self) -> float:
        """Multiplications with an addition, of the total."""
        return self._sum("macs")

    @property
    def comparisons(self) -> float:
        """Comparisons of the total, of neurons and gates."""
        return self._sum("comparisons")

    @property
    def eq30(self) -> float:
        """Eq. 30 as printed, summed over the layers."""
        return self._sum("eq30")

    @property
    def eq30_ungated(self) -> float:
        """The same with every channel open and no pixel masked."""
        return self._sum("eq30_ungated")

    @property
    def eq30_ratio(self) -> float | None:
        """How many times fewer operations Eq. 30 gives than without gates."""
        return self.eq30_ungated / self.eq30 if self.eq30 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the totals, the convention, and ``layers``, a record for each row."""
        rows = [
            {**asdict(row), "skipped": row.skipped, "eq30_ratio": row.eq30_ratio}
            for row in self.layers
        ]
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            "eq30": self.eq30,
            "eq30_ungated": self.eq30_ungated,
            "eq30_ratio": self.eq30_ratio,
            "convention": "\n".join(CONVENTION),
            "layers": rows,
        }

    @property
    def title(self) -> str:
        return "operations per sample"

    @property
    def footnotes(self) -> tuple[str, ...]:
        """What the total is, and the convention."""
        parts = " + ".join(
            f"{name} {count_text(getattr(self, name))}"
            for name in ("effective", "neurons", "gates")
        )
        kinds = ", ".join(
            f"{count_text(getattr(self, name))} {label}"
            for name, label in (("acs", "AC"), ("macs", "MAC"), ("comparisons", "comparisons"))
        )
        return (f"total {count_text(self.total)} = {parts} = {kinds}", *CONVENTION)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and the sums, as text."""
        total = (
            "sum of layers",
            "",
            count_text(self.dense),
            count_text(self.effective),
            _share(self.effective, self.dense),
            count_text(self.skipped) if self.skipped else "",
            count_text(self.eq30),
            count_text(self.eq30_ungated),
            ratio_text(self.eq30_ratio),
            "",
        )
        return [*(row.cells() for row in self.layers), total]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
