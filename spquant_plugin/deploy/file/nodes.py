"""The fields of a graph in a file: one line for each kind of node."""

from __future__ import annotations

from typing import Any

import torch

from .. import graph as g
from .container import Json
from .fields import (
    Argument,
    Codec,
    Many,
    Optional,
    Plain,
    Put,
    Real,
    Record,
    Take,
    Whole,
    Words,
    wrong,
)

text, number, flag = Plain((str,)), Plain((int,)), Plain((bool,))
numbers, real = Many(number), Plain((int, float))
small, wide = Whole(torch.int8), Whole(torch.int32)

COMMON: dict[str, Codec] = {
    "name": text,
    "inputs": Many(text),
    "shape": numbers,
    "low": number,
    "high": number,
}
WINDOW: dict[str, Codec] = {"kernel": numbers, "stride": numbers, "padding": numbers}
KINDS: dict[type[g.Node], dict[str, Codec]] = {
    g.Input: {"quantizer": Optional(Many(real))},
    g.Convolution: {
        "weight": small,
        "bits": number,
        "stride": numbers,
        "padding": numbers,
        "dilation": numbers,
        "groups": number,
    },
    g.Dense: {"weight": small, "bits": number},
    g.SumPool: WINDOW,
    g.MaxPool: {**WINDOW, "dilation": numbers},
    g.Reshape: {},
    g.Concat: {},
    g.Add: {"factors": Many(wide)},
    g.Affine: {"multiplier": wide, "offset": wide},
    g.Product: {},
    g.ChannelDecision: {
        "reads": text,
        "weight": small,
        "threshold": Whole(torch.int64),
        "bits": number,
    },
    g.Mask: {},
    g.Neuron: {
        "lowest": number,
        "highest": number,
        "remembers": flag,
        "sign": small,
        "breaks": wide,
        "outcomes": Whole(torch.int16),
        "counts": Optional(numbers),
        "gate": Optional(text),
        "closed": Optional(Whole(torch.uint8)),
        "pixels": Optional(Record(g.PixelMask, {"score": text, "masked": number})),
        "semantics": Words(),
    },
}
RECORDS = {kind.__name__: Record(kind, {**COMMON, **own}) for kind, own in KINDS.items()}


class _Node:
    """A node of any kind. Its tensors are named after it."""

    def write(self, value: Any, path: str, put: Put) -> Json:
        return {"kind": value.kind, **RECORDS[value.kind].write(value, value.name, put)}

    def read(self, json: Json, path: str, take: Take) -> Any:
        if not isinstance(json, dict):
            raise wrong(path, json, "a JSON object")
        kind, name = json.get("kind"), json.get("name")
        if not isinstance(kind, str) or kind not in RECORDS:
            raise wrong(f"{path}.kind", kind, f"one of {', '.join(RECORDS)}")
        own = {key: value for key, value in json.items() if key != "kind"}
        return RECORDS[kind].read(own, name if isinstance(name, str) else path, take)


OUTPUT = Record(
    g.Output,
    {
        "value": text,
        "reads": text,
        "unit": Real(),
        "steps": Many(Many(Argument())),
        "over_time": Optional(text),
        "gate": Optional(text),
    },
)
GRAPH = Record(
    g.Graph,
    {
        "nodes": Many(_Node()),
        "outputs": Many(OUTPUT),
        "takes": text,
        "repeats": number,
        "single": flag,
        "model": text,
    },
)
SAMPLE = Whole(torch.int32)
