"""Depthwise and grouped layers, joins, masks and norms of the compiled engine on packed values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.engine import counts, grouping, operations
from spquant_plugin.deploy.engine.compiled import CompiledEngine
from spquant_plugin.deploy.engine.rows import pack, unpack
from tests.deploy.graphs import Builder, random_input
from tests.deploy.test_engine import compare


def in_all_ways(graph: g.Graph, path: str | None = None, rate: float = 0.3) -> CompiledEngine:
    """Whole sequences, step by step, with the layers' sums and without."""
    x = random_input(graph, 3, 2, rate=rate)
    compare(graph, x, path=path)
    compare(graph, x, path=path, layers=False, stream=True, memory="small")
    return compare(graph, x, path=path, layers=False)


# --- depthwise layers ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([2, 5, 33, 64, 70]),
    times=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    top=st.sampled_from([1, 3, 7, 40, 127]),
    high=st.sampled_from([1, 2, 7, 255]),
    width=st.integers(8, 17),
)
def test_random_depthwise_layers(
    seed, channels, times, kernel, stride, padding, dilation, top, high, width
):
    b = Builder(seed, (channels, 8, width), high=high)
    sizes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    layer = b.convolution(b.nodes[0], times * channels, groups=channels, top=top, **sizes)
    b.neuron(layer, levels=(-2, 1))
    graph = b.graph()
    engine = compare(graph, random_input(graph, 2, 2, seed), layers=bool(seed % 2))
    assert engine.choices == {layer.name: "planes"}


@pytest.mark.parametrize("channels", [200, 520, 600])
def test_depthwise_layers_of_many_channels(channels):
    b = Builder(0, (channels, 4, 5))
    b.neuron(b.convolution(b.nodes[0], channels, groups=channels, top=3), remembers=True)
    in_all_ways(b.graph())


@pytest.mark.parametrize("sign", [1, -1])
def test_full_depthwise_layers_overflow_nothing(sign):
    b = Builder(0, (6, 7, 7), high=255)
    layer = b.convolution(b.nodes[0], 6, kernel=5, padding=2, groups=6)
    weight = torch.full_like(layer.weight, 127 if sign > 0 else -128)
    b.nodes[-1] = b.bounded(replace(layer, weight=weight), b.nodes[0])
    b.neuron(b.nodes[-1])
    graph = b.graph()
    x = torch.full((2, 1, 6, 7, 7), 255, dtype=torch.int32)
    compare(graph, x)
    compare(graph, x, layers=False)


def test_depthwise_layers_on_a_line_behind_pools_and_gates():
    b = Builder(1, (3, 21))
    first = b.neuron(b.convolution(b.nodes[0], 68, top=3))
    pooled = b.pool(b.pool(first, padding=1), kernel=3)
    gate = b.decision(first, 68)
    deep = b.convolution(pooled, 68, groups=68, top=3)
    b.neuron(deep, gate=gate, levels=(-4, 3))
    assert in_all_ways(b.graph()).choices[deep.name] == "planes"


@pytest.mark.parametrize("score", ["current", "prior"])
def test_depthwise_layers_with_masked_pixels(score):
    b = Builder(2, (10, 6, 7))
    layer = b.convolution(b.nodes[0], 10, groups=10, top=3)
    b.neuron(layer, pixels=g.PixelMask(score, 9), levels=(-2, 1))
    in_all_ways(b.graph())


def test_threads_change_nothing_in_depthwise_layers():
    b = Builder(2, (40, 9, 9))
    b.neuron(b.convolution(b.nodes[0], 40, groups=40))
    graph = b.graph()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        compare(graph, random_input(graph, 3, 1), layers=False)
    finally:
        torch.set_num_threads(before)


def test_depthwise_layers_of_signed_numbers_run_as_others_do():
    b = Builder(3, (6, 6, 6), low=-4, high=3)
    layer = b.convolution(b.nodes[0], 6, groups=6, top=3)
    b.neuron(layer)
    assert in_all_ways(b.graph()).choices[layer.name] == "dense"


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["events", "dense"])
@pytest.mark.parametrize(("groups", "top"), [(2, 1), (4, 127), (3, 7)])
def test_groups(groups, top, path):
    b = Builder(groups, (12, 6, 5))
    layer = b.convolution(b.nodes[0], 24, groups=groups, top=top, stride=2)
    b.neuron(layer)
    assert in_all_ways(b.graph(), path).choices[layer.name] == path


def test_groups_whose_zeros_would_take_too_much_run_as_in_the_reference(monkeypatch):
    monkeypatch.setattr(grouping, "FEW_BYTES", 0)
    for groups, choices in ((4, {"conv1": "events"}), (8, {})):
        b = Builder(groups, (16, 6, 5))
        layer = b.convolution(b.nodes[0], 16, groups=groups)
        b.neuron(layer)
        engine = in_all_ways(b.graph(), "events")
        assert engine.choices == choices
        assert engine.weight_bytes >= layer.weight.numel() * 2 // 8


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("groups", [8, 4])
@pytest.mark.parametrize("top", [1, 127])
def test_the_weights_come_back_from_the_rows(groups, times, top):
    b = Builder(7, (8, 5, 5))
    layer = b.convolution(b.nodes[0], 8 * times, groups=groups, top=top)
    layer.weight.view(-1)[:3] = -128 if top == 127 else -1
    b.nodes[-1] = b.bounded(layer, b.nodes[0])
    b.neuron(b.nodes[-1])
    engine = CompiledEngine(b.graph())
    assert engine.graph[layer.name].weight.is_meta
    assert torch.equal(engine.whole_graph()[layer.name].weight, layer.weight)


def test_stripped_engines_run_on():
    b = Builder(8, (8, 5, 5))
    first = b.neuron(b.convolution(b.nodes[0], 8, groups=8))
    b.neuron(b.convolution(first, 8, groups=2))
    graph = b.graph()
    x, wanted = random_input(graph, 3, 2), {graph.nodes[-1].name}
    engine = CompiledEngine(graph)
    whole = engine.run(x, engine.rest(2), wanted).values
    assert engine.packed_bytes > 0
    engine.strip()
    light = engine.run(x, engine.rest(2), wanted).values
    for name in wanted:
        assert torch.equal(light[name], whole[name])


# --- counts and sums ----------------------------------------------------------------------------


def spiking(b: Builder, channels: int, source: g.Node | None = None) -> g.Node:
    """Spikes of a new layer."""
    return b.neuron(b.convolution(source or b.nodes[0], channels))


@pytest.mark.parametrize("channels", [5, 64, 130])
@pytest.mark.parametrize("path", ["events", "dense"])
def test_residual_spikes_are_counted_in_planes(channels, path):
    b = Builder(4, (3, 6, 6))
    first, second = spiking(b, channels), spiking(b, channels)
    twice = b.join(first, second)
    third = spiking(b, channels, twice)
    thrice = b.join(twice, third, first)
    deep = b.neuron(b.convolution(thrice, channels, groups=channels), count=thrice)
    pooled = b.pool(b.join(thrice, deep), kernel=3)
    b.neuron(b.dense(b.flatten(pooled), 9))
    in_all_ways(b.graph(), path)


def test_joins_with_factors_and_of_wide_or_negative_numbers():
    b = Builder(5, (3, 6, 6), low=-2, high=200)
    first = spiking(b, 7)
    weighed = b.join(first, spiking(b, 7), top=3)
    wide = b.join(b.convolution(first, 7), weighed, first, top=9)
    normed = b.join(b.affine(b.affine(wide)), weighed, top=2)
    b.neuron(normed, count=weighed)
    b.neuron(b.join(normed, wide))
    b.neuron(b.affine(first))
    in_all_ways(b.graph())


@pytest.mark.parametrize("channels", [(64, 5), (5, 64), (3, 70, 130), (128, 64)])
def test_values_behind_each_other(channels):
    b = Builder(6, (3, 4, 5))
    spikes = [spiking(b, count) for count in channels]
    counted = b.join(spikes[0], spikes[0])
    b.neuron(b.convolution(b.concat(counted, *spikes[1:]), 6))
    sums = b.concat(b.convolution(spikes[0], 4), spikes[1])
    b.neuron(sums)
    in_all_ways(b.graph())


@pytest.mark.parametrize("channels", [6, 70])
def test_masks_of_spikes_counts_and_sums(channels):
    b = Builder(7, (3, 5, 5))
    first = spiking(b, channels)
    gate, other = b.decision(first, channels), b.decision(first, channels, "value")
    both = b.add(
        g.Product(name="both", inputs=(gate.name, other.name), shape=(channels,), low=0, high=1)
    )
    spikes = b.mask(first, gate)
    counted = b.mask(b.join(spikes, first), other)
    sums = b.mask(b.convolution(counted, channels), both)
    b.neuron(b.join(sums, spikes), gate=both)
    in_all_ways(b.graph())


def test_pools_of_counts_and_of_wide_numbers():
    b = Builder(8, (4, 7, 7), high=12)
    few = b.convolution(b.pool(b.nodes[0], padding=1), 5)
    wide = Builder(9, (4, 7, 7), high=300)
    many = wide.convolution(wide.pool(wide.nodes[0]), 5)
    b.neuron(few)
    wide.neuron(many)
    largest = b.pool(b.nodes[0], g.MaxPool)
    b.neuron(b.convolution(largest, 5))
    for graph in (b.graph(), wide.graph()):
        in_all_ways(graph)


# --- arithmetic on planes -----------------------------------------------------------------------


def planes_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers ``[B, places, C]`` as planes."""
    words = -(-numbers.shape[-1] // 64)
    return pack(numbers[:, :, None] >> np.arange(bits)[:, None] & 1, words)


def numbers_of(planes: np.ndarray, channels: int) -> np.ndarray:
    bits = unpack(planes, channels).astype(np.int64)
    return (bits << np.arange(planes.shape[2])[:, None]).sum(2)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 3), (3, 2), (4, 4)])
def test_planes_add_up(first, second):
    rng = np.random.default_rng(first)
    one, other = (rng.integers(0, 2**bits, (2, 3, 70)) for bits in (first, second))
    bits = int((one + other).max()).bit_length()
    found = counts.add_counts(planes_of(one, first), planes_of(other, second), bits)
    assert found.shape[2] == bits
    assert np.array_equal(numbers_of(found, 70), one + other)


def test_planes_get_longer_and_shorter():
    numbers = np.random.default_rng(0).integers(0, 4, (2, 3, 5))
    planes = planes_of(numbers, 2)
    for bits in (2, 3, 5):
        wide = counts.with_bits(planes, bits)
        assert wide.shape[2] == bits
        assert np.array_equal(numbers_of(wide, 5), numbers)
        assert np.array_equal(counts.with_bits(wide, 2), planes)


def test_counts_have_few_bits():
    node = Builder(0, (1,)).nodes[0]
    limit = 2**operations.MOST_BITS
    assert operations.counted(replace(node, high=limit - 1))
    assert not operations.counted(replace(node, high=limit))
    assert not operations.counted(node, replace(node, low=-1))
