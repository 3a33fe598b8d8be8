"""Prophesee's .dat files, in which N-Cars comes: a text header, then eight bytes for each event."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .camera import as_events

WORDS = np.dtype([("t", "<u4"), ("address", "<u4")])
EVENT_KINDS = (0, 12)  # generic 2D events, and those of contrast detection
# First bit and number of bits of x, y and polarity in the address word.
OLD_FIELDS = ((0, 9), (9, 8), (17, 1))
FIELDS = ((0, 14), (14, 14), (28, 1))  # since version 2


def read_dat(file: str | Path) -> NDArray[np.void]:
    """Events of a .dat file in Tonic's format; times start where the file's do.

    Raises :class:`~spquant_plugin.errors.DataError` where the file is none or is cut short.
    """
    content = Path(file).read_bytes()
    version, start = _header(content)
    kind, size = content[start : start + 2].ljust(2, b"\xff")
    if kind not in EVENT_KINDS or size != WORDS.itemsize:
        raise DataError(
            f"events of type {kind} and {size} bytes: must be of type 0 or 12 and 8 bytes."
        )
    body = content[start + 2 :]
    if len(body) % WORDS.itemsize:
        raise DataError(f"{len(body)} bytes of events: must be a multiple of 8. It is cut short.")
    words = np.frombuffer(body, WORDS)
    fields = FIELDS if version >= 2 else OLD_FIELDS
    x, y, p = ((words["address"] >> low) & (2**bits - 1) for low, bits in fields)
    return as_events(x, y, continued(words["t"]), p)


def continued(times: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Times of 32 bits as a count that does not start again from 0 where they overflow.

    >>> import numpy as np
    >>> continued(np.array([2**32 - 5, 3, 1, 10], dtype=np.uint32)).tolist()
    [4294967291, 4294967299, 4294967297, 4294967306]
    """
    # As signed numbers, a step back of nearly 2^32 is a small one forward; jitter stays jitter.
    steps = np.diff(times.astype(np.uint32)).view(np.int32).astype(np.int64)
    first = times[:1].astype(np.int64)
    return np.concatenate([first, first + np.cumsum(steps)]) if len(times) else first


def _header(content: bytes) -> tuple[int, int]:
    """Version of the format, 0 where the header has none, and where the header ends."""
    version, start = 0, 0
    while content[start : start + 1] == b"%":
        end = content.find(b"\n", start) + 1
        if not end:
            raise DataError("the header has no end. It is cut short.")
        found = re.match(rb"%\s*Version\s+(\d+)", content[start:end], re.IGNORECASE)
        version = int(found.group(1)) if found else version
        start = end
    if not start:
        raise DataError(f"it starts with {content[:8]!r}: a .dat file starts with '%'.")
    return version, start
