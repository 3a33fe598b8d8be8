"""Where each value lies in the memory of the C network: buffers share what they do not need at
the same time.

There is one array for each width of numbers, since C forbids to read bytes as wider ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..graph import ChannelDecision, Convolution, Dense, Graph, Neuron, Node, Reshape, size
from ..steps import variants
from .stages import Stage, gate_of, grid

# C type of each storage, and how many bytes one number takes; bits are stored eight to a byte.
STORED = {"BIT": "uint8_t", "U8": "uint8_t", "S8": "uint8_t", "U16": "int16_t"} | {
    "S16": "int16_t",
    "S32": "int32_t",
}
POOLS = {"uint8_t": ("spq_bytes", 1), "int16_t": ("spq_halves", 2), "int32_t": ("spq_words", 4)}
RANGES = {
    "U8": (0, 2**8 - 1),
    "S8": (-(2**7), 2**7 - 1),
    "U16": (0, 2**16 - 1),
    "S16": (-(2**15), 2**15 - 1),
    "S32": (-(2**31), 2**31 - 1),
}
# What a layer's sums of some rows may take; one row they always take.
ROWS_BYTES = 1024

Key = tuple[str, str]  # what it is for, name of the node


def narrowest(low: int, high: int, among: Iterable[str] = RANGES) -> str:
    """Storage that holds all of these numbers.

    >>> narrowest(0, 200), narrowest(-1, 200), narrowest(0, 300, ("S8", "S16", "S32"))
    ('U8', 'S16', 'S16')
    """
    return next(name for name in among if RANGES[name][0] <= low and high <= RANGES[name][1])


def storage(node: Node) -> str:
    """Of a value that is kept whole."""
    return "BIT" if node.binary else narrowest(node.low, node.high)


@dataclass(frozen=True)
class Buffer:
    """Numbers that are needed from one stage to another, both included."""

    key: Key
    storage: str
    count: int
    first: int
    last: int

    @property
    def length(self) -> int:
        """Numbers of its array that it takes."""
        return -(-self.count // 8) if self.storage == "BIT" else self.count


@dataclass(frozen=True)
class Memory:
    """Where buffers begin in their arrays, and how long the arrays are."""

    offsets: dict[Key, int]
    storages: dict[Key, str]
    lengths: dict[str, int]  # by C type
    state_bytes: int

    def address(self, key: Key) -> str:
        """C expression of a buffer's begin."""
        kind = STORED[self.storages[key]]
        return f"{POOLS[kind][0]} + {self.offsets[key]}"

    @property
    def bytes(self) -> int:
        """All arrays together, without the states."""
        return sum(POOLS[kind][1] * length for kind, length in self.lengths.items())


def source_of(graph: Graph, name: str) -> Node:
    """The node that stores a value: what a reshape reads is not stored again."""
    node = graph[name]
    while isinstance(node, Reshape):
        node = graph[node.inputs[0]]
    return node


def state_bytes(neuron: Neuron) -> int:
    """Bytes of its packed states."""
    return -(-size(neuron.shape) * neuron.state_bits // 8)


def accumulator(graph: Graph, node: Convolution | Dense) -> str:
    """Storage that holds every sum of a layer, also on the way to it."""
    source = graph[node.inputs[0]]
    each = [one.accumulator_bits(source.low, source.high) for one in variants(graph, node.name)]
    return "S16" if max(int(bits.max()) for bits in each) == 16 else "S32"


def rows_held(graph: Graph, node: Node) -> int:
    """Rows that a node's row buffer holds, a power of two.

    A layer unpacks its weights once for all of them, so it holds as many as cost little memory.
    """
    channels, rows, columns = grid(node.shape)
    if not isinstance(node, Convolution | Dense):
        return 1
    row = channels * columns * POOLS[STORED[accumulator(graph, node)]][1]
    held = 1
    while held < rows and 2 * held * row <= ROWS_BYTES:
        held *= 2
    return held


def place(graph: Graph, order: list[Stage]) -> Memory:
    """Give every buffer its place: the largest first, each as low as it fits."""
    lengths, offsets, storages = {}, {}, {}
    states = 0
    for neuron in graph.neurons:
        offsets["states", neuron.name] = states
        states += state_bytes(neuron)
    buffers = [*_values(graph, order), *_rows(graph, order), *_helpers(graph, order)]
    for kind in POOLS:
        fixed: list[tuple[int, Buffer]] = []
        mine = [buffer for buffer in buffers if STORED[buffer.storage] == kind]
        for buffer in sorted(mine, key=lambda buffer: -buffer.length):
            begin = _lowest(buffer, fixed)
            fixed.append((begin, buffer))
            offsets[buffer.key], storages[buffer.key] = begin, buffer.storage
        lengths[kind] = max((begin + buffer.length for begin, buffer in fixed), default=0)
    return Memory(offsets, storages, lengths, states)


def _lowest(buffer: Buffer, fixed: list[tuple[int, Buffer]]) -> int:
    begin = 0
    for other, placed in sorted(fixed, key=lambda pair: pair[0]):
        together = placed.first <= buffer.last and buffer.first <= placed.last
        if together and begin + buffer.length > other:
            begin = max(begin, other + placed.length)
    return begin


def _values(graph: Graph, order: list[Stage]) -> Iterable[Buffer]:
    """Values that are kept whole, until the last stage that reads them."""
    ends: dict[str, int] = {}
    for index, stage in enumerate(order):
        for node in stage.members:
            read = [*node.inputs, *([node.gate] if isinstance(node, Neuron) and node.gate else [])]
            for name in (*read, node.name):
                ends[source_of(graph, name).name] = index
    for index, stage in enumerate(order):
        node = stage.root
        if not isinstance(node, Reshape):
            yield Buffer(
                ("value", node.name), storage(node), size(node.shape), index, ends[node.name]
            )


def _rows(graph: Graph, order: list[Stage]) -> Iterable[Buffer]:
    """Rows of what is not kept whole, and of every convolution's sums."""
    for index, stage in enumerate(order):
        for node in stage.members:
            channels, _, columns = grid(node.shape)
            if isinstance(node, Convolution | Dense):
                kind = accumulator(graph, node)
            elif node is not stage.root:
                kind = narrowest(node.low, node.high)
            else:
                continue
            count = rows_held(graph, node) * channels * columns
            yield Buffer(("row", node.name), kind, count, index, index)


def _helpers(graph: Graph, order: list[Stage]) -> Iterable[Buffer]:
    """What kernels need while they run."""
    for index, stage in enumerate(order):
        for node in stage.members:
            if isinstance(node, Convolution | Dense):
                columns = node.weight.shape[3] if node.weight.ndim > 3 else 1
                filters = node.weight.shape[0] // getattr(node, "groups", 1)
                yield Buffer(("unpacked", node.name), "S8", columns * filters, index, index)
                if gate_of(graph, node):
                    count = node.weight.shape[0] + 1
                    yield Buffer(("open", node.name), "S32", count, index, index)
            elif isinstance(node, Neuron) and node.pixels is not None:
                outcomes = torch.cat([one.outcomes for one in variants(graph, node.name)])
                ends = (node.lowest, node.highest, *outcomes[:, 2].tolist())
                most = max(map(abs, ends))
                kind = narrowest(0, node.shape[0] * most**2, ("U16", "S32"))
                count = size(node.shape[1:])
                yield Buffer(("importance", node.name), kind, count, index, index)
            elif isinstance(node, ChannelDecision):
                count = graph[node.inputs[0]].shape[0]
                yield Buffer(("sums", node.name), "S32", count, index, index)
