"""Pixel masks in the compiled engine: the numbers of the reference, and of loops over pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.engine.compiled import CompiledEngine
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from spquant_plugin.deploy.engine.running import Run
from tests.deploy.graphs import Builder, everything, random_input
from tests.deploy.test_engine import all_of, compare

SCORES = ["current", "prior"]
PATHS = ["events", "dense"]


@pytest.fixture(autouse=True)
def no_slow_path(monkeypatch):
    """Whatever is tested here runs in the kernels."""

    def refuse(*given: object) -> None:
        raise RuntimeError("a neuron ran as the reference does")

    monkeypatch.setattr(Run, "_slow_neuron", refuse)


def masked_layer(
    seed: int, channels: int, score: str, masked: int, size: int = 5, **options: object
) -> g.Graph:
    """A layer whose neurons have a mask."""
    b = Builder(seed, (3, size, size + 1))
    rule = g.PixelMask(score, masked)
    last = b.neuron(b.convolution(b.nodes[0], channels, top=3), pixels=rule, **options)
    return b.graph(g.Output(last.name))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 5, 64, 70, 130]),
    score=st.sampled_from(SCORES),
    masked=st.integers(0, 30),
    levels=st.sampled_from([(0, 1), (-1, 1), (-2, 1), (-4, 3), (-8, 7), (-3, 0)]),
    remembers=st.booleans(),
    path=st.sampled_from(PATHS),
    stream=st.booleans(),
    layers=st.booleans(),
)
def test_masked_neurons(seed, channels, score, masked, levels, remembers, path, stream, layers):
    graph = masked_layer(seed, channels, score, masked, levels=levels, remembers=remembers)
    compare(graph, random_input(graph, 4, 2, seed), stream=stream, layers=layers, path=path)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("path", PATHS)
def test_rows_of_several_tiles(score, path):
    graph = masked_layer(1, 1100, score, 7, size=4)
    compare(graph, random_input(graph, 3, 2), path=path, layers=False)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("levels", [(-2, 1), (-8, 7)])
def test_gates_added_numbers_and_masks_in_one_neuron(score, path, stream, levels):
    b = Builder(5, (3, 4, 4))
    first = b.neuron(b.convolution(b.nodes[0], 70), pixels=g.PixelMask(score, 5))
    gate = b.decision(first, 70)
    counted = b.join(first, b.neuron(b.convolution(b.nodes[0], 70)))
    options = {"levels": levels, "remembers": True, "pixels": g.PixelMask(score, 6)}
    last = b.neuron(b.convolution(first, 70), count=counted, gate=gate, **options)
    graph = b.graph(g.Output(last.name))
    x = random_input(graph, 4, 2, rate=0.4)
    compare(graph, x, stream=stream, layers=False, path=path)


@pytest.mark.parametrize("score", SCORES)
def test_a_neuron_without_its_layer(score):
    """Sums that a grouped convolution makes, which the kernels do not know."""
    b = Builder(2, (6, 5, 5))
    depth = b.convolution(b.nodes[0], 6, groups=6, top=5)
    b.neuron(depth, pixels=g.PixelMask(score, 9))
    graph = b.graph()
    compare(graph, random_input(graph, 4, 3))


@pytest.mark.parametrize("score", SCORES)
def test_threads_change_nothing(score):
    graph = masked_layer(3, 20, score, 20, size=9)
    x = random_input(graph, 4, 3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            compare(graph, x, layers=False)
    finally:
        torch.set_num_threads(before)


def least_important(levels: Tensor, count: int) -> set[int]:
    """Pixels ``[C, pixels]`` of least importance, of equals the first, by sorting pairs."""
    ranked = []
    for pixel in range(levels.shape[1]):
        importance = sum(int(level) ** 2 for level in levels[:, pixel])
        ranked.append((importance, pixel))
    return {pixel for _, pixel in sorted(ranked)[:count]}


@pytest.mark.parametrize("channels", [4, 67])
def test_prior_masks_by_the_levels_of_the_step_before(channels):
    graph = masked_layer(7, channels, "prior", 11, levels=(-4, 3))
    neuron = graph.neurons[0]
    engine = CompiledEngine(graph)
    x = random_input(graph, 6, 2, rate=0.5)
    found = engine.run(x, engine.rest(2), all_of(graph)).values
    spikes, levels = found[neuron.name].flatten(3), found[neuron.name, "membrane"].flatten(3)
    fired = 0
    for t in range(1, 6):
        for n in range(2):
            masked = sorted(least_important(levels[t - 1, n], 11))
            others = [pixel for pixel in range(30) if pixel not in masked]
            assert not spikes[t, n, :, masked].any()
            assert not levels[t, n, :, masked].any()
            fired += int(spikes[t, n, :, others].any(0).sum())
    assert fired > 30


def always_firing(score: str, masked: int) -> g.Graph:
    """Every neuron fires whatever enters, so that all pixels are equally important."""
    graph = masked_layer(0, 3, score, masked, size=4)
    neuron = graph.neurons[0]
    low = torch.full_like(neuron.breaks, -(2**20))
    nodes = (*graph.nodes[:-1], replace(neuron, breaks=low))
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize(("score", "first"), [("current", 7), ("prior", 0)])
def test_of_equals_the_first_are_masked_but_not_before_there_was_a_step(score, first):
    graph = always_firing(score, 7)
    engine = CompiledEngine(graph)
    x = random_input(graph, 2, 1)
    spikes = engine.run(x, engine.rest(1), all_of(graph)).values[graph.neurons[0].name]
    pixels = torch.arange(20)
    for step, masked in ((0, first), (1, 7)):
        assert torch.equal(spikes[step, 0].flatten(1).bool(), (pixels >= masked).expand(3, -1))


@pytest.mark.parametrize("begun", [[True, False], [False, True]])
def test_each_sample_begins_by_itself(begun):
    graph = masked_layer(4, 9, "prior", 13)
    x = random_input(graph, 3, 2)
    results = []
    for engine in (ReferenceEngine(graph), CompiledEngine(graph)):
        state = engine.rest(2)
        state[""].copy_(torch.tensor(begun))
        results.append(engine.run(x, state, all_of(graph)).values)
    for key, expected in results[0].items():
        assert torch.equal(results[1][key], expected), key
    spikes = results[1][graph.neurons[0].name][0].flatten(1).any(1)
    assert spikes.any()


def test_masks_that_mask_all():
    for score in SCORES:
        graph = masked_layer(4, 9, score, 30)
        x = random_input(graph, 3, 1, rate=0.8)
        compare(graph, x)
        engine = CompiledEngine(graph)
        spikes = engine.run(x, engine.rest(1), all_of(graph)).values[graph.neurons[0].name]
        assert [bool(step.any()) for step in spikes] == [score == "prior", False, False]


def test_places_that_need_no_sums_make_events_cheaper():
    """What a layer is expected to take counts only the places that are left."""
    busiest = {}
    for score in SCORES:
        b = Builder(0, (64, 6, 6), high=30)
        b.neuron(b.convolution(b.nodes[0], 64), pixels=g.PixelMask(score, 18))
        graph = b.graph()
        engine = CompiledEngine(graph)
        for percent in range(2, 80, 2):
            x = random_input(graph, 2, 1, rate=percent / 100)
            engine.run(x, engine.rest(1), {graph.neurons[0].name})
            if engine.choices[graph.layers[0].name] == "dense":
                busiest[score] = percent
                break
    assert busiest["current"] < busiest["prior"]


def test_a_graph_with_every_node():
    graph = everything(2)
    compare(graph, random_input(graph, 3, 2), path="events", layers=False)
