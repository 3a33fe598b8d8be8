"""Data sets that are made once: kept in memory, and on disk under a key of all that made them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DataWarning

Arrays = dict[str, NDArray[Any]]
FORMAT = 1  # raise it whenever the same settings come to make other data


def cache_folder() -> Path:
    """Where data sets are kept: ``$SPQUANT_CACHE``, or ``spquant_plugin`` in the user's cache."""
    chosen = os.environ.get("SPQUANT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spquant_plugin"


def describe(transform: object) -> str | None:
    """A transform's settings as text, for the key. It must say the same in every run."""
    if transform is None:
        return None
    if not callable(transform):
        raise DataError(
            f"transform = {transform!r}: must be callable, from one recording to another, or None."
        )
    text = repr(transform)
    if "..." in text:
        raise DataError(
            f"transform = {text}: its text leaves something out, so a stored copy could not be "
            "told from that of another transform. Give it a __repr__ that says all, or pass "
            "cache=False."
        )
    if re.search(r"\bat 0x[0-9a-fA-F]+", text):
        raise DataError(
            f"transform = {text}: its text changes from run to run, so a stored copy could not be "
            "told from that of another transform. Give it a __repr__ that holds its settings (a "
            "dataclass does, and so do Tonic's transforms), or pass cache=False."
        )
    return f"{type(transform).__module__}.{text}"


def cache_file(
    name: str, made_from: dict[str, Any], cache: object, suffix: str
) -> tuple[Path, str]:
    """The file that keeps what was ``made_from`` these settings, and the key that it must hold."""
    if cache is not True and (not isinstance(cache, str | os.PathLike) or not str(cache)):
        raise DataError(f"cache = {cache!r}: must be a folder, True or False.")
    folder = cache_folder() if cache is True else Path(cache)
    # default=int: a whole number of numpy is the same setting as Python's.
    key = json.dumps({"format": FORMAT, "name": name, **made_from}, sort_keys=True, default=int)
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.{suffix}", key


def stored(
    name: str,
    made_from: dict[str, Any],
    make: Callable[[], Arrays],
    cache: bool | str | Path,
    names: tuple[str, ...],
) -> Arrays:
    """The arrays ``names`` that ``make`` returns, read from the cache where it holds them.

    ``made_from`` is all that they depend on. ``cache`` is a folder, True for the usual one, or
    False. A file that cannot be used is made again, with a warning that says why.
    """
    if cache is False:
        return make()
    file, key = cache_file(name, made_from, cache, "npz")
    if os.path.exists(file):
        try:
            return _read(file, key, names)
        except Exception as error:  # damage shows in a dozen ways, from zipfile, zlib and numpy
            warnings.warn(
                f"{file}: cannot be used ({type(error).__name__}: {error}). It is made again.",
                DataWarning,
                stacklevel=3,
            )
    arrays = make()
    _write(file, key, arrays)
    return arrays


def _read(file: Path, key: str, names: tuple[str, ...]) -> Arrays:
    """The arrays ``names`` of a file; its format carries a checksum of each."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not a whole npz file")
    # Opened here: numpy leaves a file open that it cannot read.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
        if str(held["key"]) != key:
            raise ValueError("it was made from something else")
        return {name: held[name] for name in names}


def _write(file: Path, key: str, arrays: Arrays) -> None:
    with written(file) as stream:
        held: dict[str, Any] = {"key": np.array(key), **arrays}
        np.savez_compressed(stream, **held)


@contextmanager
def written(file: Path) -> Iterator[BinaryIO]:
    """A stream under another name that becomes ``file`` at the end: nobody ever reads half a file.

    Whatever goes wrong inside leaves ``file`` as it was.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.stem}-{uuid.uuid4().hex}.part")
        try:
            with part.open("x+b") as stream:
                yield stream
            os.replace(part, file)
        except BaseException:  # a user's Ctrl-C too leaves nothing behind
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(
            f"{file}: cannot be written ({error}). Pass cache= another folder, or cache=False."
        ) from error
