"""What the neurons' own updates take: decay, integration, firing, reset, and storing a level."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from ..config import MintMembrane
from ..convert.hosts import Hosts
from ..modules.host import NeuronUpdate
from ..modules.neuron import QuantizedNeuron
from .batch import divisor
from .dry_run import DryRun
from .modules import membrane_bits
from .numbers import float_of
from .operations import OperationRow
from .tally import NeuronTally


def neuron_row(
    row: OperationRow, module: nn.Module, tally: NeuronTally | None, run: DryRun, hosts: Hosts
) -> OperationRow:
    """The updates of one spiking neuron layer for one sample.

    Each neuron and step takes a MAC for each decaying state, or an AC where none decays, and a
    comparison; each spike an AC where the reset subtracts. A quantised membrane times its decay is
    one of few constants, so an AC, and storing one of ``L`` levels takes ``log2(L)`` comparisons
    more, rounded up. MINT's is halved by a shift, which is not counted, and clipped by two
    comparisons. Gains and rest potentials are constants of the layer before.
    """
    if tally is None:
        return replace(row, note="not called by the sample")
    update = next((found for host in hosts.all if (found := host.neuron_update(module))), None)
    if update is None:
        return replace(row, note=f"updates not counted: no rule for {row.type}")
    share = divisor(run, row.path, module, "neuron")
    steps, spikes = tally.outputs / share, tally.spikes / share
    acs, macs, comparisons = _each(module, update)
    resets = spikes if update.soft else 0.0
    return replace(
        row,
        kind="neuron",
        dense=steps * (acs + macs + comparisons + update.soft),
        nonzero=steps * (acs + macs + comparisons) + resets,
        effective=steps * (acs + macs + comparisons) + resets,
        acs=steps * acs + resets,
        macs=steps * macs,
        comparisons=steps * comparisons,
        # A second state is a float, and sets what all is computed in.
        numbers="INT" if membrane_bits(module) and update.leaks < 2 else _floats(module, row, run),
        outputs=steps,
    )


def _floats(module: nn.Module, row: OperationRow, run: DryRun) -> str:
    """What its states are held in; parameters tell of a neuron that keeps none."""
    widest = max((held.bits for held in run.calls[row.path].states.values()), default=0)
    if widest < 16:
        return float_of(module)
    return "FP16" if widest == 16 else "FP32"


def _each(module: nn.Module, update: NeuronUpdate) -> tuple[int, int, int]:
    """Accumulates, MACs and comparisons of one neuron in one step."""
    rule = module.membrane if isinstance(module, QuantizedNeuron) else None
    if isinstance(rule, MintMembrane):
        return 1, 0, 3  # whole numbers: the leak is a shift, and two comparisons clip
    if rule is not None:
        # Of several states the membrane alone is quantised. That a neuron fired, which a delayed
        # reset remembers as well, is known from the first comparison.
        return 1, max(update.leaks - 1, 0), 1 + math.ceil(math.log2(rule.highest - rule.lowest + 1))
    return (0, update.leaks, 1) if update.leaks else (1, 0, 1)
