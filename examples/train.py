"""Train by the paper's recipe: in full precision, quantised, gated, with learned thresholds.

    python examples/train.py --model vgg5 --data digits --epochs 6 --out runs/digits
    python examples/train.py --model vgg9 --data dvs-cifar10 --root ~/data --timesteps 10 \\
        --preset spquant_snn --stages fp,quant,spquant,adaptive --epochs 100 --out runs/dvs
    torchrun --nproc-per-node 4 examples/train.py --model vgg9 ... --sync-norm --out runs/dvs

Killed at any moment, the same command with ``--resume`` goes on to the same result. ``--help``
lists all options; ``docs/how-to/train-at-scale.rst`` says what they are for.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from trainer import checkpoint
from trainer.checks import check
from trainer.options import parse
from trainer.plan import try_stages
from trainer.processes import Processes, size_of_world, started
from trainer.run import Run
from trainer.stages import Builder
from trainer.tasks import load

from spquant_plugin.errors import SpQuantError, SpQuantWarning


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line that says what is wrong."""
    rank, _, world = size_of_world()
    try:
        options = check(parse(argv), world)
    except SpQuantError as error:  # the same in every process
        if rank == 0:
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    try:
        with repeatable(options.deterministic), started(options.device) as processes:
            train(options, processes)
    except SpQuantError as error:
        where = f" (process {rank} of {world})" if world > 1 else ""
        print(f"train.py{where}: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: argparse.Namespace, processes: Processes) -> None:
    """Everything that can fail early comes first, and the training after it."""
    with warnings.catch_warnings():
        if not processes.is_main:
            warnings.simplefilter("ignore", SpQuantWarning)  # the main process says it
        checkpoint.look(options, processes)  # to prepare the data may take an hour
        task = load(options, processes)
        builder = Builder(options, task)
        lines = try_stages(options, task, builder)
        saved = checkpoint.begin(options, processes)
        if processes.is_main:
            print(describe(options, processes, builder, lines))
        results = Run(options, processes, task, builder, saved).train()
    if processes.is_main:
        print(table(results))


def describe(
    options: argparse.Namespace, processes: Processes, builder: Builder, lines: list[str]
) -> str:
    """What the run is, before it starts."""
    splits = builder.task.splits.items()
    recordings = ", ".join(f"{len(data)} {split}" for split, data in splits)
    count = sum(p.numel() for p in builder.float_network().parameters())
    where = f"{processes.world} x {processes.device.type}"
    return "\n".join(
        [
            f"{options.model} of {options.host}, {count:,} parameters, on {where}",
            f"{options.data}: {recordings} recordings of {'x'.join(map(str, builder.task.shape))}",
            *lines,
        ]
    )


def table(results: list[dict[str, object]]) -> str:
    """Of every stage's best network: its accuracies, and what its gates close."""
    lines = [f"{'stage':10}{'epoch':>6}{'validation (%)':>16}{'test (%)':>10}{'closed (%)':>12}"]
    for found in results:
        closed = "" if found["closed"] is None else f"{100 * found['closed']:.1f}"  # type: ignore[operator]
        lines.append(
            f"{found['stage']:10}{found['epoch']:>6}{100 * found['validation']:>16.2f}"  # type: ignore[operator]
            f"{100 * found['test']:>10.2f}{closed:>12}"  # type: ignore[operator]
        )
    return "\n".join(lines)


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Algorithms that add up in the same order each time, where the device has others."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


if __name__ == "__main__":
    sys.exit(main())
