"""Stacked bars of memory. matplotlib is loaded when a figure is asked for, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MissingHostError
from .memory import MemoryReport, MemoryRow
from .units import bytes_text, scaled

# Colours that stay apart for colour-blind readers and in grey.
COLOURS = {"weight": "#0072B2", "membrane": "#E69F00", "spike": "#009E73", "other": "#999999"}
LABELS = {"weight": "weights", "membrane": "membranes", "spike": "spikes", "other": "other"}


def plot_report(title: str, memory: MemoryReport) -> Any:
    """One horizontal bar per module, so that long paths and many modules stay readable."""
    parts = _parts(memory.mode)
    rows = [row for row in memory.layers if any(_size(row, part) for part in parts)]
    names = [row.path or "(model)" for row in rows]
    sizes = {part: [_size(row, part) for row in rows] for part in parts}
    return _bars(f"{title}: memory per sample ({memory.mode})", names, sizes)


def plot_comparison(names: Sequence[str], memories: Sequence[MemoryReport]) -> Any:
    """One horizontal bar per model, with its total at the end."""
    modes = list(dict.fromkeys(memory.mode for memory in memories))
    sizes = {
        part: [_size(memory, part) if part in _parts(memory.mode) else 0.0 for memory in memories]
        for part in LABELS
        if any(part in _parts(mode) for mode in modes)
    }
    title = f"memory per sample ({', '.join(modes)})"
    return _bars(title, names, sizes, [bytes_text(memory.total_bytes) for memory in memories])


def _parts(mode: str) -> tuple[str, ...]:
    """What adds up to the total."""
    return tuple(LABELS) if mode == "measured" else ("weight", "membrane", "spike")


def _size(held: MemoryRow | MemoryReport, part: str) -> float:
    return float(getattr(held, f"{part}_bytes"))


def _bars(
    title: str,
    names: Sequence[str],
    sizes: dict[str, list[float]],
    ends: Sequence[str] | None = None,
) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHostError(
            "plot() needs matplotlib, which is not installed. "
            'Run: python -m pip install "spquant-plugin[plots]"'
        ) from None
    sums = [sum(stack) for stack in zip(*sizes.values(), strict=True)]
    unit, unit_name = scaled(max(sums, default=0.0))
    figure = Figure(figsize=(8.0, 1.6 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    places, starts = range(len(names)), [0.0] * len(names)
    for part, values in sizes.items():
        widths = [value / unit for value in values]
        axes.barh(places, widths, left=starts, color=COLOURS[part], label=LABELS[part])
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(list(places), list(names))
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)  # first module on top, as in the table
    axes.set_xlabel(f"memory ({unit_name})")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    for place, start, text in zip(places, starts, ends or (), strict=False):
        axes.annotate(text, (start, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.15 if ends else 0.02)
    figure.legend(loc="outside lower center", ncols=len(sizes), frameon=False)
    return figure
