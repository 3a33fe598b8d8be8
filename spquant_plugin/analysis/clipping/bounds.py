"""Accuracy with the stored membrane clipped from below, without training (Table 1)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...convert.hosts import require_model
from ...convert.trace import quiet_copy
from ...errors import AnalysisError
from ...modules.neuron import QuantizedNeuron
from .plots import plot_clipping
from .printed import Printed
from .running import Predict, accuracy_of, check_loader, largest_mean, progress_bar
from .stepping import spiking_neurons, watch_steps

BOUNDS = (-1.0, -2.0, -3.0, -4.0, -5.0)


@dataclass(frozen=True)
class ClippingRow:
    """Accuracy under one bound, None for the network as it is.

    ``clipped`` is the share of stored membranes, over all neurons, steps and samples, that the
    bound raised.
    """

    bound: float | None
    accuracy: float
    clipped: float = 0.0


@dataclass(frozen=True)
class ClippingReport(Printed):
    """The network as it is first, then a row for each bound."""

    header = ("bound", "accuracy", "change (points)", "clipped")
    text_columns = ()

    model: str
    rows: tuple[ClippingRow, ...]

    @property
    def title(self) -> str:
        return f"{self.model}, accuracy with the stored membranes clipped from below"

    def __getitem__(self, bound: float | None) -> ClippingRow:
        for row in self.rows:
            if row.bound == bound:
                return row
        listed = ", ".join("None" if row.bound is None else f"{row.bound:g}" for row in self.rows)
        raise KeyError(f"{bound!r} has no row here. There are: {listed}.")

    def lines(self) -> list[tuple[str, ...]]:
        """All rows as text."""
        whole = self.rows[0].accuracy
        return [
            (
                "none" if row.bound is None else f"{row.bound:g}",
                f"{100 * row.accuracy:.2f} %",
                "" if row.bound is None else f"{100 * (row.accuracy - whole):+.2f}",
                "" if row.bound is None else f"{100 * row.clipped:.2f} %",
            )
            for row in self.rows
        ]

    def plot(self) -> Any:
        """A matplotlib figure: accuracy and clipped share against the bound."""
        return plot_clipping(self)


def sweep_bounds(
    model: nn.Module,
    loader: Iterable[Any],
    bounds: Sequence[float] = BOUNDS,
    *,
    timesteps: int | None = None,
    predict: Predict | None = None,
    progress: bool | None = None,
) -> ClippingReport:
    """Measure the accuracy with what every neuron stores clipped at each bound, without training.

    After each step the stored membrane of every spiking neuron becomes ``max(m, bound)``, in a
    copy; the model itself is not run. ``loader`` gives batches ``(x, labels)``; ``timesteps`` and
    ``predict`` are those of :func:`measure_accuracy`, ``bounds`` those of :func:`measure_silence`.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import neuron
    >>> net = neuron.IFNode(step_mode="m")
    >>> currents = torch.tensor([[[0.5, -3.0]], [[0.0, 2.0]]])  # [T, N, classes]
    >>> report = spq.analysis.clipping.sweep_bounds(net, [(currents, torch.tensor([1]))], [-1])
    >>> [(row.bound, row.accuracy, row.clipped) for row in report.rows]
    [(None, 0.0, 0.0), (-1.0, 1.0, 0.25)]
    """
    bounds = check_bounds(bounds)
    check_loader(loader)
    predict = predict or largest_mean
    neurons = spiking_neurons(require_model(model))
    check_bounds(bounds, neurons)
    _check_ungated(neurons)
    rows = []
    with progress_bar(progress, "sweep_bounds", loader, 1 + len(bounds)) as bar:
        for bound in (None, *bounds):
            name = "no bound" if bound is None else f"bound {bound:g}"
            clip = _Clip(bound)
            with quiet_copy(model) as copy:
                if bound is not None:
                    watch_steps(copy, clip)
                accuracy = accuracy_of(copy, bar.over(loader, name), timesteps, predict)
            rows.append(ClippingRow(bound, accuracy, clip.raised / max(clip.stored, 1)))
    return ClippingReport(type(model).__name__, tuple(rows))


class _Clip:
    """Raises what is stored to a bound, and counts how often."""

    def __init__(self, bound: float | None) -> None:
        self.bound = -math.inf if bound is None else bound
        self.raised = self.stored = 0

    def __call__(self, path: str, spikes: Tensor, stored: Tensor) -> Tensor:
        below = stored < self.bound
        self.raised += int(below.count_nonzero())
        self.stored += stored.numel()
        return torch.where(below, stored.new_tensor(self.bound), stored)


def check_bounds(
    bounds: object, neurons: Mapping[str, nn.Module] | None = None
) -> tuple[float, ...]:
    """Bounds as numbers below zero, and below the rest of every neuron."""
    listed = list(bounds) if isinstance(bounds, Iterable) and not isinstance(bounds, str) else None
    if not listed:
        raise AnalysisError(
            f"bounds = {bounds!r}: must be a sequence of at least one number below 0. Pass "
            "bounds=(-1, -2), for example."
        )
    for bound in listed:
        real = isinstance(bound, numbers.Real) and not isinstance(bound, bool)
        if not real or not -math.inf < bound < 0:
            raise AnalysisError(
                f"bounds hold {bound!r}: each must be a finite number below 0, because silent "
                "neurons rest at 0 and clipping must leave them alone. Pass the potential itself, "
                "-1 for example."
            )
        if listed.count(bound) > 1:
            raise AnalysisError(f"bounds hold {bound!r} twice: each may stand there once.")
    for path, neuron in (neurons or {}).items():
        rest = getattr(neuron, "v_reset", None)
        if isinstance(rest, float) and max(listed) >= rest:
            raise AnalysisError(
                f"{path or '(model)'} ({type(neuron).__name__}) rests at {rest:g}: every bound "
                f"must lie below that, and {max(listed):g} does not. Pass lower bounds."
            )
    return tuple(map(float, listed))


def _check_ungated(neurons: Mapping[str, nn.Module]) -> None:
    for path, neuron in neurons.items():
        if isinstance(neuron, QuantizedNeuron) and (neuron.watched or neuron.spatial_gate):
            raise AnalysisError(
                f"{path or '(model)'} ({type(neuron).__name__}): a gate reads what it stores, "
                "which clipping would change behind its back: it must have none. Clip the network "
                "before it gets gates."
            )
