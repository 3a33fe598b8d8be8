"""What all figures share: how they are made, and how bars with names look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MissingHostError


def new_figure(height: float, width: float = 8.0) -> Any:
    """An empty figure, in inches. Matplotlib is loaded only here, where one is drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHostError(
            "plot() needs matplotlib, which is not installed. "
            'Run: python -m pip install "spquant-plugin[plots]"'
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Any, names: Sequence[str], lengths: Sequence[float], ends: Sequence[str]) -> None:
    """Names at horizontal bars, the first on top as in a table, and texts at their ends."""
    places = range(len(names))
    axes.set_yticks(list(places), list(names))
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for place, length, text in zip(places, lengths, ends, strict=False):
        axes.annotate(text, (length, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.15 if ends else 0.02)
