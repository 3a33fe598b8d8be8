"""Moving textures: a task that no single frame can answer.

Every frame is a random texture, whatever way it moves; only what was where one step before tells
direction and speed. A network needs memory over time: that of its membranes.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..records import Record, fail, real
from .checks import one_of, whole_number
from .dataset import SPLITS, FrameDataset, as_tensors, random_of
from .store import Arrays, describe, stored

DIRECTIONS = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
    "down-right": (1, 1),
    "up-left": (-1, -1),
    "down-left": (1, -1),
    "up-right": (-1, 1),
}


@dataclass(frozen=True)
class MotionLevel(Record):
    """How hard a motion task is.

    ``directions`` is 4 or 8, ``speeds`` the numbers of pixels per step, ``density`` the share of
    texture pixels that spike. In each step a texture pixel is drawn anew with probability
    ``1 - coherence``, and with probability ``noise`` a pixel shows the opposite of what is there.
    """

    directions: int = 4
    speeds: tuple[int, ...] = (1, 2)
    density: float = 0.15
    coherence: float = 1.0
    noise: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.directions, numbers.Integral) or self.directions not in (4, 8):
            raise fail(self, "directions", self.directions, "must be 4 or 8.")
        if not _are_speeds(self.speeds):
            rule = "must be a tuple of whole numbers from 1 to 1000."
            raise fail(self, "speeds", self.speeds, rule)
        object.__setattr__(self, "speeds", tuple(int(speed) for speed in self.speeds))
        if len(set(self.speeds)) < len(self.speeds):
            raise fail(self, "speeds", self.speeds, "must differ from each other.")
        for name in ("density", "coherence", "noise"):
            real(self, name)
            if not 0 <= getattr(self, name) <= 1:
                raise fail(self, name, getattr(self, name), "must lie between 0 and 1.")
        if self.density in (0, 1):
            rule = "must lie between 0 and 1: a texture of one value shows no motion."
            raise fail(self, "density", self.density, rule)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: each direction at each speed."""
        ways = list(DIRECTIONS)[: self.directions]
        return tuple(f"{way} {speed}" for way in ways for speed in self.speeds)


def _are_speeds(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(speed, numbers.Integral) and 1 <= int(speed) <= 1000 for speed in value)
        and not any(isinstance(speed, bool) for speed in value)
    )


LEVELS = {
    "easy": MotionLevel(speeds=(1,), noise=0.0),
    "medium": MotionLevel(coherence=0.95, noise=0.02),
    "hard": MotionLevel(directions=8, coherence=0.85, noise=0.05),
}


class Motion(FrameDataset):
    """Textures of random pixels that move over a torus; the label is direction and speed.

    ``level`` is "easy" (4 directions, one speed, no noise), "medium" (4 directions, 2 speeds, some
    noise), "hard" (8 directions, 2 speeds, much noise) or a :class:`MotionLevel`. Frames are
    spikes ``[T, 1, size, size]``. Each split has recordings of its own, all drawn from ``seed``;
    classes are equally frequent. ``transform`` takes and returns the spikes of one recording, a
    numpy array; ``cache`` is a folder, True for the usual one, or False.

    >>> import spquant_plugin as spq
    >>> data = spq.data.Motion("test", count=16, level="easy", cache=False)
    >>> data
    Motion(16 recordings, 8 steps of 1x16x16, 4 classes)
    >>> frames, label = data[0]
    >>> tuple(frames.shape), data.classes[label]
    ((8, 1, 16, 16), 'right 1')
    """

    def __init__(
        self,
        split: str = "train",
        *,
        count: int = 4096,
        level: str | MotionLevel = "medium",
        steps: int = 8,
        size: int = 16,
        seed: int = 0,
        transform: Callable[[Any], Any] | None = None,
        cache: bool | str | Path = True,
    ) -> None:
        one_of("split", split, SPLITS)
        if not isinstance(level, MotionLevel):
            one_of("level", level, LEVELS)
            level = LEVELS[level]
        whole_number("count", count, 1, 10**7)
        whole_number("steps", steps, 2, 10_000)
        whole_number("size", size, 4, 1024)
        whole_number("seed", seed, 0, 2**63)
        if max(level.speeds) * 2 >= size:
            raise DataError(
                f"speed {max(level.speeds)} on a field of {size} pixels: must be below half the "
                "size, or left and right look the same. Use a larger size or smaller speeds."
            )
        self.level, self.classes, self.split = level, level.classes, split
        made_from = {
            "level": level.to_dict(),
            "shape": [count, steps, size],
            "seed": seed,
            "split": split,
            "transform": None if cache is False and callable(transform) else describe(transform),
        }
        make = partial(_make, level, count, steps, size, seed, split, transform)
        arrays = stored("motion", made_from, make, cache, ("frames", "labels"))
        self.frames, self.labels = as_tensors(arrays["frames"], arrays["labels"])


def move(
    level: MotionLevel, label: int, steps: int, size: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Spikes ``[steps, 1, size, size]`` of one moving texture."""
    way, speed = divmod(label, len(level.speeds))
    step = np.array(list(DIRECTIONS.values())[way]) * level.speeds[speed]
    texture = random.random((size, size)) < level.density
    spikes = np.empty((steps, 1, size, size), dtype=bool)
    for t in range(steps):
        spikes[t, 0] = texture ^ (random.random((size, size)) < level.noise)
        fresh = random.random((size, size)) < level.density
        anew = random.random((size, size)) >= level.coherence
        texture = np.roll(np.where(anew, fresh, texture), step, axis=(0, 1))
    return spikes


def _make(
    level: MotionLevel,
    count: int,
    steps: int,
    size: int,
    seed: int,
    split: str,
    transform: Callable[[Any], Any] | None,
) -> Arrays:
    labels = np.arange(count) % len(level.classes)
    frames = []
    for number, label in enumerate(labels):
        random = random_of(seed, SPLITS.index(split), number)
        spikes = move(level, int(label), steps, size, random)
        frames.append(spikes if transform is None else _checked(transform(spikes), number))
    if len({recording.shape for recording in frames}) > 1:
        raise DataError("transform returned recordings of several shapes: all must have the same.")
    return {"frames": np.stack(frames).astype(np.int16), "labels": labels}


def _checked(result: object, number: int) -> NDArray[np.integer]:
    """What a transform returned, if it can be kept as it is."""
    held = np.asarray(result)
    if held.ndim != 4 or held.dtype.kind not in "biu" or (held.astype(np.int16) != held).any():
        raise DataError(
            f"recording {number}: transform returned {held.dtype} of shape {held.shape}: must be "
            "whole numbers of 16 bits, [steps, channels, height, width]."
        )
    return held
