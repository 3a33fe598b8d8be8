"""What the benchmarks share: options, the machine, timing in turns, memory, fresh processes."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from measurements import append, stored
from torch import Tensor
from tqdm import tqdm

import spquant_plugin as spq

# Told apart by the colour-blind, and by their lightness in a grey print.
PEER, OURS, OTHER = "#e69f00", "#0072b2", "#9a9a9a"
PACKAGES = ("torch", "spikingjelly", "snntorch", "triton")
Function = Callable[[], object]


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, help="timed repetitions of everything")
    parser.add_argument("--json", type=Path, help="append the measurement to this file, as a line")
    parser.add_argument("--plot", type=Path, help="draw the measurement, for example to speed.png")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see it run")
    parser.add_argument("--show", type=Path, help="print and draw what --json wrote, no measuring")
    return parser


def finish(
    options: argparse.Namespace,
    measure: Callable[[], dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], str],
    figure: Callable[[dict[str, Any]], Any],
) -> None:
    """Measure or read, then store, print and draw as the options say."""
    if options.show:
        results = stored(options.show)
    else:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--device cuda: torch sees no GPU here. Use --device cpu.")
        # A kernel that cannot be built would be measured as what takes its place.
        warnings.simplefilter("error", spq.errors.KernelWarning)
        torch.manual_seed(0)
        results = [measure()]
        if options.json:
            append(options.json, results[0])
    print(table(results))
    if options.plot:
        figure(results[-1]).savefig(options.plot, dpi=200)


def machine(device: str) -> dict[str, Any]:
    """What a time depends on, besides the code. No date: a table is compared with its source."""
    found: dict[str, Any] = {
        "device": device,
        "machine": platform.machine(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in PACKAGES if device == "cuda" else PACKAGES[:-1]:
        found[package] = version(package)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def headline(title: str, found: dict[str, Any]) -> str:
    """The first lines of a table: what was measured, where, with what."""
    here = found["machine"]
    packages = ", ".join(f"{name} {here[name]}" for name in PACKAGES if name in here)
    quick = " QUICK: tiny sizes, the figures mean nothing." if found["quick"] else ""
    return (
        f"{title}\n{here['processor']} ({here['device']}), {here['cores']} cores, "
        f"{here['threads']} threads; {packages}\n"
        f"Medians of {found['repeats']} repetitions in turns.{quick}"
    )


@dataclass
class Case:
    """Something to be timed, and what comes before it without being timed."""

    run: Function
    prepare: Function | None = None


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turns(
    cases: dict[str, Case], device: str, repeats: int, label: str, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Median and quartiles of each case's time, in milliseconds.

    All take turns, in another order each round, so that whatever else the machine does, and what
    one case leaves in the caches for the next, meets all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    order, shuffled = list(cases), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for turn in tqdm(range(warm_up + repeats), label, file=sys.stderr):
            shuffled.shuffle(order)
            for name in order:
                took = _once(cases[name], device)
                if turn >= warm_up:
                    times[name].append(took)
    finally:
        gc.enable()
    return {name: _summary(values) for name, values in times.items()}


def _once(case: Case, device: str) -> float:
    if case.prepare is not None:
        case.prepare()
    synchronize(device)
    begin = time.perf_counter()
    case.run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def _summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"ms": median, "low": low, "high": high}


def unsteady(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for the table that names the times which the machine was too busy to measure."""
    names = [name for name, took in rows.items() if took["high"] - took["low"] > took["ms"] / 4]
    told = f"UNSTEADY, quartiles more than 25 % apart: {'; '.join(names)}."
    return textwrap.wrap(told, 100) if names else []


def kept_bytes(forward: Function, ignored: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for the backward pass, shared memory counted once.

    ``ignored`` (parameters, say) is memory that is there anyway.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = forward()
    del alive
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(run: Function) -> int:
    """GPU memory that a run needs beyond what is there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def fresh(script: str, *options: object, environment: dict[str, str] | None = None) -> Any:
    """What a script prints as JSON in a process of its own, where nothing is loaded or warm."""
    ran = subprocess.run(
        [sys.executable, script, *map(str, options)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, options))} ended with {ran.returncode}.")
    return json.loads(ran.stdout.splitlines()[-1])


def bars(
    axes: Axes, values: dict[str, float], colors: dict[str, str], unit: str, notes: dict[str, str]
) -> None:
    """Horizontal bars, the first on top, each with its note behind it."""
    names = list(values)
    drawn = axes.barh(
        names,
        list(values.values()),
        color=[colors[name] for name in names],
        edgecolor="black",
        linewidth=0.5,
    )
    axes.bar_label(drawn, [notes[name] for name in names], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlabel(unit)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
