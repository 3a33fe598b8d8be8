"""The data by its name: three splits, and the batches of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import spquant_plugin as spq

from .problems import OptionError
from .processes import Processes

IMAGES = ("cifar10", "cifar100", "imagenet")
# Sets whose classes stay what they are when a recording is mirrored.
AUGMENTATIONS = (*IMAGES, "dvs-cifar10", "n-caltech101", "n-cars")
CALIBRATION = 64  # recordings a batch, whatever the processes are


@dataclass(frozen=True)
class Task:
    """Data sets by split, and what a loader of them needs."""

    options: argparse.Namespace
    processes: Processes
    splits: dict[str, Any]
    record: dict[str, Any]  # how spq.data.create makes them again

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits["train"].classes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(T, C, H, W)`` of a recording."""
        return tuple(self.splits["train"].sample_shape)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.splits["train"]) // self.options.batch

    def training(self, epoch: int, start: int = 0) -> Any:
        """Batches of this process from number ``start`` on; ``epoch`` counts over all stages."""
        data = self.splits["train"]
        if self.options.augment:
            images = self.options.data in IMAGES
            move = spq.data.crop_and_flip() if images else spq.data.roll_and_flip()
            data = spq.data.Augmented(data, move, seed=self.options.seed, epoch=epoch)
        return self._loader(data, shuffle=True, drop_last=True, epoch=epoch, start=start)

    def evaluation(self, split: str) -> Any:
        """This process's part of a whole split, in its order."""
        return self._loader(self.splits[split], batch_size=self.micro_batch)

    def calibration(self) -> Iterator[Tensor]:
        """The first frames of the training split, shuffled once: the same for every process."""
        size = min(CALIBRATION, len(self.splits["train"]))
        batches = spq.data.loader(
            self.splits["train"], size, shuffle=True, seed=self.options.seed, drop_last=True
        )
        for number, (frames, _) in enumerate(batches):
            if number == self.options.calibration_batches:
                return
            yield placed(frames, self.processes.device)

    @property
    def micro_batch(self) -> int:
        """What all processes together compute at once."""
        return self.options.batch // self.options.accumulate

    def _loader(self, data: Any, batch_size: int | None = None, **options: Any) -> Any:
        return spq.data.loader(
            data,
            batch_size or self.options.batch,
            seed=self.options.seed,
            num_workers=self.options.workers,
            rank=self.processes.rank,
            world=self.processes.world,
            pin_memory=self.processes.device.type == "cuda",
            **options,
        )


def load(options: argparse.Namespace, processes: Processes) -> Task:
    """All splits. One process of each machine prepares what is stored, the others find it."""
    size = options.size
    if size is not None:
        size = size[0] if len(size) == 1 else tuple(size)
    extra = dict(options.data_option)
    record = {
        "name": options.data,
        "steps": options.timesteps,
        "size": size,
        "seed": options.seed,
        "options": extra,
    }
    make: Callable[..., Any] = partial(
        spq.data.create,
        options.data,
        root=options.root,
        steps=options.timesteps,
        size=size,
        seed=options.seed,
        **extra,
    )
    with processes.first_on_each_machine():
        splits = {split: make(split) for split in ("train", "validation", "test")}
    task = Task(options, processes, splits, record)
    if not task.steps_per_epoch:
        raise OptionError(
            f"--batch {options.batch}: must be at most {len(splits['train'])}, the number of "
            f"training recordings of {options.data}. Use a smaller one."
        )
    for split in ("validation", "test"):
        if not len(splits[split]):
            raise OptionError(
                f"--data {options.data}: its {split} split must hold recordings, and is empty. "
                "Raise its share with --data-option, or add recordings."
            )
    return task


def placed(frames: Tensor, device: torch.device) -> Tensor:
    """Frames ``[T, B, ...]`` on a device. An image that is repeated travels once."""
    if frames.stride(0) == 0 and len(frames) > 1:
        return frames[:1].to(device, non_blocking=True).expand_as(frames)
    return frames.to(device, non_blocking=True)
