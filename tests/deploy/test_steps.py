"""Networks whose weights change from step to step: graphs, engines, and what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.check import check_graph
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from spquant_plugin.deploy.steps import changing, changing_weights, distinct, patterns
from spquant_plugin.errors import DeployError

from . import graphs, stepped
from .c99_build import CHECKED, Builder, expected, export, need, told

ENGINES = [("torch", {}), ("numba", {}), ("numba", {"memory": "small", "path": "dense"})]


def slow_run(graph: g.Graph, x: torch.Tensor) -> dict:
    """Each step by a reference engine that knows only its graph; the state is handed on."""
    keys = {neuron.name for neuron in graph.neurons}
    keys |= {(name, "membrane") for name in keys} | {output.value for output in graph.outputs}
    state = ReferenceEngine(graph).rest(x.shape[1])
    each = [
        ReferenceEngine(replace(one, later=())).run(x[t : t + 1], state, keys).values
        for t, one in enumerate(graph.by_step[: len(x)])
    ]
    return {key: torch.cat([values[key] for values in each]) for key in keys}


def network(graph: g.Graph, engine: str = "torch", **options) -> spq.IntegerNetwork:
    sample = graphs.random_input(graph, len(graph.by_step), 1)
    return spq.IntegerNetwork(graph, sample, "torch").use(engine, **options)


@pytest.mark.parametrize("make", [stepped.chain, stepped.everything])
def test_every_engine_runs_each_step_with_its_own_numbers(make):
    graph = make()
    check_graph(graph)
    x = graphs.random_input(graph, 3, 2, rate=0.7)
    right = slow_run(graph, x)
    assert any(not torch.equal(right[n.name][0], right[n.name][1]) for n in graph.neurons)
    for name, options in ENGINES:
        net = network(graph, name, **options)
        run = net.run(x, record=True)
        for neuron in graph.neurons:
            assert torch.equal(run.spikes[neuron.name], right[neuron.name])
            assert torch.equal(run.membranes[neuron.name], right[neuron.name, "membrane"])
        streamed = [net.step(part) for part in x]
        for i, whole in enumerate(run.integers):
            parts = [step if graph.single else step[i] for step in streamed]
            expected = [whole[t].float() * 2.0**-t * (1.0 + t) for t in range(3)]
            assert all(map(torch.equal, parts, expected))


def test_the_numbers_of_a_step_matter():
    graph = stepped.chain()
    x = graphs.random_input(graph, 3, 2, rate=0.7)
    swapped = replace(graph.later[0], later=(replace(graph, later=()), graph.later[1]))
    values = [slow_run(one, x)[graph.outputs[0].value] for one in (graph, swapped)]
    assert not torch.equal(*values)


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_a_step_that_has_no_weights_is_refused(engine):
    graph = stepped.chain()
    net = network(graph, engine)
    x = graphs.random_input(graph, 4, 1)
    with pytest.raises(DeployError, match=r"received 4 steps: .* known for 3\. Pass at most 3"):
        net(x)
    assert net(x[:2]).shape[0] == 2
    first = [net.step(part) for part in x[:3]]
    with pytest.raises(DeployError, match=r"received 1 steps after 3 others: .*reset\(\)"):
        net.step(x[3])
    net.reset()
    assert torch.equal(net.step(x[0]), first[0])


def test_reductions_take_the_factors_of_each_step():
    graph = stepped.chain()
    x = graphs.random_input(graph, 3, 2, rate=0.7)
    values = network(graph)(x)
    for over_time, right in {
        "sum": values.sum(0),
        "mean": values.mean(0),
        "last": values[-1],
        "running sum": values[0] + values[1] + values[2],
        "running mean": (values[0] + values[1] + values[2]) / 3,
    }.items():
        steps = [
            replace(one, outputs=(replace(one.outputs[0], over_time=over_time),), later=())
            for one in graph.by_step
        ]
        reduced = replace(steps[0], later=tuple(steps[1:]))
        assert torch.equal(network(reduced)(x), right)


def test_the_c_code_takes_the_numbers_of_each_step(tmp_path):
    need("gcc")
    graph = stepped.everything()
    x = graphs.random_input(graph, 3, 20, seed=8, rate=0.6)
    program = Builder(tmp_path).build(export(graph, tmp_path / "net"), CHECKED)
    assert told([str(program)], tmp_path / "net", x) == expected(graph, x)
    right = slow_run(graph, x)
    words = b"".join(right[o.value][2, -1].numpy().astype("<i4").tobytes()
                     for o in graph.outputs if o.reads == "value")  # fmt: skip
    assert expected(graph, x).endswith(words[-16:])


# --- what is held -------------------------------------------------------------------------------


def test_what_does_not_change_is_held_once():
    graph = stepped.chain()
    stem, behind = graph.layers[0].name, graph.neurons[0].name
    assert changing(graph) == {node.name for node in graph.nodes if isinstance(
        node, g.Convolution | g.Dense | g.Neuron)} - {stem, behind}  # fmt: skip
    net = network(graph, "numba")
    made = [engine.prepared.stages for engine in net.engine.engines]
    assert made[0][behind] is made[1][behind] is made[2][behind]
    last = graph.layers[-1].name
    assert made[0][last] is not made[1][last]
    alone = [network(replace(one, later=()), "numba").engine.packed_bytes for one in graph.by_step]
    shared = made[0][behind].nbytes
    assert net.engine.packed_bytes == sum(alone) - 2 * shared
    assert net.engine.weight_bytes == net.engine.packed_bytes


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_the_whole_graph_comes_back(engine):
    graph = stepped.everything()
    again = network(graph, engine).graph
    assert changing(again) == changing(graph)
    assert len(list(distinct(again))) == len(list(distinct(graph)))
    for one, other in zip(graph.by_step, again.by_step, strict=True):
        for layer in one.layers:
            assert torch.equal(layer.weight, other[layer.name].weight)


def test_a_stripped_network_runs_on():
    graph = stepped.chain()
    x = graphs.random_input(graph, 3, 2)
    net = network(graph, "numba", memory="small")
    right, held = net(x), net.held_bytes
    assert net.strip().held_bytes < held
    assert torch.equal(net(x), right)
    with pytest.raises(DeployError, match="stripped"):
        net.whole_graph()


def test_weights_are_codes_of_few_patterns():
    graph = stepped.chain()
    found = changing_weights(graph)
    assert set(found) == {layer.name for layer in graph.layers[1:]}
    for name, follows in found.items():
        for t, one in enumerate(graph.by_step):
            assert torch.equal(follows.at(t), one[name].weight)


def test_too_many_patterns_have_no_codes():
    one, other = torch.arange(-128, 128).char(), torch.arange(-128, 128).flip(0).char()
    assert patterns([one, other]) is None
