"""The published files of CIFAR: pickles, of which nothing but names, numbers and pixels is read."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

PIXELS = 3 * 32 * 32
GET_ANEW = "Unpack the archive again, or get it anew."


def read_batches(
    folder: Path,
    files: Iterable[tuple[str, str, int]],
    key: str,
    classes: int,
    check: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``[N, 3, 32, 32]`` and labels ``[N]`` of several files.

    ``files`` holds names, published checksums and the numbers of images that were published. A file
    with as many images must be the published one, byte for byte, unless ``check`` is False.
    """
    images, labels = [], []
    for name, checksum, count in files:
        path = folder / name
        raw = _bytes(path)
        pixels, numbers = _batch(path, raw, key, classes)
        if check and len(pixels) == count and hashlib.md5(raw).hexdigest() != checksum:
            raise DataError(
                f"{path}: holds {count:,} images as published, and other bytes than published (its "
                f"md5 is not {checksum}). {GET_ANEW} If you wrote it yourself, pass check=False."
            )
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(numbers)
    return np.concatenate(images), np.concatenate(labels)


def read_names(path: Path, key: str) -> tuple[str, ...]:
    """Names of the classes, in the order of their labels."""
    names = _unpickled(path, _bytes(path)).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise DataError(f"{path}: must hold the names of the classes as {key!r}. {GET_ANEW}")
    return tuple(names)


def _batch(
    path: Path, raw: bytes, key: str, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    held = _unpickled(path, raw)
    pixels, numbers = held.get("data"), held.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        what = getattr(pixels, "dtype", type(pixels).__name__)
        raise DataError(f"{path}: data is {what}: must be bytes [images, {PIXELS}]. {GET_ANEW}")
    if pixels.shape[1] != PIXELS or not len(pixels):
        raise DataError(
            f"{path}: data has the shape {pixels.shape}: must be [images, {PIXELS}], that is "
            f"32 x 32 pixels in three colours. {GET_ANEW}"
        )
    whole = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    if not whole or len(numbers or ()) != len(pixels):
        raise DataError(
            f"{path}: must hold one whole number as {key!r} for each of its {len(pixels)} images. "
            f"{GET_ANEW}"
        )
    labels = np.array(numbers, dtype=np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{path}: {key} from {labels.min()} to {labels.max()}: must lie in 0 to "
            f"{classes - 1}, as there are {classes} names of classes. {GET_ANEW}"
        )
    return pixels, labels


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). Make it readable.") from error


def _unpickled(path: Path, raw: bytes) -> dict[str, Any]:
    """The dictionary that a file holds; its text is that of Python 2, as in the published files."""
    try:
        held = _Pixels(io.BytesIO(raw), encoding="latin1").load()
    except _Forbidden as error:
        raise DataError(
            f"{path}: asks for {error} when it is opened. A file of CIFAR holds names, numbers and "
            f"pixels, and nothing else is opened here. {GET_ANEW}"
        ) from None
    except Exception as error:  # damage shows in a dozen ways, from pickle and from numpy
        raise DataError(
            f"{path}: damaged or no file of CIFAR ({type(error).__name__}: {error}). {GET_ANEW}"
        ) from error
    if not isinstance(held, dict):
        raise DataError(f"{path}: holds {type(held).__name__}: must be a dict. {GET_ANEW}")
    return held


class _Forbidden(Exception):
    """A pickle names something that is neither an array nor text."""


class _Pixels(pickle.Unpickler):
    """Knows arrays of numpy and text, by the names that they have had; runs nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any] | type:
        known = _KNOWN.get(name)
        if known is None or module.replace("numpy._core", "numpy.core") != known[0]:
            raise _Forbidden(f"{module}.{name}")
        return known[1]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them for Python 2 to read."""
    return text.encode(encoding)


_KNOWN: dict[str, tuple[str, Callable[..., Any] | type]] = {
    "_reconstruct": ("numpy.core.multiarray", np.zeros(0).__reduce__()[0]),  # type: ignore[dict-item]
    "_frombuffer": ("numpy.core.numeric", np.zeros(1).__reduce_ex__(5)[0]),  # type: ignore[dict-item]
    "ndarray": ("numpy", np.ndarray),
    "dtype": ("numpy", np.dtype),
    "encode": ("_codecs", _encode),
}
