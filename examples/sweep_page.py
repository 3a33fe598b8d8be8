"""The page, the table and the figure of a sweep: what was measured, and which aims were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sweep
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from measurements import percent

Runs = list[dict[str, Any]]

COLUMNS = (
    *("network", "accuracy (%)", "against FP", "memory", "less", "accumulates", "less"),
    *("gates", "channels closed"),
)


def write(results: list[dict[str, Any]], page: Path) -> None:
    """The page, its figure beside it in ``_static``, and the plain table in ``results``."""
    template = (page.parent / "results" / "sweep_template.md").read_text()
    page.write_text(text(results, template))
    (page.parent / "results" / "sweep.txt").write_text(sweep.table(results) + "\n")
    figure(results).savefig(page.parent / "_static" / "sweep.png", dpi=150)


def text(results: list[dict[str, Any]], template: str) -> str:
    """The whole page: the words of the template, and tables of what was measured."""
    epochs = {found["task"]: found["epochs"] for found in results}
    tables = [
        f"## {task}, {host}\n\n{_table(runs)}\n"
        for (task, host), runs in sweep.groups(results).items()
    ]
    return template.format(
        seeds=len({found["seed"] for found in results}),
        epochs=", ".join(f"{n} + {n} on {task}" for task, n in sorted(epochs.items())),
        steps=sweep.STEPS,
        widths=_by_task(sweep.WIDTH),
        thin=_by_task(sweep.THIN),
        variants=sweep.VARIANTS,
        tables="\n".join(tables),
        aims=_aims(results),
    )


def _by_task(values: dict[str, float]) -> str:
    return ", ".join(f"{value:g} on {task}" for task, value in sorted(values.items()))


def _table(runs: Runs) -> str:
    lines = [_row(COLUMNS), _row(["---", *["---:"] * (len(COLUMNS) - 1)])]
    full, _ = percent([run[sweep.FULL]["accuracy"] for run in runs])
    for name in runs[0]:
        accuracy, spread = percent([run[name]["accuracy"] for run in runs])
        memory, adds, gates = (
            sweep.mean(runs, name, part) for part in ("memory", "accumulates", "gates")
        )
        gated = runs[0][name]["channels_closed"] is not None
        closed = f"{sweep.mean(runs, name, 'channels_closed'):.1%}" if gated else ""
        lines.append(
            _row(
                [
                    *(name, spread, f"{accuracy - full:+.2f}"),
                    *(f"{memory / 1e3:.1f} kB", _times(runs, memory, "memory")),
                    *(f"{adds / 1e6:.3f} M", _times(runs, adds, "accumulates")),
                    *(f"{gates / 1e6:.3f} M" if gated else "", closed),
                ]
            )
        )
    return "\n".join(lines)


def _times(runs: Runs, value: float, part: str) -> str:
    return f"{sweep.mean(runs, sweep.FULL, part) / value:.1f}x"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def aims(runs: Runs) -> list[tuple[str, str, bool]]:
    """Of one task and host: what was aimed at, what was measured, and whether it was met."""

    def against(name: str, other: str) -> tuple[float, str]:
        """Mean of the differences seed by seed in points, and it with its standard deviation."""
        return percent([run[name]["accuracy"] - run[other]["accuracy"] for run in runs], "+")

    found = [
        (
            f"{name} within 0.5 points of {sweep.FULL}",
            against(name, sweep.FULL)[1],
            against(name, sweep.FULL)[0] >= -0.5,
        )
        for name in ("Quant 8 bit", "Quant 4 bit", "Quant 2 bit")
    ]
    less = sweep.mean(runs, sweep.FULL, "accumulates") / sweep.mean(
        runs, sweep.SPQUANT, "accumulates"
    )
    lost, spread = against(sweep.SPQUANT, sweep.FULL)
    found.append(
        (
            f"{sweep.SPQUANT} within 1.0 points of {sweep.FULL} at 4.7x fewer accumulates",
            f"{spread} at {less:.1f}x",
            lost >= -1.0 and less >= 4.7,
        )
    )
    for learned, fixed in (
        ("Quant 2 bit, learned threshold", "Quant 2 bit"),
        (sweep.ADAPTIVE, sweep.SPQUANT),
    ):
        gained, spread = against(learned, fixed)
        found.append((f"{learned} better than {fixed}", spread, gained > 0))
    gained, spread = against(sweep.SPQUANT, sweep.THINNER)
    found.append((f"{sweep.SPQUANT} not below the thinner network", spread, gained >= 0))
    return found


def _aims(results: list[dict[str, Any]]) -> str:
    lines = [_row(("task", "host", "aim", "measured", "met")), _row(["---"] * 5)]
    for (task, host), runs in sweep.groups(results).items():
        for aim, measured, met in aims(runs):
            lines.append(_row((task, host, aim, measured, "yes" if met else "**no**")))
    return "\n".join(lines)


def figure(results: list[dict[str, Any]]) -> Figure:
    """Accuracy against memory and against accumulates, a row of panels for each task and host."""
    found = sweep.groups(results)
    drawn = Figure(figsize=(10, 3.1 * len(found)), layout="constrained")
    panels = drawn.subplots(len(found), 2, squeeze=False, sharey="row")
    names = list(next(iter(found.values()))[0])
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    for axes, ((task, host), runs) in zip(panels, found.items(), strict=True):
        for panel, part, unit, label in (
            (axes[0], "memory", 1e3, "memory of one sample (kB)"),
            (axes[1], "accumulates", 1e6, "effective accumulates per recording (M)"),
        ):
            for name in names:
                _point(panel, runs, name, part, unit, colors[name])
            panel.set(xscale="log", xlabel=label, title=f"{task}, {host}")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
        axes[0].set_ylabel("test accuracy (%)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawn


def _point(axes: Any, runs: Runs, name: str, part: str, unit: float, color: str) -> None:
    values = [100 * run[name]["accuracy"] for run in runs]
    middle, _ = percent([value / 100 for value in values])
    spread = [[middle - min(values)], [max(values) - middle]]
    axes.errorbar(
        *(sweep.mean(runs, name, part) / unit, middle),
        yerr=spread,
        fmt="o",
        color=color,
        label=name,
        capsize=3,
    )
