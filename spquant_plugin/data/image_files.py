"""Image files in folders: which of them cannot be read, found once and remembered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .images import torchvision_for
from .listing import Recording, digest
from .store import Arrays, stored

SUFFIXES = (".JPEG", ".JPG", ".jpeg", ".jpg", ".PNG", ".png", ".BMP", ".bmp", ".webp")
# How a whole file ends; only one that ends otherwise has to be decoded to know.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
CHECKS = ("quick", "full")
AT_ONCE = 4096  # files given to the threads together: a million would fill the memory


def damaged_files(
    folder: Path,
    recordings: Sequence[Recording],
    check: str,
    cache: bool | str | Path,
    workers: int,
    progress: bool,
) -> dict[int, str]:
    """Numbers of the images that cannot be read, each with the reason."""
    make = partial(_check_all, folder, recordings, check == "full", workers, progress)
    made_from = {"files": digest(recordings), "check": check}
    held = stored("image-check", made_from, make, cache, ("numbers", "reasons"))
    return dict(zip(held["numbers"].tolist(), held["reasons"].tolist(), strict=True))


def read_image(path: Path) -> Any:
    """A file as an RGB image of Pillow."""
    image = _pillow()
    try:
        with image.open(path) as opened:
            return opened.convert("RGB")
    except Exception as error:  # damage shows in a dozen ways, one for each format
        raise DataError(
            f"{path}: cannot be read as an image ({_reason(error)}). Get it anew, or pass "
            'check="full" to find and leave out all such files.'
        ) from error


def _check_all(
    folder: Path, recordings: Sequence[Recording], full: bool, workers: int, progress: bool
) -> Arrays:
    _pillow()  # says what to install; tqdm comes along
    from tqdm.auto import tqdm

    found: list[str] = []
    # disable=None: a bar where someone looks, none in a log file.
    hidden = None if progress else True
    with (
        # Threads: Pillow decodes, and the disk answers, without holding the others up.
        ThreadPoolExecutor(max(workers, 1)) as pool,
        tqdm(total=len(recordings), desc="checking images", unit="file", disable=hidden) as bar,
    ):
        for first in range(0, len(recordings), AT_ONCE):
            paths = [folder / each.path for each in recordings[first : first + AT_ONCE]]
            for reason in pool.map(partial(_damage, full), paths):
                found.append(reason)
                bar.update()
    bad = [number for number, reason in enumerate(found) if reason]
    return {
        "numbers": np.array(bad, dtype=np.int64),
        "reasons": np.array([found[number] for number in bad], dtype=np.str_),
    }


def _damage(full: bool, path: Path) -> str:
    """Why an image cannot be read, or nothing.

    A file that this machine cannot open at all is an error: it may well be whole.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            if not stream.tell():
                return "it is empty"
            stream.seek(-min(stream.tell(), 64), os.SEEK_END)
            end = stream.read()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error}). Make it readable, or take it out of the folder."
        ) from error
    try:
        with _pillow().open(path) as opened:
            usual = ENDS.get(opened.format or "")
            if full or usual is None or not end.rstrip(b"\0").endswith(usual):
                opened.convert("RGB")
    except Exception as error:  # damage shows in a dozen ways, one for each format
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its message repeats the path
        return "it is no image of a known format"
    return str(error) or type(error).__name__


def _pillow() -> Any:
    torchvision_for("ImageNet")  # which brings it along
    from PIL import Image

    return Image
