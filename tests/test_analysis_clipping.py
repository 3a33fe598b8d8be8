"""Clipping against slow loops: Eqs. 5 and 6 neuron by neuron, both hosts, sweeps, refusals."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from functools import partial
from pathlib import Path

import networks
import pytest
import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import clipping
from spquant_plugin.analysis.clipping.stepping import watch_steps
from spquant_plugin.convert.trace import quiet_copy
from spquant_plugin.errors import AnalysisError, ConfigError, ConversionError, MissingHostError
from spquant_plugin.modules.gates import ChannelGate

ROOT = Path(__file__).parents[1]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
BOUNDS = (-0.5, -1.0, -1.5, -40.0)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Both ways give the same bits, and these tests meet many rules once only."""
    with spq.kernels.use("eager"):
        yield


def eighths(*shape, low=-24, high=16, seed=1):
    """Multiples of 1/8: sums and halves of a few of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator) / 8


def two_layers(step_mode="m", soft=False):
    """Weights and potentials are exact, so that a slow loop gives the same to the last bit."""
    net = nn.Sequential(
        layer.Linear(5, 6, bias=False),
        neuron.LIFNode(decay_input=False, v_reset=None if soft else 0.0),
        layer.Linear(6, 4, bias=False),
        neuron.IFNode(v_reset=None if soft else 0.0),
    )
    functional.set_step_mode(net, step_mode)
    return with_exact_weights(net)


def hidden_states(reset_mechanism):
    first = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=reset_mechanism)
    last = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=reset_mechanism, output=True)
    net = nn.Sequential(nn.Linear(5, 6, bias=False), first, nn.Linear(6, 4, bias=False), last)
    return with_exact_weights(net)


class Explicit(nn.Module):
    """States handed from step to step; the potential of the last layer is returned as well."""

    def __init__(self, reset_mechanism):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.lif1 = snn.Leaky(beta=0.5, reset_mechanism=reset_mechanism)
        self.lif2 = snn.Leaky(beta=0.5, reset_mechanism=reset_mechanism)
        with_exact_weights(self)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def with_exact_weights(net):
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for seed, weight in enumerate(weights):
            weight.copy_(eighths(*weight.shape, low=-12, high=14, seed=seed))
    return net


def slow(x, weights, decays, reset, strict, clip=None):
    """Spikes and stored membranes ``[layer][t][n][i]`` of a chain, one neuron at a time."""
    steps, samples = len(x), len(x[0])
    spikes = [[[] for _ in range(steps)] for _ in weights]
    stored = [[[] for _ in range(steps)] for _ in weights]
    for n in range(samples):
        state = [[0.0] * len(w) for w in weights]
        late = [[False] * len(w) for w in weights]
        for t in range(steps):
            values = x[t][n]
            for depth, weight in enumerate(weights):
                fired = []
                for i, row in enumerate(weight):
                    current = sum(a * b for a, b in zip(row, values, strict=True))
                    m = state[depth][i]
                    if reset == "zero, late" and late[depth][i]:
                        m = 0.0
                    u = decays[depth] * m + current
                    if reset == "subtract, late" and late[depth][i]:
                        u -= 1.0
                    fires = u > 1.0 if strict else u >= 1.0
                    v = u
                    if fires and reset == "zero":
                        v = 0.0
                    if fires and reset == "subtract":
                        v = u - 1.0
                    if clip is not None and v < clip:
                        v = clip
                    state[depth][i], late[depth][i] = v, fires
                    fired.append(float(fires))
                spikes[depth][t].append(fired)
                stored[depth][t].append(list(state[depth]))
                values = fired
    return spikes, stored


def slow_region(spikes, stored, bound):
    """Eqs. 5 and 6 of one layer: share, rate, rate within, woken."""
    steps = len(spikes)
    inside = total = woken = 0
    printed = within = 0.0
    places = [(n, i) for n in range(len(stored[0])) for i in range(len(stored[0][0]))]
    region = [(n, i) for n, i in places if stored[0][n][i] < bound]
    for n, i in region:
        inside += 1
        woken += any(spikes[t][n][i] for t in range(1, steps))
    for t in range(1, steps):
        fired = sum(bool(spikes[t][n][i]) for n, i in region)
        printed += fired / len(places) / (steps - 1)
        within += fired / max(inside, 1) / (steps - 1)
        total += fired
    share = inside / len(places)
    return (share, printed, within if inside else None, woken / inside if inside else None)


def assert_silence(report, paths, spikes, stored):
    assert [row.path for row in report] == paths
    seen = set()
    for path, layer_spikes, layer_stored in zip(paths, spikes, stored, strict=True):
        row = report[path]
        assert row.steps == len(layer_spikes)
        assert row.lowest == min(v for step in layer_stored for sample in step for v in sample)
        for bound in BOUNDS:
            region = row.at(bound)
            found = (region.share, region.rate, region.rate_within, region.woken)
            expected = slow_region(layer_spikes, layer_stored, bound)
            assert [v is None for v in found] == [v is None for v in expected]
            assert [v for v in found if v is not None] == pytest.approx(
                [v for v in expected if v is not None]
            )
            seen.add(region.rate)
    assert len(seen) > 3  # else nothing was compared


def matrices(net):
    return [m.weight.tolist() for m in net.modules() if isinstance(m, nn.Linear)]


# Equations 5 and 6.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("soft", [False, True])
def test_spikingjelly_silence_is_that_of_a_slow_loop_in_both_modes(soft, device):
    x, net = eighths(12, 9, 5), two_layers("m", soft)
    reset = "subtract" if soft else "zero"
    spikes, stored = slow(x.tolist(), matrices(net), (0.5, 1.0), reset, strict=False)
    net = net.to(device)
    report = clipping.measure_silence(net, x, BOUNDS)  # inputs follow the model
    assert_silence(report, ["1", "3"], spikes, stored)
    functional.set_step_mode(net, "s")
    assert clipping.measure_silence(net, x, BOUNDS, timesteps=12) == report


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorch_silence_is_that_of_a_slow_loop_in_both_idioms(reset):
    x = eighths(12, 9, 5)
    net = hidden_states(reset)
    spikes, stored = slow(x.tolist(), matrices(net), (0.5, 0.5), f"{reset}, late", strict=True)
    report = clipping.measure_silence(net, x, BOUNDS, timesteps=12)
    assert_silence(report, ["1", "3"], spikes, stored)
    explicit = clipping.measure_silence(Explicit(reset), x, BOUNDS)
    assert_silence(explicit, ["lif1", "lif2"], spikes, stored)


def test_batches_of_a_loader_count_as_one_large_batch():
    net, x = two_layers(), eighths(5, 9, 5)
    labels = torch.zeros(9, dtype=torch.long)
    pairs = [(x[:, :2], labels[:2]), (x[:, 2:], labels[2:])]
    whole = clipping.measure_silence(net, x, BOUNDS)
    assert clipping.measure_silence(net, pairs, BOUNDS) == whole
    assert clipping.measure_silence(net, [x[:, :2], x[:, 2:]], BOUNDS, progress=False) == whole


def test_a_region_without_neurons_has_no_rate_of_its_own():
    report = clipping.measure_silence(two_layers(), eighths(3, 2, 5), [-40])
    region = report["1"].at(-40)
    assert (region.share, region.rate, region.rate_within, region.woken) == (0, 0, None, None)


def test_what_is_not_called_or_keeps_no_membrane_has_a_note():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.psn = neuron.IFNode(), neuron.PSN(T=3)
            self.lif, self.spare = neuron.IFNode(step_mode="m"), neuron.IFNode()
            self.readout = neuron.NonSpikingIFNode()

        def forward(self, x):
            return self.lif(self.psn(x + self.stem(x[0])))

    report = clipping.measure_silence(Odd(), eighths(3, 2, 5))
    assert {row.path: row.note for row in report} == {
        "stem": "called for one step only",
        "psn": "keeps no membrane between steps",
        "lif": "",
        "spare": "not called by the sample",
    }


# Stepping changes nothing.


NODES = [
    neuron.IFNode(v_reset=None),
    neuron.LIFNode(tau=3.0, v_reset=-0.25),
    neuron.ParametricLIFNode(),
    neuron.EIFNode(),
    spq.spikingjelly.neuron.TernaryMembraneLIFNode(),
    spq.spikingjelly.neuron.TernaryMembraneIFNode(spatial_gate=spq.SpatialGate(0.4, "prior")),
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: type(node).__name__)
@pytest.mark.parametrize("recorded", [False, True])
def test_all_steps_at_once_and_one_after_the_other_are_the_same(node, recorded):
    functional.set_step_mode(node, "m")
    node.store_v_seq = recorded
    x = torch.randn(5, 2, 3, 4, 4)
    with spq.kernels.use("auto"), quiet_copy(node) as plain, quiet_copy(node) as stepped:
        expected, steps = plain(x), []
        watch_steps(stepped, lambda path, spikes, v: (steps.append((spikes, v)), v)[1])
        assert torch.equal(stepped(x), expected)
        assert torch.equal(torch.stack([spikes for spikes, _ in steps]), expected)
        assert torch.equal(steps[-1][1], plain.v)
        if recorded:
            assert torch.equal(stepped.v_seq, plain.v_seq)
            assert torch.equal(torch.stack([v for _, v in steps]), plain.v_seq)


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_gates_decide_the_same_while_neurons_are_stepped(source):
    net, x = networks.spiking_jelly("m"), torch.rand(4, 2, 2, 8, 8).round()
    gate = spq.ChannelGate(source=source)
    net = spq.convert(net, spq.presets.spquant_snn(channel_gate=gate), x)
    (gate,) = (module for module in net.modules() if isinstance(module, ChannelGate))
    nn.init.normal_(gate.weight, std=9.0)
    with quiet_copy(net) as plain, quiet_copy(net) as stepped:
        watch_steps(stepped, lambda path, spikes, stored: stored)
        assert torch.equal(stepped(x), plain(x))
        stats = spq.gate_stats(plain)
        assert spq.gate_stats(stepped) == stats
        assert 0 < max(stats.values()) < 1
    report = clipping.measure_silence(net, x, [-0.1])
    functional.set_step_mode(net, "s")
    assert clipping.measure_silence(net, x, [-0.1], timesteps=4) == report


# Table 1.


def outputs_under(net, x, bound, **options):
    """What the network returns, seen by ``predict``."""
    seen = []

    def predict(outputs):
        seen.append(outputs)
        return torch.zeros(x.shape[1], dtype=torch.long)

    batches = [(x, torch.zeros(x.shape[1], dtype=torch.long))]
    report = clipping.sweep_bounds(net, batches, [bound], predict=predict, **options)
    return seen, report


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("soft", [False, True])
def test_spikingjelly_clipped_is_a_slow_loop_with_a_maximum(soft, device):
    x, net, reset = eighths(6, 7, 5), two_layers("m", soft), "subtract" if soft else "zero"
    for bound in (-0.5, -2.0):
        spikes, stored = slow(x.tolist(), matrices(net), (0.5, 1.0), reset, False, clip=bound)
        (plain, clipped), report = outputs_under(net.to(device), x, bound)
        assert torch.equal(clipped.cpu(), torch.tensor(spikes[-1]))
        free, _ = slow(x.tolist(), matrices(net), (0.5, 1.0), reset, False)
        assert torch.equal(plain.cpu(), torch.tensor(free[-1]))
        assert not torch.equal(plain, clipped)
        at_bound = [v == bound for part in stored for step in part for row in step for v in row]
        # A potential that was the bound already does not count as clipped.
        assert 0 < report[bound].clipped <= sum(at_bound) / len(at_bound)
    net = net.cpu()
    functional.set_step_mode(net, "s")
    (_, stepped), again = outputs_under(net, x, -2.0, timesteps=6)
    assert torch.equal(stepped, clipped.cpu())
    assert again == report


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorch_clipped_is_a_slow_loop_with_a_maximum_in_both_idioms(reset):
    x = eighths(6, 7, 5)
    net = hidden_states(reset)
    arguments = (x.tolist(), matrices(net), (0.5, 0.5), f"{reset}, late", True)
    spikes, stored = slow(*arguments, clip=-1.0)
    (plain, clipped), _ = outputs_under(net, x, -1.0, timesteps=6)
    assert torch.equal(clipped[0], torch.tensor(spikes[-1]))
    assert torch.equal(clipped[1], torch.tensor(stored[-1]))
    assert not torch.equal(plain[0], clipped[0])
    (_, clipped), _ = outputs_under(Explicit(reset), x, -1.0)
    assert torch.equal(clipped[0], torch.tensor(spikes[-1]))
    assert torch.equal(clipped[1], torch.tensor(stored[-1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True),
        lambda: snn.Lapicque(beta=0.5, init_hidden=True),
        lambda: snn.RLeaky(beta=0.5, linear_features=4, init_hidden=True),
        lambda: snn.RSynaptic(alpha=0.5, beta=0.5, linear_features=4, init_hidden=True),
    ],
    ids=["Synaptic", "Lapicque", "RLeaky", "RSynaptic"],
)
def test_every_neuron_of_snntorch_keeps_at_least_the_bound(make):
    node, x = make(), torch.randn(5, 3, 4) - 1
    with quiet_copy(node) as clipped:
        kept = []
        watch_steps(clipped, lambda p, s, v: (kept.append(v.clamp(min=-0.5)), kept[-1])[1])
        for step in x:
            clipped(step)
            assert clipped.mem is kept[-1]
            assert clipped.mem.min() == -0.5
    assert clipping.sweep_bounds(
        nn.Sequential(node), [(x, torch.zeros(3, dtype=torch.long))], [-0.5], timesteps=5
    )[-0.5].clipped


def test_a_bound_that_nothing_reaches_changes_nothing():
    net, x = two_layers(), eighths(6, 7, 5)
    (plain, clipped), report = outputs_under(net, x, -1e6)
    assert torch.equal(plain, clipped)
    assert report[-1e6].clipped == 0


def test_a_recorded_membrane_is_the_clipped_one():
    class ReadsMembrane(nn.Module):
        def __init__(self, step_mode):
            super().__init__()
            self.lif = neuron.LIFNode(decay_input=False, step_mode=step_mode, store_v_seq=True)

        def forward(self, x):
            if self.lif.step_mode == "m":
                self.lif(x)
            else:
                for step in x:
                    self.lif(step)
            return self.lif.v_seq

    x = eighths(6, 7, 5)
    (_, clipped), _ = outputs_under(ReadsMembrane("m"), x, -0.5)
    (plain, stepped), _ = outputs_under(ReadsMembrane("s"), x, -0.5)
    assert torch.equal(clipped, stepped)
    assert clipped.min() == -0.5
    assert plain.min() < -0.5


def test_rows_of_a_clipping_report():
    x, labels = eighths(6, 40, 5), torch.arange(40) % 4
    net = two_layers()
    batches = [(x[:, :25], labels[:25]), (x[:, 25:], labels[25:])]
    report = clipping.sweep_bounds(net, batches, (-1, -3))
    right = int((net(x).mean(0).argmax(1) == labels).sum())
    assert report[None].accuracy == right / 40
    assert [row.bound for row in report.rows] == [None, -1.0, -3.0]
    assert report[-1].clipped > report[-3].clipped > 0
    lines = str(report).splitlines()
    assert lines[0] == "Sequential, accuracy with the stored membranes clipped from below"
    assert lines[4].split()[:3] == ["none", f"{100 * right / 40:.2f}", "%"]
    change = 100 * (report[-1].accuracy - report[None].accuracy)
    assert lines[5].split()[3] == f"{change:+.2f}"
    assert "| -1 | " in report.to_markdown()
    assert json.loads(report.to_json()) == report.to_dict()
    assert report.to_dict()["rows"][0] == {"bound": None, "accuracy": right / 40, "clipped": 0.0}
    with pytest.raises(KeyError, match=r"-2 has no row here. There are: None, -1, -3\."):
        report[-2]


# Sweeps.


def digits():
    return [(eighths(3, 6, 5, seed=s).abs(), torch.arange(6) % 4) for s in (3, 4)]


def test_each_row_of_a_sweep_is_what_convert_and_analyze_give():
    net = two_layers()
    configs = {
        "as it is": None,
        "ternary": spq.SpQuantConfig(membrane=spq.TernaryMembrane()),
        "2 bit": spq.SpQuantConfig(membrane=spq.UniformMembrane(2), weights=spq.UniformWeights(4)),
    }
    found = clipping.sweep(net, configs, digits())
    assert not found.trained
    for name, config in configs.items():
        changed = net if config is None else spq.convert(net, config, digits()[0][0])
        memory = spq.analyze(changed, digits()[0][0]).memory
        assert found[name].membrane_bytes == memory.membrane_bytes
        assert found[name].total_bytes == memory.total_bytes
        assert found[name].accuracy == clipping.measure_accuracy(changed, digits())
    assert found["as it is"].membrane_bytes == 10 * 4
    assert found["ternary"].membrane_bytes == 10 * 2 / 8
    with pytest.raises(
        KeyError, match=r"'binary' has no row here. There are: 'as it is', 'ternary'"
    ):
        found["binary"]


@pytest.mark.parametrize(
    "rule", [spq.BinaryMembrane(), spq.UniformMembrane(4), spq.TernaryMembrane(unit=0.5)]
)
@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_another_membrane_of_a_converted_network_is_that_of_the_float_one(rule, host):
    """Whose weights are those that were trained with a ternary membrane."""
    x = eighths(8, 6, 5)
    net = two_layers() if host == "spikingjelly" else Explicit("zero")
    quantized = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()), x)
    expected = spq.convert(net, spq.SpQuantConfig(membrane=rule), x)(x)
    seen = []

    def predict(outputs):
        seen.append(outputs)
        return torch.zeros(6, dtype=torch.long)

    batches = [(x, torch.zeros(6, dtype=torch.long))]
    configs = {"ternary": None, "other": spq.SpQuantConfig(membrane=rule)}
    found = clipping.sweep(quantized, configs, batches, predict=predict)
    spikes = [outputs if host == "spikingjelly" else outputs[0] for outputs in seen]
    assert torch.equal(spikes[1], expected if host == "spikingjelly" else expected[0])
    assert not torch.equal(spikes[0], spikes[1])
    assert (
        found["other"].membrane_bytes
        == spq.analyze(
            spq.convert(net, spq.SpQuantConfig(membrane=rule), x), x
        ).memory.membrane_bytes
    )


def test_a_network_of_single_steps_is_swept_step_by_step():
    net, x = hidden_states("subtract"), eighths(6, 7, 5)
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    batches = [(x, torch.arange(7) % 4)]
    found = clipping.sweep(net, {"ternary": config}, batches, timesteps=6)
    changed = spq.convert(net, config, x[0])
    spikes = torch.stack([changed(step)[0] for step in x])
    right = int((spikes.mean(0).argmax(1) == torch.arange(7) % 4).sum())
    assert found["ternary"].accuracy == right / 7


@pytest.mark.parametrize("device", DEVICES)
def test_the_publications_sweeps_ask_for_what_they_say(device):
    net = two_layers().to(device)
    found = clipping.compare_membranes(net, digits())
    assert [row.name for row in found.rows] == ["as it is", "ternary", "binary"]
    assert [row.membrane_bytes for row in found.rows] == [40.0, 2.5, 1.25]
    found = clipping.sweep_levels(net, digits(), bits=(2, 8))
    assert [row.name for row in found.rows] == ["as it is", "binary", "ternary", "2 bit", "8 bit"]
    assert [row.membrane_bytes for row in found.rows] == [40.0, 1.25, 2.5, 2.5, 10.0]
    config = spq.SpQuantConfig(weights=spq.UniformWeights(4))
    ours = clipping.compare_membranes(net, digits(), config=config)
    assert ours["binary"].total_bytes < ours["as it is"].total_bytes / 4


def test_every_row_is_trained_where_that_is_asked_for():
    shapes, seen = [], []

    def train(net):
        shapes.append(net[1].membrane.shape)
        seen.append(net)
        nn.init.zeros_(net[0].weight)

    net = two_layers()
    membrane = spq.TernaryMembrane(temperature=3.0)
    config = spq.SpQuantConfig(membrane=membrane, weights=spq.UniformWeights(4))
    before = net[0].weight.clone()
    found = clipping.sweep_shapes(net, digits(), train, config=config)
    assert shapes == ["sigmoid", "arctan", "triangle", "piecewise"] == [r.name for r in found.rows]
    assert {net[1].membrane.temperature for net in seen} == {3.0}
    assert all(isinstance(net[0].weight_quantizer.rule, spq.UniformWeights) for net in seen)
    assert found.trained
    assert str(found).startswith("Sequential, each row trained\n")
    # Without weights nothing fires, and all outputs are those of class 0.
    assert {row.accuracy for row in found.rows} == {4 / 12}
    assert torch.equal(net[0].weight, before)
    clipping.sweep_shapes(QUANTIZED, digits(), train, shapes=["arctan"])
    assert shapes[-1] == "arctan"
    assert seen[-1] is not QUANTIZED
    found = clipping.sweep(
        net, {"a": None}, digits(), fine_tune=lambda net: nn.init.zeros_(net[0].weight)
    )
    assert found["a"].accuracy == 4 / 12


def test_a_sweep_as_text_and_record():
    rows = (
        clipping.SweepRow("as it is", 0.9, 4000.0, 9000.0),
        clipping.SweepRow("ternary", 0.885, 250.0, 5250.0),
    )
    found = clipping.Sweep("Net", False, rows)
    assert str(found).splitlines() == [
        "Net, without training",
        "",
        "network   accuracy  change (points)  membranes  total",
        "--------  --------  ---------------  ---------  -------",
        "as it is  90.00 %                    4 kB       9 kB",
        "ternary   88.50 %   -1.50            250 B      5.25 kB",
    ]
    assert found.to_markdown().splitlines()[-1] == "| ternary | 88.50 % | -1.50 | 250 B | 5.25 kB |"
    assert json.loads(found.to_json()) == {
        "model": "Net",
        "trained": False,
        "rows": [
            {"name": "as it is", "accuracy": 0.9, "membrane_bytes": 4000.0, "total_bytes": 9000.0},
            {"name": "ternary", "accuracy": 0.885, "membrane_bytes": 250.0, "total_bytes": 5250.0},
        ],
    }


# Accuracy.


def test_accuracy_reads_the_mean_over_time_or_what_predict_says():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 2.0]]])  # [T, N, classes]
    labels = torch.tensor([1, 0])
    assert clipping.measure_accuracy(nn.Identity(), [(scores, labels)]) == 0.5
    assert clipping.measure_accuracy(nn.Identity(), [(scores[1], labels)]) == 0.5
    first = clipping.measure_accuracy(
        nn.Identity(), [(scores, labels)], predict=lambda outputs: outputs[0].argmin(1)
    )
    assert first == 1.0


def test_nothing_of_the_model_or_the_process_changes():
    net, x = two_layers(), eighths(3, 6, 5)
    net[0].register_forward_hook(lambda *call: calls.append(call))
    calls = []
    net.train()
    net(x)
    calls.clear()
    kept, states = copy.deepcopy(net.state_dict()), [net[1].v, net[3].v]
    other, instances = hidden_states("zero"), list(SpikingNeuron.instances)
    given, generator = x.clone(), torch.get_rng_state()
    clipping.measure_silence(net, x, [-1])
    clipping.sweep_bounds(net, digits(), [-1])
    clipping.compare_membranes(net, digits())
    clipping.measure_accuracy(net, digits())
    clipping.measure_silence(other, x, [-1], timesteps=3)
    assert net[1].v is states[0]
    assert torch.equal(net[3].v, states[1])
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert net.training
    assert calls == []
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), generator)
    assert "forward" not in net[1].__dict__
    assert SpikingNeuron.instances == instances  # no copy among them


def test_snntorch_rows_leave_the_hosts_list_unless_someone_was_given_them():
    net, x = Explicit("zero"), eighths(3, 6, 5)
    batches, before = [(x, torch.arange(6) % 4)], len(SpikingNeuron.instances)
    clipping.compare_membranes(net, batches)
    assert len(SpikingNeuron.instances) == before
    trained = []
    clipping.compare_membranes(net, batches, fine_tune=trained.append)
    assert len(SpikingNeuron.instances) == before + 2 * len(trained)


# Refusals.

NET = two_layers()
X, LABELS = eighths(3, 6, 5), torch.arange(6) % 4
GATED = nn.Sequential(
    spq.spikingjelly.neuron.TernaryMembraneLIFNode(step_mode="m", spatial_gate=spq.SpatialGate(0.5))
)
QUANTIZED = spq.convert(NET, spq.SpQuantConfig(membrane=spq.TernaryMembrane()), X)
BOTH = spq.SpQuantConfig(membrane=spq.BinaryMembrane(), weights=spq.UniformWeights(4))


def silence(*args, **options):
    return lambda: clipping.measure_silence(*args, **options)


def clip(*args, **options):
    return lambda: clipping.sweep_bounds(*args, **options)


def sweep(*args, **options):
    return lambda: clipping.sweep(*args, **options)


def at_rest(value):
    return neuron.LIFNode(v_reset=value, step_mode="m")


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (silence(NET, X, 3), "bounds = 3: must be a sequence of at least one number below 0"),
        (silence(NET, X, []), r"bounds = \[\]: must be a sequence"),
        (silence(NET, X, "-1"), "bounds = '-1': must be a sequence"),
        (silence(NET, X, [1.0]), "bounds hold 1.0: each must be a finite number below 0"),
        (silence(NET, X, [0]), "bounds hold 0: each must be"),
        (silence(NET, X, [float("nan")]), "bounds hold nan"),
        (silence(NET, X, [-float("inf")]), "bounds hold -inf"),
        (silence(NET, X, ["a"]), "bounds hold 'a'"),
        (silence(NET, X, [-1, -1.0]), "bounds hold -1 twice"),
        (clip(NET, [(X, LABELS)], [2]), "bounds hold 2: each must be"),
        (
            silence(at_rest(-1.5), X, [-1, -2]),
            r"\(model\) \(LIFNode\) rests at -1.5: every bound must lie below that, and -1 does",
        ),
        (clip(at_rest(-1.5), [(X, LABELS)], [-1]), "rests at -1.5"),
        (silence(nn.Linear(5, 2), X), "holds 0 spiking neuron layers that keep a membrane"),
        (silence(neuron.PSN(T=3), X), "none of its 1 neuron layers keeps a membrane between"),
        (silence(NET, X[:1]), "the sample gave 1 time steps: .* at least 2"),
        (silence(NET, X, timesteps=0), "timesteps = 0: must be a whole number above 0"),
        (silence(NET, X, timesteps=4), r"timesteps = 4: the sample holds a tensor of shape \(3, 6"),
        (silence(NET, "x"), "sample_or_loader = str: must be what one call"),
        (silence(NET, []), "sample_or_loader = an empty list"),
        (clip(NET, X), "loader = Tensor: must give batches"),
        (clip(NET, 3), "loader = int: must give batches"),
        (clip(NET, iter([(X, LABELS)])), "list_iterator: can be run through once only"),
        (clip(NET, []), "loader = empty: accuracy needs at least one sample"),
        (sweep(NET, {"a": None}, []), "loader = empty: accuracy needs at least one sample"),
        (clip(NET, [X]), r"loader gave Tensor\(\): each batch must be \(x, labels\)"),
        (clip(NET, [(X, 3)]), r"loader gave tuple\(Tensor, int\): each batch must be"),
        (clip(NET, [(X, LABELS[:4])]), r"predict gave \(6,\) for labels of shape \(4,\)"),
        (clip(NET, [(X, LABELS)], predict=lambda y: 3), r"predict gave int for labels"),
        (
            clip(nn.Sequential(NET, nn.Flatten(0)), [(X, LABELS)]),
            r"the model returned \(72,\): must be scores \[N, classes\] or",
        ),
        (clip(GATED, [(X[..., None], LABELS)]), r"0 \(TernaryMembraneLIFNode\): a gate reads what"),
        (sweep(NET, {}, [(X, LABELS)]), r"configs = \{\}: must map at least one name"),
        (sweep(NET, [None], [(X, LABELS)]), r"configs = \[None\]: must map"),
        (
            sweep(NET, {"a": spq.TernaryMembrane()}, [(X, LABELS)]),
            r"configs\['a'\] = TernaryMembrane: names must be text",
        ),
        (sweep(NET, {1: None}, [(X, LABELS)]), r"configs\[1\] = NoneType: names must be text"),
        (
            sweep(NET, {"a": None}, [(X, LABELS)], fine_tune=3),
            "fine_tune = int: must be a function",
        ),
        (sweep(QUANTIZED, {"a": BOTH}, [(X, LABELS)]), "converted already, so only its membranes"),
        (sweep(QUANTIZED, {"a": spq.SpQuantConfig()}, [(X, LABELS)]), "only its membranes"),
        (
            lambda: clipping.sweep_levels(NET, [(X, LABELS)], 4),
            "bits = 4: must be a sequence of whole numbers from 2 to 8",
        ),
    ],
)
def test_what_is_refused_and_why(refused, told):
    with pytest.raises(AnalysisError, match=told):
        refused()


def test_refusals_of_other_parts_come_through():
    batches = [(X, LABELS)]
    with pytest.raises(ConfigError, match="bits"):
        clipping.sweep_levels(NET, batches, (1,))
    with pytest.raises(ConfigError, match="shape"):
        clipping.sweep_shapes(NET, batches, print, shapes=("cube",))
    with pytest.raises(ConversionError, match=r"model = int: must be a torch.nn.Module"):
        clipping.measure_silence(3, X)
    with pytest.raises(spq.errors.SampleError, match=r"sample of shape \(3, 6, 4\): Sequential"):
        clipping.measure_accuracy(NET, [(X[..., :4], LABELS)])
    with pytest.raises(KeyError, match=r"-7 has no region here. There are: -1\."):
        clipping.measure_silence(NET, X, [-1])["1"].at(-7)


def test_a_network_with_float_membranes_only_has_none_to_change():
    adaptive = spq.convert(NET, spq.SpQuantConfig(threshold=spq.LearnableThreshold()), X)
    with pytest.raises(AnalysisError, match="converted with float membranes, so there is none"):
        clipping.compare_membranes(adaptive, [(X, LABELS)])


def test_a_membrane_that_a_converted_neuron_cannot_take_is_refused_with_its_path():
    late = spq.convert(Explicit("subtract"), spq.SpQuantConfig(membrane=spq.TernaryMembrane()), X)
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=9.0))
    with pytest.raises(ConversionError, match=r"lif1: .* a delayed reset needs a level above 0"):
        clipping.sweep(late, {"a": config}, [(X, LABELS)])
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.5))
    with pytest.warns(spq.errors.SelfFiringWarning, match="3: fires without input"):
        clipping.sweep(QUANTIZED, {"a": config}, [(X, LABELS)])


def test_a_neuron_that_serves_two_places_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = neuron.IFNode(step_mode="m")

        def forward(self, x):
            return self.lif(self.lif(x)[..., :2])

    with pytest.raises(
        AnalysisError, match=r"lif: stores a membrane of shape \(6, 2\) after one of"
    ):
        clipping.measure_silence(Shared(), X)


def test_without_tqdm_a_bar_is_an_error_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert clipping.sweep_bounds(NET, [(X, LABELS)], [-1]).rows
    with pytest.raises(MissingHostError, match=r"sweep_bounds\(progress=True\) needs tqdm"):
        clipping.sweep_bounds(NET, [(X, LABELS)], [-1], progress=True)


def test_the_bar_counts_the_batches_of_all_rows(capsys):
    clipping.sweep_bounds(NET, [(X, LABELS)] * 2, [-1, -2], progress=True)
    assert "6/6" in capsys.readouterr().err
    clipping.sweep_bounds(NET, [(X, LABELS)], [-1], progress=False)
    assert capsys.readouterr().err == ""


# Plots.


def test_the_plot_of_silence_has_a_bar_for_each_layer_and_bound(monkeypatch):
    report = clipping.measure_silence(two_layers(), eighths(6, 7, 5), BOUNDS)
    figure = report.plot()
    left, right = figure.axes
    assert [len(bars) for bars in left.containers] == [2] * 4
    for bars, bound in zip(left.containers, BOUNDS, strict=True):
        widths = [bar.get_width() for bar in bars]
        assert widths == pytest.approx([100 * row.at(bound).rate for row in report])
    assert right.get_xlabel() == "of the neurons below the bound (%)"
    assert left.get_yticklabels()[0].get_text() == f"1\nlowest {report['1'].lowest:.3g}"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingHostError, match=r"plot\(\) needs matplotlib"):
        report.plot()


def test_the_plots_of_accuracies_show_every_row():
    report = clipping.sweep_bounds(NET, digits(), (-1, -3))
    above, below = report.plot().axes
    assert above.lines[1].get_xdata().tolist() == [-3.0, -1.0]
    assert above.lines[1].get_ydata().tolist() == [100 * report[b].accuracy for b in (-3, -1)]
    assert [bar.get_height() for bar in below.patches] == [
        100 * report[b].clipped for b in (-3, -1)
    ]
    found = clipping.sweep_levels(NET, digits(), (2, 4))
    bars, points = found.plot().axes
    assert [bar.get_width() for bar in bars.patches] == [100 * row.accuracy for row in found.rows]
    assert {text.get_text() for text in points.texts} == {row.name for row in found.rows}
    same = clipping.Sweep("Net", True, tuple(clipping.SweepRow(n, 0.5, 8.0, 9.0) for n in "ab"))
    assert len(same.plot().axes) == 1


# The example.


def test_the_whole_study_of_the_example_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script, quickstart = importlib.import_module("clipping"), importlib.import_module("quickstart")
    try:
        motion = partial(spq.data.Motion, level="easy", count=64, steps=3, cache=False)
        monkeypatch.setattr(spq.data, "DigitEvents", lambda split, seed: motion(split, seed=seed))
        sizes = {"in_channels": 1, "size": 16, "num_classes": 4, "width": 0.125}
        small = partial(spq.models.create, "vgg5", **sizes)
        monkeypatch.setattr(quickstart, "network", lambda in_channels, classes: small())
        monkeypatch.setattr(script, "BITS", (2,))
        results, figures = tmp_path / "clipping.jsonl", tmp_path / "figures"
        figures.mkdir()
        command = ["clipping.py", "--epochs", "1", "--tuning", "1", "--results", str(results)]
        monkeypatch.setattr(sys, "argv", [*command, "--figures", str(figures)])
        script.main()
        printed = capsys.readouterr().out
        assert len(list(figures.iterdir())) == 7
        monkeypatch.setattr(sys, "argv", ["clipping.py", "--show", str(results)])
        script.main()
        assert capsys.readouterr().out == printed
        assert printed.count("ternary ") == 3
    finally:
        for name in ("clipping", "quickstart", "measurements", "figures"):
            sys.modules.pop(name, None)


def test_the_table_of_the_example_against_numbers_worked_out_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script = importlib.import_module("clipping")
    try:
        runs = []
        for accuracy, within in ((0.9, None), (0.94, 0.5)):
            region = {"bound": -1.0, "share": 0.2, "rate": 0.1, "rate_within": within, "woken": 0.3}
            layers = [{"path": "lif", "lowest": -accuracy, "regions": [region]}]
            rows = [
                {"name": name, "accuracy": share, "membrane_bytes": 1500.0}
                for name, share in (("as it is", accuracy), ("ternary", 0.9))
            ]
            clipped = [
                {"bound": None, "accuracy": accuracy, "clipped": 0.0},
                {"bound": -1.0, "accuracy": 0.92, "clipped": 0.25},
            ]
            bits = {"levels": 3, "entropy": accuracy, "most": 1.5}
            bits |= {"negative": 0.25, "zero": 0.5, "positive": 0.25}
            runs.append(
                {
                    "epochs": 4,
                    "tuning": 2,
                    "silence": {"layers": layers},
                    "bounds": {"rows": clipped},
                    "entropy": {"layers": [{"path": "fc", "entropy": None}], "totals": []},
                    **{name: {"rows": rows} for name in list(script.SWEEPS)[1:]},
                }
            )
            runs[-1]["entropy"]["totals"] = [{"path": "all", **bits}]
        lines = script.table(runs).splitlines()
    finally:
        for name in ("clipping", "quickstart", "measurements", "figures"):
            sys.modules.pop(name, None)
    expected = "lif -0.94 -1 20.00 % 10.00 % 50.00 % 30.00 %"
    assert " ".join(lines[4].split()) == expected
    assert " ".join(lines[8].split()) == "no bound 92.00 ± 2.83"
    assert " ".join(lines[9].split()) == "-1 92.00 ± 0.00 +0.00 25.00 %"
    assert " ".join(lines[14].split()) == "ternary 90.00 ± 0.00 -2.00 1.50 kB"
    assert " ".join(lines[-1].split()) == "all 3 0.9200 1.5000 25.00 % 50.00 % 25.00 %"


def test_shapes_are_swept_with_training_only():
    with pytest.raises(AnalysisError, match="train = NoneType: must be a function that trains"):
        clipping.sweep_shapes(NET, digits(), None)
    for shapes in ("sigmoid", ()):
        with pytest.raises(AnalysisError, match=r"shapes = .*: must be a sequence of at"):
            clipping.sweep_shapes(NET, digits(), print, shapes=shapes)


def test_a_quantised_membrane_says_that_nothing_lies_below_its_lowest_level():
    (row,) = clipping.measure_silence(our_ternary(), torch.zeros(3, 1, 4) - 9, [-0.5, -1]).layers
    assert (row.at(-0.5).share, row.at(-1).share) == (1.0, 0.0)
    assert row.note == "stores -1 and more: nothing lies below such a bound"


def our_ternary():
    from spquant_plugin.spikingjelly import neuron as ours

    return ours.TernaryMembraneLIFNode(step_mode="m", decay_input=False)
