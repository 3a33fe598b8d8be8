"""The compiled engine gives the numbers of the reference, whatever path a layer takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spquant_plugin import errors
from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.engine.compiled import CompiledEngine
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from tests.deploy.graphs import Builder, chain, everything, line, random_input

PATHS = [None, "events", "dense"]


def all_of(graph: g.Graph, layers: bool = True) -> set[Any]:
    """Every value; without layers, their sums need not exist."""
    spikes = {neuron.name for neuron in graph.neurons}
    membranes = {(name, "membrane") for name in spikes}
    values = {node.name for node in graph.nodes} if layers else spikes
    return values | membranes | {output.value for output in graph.outputs}


def compare(
    graph: g.Graph, x: Tensor, stream: bool = False, layers: bool = True, **options: Any
) -> CompiledEngine:
    """Run both engines; every number must be the same, and of the states too."""
    reference, engine = ReferenceEngine(graph), CompiledEngine(graph, **options)
    wanted = all_of(graph, layers)
    expected = reference.run(x, reference.rest(x.shape[1]), wanted).values
    state = engine.rest(x.shape[1])
    runs = [engine.run(part, state, wanted).values for part in (x.split(1) if stream else [x])]
    assert set(runs[0]) == wanted
    for key in wanted:
        found = torch.cat([run[key] for run in runs])
        assert found.dtype == torch.int32
        assert torch.equal(found, expected[key]), key
    return engine


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [chain, everything, line])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_value_and_membrane_is_that_of_the_reference(make, path, seed):
    graph = make(seed)
    x = random_input(graph, steps=3, batch=2, seed=seed)
    compare(graph, x, path=path)
    compare(graph, x, path=path, layers=False)
    compare(graph, x, path=path, layers=False, stream=True, memory="small")


def wide(seed: int, channels: int, size: int = 5, high: int = 1) -> g.Graph:
    """A layer of many channels with its neurons, and a read-out."""
    b = Builder(seed, (channels, size, size), high=high)
    last = b.neuron(b.convolution(b.nodes[0], channels))
    pooled = b.pool(last)
    return b.graph(g.Output(b.dense(b.flatten(pooled), 3, top=127).name))


@pytest.mark.parametrize("channels", [64, 65, 200, 520])
@pytest.mark.parametrize("rate", [0.02, 1.0])
def test_rows_of_every_width(channels, rate):
    graph = wide(1, channels)
    compare(graph, random_input(graph, 2, 1, rate=rate), path="events", layers=False)


@pytest.mark.parametrize("path", ["events", "dense"])
@pytest.mark.parametrize("top", [1, 3, 7, 15, 127])
@pytest.mark.parametrize("sign", [1, -1])
def test_full_input_and_extreme_weights_overflow_nothing(path, top, sign):
    """All weights the largest, all inputs on: more events than one block counts."""
    b = Builder(0, (20, 4, 4), high=3)
    layer = b.convolution(b.nodes[0], 6, top=top)
    least = -128 if top == 127 else -top
    weight = torch.full_like(layer.weight, top if sign > 0 else least)
    b.nodes[-1] = b.bounded(replace(layer, weight=weight), b.nodes[0])
    b.neuron(b.nodes[-1])
    graph = b.graph()
    x = torch.full((3, 2, 20, 4, 4), 3, dtype=torch.int32)
    compare(graph, x, path=path)
    compare(graph, x, path=path, layers=False)


def test_breaks_at_the_ends_of_32_bits_and_of_the_sums():
    b = Builder(3, (2, 4, 4))
    neuron = b.neuron(b.convolution(b.nodes[0], 4, top=2))
    sums = b.nodes[1]
    ends = [-(2**31), sums.low - 1, sums.low, 0, sums.high, sums.high + 1, 2**31 - 1]
    choice = torch.tensor(ends)[torch.randint(0, len(ends), neuron.breaks.shape)]
    b.nodes[-1] = replace(neuron, breaks=choice.sort(-1).values.to(torch.int32))
    graph = b.graph()
    for path in ("events", "dense"):
        compare(graph, random_input(graph, 3, 2, rate=0.7), path=path, layers=False)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.integers(1, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    levels=st.sampled_from([(0, 1), (-1, 1), (-2, 1), (-8, 7)]),
    remembers=st.booleans(),
    high=st.integers(1, 5),
    path=st.sampled_from(PATHS),
)
def test_random_layers(
    seed, channels, kernel, stride, padding, dilation, levels, remembers, high, path
):
    b = Builder(seed, (channels, 9, 8), high=high)
    layer = b.convolution(
        b.nodes[0], 5, kernel=kernel, stride=stride, padding=padding, dilation=dilation, top=9
    )
    b.neuron(layer, levels=levels, remembers=remembers)
    graph = b.graph()
    compare(graph, random_input(graph, 3, 2, seed), path=path, layers=bool(seed % 2))


def test_gates_and_added_numbers_in_one_neuron():
    b = Builder(5, (3, 4, 4))
    first = b.neuron(b.convolution(b.nodes[0], 70))
    gate = b.decision(first, 70)
    counted = b.join(first, b.neuron(b.convolution(b.nodes[0], 70)))
    last = b.neuron(b.convolution(first, 70), count=counted, gate=gate, levels=(-2, 1))
    graph = b.graph(g.Output(last.name))
    for path in ("events", "dense"):
        for stream in (False, True):
            x = random_input(graph, 4, 2, rate=0.4)
            compare(graph, x, stream=stream, layers=False, path=path)


def test_threads_change_nothing():
    graph = wide(2, 70)
    x = random_input(graph, 3, 2)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            compare(graph, x, layers=False)
    finally:
        torch.set_num_threads(before)


def test_a_second_run_goes_on_from_the_state_of_the_first():
    graph = chain(4)
    x = random_input(graph, 6, 2)
    engine = CompiledEngine(graph)
    wanted = all_of(graph, layers=False)
    state = engine.rest(2)
    halves = [engine.run(part, state, wanted).values for part in x.split(3)]
    whole = engine.run(x, engine.rest(2), wanted).values
    for key in wanted:
        assert torch.equal(torch.cat([half[key] for half in halves]), whole[key])


def test_states_and_weights_are_packed():
    graph = wide(0, 64)
    engine = CompiledEngine(graph)
    neuron, layer = graph.neurons[0], graph.layers[0]
    state = engine.rest(3)
    # Two bits per ternary neuron, and a byte per sample that says whether it began.
    assert engine.held_bytes(state) == 3 * g.size(neuron.shape) * 2 // 8 + 3
    packed = layer.weight.numel() * 2 // 8
    # The tables are those of eight places side by side.
    assert packed < engine.weight_bytes < packed + 64 * 100 + 8 * 64 * 2 * 2 * 64


def test_busy_layers_are_multiplied_and_quiet_ones_are_not():
    graph = wide(0, 200, size=9, high=30)
    engine = CompiledEngine(graph)
    layer, wanted = graph.layers[0].name, {graph.outputs[0].value}
    for rate, path in ((0.02, "events"), (1.0, "dense"), (0.02, "events")):
        engine.run(random_input(graph, 2, 1, rate=rate), engine.rest(1), wanted)
        assert engine.choices[layer] == path


def test_small_memory_keeps_no_unpacked_weights():
    graph = wide(0, 64)
    x = random_input(graph, 2, 1)
    held = {}
    for memory in ("fast", "small"):
        engine = CompiledEngine(graph, memory=memory, path="dense")
        before = engine.weight_bytes
        engine.run(x, engine.rest(1), {graph.outputs[0].value})
        held[memory] = engine.weight_bytes - before
    assert held == {"fast": sum(layer.weight.numel() for layer in graph.layers), "small": 0}


@pytest.mark.parametrize("option", [{"memory": "tiny"}, {"path": "other"}])
def test_options_that_do_not_exist(option):
    name, value = next(iter(option.items()))
    with pytest.raises(errors.DeployError, match=f"{name} = '{value}': must be"):
        CompiledEngine(chain(), **option)


def test_without_numba_the_error_names_the_extra(monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.delitem(sys.modules, "spquant_plugin.deploy.engine.jit")
    with pytest.raises(errors.MissingHostError, match=r'install "spquant-plugin\[deploy\]"'):
        import spquant_plugin.deploy.engine.jit  # noqa: F401
