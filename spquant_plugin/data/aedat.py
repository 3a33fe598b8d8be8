"""AEDAT files of DVS-CIFAR10: version 2.0 as first published, 4.0 as Tonic's archive has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingHostError
from .camera import as_events
from .dat import continued

WORDS = np.dtype([("address", ">u4"), ("t", ">u4")])
LAST = 127  # the sensor has 128 x 128 pixels
SPECIAL = 1 << 15  # synchronisation and the like, no pixel's event


def read_aedat(file: str | Path) -> NDArray[np.void]:
    """Events of a DVS128 recording in Tonic's format, whichever version its first line names.

    Version 2.0 is turned as SpikingJelly turns it: columns and rows change places and both count
    from the other end, and a polarity bit of 0 means brighter. Raises
    :class:`~spquant_plugin.errors.DataError` where the file is no AEDAT file or is cut short, and
    :class:`~spquant_plugin.errors.MissingHostError` where version 4.0 needs ``aedat``.
    """
    with Path(file).open("rb") as stream:
        first = stream.readline(64)
    if first.startswith(b"#!AER-DAT2"):
        return _version_2(Path(file).read_bytes())
    if first.startswith(b"#!AER-DAT4"):
        return _version_4(file)
    raise DataError(f"it starts with {first[:16]!r}: must be #!AER-DAT2.0 or #!AER-DAT4.0.")


def require_aedat() -> None:
    """Raise where the package that reads version 4.0 is not installed."""
    try:
        import aedat  # noqa: F401
    except ImportError:
        raise MissingHostError(
            "AEDAT 4.0 files are read by the package aedat, which is not installed. "
            "Run: python -m pip install aedat"
        ) from None


def _version_2(content: bytes) -> NDArray[np.void]:
    start = 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start) + 1
        if not end:
            raise DataError("the header has no end. It is cut short.")
        start = end
    body = content[start:]
    if len(body) % WORDS.itemsize:
        raise DataError(f"{len(body)} bytes of events: must be a multiple of 8. It is cut short.")
    words = np.frombuffer(body, WORDS)
    address, t = words["address"].astype(np.int64), continued(words["t"])
    if len(address) and address.max() >= 2 * SPECIAL:
        raise DataError(f"address {address.max():#x}: must have 16 bits, as a DVS128 gives them.")
    pixel = (address & SPECIAL) == 0
    address, t = address[pixel], t[pixel]
    across, along = (address >> 1) & LAST, (address >> 8) & LAST
    return as_events(LAST - along, LAST - across, t, (address & 1) == 0)


def _version_4(file: str | Path) -> NDArray[np.void]:
    require_aedat()
    from tonic.io import read_aedat4

    _check_description(Path(file))
    try:
        held = read_aedat4(str(file))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the decoder is written in Rust: its panics are no Exception
        raise DataError(f"it cannot be decoded ({type(error).__name__}: {error}).") from error
    t, x, y, p = (held[name] for name in held.dtype.names)
    return as_events(x, y, t.astype(np.int64), p)


def _check_description(file: Path) -> None:
    """The streams are described in XML; the decoder ends the whole process where it is no text."""
    with file.open("rb") as stream:
        stream.seek(len(b"#!AER-DAT4.0\r\n"))
        header = stream.read(int.from_bytes(stream.read(4), "little"))
    _, _, described = header.partition(b"<dv")
    try:
        described.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"its description is no text ({error}).") from error
