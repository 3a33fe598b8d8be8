"""What all event sets on disk share: files that are listed, split by seed, framed once and kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .checks import one_of, whole_number
from .damage import NAMED, warn_of
from .dataset import SPLITS, FrameDataset
from .folders import Layout, require_folder
from .framing import Framing, framed
from .listing import Recording, digest, members
from .prepared import Outcome, mapped, prepared


class EventSet(FrameDataset):
    """Recordings of events in a folder, framed into ``steps`` windows each, every event in one.

    ``split`` is "train", "validation" or "test", drawn per class by ``seed``. Where the publication
    has a test part, that is "test", and ``validation`` is a share of the other recordings; else
    ``validation`` and ``test`` are shares of all, a tenth where they are not given. ``size`` is a
    smaller grid, a number or (height, width): an event at ``x`` moves to
    ``x * width // sensor_width``. ``binary`` gives 1 where a pixel had any event, not counts.

    Frames are made once, by ``workers`` processes, and kept in ``cache``: a folder, True for the
    usual one, or False for memory only. ``stored`` holds those of all recordings, mapped from that
    file; ``rows`` are the ones of this split. ``damaged`` names recordings of this split that could
    not be read, each with the reason; a :class:`~spquant_plugin.errors.DataWarning` counts them.
    ``paths`` are the files below ``folder``, in the order of the items, and ``events(index)`` reads
    one of them.

    A set of your own names ``layout``, ``sensor`` and ``parts``, and says what is there
    (``listed``) and how it is read (``read``).
    """

    layout: ClassVar[Layout]
    sensor: ClassVar[tuple[int, int]]  # height, width
    polarities: ClassVar[int] = 2
    usual_size: ClassVar[tuple[int, int] | None] = None  # None: the sensor's own
    inside: ClassVar[tuple[str, ...]] = ()  # where in ``root`` other programs put the same files
    parts: ClassVar[tuple[str, ...]] = ()  # where training and test part are, if published apart

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        steps: int = 10,
        size: int | tuple[int, int] | None = None,
        binary: bool = False,
        seed: int = 0,
        validation: float = 0.1,
        test: float | None = None,
        cache: bool | str | Path = True,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        one_of("split", split, SPLITS)
        whole_number("steps", steps, 1, 10_000)
        whole_number("seed", seed, 0, 2**63)
        whole_number("workers", workers, 0, 4096)
        if not isinstance(binary, bool):
            raise DataError(f"binary = {binary!r}: must be True or False.")
        shares = self._shares(validation, test)
        self.split, self.seed = split, seed
        self.framing = Framing(steps, self.sensor, self.grid(size), self.polarities, binary)
        part = "test" if self.parts and split == "test" else "train"
        self.folder = require_folder(root, self.layout, self.needed(part), self.inside)
        self.classes, recordings = self.listed(self.folder, part)
        made_from = {"files": digest(recordings), "part": part, "framing": self.framing.to_dict()}
        make = partial(self._outcomes, recordings, workers, progress)
        held = prepared(type(self).__name__.lower(), made_from, make, cache)
        self.stored, self.file = held.frames, held.file
        chosen = list(range(len(recordings)))
        if part == "train":
            chosen = members([each.label for each in recordings], split, seed, *shares)
        self._choose(recordings, chosen, held.kept, held.damaged)

    @classmethod
    def grid(cls, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the frames for a ``size`` that was asked for."""
        if size is None:
            return cls.usual_size or cls.sensor
        pair = (size, size) if not isinstance(size, tuple | list) else tuple(size)
        if len(pair) != 2:
            raise DataError(f"size = {size!r}: must be a whole number or (height, width).")
        for name, number, most in zip(("height", "width"), pair, cls.sensor, strict=True):
            whole_number(f"{name} of size", number, 1, most)
        return int(pair[0]), int(pair[1])

    @classmethod
    def place(cls, part: str) -> str:
        """Where in the folder a published part is."""
        return cls.parts[("train", "test").index(part)]

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        """Glob patterns that must match something in the folder."""
        raise NotImplementedError

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        """The classes, and the recordings of a part, in the same order on every machine."""
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        """Events of one recording, in Tonic's format. Any error but OSError means damage."""
        raise NotImplementedError

    def events(self, index: int) -> NDArray[np.void]:
        """Recording ``index`` of this split as it is in its file, ``(x, y, t, p)``."""
        return self.read(self.folder, self.paths[index])

    @property
    def frames(self) -> Tensor:  # type: ignore[override]  # read only: it is a part of ``stored``
        """Frames of this split in one tensor: a copy in memory, unless all are in one piece."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        one_piece = last - first + 1 == len(self.rows)
        return self.stored[first : last + 1] if one_piece else self.stored[self.rows]

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        steps, channels, height, width = self.stored.shape[1:]
        return steps, channels, height, width

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames ``[T, C, H, W]`` as float counts, and the label."""
        if not hasattr(index, "__index__"):
            return super().__getitem__(index)  # which says what an index must be
        return self.stored[int(self.rows[index])].float(), int(self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        """For another process: it maps the file itself, nothing of it is sent."""
        state = dict(self.__dict__)
        if self.file is not None:
            stored = state.pop("stored")
            state["_mapping"] = (str(stored.dtype).removeprefix("torch."), tuple(stored.shape))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapping = state.pop("_mapping", None)
        self.__dict__.update(state)
        if mapping is not None:
            self.stored = mapped(state["file"], *mapping)

    def _shares(self, validation: float, test: float | None) -> tuple[float, float]:
        if self.parts and test is not None:
            raise DataError(
                f"test = {test!r}: {self.layout.name} has a published test part, which is its "
                "test split. Leave it out."
            )
        test = (0.0 if self.parts else 0.1) if test is None else test
        for name, share in (("validation", validation), ("test", test)):
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not 0 <= share < 1:
                raise DataError(f"{name} = {share!r}: must be a share of 0 or more, and below 1.")
        if validation + test >= 1:
            raise DataError(
                f"validation = {validation} and test = {test}: together they must be below 1, or "
                "nothing is left to train on."
            )
        return validation, test

    def _choose(
        self,
        recordings: list[Recording],
        chosen: list[int],
        kept: tuple[int, ...],
        damaged: dict[int, str],
    ) -> None:
        """Keep what belongs to this split, and say what of it is damaged."""
        row_of = {number: row for row, number in enumerate(kept)}
        whole = [number for number in chosen if number in row_of]
        if not whole:
            raise DataError(
                f"{self.folder}: no recording of {self.layout.name} is left for {self.split!r}. "
                f"{len(chosen)} of {len(recordings)} recordings belong to it. Use larger shares or "
                "more recordings."
            )
        self.rows = torch.tensor([row_of[number] for number in whole])
        self.labels = torch.tensor([recordings[number].label for number in whole])
        self.paths = tuple(recordings[number].path for number in whole)
        self.damaged = tuple(
            (recordings[number].path, damaged[number]) for number in chosen if number in damaged
        )
        warn_of(f"{self.folder} ({self.split})", self.damaged, len(chosen))

    def _outcomes(
        self, recordings: list[Recording], workers: int, progress: bool
    ) -> Iterator[Outcome]:
        """Frames of each recording; raises as soon as more than half of all are damaged."""
        self.require_reader(self.folder, recordings)
        damaged = []
        paths = [recording.path for recording in recordings]
        outcomes = framed(self.framing, partial(self.read, self.folder), paths, workers, progress)
        for path, outcome in zip(paths, outcomes, strict=True):
            if isinstance(outcome, str):
                damaged.append((path, outcome))
                if 2 * len(damaged) > len(paths):
                    first = "; ".join(f"{path}: {reason}" for path, reason in damaged[:NAMED])
                    raise DataError(
                        f"{self.folder}: more than half of the {len(paths)} recordings of "
                        f"{self.layout.name} are damaged: {first}. Unpack the archive again, "
                        "and check that this folder holds what its name says."
                    )
            yield outcome

    @classmethod
    def require_reader(cls, folder: Path, recordings: list[Recording]) -> None:
        """Raise where a package is missing that these recordings need."""
