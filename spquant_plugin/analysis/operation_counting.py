"""Rows of an operations report, from what a dry run tallied."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate, own_gate
from .batch import batch_size
from .dry_run import DryRun
from .modules import computes_in_its_own_way, kind_of
from .operations import OperationReport, OperationRow
from .pairs import is_countable
from .tally import GateTally, LayerTally, Tallies, own_spatial_gate, total


def count_operations(run: DryRun, tallies: Tallies) -> OperationReport:
    """A row for each weight layer and each gate of the network that ran."""
    counter = _Counter(run, tallies)
    rows = [counter.row(path, module) for path, module in counter.modules.items()]
    return OperationReport(tuple(row for row in rows if row is not None))


class _Counter:
    """Turns tallies of the whole batch into rows per sample."""

    def __init__(self, run: DryRun, tallies: Tallies) -> None:
        self.run, self.tallies, self.hosts = run, tallies, Hosts()
        self.batch = batch_size(run)
        self.modules = dict(run.model.named_modules())
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.kinds = {path: kind_of(module, self.hosts) for path, module in self.modules.items()}
        self.targets = self._targets()

    def row(self, path: str, module: nn.Module) -> OperationRow | None:
        row = OperationRow(path, type(module).__name__)
        if isinstance(module, ChannelGate):
            return self._gate_row(row, self.tallies.channel_gates.get(path), module)
        if isinstance(module, SpatialGate):
            return self._gate_row(row, self.tallies.spatial_gates.get(path), module)
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
        spatial = self._spatial_gate_behind(row.path)
        masked = None
        if spatial is not None:
            masked = self.tallies.spatial_gates.get(self.paths[id(spatial)])
        notes = []
        if computes_in_its_own_way(module, self.hosts):
            notes.append("computes in a way of its own, counted as a plain layer")
        if tally.unanswered:
            notes.append("its gate did not decide on every call: open there")
        spared = 0
        if spatial is not None and masked is not None and spatial.score == "prior":
            known = _spared(tally.pixels, masked.kept)
            spared = known or 0
            if known is None:
                notes.append("its pixels are not those that its neuron masks: all are computed")
        # A layer that sees constants only has no batch.
        share = 1
        if row.path in self.run.fed or self.batch in tally.outer:
            share = self.batch
        effective = (tally.open - spared) / share
        return replace(
            self._with_eq30(row, module, tally, share, _shut(closed), _shut(masked)),
            kind="AC" if tally.binary else "MAC",
            dense=tally.dense / share,
            nonzero=tally.nonzero / share,
            effective=effective,
            acs=effective if tally.binary else 0.0,
            macs=0.0 if tally.binary else effective,
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
        )

    # Who reads a layer's current.

    def _targets(self) -> dict[str, str]:
        """For each weight layer the one neuron that reads its current, where nothing else does."""
        owners = {
            self.paths[id(gate)]: path
            for path, module in self.modules.items()
            if (gate := own_gate(module)) is not None
        }
        readers: dict[str, set[str]] = {}
        for path, sources in self.run.read.items():
            gates = isinstance(self.modules.get(path), ChannelGate)
            if gates or self.kinds.get(path) not in ("weights", "neuron", "state"):
                continue
            for source in sources:
                for layer in self._behind(source, owners):
                    readers.setdefault(layer, set()).add(path)
        return {
            layer: next(iter(found))
            for layer, found in readers.items()
            if len(found) == 1 and self.kinds[next(iter(found))] == "neuron"
        }

    def _behind(self, source: str, owners: dict[str, str]) -> frozenset[str]:
        """What a gate, which renews what a tensor carries, was given itself."""
        if source in owners:
            return frozenset({owners[source]})
        if isinstance(self.modules.get(source), ChannelGate):
            return self.run.read[source]
        return frozenset({source})

    def _spatial_gate_behind(self, path: str) -> SpatialGate | None:
        target = self.targets.get(path)
        return None if target is None else own_spatial_gate(self.modules[target])

    # Gates.

    def _gate_row(
        self, row: OperationRow, tally: GateTally | None, gate: ChannelGate | SpatialGate
    ) -> OperationRow:
        if tally is None:
            return replace(row, note="not called by the sample")
        acs, macs = tally.additions / self.batch, tally.multiplications / self.batch
        comparisons = tally.comparisons / self.batch
        effective = acs + macs + comparisons
        softmax = isinstance(gate, ChannelGate) and gate.rule.score == "softmax"
        return replace(
            row,
            kind="gate",
            dense=tally.dense / self.batch,
            nonzero=effective,
            effective=effective,
            acs=acs,
            macs=macs,
            comparisons=comparisons,
            note="its softmax is not counted" if softmax else "",
        )


def _shut(tally: GateTally | None) -> float:
    return 0.0 if tally is None else tally.shut / tally.decided


def _spared(pixels: list[Tensor], kept: list[Tensor]) -> int | None:
    """Accumulates of pixels that were masked before they were computed; None on other grids."""
    if not pixels or not kept:
        return None
    counts, mask = torch.cat(pixels), torch.cat(kept)
    return total(counts * ~mask) if counts.shape == mask.shape else None
