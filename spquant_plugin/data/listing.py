"""Which recordings a folder holds, and which of them belong to a split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .dataset import SPLITS, random_of


@dataclass(frozen=True)
class Recording:
    """One recording: its file relative to the set's folder, its label, and the file's bytes."""

    path: str
    label: int
    size: int


def by_class(
    folder: Path,
    suffixes: tuple[str, ...],
    classes: Sequence[str] | None = None,
    below: str = "",
) -> tuple[tuple[str, ...], list[Recording]]:
    """Recordings in one folder per class: of these ``classes``, or of all folders, sorted.

    ``below`` is what their paths begin with, where ``folder`` is only a part of the set's.

    Hidden files, as some programs leave them in archives, and files with other endings are no
    recordings; nor is a folder that holds none a class.
    """
    found = {}
    for name in sorted(os.listdir(folder)) if classes is None else classes:
        if (folder / name).is_dir() and not name.startswith("."):
            files = _files(folder / name, suffixes)
            if files or classes is not None:
                found[name] = files
    names = tuple(found) if classes is None else tuple(classes)
    recordings = [
        Recording(f"{below}/{name}/{file}".lstrip("/"), label, size)
        for label, name in enumerate(names)
        for file, size in found.get(name, [])
    ]
    return names, recordings


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        found = sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.endswith(suffixes) and not entry.name.startswith(".")
        )
    stems: dict[str, str] = {}
    for name, _ in found:
        stem = name.rsplit(".", 1)[0]
        if stem in stems:
            raise DataError(
                f"{folder}: holds both {stems[stem]} and {name}. One recording in two formats "
                "could end up in two splits: keep one format."
            )
        stems[stem] = name
    return found


def digest(recordings: Iterable[Recording]) -> str:
    """A text that changes when files are added, removed, renamed or have another size."""
    lines = (f"{each.path}\0{each.label}\0{each.size}\n" for each in recordings)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def members(
    labels: Sequence[int], split: str, seed: int, validation: float, test: float
) -> list[int]:
    """Which recordings belong to a split: the same shares of every class, drawn by the seed.

    A share above 0 is at least one recording of a class, as long as one is left to train on. What
    is damaged does not matter: it leaves its place empty.

    >>> labels = [0] * 5 + [1] * 5
    >>> [members(labels, split, 0, 0.2, 0.2) for split in SPLITS]
    [[0, 2, 3, 7, 8, 9], [1, 5], [4, 6]]
    """
    held = np.asarray(labels)
    chosen = []
    for label in np.unique(held):
        # The generator depends on the class alone: another class more or less changes nothing.
        drawn = random_of(seed, int(label)).permutation(np.flatnonzero(held == label))
        for_test = _at_least_one(test, len(drawn), 1)
        for_validation = _at_least_one(validation, len(drawn), 1 + for_test)
        bounds = np.cumsum((0, len(drawn) - for_test - for_validation, for_validation, for_test))
        index = SPLITS.index(split)
        chosen.append(drawn[bounds[index] : bounds[index + 1]])
    return np.sort(np.concatenate(chosen)).tolist() if chosen else []


def _at_least_one(share: float, count: int, taken: int) -> int:
    """A share of ``count`` recordings of which ``taken`` must stay for others."""
    return min(max(round(share * count), int(share > 0)), max(count - taken, 0))
