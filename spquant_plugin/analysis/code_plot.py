"""The figure of temporal weights: which patterns they follow, and what they are in each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .entropy_plot import SIGNS
from .figures import new_figure

if TYPE_CHECKING:
    from .codes import CodeReport, CodeRow

# Percent of a bar from which on a pattern's name fits into its part: as it is, or turned.
READABLE, TURNED = 5.5, 1.2


def plot_codes(report: CodeReport) -> Any:
    """Share of each code by layer, from the lowest to the highest, and of each sign by step."""
    figure = new_figure(1.8 + 0.55 * len(report.layers), 12.0)
    codes, steps = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(report.layers):
        _code_bar(codes, place, row)
        _step_bars(steps, place, row)
    names = [f"{row.path or '(model)'}\n{row.timesteps} steps" for row in report.layers]
    codes.set_yticks(range(len(names)), names)
    codes.set_ylim(len(names) - 0.4, -0.6)  # first layer on top
    codes.set(xlabel="share of the weights with each pattern over the steps (%)", xlim=(0, 100))
    steps.set(xlabel="share of the weights in each step, the first on top (%)", xlim=(0, 100))
    for third in (100 / 3, 200 / 3):
        line = steps.axvline(third, color="black", linestyle="--", label="thirds")
    for axes in (codes, steps):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("What weights that change with the time step are")
    handles = [*steps.containers[: len(SIGNS)], line]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _code_bar(axes: Any, place: int, row: CodeRow) -> None:
    """One stacked bar: the stronger a pattern, the darker its part."""
    start = 0.0
    for code, count in row.counts.items():
        width = 100 * count / row.weights
        sign = "zero" if not code else "negative" if code < 0 else "positive"
        strength = 1.0 if not code else 0.35 + 0.65 * abs(code) / (len(row.patterns) - 1)
        axes.barh(
            place, width, 0.7, start, color=SIGNS[sign], alpha=strength, edgecolor="white", lw=0.5
        )
        if width >= TURNED:
            ink = "white" if code < 0 and strength > 0.7 else "black"
            turn = 0 if width >= READABLE else 90
            at, text = (start + width / 2, place), row.name(code)
            axes.text(*at, text, ha="center", va="center", fontsize=7, color=ink, rotation=turn)
        start += width


def _step_bars(axes: Any, place: int, row: CodeRow) -> None:
    """A thin bar for each step: negative, zero and positive weights."""
    height = 0.7 / row.timesteps
    for step, shares in enumerate(row.level_shares):
        at, start, middle = place - 0.35 + (step + 0.5) * height, 0.0, len(shares) // 2
        parts = (sum(shares[:middle]), shares[middle], sum(shares[middle + 1 :]))
        for (sign, colour), share in zip(SIGNS.items(), parts, strict=True):
            axes.barh(at, 100 * share, 0.9 * height, start, color=colour, label=sign)
            start += 100 * share
