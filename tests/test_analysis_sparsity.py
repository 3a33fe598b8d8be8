"""Firing rates and gates against slow loops: every idiom, means, notes, and what comes back."""

from __future__ import annotations

import json

import networks
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import SparsityReport, SparsityRow
from spquant_plugin.modules.gates import ChannelGate, SpatialGate
from spquant_plugin.spikingjelly import neuron as our_neuron

# Untrained networks on made-up samples: many of them stay silent, which is another test's matter.
pytestmark = pytest.mark.filterwarnings("ignore::spquant_plugin.errors.AnalysisWarning")


def events(*shape, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def rate_by_loop(net, x, paths, run=None):
    """Spikes over neurons and steps, one output at a time, while the network itself runs."""
    fired = {path: [0, 0] for path in paths}

    def note(path, output):
        for value in (output[0] if isinstance(output, tuple) else output).flatten().tolist():
            fired[path][0] += value != 0
            fired[path][1] += 1

    handles = [
        net.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: note(path, out))
        for path in paths
    ]
    net.eval()
    with torch.no_grad():
        (run or net)(x)
    for handle in handles:
        handle.remove()
    spq.reset(net)
    return {path: spikes / outputs for path, (spikes, outputs) in fired.items()}


def rates(sparsity):
    return {row.path: row.firing_rate for row in sparsity if row.firing_rate is not None}


@pytest.mark.parametrize("converted", [False, True])
def test_spikingjelly_rates_are_those_of_its_spikes_in_both_modes(converted):
    net, x = networks.spiking_jelly("m"), events(4, 3, 2, 8, 8)
    with torch.no_grad():
        net[0].weight += 0.3
    if converted:
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=2), x)
    expected = rate_by_loop(net, x, "26")
    sparsity = spq.analyze(net, x).sparsity
    assert rates(sparsity) == pytest.approx(expected)
    assert sparsity.firing_rate == pytest.approx(sum(expected.values()) / 2)
    assert 0 < sparsity.firing_rate < 1
    functional.set_step_mode(net, "s")
    assert spq.analyze(net, x, timesteps=4).sparsity == sparsity


def test_snntorch_rates_are_those_of_its_spikes_in_every_idiom():
    x = events(4, 3, 5)
    net = networks.snn_torch()
    expected = rate_by_loop(net, x, "135", lambda x: [net(step) for step in x])
    sparsity = spq.analyze(net, x, timesteps=4).sparsity
    assert rates(sparsity) == pytest.approx(expected)
    loop = networks.Loop()
    expected = rate_by_loop(loop, x, ["lif1", "lif2"])
    sparsity = spq.analyze(loop, x).sparsity
    assert rates(sparsity) == pytest.approx(expected)


def test_the_mean_is_a_plain_mean_whatever_the_size():
    net = nn.Sequential(layer.Linear(4, 99, bias=False), neuron.IFNode(), nn.Flatten())
    net.add_module("one", layer.Linear(99, 1, bias=False))
    net.add_module("last", neuron.IFNode())
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net.one.weight)
    sparsity = spq.analyze(net, torch.ones(2, 4)).sparsity
    assert list(rates(sparsity).values()) == [1.0, 0.0]
    assert sparsity.firing_rate == 0.5


def test_graded_outputs_are_said_to_be_counted_where_not_zero():
    net = nn.Sequential(
        nn.Linear(3, 4), snn.Leaky(beta=0.5, init_hidden=True, graded_spikes_factor=0.5)
    )
    nn.init.ones_(net[0].weight)
    row = spq.analyze(net, torch.ones(1, 3)).sparsity["1"]
    assert (row.firing_rate, row.note) == (1.0, "graded outputs: the share of nonzero ones")


def test_what_is_not_called_has_no_rate_and_what_does_not_spike_no_row():
    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.spare = neuron.IFNode(step_mode="m"), neuron.IFNode()
            self.out = neuron.NonSpikingIFNode()

        def forward(self, x):
            return self.out(self.lif(x))

    sparsity = spq.analyze(Uses(), torch.ones(4, 2, 3)).sparsity
    assert [row.path for row in sparsity] == ["lif", "spare"]
    assert sparsity["spare"] == SparsityRow("spare", "IFNode", note="not called by the sample")
    assert sparsity.firing_rate == 1.0


def test_without_layers_and_gates_the_means_are_none():
    sparsity = spq.analyze(neuron.IFNode(), torch.ones(1, 3)).to_dict()["sparsity"]
    row = sparsity.pop("layers")[0]
    assert sparsity == {
        "zero_weights": None,
        "firing_rate": 1.0,
        "channels_closed": None,
        "pixels_masked": None,
    }
    assert (row["levels"], row["level_shares"]) == ([], [])


def gated(net, x, score="current"):
    config = spq.presets.spquant_snn(spatial_gate=spq.SpatialGate(0.4, score=score))
    net = spq.convert(net, config, x)
    for path, module in net.named_modules():
        if isinstance(module, ChannelGate):
            generator = torch.Generator().manual_seed(len(path))
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight += 0.1
    return net


@pytest.mark.parametrize("score", ["current", "prior"])
def test_gates_are_counted_as_they_decide(score):
    x = events(3, 2, 2, 8, 8)
    net = gated(networks.spiking_jelly("m"), x, score)
    shut: dict[str, list[float]] = {}

    def note(path, mask):
        shut.setdefault(path, []).extend(1 - float(value) for value in mask.flatten().tolist())

    for path, module in net.named_modules():
        if isinstance(module, ChannelGate):
            module.register_forward_hook(lambda m, a, out, path=path: note(path, m.open_mask))
        if isinstance(module, SpatialGate):
            module.register_forward_hook(lambda m, a, out, path=path: note(path, out))
    net.eval()
    with torch.no_grad():
        net(x)
    spq.reset(net)
    expected = {path: sum(values) / len(values) for path, values in shut.items()}
    sparsity = spq.analyze(net, x).sparsity
    assert sparsity["4.channel_gate"].channels_closed == expected["4.channel_gate"]
    for path in ("2.spatial_gate", "6.spatial_gate"):
        assert sparsity[path].pixels_masked == pytest.approx(expected[path])
    assert 0 < sparsity.channels_closed == expected["4.channel_gate"] < 1
    assert sparsity.pixels_masked == pytest.approx(
        (expected["2.spatial_gate"] + expected["6.spatial_gate"]) / 2
    )
    assert sparsity["2"].channels_closed is sparsity["2"].pixels_masked is None
    assert sparsity["4.channel_gate"].firing_rate is None
    if score == "current":
        assert sparsity["2.spatial_gate"].pixels_masked == 25 / 64


def test_the_closed_share_is_the_one_that_gate_stats_gives():
    x = events(3, 2, 2, 8, 8)
    net = gated(networks.spiking_jelly("m"), x)
    net.eval()
    with torch.no_grad():
        net(x)
    stats = spq.gate_stats(net)
    spq.reset(net)
    rows = spq.analyze(net, x).sparsity
    closed = {row.path: row.channels_closed for row in rows if row.channels_closed is not None}
    assert closed == pytest.approx(stats)


def test_a_masked_neuron_does_not_fire():
    node = our_neuron.TernaryMembraneLIFNode(spatial_gate=spq.SpatialGate(0.5))
    sparsity = spq.analyze(node, torch.full((1, 2, 2, 2), 9.0)).sparsity
    assert (sparsity[""].firing_rate, sparsity["spatial_gate"].pixels_masked) == (0.5, 0.5)


def test_the_parameters_of_a_channel_gate_are_memory():
    x = events(3, 2, 2, 8, 8)
    memory = spq.analyze(gated(networks.spiking_jelly("m"), x), x).memory
    row = memory["4.channel_gate"]
    assert (row.kind, row.weights, row.weight_bits, row.weight_bytes) == ("weights", 24, 8, 24)
    assert row.other_bytes == 4 * (6 + 6), "a bias and a scale for each of 6 channels"
    assert row.parameters == 24 + 6
    plain = spq.convert(networks.spiking_jelly("m"), spq.presets.quant_snn(), x)
    assert memory.weight_bytes == spq.analyze(plain, x).memory.weight_bytes + 24
    measured = spq.analyze(gated(networks.spiking_jelly("m"), x), x, memory="measured").memory
    assert measured["4.channel_gate"].weight_bytes == 4 * 24


def test_dictionary_table_and_markdown():
    x = events(3, 2, 2, 8, 8)
    report = spq.analyze(gated(networks.spiking_jelly("m"), x), x)
    found = report.to_dict()["sparsity"]
    for name in ("zero_weights", "firing_rate", "channels_closed", "pixels_masked"):
        assert found[name] == getattr(report.sparsity, name)
    paths = ["0", "2", "2.spatial_gate", "4", "4.channel_gate", "6", "6.spatial_gate", "8"]
    assert [row["path"] for row in found["layers"]] == paths
    assert {"path", "type", "firing_rate"} <= set(found["layers"][0])
    assert json.loads(report.to_json())["sparsity"] == found
    text = report.sparsity.table()
    assert text in report.table()
    assert str(report.sparsity) == text
    assert f"{report.sparsity.firing_rate:.4f}" in text
    assert len(report.sparsity) == len(list(report.sparsity)) == 8


def test_a_row_is_found_by_its_path_and_a_wrong_one_names_the_closest():
    sparsity = SparsityReport((SparsityRow("lif1", "LIFNode", firing_rate=0.25),))
    assert sparsity["lif1"].firing_rate == sparsity.firing_rate == 0.25
    with pytest.raises(KeyError, match="'lif1'"):
        sparsity["lif"]
