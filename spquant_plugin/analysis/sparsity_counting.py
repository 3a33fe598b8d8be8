"""Rows of a sparsity report, from what a dry run tallied."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate
from ..modules.quantized_layer import QuantizedLayer
from .dry_run import DryRun
from .layer_weights import computed_weights
from .modules import kind_of, weights_of
from .sparsity import SparsityReport, SparsityRow
from .tally import GateTally, LayerTally, LevelTally, NeuronTally, Tallies
from .temporal import is_temporal

NOT_CALLED = "not called by the sample"


def count_sparsity(run: DryRun, tallies: Tallies) -> SparsityReport:
    """A row for each weight layer, spiking neuron layer and gate, in the order of the modules."""
    hosts, rows = Hosts(), []
    for path, module in run.model.named_modules():
        name = type(module).__name__
        if isinstance(module, ChannelGate):
            gate = tallies.channel_gates.get(path)
            rows.append(SparsityRow(path, name, channels_closed=_shut(gate), note=_note(gate)))
        elif isinstance(module, SpatialGate):
            gate = tallies.spatial_gates.get(path)
            rows.append(SparsityRow(path, name, pixels_masked=_shut(gate), note=_note(gate)))
        elif kind_of(module, hosts) == "neuron":
            tally = tallies.neurons.get(path)
            rate = None if tally is None else tally.spikes / max(tally.outputs, 1)
            row = SparsityRow(path, name, firing_rate=rate, note=_note(tally))
            rows.append(_with_levels(row, tallies.levels.get(path)))
        elif kind_of(module, hosts) == "weights":
            zeros = _zeros(module, tallies.layers.get(path))
            if zeros is not None:
                rows.append(SparsityRow(path, name, zero_weights=zeros))
    return SparsityReport(tuple(rows))


def _zeros(module: nn.Module, tally: LayerTally | None) -> float | None:
    """Share of zeros among the weights that a layer computes with; None where it has none."""
    if tally is not None and tally.weights:
        return tally.zero_weights / tally.weights
    if is_temporal(module) and module.timesteps is None:
        return None  # how often a weight is 0 depends on the number of steps
    held = computed_weights(module) if isinstance(module, QuantizedLayer) else weights_of(module)
    count = sum(weight.numel() for weight in held)
    zeros = sum(int((weight == 0).sum()) for weight in held)
    return zeros / count if count else None


def _with_levels(row: SparsityRow, tally: LevelTally | None) -> SparsityRow:
    if tally is None:
        return row
    levels = tuple(range(tally.lowest, tally.highest + 1))
    shares = tuple(tuple((counts.double() / counts.sum()).tolist()) for counts in tally.steps)
    return replace(row, levels=levels, level_shares=shares)


def _shut(tally: GateTally | None) -> float | None:
    return None if tally is None else tally.shut / tally.decided


def _note(tally: GateTally | NeuronTally | None) -> str:
    if tally is None:
        return NOT_CALLED
    graded = isinstance(tally, NeuronTally) and tally.graded
    return "graded outputs: the share of nonzero ones" if graded else ""
