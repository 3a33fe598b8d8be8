"""Which fields each record of a graph has in a file, and how each is written and read.

Reading knows nothing it was not told here: a key too many or too few, or a value of another type,
is an error. Ranges and sizes are the business of :mod:`check`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import FormatError
from ..check.rules import shown
from .container import Json
from .packing import BITS, REAL, TRITS, WHOLE, choose

Put = Callable[[str, Tensor, str, int], None]  # stores a tensor under a name, packed
Take = Callable[[str, str, int, tuple[int, ...], torch.dtype], Tensor]


class Codec(Protocol):
    """Turns a field's value into JSON and back; ``path`` names it, and its tensor."""

    def write(self, value: Any, path: str, put: Put) -> Json: ...

    def read(self, json: Json, path: str, take: Take) -> Any: ...


def wrong(path: str, received: Any, rule: str) -> FormatError:
    """An error about what stands at a place in the file."""
    return FormatError(f"{path} = {shown(received)}: must be {rule}.")


def fields(json: Json, names: set[str], path: str) -> dict[str, Json]:
    """An object with exactly these keys."""
    if not isinstance(json, dict):
        raise wrong(path, json, "a JSON object")
    if set(json) != names:
        odd = sorted(set(json) ^ names)
        raise FormatError(
            f"{path}: {shown(odd[0])} is {'missing' if odd[0] in names else 'not known'}: must "
            f"have exactly the keys {', '.join(sorted(names))}."
        )
    return json


@dataclass(frozen=True)
class Plain:
    """A value that is itself JSON, of one of these types."""

    types: tuple[type, ...]

    def write(self, value: Any, path: str, put: Put) -> Json:
        return value

    def read(self, json: Json, path: str, take: Take) -> Any:
        if type(json) not in self.types:
            raise wrong(path, json, " or ".join(kind.__name__ for kind in self.types))
        return json


@dataclass(frozen=True)
class Optional:
    """A value, or null."""

    inner: Codec

    def write(self, value: Any, path: str, put: Put) -> Json:
        return None if value is None else self.inner.write(value, path, put)

    def read(self, json: Json, path: str, take: Take) -> Any:
        return None if json is None else self.inner.read(json, path, take)


@dataclass(frozen=True)
class Many:
    """A tuple of any length."""

    inner: Codec

    def write(self, value: Any, path: str, put: Put) -> Json:
        return [self.inner.write(part, f"{path}.{i}", put) for i, part in enumerate(value)]

    def read(self, json: Json, path: str, take: Take) -> Any:
        if not isinstance(json, list):
            raise wrong(path, json, "a list")
        return tuple(self.inner.read(part, f"{path}.{i}", take) for i, part in enumerate(json))


class Words:
    """A dictionary of text."""

    def write(self, value: Any, path: str, put: Put) -> Json:
        return value

    def read(self, json: Json, path: str, take: Take) -> Any:
        if not isinstance(json, dict) or not all(isinstance(x, str) for x in json.values()):
            raise wrong(path, json, "a JSON object of text")
        return json


@dataclass(frozen=True)
class Whole:
    """A tensor of whole numbers; ``dtype`` is the type it has in the graph."""

    dtype: torch.dtype

    def write(self, value: Any, path: str, put: Put) -> Json:
        packing, lowest = choose(value)
        put(path, value, packing, lowest)
        return {"packing": packing, "lowest": lowest, "shape": list(value.shape)}

    def read(self, json: Json, path: str, take: Take) -> Any:
        found = fields(json, {"packing", "lowest", "shape"}, path)
        packing, lowest = found["packing"], found["lowest"]
        if packing not in (*BITS, TRITS, *WHOLE):
            raise wrong(f"{path}.packing", packing, "a packing of whole numbers")
        fits = type(lowest) is int and -(2**63) <= lowest < 2**63 - 16
        if not fits or (packing == TRITS and lowest != -1) or (packing in WHOLE and lowest != 0):
            raise wrong(f"{path}.lowest", lowest, "-1 of trits, 0 of int8 to int64, else 64 bit")
        return take(path, packing, lowest, _shape(found["shape"], path), self.dtype)


class Real:
    """A tensor of floating-point numbers, of the type that it has in the graph."""

    def write(self, value: Any, path: str, put: Put) -> Json:
        packing = str(value.dtype).removeprefix("torch.")
        put(path, value, packing, 0)
        return {"packing": packing, "shape": list(value.shape)}

    def read(self, json: Json, path: str, take: Take) -> Any:
        found = fields(json, {"packing", "shape"}, path)
        packing = found["packing"]
        if packing not in tuple(REAL):
            raise wrong(f"{path}.packing", packing, f"one of {', '.join(REAL)}")
        return take(path, packing, 0, _shape(found["shape"], path), getattr(torch, packing))


def _shape(json: Json, path: str) -> tuple[int, ...]:
    if not isinstance(json, list) or len(json) > 8:
        raise wrong(f"{path}.shape", json, "a list of at most 8 numbers")
    if not all(type(side) is int and 1 <= side < 2**31 for side in json):
        raise wrong(f"{path}.shape", json, "whole numbers of at least 1")
    return tuple(json)


class Argument:
    """What stands in a step of float arithmetic: a tensor, a number or nothing."""

    def write(self, value: Any, path: str, put: Put) -> Json:
        return Real().write(value, path, put) if isinstance(value, Tensor) else value

    def read(self, json: Json, path: str, take: Take) -> Any:
        if isinstance(json, dict):
            return Real().read(json, path, take)
        return Plain((str, float, type(None))).read(json, path, take)


@dataclass(frozen=True)
class Record:
    """A record by its fields, each of which a file must have."""

    kind: type
    fields: dict[str, Codec]

    def write(self, value: Any, path: str, put: Put) -> Json:
        return {
            name: codec.write(getattr(value, name), f"{path}.{name}", put)
            for name, codec in self.fields.items()
        }

    def read(self, json: Json, path: str, take: Take) -> Any:
        found = fields(json, set(self.fields), path)
        return self.kind(
            **{
                name: codec.read(found[name], f"{path}.{name}", take)
                for name, codec in self.fields.items()
            }
        )
