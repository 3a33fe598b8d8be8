"""The table and the figure that both quickstarts end with."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import spquant_plugin as spq

FLOAT, TERNARY = "#8a8a8a", "#0b6e8f"
BRIGHTER, DARKER = "#d1495b", "#30638e"


def table(accuracy: dict[str, float], reports: dict[str, spq.Report]) -> str:
    """Accuracy and memory of each network, and how many times less memory than the first."""
    names = list(accuracy)
    full = reports[names[0]].memory.total_bytes
    lines = [f"{'network':26}{'accuracy':>10}{'memory':>12}{'less':>8}"]
    for name in names:
        total = reports[name].memory.total_bytes
        lines.append(
            f"{name:26}{accuracy[name]:>10.1%}{total / 1000:>9.1f} kB{full / total:>7.1f}x"
        )
    lines.append("Memory: weights, membranes and spikes of one sample at their stored bits.")
    return "\n".join(lines)


def membranes_and_spikes(
    events: np.ndarray, size: int, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> Figure:
    """Input events, a spike raster, and membranes before and after conversion."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_events(axes[0, 0], events, size)
    _draw_raster(axes[0, 1], after[0])
    _draw_histogram(axes[1, 0], before[1], "membranes before: 32 bit", FLOAT)
    _draw_levels(axes[1, 1], after[1], "membranes after: 3 levels, stored in 2 bit")
    return figure


def _draw_events(axes: Axes, events: np.ndarray, size: int) -> None:
    for polarity, color, name in ((1, BRIGHTER, "brighter"), (0, DARKER, "darker")):
        some = events[events["p"] == polarity]
        axes.scatter(some["t"] / 1000, some["y"], s=3, color=color, label=name, linewidths=0)
    axes.set(
        xlabel="time (ms)",
        ylabel="row",
        ylim=(size, -3),
        yticks=range(0, size + 1, 4),
        title=f"one recording: {len(events)} events",
    )
    axes.legend(loc="upper right", markerscale=3, ncols=2)


def _draw_raster(axes: Axes, spikes: Tensor, neurons: int = 60) -> None:
    """Neurons of the first sample, evenly spaced over the layer."""
    of_sample = spikes[:, 0].flatten(1)
    some = torch.linspace(0, of_sample.shape[1] - 1, neurons).long()
    steps, number = torch.nonzero(of_sample[:, some], as_tuple=True)
    axes.scatter(steps, number, s=14, marker="|", color=TERNARY)
    axes.set(
        xlabel="step",
        ylabel="neuron",
        xticks=range(len(of_sample)),
        title=f"{neurons} neurons after conversion (firing rate {of_sample.mean():.2f})",
    )


def _draw_histogram(axes: Axes, membranes: Tensor, title: str, color: str) -> None:
    values = membranes.flatten().numpy()
    low, high = np.quantile(values, [0.001, 0.999])
    axes.hist(
        values,
        bins=np.linspace(low, high, 80),
        color=color,
        weights=np.full(len(values), 100 / len(values)),
    )
    axes.set(xlabel="stored membrane", ylabel="share of neurons (%)", title=title)


def _draw_levels(axes: Axes, membranes: Tensor, title: str) -> None:
    levels, counts = membranes.unique(return_counts=True)
    shares = 100 * counts / counts.sum()
    bars = axes.bar(
        [f"{level + 0.0:g}" for level in levels.tolist()], shares.tolist(), 0.5, color=TERNARY
    )
    axes.bar_label(bars, fmt="%.1f %%")
    axes.margins(y=0.12)
    axes.set(xlabel="stored membrane", ylabel="share of neurons (%)", title=title)
