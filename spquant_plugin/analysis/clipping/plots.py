"""Figures of the clipping analysis. matplotlib is loaded when asked for one, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..figures import new_figure
from ..units import scaled

if TYPE_CHECKING:
    from .bounds import ClippingReport
    from .silence_report import SilenceReport, SilenceRow
    from .sweeps import Sweep

# Colours that stay apart for colour-blind readers and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"


def plot_silence(report: SilenceReport) -> Any:
    """Two panels of horizontal bars: of all neurons, and of those below the bound."""
    rows = [row for row in report.layers if row.regions]
    bounds = [region.bound for region in rows[0].regions]
    figure = new_figure(1.9 + 0.17 * len(rows) * (len(bounds) + 1), 9.0)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name in zip(panels, ("rate", "rate_within"), strict=True):
        _bars(panel, rows, bounds, name)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_xlabel("of all neurons (%), as Eq. 6")
    panels[1].set_xlabel("of the neurons below the bound (%)")
    panels[0].set_yticks(range(len(rows)), [_with_lowest(row) for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)  # first layer on top
    figure.suptitle("Neurons that a bound would clip after step 1: mean share that fires later")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(bounds), frameon=False)
    return figure


def _bars(axes: Any, rows: Sequence[SilenceRow], bounds: Sequence[float], name: str) -> None:
    height = 0.8 / len(bounds)
    for number, (bound, colour) in enumerate(zip(bounds, _shades(len(bounds)), strict=True)):
        shares = [getattr(row.at(bound), name) for row in rows]
        places = [place - 0.4 + height * (number + 0.5) for place in range(len(rows))]
        widths = [100 * (share or 0.0) for share in shares]
        axes.barh(places, widths, height, color=colour, label=f"c = {bound:g}")
        for place, share in zip(places, shares, strict=True):
            if share is None:
                axes.annotate(
                    "no neuron below",
                    (0, place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6,
                    color="#555555",
                )
    axes.set_xlim(left=0)


def _shades(count: int) -> list[Any]:
    """Shades from dark to light, since bounds have an order; they stay apart in grey."""
    from matplotlib import colormaps

    return [colormaps["cividis"](0.05 + 0.85 * place / max(count - 1, 1)) for place in range(count)]


def _with_lowest(row: SilenceRow) -> str:
    lowest = 0.0 if row.lowest is None else row.lowest
    return f"{row.path or '(model)'}\nlowest {lowest:.3g}"


def plot_clipping(report: ClippingReport) -> Any:
    """Accuracy against the bound above, the share of clipped membranes below."""
    whole = report.rows[0].accuracy
    rows = sorted((row for row in report.rows if row.bound is not None), key=_bound)
    bounds = [_bound(row) for row in rows]
    figure = new_figure(4.6, 5.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.axhline(100 * whole, color=GREY, linestyle="--", label="not clipped")
    accuracies = [100 * row.accuracy for row in rows]
    above.plot(bounds, accuracies, marker="o", color=BLUE, label="clipped")
    spread = max(abs(accuracy - 100 * whole) for accuracy in accuracies)
    middle = max(1.0, 1.3 * spread)  # noise of single samples is not to look like a cliff
    above.set(ylabel="accuracy (%)", ylim=(100 * whole - middle, 100 * whole + middle))
    above.legend(loc="lower left", frameon=False)
    below.bar(bounds, [100 * row.clipped for row in rows], 0.5 * _gap(bounds), color=ORANGE)
    below.set(ylabel="clipped (%)", xlabel="lower bound of the stored membrane", xticks=bounds)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    above.set_title("Stored membranes clipped from below, without training")
    return figure


def _bound(row: Any) -> float:
    return float(row.bound)


def _gap(bounds: Sequence[float]) -> float:
    return min((after - before for before, after in pairwise(bounds)), default=1.0)


def plot_sweep(found: Sweep) -> Any:
    """Accuracy row by row, and beside it against the memory of membranes where that differs."""
    rows = found.rows
    differs = len({row.membrane_bytes for row in rows}) > 1
    figure = new_figure(max(3.2, 1.6 + 0.36 * len(rows)), 9.5 if differs else 5.5)
    panels = figure.subplots(1, 2 if differs else 1, squeeze=False)[0]
    accuracies = [100 * row.accuracy for row in rows]
    bars = panels[0].barh(range(len(rows)), accuracies, color=BLUE)
    panels[0].bar_label(bars, [f"{accuracy:.2f}" for accuracy in accuracies], padding=3)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    panels[0].set(ylim=(len(rows) - 0.4, -0.6), xlabel="accuracy (%)", xlim=(0, 112))
    panels[0].set_xticks(range(0, 101, 20))
    if differs:
        _against_memory(panels[1], found)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Each row trained" if found.trained else "Without training")
    return figure


def _against_memory(axes: Any, found: Sweep) -> None:
    unit, unit_name = scaled(max(row.membrane_bytes for row in found.rows))
    middle = sum(_ends(found)) / 2
    sizes = sorted({row.membrane_bytes for row in found.rows})
    for size in sizes:
        rows = [row for row in found.rows if row.membrane_bytes == size]
        rows.sort(key=lambda row: row.accuracy)
        for rank, row in enumerate(rows):
            # Names aslant and away from the middle, so that those of neighbours do not meet.
            best = rank == len(rows) - 1
            above = row.accuracy >= middle if len(rows) == 1 else best
            _name_point(axes, row.name, (size / unit, 100 * row.accuracy), above)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:.3g}")
    if len(sizes) <= 3:  # powers of two may miss them all
        axes.set_xticks([size / unit for size in sizes])
    axes.margins(x=0.15)
    axes.set(xlabel=f"membranes of one sample ({unit_name})", ylabel="accuracy (%)")
    low, high = (100 * accuracy for accuracy in _ends(found))
    # Room for names, and enough that single samples do not look like a cliff.
    spare = max(1.0, 0.45 * (high - low))
    axes.set_ylim(low - spare, high + spare)


def _name_point(axes: Any, name: str, place: tuple[float, float], above: bool) -> None:
    side = 1 if above else -1
    axes.plot(*place, marker="o", color=BLUE)
    axes.annotate(
        name,
        place,
        xytext=(2, 6 * side),
        textcoords="offset points",
        ha="left",
        va="bottom" if above else "top",
        rotation=40 * side,
        rotation_mode="anchor",
    )


def _ends(found: Sweep) -> tuple[float, float]:
    accuracies = [row.accuracy for row in found.rows]
    return min(accuracies), max(accuracies)
