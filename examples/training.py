"""Training from scratch or on, the same for both hosts and for every row of a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measurements import append, arguments, read
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import spquant_plugin as spq

HOSTS = ("spikingjelly", "snntorch")
STEPS = 4
SIZE = 16


def options_of(description: str, results: str, epochs: dict[str, int]) -> argparse.Namespace:
    """What a script that measures both hosts and several tasks takes; ``epochs`` by task."""
    parser = arguments(description, results, [0, 1, 2, 3, 4])
    parser.add_argument("--host", choices=[*HOSTS, "both"], default="both")
    parser.add_argument("--task", choices=[*epochs, "both"], default="both")
    listed = ", ".join(f"{task} {count}" for task, count in epochs.items())
    parser.add_argument("--epochs", type=int, help=f"default: {listed}")
    parser.add_argument("--figure", type=Path, help="draw the networks of the last run here")
    return parser.parse_args()


def measure_all(
    options: argparse.Namespace, epochs: dict[str, int], measure: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """All results, after ``measure(host, task, seed, epochs, figure)`` of those not stored yet."""
    hosts = HOSTS if options.host == "both" else [options.host]
    tasks = epochs if options.task == "both" else [options.task]
    for seed, host, task in product(options.seeds, hosts, tasks):
        count = options.epochs or epochs[task]
        key = {"host": host, "task": task, "seed": seed, "epochs": count}
        done = any(key.items() <= found.items() for found in read(options.results))
        if done and options.figure is None:
            continue
        found = measure(host, task, seed, count, options.figure)
        if not done:
            append(options.results, {**key, **found})
    return read(options.results)


def network(host: str, in_channels: int, classes: int, width: float = 0.5) -> nn.Module:
    """The networks of the quickstarts: four spiking convolutions, or two of snnTorch's."""
    name = "vgg5" if host == "spikingjelly" else "conv_net"
    return spq.models.create(
        name, host=host, in_channels=in_channels, size=SIZE, num_classes=classes, width=width
    )


def data(task: str, seed: int) -> tuple[spq.data.FrameDataset, spq.data.FrameDataset]:
    """Training and test recordings of STEPS frames."""
    if task == "digits":
        training, test = (
            spq.data.DigitEvents(split, steps=STEPS, seed=seed) for split in ("train", "test")
        )
    else:
        level = "hard" if task == "motion-hard" else "medium"
        training, test = (
            spq.data.Motion(split, level=level, count=2048, steps=STEPS, seed=seed)
            for split in ("train", "test")
        )
    return training, test


def run(net: nn.Module, frames: Tensor) -> Tensor:
    """Outputs ``[T, B, classes]`` of whole recordings ``[T, B, ...]``, from rest."""
    spq.reset(net)
    if takes_sequences(net):
        return net(frames)
    return torch.stack([net(frame) for frame in frames])


def takes_sequences(net: nn.Module) -> bool:
    """Whether one call takes all steps, as SpikingJelly's networks here do."""
    return any(getattr(module, "step_mode", "s") == "m" for module in net.modules())


def every_step(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every step's output, averaged."""
    return F.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(outputs)))


def train(
    net: nn.Module,
    training: spq.data.FrameDataset,
    epochs: int,
    name: str,
    *,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
    after_step: Callable[[], None] = lambda: None,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> None:
    """AdamW and a cosine to zero; ``loss_of(frames, labels)`` by default of every step's output."""
    torch.manual_seed(seed)
    batches = spq.data.loader(training, batch_size=32, shuffle=True, seed=seed, drop_last=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    net.train()
    with tqdm(total=epochs * len(batches), desc=f"{name:34}", unit="batch") as bar:
        for _ in range(epochs):
            for frames, labels in batches:
                if loss_of is None:
                    loss = every_step(run(net, frames), labels)
                else:
                    loss = loss_of(frames, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                after_step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    spq.reset(net)


@torch.no_grad()
def accuracy(net: nn.Module, test: spq.data.FrameDataset) -> float:
    """Share of recordings whose label gets the largest output, averaged over time."""
    net.eval()
    right = 0
    for frames, labels in spq.data.loader(test, batch_size=256):
        right += int((run(net, frames).mean(0).argmax(1) == labels).sum())
    spq.reset(net)
    return right / len(test)


def convert(
    net: nn.Module, config: spq.SpQuantConfig, training: spq.data.FrameDataset
) -> nn.Module:
    """A low-precision copy whose batch norms know the quantised currents."""
    frames = [frames for frames, _ in spq.data.loader(training, batch_size=256)]
    first = frames[0][:, :1] if takes_sequences(net) else frames[0][0, :1]
    return spq.calibrate(spq.convert(net, config, sample=first), frames, forward=run)
