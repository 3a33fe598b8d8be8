"""Whether data loading keeps up: samples per second of the loaders beside the training of VGG-9.

    python examples/benchmark_loading.py --json loading.jsonl --plot loading.png    # two minutes
    python examples/benchmark_loading.py --quick                # only to see it run
    python examples/benchmark_loading.py --show loading.jsonl   # reprint a stored table

Files in the formats of N-Cars, CIFAR-10 and ImageNet are generated in a temporary folder; nothing
is downloaded. Each loader gives batches in the process itself, without workers. A sample is a whole
recording of all steps; training is forward, loss, backward and Adam on one batch that is there.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from PIL import Image
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import spquant_plugin as spq

FLOAT, CONVERTED = "VGG-9 training, float", "VGG-9 training, converted"
CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: int = 10
    batch: int = 4
    size: int = 48
    width: float = 1.0
    recordings: int = 64  # of each class, in the event set
    events: int = 4000  # of each recording, about as many as N-Cars has
    photos: int = 32  # of each class, of 500 x 375 pixels
    repeats: int = 7


QUICK = Sizes(steps=2, batch=2, size=16, width=0.125, recordings=8, events=50, photos=4, repeats=3)


class Training:
    """One network, its optimiser, and a batch that stays the same."""

    def __init__(self, kind: str, sizes: Sizes) -> None:
        torch.manual_seed(0)
        net = spq.models.create(
            "vgg9", in_channels=2, size=sizes.size, num_classes=CLASSES, width=sizes.width
        )
        shape = (sizes.steps, sizes.batch, 2, sizes.size, sizes.size)
        self.x = (torch.rand(shape) < 0.1).float()
        self.labels = torch.arange(sizes.batch) % CLASSES
        config = spq.presets.quant_snn(weight_bits=2, adaptive=True)
        self.net: nn.Module = spq.convert(net, config, self.x) if kind == CONVERTED else net
        self.adam = torch.optim.Adam(self.net.parameters(), 1e-3)

    def step(self) -> None:
        functional.reset_net(self.net)
        self.adam.zero_grad()
        F.cross_entropy(self.net(self.x).mean(0), self.labels).backward()
        self.adam.step()


class Loading:
    """Takes batch after batch of a data set, epoch after epoch."""

    def __init__(self, data: Dataset[Any], batch: int) -> None:
        self.loader = spq.data.loader(data, batch, shuffle=True, drop_last=True)
        self.batches: Iterator[Any] = iter(())

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)


def write_events(root: Path, sizes: Sizes) -> None:
    """Recordings in N-Cars' folders and format."""
    random = np.random.default_rng(0)
    for part in ("n-cars_train", "n-cars_test"):
        for name in ("cars", "background"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(sizes.recordings):
                t = np.sort(random.integers(0, 100_000, sizes.events))
                x, y = random.integers(0, 120, sizes.events), random.integers(0, 100, sizes.events)
                p = random.integers(0, 2, sizes.events)
                words = np.stack([t, x | y << 14 | p << 28], axis=1).astype("<u4")
                file = folder / f"obj_{number:06d}_td.dat"
                file.write_bytes(b"% Version 2\n" + bytes((0, 8)) + words.tobytes())


def write_small_images(root: Path, sizes: Sizes) -> None:
    """Batches of CIFAR-10, in its Python format."""
    random = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    count = 5 * sizes.photos * CLASSES
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        held = {
            "data": random.integers(0, 256, (count // 5, 3072), dtype=np.uint8),
            "labels": (np.arange(count // 5) % CLASSES).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(held, protocol=2))
    names = {"label_names": [f"class {label}" for label in range(CLASSES)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))


def write_photos(root: Path, sizes: Sizes) -> None:
    """Photos as large as ImageNet's, of smooth noise, so that JPEG has as much to do."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(2):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(sizes.photos):
                rough = Image.fromarray(random.integers(0, 256, (94, 125, 3), dtype=np.uint8))
                rough.resize((500, 375)).save(folder / f"{number}.JPEG", quality=95)


def data_sets(root: Path, sizes: Sizes) -> dict[str, Dataset[Any]]:
    """Every kind of loader, on generated files in the real formats."""
    for name, write in (
        ("events", write_events),
        ("small", write_small_images),
        ("photos", write_photos),
    ):
        (root / name).mkdir()
        write(root / name, sizes)
    steps, size = sizes.steps, sizes.size
    events = spq.data.NCars(root / "events", steps=steps, size=size, cache=root / "cache")
    small = spq.data.CIFAR10(root / "small", steps=steps, size=size)
    photos = spq.data.ImageNet(root / "photos", steps=steps, size=224)
    cropped = spq.data.Augmented(small, spq.data.crop_and_flip())
    return {
        f"N-Cars, {size} x {size}": events,
        f"N-Cars, {size} x {size}, rolled and flipped": spq.data.Augmented(
            events, spq.data.roll_and_flip()
        ),
        f"CIFAR-10, {size} x {size}": small,
        f"CIFAR-10, {size} x {size}, cropped and flipped": cropped,
        "ImageNet, JPEG of 500 x 375 to 224 x 224": photos,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The table, as one JSON object."""
    sizes = QUICK if options.quick else Sizes()
    if options.repeats:
        sizes = replace(sizes, repeats=options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: Loading(data, sizes.batch).step for name, data in
                 data_sets(Path(folder), sizes).items()}  # fmt: skip
        steps |= {kind: Training(kind, sizes).step for kind in (FLOAT, CONVERTED)}
        cases = {name: Case(step) for name, step in steps.items()}
        rows = in_turns(cases, "cpu", sizes.repeats, "batches")
    return {
        "benchmark": "loading",
        "quick": options.quick,
        "repeats": sizes.repeats,
        "machine": machine("cpu"),
        "steps": sizes.steps,
        "batch": sizes.batch,
        "size": sizes.size,
        "rows": rows,
    }


def rates(found: dict[str, Any]) -> dict[str, float]:
    """Samples per second."""
    return {name: 1e3 * found["batch"] / took["ms"] for name, took in found["rows"].items()}


def table(results: list[dict[str, Any]]) -> str:
    """Every measurement, one after the other."""
    return "\n\n\n".join(_table(found) for found in results)


def _table(found: dict[str, Any]) -> str:
    speed = rates(found)
    fastest = max(speed[FLOAT], speed[CONVERTED])
    shape = f"T={found['steps']}, batch {found['batch']}"
    lines = [
        headline(f"Loaders without workers beside the training of VGG-9, {shape}", found),
        "",
        f"{'':48}{'ms a batch':>12}{'samples/s':>12}{'frames/s':>12}{'of training':>13}",
    ]
    for name, took in found["rows"].items():
        frames = speed[name] * found["steps"]
        lines.append(
            f"{name:48}{took['ms']:>12.2f}{speed[name]:>12.1f}{frames:>12.0f}"
            f"{speed[name] / fastest:>12.1f}x"
        )
    lines.append("Of training: samples per second against the faster of the two trainings.")
    return "\n".join([*lines, *unsteady(found["rows"])])


def figure(found: dict[str, Any]) -> Figure:
    """Samples per second of each loader and of training."""
    drawn = Figure(figsize=(9, 3), layout="constrained")
    drawn.suptitle(f"Samples of {found['steps']} steps, {found['machine']['processor']}")
    speed = rates(found)
    colors = {name: PEER if name in (FLOAT, CONVERTED) else OURS for name in speed}
    axes = drawn.subplots()
    bars(axes, speed, colors, "samples per second", {n: f"{v:.1f}" for n, v in speed.items()})
    axes.set_xscale("log")
    return drawn


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    if options.device != "cpu":
        raise SystemExit("--device cuda: loaders run on the CPU. Leave the option out.")
    finish(options, lambda: measure(options), table, figure)


if __name__ == "__main__":
    main()
