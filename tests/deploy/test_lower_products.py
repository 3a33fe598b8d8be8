"""Products of spikes in all that reads a graph: its rules, files, engines, exports and reports."""

from __future__ import annotations

import pytest
import torch

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.check import check_graph
from spquant_plugin.deploy.file import load_graph, save_graph
from spquant_plugin.deploy.network import IntegerNetwork

from . import graphs
from .c99_build import CHECKED, Builder, expected, export, need, told


def joined() -> g.Graph:
    """Both spikes, one without the other, and a product that is read out."""
    b = graphs.Builder(3, (2, 7, 6))
    one = b.neuron(b.convolution(b.nodes[0], 5))
    other = b.neuron(b.convolution(one, 5), levels=(-3, 1))
    without = b.add(
        g.Affine(
            name=b.name("not"),
            inputs=(other.name,),
            shape=other.shape,
            low=0,
            high=1,
            multiplier=torch.full((5,), -1, dtype=torch.int32),
            offset=torch.ones(5, dtype=torch.int32),
        )
    )
    both = b.product(one, other)
    third = b.neuron(b.convolution(b.product(both, without), 4), levels=(-1, 2))
    again = b.product(without, one)
    last = b.dense(b.flatten(b.pool(b.concat(third, again), g.MaxPool)), 3)
    return b.graph(g.Output(last.name), g.Output(both.name, over_time="sum"), single=False)


def by_hand(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    pairs = zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
    return torch.tensor([int(a == 1 and b == 1) for a, b in pairs]).view(one.shape)


def test_a_product_is_one_where_both_are():
    graph = joined()
    check_graph(graph)
    net = IntegerNetwork(graph, torch.zeros(0), "torch")
    x = graphs.random_input(graph, steps=3, batch=9)
    found = net.engine.run(x, net.engine.rest(9), {node.name for node in graph.nodes}).values
    products = [node for node in graph.nodes if isinstance(node, g.Product)]
    assert len(products) == 3
    shares = []
    for node in products:
        one, other = (found[name] for name in node.inputs)
        assert torch.equal(found[node.name].long(), by_hand(one, other))
        shares.append(float(found[node.name].double().mean()))
    assert any(0.01 < share < 0.99 for share in shares)


def test_every_engine_agrees():
    pytest.importorskip("numba")
    graph = joined()
    x = graphs.random_input(graph, steps=4, batch=50)
    nets = [IntegerNetwork(graph, torch.zeros(0), engine) for engine in ("torch", "numba")]
    runs = [net.run(x.float(), record=True) for net in nets]
    for part in ("outputs", "integers"):
        assert all(map(torch.equal, getattr(runs[0], part), getattr(runs[1], part)))
    for name in runs[0].spikes:
        assert torch.equal(runs[0].spikes[name], runs[1].spikes[name])
        assert torch.equal(runs[0].membranes[name], runs[1].membranes[name])


def test_a_file_keeps_it(tmp_path):
    pytest.importorskip("safetensors")
    graph = joined()
    sample = graphs.random_input(graph, steps=2, batch=1)
    save_graph(graph, sample, tmp_path / "net.spq")
    again, _ = load_graph(tmp_path / "net.spq")
    assert [node.kind for node in again.nodes] == [node.kind for node in graph.nodes]
    x = graphs.random_input(graph, steps=3, batch=9).float()
    outputs = [IntegerNetwork(one, torch.zeros(0), "torch")(x) for one in (graph, again)]
    assert all(map(torch.equal, *outputs))


def test_c_does_the_same(tmp_path):
    need("gcc")
    graph = joined()
    x = graphs.random_input(graph, steps=4, batch=50)
    exported = export(graph, tmp_path / "net")
    program = Builder(tmp_path).build(exported, CHECKED)
    found, right = told([str(program)], exported, x), expected(graph, x)
    assert len(found) == len(right) > 0
    assert found == right


def test_it_is_counted_as_one_addition_each_and_an_inversion_multiplies_nothing():
    graph = joined()
    net = IntegerNetwork(graph, torch.zeros(0), "torch")
    counts = net.count_operations(graphs.random_input(graph, steps=3, batch=2))
    parts = {part.path: part for part in counts.parts.values()}
    for node in graph.nodes:
        if isinstance(node, g.Product | g.Affine):
            part = parts[node.name]
            assert part.dense == part.additions == 3 * 2 * g.size(node.shape)
            assert part.multiplications == 0


def test_a_graph_with_a_product_streams():
    graph = joined()
    net = IntegerNetwork(graph, torch.zeros(0), "torch")
    x = graphs.random_input(graph, steps=4, batch=3).float()
    steps = [net.step(part) for part in x]
    assert torch.equal(torch.stack([step[0] for step in steps]), net(x)[0])
