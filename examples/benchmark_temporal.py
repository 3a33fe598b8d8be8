"""What a training step costs when weights change with the time step (TaWQ).

    python examples/benchmark_temporal.py --json temporal.jsonl --plot temporal.png    # minutes
    python examples/benchmark_temporal.py --device cuda
    python examples/benchmark_temporal.py --quick                  # only to see it run
    python examples/benchmark_temporal.py --show temporal.jsonl    # reprint a stored table

A step is forward, loss, backward and AdamW, in SpikingJelly, of the float network and of its
conversion. A second table compares ways to convolve each step with weights of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarking import (
    OURS,
    PEER,
    Case,
    arguments,
    bars,
    finish,
    headline,
    in_turns,
    machine,
    unsteady,
)
from matplotlib.figure import Figure
from spikingjelly.activation_based import functional
from torch import Tensor
from torch.nn import functional as F

import spquant_plugin as spq

FLOAT, TEMPORAL = "float", "TaWQ"
CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: int = 4
    batch: int = 8
    size: int = 32
    width: float = 1.0
    channels: int = 256
    repeats: int = 11


QUICK = Sizes(steps=2, batch=2, size=16, width=0.125, channels=8, repeats=3)


class Training:
    """One network, its optimiser, and a batch that stays the same."""

    def __init__(self, network: str, kind: str, sizes: Sizes, device: str) -> None:
        torch.manual_seed(0)
        options = {"width": sizes.width} if network == "vgg9" else {}
        net = spq.models.create(
            network, in_channels=2, size=sizes.size, num_classes=CLASSES, **options
        ).to(device)
        shape = (sizes.steps, sizes.batch, 2, sizes.size, sizes.size)
        self.x = (torch.rand(shape) < 0.1).float().to(device)
        self.labels = torch.arange(sizes.batch, device=device) % CLASSES
        config = spq.presets.tawq(sizes.steps)
        self.net = spq.convert(net, config, self.x) if kind == TEMPORAL else net
        self.adam = torch.optim.AdamW(self.net.parameters(), 1e-3)

    def step(self) -> None:
        functional.reset_net(self.net)
        self.adam.zero_grad()
        F.cross_entropy(self.net(self.x).mean(0), self.labels).backward()
        self.adam.step()


# Ways to convolve [T, N, C, H, W] with a weight for each step [T, C_out, C, k, k].


def one_weight(x: Tensor, weight: Tensor) -> Tensor:
    """The float layer: all steps in one batch."""
    return _convolve(x.flatten(0, 1), weight[0]).unflatten(0, x.shape[:2])


def each_step(x: Tensor, weight: Tensor) -> Tensor:
    """One convolution per step."""
    steps = zip(x.unbind(), weight.unbind(), strict=True)
    return torch.stack([_convolve(*step) for step in steps])


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """One convolution whose groups are the steps."""
    folded = x.transpose(0, 1).flatten(1, 2)
    found = _convolve(folded, weight.flatten(0, 1), groups=len(x))
    return found.unflatten(1, (len(x), -1)).transpose(0, 1)


def _convolve(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)


def products(x: Tensor, weight: Tensor) -> Tensor:
    """A product of matrices, where the kernel is a point."""
    found = torch.matmul(weight.flatten(2).unsqueeze(1), x.flatten(3))
    return found.unflatten(3, x.shape[3:])


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one weight for all steps": one_weight,
    "one call per step": each_step,
    "one grouped convolution": grouped,
    "matrix products": products,
}


def ways(sizes: Sizes, device: str) -> dict[str, dict[str, dict[str, float]]]:
    """Forward and backward of single layers, by each way that can compute them."""
    found = {}
    wide = sizes.channels
    layers = {
        f"3x3, {wide} channels, 8x8": (wide, 3, 8),
        f"3x3, {2 * wide} channels, 4x4": (2 * wide, 3, 4),
        f"1x1, {wide} channels, 8x8": (wide, 1, 8),
    }
    for name, (channels, kernel, size) in layers.items():
        shape = (sizes.steps, sizes.batch, channels, size, size)
        x = (torch.rand(shape, device=device) < 0.2).float().requires_grad_()
        shape = (sizes.steps, channels, channels, kernel, kernel)
        weight = torch.randint(-1, 2, shape, device=device).float().requires_grad_()
        cases = {
            way: Case(lambda way=way, x=x, weight=weight: _there_and_back(WAYS[way], x, weight))
            for way in WAYS
            if kernel == 1 or way != "matrix products"
        }
        found[name] = in_turns(cases, device, sizes.repeats, name)
    return found


def _there_and_back(way: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
    result = way(x, weight)
    torch.autograd.grad(result, (x, weight), torch.ones_like(result))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both tables, as one JSON object."""
    sizes, device = QUICK if options.quick else Sizes(), options.device
    if options.repeats:
        sizes = replace(sizes, repeats=options.repeats)
    steps = {}
    for network in ("vgg9", "spikformer_4_256"):
        if options.quick:
            sizes = replace(sizes, size=32 if network == "spikformer_4_256" else 16)
        trainings = {k: Training(network, k, sizes, device) for k in (FLOAT, TEMPORAL)}
        cases = {kind: Case(training.step) for kind, training in trainings.items()}
        steps[network] = in_turns(cases, device, sizes.repeats, f"{network} training steps")
    return {
        "benchmark": "temporal",
        "quick": options.quick,
        "repeats": sizes.repeats,
        "machine": machine(device),
        "steps": sizes.steps,
        "batch": sizes.batch,
        "size": sizes.size,
        "step": steps,
        "ways": ways(sizes, device),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Every measurement, one after the other."""
    return "\n\n\n".join(_table(found) for found in results)


def _table(found: dict[str, Any]) -> str:
    shape = f"T={found['steps']}, batch {found['batch']}, {found['size']} x {found['size']}"
    lines = [
        headline(f"Training step with weights that change with the time step, {shape}", found),
        "",
        f"{'':24}{'float (ms)':>14}{'TaWQ (ms)':>14}{'of float':>12}",
    ]
    for network, rows in found["step"].items():
        before, after = rows[FLOAT]["ms"], rows[TEMPORAL]["ms"]
        lines.append(f"{network:24}{before:>14.1f}{after:>14.1f}{after / before:>11.2f}x")
    lines += ["", "Forward and backward of one layer (ms):"]
    for layer, rows in found["ways"].items():
        lines.append(f"  {layer}")
        lines += [f"    {way:28}{took['ms']:>10.2f}" for way, took in rows.items()]
    every = {f"{n}, {k}": took for n, rows in found["step"].items() for k, took in rows.items()}
    return "\n".join([*lines, *unsteady(every)])


def figure(found: dict[str, Any]) -> Figure:
    """The time of a training step of each network."""
    drawn = Figure(figsize=(9, 2.2), layout="constrained")
    drawn.suptitle(
        f"Training step, T={found['steps']}, batch {found['batch']}, "
        f"{found['machine']['processor']}"
    )
    panels = zip(drawn.subplots(1, len(found["step"])), found["step"].items(), strict=True)
    for axes, (network, rows) in panels:
        values = {kind: took["ms"] for kind, took in rows.items()}
        notes = {k: f"{v:.0f}, {v / values[FLOAT]:.2f}x" for k, v in values.items()}
        bars(axes, values, {FLOAT: PEER, TEMPORAL: OURS}, f"{network} (ms)", notes)
    return drawn


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    finish(options, lambda: measure(options), table, figure)


if __name__ == "__main__":
    main()
