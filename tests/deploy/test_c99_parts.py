"""Parts of the C export that need no compiler: packing, stages, and memory that is shared."""

from __future__ import annotations

import itertools

import pytest
import torch

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.c99 import memory as c99_memory
from spquant_plugin.deploy.c99 import stages as c99_stages
from spquant_plugin.deploy.c99.data import pack, pack_fractions, runs, tight

from . import graphs
from .c99_graphs import NAMED


def unpack_trits(byte: int) -> list[int]:
    """As the kernel does."""
    digits = []
    for _ in range(5):
        byte *= 3
        digits.append((byte >> 8) - 1)
        byte &= 255
    return digits


def test_all_five_trits_come_back():
    rows = torch.tensor(list(itertools.product((-1, 0, 1), repeat=5)))
    packed = pack_fractions(rows).flatten().tolist()
    assert [unpack_trits(byte) for byte in packed] == rows.tolist()


def layer(levels: list[int], filters: int = 8, inputs: int = 4) -> g.Dense:
    """All of these weights, over and over."""
    weight = torch.tensor(levels, dtype=torch.int8).repeat(filters * inputs)
    weight = weight[: filters * inputs].view(filters, inputs)
    return g.Dense(name="x", inputs=("y",), shape=(filters,), low=0, high=0, weight=weight)


@pytest.mark.parametrize(
    ("levels", "filters", "format", "bits", "run_bytes"),
    [
        ([-1, 1, -1], 8, "CODES", 1, 1),
        ([-1, 0, 1], 8, "CODES", 2, 2),  # trits take two bytes too
        ([-1, 0, 1], 15, "TRITS", 0, 3),
        ([-2, -1, 0, 1, 4], 8, "CODES", 4, 4),
        ([-64, -4, 0, 4, 64], 8, "CODES", 4, 4),
        (list(range(-9, 9)), 8, "BYTES", 8, 8),
    ],
)
def test_weights_take_the_smallest_form(levels, filters, format, bits, run_bytes):
    packed = pack(layer(levels, filters))
    assert (packed.format, packed.bits, packed.run_bytes) == (format, bits, run_bytes)
    assert packed.data.shape == (4, run_bytes)


def test_runs_hold_the_filters_of_one_input_and_kernel_row():
    weight = torch.arange(-48, 48).to(torch.int8).view(4, 2, 3, 4)
    node = g.Convolution(
        name="x",
        inputs=("y",),
        shape=(4, 1, 1),
        low=0,
        high=0,
        weight=weight,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=2,
    )
    found = runs(node).view(2, 2, 3, 4, 2)  # group, input, row, column, filter
    for group, i, row, column, o in itertools.product(*map(range, (2, 2, 3, 4, 2))):
        assert found[group, i, row, column, o] == weight[2 * group + o, i, row, column]


def test_breaks_are_no_wider_than_what_they_meet():
    breaks = torch.tensor([[-(2**31), 5, 2**31 - 1]])
    kind, clamped = tight(breaks, -100, 100)
    assert kind == "S8"
    numbers = torch.arange(-100, 101)
    for far, near in zip(breaks[0], clamped[0], strict=True):
        assert torch.equal(numbers >= far, numbers >= near)
    assert tight(breaks, -100, 127)[0] == "S16"  # one past the largest
    assert tight(breaks, -100, 40000)[0] == "S32"


@pytest.mark.parametrize("name", NAMED)
def test_buffers_that_live_together_lie_apart(name):
    graph = NAMED[name]()
    order = c99_stages.stages(graph)
    memory = c99_memory.place(graph, order)
    buffers = [
        *c99_memory._values(graph, order),
        *c99_memory._rows(graph, order),
        *c99_memory._helpers(graph, order),
    ]
    for one, other in itertools.combinations(buffers, 2):
        kinds = {c99_memory.STORED[buffer.storage] for buffer in (one, other)}
        apart = one.last < other.first or other.last < one.first
        if len(kinds) == 1 and not apart:
            begin, start = memory.offsets[one.key], memory.offsets[other.key]
            assert begin + one.length <= start or start + other.length <= begin, (one, other)
    for buffer in buffers:
        end = memory.offsets[buffer.key] + buffer.length
        assert end <= memory.lengths[c99_memory.STORED[buffer.storage]]


def test_values_stay_until_all_have_read_them():
    graph = graphs.everything()
    order = c99_stages.stages(graph)
    place = {node.name: i for i, stage in enumerate(order) for node in stage.members}
    values = {buffer.key[1]: buffer for buffer in c99_memory._values(graph, order)}
    for node in graph.nodes:
        for name in node.inputs:
            source = c99_memory.source_of(graph, name).name
            if source in values:
                assert values[source].first <= place[node.name] <= values[source].last
            else:  # read row by row, where it is made
                assert place[source] == place[node.name]


def test_memory_is_shared():
    graph = graphs.chain(size=16, width=16)
    order = c99_stages.stages(graph)
    lengths = c99_memory.place(graph, order).lengths
    first, second = (g.size(neuron.shape) // 8 for neuron in graph.neurons)
    assert lengths["uint8_t"] < first + second + g.size(graph["pool5"].shape)
    # Sums are never held whole: 16 columns of 16 and of 32 channels, of the second in 16 bits.
    assert lengths["int16_t"] <= 16 * 32
    assert lengths["int32_t"] <= 16 * 16


@pytest.mark.parametrize(
    ("size", "channels", "held"),
    [(16, 6, 4), (16, 16, 2), (16, 64, 1), (3, 6, 4), (1, 6, 1)],
)
def test_a_layer_holds_as_many_rows_as_cost_little(size, channels, held):
    """Rows of 16 bits in at most 1 KiB, a power of two, no more than there are need for."""
    b = graphs.Builder(0, (2, size, size))
    node = b.convolution(b.nodes[0], channels)
    assert c99_memory.rows_held(b.graph(), node) == held
    neuron = b.neuron(node)
    buffers = {x.key: x for x in c99_memory._rows(b.graph(), c99_stages.stages(b.graph()))}
    assert buffers["row", node.name].count == held * channels * size
    assert c99_memory.rows_held(b.graph(), neuron) == 1


def test_a_convolution_runs_with_its_neuron_and_alone_where_others_read_it():
    b = graphs.Builder(0, (2, 5, 5))
    sums = b.convolution(b.nodes[0], 3)
    neuron = b.neuron(sums)
    together = [[node.name for node in stage.members] for stage in c99_stages.stages(b.graph())]
    assert together == [["input"], [sums.name, neuron.name]]
    read_out = b.graph(g.Output(neuron.name), g.Output(sums.name))
    assert [len(stage.members) for stage in c99_stages.stages(read_out)] == [1, 1, 1]
    b.neuron(sums)
    assert [len(stage.members) for stage in c99_stages.stages(b.graph())] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["neuron", "mask", "count"])
def test_sums_of_closed_channels_are_left_out_only_where_nothing_reads_them(kind):
    b = graphs.Builder(0, (3, 5, 5))
    first = b.neuron(b.convolution(b.nodes[0], 3))
    gate = b.decision(first, 3)
    sums = b.convolution(first, 3)
    if kind == "neuron":
        b.neuron(sums, gate=gate)
    elif kind == "mask":
        b.mask(b.affine(sums), gate)
    else:
        b.neuron(first, count=sums, gate=gate)
    left_out = c99_stages.gate_of(b.graph(), sums)
    assert left_out == (None if kind == "count" else gate.name)
