"""What a training step of VGG-9 costs when its membranes and weights are quantised.

    python examples/benchmark_training.py --json training.jsonl --plot training.png    # minutes
    python examples/benchmark_training.py --device cuda
    python examples/benchmark_training.py --quick                  # only to see it run
    python examples/benchmark_training.py --show training.jsonl    # reprint a stored table

A step is forward, loss, backward and Adam, in SpikingJelly. The unconverted network, as its users
run it, is what the others are compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import re
import resource
import sys
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from benchmarking import (
    OTHER,
    OURS,
    PEER,
    Case,
    arguments,
    bars,
    finish,
    fresh,
    headline,
    in_turns,
    kept_bytes,
    machine,
    unsteady,
)
from matplotlib.figure import Figure
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spquant_plugin as spq

PLAIN, CONVERTED, MEMBRANES = "unconverted", "converted", "converted, float weights"
COLORS = {PLAIN: PEER, CONVERTED: OURS, MEMBRANES: OTHER}
CONFIGS = {
    CONVERTED: spq.presets.quant_snn(weight_bits=2, adaptive=True),
    MEMBRANES: spq.presets.quant_snn(adaptive=True, weights=None),
}
CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: int = 4
    batch: int = 4
    size: int = 48
    width: float = 1.0
    repeats: int = 15


QUICK = Sizes(steps=2, batch=2, size=16, width=0.125, repeats=3)


class Training:
    """One network, its optimiser, and a batch that stays the same."""

    def __init__(self, name: str, sizes: Sizes, device: str) -> None:
        torch.manual_seed(0)
        net = spq.models.create(
            "vgg9",
            host="spikingjelly",
            in_channels=2,
            size=sizes.size,
            num_classes=CLASSES,
            width=sizes.width,
        ).to(device)
        shape = (sizes.steps, sizes.batch, 2, sizes.size, sizes.size)
        self.x = (torch.rand(shape) < 0.1).float().to(device)
        self.labels = torch.arange(sizes.batch, device=device) % CLASSES
        self.net = spq.convert(net, CONFIGS[name], self.x) if name in CONFIGS else net
        self.adam = torch.optim.Adam(self.net.parameters(), 1e-3)

    def loss(self) -> Tensor:
        functional.reset_net(self.net)
        return cross_entropy(self.net(self.x).mean(0), self.labels)

    def step(self) -> None:
        self.adam.zero_grad()
        self.loss().backward()
        self.adam.step()


class Quantizers:
    """All weight quantisers of a network by themselves: forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        self.layers: Any = [
            layer for layer in net.modules() if getattr(layer, "weight_quantizer", None)
        ]
        self.weights = [layer.weight for layer in self.layers]
        self.arriving = [torch.randn_like(weight) for weight in self.weights]
        self.factor = 1.001

    @torch.no_grad()
    def change(self) -> None:
        """Another weight, as after a step: quantisers may save work while a weight stays."""
        for weight in self.weights:
            weight.mul_(self.factor)
        self.factor = 1 / self.factor

    def run(self) -> None:
        for layer, weight, arriving in zip(self.layers, self.weights, self.arriving, strict=True):
            levels, _ = layer.quantized_weight()
            torch.autograd.grad(levels, weight, arriving)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, as one JSON object."""
    sizes, device = QUICK if options.quick else Sizes(), options.device
    if options.repeats:
        sizes = replace(sizes, repeats=options.repeats)
    rows, alone = speed(sizes, device)
    short = ["--quick"] if options.quick else []
    for name in rows:
        rows[name] |= fresh(__file__, "--device", device, *short, "--memory-of", name)
    full, floating = rows[CONVERTED]["ms"], rows[MEMBRANES]["ms"]
    return {
        "benchmark": "training",
        "quick": options.quick,
        "repeats": sizes.repeats,
        "machine": machine(device),
        "steps": sizes.steps,
        "batch": sizes.batch,
        "size": sizes.size,
        "step": rows,
        "quantizers": {
            "ms": alone,
            "share": alone / full,
            "difference_ms": full - floating,
            "difference_share": 1 - floating / full,
        },
    }


def speed(sizes: Sizes, device: str) -> tuple[dict[str, dict[str, Any]], float]:
    """Time and kept bytes of every network's step, and the time of the weight quantisers."""
    trainings = {name: Training(name, sizes, device) for name in COLORS}
    cases = {name: Case(training.step) for name, training in trainings.items()}
    rows: dict[str, dict[str, Any]] = {
        name: dict(took)
        for name, took in in_turns(cases, device, sizes.repeats, "training steps").items()
    }
    for name, training in trainings.items():
        there = chain(training.net.parameters(), training.net.buffers())
        rows[name]["kept"] = kept_bytes(training.loss, there)
    quantizers = Quantizers(trainings[CONVERTED].net)
    alone = {"": Case(quantizers.run, quantizers.change)}
    return rows, in_turns(alone, device, sizes.repeats, "weight quantisers")[""]["ms"]


def memory_of(name: str, sizes: Sizes, device: str) -> None:
    """What a fresh process runs: some steps, and the most memory that it held meanwhile."""
    training = Training(name, sizes, device)
    before = peak_begins(device)
    for _ in range(3):
        training.step()
    print(json.dumps({"before": before, "peak": peak(device)}))


def peak_begins(device: str) -> int:
    """Forget the peak that was; returns what is held now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # Linux only. Elsewhere the peak of building the network counts, too.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: str) -> int:
    """The most bytes held: of the process, or on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux may be the peak of the process that began us
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def table(results: list[dict[str, Any]]) -> str:
    """Every measurement, one after the other."""
    return "\n\n\n".join(_table(found) for found in results)


def _table(found: dict[str, Any]) -> str:
    rows, plain, alone = found["step"], found["step"][PLAIN], found["quantizers"]
    batch, size = found["batch"], found["size"]
    lines = [
        headline(f"VGG-9 training step, T={found['steps']}, batch {batch}, {size} x {size}", found),
        "",
        f"{'':26}{'ms':>10}{'of plain':>10}{'kept (MB)':>12}{'peak (MB)':>12}{'of plain':>10}"
        f"{'steps (MB)':>12}{'of plain':>10}",
    ]
    for name, row in rows.items():
        lines.append(
            f"{name:26}{row['ms']:>10.1f}{row['ms'] / plain['ms']:>9.2f}x{row['kept'] / 1e6:>12.1f}"
            f"{row['peak'] / 1e6:>12.1f}{row['peak'] / plain['peak']:>9.2f}x"
            f"{_needed(row) / 1e6:>12.1f}{_needed(row) / _needed(plain):>9.2f}x"
        )
    where = "GPU memory" if found["machine"]["device"] == "cuda" else "a process"
    lines += [
        f"of plain: of what the {PLAIN} network takes; kept: for the backward pass, without",
        f"parameters; peak: of {where} in training, libraries included; steps: what of it three",
        "steps needed, for activations, gradients and the optimiser.",
        f"Weight quantisers, forward and backward by themselves: {alone['ms']:.1f} ms, "
        f"{alone['share']:.1%} of the {CONVERTED} step;",
        f"the {CONVERTED} step less that with float weights: {alone['difference_ms']:.1f} ms, "
        f"{alone['difference_share']:.1%}.",
        *unsteady(rows),
    ]
    return "\n".join(lines)


def _needed(row: dict[str, Any]) -> int:
    """Bytes that training adds to a network that is there."""
    return row["peak"] - row["before"]


def figure(found: dict[str, Any]) -> Figure:
    """Time and memory of every network."""
    drawn = Figure(figsize=(9, 2.6), layout="constrained")
    here, rows = found["machine"], found["step"]
    drawn.suptitle(
        f"VGG-9 training step, T={found['steps']}, batch {found['batch']}, {here['processor']}"
    )
    panels = zip(
        drawn.subplots(1, 2, sharey=True),
        (("ms", 1, "time (ms)"), ("peak", 1e-6, "peak memory (MB)")),
        strict=True,
    )
    for axes, (key, factor, unit) in panels:
        values = {name: factor * row[key] for name, row in rows.items()}
        notes = {
            name: f"{value:.0f}, {value / values[PLAIN]:.2f}x" for name, value in values.items()
        }
        bars(axes, values, COLORS, unit, notes)
    axes.invert_yaxis()  # both panels share it, and each turned it over
    return drawn


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--memory-of", choices=list(COLORS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, QUICK if options.quick else Sizes(), options.device)
        return
    finish(options, lambda: measure(options), table, figure)


if __name__ == "__main__":
    main()
