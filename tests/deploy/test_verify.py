"""Verification sees every difference, says where the first one is, and disturbs nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

import spquant_plugin as spq
from spquant_plugin.errors import DeployError, SampleError

from .lively import Loop, converted, events, moved_break, small, with_nodes

quant = spq.presets.quant_snn


def lower(model, x, **options):
    return spq.to_integer(model, x, engine="torch", **options)


@pytest.fixture
def pair():
    x = events(4, 50, 2, 8, 8)
    model = converted(small(v_reset=None, decay_input=False), quant(4), x)
    return model, lower(model, x), x


def changed(net, path, **fields):
    """The network with fields of one node replaced."""
    return with_nodes(
        net, tuple(replace(n, **fields) if n.name == path else n for n in net.graph.nodes)
    )


def test_what_is_equal(pair):
    model, net, x = pair
    result = spq.verify(net, model, x)
    assert result.exact
    assert result.first is None
    assert result.samples == 50
    assert [check.path for check in result.layers] == ["2", "6", "9"]
    assert [check.path for check in result.outputs] == ["(output 1)"]
    for check, neurons in zip(result.layers, (6 * 64, 6 * 4, 5), strict=True):
        assert check.compared == 2 * 4 * 50 * neurons  # spikes and membranes
        assert check.exact
        assert check.first is None
    assert "equal" in str(result)
    assert "NOT" not in str(result)


def test_rates_are_shares_of_spikes(pair):
    model, net, x = pair
    run = net.run(x, record=True)
    for check in spq.verify(net, model, x).layers:
        assert check.rate == run.spikes[check.path].double().mean()


@pytest.mark.parametrize("path", ["2", "6", "9"])
def test_the_first_layer_that_differs_is_named(pair, path):
    model, net, x = pair
    wrong = moved_break(net, path, 4)
    result = spq.verify(wrong, model, x)
    assert not result.exact
    assert result.first.path == path
    assert f"\n{path} " in str(result)
    assert "NOT equal" in str(result)
    assert result.first.first.what in str(result)


@pytest.mark.parametrize("place", ["spike", "membrane"])
def test_the_first_mismatch_is_where_the_two_runs_part(pair, place):
    model, net, x = pair
    node = net.graph["9"]
    outcomes = node.outcomes.clone()
    if place == "spike":
        outcomes[-1, 0] = 1 - outcomes[-1, 0]
    else:
        outcomes[-1, 1] = (outcomes[-1, 1] + 1) % node.states
    wrong = changed(net, "9", outcomes=outcomes)
    result = spq.verify(wrong, model, x)
    (check,) = (check for check in result.layers if not check.exact)
    first = check.first
    assert check.path == "9"
    right, false = net.run(x, record=True), wrong.run(x, record=True)
    parts = []
    for what in ("spikes", "membranes"):
        one, other = getattr(right, what)["9"], getattr(false, what)["9"]
        for at in (one != other).nonzero()[:1].tolist():
            parts.append((at[0], what != "spikes", at, one[tuple(at)], other[tuple(at)]))
    _, stored, (step, sample, *index), expected, received = min(parts)
    assert first.what == ("membrane" if stored else "spike")
    assert stored == (place == "membrane")
    assert (first.step, first.sample, first.index) == (step, sample, tuple(index))
    assert (first.expected, first.received) == (expected, received)
    assert str(first).startswith(f"{first.what} at step {step}, sample {sample}, (")
    spikes = (right.spikes["9"] != false.spikes["9"]).sum()
    membranes = (right.membranes["9"] != false.membranes["9"]).sum()
    assert check.different == int(spikes + membranes)


def test_one_weight_that_differs_is_seen(pair):
    model, net, x = pair
    layer_ = net.graph.layers[0]
    weight = layer_.weight.clone()
    weight[1, 0, 1, 1] += 3  # the norm's factor of channel 0 is 0
    result = spq.verify(changed(net, layer_.name, weight=weight), model, x)
    assert result.first.path == "2"


def test_outputs_are_compared_too():
    x = events(5, 50, 6)
    model = converted(Loop(functools.partial(snn.Leaky, beta=0.9), "mean"), quant(4), x)
    net = lower(model, x)
    output = replace(net.graph.outputs[0], over_time="sum")
    net = spq.IntegerNetwork(replace(net.graph, outputs=(output,)), net.sample, "torch")
    result = spq.verify(net, model, x)
    assert all(check.exact for check in result.layers)
    assert result.first.path == "(output 1)"
    assert result.first.first.what == "output"


@pytest.mark.parametrize("single", [True, False])
def test_another_model_is_found_out(single):
    x = events(5, 50, 6)
    make = functools.partial(snn.Leaky, beta=0.9)
    net = lower(converted(Loop(make, "stack"), quant(4), x), x)
    other = converted(Loop(make, "stack" if single else "both"), quant(4), x)
    if single:
        assert not spq.verify(net, other, x).exact
    else:
        with pytest.raises(DeployError, match="must"):
            spq.verify(net, other, x)


def test_a_model_without_the_neurons_is_refused(pair):
    _, net, x = pair
    other = converted(nn.Sequential(*small(norm=False)[:3]), quant(4), x)
    with pytest.raises(DeployError, match=r"6: is a neuron layer of only one of the two"):
        spq.verify(net, other, x)


def test_a_model_of_other_sizes_is_refused(pair):
    _, net, x = pair
    x = events(4, 3, 2, 8, 8)
    body = small()
    body[0], body[4].groups = type(body[0])(2, 6, 3, padding=1, stride=1, step_mode="m"), 2
    body[8] = type(body[8])(24, 7, step_mode="m")
    with pytest.raises(DeployError, match=r"9: the model gave shape .* must be the same"):
        spq.verify(net, converted(body, quant(4), x), x)


@pytest.mark.parametrize("what", [None, nn.Linear(2, 2), "net"])
def test_only_integer_networks_are_verified(pair, what):
    model, _, x = pair
    with pytest.raises(DeployError, match=r"net = \w+: must be an IntegerNetwork"):
        spq.verify(what, model, x)


def test_only_models_are_compared_with(pair):
    _, net, x = pair
    with pytest.raises(spq.SpQuantError, match="must be"):
        spq.verify(net, "model", x)


@pytest.mark.parametrize(
    "x", [torch.ones(4, 5, 2, 8, 7), torch.full((4, 5, 2, 8, 8), 0.5), torch.ones(4, 0, 2, 8, 8), 3]
)
def test_inputs_that_the_network_does_not_take_are_refused(pair, x):
    model, net, _ = pair
    with pytest.raises(DeployError, match=r"^x "):
        spq.verify(net, model, x)


def test_inputs_that_only_the_network_takes_are_said_to_be(pair):
    model, net, x = pair
    with pytest.raises(SampleError, match="cannot run on it"):
        spq.verify(net, model, x.int())


def test_a_model_is_compared_from_rest_and_left_at_rest(pair):
    model, net, x = pair
    with torch.no_grad():
        model(x)
    assert spq.verify(net, model, x).exact
    with torch.no_grad():
        assert torch.equal(model(x), net(x))
    spq.reset(model)


def test_a_model_in_training_mode_is_compared_in_eval_mode(pair):
    model, net, x = pair
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert spq.verify(net, model, x).exact
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_single_steps_are_compared_as_a_sequence():
    x = events(6, 50, 2, 8, 8)
    model = converted(small(step_mode="s", v_reset=None), quant(4), x, x[0])
    net = lower(model, x[0])
    result = spq.verify(net, model, x)
    assert result.exact
    assert result.layers[0].compared == 2 * 6 * 50 * 6 * 64
    wrong = spq.verify(moved_break(net, "6", 3), model, x)
    assert wrong.first.path == "6"


def test_the_numbers_of_steps_may_differ_from_the_sample(pair):
    model, net, _ = pair
    for steps in (1, 9):
        result = spq.verify(net, model, events(steps, 3, 2, 8, 8))
        assert result.exact
        assert result.samples == 3


def test_the_result_as_plain_values(pair):
    model, net, x = pair
    for network in (net, moved_break(net, "6", 4)):
        result = spq.verify(network, model, x)
        plain = json.loads(json.dumps(result.to_dict()))
        assert plain["exact"] == result.exact
        assert plain["samples"] == 50
        assert [row["path"] for row in plain["layers"]] == ["2", "6", "9"]
        assert plain["layers"][1]["different"] == result.layers[1].different


def test_a_graded_spike_is_compared_as_a_spike():
    x = events(5, 50, 6)
    make = functools.partial(snn.Leaky, beta=0.9, graded_spikes_factor=4.0)
    model = converted(Loop(make), quant(4), x)
    result = spq.verify(lower(model, x), model, x)
    assert result.exact
    assert 0.01 < result.layers[0].rate < 0.99
