"""Rows of an energy report, from the rows of operations and the bits that modules hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from .energy import EnergyReport, EnergyRow, MemoryLevel
from .energy_tables import EnergyTable
from .memory import MemoryReport, MemoryRow
from .operations import JOINS, OperationReport, OperationRow

# What SpikingJelly's simple model takes: FP32 at 45 nm, in pJ.
SIMPLE_MAC, SIMPLE_AC, SIMPLE_BYTE = 4.6, 0.9, 24.96
FLOAT_BYTES = 4


def count_energy(
    operations: OperationReport, memory: MemoryReport, table: EnergyTable
) -> EnergyReport:
    """Turn counts into pJ. ``memory`` gives stored bits, so it is that of mode "equation"."""
    held, meter = {row.path: row for row in memory}, Meter(table)
    steps = _timesteps(operations, held)
    rows = tuple(
        _row(row, held.get(row.path), meter, steps) for row in operations if row.kind not in JOINS
    )
    compute = sum(row.compute_pj for row in rows)
    ann_bits = _ann_bits(operations, steps)
    models = (
        ("compute_and_memory", sum(row.total_pj for row in rows)),
        ("compute", compute),
        ("eq31", sum(_eq31(row, table) for row in operations)),
        ("spikingjelly", _simple(operations)),
        ("quantised_ann", _ann(operations, held, table, steps, ann_bits)),
    )
    return EnergyReport(table.name, rows, models, steps, ann_bits, meter.levels())


class Meter:
    """A table of energies that adds up what is moved, by the memory it comes from or goes to."""

    def __init__(self, table: EnergyTable) -> None:
        self.table, self.add, self.multiply = table, table.add, table.multiply
        self.moved: dict[int, float] = {}

    def traffic(self, bits: float, size: float) -> float:
        """Cost in pJ of moving so many bits in or out of a memory that holds ``size`` bytes."""
        level = self.table.level(size)
        self.moved[level] = self.moved.get(level, 0.0) + bits
        return self.table.traffic(bits, size)

    def levels(self) -> tuple[MemoryLevel, ...]:
        """Every memory of the table, the smallest first."""
        moved = ((size, self.moved.get(size, 0.0)) for size in sorted(self.table.sram))
        return tuple(
            MemoryLevel(size, bits, self.table.traffic(bits, size)) for size, bits in moved
        )


def _row(row: OperationRow, held: MemoryRow | None, table: Meter, steps: int) -> EnergyRow:
    energy = EnergyRow(row.path, row.type, row.kind, row.numbers, row.effective, note=row.note)
    if row.kind == "gate":
        return _gate(energy, row, held, table)
    if held is None or row.kind == "none":
        return energy
    if row.kind == "neuron":
        return _neuron(energy, row, held, table)
    addition, product = _costs(row, held.weight_bits, table)
    weights = row.effective * held.weight_bits
    return replace(
        energy,
        compute_pj=row.acs * addition + row.macs * (product + addition),
        weight_pj=table.traffic(weights, _weight_bytes(row, held)),
        input_pj=_inputs(row, row.input_bits, table, steps),
    )


def _weight_bytes(row: OperationRow, held: MemoryRow) -> float:
    """Not those of its row of memory: a tied weight is held by another one."""
    return row.weights * held.weight_bits / 8


def _inputs(row: OperationRow, bits: int, table: Meter | EnergyTable, steps: int) -> float:
    """Read from a memory that holds what the layer reads in a step, of all tokens."""
    size = max(row.input_size, row.inputs / steps)
    return table.traffic(row.inputs * bits, size * bits / 8)


def _neuron(energy: EnergyRow, row: OperationRow, held: MemoryRow, table: Meter) -> EnergyRow:
    kind = "INT32" if row.numbers == "INT" else row.numbers
    bits = 2 * row.outputs * (held.membrane_bits + held.state_bits)  # read and written
    addition, product = table.add[kind], table.multiply[kind]
    return replace(
        energy,
        compute_pj=(row.acs + row.comparisons) * addition + row.macs * (product + addition),
        membrane_pj=table.traffic(bits, held.membrane_bytes),
        spike_pj=table.traffic(row.outputs * held.spike_bits, held.spike_bytes),
    )


def _gate(energy: EnergyRow, row: OperationRow, held: MemoryRow | None, table: Meter) -> EnergyRow:
    addition, product = table.add["INT32"], table.multiply["INT32"]
    compute = (row.acs + row.comparisons) * addition + row.macs * (product + addition)
    if held is None:  # a spatial gate has no weights
        return replace(energy, compute_pj=compute)
    read = table.traffic(row.macs * held.weight_bits, held.weight_bytes)
    return replace(energy, compute_pj=compute, weight_pj=read)


def _costs(row: OperationRow, weight_bits: int, table: Meter | EnergyTable) -> tuple[float, float]:
    """An addition and a product of a layer."""
    if row.numbers != "INT":
        return table.add[row.numbers], table.multiply[row.numbers]
    addition = table.add["INT8" if row.sum_bits <= 8 else "INT32"]
    wide = max(weight_bits, row.input_bits) > 8
    return addition, table.multiply["INT32" if wide else "INT8"]


def _eq31(row: OperationRow, table: EnergyTable) -> float:
    """The publication's: half of Eq. 30's first term multiplies, all the rest adds."""
    if row.kind not in ("AC", "MAC"):
        return 0.0
    kind = "INT8" if row.numbers == "INT" else row.numbers
    half, membrane = row.eq30_convolution / 2, row.eq30 - row.eq30_convolution
    return table.multiply[kind] * half + table.add[kind] * (half + membrane)


def _simple(operations: OperationReport) -> float:
    """SpikingJelly's, on our counts, without what it sees of the neurons' elementwise code."""
    updates = sum(row.outputs for row in operations if row.kind == "neuron")
    macs, acs = operations.dense_macs, operations.effective_acs
    moved = FLOAT_BYTES * (macs + acs + 2 * updates)
    return SIMPLE_MAC * macs + SIMPLE_AC * acs + SIMPLE_BYTE * moved


def _timesteps(operations: OperationReport, held: dict[str, MemoryRow]) -> int:
    """Steps of one sample: how often most neuron layers were updated, called once in each."""
    steps = Counter(
        max(round(row.outputs / held[row.path].neurons), 1)
        for row in operations
        if row.kind == "neuron" and held[row.path].neurons
    )
    most = max(steps.values(), default=0)
    return min((count for count, layers in steps.items() if layers == most), default=1)


def _ann_bits(operations: OperationReport, steps: int) -> int:
    """Bits of an activation: enough to count to ``steps``, or those of the layers' floats."""
    layers = [row for row in operations if row.kind in ("AC", "MAC")]
    if not layers or any(row.numbers == "INT" for row in layers):
        return math.ceil(math.log2(steps + 1))
    return max(map(_float_bits, layers))


def _ann(
    operations: OperationReport,
    held: dict[str, MemoryRow],
    table: EnergyTable,
    steps: int,
    bits: int,
) -> float:
    """One pass of a network with the same weights, whose activations take ``bits``.

    A layer that computes in floats does so here.
    """
    energy = 0.0
    for row in operations:
        if row.kind == "neuron":
            written = row.outputs / steps * bits
            energy += table.traffic(written, written / 8)
        elif row.kind in ("AC", "MAC"):
            own, products = held[row.path], row.dense / steps
            width = max(bits, row.input_bits) if row.numbers == "INT" else _float_bits(row)
            # Inputs that are so much wider make the sums wider.
            wide = replace(row, input_bits=width, sum_bits=row.sum_bits + width - row.input_bits)
            addition, product = _costs(wide, own.weight_bits, table)
            energy += products * (product + addition)
            energy += table.traffic(products * own.weight_bits, _weight_bytes(row, own))
            energy += _inputs(row, width, table, steps) / steps
    return energy


def _float_bits(row: OperationRow) -> int:
    return int(row.numbers.removeprefix("FP"))
