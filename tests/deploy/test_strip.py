"""A network that keeps only what running takes: the same numbers in fewer bytes."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.deploy.graph import ChannelDecision
from spquant_plugin.errors import DeployError

from . import graphs


def network(graph, engine="torch", **options) -> spq.IntegerNetwork:
    net = spq.IntegerNetwork(graph, graphs.random_input(graph, 2, 1), "torch")
    return net.use(engine, **options)


@pytest.fixture(scope="module")
def stripped():
    graph = graphs.chain(1)
    return network(graph, "numba", memory="small").strip()


@pytest.mark.parametrize("make", [graphs.chain, graphs.everything, graphs.line])
def test_a_stripped_network_gives_the_same(make):
    graph = make(1)
    x = graphs.random_input(graph, 4, 2)
    whole, light = network(graph), network(graph, "numba", memory="small")
    before = light.held_bytes
    assert light.strip().held_bytes < before
    expected, found = whole.run(x, record=True), light.run(x, record=True)
    for name in expected.spikes:
        assert torch.equal(found.spikes[name], expected.spikes[name])
        assert torch.equal(found.membranes[name], expected.membranes[name])
    for one, other in zip(expected.outputs, found.outputs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [graphs.chain, graphs.everything, graphs.line])
def test_weights_are_held_once_and_the_graph_is_made_anew(make):
    graph = make(2)
    net = network(graph, "numba")
    held = [layer.weight for layer in net.engine.graph.layers]
    assert any(weight.is_meta for weight in held)
    for layer, other in zip(graph.layers, net.graph.layers, strict=True):
        assert layer.weight.dtype == other.weight.dtype
        assert torch.equal(layer.weight, other.weight)
    decisions = [node for node in graph.nodes if isinstance(node, ChannelDecision)]
    for node in decisions:
        assert torch.equal(net.graph[node.name].weight, node.weight)
    mine = net.graph
    assert net.graph is mine  # as long as somebody holds it


def test_a_copy_of_a_network_gives_the_same():
    net = network(graphs.chain(2), "numba")
    mine = net.graph
    expected, x = net(net.sample), net.sample
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.graph is not mine
        held = [stage.weights.rows.words for stage in other.engine._prepared.stages.values()]
        assert all(words.ctypes.data % 64 == 0 for words in held)
        assert torch.equal(other(x), expected)
    del net, mine
    gc.collect()
    assert torch.equal(other(x), expected)  # nothing points into what is gone


def test_a_stripped_network_streams(stripped):
    x = graphs.random_input(stripped.graph, 3, 1)
    assert torch.equal(torch.stack([stripped.step(step) for step in x]), stripped(x))


def test_held_bytes_are_the_tensors_of_graph_and_sample_without_an_engine_of_its_own():
    net = network(graphs.chain(1))
    parts = [value for node in net.graph.nodes for value in vars(node).values()]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    tensors.append(net.sample.to(torch.uint8))
    assert net.held_bytes == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, folder: net.save(folder / "net.spq"),
        lambda net, folder: spq.export_c(net, folder),
        lambda net, folder: net.use("torch"),
        lambda net, folder: spq.analyze(net, graphs.random_input(net.graph, 2, 1)),
    ],
    ids=["save", "export_c", "use", "analyze"],
)
def test_what_needs_the_whole_graph_says_so(ask, stripped, tmp_path):
    with pytest.raises(DeployError, match=r"was stripped .* Load its file again"):
        ask(stripped, tmp_path)


def test_the_reference_engine_cannot_be_stripped():
    with pytest.raises(DeployError, match=r"engine 'torch' runs on the graph itself.*net\.use"):
        network(graphs.chain(1)).strip()
