"""Thousands of damaged and edited files: each is an error, or under a repaired checksum a network
that keeps every rule; never a crash, a hang, a large allocation or a wrong answer.
"""

from __future__ import annotations

import contextlib
import copy
import random
import time

import pytest
import torch

from spquant_plugin.deploy.check.whole import check_graph
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from spquant_plugin.deploy.file.store import load_graph, save_graph
from spquant_plugin.errors import FormatError

from .format_editing import Parts, put_together, same, take_apart
from .graphs import chain, everything, line, random_input

GRAPHS = {
    "chain": lambda: chain(1, size=4, width=3),
    "everything": lambda: everything(4),
    "line": lambda: line(2),
}
ROOM = 2**28  # bytes of address space that reading all files may take more
SLOWEST = 5.0  # seconds for one file: a hang, and no slow machine


@pytest.fixture(scope="module", params=GRAPHS)
def original(request, tmp_path_factory):
    """Bytes of a sound file, and a path to write others to."""
    path = tmp_path_factory.mktemp("fuzz") / "net"
    graph = GRAPHS[request.param]()
    save_graph(graph, random_input(graph, 2, 1), path)
    return path.read_bytes(), path


@contextlib.contextmanager
def little_memory():
    """Let every large allocation fail, where the system can."""
    resource = pytest.importorskip("resource")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def loaded(path, content, **options):
    """What a file loads as, None where it is refused, in bounded time."""
    path.write_bytes(content)
    started = time.perf_counter()
    try:
        return load_graph(path, **options)
    except FormatError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 4000
        return None
    finally:
        assert time.perf_counter() - started < SLOWEST


def test_little_memory_is_little():
    with little_memory(), pytest.raises((MemoryError, RuntimeError)):
        torch.zeros(2 * ROOM, dtype=torch.uint8)


# --- damage -------------------------------------------------------------------------------------


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def in_the_header(content: bytes, draw: random.Random) -> bytes:
    """A flipped bit where the description is, most of all in its length."""
    size = 8 + int.from_bytes(content[:8], "little")
    place = draw.randrange(draw.choice((8, size)))
    damaged = bytearray(content)
    damaged[place] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def spliced(content: bytes, draw: random.Random) -> bytes:
    """Bytes lost, put in twice, exchanged, or overwritten."""
    begin, end = sorted(draw.sample(range(len(content) + 1), 2))
    end = min(end, begin + draw.choice((1, 8, 100, 10_000)))
    part, kind = content[begin:end], draw.randrange(4)
    if kind == 0:
        return content[:begin] + content[end:]
    if kind == 1:
        return content[:end] + part + content[end:]
    if kind == 2:
        return content[:begin] + part[::-1] + content[end:]
    return content[:begin] + draw.randbytes(len(part)) + content[end:]


DAMAGES = [truncated, flipped, flipped, in_the_header, spliced]


def test_every_damaged_file_is_an_error(original):
    content, path = original
    draw, count = random.Random(11), 0
    with little_memory():
        while count < 400:
            damaged = draw.choice(DAMAGES)(content, draw)
            if damaged == content:
                continue
            count += 1
            assert loaded(path, damaged) is None, f"damage {count} was not seen"


# --- edits under a repaired checksum ------------------------------------------------------------

WEIRD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**63,
    -(2**63),
    10**30,
]
WEIRD += [0.5, -0.0, 1e308, "", "x", "input", "trits", "1 bit", "2 bit", "int8", "int32", [], {}]
WEIRD += [[0], [1, 1], [2**31 - 1] * 8, "9" * 3000, "\x00", "\ud800"]


def places(value, above=()):
    """Paths of all values below one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in pairs:
        yield (*above, key)
        if isinstance(below, dict | list) and below:
            yield from places(below, (*above, key))


def edit_description(parts: Parts, draw: random.Random) -> None:
    """One value of the description: another one, gone, doubled, or exchanged with one elsewhere."""
    # Half of the edits go where a graph is, not to the words around it.
    root = (
        parts.network["graph"] if draw.random() < 0.8 else {"n": parts.network, "m": parts.metadata}
    )
    every = list(places(root))
    holder, key = reach(root, draw.choice(every))
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 1:
        holder[draw.choice(("new", "weight", "name"))] = copy.deepcopy(holder[key])
    elif kind == 2:
        other, place = reach(root, draw.choice(every))
        holder[key] = copy.deepcopy(other[place])
    elif kind in (3, 4) and type(holder[key]) is int:
        holder[key] += draw.choice((-1, 1, 2, -100, 100))
    else:
        holder[key] = draw.choice(WEIRD)
    parts.network = root.get("n", parts.network) if "n" in root else parts.network


def reach(root, path):
    for key in path[:-1]:
        root = root[key]
    return root, path[-1]


def edit_numbers(parts: Parts, draw: random.Random) -> None:
    """Some bytes of a tensor, all of them, or its type."""
    name = draw.choice(sorted(parts.tensors))
    values = parts.tensors[name][2]
    kind = draw.randrange(8)
    if kind == 0:
        values[:] = bytes([draw.randrange(256)]) * len(values)
    elif kind == 1:
        parts.tensors[name][0] = draw.choice(
            ("U8", "I8", "I16", "I32", "I64", "F32", "F16", "BF16")
        )
    elif kind == 2:
        parts.tensors[draw.choice(sorted(parts.tensors))] = parts.tensors.pop(name)
    else:
        for _ in range(draw.choice((1, 1, 5))):
            values[draw.randrange(len(values))] = draw.randrange(256)


def edit_header(header, draw: random.Random):
    """One number of where the tensors stand."""
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = draw.randrange(4)
    if kind == 0:
        entry["shape"] = draw.choice(
            (entry["shape"] * 2, [*entry["shape"], 1], [2**62, 4], [0], [])
        )
    elif kind == 1:
        entry["data_offsets"][draw.randrange(2)] += draw.choice((-8, -1, 1, 8, 2**40))
    elif kind == 2:
        other = header[draw.choice([name for name in header if name != "__metadata__"])]
        entry["data_offsets"] = list(other["data_offsets"])
    else:
        entry[draw.choice(("dtype", "shape", "data_offsets", "x"))] = draw.choice(WEIRD)
    return header


def runs(graph, sample) -> None:
    """Whatever was loaded keeps every rule, also those of its own bounds, in an engine."""
    check_graph(graph)
    engine = ReferenceEngine(graph)
    names = {node.name for node in graph.nodes}
    for x in (sample, random_input(graph, 2, 1)):
        values = engine.run(x, engine.rest(x.shape[1]), names).values
        for node in graph.nodes:
            value = values[node.name]
            assert value.shape[2:] == node.shape
            assert value.dtype == torch.int32
            assert node.low <= int(value.min()) <= int(value.max()) <= node.high, node.name


def test_every_edited_file_is_an_error_or_a_sound_network(original):
    content, path = original
    graph, sample = load_graph(path) if path.write_bytes(content) else None
    draw, refused, others = random.Random(12), 0, 0
    with little_memory():
        for count in range(300):
            parts = take_apart(content)
            if count % 3 == 0:
                edited = put_together(parts, lambda header: edit_header(header, draw))
            else:
                (edit_description if count % 3 == 1 else edit_numbers)(parts, draw)
                edited = put_together(parts)
            found = loaded(path, edited)
            if found is None:
                refused += 1
            elif not same(found, (graph, sample)):
                others += 1
                runs(*found)
    # Most edits break a rule, and some weights may be others.
    assert refused > 150
    assert others > 0
