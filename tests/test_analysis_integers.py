"""Reports of integer networks: what the trained model's report says, and what really differs."""

from __future__ import annotations

import functools
import io
import json
import math
from itertools import product

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.counting.pairs import Pairs
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from spquant_plugin.modules.gates import ChannelGate

pytestmark = pytest.mark.filterwarnings("ignore::spquant_plugin.errors.SelfFiringWarning")


@pytest.fixture(autouse=True)
def _eager():
    """Kernels of every membrane would take longer to build than to do without."""
    with spq.kernels.use("eager"):
        yield


LAYER = (
    *("kind", "dense", "nonzero", "effective", "acs", "macs", "comparisons", "skipped"),
    *("eq30", "eq30_ungated", "inputs", "input_size", "outputs", "weights", "numbers"),
)
SHARES = (
    *("zero_weights", "firing_rate", "channels_closed", "pixels_masked"),
    *("levels", "level_shares"),
)
HELD = (
    *("kind", "weights", "weight_bits", "weight_bytes", "neurons", "membrane_bits"),
    *("information_bits", "membrane_bytes", "spike_bits", "spike_bytes"),
)


def spikes(*shape, rate=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def conv_net(step_mode="m", pool=None):
    """Strided, grouped and dilated layers, with a pool in between."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.LIFNode(tau=1.5, v_threshold=0.5, decay_input=False),
        pool or layer.MaxPool2d(2),
        layer.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
        neuron.IFNode(v_threshold=0.1),
        layer.Conv2d(8, 6, (3, 2), stride=2),
        neuron.IFNode(v_threshold=0.05, v_reset=None),
        layer.Flatten(),
        layer.Linear(12, 5),
    )
    functional.set_step_mode(net, step_mode)
    return net.eval()


def leaky_net(loop=False, **options):
    torch.manual_seed(0)
    make = functools.partial(snn.Leaky, beta=0.9, threshold=0.1, init_hidden=True, **options)
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        make(),
        nn.Flatten(),
        nn.Linear(24, 8),
        make(),
        nn.Linear(8, 3),
    )
    return Loop(net) if loop else net


class Loop(nn.Module):
    """Calls a network step by step, on a sequence or on one input for all steps."""

    def __init__(self, net, repeats=0):
        super().__init__()
        self.net, self.repeats = net, repeats

    def forward(self, x):
        steps = [x] * self.repeats if self.repeats else x
        return torch.stack([self.net(step) for step in steps])


class Residual(nn.Module):
    """Spikes joined by addition, and a layer that stands at two places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = layer.Conv2d(2, 4, 3, padding=1)
        self.neuron1 = neuron.IFNode(v_threshold=0.2)
        self.shared = layer.Conv2d(4, 4, 3, padding=1)
        self.neuron2 = neuron.IFNode(v_threshold=0.1)
        self.neuron3 = neuron.IFNode(v_threshold=0.1)
        self.pool = layer.AvgPool2d(2)
        self.fc = layer.Linear(36, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.neuron1(self.conv1(x))
        x = x + self.neuron2(self.shared(x))
        x = self.pool(self.neuron3(self.shared(x)))
        return self.fc(x.flatten(2))


def pair(net, config, x, sample=None, timesteps=None, engine="torch"):
    """The converted model's report and that of its integer network, on the same data."""
    sample = x if sample is None else sample
    quantized = spq.convert(net, config, sample=sample).eval()
    spread_gates(quantized)
    whole = spq.to_integer(quantized, sample, engine=engine)
    return spq.analyze(quantized, x, timesteps=timesteps), spq.analyze(whole, x), whole


def spread_gates(model):
    """Make channel gates decide by what they read."""
    for index, gate in enumerate(m for m in model.modules() if isinstance(m, ChannelGate)):
        with torch.no_grad():
            gate.bias.copy_(torch.linspace(-0.6, 0.5, gate.bias.numel()))
            gate.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(index))


def assert_alike(model, whole):
    """Everything that does not differ by nature, layer by layer."""
    for row in model.operations:
        if row.kind in ("AC", "MAC", "gate"):
            for name in LAYER[: None if row.kind != "gate" else 8]:
                assert getattr(row, name) == getattr(whole.operations[row.path], name), (
                    row.path,
                    name,
                )
    assert [row.path for row in whole.sparsity]
    assert len(whole.sparsity) == len(model.sparsity)
    for row in model.sparsity:
        for name in SHARES:
            assert getattr(row, name) == getattr(whole.sparsity[row.path], name), (row.path, name)
    for row in model.memory:
        if row.kind in ("weights", "neuron"):
            for name in HELD:
                assert getattr(row, name) == getattr(whole.memory[row.path], name), (row.path, name)
    for name in (
        "dense",
        "effective",
        "effective_acs",
        "effective_macs",
        "skipped",
        "gates",
        "eq30",
    ):
        assert getattr(model.operations, name) == getattr(whole.operations, name)
    for name in ("weight_bytes", "membrane_bytes", "spike_bytes", "total_bytes"):
        assert getattr(model.memory, name) == getattr(whole.memory, name)


# --- equal where the same is counted ------------------------------------------------------------

QUANT = spq.presets.quant_snn(weight_bits=2)


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("pool", [None, layer.AvgPool2d(2)], ids=["max", "average"])
def test_layers_membranes_and_levels_are_those_of_the_model(step_mode, pool):
    x = spikes(3, 2, 2, 8, 8)
    sample, timesteps = (x, None) if step_mode == "m" else (x[0], 3)
    model, whole, _ = pair(conv_net(step_mode, pool), QUANT, x, sample, timesteps)
    assert model.operations.effective > 0
    assert min(r.spikes for r in _fired(model)) > 0
    assert_alike(model, whole)
    assert whole.model == "IntegerNetwork"


class _Rate:
    def __init__(self, row):
        self.spikes = row.firing_rate


def _fired(report):
    return [_Rate(row) for row in report.sparsity if row.firing_rate is not None]


@pytest.mark.parametrize(
    "weights", [spq.TernaryWeights(), spq.UniformWeights(4), spq.AdditivePowerOfTwoWeights(5)]
)
@pytest.mark.parametrize("membrane", [spq.BinaryMembrane(), spq.UniformMembrane(3)])
def test_stored_bits_are_the_quantisers_own(weights, membrane):
    config = spq.SpQuantConfig(membrane=membrane, weights=weights, edge_weights=weights)
    model, whole, _ = pair(conv_net(), config, spikes(2, 2, 2, 8, 8))
    assert_alike(model, whole)


@pytest.mark.parametrize("source", ["membrane", "input"])
@pytest.mark.parametrize("score", ["current", "prior", None])
@pytest.mark.parametrize("membrane", [spq.TernaryMembrane(), spq.UniformMembrane(3)])
def test_gates_take_off_what_they_take_off_the_model(source, score, membrane):
    config = spq.presets.spquant_snn(
        membrane=membrane,
        channel_gate=spq.ChannelGate(source=source),
        spatial_gate=None if score is None else spq.SpatialGate(0.4, score),
    )
    model, whole, _ = pair(conv_net(), config, spikes(4, 2, 2, 8, 8))
    assert model.operations.skipped > 0
    assert 0 < model.sparsity.channels_closed < 1
    assert_alike(model, whole)


def test_pixels_masked_beforehand_alone_are_taken_off_too():
    config = spq.presets.spquant_snn(channel_gate=None, spatial_gate=spq.SpatialGate(0.4, "prior"))
    model, whole, _ = pair(conv_net(), config, spikes(4, 2, 2, 8, 8))
    assert model.operations["0"].skipped > 0
    assert_alike(model, whole)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_snntorch_models_of_one_step(reset):
    x = spikes(5, 3, 2, 6)
    model, whole, net = pair(leaky_net(reset_mechanism=reset), QUANT, x, x[0], 5)
    assert net.graph["1"].remembers == (reset != "none")
    assert_alike(model, whole)


def test_loops_over_a_sequence_and_over_one_input():
    x = spikes(5, 3, 2, 6)
    assert_alike(*pair(leaky_net(loop=True), QUANT, x)[:2])
    assert_alike(*pair(Loop(leaky_net(), repeats=4), QUANT, x[0])[:2])


def test_joins_of_spikes_and_a_layer_at_two_places():
    model, whole, _ = pair(Residual(), QUANT, spikes(3, 2, 2, 6, 6))
    assert model.operations["shared"].outputs == 2 * 3 * 4 * 36
    assert_alike(model, whole)
    assert [row.path for row in whole.operations].count("shared") == 1


def test_an_analogue_input_is_counted_as_its_quantiser_makes_it():
    config = spq.presets.quant_snn(input=spq.UniformInput(4))
    model, whole, net = pair(conv_net(), config, torch.rand(2, 2, 2, 8, 8))
    assert_alike(model, whole)
    assert whole.operations["0"].kind == "MAC"
    assert whole.operations["0"].input_bits == 4
    assert net.graph.input.high == 15


def test_batches_of_a_loader_add_up(recwarn):
    x = spikes(3, 5, 2, 8, 8)
    quantized = spq.convert(conv_net(), QUANT, sample=x).eval()
    net = spq.to_integer(quantized, x, engine="torch")
    batches = [(x[:, :2], 0), (x[:, 2:4], 0), (x[:, 4:], 0)]
    whole, parts = spq.analyze(net, x), spq.analyze(net, batches, progress=False)
    assert parts.operations == whole.operations
    assert parts.sparsity == whole.sparsity
    assert parts.memory == whole.memory
    assert parts.energy == whole.energy
    assert_alike(spq.analyze(quantized, batches, progress=False), parts)
    first = spq.analyze(net, batches, max_batches=1)
    assert first.operations == spq.analyze(net, x[:, :2]).operations
    assert not recwarn.list


def test_batches_of_different_lengths_have_levels_for_the_longest():
    x = spikes(4, 2, 2, 8, 8)
    net = pair(conv_net(), QUANT, x)[2]
    found = spq.analyze(net, [x[:2], x])
    assert len(found.sparsity["2"].level_shares) == 4
    assert all(sum(shares) == pytest.approx(1) for shares in found.sparsity["2"].level_shares)


class PackedEngine(ReferenceEngine):
    """Tells its weights as a whole, and gives nothing but what it was asked for."""

    name = "packed"
    spike_bytes = None

    @property
    def weight_bytes(self):
        return 1000

    def held_bytes(self, state):
        return super().held_bytes(state) + 50


def test_every_engine_reports_the_same():
    x = spikes(2, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(membrane=spq.UniformMembrane(2))
    _, whole, net = pair(conv_net(), config, x)
    net.engine = PackedEngine(net.graph)
    assert spq.analyze(net, x).to_dict() == whole.to_dict()


# --- pairs, one by one --------------------------------------------------------------------------


def by_loop(node, x, size):
    """Pairs at each output ``[O, *space]``, all and nonzero."""
    kernel, axes = node.weight.shape[2:], range(len(size))
    outs, ins = node.weight.shape[0] // node.groups, node.weight.shape[1]
    every, nonzero = torch.zeros(node.shape), torch.zeros(node.shape)
    for o, i, tap, place in product(
        range(node.shape[0]),
        range(ins),
        product(*map(range, kernel)),
        product(*map(range, node.shape[1:])),
    ):
        spot = [
            place[d] * node.stride[d] - node.padding[d] + tap[d] * node.dilation[d] for d in axes
        ]
        if all(0 <= spot[d] < size[d] for d in axes):
            every[(o, *place)] += 1
            pixel = x[(o // outs * ins + i, *spot)]
            nonzero[(o, *place)] += bool(node.weight[(o, i, *tap)] != 0 and pixel != 0)
    return every, nonzero


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv1d(2, 3, 4, stride=3, padding=2), (8,)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (5, 6)),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), (4, 4)),
    ],
)
def test_pairs_against_a_loop(conv, size):
    x = spikes(3, conv.in_channels, *size)
    space = conv(x).shape[2:]
    named = {"inputs": ("input",), "low": 0, "high": 0}
    node = g.Convolution(
        name="conv",
        shape=(conv.out_channels, *space),
        weight=torch.randint(-1, 2, conv.weight.shape).to(torch.int8),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        **named,
    )
    source = g.Input(name="input", inputs=(), shape=(conv.in_channels, *size), low=0, high=1)
    pairs, found = Pairs(node, source), [by_loop(node, row, size) for row in x]
    nonzero = torch.stack([row[1] for row in found])
    assert pairs.dense() == int(found[0][0].sum())
    assert pairs.all(x.ne(0)) == int(nonzero.sum())
    assert torch.equal(pairs.by_channel(x.ne(0)).float(), nonzero.flatten(2).sum(2))
    assert torch.equal(pairs.by_place(x.ne(0), channels=True), nonzero)
    grouped = nonzero.unflatten(1, (conv.groups, -1)).sum(2)
    assert torch.equal(pairs.by_place(x.ne(0), channels=False), grouped)


# --- what differs -------------------------------------------------------------------------------


def small_net():
    """One layer of ones, of which the first 16 of 64 inputs spike, and IF neurons."""
    net = nn.Sequential(layer.Linear(64, 32, bias=False), neuron.IFNode(step_mode="m"))
    nn.init.ones_(net[0].weight)
    x = torch.zeros(4, 1, 64)
    x[:, :, :16] = 1.0
    weights = spq.TernaryWeights()
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(), weights=weights, edge_weights=weights
    )
    return net, config, x


def test_a_step_of_a_neuron_is_a_search_among_its_outcomes():
    model, whole, net = pair(*small_net())
    row, outcomes = whole.operations["1"], len(net.graph["1"].outcomes)
    assert (row.acs, row.macs) == (0, 0)
    assert row.comparisons == row.effective == 4 * 32 * math.ceil(math.log2(outcomes))
    assert whole.operations.neurons == row.effective != model.operations.neurons
    assert whole.operations.total == whole.operations.effective + row.effective


def test_energy_by_proven_widths():
    model, whole, net = pair(*small_net())
    node = net.graph["0"]
    assert (node.low, node.high) == (0, 64)
    row, outcomes = whole.energy["0"], len(net.graph["1"].outcomes)
    assert whole.operations["0"].sum_bits == 8  # 0 to 64 with a sign; the neuron's bound is 7 bits
    assert row.compute_pj == pytest.approx(4 * 16 * 32 * 0.03)
    assert (row.weight_pj, row.input_pj) == (
        model.energy["0"].weight_pj,
        model.energy["0"].input_pj,
    )
    neurons = whole.energy["1"]
    assert neurons.compute_pj == pytest.approx(4 * 32 * math.ceil(math.log2(outcomes)) * 0.1)
    assert neurons.memory_pj == model.energy["1"].memory_pj
    assert whole.energy.timesteps == 4


def test_sums_beyond_8_bits_are_int32():
    net, config, x = small_net()
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(),
        weights=spq.UniformWeights(8),
        edge_weights=spq.UniformWeights(8),
    )
    _, whole, _ = pair(net, config, x)
    assert whole.operations["0"].sum_bits == (64 * 127).bit_length() + 1
    assert whole.energy["0"].compute_pj == pytest.approx(4 * 16 * 32 * 0.1)


def test_pools_and_joins_are_shown_and_in_no_total():
    _, whole, net = pair(Residual(), QUANT, spikes(3, 2, 2, 6, 6))
    rows = {row.kind: row for row in whole.operations}
    pool, add = rows["pool"], rows["add"]
    inputs = net.run(spikes(3, 2, 2, 6, 6), record=True).spikes["neuron3"]
    assert pool.dense == 3 * 4 * 36
    assert pool.acs == float(inputs.sum()) / 2
    assert (add.acs, add.macs) == (3 * 4 * 36, 0)
    assert add.note == "in no total"
    assert whole.operations.total == sum(
        row.effective for row in whole.operations if row.kind in ("AC", "MAC", "neuron", "gate")
    )
    assert pool.path not in {row.path for row in whole.energy}


class Currents(nn.Module):
    """Two branches of currents, normalised and added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4)
        self.conv2, self.norm2 = layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4)
        self.neuron = neuron.IFNode(v_threshold=0.1)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.neuron(self.norm1(self.conv1(x)) + self.norm2(self.conv2(x)))


def test_dyadic_norms_and_their_sum_are_rows_of_their_own():
    x, weights = spikes(2, 2, 2, 8, 8), spq.TernaryWeights()
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(),
        weights=weights,
        edge_weights=weights,
        norm=spq.QuantizedNorm(mode="dyadic"),
    )
    model, whole, _ = pair(Currents().eval(), config, x)
    for path in ("norm1", "norm2"):
        row, held = whole.operations[path], whole.memory[path]
        assert (row.kind, row.acs, row.macs, row.note) == ("norm", 0, 2 * 4 * 36, "in no total")
        assert (held.kind, held.other_bytes) == ("norm", 2 * 4 * 4)
    (add,) = (row for row in whole.operations if row.kind == "add")
    assert add.acs + add.macs >= 2 * 4 * 36
    assert_alike(model, whole)


def test_weights_wider_than_8_bits_count_as_the_two_layers_that_run():
    weights = spq.AdditivePowerOfTwoWeights(8)
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(), weights=weights, edge_weights=weights
    )
    x = spikes(2, 2, 2, 8, 8)
    model, whole, net = pair(conv_net(), config, x)
    row, parts = whole.operations["0"], [net.graph[f"0 ({part})"] for part in ("high", "low")]
    assert row.dense == 2 * model.operations["0"].dense
    assert (
        row.effective
        == sum(Pairs(part, net.graph.input).all(x.flatten(0, 1)) for part in parts) / x.shape[1]
    )
    assert "two layers" in row.note
    assert row.sum_bits == max(net.graph["0"].high, -net.graph["0"].low).bit_length() + 1
    assert whole.sparsity["0"].zero_weights == model.sparsity["0"].zero_weights
    assert whole.memory.weight_bytes == model.memory.weight_bytes
    held = spq.analyze(net, x, memory="measured").memory["0"]
    assert held.weight_bytes == 2 * held.weights


# --- memory -------------------------------------------------------------------------------------


def test_paper_tables_count_spikes_as_of_a_quantised_network():
    net, config, x = small_net()
    model = spq.convert(net, config, sample=x)
    whole = spq.to_integer(model, x, engine="torch")
    held = [spq.analyze(which, x, memory="paper_tables").memory for which in (model, whole)]
    assert [part.spike_bytes for part in held] == [32.0, 32.0]
    assert held[0].total_bytes == held[1].total_bytes


def test_measured_bytes_are_those_of_the_tensors_that_are_held():
    x = spikes(3, 2, 2, 8, 8)
    net = pair(conv_net(), QUANT, x)[2]
    held = spq.analyze(net, x, memory="measured").memory
    state = net.engine.rest(2)
    assert held.weight_bytes == sum(node.weight.nbytes for node in net.graph.layers)
    assert held.membrane_bytes + held["(engine)"].other_bytes == net.engine.held_bytes(state) / 2
    assert held["2"].membrane_bytes == 8 * 64
    assert held["2"].membrane_bits == 8
    found = net.run(x, record=True).spikes["2"]
    assert held["2"].spike_bytes == found.nbytes / 2
    assert held["2"].spike_bits == 32
    tables = [net.graph["2"].sign, net.graph["2"].breaks, net.graph["2"].outcomes]
    assert held["2"].other_bytes == sum(table.nbytes for table in tables)
    parts = (held.weight_bytes, held.membrane_bytes, held.spike_bytes, held.other_bytes)
    assert held.total_bytes == sum(parts)


def test_an_engine_that_tells_its_weights_as_a_whole_has_a_row_for_them():
    x = spikes(3, 2, 2, 8, 8)
    net = pair(conv_net(), QUANT, x)[2]
    net.engine = PackedEngine(net.graph)
    held = spq.analyze(net, x, memory="measured").memory
    assert held["(engine)"].weight_bytes == held.weight_bytes == 1000
    assert (held["0"].weights, held["0"].weight_bytes) == (144, 0)
    assert held["0"].note == "bytes at (engine)"
    # States of no layer: 50 bytes, and a byte for each of two samples.
    assert held.other_bytes == held["(engine)"].other_bytes == 52 / 2
    assert (held["2"].spike_bytes, held["2"].note) == (0, "its engine tells no bytes of spikes")
    assert "'packed'" in held.table()


def test_a_stored_network_keeps_its_bits(tmp_path):
    from spquant_plugin.deploy.file.store import load_graph

    x = spikes(3, 2, 2, 8, 8)
    _, whole, net = pair(conv_net(), spq.presets.spquant_snn(), x)
    net.save(tmp_path / "net.spq")
    again = spq.IntegerNetwork(*load_graph(tmp_path / "net.spq"), engine="torch")
    assert spq.analyze(again, x).to_dict() == whole.to_dict()


# --- reports ------------------------------------------------------------------------------------


def test_it_stands_beside_models():
    net, config, x = small_net()
    quantized, whole, _ = pair(net, config, x)
    both = spq.compare(spq.analyze(net, x), quantized, whole)
    assert both.names == ("Sequential 1", "Sequential 2", "IntegerNetwork")
    assert both.ratio(2, "weight") == both.ratio(1, "weight") == 16
    assert both.operation_ratio(2, "effective") == 1
    assert both.energy_ratio(2) > both.energy_ratio(1)
    assert "IntegerNetwork" in both.table()
    assert json.loads(both.to_json())
    for report in (whole, both):
        report.plot().savefig(io.BytesIO(), format="png")
        assert report.to_markdown()
    assert json.loads(whole.to_json()) == whole.to_dict()
    assert "tables of comparisons" in whole.table()


def test_a_stream_and_the_random_generator_stay_as_they_are():
    net, config, x = small_net()
    whole = pair(net, config, x)[2]
    whole.step(x[0])
    state = {name: part.clone() for name, part in whole._state.items()}
    before = torch.random.get_rng_state()
    spq.analyze(
        whole,
        torch.utils.data.DataLoader(
            list(x.transpose(0, 1)), collate_fn=lambda b: torch.stack(b, 1), shuffle=True
        ),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(whole._state[name], part) for name, part in state.items())


def test_silence_is_warned_of_where_it_was_asked_for():
    net, config, x = small_net()
    whole = pair(net, config, x)[2]
    with pytest.warns(
        spq.errors.AnalysisWarning, match="IntegerNetwork: no neuron fired on 1"
    ) as seen:
        spq.analyze(whole, torch.zeros_like(x))
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"training": True}, "training = True: IntegerNetwork does not train"),
        ({"agreement": "neurobench"}, "agreement = 'neurobench': other tools count modules"),
        ({"timesteps": 3}, "timesteps = 3: the integer network runs 4 steps"),
        ({"timesteps": True}, "timesteps = True: the integer network runs 4 steps"),
        ({"memory": "equations"}, "Closest: 'equation'"),
        ({"energy": "45"}, "energy = '45'"),
        ({"max_batches": 0}, "max_batches = 0"),
    ],
)
def test_what_it_cannot_be_asked_is_refused(options, words):
    net, config, x = small_net()
    whole = pair(net, config, x)[2]
    with pytest.raises(spq.errors.AnalysisError, match=words):
        spq.analyze(whole, x, **options)


def test_inputs_that_do_not_fit_are_refused():
    net, config, x = small_net()
    whole = pair(net, config, x)[2]
    assert spq.analyze(whole, (x,), timesteps=4).to_dict() == spq.analyze(whole, x).to_dict()
    with pytest.raises(spq.errors.DeployError, match="x has shape"):
        spq.analyze(whole, x[:, :, :5])
    with pytest.raises(spq.errors.DeployError, match="batch 2, x has shape"):
        spq.analyze(whole, [x, x[:, :, :5]])
    with pytest.raises(spq.errors.SampleError, match="tuple: must be one tensor"):
        spq.analyze(whole, (x, x))
    with pytest.raises(spq.errors.AnalysisError, match="an empty list"):
        spq.analyze(whole, [])


def test_stored_bits_of_a_graph_made_by_hand_are_checked():
    from dataclasses import replace

    from spquant_plugin.deploy.check.whole import check_graph

    net, config, x = small_net()
    graph = pair(net, config, x)[2].graph
    nodes = tuple(replace(n, bits=9) if isinstance(n, g.Dense) else n for n in graph.nodes)
    with pytest.raises(spq.errors.DeployError, match=r"0\.bits = 9: must be a whole number from 1"):
        check_graph(g.Graph(nodes, graph.outputs))
