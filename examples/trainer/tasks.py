"""The data by its name: three splits, and the batches of each."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator, Mapping
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
# Options of data sets that change how recordings are stored and read, and not what they are.
STORING = ("cache", "workers", "progress")


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
        data = self._seen(epoch)
        return self._loader(data, shuffle=True, drop_last=True, epoch=epoch, start=start)

    def _seen(self, epoch: int) -> Any:
        """The training split as an epoch sees it."""
        data, seed = self.splits["train"], self.options.seed
        if not self.options.augment:
            return data
        return spq.data.Augmented(data, augmentation(self.options.data), seed=seed, epoch=epoch)

    def evaluation(self, split: str) -> Any:
        """This process's part of a whole split, in its order."""
        return self._loader(self.splits[split], batch_size=self.micro_batch)

    def calibration(self) -> Iterator[Tensor]:
        """What training sees first, shuffled once: the same frames for every process."""
        data = self._seen(0)
        size, seed = min(CALIBRATION, len(data)), self.options.seed
        batches = spq.data.loader(data, size, shuffle=True, seed=seed, drop_last=True)
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
    """All splits. One process of each machine prepares what is stored, the others find it.

    Raises ``OptionError`` where a split is too small, or not the same for every process.
    """
    size = options.size
    if size is not None:
        size = size[0] if len(size) == 1 else tuple(size)
    extra = dict(options.data_option)
    crop = {"crop": "random"} if options.augment and options.data == "imagenet" else {}
    record = {
        "name": options.data,
        "steps": options.timesteps,
        "size": size,
        "seed": options.seed,
        "options": {name: value for name, value in extra.items() if name not in STORING},
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
        splits = {"train": make("train", **crop)}  # what is evaluated is never cropped at random
        splits |= {split: make(split) for split in ("validation", "test")}
    check_same(options, processes, splits)
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


def check_same(
    options: argparse.Namespace, processes: Processes, splits: Mapping[str, Any]
) -> None:
    """Raise ``OptionError``, in every process, unless all have the same recordings."""
    own = {split: (len(data), checksum(data)) for split, data in splits.items()}
    found = processes.agree(own)
    rank = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
    if rank is None:
        return
    first, other = (
        ", ".join(f"{count} {split}" for split, (count, _) in each.items())
        for each in (found[0], found[rank])
    )
    if first == other:
        other = "as many, but other ones"
    raise OptionError(
        f"--data {options.data}: all processes must find the same recordings. Process 0 found "
        f"{first}; process {rank} found {other}. Give every machine the same files below --root."
    )


def checksum(data: Any) -> int:
    """Of the labels in their order, and of the files' names where a set has them."""
    names = "\n".join(getattr(data, "paths", ()))
    return zlib.crc32(names.encode(errors="surrogateescape"), zlib.crc32(data.labels.numpy()))


def augmentation(name: str) -> Callable[[Tensor], Tensor]:
    """What ``--augment`` does to a recording. Images of ImageNet come cropped at random."""
    if name not in IMAGES:
        return spq.data.roll_and_flip()
    return spq.data.crop_and_flip(padding=0) if name == "imagenet" else spq.data.crop_and_flip()


def placed(frames: Tensor, device: torch.device) -> Tensor:
    """Frames ``[T, B, ...]`` on a device. An image that is repeated travels once."""
    if frames.stride(0) == 0 and len(frames) > 1:
        return frames[:1].to(device, non_blocking=True).expand_as(frames)
    return frames.to(device, non_blocking=True)
