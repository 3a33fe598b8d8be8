"""Rows of a report of an integer network, from what it counts of itself.

The conventions are those of models, so that both stand in one comparison; what an integer network
really does in another way, it says in its own numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from ..counts import Count, Counts, GateCount, JoinCount, LayerCount, NeuronCount
from .memory import MemoryReport, MemoryRow
from .operations import OperationReport, OperationRow
from .sparsity import SparsityReport, SparsityRow

WHOLE = "(engine)"  # the row of what an engine holds but does not tell apart
WHOLE_NUMBERS = "whole numbers alone: tables of comparisons stand for norms, scales and thresholds"
IN_NO_TOTAL = "in no total"


# --- memory -------------------------------------------------------------------------------------


def integer_memory(counts: Counts, mode: str) -> MemoryReport:
    """A row for each layer, neuron, gate and norm: stored bits, or the bytes that are held."""
    measured = mode == "measured"
    one = partial(_measured, counts=counts) if measured else partial(_stored, mode=mode)
    rows = [row for part in counts.parts.values() if (row := one(part)) is not None]
    notes = [WHOLE_NUMBERS]
    if measured:
        rows += _undivided(counts)
        notes += [f"bytes as the engine {counts.engine!r} holds them"]
    return MemoryReport(mode, tuple(rows), tuple(notes))


def _stored(part: Count, mode: str) -> MemoryRow | None:
    row = MemoryRow(part.path, part.type, "weights")
    if isinstance(part, LayerCount):
        return _with_weights(row, part)
    if isinstance(part, GateCount):
        return (
            None if part.pixels else replace(_with_weights(row, part), other_bytes=part.table_bytes)
        )
    if isinstance(part, JoinCount):
        kind = "norm" if part.kind == "norm" else "other"
        return replace(row, kind=kind, other_bytes=part.table_bytes) if part.table_bytes else None
    neuron: Any = part
    # With a delayed reset one value more tells whether the neuron fired.
    values = neuron.highest - neuron.lowest + 1 + neuron.remembers
    bits, spike_bits = math.ceil(math.log2(values)), 1 if mode == "equation" else 8
    return replace(
        row,
        kind="neuron",
        neurons=neuron.neurons,
        membrane_bits=bits,
        information_bits=math.log2(values),
        spike_bits=spike_bits,
        membrane_bytes=neuron.neurons * bits / 8,
        spike_bytes=neuron.neurons * spike_bits / 8,
        other_bytes=neuron.table_bytes,
    )


def _with_weights(row: MemoryRow, part: LayerCount | GateCount) -> MemoryRow:
    return replace(
        row,
        weights=part.weights,
        weight_bits=part.weight_bits,
        parameters=part.weights,
        weight_bytes=part.weights * part.weight_bits / 8,
        note=part.note if isinstance(part, LayerCount) else "",
    )


def _measured(part: Count, counts: Counts) -> MemoryRow | None:
    row = _stored(part, "equation")
    if row is None or isinstance(part, JoinCount):
        return row
    if isinstance(part, LayerCount | GateCount):
        if part.held_bytes is None:
            return replace(row, weight_bits=0, weight_bytes=0.0, note=f"bytes at {WHOLE}")
        return replace(
            row,
            weight_bits=round(8 * part.held_bytes / part.weights),
            weight_bytes=float(part.held_bytes),
        )
    neuron: Any = part
    batch, elements = counts.first_batch, counts.first_batch * neuron.neurons
    spikes = neuron.spike_bytes
    row = replace(
        row,
        membrane_bits=round(8 * neuron.held_bytes / elements),
        information_bits=float(round(8 * neuron.held_bytes / elements)),
        membrane_bytes=neuron.held_bytes / batch,
        spike_bits=0 if spikes is None else round(8 * spikes / elements / counts.steps),
        spike_bytes=0.0 if spikes is None else spikes / batch,
    )
    if counts.weight_bytes is not None:  # which holds the tables too
        row = replace(row, other_bytes=0.0)
    return row if spikes is not None else replace(row, note="its engine tells no bytes of spikes")


def _undivided(counts: Counts) -> list[MemoryRow]:
    """What the engine holds as a whole, and states of no layer."""
    held, rest = counts.weight_bytes, counts.rest_bytes / counts.first_batch
    if held is None and not rest:
        return []
    note = "weights and tables of all layers, as the engine holds them" if held is not None else ""
    row = MemoryRow(WHOLE, counts.engine, "other", other_bytes=rest, note=note)
    return [row if held is None else replace(row, kind="weights", weight_bytes=float(held))]


# --- operations ---------------------------------------------------------------------------------


def integer_operations(counts: Counts) -> OperationReport:
    """A row for each layer, neuron, gate and join."""
    return OperationReport(tuple(_operations(part, counts) for part in counts.parts.values()))


def _operations(part: Count, counts: Counts) -> OperationRow:
    row, share = OperationRow(part.path, part.type, numbers="INT"), counts.samples
    if isinstance(part, LayerCount):
        return _layer(row, part, counts)
    if isinstance(part, NeuronCount):
        steps = part.updates / share
        comparisons = steps * math.ceil(math.log2(part.outcomes))
        own = replace(row, kind="neuron", comparisons=comparisons, outputs=steps)
        return replace(own, dense=comparisons, nonzero=comparisons, effective=comparisons)
    found: Any = part
    gate = isinstance(part, GateCount)
    comparisons = found.comparisons / share if gate else 0.0
    acs, macs = found.additions / share, found.multiplications / share
    return replace(
        row,
        kind="gate" if gate else found.kind,
        dense=found.dense / share,
        nonzero=acs + macs + comparisons,
        effective=acs + macs + comparisons,
        acs=acs,
        macs=macs,
        comparisons=comparisons,
        numbers="" if gate else "INT",
        note="" if gate else IN_NO_TOTAL,
    )


def _layer(row: OperationRow, part: LayerCount, counts: Counts) -> OperationRow:
    share, effective = counts.samples, part.effective / counts.samples
    closed, masked = _shut(counts, part.gate), _shut(counts, part.mask)
    outputs, steps = part.channels * math.prod(part.space), part.rows / share
    open_outputs = outputs * (1 - closed)
    kernel = part.kernel
    return replace(
        row,
        kind="AC" if part.binary else "MAC",
        dense=part.dense / share,
        nonzero=part.nonzero / share,
        effective=effective,
        acs=effective if part.binary else 0.0,
        macs=0.0 if part.binary else effective,
        sum_bits=part.sum_bits,
        inputs=part.inputs / share,
        input_size=part.inputs / part.rows,
        input_bits=part.input_bits,
        outputs=part.outputs / share,
        weights=part.weights,
        eq30=2 * open_outputs * kernel + steps * open_outputs * (1 - masked),
        eq30_ungated=2 * outputs * kernel + steps * outputs,
        eq30_convolution=2 * open_outputs * kernel,
        note=part.note,
    )


def _shut(counts: Counts, path: str) -> float:
    gate: Any = counts.parts.get((GateCount, path))
    return 0.0 if gate is None else gate.shut / gate.decided


# --- sparsity -----------------------------------------------------------------------------------


def integer_sparsity(counts: Counts) -> SparsityReport:
    """A row for each layer, neuron and gate."""
    rows = (_sparsity(part) for part in counts.parts.values())
    return SparsityReport(tuple(row for row in rows if row is not None))


def _sparsity(part: Count) -> SparsityRow | None:
    row = SparsityRow(part.path, part.type)
    if isinstance(part, LayerCount):
        return replace(row, zero_weights=part.zero_weights / part.weights)
    if isinstance(part, GateCount):
        shut = part.shut / part.decided
        return (
            replace(row, pixels_masked=shut) if part.pixels else replace(row, channels_closed=shut)
        )
    if not isinstance(part, NeuronCount):
        return None
    shares = tuple(tuple((step.double() / step.sum()).tolist()) for step in part.levels)
    levels = tuple(range(part.lowest, part.highest + 1))
    return replace(row, firing_rate=part.spikes / part.updates, levels=levels, level_shares=shares)
