"""Teacher's and student's membrane potentials side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import DistillationError, MissingHostError
from .losses import DistillationLoss, Forward
from .networks import Potentials, unwrapped
from .teacher import frozen

STYLES: dict[str, dict[str, Any]] = {
    "teacher": {"color": "#0072B2", "alpha": 0.35, "fill": True},
    "student": {"color": "#D55E00", "linewidth": 1.3},
}
BINS = 80


def plot_membranes(
    teacher: nn.Module | DistillationLoss,
    student: nn.Module | None = None,
    x: Any = None,
    layers: str | Iterable[str] = "stages",
    *,
    teacher_x: Any = None,
    forward: Forward | None = None,
) -> Any:
    """Histograms of the potentials before firing of both networks, one panel for each layer.

    Both run on ``x`` from rest in eval mode and are left as they were. A
    :class:`DistillationLoss` in place of the two networks brings its layers and ``forward``.
    Returns a matplotlib figure, ``figure.savefig("membranes.png")``.

    >>> import spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> teacher = nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 2))
    >>> x = torch.rand(16, 6)
    >>> student = spq.convert(teacher, spq.presets.md_snn(2, norm=None), sample=x)
    >>> figure = spq.distill.plot_membranes(teacher, student, x)
    >>> [axes.get_title("left") for axes in figure.axes]
    ['1']
    """
    distill = teacher
    if not isinstance(distill, DistillationLoss):
        distill = DistillationLoss(teacher, student, layers, forward=forward)  # type: ignore[arg-type]
    if x is None:
        raise DistillationError(
            "plot_membranes(x=None): must be what the networks take. Pass a batch of inputs."
        )
    if not distill.membrane_weight:
        raise DistillationError(
            "plot_membranes: a DistillationLoss with membrane_weight=0 compares no layers. Pass "
            "teacher and student instead."
        )
    theirs, ours = _observe(distill, x, x if teacher_x is None else teacher_x)
    return _draw(distill.paths, theirs, ours)


def _observe(distill: DistillationLoss, x: Any, teacher_x: Any) -> tuple[Potentials, Potentials]:
    _, theirs = distill.observe_teacher(teacher_x)
    with frozen(unwrapped(distill.student)):
        _, ours = distill.observe_student(x)
    return theirs, ours


def _draw(paths: tuple[str, ...], theirs: Potentials, ours: Potentials) -> Any:
    figure = _new_figure(1.0 + 1.5 * len(paths))
    for path, axes in zip(paths, figure.subplots(len(paths), 1, squeeze=False).flat, strict=True):
        both = [seen[path].detach().flatten().cpu().double() for seen in (theirs, ours)]
        if not all(bool(values.isfinite().all()) for values in both):
            raise DistillationError(
                f"plot_membranes: potentials of {path or '(model)'} are not finite: must be, to be "
                "drawn. Look for NaN or huge values in the input and the weights."
            )
        low = min(float(values.min()) for values in both)
        high = max(float(values.max()) for values in both)
        edges = torch.linspace(low, high if high > low else low + 1, BINS + 1, dtype=torch.double)
        for name, style, values in zip(STYLES, STYLES.values(), both, strict=True):
            shares = 100 * torch.histogram(values, edges).hist / values.numel()
            axes.stairs(shares.tolist(), edges.tolist(), label=name, **style)
        axes.set_title(path or "(model)", loc="left", fontsize="medium")
        axes.set_yscale("symlog", linthresh=0.1)  # most neurons are at rest
        axes.set(ylabel="share (%)", ylim=(0, 100))
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("membrane potential before firing")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _new_figure(height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHostError(
            "plot_membranes() needs matplotlib, which is not installed. "
            'Run: python -m pip install "spquant-plugin[plots]"'
        ) from None
    return Figure(figsize=(8.0, height), layout="constrained")
