"""Bars of memory and operations. matplotlib is loaded when asked for a figure, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .energy import EnergyReport, EnergyRow
from .figures import finish, new_figure
from .memory import MemoryReport, MemoryRow
from .operations import OperationReport, OperationRow
from .units import bytes_text, count_text, joules_text, scaled, scaled_joules

# Colours that stay apart for colour-blind readers and in grey.
COLOURS = {"weight": "#0072B2", "membrane": "#E69F00", "spike": "#009E73", "other": "#999999"}
DENSE, EFFECTIVE, COMPUTE, TRAFFIC = "#bbbbbb", "#CC79A7", "#D55E00", "#56B4E9"
LABELS = {"weight": "weights", "membrane": "membranes", "spike": "spikes", "other": "other"}


def plot_report(
    title: str, memory: MemoryReport, operations: OperationReport, energy: EnergyReport
) -> Any:
    """One horizontal bar per module, so that long paths and many modules stay readable."""
    parts = _parts(memory.mode)
    rows = [row for row in memory.layers if any(_size(row, part) for part in parts)]
    counted = [row for row in operations.layers if row.kind in ("AC", "MAC", "gate")]
    priced = [row for row in energy.layers if row.total_pj]
    figure, panels = _panels(len(rows), len(counted), len(priced))
    names = [row.path or "(model)" for row in rows]
    sizes = {part: [_size(row, part) for row in rows] for part in parts}
    _memory_bars(panels[0], names, sizes)
    panels[0].set_title(f"{title}: memory per sample ({memory.mode})")
    if counted:
        _operation_bars(panels[1], [row.path or "(model)" for row in counted], counted)
    if priced:
        _energy_bars(panels[-1], [row.path or "(model)" for row in priced], priced)
        panels[-1].set_title(f"compute and memory at {energy.table_name}")
    return _with_legend(figure)


def plot_comparison(
    names: Sequence[str],
    memories: Sequence[MemoryReport],
    operations: Sequence[OperationReport],
    energies: Sequence[EnergyReport],
) -> Any:
    """One horizontal bar per model, with its total at the end."""
    modes = list(dict.fromkeys(memory.mode for memory in memories))
    sizes = {
        part: [_size(memory, part) if part in _parts(memory.mode) else 0.0 for memory in memories]
        for part in LABELS
        if any(part in _parts(mode) for mode in modes)
    }
    further = (operations, energies)
    figure, panels = _panels(len(names), *(len(names) * any(map(len, part)) for part in further))
    _memory_bars(panels[0], names, sizes, [bytes_text(memory.total_bytes) for memory in memories])
    panels[0].set_title(f"memory per sample ({', '.join(modes)})")
    if len(panels) > 1:
        ends = [f"{count_text(report.effective)} effective" for report in operations]
        _operation_bars(panels[1], names, operations, ends)
        _energy_bars(
            panels[2], names, energies, [joules_text(report.total_pj) for report in energies]
        )
        tables = ", ".join(dict.fromkeys(report.table_name for report in energies))
        panels[2].set_title(f"compute and memory at {tables}")
    return _with_legend(figure)


def _parts(mode: str) -> tuple[str, ...]:
    """What adds up to the total."""
    return tuple(LABELS) if mode == "measured" else ("weight", "membrane", "spike")


def _size(held: MemoryRow | MemoryReport, part: str) -> float:
    return float(getattr(held, f"{part}_bytes"))


def _panels(*counts: int) -> tuple[Any, Sequence[Any]]:
    """A figure with a panel for each number of rows that is not 0, one below the other."""
    heights = [1.6 + 0.28 * rows for rows in counts if rows]
    heights = heights or [1.6]
    figure = new_figure(sum(heights))
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(panels[:, 0])


def _memory_bars(
    axes: Any, names: Sequence[str], sizes: dict[str, list[float]], ends: Sequence[str] = ()
) -> None:
    """Stacked bars of bytes."""
    sums = [sum(stack) for stack in zip(*sizes.values(), strict=True)]
    unit, unit_name = scaled(max(sums, default=0.0))
    places, starts = range(len(names)), [0.0] * len(names)
    for part, values in sizes.items():
        widths = [value / unit for value in values]
        axes.barh(places, widths, left=starts, color=COLOURS[part], label=LABELS[part])
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_xlabel(f"memory ({unit_name})")
    finish(axes, names, starts, ends)


def _operation_bars(
    axes: Any,
    names: Sequence[str],
    counts: Sequence[OperationRow | OperationReport],
    ends: Sequence[str] = (),
) -> None:
    """Effective operations in front of dense ones."""
    unit, unit_name = scaled(max((count.dense for count in counts), default=0.0))
    places, dense = range(len(names)), [count.dense / unit for count in counts]
    axes.barh(places, dense, color=DENSE, label="dense")
    effective = [count.effective / unit for count in counts]
    axes.barh(places, effective, height=0.5, color=EFFECTIVE, label="effective")
    prefix = unit_name[:-1]
    axes.set_xlabel(f"operations per sample ({prefix})" if prefix else "operations per sample")
    finish(axes, names, dense, ends)


def _energy_bars(
    axes: Any,
    names: Sequence[str],
    energies: Sequence[EnergyRow | EnergyReport],
    ends: Sequence[str] = (),
) -> None:
    """What computing and what moving data takes, stacked."""
    unit, unit_name = scaled_joules(max((energy.total_pj for energy in energies), default=0.0))
    places, compute = range(len(names)), [energy.compute_pj / unit for energy in energies]
    axes.barh(places, compute, color=COMPUTE, label="compute")
    traffic = [energy.memory_pj / unit for energy in energies]
    axes.barh(places, traffic, left=compute, color=TRAFFIC, label="memory traffic")
    axes.set_xlabel(f"energy per sample ({unit_name})")
    finish(axes, names, [energy.total_pj / unit for energy in energies], ends)


def _with_legend(figure: Any) -> Any:
    """One legend for all panels, which share no colour."""
    bars = [bars for panel in figure.axes for bars in panel.containers]
    columns = min(len(bars), 4)
    figure.legend(handles=bars, loc="outside lower center", ncols=columns, frameon=False)
    return figure
