"""The figure of weight entropies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .figures import new_figure

if TYPE_CHECKING:
    from .entropy import EntropyReport

# Colours that stay apart for colour-blind readers and in grey.
SIGNS = {"negative": "#0072B2", "zero": "#bbbbbb", "positive": "#E69F00"}
BITS = "#009E73"


def plot_entropy(report: EntropyReport) -> Any:
    """Shares of negative, zero and positive weights, and bits beside what the levels could hold."""
    rows = [row for row in (*report.layers, *report.totals) if row.counts]
    figure = new_figure(1.8 + 0.55 * len(rows), 9.0)
    signs, bits = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(rows))
    for number, (name, colour) in enumerate(SIGNS.items()):
        shares = [100 * getattr(row, name) for row in rows]
        at = [place + 0.27 * (number - 1) for place in places]
        signs.barh(at, shares, 0.27, color=colour, label=name)
    line = signs.axvline(100 / 3, color="black", linestyle="--", label="one third")
    signs.set(xlabel="share of the weights (%)", xlim=(0, 100))
    for place, row in zip(places, rows, strict=True):
        bits.barh(place, row.entropy, 0.55, color=BITS)
        bits.plot([row.most] * 2, [place - 0.36, place + 0.36], color="black")
        bits.annotate(
            f"{row.entropy:.3f}", (row.most, place), (4, 0), textcoords="offset points", va="center"
        )
    bits.set_xlabel("entropy (bits per weight)\nline: log2 of the levels")
    bits.set_xlim(0, 1.25 * max(row.most or 0.0 for row in rows))
    names = [f"{row.path or '(model)'}\n{row.levels} levels" for row in report.layers if row.counts]
    names += [f"all of\n{row.levels} levels" for row in report.totals]
    signs.set_yticks(places, names)
    signs.set_ylim(len(rows) - 0.4, -0.6)  # first layer on top
    for axes in (signs, bits):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("How evenly quantised weights use their levels")
    handles = [*signs.containers, line]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure
