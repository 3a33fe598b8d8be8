"""Handwritten digits as an event camera sees them: scikit-learn's images, a saccade, events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingHostError
from .camera import EventCamera
from .checks import one_of, whole_number
from .dataset import SPLITS, FrameDataset, as_tensors, random_of
from .frames import Frames, tonic_to_frame
from .saccade import enlarge, film, saccade
from .store import Arrays, describe, stored

DURATION = 100_000  # microseconds
FILM_FRAMES = 31
SHARES = (0.7, 0.1, 0.2)  # of each class, in the order of SPLITS


class DigitEvents(FrameDataset):
    """The 1,797 digits of scikit-learn, each recorded by a camera that moves over it for 100 ms.

    An image of 8 x 8 pixels is enlarged to three quarters of the sensor; the camera goes along a
    triangle whose angle and start differ from recording to recording. Events are framed by Tonic
    into ``steps`` windows, every event in one of them: frames ``[T, 2, size, size]`` of counts.

    ``split`` is "train" (70 % of each digit), "validation" (10 %) or "test" (20 %); which image is
    where follows ``seed``, as do path, pixel thresholds and noise. ``variants`` recordings are made
    of each image, all in one split. ``transform`` takes and returns events, before they are framed.
    ``cache`` is a folder, True for the usual one (``$SPQUANT_CACHE``), or False. Items are
    ``(frames, label)``; ``data.events(index)`` gives a recording in Tonic's format.

    Needs ``pip install "spquant-plugin[data]"``.
    """

    classes = tuple("0123456789")

    def __init__(
        self,
        split: str = "train",
        *,
        steps: int = 8,
        size: int = 16,
        seed: int = 0,
        variants: int = 1,
        camera: EventCamera | None = None,
        transform: Callable[[Any], Any] | None = None,
        cache: bool | str | Path = True,
        progress: bool = True,
    ) -> None:
        one_of("split", split, SPLITS)
        whole_number("size", size, 8, 1024)
        whole_number("seed", seed, 0, 2**63)
        whole_number("variants", variants, 1, 1000)
        self.split, self.seed, self.transform, self.variants = split, seed, transform, variants
        self.camera = EventCamera() if camera is None else camera
        if not isinstance(self.camera, EventCamera):
            raise DataError(f"camera = {camera!r}: must be an EventCamera or None.")
        self.framing = Frames(steps, size, size, DURATION)
        self._images, digits = _load_digits()
        made_from = {
            "camera": self.camera.to_dict(),
            "framing": self.framing.to_dict(),
            "film": [DURATION, FILM_FRAMES],
            "seed": seed,
            "variants": variants,
            "transform": None if cache is False and callable(transform) else describe(transform),
        }
        make = partial(self._make, progress)
        counts = stored("digit-events", made_from, make, cache, ("frames",))["frames"]
        chosen = _members(digits, split, seed)
        # Recording n of image i is number i * variants + n.
        self.recordings = (chosen[:, None] * variants + np.arange(variants)).ravel()
        self.frames, self.labels = as_tensors(
            counts[self.recordings], np.repeat(digits[chosen], variants)
        )

    def events(self, index: int) -> NDArray[np.void]:
        """Recording ``index`` of this split as events ``(x, y, t, p)``, made anew."""
        return self._record(int(self.recordings[index]))

    def film(self, index: int) -> NDArray[np.floating]:
        """What the camera saw of recording ``index``: intensities ``[frames, size, size]``."""
        return self._film(int(self.recordings[index]))[0]

    def _film(self, number: int) -> tuple[NDArray[np.floating], np.random.Generator]:
        random = random_of(self.seed, number)
        size = self.framing.width
        inner = size * 3 // 4
        low = (size - inner) // 2
        image = np.zeros((size, size))
        digit = self._images[number // self.variants] / 16.0
        image[low : low + inner, low : low + inner] = enlarge(digit, inner)
        return film(image, saccade(size / 8, FILM_FRAMES, random)), random

    def _record(self, number: int) -> NDArray[np.void]:
        seen, random = self._film(number)
        times = np.linspace(0, DURATION, FILM_FRAMES).round().astype(np.int64)
        events = self.camera.record(seen, times, random)
        return events if self.transform is None else self.transform(events)

    def _make(self, progress: bool) -> Arrays:
        tonic_to_frame()  # says what to install; tqdm comes along with Tonic
        from tqdm.auto import tqdm

        numbers = range(len(self._images) * self.variants)
        # disable=None: a bar where someone looks, none in a log file.
        bar = tqdm(
            numbers, desc="recording digits", unit="digit", disable=None if progress else True
        )
        frames = []
        for number in bar:
            try:
                frames.append(self.framing(self._record(number)))
            except DataError as error:
                raise DataError(
                    f"recording {number} (digit image {number // self.variants}): {error}"
                ) from error
        return {"frames": np.stack(frames)}


def _members(digits: NDArray[np.integer], split: str, seed: int) -> NDArray[np.integer]:
    """Which images belong to a split: the same shares of every class, drawn by the seed."""
    random = random_of(seed, 2**32 - 1)
    index = SPLITS.index(split)
    chosen = []
    for digit in np.unique(digits):
        members = random.permutation(np.flatnonzero(digits == digit))
        bounds = np.round(np.cumsum((0, *SHARES)) * len(members)).astype(int)
        chosen.append(members[bounds[index] : bounds[index + 1]])
    return np.sort(np.concatenate(chosen))


def _load_digits() -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingHostError(
            "spquant_plugin.data.DigitEvents needs scikit-learn, which is not installed. "
            'Run: python -m pip install "spquant-plugin[data]"'
        ) from None
    held = load_digits()
    return held.images, held.target
