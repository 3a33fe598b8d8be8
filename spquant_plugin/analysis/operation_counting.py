"""Rows of an operations report, from what a dry run tallied."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate, own_gate
from .batch import divisor
from .dry_run import DryRun
from .masks import masks_behind
from .modules import computes_in_its_own_way, kind_of
from .neuron_updates import neuron_row
from .numbers import input_bits, numbers_of, sum_bits
from .operations import OperationReport, OperationRow
from .pairs import is_countable
from .tally import GateTally, LayerTally, Tallies


def count_operations(run: DryRun, tallies: Tallies) -> OperationReport:
    """A row for each weight layer, spiking neuron layer and gate of the network that ran."""
    counter = _Counter(run, tallies)
    rows = [counter.row(path, module) for path, module in counter.modules.items()]
    return OperationReport(tuple(row for row in rows if row is not None))


class _Counter:
    """Turns tallies of all batches into rows per sample."""

    def __init__(self, run: DryRun, tallies: Tallies) -> None:
        self.run, self.tallies, self.hosts = run, tallies, Hosts()
        self.modules = dict(run.model.named_modules())
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.kinds = {path: kind_of(module, self.hosts) for path, module in self.modules.items()}
        self.masks = masks_behind(run)

    def row(self, path: str, module: nn.Module) -> OperationRow | None:
        row = OperationRow(path, type(module).__name__)
        if isinstance(module, ChannelGate):
            return self._gate_row(row, self.tallies.channel_gates.get(path), module)
        if isinstance(module, SpatialGate):
            return self._gate_row(row, self.tallies.spatial_gates.get(path), module)
        if self.kinds[path] == "neuron":
            return neuron_row(row, module, self.tallies.neurons.get(path), self.run, self.hosts)
        if self.kinds[path] != "weights":
            return None
        tally = self.tallies.layers.get(path)
        if not is_countable(module):
            return replace(row, note=f"not counted: no rule for {row.type}")
        if tally is None:
            outer = self._uncounted_around(path)
            inside = f"computed inside {outer}, which is not counted"
            return replace(row, note=inside if outer else "not called by the sample")
        return self._layer_row(row, module, tally)

    def _uncounted_around(self, path: str) -> str:
        outer = (path[:end] for end, letter in enumerate(path) if letter == ".")
        return next(
            (p for p in outer if self.kinds[p] == "weights" and not is_countable(self.modules[p])),
            "",
        )

    # Weight layers.

    def _layer_row(self, row: OperationRow, module: nn.Module, tally: LayerTally) -> OperationRow:
        gate = own_gate(module)
        closed = None if gate is None else self.tallies.channel_gates.get(self.paths[id(gate)])
        masked = self.tallies.spatial_gates.get(self.masks.get(row.path, ""))
        notes = []
        if computes_in_its_own_way(module, self.hosts):
            notes.append("computes in a way of its own, counted as a plain layer")
        if tally.unanswered:
            notes.append("its gate did not decide on every call: open there")
        if tally.unlike:
            notes.append("its pixels are not those that its neuron masks: all are computed")
        share = divisor(self.run, row.path, module, "weights")
        effective = (tally.open - tally.spared) / share
        return replace(
            self._with_eq30(row, module, tally, share, _shut(closed), _shut(masked)),
            kind="AC" if tally.binary else "MAC",
            dense=tally.dense / share,
            nonzero=tally.nonzero / share,
            effective=effective,
            acs=effective if tally.binary else 0.0,
            macs=0.0 if tally.binary else effective,
            numbers=numbers_of(module, tally),
            sum_bits=sum_bits(module, tally),
            inputs=tally.inputs / share,
            input_size=tally.inputs / tally.rows,
            input_bits=input_bits(module, tally),
            outputs=tally.outputs / share,
            weights=tally.weights,
            note="; ".join(notes),
        )

    def _with_eq30(
        self,
        row: OperationRow,
        module: nn.Module,
        tally: LayerTally,
        share: int,
        closed: float,
        masked: float,
    ) -> OperationRow:
        channels = getattr(module, "out_channels", getattr(module, "out_features", None))
        if channels is None:  # one recurrent weight for each neuron
            channels = tally.dense // tally.rows
        steps = tally.rows / share
        outputs = channels * math.prod(tally.space)
        kernel = math.prod(getattr(module, "kernel_size", ()))
        open_outputs = outputs * (1 - closed)
        return replace(
            row,
            eq30=2 * open_outputs * kernel + steps * open_outputs * (1 - masked),
            eq30_ungated=2 * outputs * kernel + steps * outputs,
            eq30_convolution=2 * open_outputs * kernel,
        )

    # Gates.

    def _gate_row(
        self, row: OperationRow, tally: GateTally | None, gate: ChannelGate | SpatialGate
    ) -> OperationRow:
        if tally is None:
            return replace(row, note="not called by the sample")
        acs, macs = tally.additions / self.run.samples, tally.multiplications / self.run.samples
        comparisons = tally.comparisons / self.run.samples
        effective = acs + macs + comparisons
        softmax = isinstance(gate, ChannelGate) and gate.rule.score == "softmax"
        return replace(
            row,
            kind="gate",
            dense=tally.dense / self.run.samples,
            nonzero=effective,
            effective=effective,
            acs=acs,
            macs=macs,
            comparisons=comparisons,
            note="its softmax is not counted" if softmax else "",
        )


def _shut(tally: GateTally | None) -> float:
    return 0.0 if tally is None else tally.shut / tally.decided
