"""The bytes of a file: a safetensors container whose last tensor is a checksum of all before it.

Written and read here and not by the package ``safetensors``, which says neither how large a header
may be nor what is wrong in words that name the file; ``safetensors.safe_open`` reads the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ..check.rules import shown

# Bytes of one number of each type; all are little-endian.
TYPES = {"U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
CHECKSUM = "checksum"
DIGEST = 32
LARGEST_FILE = 2**31 - 1
LARGEST_HEADER = 2**21
DEEPEST = 16
MARKS = 200_000  # commas, colons and brackets of a JSON text
# Text, never read twice even where its end is missing, or a mark.
TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{},:]', re.DOTALL)

Json = Any
Array = tuple[str, tuple[int, ...], bytes]  # type, shape, and the numbers


@dataclass(frozen=True)
class Stored:
    """Where a tensor stands in the data behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands in front of the data."""

    metadata: dict[str, str]
    tensors: dict[str, Stored]
    bytes: int


# --- JSON ---------------------------------------------------------------------------------------


def write_json(value: Json) -> str:
    """The one text of a value: keys sorted, no spaces, ASCII."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def read_json(text: str, what: str) -> Json:
    """A value that is neither deep nor large, without repeated keys or numbers that are none."""
    marks, depth = 0, 0
    for found in TOKENS.finditer(text):
        mark = found[0][0]
        marks += mark != '"'
        depth += (mark in "[{") - (mark in "]}")
        if depth > DEEPEST or marks > MARKS:
            raise FormatError(
                f"{what}: {depth} levels and {marks} marks of JSON or more: at most {DEEPEST} and "
                f"{MARKS} are read."
            )
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: is no JSON ({error}).") from error


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


# --- writing ------------------------------------------------------------------------------------


def assemble(metadata: dict[str, str], tensors: dict[str, Array]) -> bytes:
    """The whole file: large types first, so that each tensor is aligned, and the checksum last."""
    wide = sorted(tensors, key=lambda name: -TYPES[tensors[name][0]])
    entries: dict[str, Json] = {"__metadata__": metadata}
    parts, place = [], 0
    for name in wide:
        dtype, shape, part = tensors[name]
        entries[name] = _entry(dtype, list(shape), place, place + len(part))
        parts.append(part)
        place += len(part)
    entries[CHECKSUM] = _entry("U8", [DIGEST], place, place + DIGEST)
    header = write_json(entries).encode()
    header += b" " * (-len(header) % 8)
    size = 8 + len(header) + place + DIGEST
    if len(header) > LARGEST_HEADER or size > LARGEST_FILE:
        raise FormatError(
            f"{len(header)} bytes of header, {size} in all: a file holds at most {LARGEST_HEADER} "
            f"and {LARGEST_FILE}. Save a smaller network, or one with a smaller sample."
        )
    content = len(header).to_bytes(8, "little") + header + b"".join(parts)
    return content + hashlib.sha256(content).digest()


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- reading ------------------------------------------------------------------------------------


def header_bytes(first: bytes, size: int) -> int:
    """Length of the header of a file of ``size`` bytes, from its first eight."""
    if len(first) < 8 or size < 8 + DIGEST:
        raise FormatError(f"{size} bytes: a file of a network holds more. It was cut off.")
    if size > LARGEST_FILE:
        raise FormatError(f"{size} bytes: at most {LARGEST_FILE} are read.")
    length = int.from_bytes(first, "little")
    if length > min(LARGEST_HEADER, size - 8 - DIGEST):
        raise FormatError(
            f"a header of {length} bytes in a file of {size}: must fit the file, and be at most "
            f"{LARGEST_HEADER}. This is no safetensors file, or it was cut off."
        )
    return length


def parse_header(raw: bytes, size: int) -> Header:
    """The header, if its tensors fill the rest of ``size`` bytes without gap or overlap."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError(f"header: is not ASCII ({error}).") from error
    entries = read_json(text, "header")
    if not isinstance(entries, dict):
        raise FormatError(f"header: is a {type(entries).__name__}: must be a JSON object.")
    metadata = entries.pop("__metadata__", None)
    fits = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if not fits:
        raise FormatError("header: has no __metadata__ of text. This is no file of a network.")
    tensors = {name: _stored(name, entry) for name, entry in entries.items()}
    room = size - 8 - len(raw)
    place = 0
    for name, stored in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if stored.begin != place:
            raise FormatError(
                f"{shown(name)}: begins at byte {stored.begin} of the data: must begin at {place}, "
                "behind the tensor before it."
            )
        place = stored.end
    if place != room:
        raise FormatError(
            f"{room} bytes of data: the tensors of the header fill {place}. "
            "The file was cut off, or something was added to it."
        )
    if tensors.get(CHECKSUM) != Stored("U8", (DIGEST,), room - DIGEST, room):
        raise FormatError(f"{CHECKSUM}: must be the last tensor, {DIGEST} bytes of U8.")
    return Header(metadata, tensors, 8 + len(raw))


def _stored(name: str, entry: Json) -> Stored:
    where, keys = shown(name), {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise FormatError(f"{where}: must have exactly the keys {sorted(keys)}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise FormatError(f"{where}: dtype {shown(dtype)}: must be one of {', '.join(TYPES)}.")
    if not _counts(shape, 1) or len(shape) > 8:
        raise FormatError(f"{where}: shape must be at most 8 whole numbers of at least 1.")
    if not _counts(offsets, 0) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets must be two whole numbers.")
    begin, end = offsets
    wanted = math.prod(shape) * TYPES[dtype]
    if end - begin != wanted:
        raise FormatError(
            f"{where}: data_offsets span {end - begin} bytes: {dtype} of shape {shape} takes "
            f"{wanted}."
        )
    return Stored(dtype, tuple(shape), begin, end)


def _counts(value: Json, least: int) -> bool:
    largest = LARGEST_FILE
    return isinstance(value, list) and all(type(x) is int and least <= x <= largest for x in value)


def check_sum(first: bytes, header: bytes, data: bytes) -> None:
    """Compare the checksum with the whole file before it."""
    digest = hashlib.sha256(first)
    digest.update(header)
    digest.update(memoryview(data)[:-DIGEST])
    if digest.digest() != data[-DIGEST:]:
        raise FormatError(
            "the checksum is not that of the content: the file was damaged or altered."
        )
