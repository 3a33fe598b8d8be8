"""What ``benchmark_neuron.py`` measured, as a table to print and as a figure."""

from __future__ import annotations

from typing import Any

from benchmarking import OTHER, OURS, PEER, bars, headline, unsteady
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HOST, HOST_COMPILED, SNNTORCH = "SpikingJelly LIF", "SpikingJelly LIF, torch.compile", "snnTorch"
COMPILED, EAGER, FIXED = "ours, compiled", "ours, eager", "ours, compiled, fixed threshold"
CODED = {bits: f"ours, compiled, {bits} bit kept" for bits in (16, 8)}
MODES = {"inference": "no gradient", "forward": "forward", "both": "forward + backward"}
LOOP, RUN, UNCONVERTED = "converted, loop", "converted, spq.snntorch.run", "unconverted, loop"


def table(results: list[dict[str, Any]]) -> str:
    """Every measurement, one after the other."""
    return "\n\n\n".join("\n\n".join(part(found) for part in PARTS) for found in results)


def layer_table(found: dict[str, Any]) -> str:
    """Times, how many times faster than SpikingJelly, and what is kept for the backward pass."""
    rows, peer = found["layer"], found["layer"][HOST]
    on_gpu = "peak" in peer
    titles = "".join(f"{label:>21}" for label in MODES.values())
    shape = "[" + ", ".join(map(str, found["shape"])) + "]"
    lines = [
        headline(f"Neuron layer {shape}", found),
        "",
        f"{'ms, and how many times faster':34}{titles}{'kept':>8}{'    peak' if on_gpu else ''}",
    ]
    for name, row in rows.items():
        times = "".join(
            f"{row[mode]['ms']:>14.2f}{peer[mode]['ms'] / row[mode]['ms']:>6.2f}x" for mode in MODES
        )
        memory = "".join(f"{row[key]:>8.2f}" for key in ("kept", "peak") if key in row)
        lines.append(f"{name:34}{times}{memory}")
    timed = {f"{name} ({MODES[mode]})": rows[name][mode] for mode in MODES for name in rows}
    return "\n".join([*lines, *_layer_notes(rows, on_gpu), *unsteady(timed)])


def _layer_notes(rows: dict[str, Any], on_gpu: bool) -> list[str]:
    how = "uses its own Triton kernels" if on_gpu else "is plain torch"
    notes = [
        f"faster: than {HOST} in the same run, which {how} here.",
        "kept: bytes for the backward pass, per element (neuron and step).",
    ]
    if on_gpu:
        notes.append("peak: GPU memory, likewise.")
    if HOST_COMPILED in rows:
        ratio = rows[COMPILED]["both"]["ms"] / rows[HOST_COMPILED]["both"]["ms"]
        notes.append(f"{COMPILED}: {ratio:.2f}x the time of {HOST_COMPILED}, forward + backward.")
    else:
        notes.append(f"{HOST_COMPILED}: left out, it did not compile here.")
    return notes


def floor_table(found: dict[str, Any]) -> str:
    least = found["floor"]
    lines = [
        f"Memory floor: a large copy moves {least['large_gb_s']:.1f} GB/s, one of the layer's size "
        f"{least['layer_gb_s']:.1f} GB/s",
        f"{'':34}{'floor (ms)':>12}{'ours (ms)':>12}{'share':>8}",
    ]
    for mode, label in MODES.items():
        ours_ms = found["layer"][COMPILED][mode]["ms"]
        lines.append(
            f"{label:34}{least[f'{mode}_ms']:>12.2f}{ours_ms:>12.2f}{least[f'{mode}_share']:>8.0%}"
        )
    return "\n".join(lines)


def lengths_table(found: dict[str, Any]) -> str:
    rows = found["ns_per_element"]
    titles = "".join(f"{'T=' + steps:>8}" for steps in rows[HOST])
    lines = [
        "Forward + backward, ns per element, the same number of elements",
        f"{'':34}{titles}{'spread':>8}",
    ]
    for name, row in rows.items():
        values = "".join(f"{value:>8.2f}" for value in row.values())
        lines.append(f"{name:34}{values}{max(row.values()) / min(row.values()) - 1:>8.0%}")
    return "\n".join(lines)


def first_call_table(found: dict[str, Any]) -> str:
    lines = [f"{'A new process, forward + backward':42}{'first (s)':>12}{'second (s)':>12}"]
    for name, took in found["first_call"].items():
        lines.append(f"{name:42}{took['first_s']:>12.2f}{took['second_s']:>12.4f}")
    lines.append("cold: nothing on disk; warm: with what the cold one left there. Without imports.")
    return "\n".join(lines)


def snntorch_table(found: dict[str, Any]) -> str:
    steps, width = found["net"]
    lines = [
        f"snnTorch Sequential, 3 x (Linear, Leaky) of {width}, T={steps}, forward + backward",
        f"{'':34}{'ms':>12}{'faster':>8}",
    ]
    for batch, rows in found["snntorch"].items():
        for name, took in rows.items():
            label = f"batch {batch}: {name}"
            lines.append(f"{label:38}{took['ms']:>8.2f}{rows[LOOP]['ms'] / took['ms']:>7.1f}x")
        lines += unsteady(rows)
    lines.append(f"faster: than {LOOP}, of the same batch.")
    return "\n".join(lines)


def deviation_table(found: dict[str, Any]) -> str:
    lines = [f"{'Gradients against 32 bit kept':34}{'input':>12}{'threshold':>12}"]
    for bits, row in found["deviation"].items():
        lines.append(f"{bits + ' bit':34}{row['input']:>12.1e}{row['threshold']:>12.1e}")
    lines.append("Norm of the difference over the norm.")
    return "\n".join(lines)


PARTS = (
    layer_table,
    floor_table,
    lengths_table,
    first_call_table,
    snntorch_table,
    deviation_table,
)


def figure(found: dict[str, Any]) -> Figure:
    """Time of every variant, time per element against T, and memory."""
    drawn = Figure(figsize=(9.5, 6.6), layout="constrained")
    here = found["machine"]
    drawn.suptitle(
        f"neuron layer {list(found['shape'])}, {here['processor']}, {here['threads']} threads"
    )
    above, below = drawn.subfigures(2, 1, height_ratios=[1.15, 1])
    _draw_times(above.subplots(), found)
    left, right = below.subplots(1, 2)
    _draw_lengths(left, found["ns_per_element"])
    rows = found["layer"]
    kept = {name: row["kept"] for name, row in rows.items()}
    notes = {name: f"{value:.1f}" for name, value in kept.items()}
    bars(right, kept, _colors(rows), "bytes per neuron and step", notes)
    right.set_title("kept for the backward pass")
    return drawn


def _colors(rows: dict[str, Any]) -> dict[str, str]:
    return {
        name: OURS if name.startswith("ours") else PEER if name == HOST else OTHER for name in rows
    }


def _draw_times(axes: Axes, found: dict[str, Any]) -> None:
    rows = found["layer"]
    times = {name: row["both"]["ms"] for name, row in rows.items()}
    notes = {name: f"{value:.1f} ms, {times[HOST] / value:.1f}x" for name, value in times.items()}
    bars(axes, times, _colors(rows), "time (ms)", notes)
    least = found["floor"]["both_ms"]
    label = f"memory floor: {least:.1f} ms"
    axes.axvline(least, color="black", linestyle="--", linewidth=1, label=label)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set_title(f"forward + backward, and how many times faster than {HOST}")


def _draw_lengths(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    for (name, row), marker, color in zip(rows.items(), "so", (PEER, OURS), strict=True):
        steps = [int(count) for count in row]
        axes.plot(steps, list(row.values()), marker=marker, color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set(xlabel="time steps T", ylabel="ns per element", ylim=(0, None))
    axes.set_title("forward + backward at equal size")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
