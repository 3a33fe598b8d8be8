"""Files of networks taken apart and put together again, by the description of the format alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BYTES = {"U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclasses.dataclass
class Parts:
    """A file in parts: any of them may be changed before it is put together."""

    metadata: dict[str, Any]
    network: Any
    tensors: dict[str, list[Any]]  # dtype, shape, bytes


def take_apart(content: bytes) -> Parts:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    data = content[8 + size :]
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensors[name] = [entry["dtype"], entry["shape"], bytearray(data[begin:end])]
    network = json.loads(metadata.pop("network"))
    del tensors["checksum"]
    return Parts(metadata, network, tensors)


def put_together(parts: Parts, header: Callable[[Any], Any] = lambda header: header) -> bytes:
    """The file, with a checksum that fits; ``header`` changes the header last."""
    metadata = {**parts.metadata, "network": json.dumps(parts.network)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, values) in [*parts.tensors.items(), ("checksum", ("U8", [32], b""))]:
        end = len(data) + (32 if name == "checksum" else len(values))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += values
    return sealed(json.dumps(header(entries)).encode(), data)


def sealed(header: bytes, data: bytes) -> bytes:
    content = len(header).to_bytes(8, "little") + header + data
    return content + hashlib.sha256(content).digest()


def edit(path: Path, change: Callable[[Parts], Any]) -> None:
    """Change a file and repair its checksum."""
    parts = take_apart(path.read_bytes())
    change(parts)
    path.write_bytes(put_together(parts))


def numbers(parts: Parts, name: str, described: Any) -> list[int]:
    """The whole numbers of a tensor, digit by digit."""
    _, _, raw = parts.tensors[name]
    packing, lowest = described["packing"], described["lowest"]
    count = math.prod(described["shape"])
    if packing.startswith("int"):
        width = int(packing[3:]) // 8
        starts = range(0, len(raw), width)
        return [int.from_bytes(raw[i : i + width], "little", signed=True) for i in starts]
    base, per_byte = (3, 5) if packing == "trits" else (2 ** int(packing[0]), 8 // int(packing[0]))
    codes = [byte // base**i % base for byte in raw for i in range(per_byte)]
    return [lowest + code for code in codes[:count]]


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in every field, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one) if field.init]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other
