"""One file for an integer network: its graph, its packed numbers, a sample and what it answers.

A file is read in this order: its size, the header, the version, the description of the graph, and
only then its numbers. Nothing is allocated that the file's own size does not cover.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...errors import DeployError, FileError, FormatError
from ..check.rules import REMEDY, shown
from ..check.structure import check_structure
from ..check.values import check_values
from ..check.whole import check_graph
from ..graph import Graph
from ..steps import variants
from .container import (
    CHECKSUM,
    Array,
    Header,
    Json,
    assemble,
    check_sum,
    header_bytes,
    parse_header,
    read_json,
    write_json,
)
from .fields import Take, fields
from .later import coded, read_later, write_later
from .nodes import GRAPH, SAMPLE
from .packing import expected, pack, unpack
from .reference import check_sample, check_sample_range, reference, replay

FORMAT = "spquant integer network"
VERSIONS = ("1", "2")  # 2 is of networks whose weights change from step to step
PathLike = str | os.PathLike[str]
# What the words of the graph mean, for people who read a file without this package.
RULES = {
    "numbers": "All arithmetic is on whole numbers; no sum leaves 32 bits.",
    "order": "In each step the nodes run as they are listed; a neuron reads its state, compares, "
    "fires, resets and stores a level.",
    "reset": "What a spike does to the stored level is in the neuron's table; so is its decay.",
    "rest": "Before the first step every neuron has level 0 and has not fired.",
    "ties": "A sum that equals a break has reached it. Of equally important pixels, those of "
    "lowest index are masked first.",
    "padding": "Zeros around sums; around a largest number, nothing.",
}
LATER = {
    "later": "The graph is that of the first step. In a step counted from 0, a weight that has "
    "patterns is levels[code + patterns // 2, step]; what a step has of its own takes the place of "
    "the first step's. There are no further steps.",
}


def save_graph(graph: Graph, sample: Tensor, path: PathLike) -> None:
    """Write a graph, and a sample of whole numbers ``[T, N, *shape]`` with what it answers to it.

    The same graph and sample give the same bytes. An interrupted write leaves the old file.
    """
    target = _path(path)
    check_graph(graph)
    check_sample(graph, sample)
    check_sample_range(graph, sample)
    arrays: dict[str, Array] = {}

    def put(name: str, values: Tensor, packing: str, lowest: int) -> None:
        arrays[name] = pack(values, packing, lowest)

    first, patterns = coded(graph)
    described = {
        "graph": GRAPH.write(first, "graph", put),
        "sample": SAMPLE.write(sample, "sample", put),
        "reference": reference(graph, sample),
        "widths": widths(graph),
        "rules": RULES,
    }
    if graph.later:
        described |= {"later": write_later(graph, patterns, put), "rules": RULES | LATER}
    content = assemble(
        {
            "format": FORMAT,
            "version": VERSIONS[bool(graph.later)],
            "producer": f"spquant_plugin {_version()}",
            "network": write_json(described),
        },
        arrays,
    )
    _write(target, content)


def load_graph(path: PathLike, replay: bool = False) -> tuple[Graph, Tensor]:
    """Read what :func:`save_graph` wrote: the graph and its sample.

    A file that is damaged, altered or of another format raises
    :class:`~spquant_plugin.errors.FormatError`. With ``replay`` the sample runs again and its
    answer is compared with the stored one. The checksum already proves that nothing changed, and a
    run takes longer than all the rest, so that this is off unless asked for; turn it on where a
    machine is new to you.
    """
    target = _path(path)
    try:
        with _opened(target) as stream:
            return _load(stream, os.fstat(stream.fileno()).st_size, replay)
    except (FormatError, DeployError) as error:
        raise FormatError(
            f"{target}: {str(error).removesuffix(REMEDY)} Get the file again, or save the network "
            "again with net.save."
        ) from error


def widths(graph: Graph) -> Json:
    """Bits of each layer's widest accumulator, proven, and of each neuron's packed state."""
    sums = {}
    for layer in graph.layers:
        source = graph[layer.inputs[0]]
        each = [
            one.accumulator_bits(source.low, source.high) for one in variants(graph, layer.name)
        ]
        sums[layer.name] = max(int(bits.max()) for bits in each)
    return {
        "accumulator": sums,
        "state": {neuron.name: neuron.state_bits for neuron in graph.neurons},
    }


# --- reading ------------------------------------------------------------------------------------


def _load(stream: BinaryIO, size: int, again: bool) -> tuple[Graph, Tensor]:
    first = stream.read(8)
    raw = stream.read(header_bytes(first, size))
    header = parse_header(raw, size)
    described = _described(header)
    graph, sample = _assembled(described, header, None)
    check_structure(graph)
    check_sample(graph, sample)
    # One byte more than there should be tells a file that grows.
    data = stream.read(size - header.bytes + 1)
    if len(data) != size - header.bytes:
        raise FormatError("it changed while it was read.")
    check_sum(first, raw, data)
    graph, sample = _assembled(described, header, data)
    check_values(graph)
    check_sample_range(graph, sample)
    if described["widths"] != widths(graph):
        raise FormatError("widths: are not those that follow from the weights.")
    if again:
        replay(graph, sample, described["reference"])
    return graph, sample


def _described(header: Header) -> dict[str, Json]:
    """The description of the network, if this is the version that is read here."""
    found = header.metadata
    if found.get("format") != FORMAT:
        raise FormatError(
            f"format {shown(found.get('format'))}: must be {FORMAT!r}. This is another file."
        )
    version, producer = found.get("version"), found.get("producer")
    if version not in VERSIONS:
        raise FormatError(
            f"version {shown(version)} of the format, written by {shown(producer)}: versions "
            f"{' and '.join(VERSIONS)} are read here. Update spquant_plugin to read a newer one; "
            "load an older one with the program that wrote it, and save the network anew."
        )
    fields(found, {"format", "version", "producer", "network"}, "__metadata__")
    described = read_json(found["network"], "network")
    changes = version != VERSIONS[0]
    keys = {"graph", "sample", "reference", "widths", "rules"} | ({"later"} if changes else set())
    described = fields(described, keys, "network")
    if described["rules"] != RULES | (LATER if changes else {}):
        raise FormatError("rules: are not those of this version of the format.")
    hashes = fields(described["reference"], {"spikes", "readout"}, "reference")
    for name, value in hashes.items():
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise FormatError(f"reference.{name}: must be 64 hexadecimal digits.")
    return described


def _assembled(
    described: dict[str, Json], header: Header, data: bytes | None
) -> tuple[Graph, Tensor]:
    """Graph and sample, without ``data`` with tensors that have a type and a shape only."""
    unused = set(header.tensors) - {CHECKSUM}

    def take(
        name: str, packing: str, lowest: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        if name not in unused:
            raise FormatError(f"{shown(name)}: no tensor of this name, or two that read it.")
        unused.remove(name)
        stored = header.tensors[name]
        wanted = expected(packing, shape)
        if (stored.dtype, stored.shape) != wanted:
            raise FormatError(
                f"{shown(name)}: is {stored.dtype} of shape {stored.shape}: {packing} of shape "
                f"{shape} is {wanted[0]} of shape {wanted[1]}."
            )
        if data is None:
            return torch.empty(shape, dtype=dtype, device="meta")
        try:
            return unpack(stored, data, packing, lowest, shape, dtype)
        except FormatError as error:
            raise FormatError(f"{shown(name)}: {error}") from error

    graph: Any = GRAPH.read(described["graph"], "graph", take)
    if "later" in described:
        graph = _with_later(described["later"], graph, take)
    sample: Any = SAMPLE.read(described["sample"], "sample", take)
    if unused:
        raise FormatError(f"{shown(min(unused))}: a tensor that the network does not have.")
    return graph, sample


def _with_later(json: Json, first: Graph, take: Take) -> Graph:
    check_structure(first)
    return read_later(json, first, take)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file, open for reading."""
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileError(f"{path}: is no file. Pass the path that net.save wrote.")
        stream = path.open("rb")
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path}: cannot be read ({error.strerror}). Pass the path that net.save wrote."
        ) from error
    with stream:
        yield stream


# --- writing ------------------------------------------------------------------------------------


def _path(path: Any) -> Path:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise FileError(f"path = {path!r}: must be the path of a file.")
    return Path(name)


def _write(path: Path, content: bytes) -> None:
    """Write under another name first, so that nobody ever reads half a file."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            with part.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
        except BaseException:  # a user's Ctrl-C too leaves nothing behind
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written ({error.strerror}). Pass a file name in a folder that "
            "there is and that you may write to."
        ) from error


def _version() -> str:
    try:
        return metadata.version("spquant-plugin")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
