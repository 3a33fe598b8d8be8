"""Bars of energy, latency and area. matplotlib is loaded when asked for a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..figures import new_figure
from ..units import ratio_text
from .quantities import EDAPS, MICROMETRES, NANOSECONDS, PICOJOULES, number, unit_of

if TYPE_CHECKING:
    from .comparison import HardwareComparison
    from .report import HardwareReport

# Name, label, units and a colour that stays apart for colour-blind readers and in grey.
PANELS = (
    ("energy_pj", "energy", PICOJOULES, "#0072B2"),
    ("latency_ns", "latency", NANOSECONDS, "#E69F00"),
    ("area_um2", "area", MICROMETRES, "#009E73"),
)
DENSITIES = ((1.0, "TOPS/mm²"), (1e-3, "GOPS/mm²"), (1e-6, "MOPS/mm²"))
RATES = (
    ("edap", "EDAP", EDAPS, "#CC79A7"),
    ("tops_per_watt", "efficiency", ((1.0, "TOPS/W"),), "#56B4E9"),
    ("tops_per_mm2", "density", DENSITIES, "#999999"),
)


def plot_report(report: HardwareReport) -> Any:
    """A panel for each quantity, in which each mapped layer has a bar."""
    rows = [row for row in report.layers if row.mapped]
    figure = new_figure(1.7 + 0.26 * len(rows), 9.0)
    panels = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for axes, (name, label, units, colour) in zip(panels, PANELS, strict=True):
        values = [getattr(row, name) for row in rows]
        size, unit = unit_of(max(values), units)
        axes.barh(range(len(rows)), [value / size for value in values], color=colour)
        axes.set_xlabel(f"{label} ({unit})")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row.path or "(model)" for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top, as in the table
    figure.suptitle(report.title, fontsize=10)
    return figure


def plot_comparison(comparison: HardwareComparison) -> Any:
    """Six panels; the ratio against the first report stands behind each value."""
    names, reports = comparison.names, comparison.reports
    figure = new_figure(2.2 + 0.6 * len(names), 9.0)
    figure.suptitle(f"per sample; in brackets: how many times better than {names[0]}", fontsize=10)
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, (quantity, label, units, colour) in zip(panels, PANELS + RATES, strict=True):
        values = [getattr(report, quantity) or 0.0 for report in reports]
        size, unit = unit_of(max(values), units)
        axes.barh(range(len(names)), [value / size for value in values], height=0.6, color=colour)
        for place, value in enumerate(values):
            ratio = ratio_text(comparison.ratio(place, quantity)) if place else ""
            words = f"{number(value / size)}  ({ratio})" if ratio else number(value / size)
            offset = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(words, (value / size, place), fontsize=8, **offset)
        axes.margins(x=0.65)  # room for the words behind the longest bar
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"{label} ({unit})")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[::3]:
        axes.set_yticks(range(len(names)), list(names))
        axes.set_ylim(len(names) - 0.4, -0.6)
    return figure
