"""Frames of recordings in one file: written recording by recording, mapped into memory to be read.

The file holds all frames first, one recording after the other, then a description in JSON, and at
its very end the description's length, a checksum of everything before, and a mark. A file without
that end was never finished.
"""

from __future__ import annotations

import json
import math
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, DataWarning
from .store import cache_file, written

MARK = b"SPQFRM01"
END = struct.Struct("<QI8s")  # length of the description, checksum, mark
CHUNK = 2**24
ABANDONED = 24 * 3600  # seconds without a write after which nobody works on an unfinished file
Outcome = NDArray[np.integer] | str  # frames [T, C, H, W], or why a recording has none
_whole: set[tuple[str, int, int]] = set()  # files whose checksum this process has seen to be right


@dataclass(frozen=True)
class Prepared:
    """Frames ``[kept, T, C, H, W]`` of the recordings ``kept``, and why others are ``damaged``.

    ``file`` is what ``frames`` is mapped from, None where they are in memory.
    """

    frames: Tensor
    kept: tuple[int, ...]
    damaged: dict[int, str]
    file: Path | None = None


def prepared(
    name: str,
    made_from: dict[str, Any],
    outcomes: Callable[[], Iterable[Outcome]],
    cache: bool | str | Path,
) -> Prepared:
    """What ``outcomes`` gives, one for each recording; from the cache where it holds them.

    ``made_from`` is all that they depend on. Counts are kept as 8 bits where all fit, else as 16.
    A file that cannot be used is made again, with a warning that says why.
    """
    if cache is False:
        return _in_memory(outcomes())
    file, key = cache_file(name, made_from, cache, "frames")
    if file.exists():
        try:
            return _open(file, key)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"{file}: cannot be used ({type(error).__name__}: {error}). It is made again.",
                DataWarning,
                stacklevel=3,
            )
    _remove_abandoned(file)
    with written(file) as stream:
        description = _write_frames(stream, outcomes())
        _write_end(stream, {"key": key, **description})
    return _open(file, key)


def mapped(file: Path, kind: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that is the start of a file. What is written to it stays in this process."""
    count = math.prod(shape)
    dtype = {"uint8": torch.uint8, "int16": torch.int16}[kind]
    try:
        return torch.from_file(str(file), shared=False, size=count, dtype=dtype).reshape(shape)
    except RuntimeError as error:
        raise DataError(
            f"{file}: cannot be mapped ({error}). It was deleted or replaced while it was in use: "
            "make the data set anew."
        ) from error


def _in_memory(outcomes: Iterable[Outcome]) -> Prepared:
    frames, kept, damaged = [], [], {}
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, str):
            damaged[number] = outcome
        else:
            frames.append(outcome.astype(np.uint8 if outcome.max() <= 255 else np.int16))
            kept.append(number)
    return Prepared(torch.from_numpy(np.stack(frames)), tuple(kept), damaged)


def _write_frames(stream: BinaryIO, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Write the frames; returns their description."""
    kept: list[int] = []
    damaged: dict[str, str] = {}
    shape: tuple[int, ...] = ()
    kind = "uint8"
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, str):
            damaged[str(number)] = outcome
            continue
        shape = outcome.shape
        if kind == "uint8" and outcome.max() > 255:
            kind = "int16"
            _widen(stream, len(kept), math.prod(shape))
        stream.write(outcome.astype(kind).tobytes())
        kept.append(number)
    return {"dtype": kind, "shape": [len(kept), *shape], "kept": kept, "damaged": damaged}


def _widen(stream: BinaryIO, count: int, size: int) -> None:
    """Turn ``count`` recordings of ``size`` bytes into 16 bits in place, the last one first."""
    for number in reversed(range(count)):
        stream.seek(number * size)
        counts = np.frombuffer(stream.read(size), dtype=np.uint8)
        stream.seek(2 * number * size)
        stream.write(counts.astype(np.int16).tobytes())
    stream.seek(2 * count * size)


def _write_end(stream: BinaryIO, description: dict[str, Any]) -> None:
    text = json.dumps(description).encode()
    stream.write(text)
    length = stream.tell()
    stream.write(END.pack(len(text), _checksum(stream, length), MARK))


def _checksum(stream: BinaryIO, length: int) -> int:
    """Checksum of the first ``length`` bytes; the stream ends up behind them."""
    stream.seek(0)
    found = 0
    for start in range(0, length, CHUNK):
        found = zlib.crc32(stream.read(min(CHUNK, length - start)), found)
    return found


def _open(file: Path, key: str) -> Prepared:
    """The frames of a whole file; ValueError says what is wrong with another one."""
    status = file.stat()
    size = status.st_size
    if size < END.size:
        raise ValueError("it is not a whole file of frames")
    with file.open("rb") as stream:
        stream.seek(size - END.size)
        length, checksum, mark = END.unpack(stream.read(END.size))
        if mark != MARK or length > size - END.size:
            raise ValueError("it is not a whole file of frames")
        seen = (str(file), status.st_mtime_ns, size)
        if seen not in _whole and _checksum(stream, size - END.size) != checksum:
            raise ValueError("its checksum is wrong")
        stream.seek(size - END.size - length)
        described = json.loads(stream.read(length))
    if described["key"] != key:
        raise ValueError("it was made from something else")
    _whole.add(seen)
    frames = mapped(file, described["dtype"], tuple(described["shape"]))
    damaged = {int(number): reason for number, reason in described["damaged"].items()}
    return Prepared(frames, tuple(described["kept"]), damaged, file)


def _remove_abandoned(file: Path) -> None:
    """Delete what a preparation of this file left that was killed; it may be gigabytes."""
    for part in file.parent.glob(f"{file.stem}-*.part"):
        try:
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        except OSError:  # another process was first, or the folder is not ours to clean
            continue
