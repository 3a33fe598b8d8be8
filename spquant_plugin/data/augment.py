"""Random changes of training samples that no worker, resumption or sharing out alters."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import DataError
from .checks import whole_number
from .dataset import describe_set, is_repeated


class Augmented(Dataset[tuple[Tensor, int]]):
    """A data set whose frames go through a random ``transform`` each time they are read.

    ``transform`` takes and returns frames ``[T, C, H, W]``, as those of torchvision do, and treats
    all steps alike. What it draws follows from ``seed``, ``epoch`` and the index of the sample and
    from nothing else: torch's, numpy's and Python's generators are seeded before each sample is
    read and put back after it. So a run with other workers, on more machines or resumed in the
    middle sees the same samples. Call :meth:`set_epoch` before each epoch.

    Images that are shown several times are transformed once. Raises
    :class:`~spquant_plugin.errors.DataError` where the transform changes the shape.

    >>> import spquant_plugin as spq
    >>> data = spq.data.Motion(count=8, cache=False)
    >>> moved = spq.data.Augmented(data, spq.data.roll_and_flip(shift=2, flip=False))
    >>> first, again = moved[3][0], moved[3][0]
    >>> moved.set_epoch(1)
    >>> bool((first == again).all()), bool((first == moved[3][0]).all())
    (True, False)
    """

    def __init__(
        self,
        data: Dataset[Any],
        transform: Callable[[Tensor], Tensor],
        *,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        for name in ("__len__", "classes", "sample_shape"):
            if not hasattr(data, name):
                raise DataError(
                    f"data of type {type(data).__name__} has no {name}: must be a data set of "
                    "frames, with a length, classes and sample_shape, as those of spq.data."
                )
        if not callable(transform):
            raise DataError(
                f"transform = {transform!r}: must be callable, from frames [T, C, H, W] to frames, "
                "such as spq.data.crop_and_flip()."
            )
        whole_number("seed", seed, 0, 2**63 - 1)
        self.data, self.transform, self.seed = data, transform, seed
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw as in this epoch from now on; a loader's workers learn of it in their next pass."""
        whole_number("epoch", epoch, 0, 10**6)
        self.epoch = epoch

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.classes  # type: ignore[attr-defined]

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """Steps, channels, height and width of every item."""
        return self.data.sample_shape  # type: ignore[attr-defined]

    @property
    def split(self) -> str:
        """The part of the data that this is."""
        return self.data.split  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = operator.index(index)
        place += len(self) if place < 0 else 0
        with _seeded(self.seed, self.epoch, place):
            frames, label = self.data[place]
            steps = len(frames)
            seen = self.transform(frames[:1] if is_repeated(frames) else frames)
        if is_repeated(frames) and isinstance(seen, Tensor):
            seen = seen.expand(steps, *seen.shape[1:]) if len(seen) == 1 else seen
        if not isinstance(seen, Tensor) or seen.shape != self.sample_shape:
            what = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise DataError(
                f"sample {place}: the transform returned {what}: must be a tensor of shape "
                f"{self.sample_shape}, as the data set says. Crop or pad back to that size."
            )
        return seen, label

    def __repr__(self) -> str:
        return describe_set(f"Augmented {type(self.data).__name__}", len(self), "samples", self)


@contextmanager
def _seeded(*stream: int) -> Iterator[None]:
    """Random numbers that follow from ``stream``; afterwards the generators go on as before.

    Of torch only the CPU's generator is touched: ``torch.manual_seed`` would seed the GPU anew too,
    in the middle of training.
    """
    sequence = np.random.SeedSequence(stream[0], spawn_key=stream[1:])
    seeds = sequence.generate_state(2).tolist()
    # numpy's generator is replaced for the time: to copy its state takes five times as long.
    held = torch.get_rng_state(), get_bit_generator(), random.getstate()
    try:
        torch.default_generator.manual_seed(seeds[0])
        set_bit_generator(np.random.PCG64(sequence))
        random.seed(seeds[1])
        yield
    finally:
        torch.set_rng_state(held[0])
        set_bit_generator(held[1])
        random.setstate(held[2])


def crop_and_flip(padding: int = 4, *, flip: bool = True) -> Callable[[Tensor], Tensor]:
    """The usual augmentation of small images: shifted by up to ``padding``, mirrored or not.

    The image gets a border of zeros, and a part of its old size is cut out of it. ``flip=False``
    for what means something else in a mirror.
    """
    whole_number("padding", padding, 0, 10_000)
    return CropAndFlip(padding, flip)


def roll_and_flip(shift: int = 5, *, flip: bool = True) -> Callable[[Tensor], Tensor]:
    """The usual augmentation of event frames: roll both axes by up to ``shift`` pixels, mirror.

    What leaves the frame on one side enters it on the other: no event is lost. All steps move
    alike. ``flip=False`` for what means something else in a mirror: digits, motion, gestures of one
    hand.
    """
    whole_number("shift", shift, 0, 10_000)
    return RollAndFlip(shift, flip)


@dataclass(frozen=True)
class CropAndFlip:
    """What :func:`crop_and_flip` returns."""

    padding: int
    flip: bool

    def __call__(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        top, left = torch.randint(0, 2 * self.padding + 1, (2,)).tolist()
        wide = F.pad(frames, [self.padding] * 4)
        return _flipped(wide[..., top : top + height, left : left + width], self.flip)


@dataclass(frozen=True)
class RollAndFlip:
    """What :func:`roll_and_flip` returns."""

    shift: int
    flip: bool

    def __call__(self, frames: Tensor) -> Tensor:
        shifts = torch.randint(-self.shift, self.shift + 1, (2,)).tolist()
        return _flipped(frames.roll(shifts, dims=(-2, -1)), self.flip)


def _flipped(frames: Tensor, flip: bool) -> Tensor:
    """Mirrored left to right with probability one half."""
    return frames.flip(-1) if flip and torch.rand(()) < 0.5 else frames
