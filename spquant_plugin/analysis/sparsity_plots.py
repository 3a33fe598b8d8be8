"""Pictures of sparsity: rates as bars, and where each layer's membranes lie at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .figures import finish, new_figure

if TYPE_CHECKING:
    from .sparsity import SparsityReport, SparsityRow

RATE, ZEROS = "#009E73", "#0072B2"
# Blue to orange over white: apart for colour-blind readers, and by lightness in grey.
NEGATIVE, ZERO, POSITIVE = "#0072B2", "#e6e6e6", "#E69F00"


def plot_sparsity(sparsity: SparsityReport) -> Any:
    """Bars of the shares of each module, and below them the levels of quantised membranes."""
    rates = [row for row in sparsity.layers if row.firing_rate is not None]
    zeros = [row for row in sparsity.layers if row.zero_weights is not None]
    stored = [row for row in sparsity.layers if row.level_shares]
    heights = [1.2 + 0.28 * len(rows) for rows in (rates, zeros) if rows]
    columns = 3
    lines = -(-len(stored) // columns)
    ratios = _heights(heights, lines)
    figure = new_figure(sum(ratios))
    parts = figure.subfigures(len(ratios), 1, squeeze=False, height_ratios=ratios)
    panels = parts[0, 0].subplots(max(len(heights), 1), 1, squeeze=False)[:, 0]
    used = iter(panels)
    if rates:
        _bars(next(used), rates, "firing_rate", RATE, "firing rate (share of 1)")
    if zeros:
        _bars(next(used), zeros, "zero_weights", ZEROS, "zero weights (share of 1)")
    if stored:
        grid = parts[1, 0].subplots(lines, columns, squeeze=False, sharey=True)
        parts[1, 0].suptitle("share of neurons at each stored membrane level, by time step")
        for axes, row in zip(grid.flat, stored, strict=False):
            _levels(axes, row)
        for axes in grid[:, 0]:
            axes.set_ylabel("share of 1")
        for axes in list(grid.flat)[len(stored) :]:
            axes.set_axis_off()
        _legend(parts[1, 0], stored)
    return figure


def _heights(heights: Sequence[float], lines: int) -> list[float]:
    first = sum(heights) or 1.0
    # Each line of panels, and room for the title above them and the legend below.
    return [first, 0.8 + 1.7 * lines] if lines else [first]


def _bars(axes: Any, rows: Sequence[SparsityRow], name: str, colour: str, label: str) -> None:
    widths = [getattr(row, name) for row in rows]
    axes.barh(range(len(rows)), widths, color=colour)
    axes.set_xlabel(label)
    finish(axes, [row.path or "(model)" for row in rows], widths, [f"{w:.3f}" for w in widths])


def _levels(axes: Any, row: SparsityRow) -> None:
    """Stacked bars, the most negative level at the bottom."""
    steps = range(1, len(row.level_shares) + 1)
    bottom = [0.0] * len(row.level_shares)
    for index, level in enumerate(row.levels):
        shares = [step[index] for step in row.level_shares]
        axes.bar(steps, shares, bottom=bottom, width=0.9, color=_colour(level, row.levels))
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    axes.set_title(row.path or "(model)", fontsize="medium")
    axes.set_xlabel("time step")
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(level: int, levels: Sequence[int]) -> tuple[float, ...]:
    """Towards full blue or orange the farther a level is from 0."""
    from matplotlib.colors import to_rgb

    reach = max(abs(levels[0]), abs(levels[-1]), 1)
    end = to_rgb(POSITIVE if level > 0 else NEGATIVE)
    share = abs(level) / reach
    return tuple(
        share * far + (1 - share) * near for far, near in zip(end, to_rgb(ZERO), strict=True)
    )


def _legend(figure: Any, rows: Sequence[SparsityRow]) -> None:
    from matplotlib.patches import Patch

    widest = max((row.levels for row in rows), key=len)
    shown = widest if len(widest) <= 8 else (widest[0], 0, widest[-1])
    handles = [Patch(color=_colour(level, widest), label=f"level {level}") for level in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
