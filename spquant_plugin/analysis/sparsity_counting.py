"""Rows of a sparsity report, from what a dry run tallied."""

from __future__ import annotations

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate
from .dry_run import DryRun
from .modules import kind_of
from .sparsity import SparsityReport, SparsityRow
from .tally import GateTally, NeuronTally, Tallies

NOT_CALLED = "not called by the sample"


def count_sparsity(run: DryRun, tallies: Tallies) -> SparsityReport:
    """A row for each spiking neuron layer and each gate, in the order of the modules."""
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
            rows.append(SparsityRow(path, name, firing_rate=rate, note=_note(tally)))
    return SparsityReport(tuple(rows))


def _shut(tally: GateTally | None) -> float | None:
    return None if tally is None else tally.shut / tally.decided


def _note(tally: GateTally | NeuronTally | None) -> str:
    if tally is None:
        return NOT_CALLED
    graded = isinstance(tally, NeuronTally) and tally.graded
    return "graded outputs: the share of nonzero ones" if graded else ""
