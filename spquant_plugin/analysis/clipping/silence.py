r"""How silent the neurons stay that a bound would clip (Eqs. 5 and 6 of SpQuant-SNN).

A neuron is in the region :math:`\Gamma` of a bound ``c`` if it stores :math:`v_1 < c` after the
first step. Of the steps that follow,

.. math::

    r_s = \frac{1}{T - 1} \sum_{t=2}^{T}
          \frac{|\{ i \in \Gamma : s_{i,t} = 1 \}|}{C\,H\,W}

is the share of all neurons that are in the region and fire: what clipping them could disturb.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...convert.hosts import require_model
from ...convert.trace import quiet_copy
from ...errors import AnalysisError
from ...modules.neuron import QuantizedNeuron
from ..samples import batches_of
from .bounds import BOUNDS, check_bounds
from .running import call
from .silence_report import SilenceReport, SilenceRow, SilentRegion
from .stepping import membrane_name, spiking_neurons, watch_steps


def measure_silence(
    model: nn.Module,
    sample_or_loader: Any,
    bounds: Sequence[float] = BOUNDS,
    *,
    timesteps: int | None = None,
    progress: bool | None = None,
) -> SilenceReport:
    """Measure for each neuron layer and bound how often the neurons below the bound still fire.

    ``bounds`` are potentials below the rest of every neuron; in the publication, whose threshold is
    1, they go from -1 to -5. ``sample_or_loader`` is what one call of the model takes, or an
    iterable of batches ``x`` or ``(x, labels)``, all of which are run. A copy at rest runs in eval
    mode; the model itself is not run. With ``timesteps=T`` the copy takes one step per call.
    ``progress`` shows a bar over a loader; left out, it does where tqdm is installed.

    The membrane is what the neuron stores: after its reset, or before it where the host resets one
    step late, which differs only for neurons that fired. A quantised one stores no less than its
    lowest level, which its row's note says: the question is meant for float membranes.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import neuron
    >>> lif = neuron.LIFNode(decay_input=False, step_mode="m")
    >>> currents = torch.tensor([[-3.0, -1.5, 0.5, 0.5], [3.0, 0.0, 0.0, 0.0]])
    >>> report = spq.analysis.clipping.measure_silence(lif, currents[:, None], bounds=[-1, -2])
    >>> region = report[""].at(-1)
    >>> region.share, region.rate, region.rate_within
    (0.5, 0.25, 0.5)
    """
    bounds = check_bounds(bounds)
    batches = batches_of(sample_or_loader, None, progress, "measure_silence")
    with quiet_copy(require_model(model)) as copy:
        neurons = spiking_neurons(copy)
        check_bounds(bounds, neurons)
        counts = {path: _Counts(path, bounds) for path in neurons}
        watch_steps(copy, lambda path, spikes, stored: counts[path].add(spikes, stored))
        for x in batches:
            call(copy, x, timesteps)
            for count in counts.values():
                count.finish()
        _check_steps(counts.values())
        rows = [counts[path].row(neuron) for path, neuron in neurons.items()]
    return SilenceReport(type(model).__name__, tuple(rows))


def _check_steps(counts: Iterable[_Counts]) -> None:
    longest = max((count.steps for count in counts), default=0)
    if longest < 2:
        raise AnalysisError(
            f"the sample gave {longest} time steps: the rate is a mean over the steps after the "
            "first, so there must be at least 2. Pass a longer sample, with timesteps=T to a model "
            "that takes single steps."
        )


@dataclass
class _Region:
    """Neurons of one layer below one bound, over all batches."""

    inside: int = 0
    later: int = 0  # the same, once for each step that followed
    fired: int = 0
    woken: int = 0
    now: Tensor | None = None
    awake: Tensor | None = None

    def begin(self, below: Tensor) -> None:
        self.now, self.awake = below, torch.zeros_like(below)
        self.inside += int(below.count_nonzero())

    def add(self, fired: Tensor) -> None:
        if self.now is None or self.awake is None:
            return
        fired = fired & self.now
        self.awake |= fired
        self.fired += int(fired.count_nonzero())
        self.later += int(self.now.count_nonzero())

    def finish(self) -> None:
        if self.awake is not None:
            self.woken += int(self.awake.count_nonzero())
        self.now = self.awake = None


@dataclass
class _Counts:
    """What the steps of one neuron layer showed."""

    path: str
    bounds: tuple[float, ...]
    regions: list[_Region] = field(default_factory=list)
    shape: torch.Size | None = None
    step: int = 0
    steps: int = 0
    neurons: int = 0
    later: int = 0
    lowest: float = math.inf

    def __post_init__(self) -> None:
        self.regions = [_Region() for _ in self.bounds]

    def add(self, spikes: Tensor, stored: Tensor) -> Tensor:
        if self.step and stored.shape != self.shape:
            raise AnalysisError(
                f"{self.path or '(model)'}: stores a membrane of shape {tuple(stored.shape)} after "
                f"one of {tuple(self.shape or ())}: all steps must have the same neurons. Use one "
                "neuron layer for each place."
            )
        self.shape, self.lowest = stored.shape, min(self.lowest, float(stored.min()))
        if self.step == 0:
            self.neurons += stored.numel()
            for bound, region in zip(self.bounds, self.regions, strict=True):
                region.begin(stored < bound)
        else:
            self.later += stored.numel()
            fired = spikes != 0
            for region in self.regions:
                region.add(fired)
        self.step += 1
        return stored

    def finish(self) -> None:
        """End of a batch."""
        self.steps, self.step = max(self.steps, self.step), 0
        for region in self.regions:
            region.finish()

    def row(self, neuron: nn.Module) -> SilenceRow:
        name = type(neuron).__name__
        if membrane_name(neuron) is None:
            return SilenceRow(self.path, name, note="keeps no membrane between steps")
        if self.steps < 2:
            note = "called for one step only" if self.steps else "not called by the sample"
            return SilenceRow(self.path, name, self.steps, note=note)
        regions = [
            SilentRegion(
                bound,
                region.inside / self.neurons,
                region.fired / self.later,
                region.fired / region.later if region.later else None,
                region.woken / region.inside if region.inside else None,
            )
            for bound, region in zip(self.bounds, self.regions, strict=True)
        ]
        note = ""
        if isinstance(neuron, QuantizedNeuron) and neuron.membrane is not None:
            own: Any = neuron
            floor = own.rest + own.membrane.lowest * float(own.membrane_unit)
            note = f"stores {floor:g} and more: nothing lies below such a bound"
            note = note if min(self.bounds) <= floor else ""
        return SilenceRow(self.path, name, self.steps, self.lowest, tuple(regions), note)
