"""Energies by plain arithmetic: every pJ of small networks, named models, and what comes back."""

from __future__ import annotations

import copy
import json
import math

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter.simple_energy import estimate_simple_energy
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import EnergyTable

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
# As printed: pJ of an addition and of a product, and of 64 bits from a memory of so many bytes.
ADD = {
    "45nm": {"INT8": 0.03, "INT32": 0.1, "FP16": 0.4, "FP32": 0.9},
    "7nm": {"INT8": 0.007, "INT32": 0.03, "FP16": 0.16, "FP32": 0.38},
}
MUL = {
    "45nm": {"INT8": 0.2, "INT32": 3.1, "FP16": 1.1, "FP32": 3.7},
    "7nm": {"INT8": 0.07, "INT32": 1.48, "FP16": 0.34, "FP32": 1.31},
}
SRAM = {"45nm": (10.0, 20.0, 100.0), "7nm": (7.5, 8.5, 14.0)}
T, N = 3, 2


def move(bits, size, table="45nm"):
    """Bits out of a memory that holds ``size`` bytes."""
    small, middle, large = SRAM[table]
    word = small if size <= 8192 else middle if size <= 32768 else large
    return bits * word / 64


def spikes(*shape, rate=0.4):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(*shape, generator=generator) < rate).float()


def always(node, *, wide=4):
    """Linear layers of ones whose neurons fire in each step, on an input of ones."""
    first, second = layer.Linear(wide, 8, bias=False), layer.Linear(8, 2, bias=False)
    net = nn.Sequential(first, node(), second, node())
    for module in (first, second):
        nn.init.ones_(module.weight)
    functional.set_step_mode(net, "m")
    return net


def parts(row):
    return (row.compute_pj, row.weight_pj, row.input_pj, row.membrane_pj, row.spike_pj)


def check(energy, path, *expected):
    assert parts(energy[path]) == pytest.approx(expected, rel=1e-12)
    row = energy[path]
    assert row.memory_pj == pytest.approx(sum(expected[1:]))
    assert row.total_pj == pytest.approx(sum(expected))


# --- every row by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["45nm", "7nm"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_float_network_by_hand(table, device):
    net = always(lambda: neuron.LIFNode(decay_input=False, v_reset=None)).to(device)
    x = torch.ones(T, N, 4, device=device)
    energy = spq.analyze(net, x, energy=table).energy
    add, mul = ADD[table]["FP32"], MUL[table]["FP32"]
    adds = T * 4 * 8  # inputs are 1, so weights are added; each weight is read for it
    check(energy, "0", adds * add, move(adds * 32, 128, table), move(T * 4, 4 / 8, table), 0, 0)
    adds = T * 8 * 2
    check(energy, "2", adds * add, move(adds * 32, 64, table), move(T * 8, 1, table), 0, 0)
    for path, neurons in (("1", 8), ("3", 2)):
        steps = T * neurons
        # A decay, a comparison and, since all fire, a soft reset.
        compute = steps * (mul + add) + steps * add + steps * add
        membrane = move(2 * steps * 32, 4 * neurons, table)
        check(energy, path, compute, 0, 0, membrane, move(steps, neurons / 8, table))
        assert (energy[path].kind, energy[path].numbers) == ("neuron", "FP32")
    assert energy.table_name == table
    assert energy.total_pj == pytest.approx(sum(sum(parts(row)) for row in energy))
    assert energy.total_pj == pytest.approx(energy.compute_pj + energy.memory_pj)
    assert energy.model("compute_and_memory") == pytest.approx(energy.total_pj)
    assert energy.model("compute") == pytest.approx(energy.compute_pj)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_and_moves_16_bits(dtype):
    net = always(lambda: neuron.IFNode(v_reset=0.0)).to(dtype)
    energy = spq.analyze(net, torch.full((T, N, 4), 2.0, dtype=dtype)).energy
    products = T * 4 * 8  # inputs are 2
    check(energy, "0", products * 1.5, move(products * 16, 64), move(T * 4 * 16, 8), 0, 0)
    steps = T * 8  # an addition and a comparison, a hard reset costs nothing
    check(energy, "1", 2 * steps * 0.4, 0, 0, move(2 * steps * 16, 16), move(steps, 1))
    assert {row.numbers for row in energy} == {"FP16"}


def test_inputs_that_are_averaged_are_multiplied():
    net = nn.Sequential(
        layer.AvgPool2d(2), layer.Conv2d(1, 3, 2, bias=False), neuron.IFNode(v_reset=None)
    )
    nn.init.ones_(net[1].weight)
    x = torch.zeros(N, 1, 6, 6)
    x[:, :, 0, 0] = 1.0  # a quarter, in a corner, that one tap of each channel reads
    x[:, :, 2, 2] = 8.0  # a two in the middle, that four taps read
    energy = spq.analyze(net, x).energy
    check(energy, "1", 3 * 5 * 4.6, move(15 * 32, 48), move(9 * 32, 36), 0, 0)
    fired = 3 * 4
    check(energy, "2", (12 + 12 + fired) * 0.9, 0, 0, move(2 * 12 * 32, 48), move(12, 12 / 8))


def test_two_states_take_two_products_and_twice_the_traffic():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), snn.Synaptic(0.5, 0.5, init_hidden=True))
    nn.init.ones_(net[0].weight)
    x = torch.ones(T, N, 4)
    energy = spq.analyze(net, x, timesteps=T).energy
    fired = T * 8
    compute = T * 8 * (2 * 4.6 + 0.9) + fired * 0.9
    check(energy, "1", compute, 0, 0, move(2 * T * 8 * 64, 64), move(T * 8, 1))
    net = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    row = spq.analyze(net, x, timesteps=T).energy["1"]
    # The synapse decays by a product; level times decay is an addition; 1 + 2 comparisons.
    compute = T * 8 * (4.6 + 0.9 + 3 * 0.9) + fired * 0.9
    assert row.compute_pj == pytest.approx(compute)
    assert row.membrane_pj == pytest.approx(move(2 * T * 8 * (2 + 32), 8 * 34 / 8))
    assert row.numbers == "FP32"


# --- whole numbers -----------------------------------------------------------------------------


def ternary(inputs, outputs=2, value=1.0):
    """A quantised layer of ones that reads ones, and a quantised neuron."""
    net = nn.Sequential(nn.Linear(inputs, outputs, bias=False), neuron.IFNode(v_reset=0.0))
    config = spq.SpQuantConfig(
        weights=spq.TernaryWeights(),
        edge_weights=spq.TernaryWeights(),
        membrane=spq.TernaryMembrane(),
    )
    nn.init.constant_(net[0].weight, value)
    return spq.convert(net, config)


@pytest.mark.parametrize(("inputs", "add"), [(4, 0.03), (127, 0.03), (128, 0.1), (4000, 0.1)])
def test_sums_are_as_wide_as_their_fan_in_asks(inputs, add):
    """Up to 127 ones fit 8 bits with a sign."""
    report = spq.analyze(ternary(inputs), torch.ones(N, inputs))
    adds = 2 * inputs
    size = 2 * inputs * 2 / 8
    check(report.energy, "0", adds * add, move(adds * 2, size), move(inputs, inputs / 8), 0, 0)
    assert report.energy["0"].numbers == "INT"
    # An addition, a comparison with the threshold and two with the boundaries of the levels.
    membrane, spike = move(2 * 2 * 2, 2 * 2 / 8), move(2, 2 / 8)
    check(report.energy, "1", 2 * (1 + 1 + 2) * 0.1, 0, 0, membrane, spike)
    assert report.energy["1"].numbers == "INT"


@pytest.mark.parametrize(
    ("value", "bits", "mul", "add"),
    [(2.0, 2, 0.2, 0.03), (-3.0, 3, 0.2, 0.03), (63.0, 6, 0.2, 0.03), (64.0, 7, 0.2, 0.1),
     (255.0, 8, 0.2, 0.1), (256.0, 9, 3.1, 0.1), (-255.0, 9, 3.1, 0.1), (1.25, 3, 0.2, 0.03),
     (0.125 + 31, 8, 0.2, 0.1)],
)  # fmt: skip
def test_products_are_as_wide_as_their_input(value, bits, mul, add):
    """Two inputs of one value: the sums are twice as wide as it, and have a sign."""
    negative = value < 0
    report = spq.analyze(ternary(2, value=-1.0 if negative else 1.0), torch.full((N, 2), value))
    row = report.operations["0"]
    assert (row.kind, row.numbers, row.input_bits) == ("MAC", "INT", bits)
    check(report.energy, "0", 4 * (mul + add), move(4 * 2, 1), move(2 * bits, 2 * bits / 8), 0, 0)


@pytest.mark.parametrize(
    ("rows", "steps", "add"),
    [
        ([[127.0, 100.0]], 127, 0.1),  # 227, though 127 is but 1.27 times the smallest
        ([[127.0, 0.0]], 1, 0.03),  # one number, whatever its scale
        ([[100.0, 50.0]], 2, 0.03),
        ([[63.0, 2.0], [-63.0, 4.0]], 63, 0.03),  # twice 63 fits 8 bits
        ([[64.0, 1.0]], 64, 0.1),
    ],
)
def test_sums_are_as_wide_as_their_weights_ask(rows, steps, add):
    """Weights are whole numbers of what divides those of an output channel."""
    config = spq.SpQuantConfig(weights=spq.UniformWeights(8), edge_weights=spq.UniformWeights(8))
    rows = torch.tensor([*rows, [127.0, 127.0]])
    net = nn.Sequential(nn.Linear(2, len(rows), bias=False), neuron.IFNode())
    with torch.no_grad():
        net[0].weight.copy_(rows)
    net = spq.convert(net, config)
    net[0].quantized_weight = lambda: (rows, torch.ones(len(rows), 1))
    report = spq.analyze(net, torch.ones(N, 2))
    assert report.operations["0"].sum_bits == (2 * steps).bit_length() + 1
    adds = int(rows.count_nonzero())
    size = rows.numel()
    check(report.energy, "0", adds * add, move(adds * 8, size), move(2, 2 / 8), 0, 0)


def test_scales_of_channels_do_not_widen_sums():
    """Each channel's power of two lies in its weights, and is no part of what it adds up."""
    net = nn.Sequential(nn.Linear(3, 2, bias=False), neuron.IFNode())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[4.0, 4.0, 4.0], [0.25, 0.25, -0.25]]))
    powers = spq.PowerOfTwoWeights(2)
    net = spq.convert(net, spq.SpQuantConfig(weights=powers, edge_weights=powers))
    assert net[0].effective_weight().abs().unique().tolist() == [0.25, 4.0]
    row = spq.analyze(net, torch.ones(N, 3)).operations["0"]
    assert row.sum_bits == 3  # -3 to 3


def test_what_is_no_whole_number_is_a_float_to_a_quantised_layer():
    report = spq.analyze(ternary(2, value=9.0), torch.full((N, 2), 0.3))
    assert report.energy["0"].numbers == "FP32"
    check(report.energy, "0", 4 * 4.6, move(4 * 2, 1), move(2 * 32, 8), 0, 0)


# --- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["current", "prior"])
def test_gates_by_hand(score):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        neuron.LIFNode(decay_input=False),
        layer.Conv2d(4, 6, 3, padding=1, bias=False),
        neuron.LIFNode(decay_input=False),
    )
    functional.set_step_mode(net, "m")
    x = spikes(T, N, 2, 5, 5)
    with torch.no_grad():
        net[0].weight.uniform_(-0.5, 1.0)
    config = spq.presets.spquant_snn(2, spatial_gate=spq.SpatialGate(score=score))
    report = spq.analyze(spq.convert(net, config, x), x)
    row = report.operations["2.channel_gate"]
    assert (row.macs, row.comparisons) == (T * 4 * 6, T * 6)
    assert row.acs > 0
    compute = row.acs * 0.1 + T * 4 * 6 * 3.2 + T * 6 * 0.1
    check(report.energy, "2.channel_gate", compute, move(T * 4 * 6 * 8, 24), 0, 0, 0)
    steps = T - (score == "prior")
    for path in ("1.spatial_gate", "3.spatial_gate"):
        row = report.operations[path]
        assert (row.macs, row.comparisons) == (0, steps * 25 * 5)  # ceil(log2 25) = 5
        compute = (row.acs + steps * 25 * 5) * 0.1
        check(report.energy, path, compute, 0, 0, 0, 0)
    # What gates took off costs neither an addition nor a weight, but its input is read.
    row = report.operations["2"]
    assert row.skipped > 0 or score == "current"
    compute = row.effective * 0.1 if row.sum_bits > 8 else row.effective * 0.03
    weight, given = move(row.effective * 8, 4 * 6 * 9), move(T * 4 * 25, 100 / 8)
    check(report.energy, "2", compute, weight, given, 0, 0)


# --- memories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["45nm", "7nm"])
def test_a_memory_is_the_smallest_that_fits(table):
    own = spq.analysis.energy_tables.table_of(table)
    small, middle, large = SRAM[table]
    for size, word in (
        (0, small), (1, small), (8191.875, small), (8192, small), (8192.125, middle),
        (32768, middle), (32768.125, large), (2**20, large), (2**20 + 1, large), (1e12, large),
    ):  # fmt: skip
        assert own.access(size) == word
        assert own.traffic(128, size) == 2 * word


@pytest.mark.parametrize(("inputs", "word"), [(256, 10), (257, 20), (1024, 20), (1025, 100)])
def test_weights_of_a_layer_lie_in_the_memory_that_fits(inputs, word):
    """8 outputs of 32 bits: 8 kB with 256 inputs, 32 kB with 1024."""
    net = nn.Sequential(nn.Linear(inputs, 8, bias=False), neuron.IFNode())
    nn.init.ones_(net[0].weight)
    energy = spq.analyze(net, torch.ones(N, inputs)).energy
    assert energy["0"].weight_pj == pytest.approx(inputs * 8 * 32 / 64 * word)
    assert energy["0"].input_pj == pytest.approx(inputs / 64 * 10)


@pytest.mark.parametrize(("neurons", "word"), [(2048, 10), (2049, 20), (8193, 100)])
def test_membranes_lie_in_the_memory_that_fits(neurons, word):
    node = nn.Sequential(neuron.IFNode())
    energy = spq.analyze(node, torch.ones(N, neurons)).energy
    assert energy["0"].membrane_pj == pytest.approx(2 * neurons * 32 / 64 * word)
    assert energy["0"].spike_pj == pytest.approx(neurons / 64 * 10)


@pytest.mark.parametrize(("pixels", "word"), [(65536, 10), (65537, 20)])
def test_spikes_and_inputs_of_one_step_lie_in_the_memory_that_fits(pixels, word):
    net = nn.Sequential(neuron.IFNode(), nn.Conv1d(1, 1, 1, bias=False))
    energy = spq.analyze(net, torch.ones(2, 1, pixels)).energy
    assert energy["0"].spike_pj == pytest.approx(pixels / 64 * word)
    assert energy["1"].input_pj == pytest.approx(pixels / 64 * word)


def test_tokens_of_one_step_are_read_from_one_memory():
    tokens, width = 600, 128  # 9.6 kB of spikes
    net = nn.Sequential(neuron.IFNode(step_mode="m"), nn.Linear(width, 2, bias=False))
    energy = spq.analyze(net, torch.ones(T, N, tokens, width)).energy
    assert energy["1"].input_pj == pytest.approx(T * tokens * width / 64 * 20)
    assert energy["0"].spike_pj == pytest.approx(T * tokens * width / 64 * 20)


def test_a_tied_weight_is_read_from_the_memory_that_holds_it():
    first, second = nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False)
    second.weight = nn.init.ones_(first.weight)
    net = nn.Sequential(first, neuron.IFNode(), second, neuron.IFNode())
    energy = spq.analyze(net, torch.ones(N, 100)).energy
    assert energy["0"].weight_pj == energy["2"].weight_pj == 10**4 * 32 / 64 * 100  # 40 kB


# --- named models ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["45nm", "7nm"])
def test_equation_31_by_its_own_formula(table):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.IFNode(),
        layer.Conv2d(4, 6, 5, stride=2),
        neuron.IFNode(),
        layer.Flatten(),
        layer.Linear(24, 3),
    )
    functional.set_step_mode(net, "m")
    x = spikes(T, N, 2, 8, 8)
    # C, W, H and k of each layer.
    shapes = ((4, 8, 8, 3), (6, 2, 2, 5), (3, 1, 1, 1))

    def by_formula(numbers, closed=(0, 0, 0), masked=(0, 0, 0)):
        add, mul = ADD[table][numbers], MUL[table][numbers]
        total = 0.0
        for (c, w, h, k), shut, off in zip(shapes, closed, masked, strict=True):
            c *= 1 - shut
            total += mul * c * w * h * k * k + add * c * w * h * k * k
            total += add * T * 1 * c * w * h * (1 - off)
        return total

    nn.init.uniform_(net[0].weight, -0.5, 1.0)
    energy = spq.analyze(net, x, energy=table).energy
    assert energy.model("eq31") == pytest.approx(by_formula("FP32"))
    half = spq.analyze(net.half(), x.half(), energy=table).energy
    assert half.model("eq31") == pytest.approx(by_formula("FP16"))
    gated = spq.convert(net.float(), spq.presets.spquant_snn(2), x)
    report = spq.analyze(gated, x, energy=table)
    closed = [
        0.0
        if path not in [row.path for row in report.sparsity]
        else report.sparsity[path].channels_closed
        for path in ("0.channel_gate", "2.channel_gate", "5.channel_gate")
    ]
    masked = [report.sparsity[f"{path}.spatial_gate"].pixels_masked for path in "13"] + [0]
    assert masked == [math.floor(0.35 * 64) / 64, math.floor(0.35 * 4) / 4, 0]
    assert report.energy.model("eq31") == pytest.approx(by_formula("INT8", closed, masked))


def padding_free():
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, bias=False),
        neuron.IFNode(),
        layer.Conv2d(4, 4, 3, bias=False, stride=2),
        neuron.LIFNode(),
        layer.Flatten(),
        layer.Linear(16, 5, bias=False),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for module in net:
            if hasattr(module, "weight"):
                module.weight.abs_().mul_(2)
    return net


@pytest.mark.parametrize("device", DEVICES)
def test_spikingjelly_s_simple_model_is_its_own(device):
    net, x = padding_free().to(device), torch.rand(T, 1, 2, 8, 8).to(device)
    theirs = estimate_simple_energy(net.eval(), x)
    functional.reset_net(net)
    report = spq.analyze(net, x)
    operations = report.operations
    assert operations.effective_acs > 0
    updates = sum(row.outputs for row in operations if row.kind == "neuron")
    assert updates == T * (4 * 36 + 4 * 4 + 5)
    words = operations.dense_macs + operations.effective_acs
    ours = {
        "mac_pj": 4.6 * operations.dense_macs,
        "parameter_memory_pj": 24.96 * 4 * words,
        "neuron_state_memory_pj": 24.96 * 4 * 2 * updates,
    }
    for part, energy in ours.items():
        assert theirs.breakdown_pj[part] == pytest.approx(energy, rel=1e-12), part
    assert operations.effective_acs == theirs.counts["synop"]
    total = sum(ours.values()) + 0.9 * operations.effective_acs
    assert report.energy.model("spikingjelly") == pytest.approx(total)
    # Theirs also counts the additions of the neurons' elementwise code.
    beside = theirs.energy_total_pj - total
    assert beside == pytest.approx(0.9 * (theirs.counts["ac"] - operations.effective_acs))


def test_spikingjelly_s_model_does_not_see_bits_or_tables():
    net, x = always(lambda: neuron.LIFNode(decay_input=False)), torch.ones(T, N, 4)
    expected = spq.analyze(net, x).energy.model("spikingjelly")
    adds, updates = T * (4 * 8 + 8 * 2), T * 10
    assert expected == pytest.approx(0.9 * adds + 24.96 * 4 * (adds + 2 * updates))
    quantised = spq.convert(net, spq.presets.quant_snn(2), x)
    for energy in ("45nm", "7nm"):
        found = spq.analyze(quantised, x, energy=energy).energy.model("spikingjelly")
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (10, 4)])
@pytest.mark.parametrize("table", ["45nm", "7nm"])
def test_an_equally_quantised_ann_by_hand(steps, bits, table):
    net = always(lambda: neuron.IFNode(v_reset=0.0), wide=4)
    config = spq.SpQuantConfig(
        weights=spq.TernaryWeights(),
        edge_weights=spq.TernaryWeights(),
        membrane=spq.TernaryMembrane(),
    )
    x = torch.ones(steps, N, 4)
    energy = spq.analyze(spq.convert(net, config, x), x, energy=table).energy
    assert (energy.timesteps, energy.ann_bits) == (steps, bits)
    add, mul = ADD[table]["INT8"], MUL[table]["INT8"]  # at most 8 inputs of 4 bits: 8 bits
    expected = 0.0
    for inputs, outputs in ((4, 8), (8, 2)):
        products = inputs * outputs
        expected += products * (mul + add)
        expected += move(products * 2, products * 2 / 8, table)
        expected += move(inputs * bits, inputs * bits / 8, table)
        expected += move(outputs * bits, outputs * bits / 8, table)
    assert energy.model("quantised_ann") == pytest.approx(expected)
    assert f"activations of {bits} bits for T = {steps}" in energy.table()


def test_the_ann_of_a_float_network_computes_in_floats():
    net = always(lambda: neuron.IFNode(v_reset=0.0))
    energy = spq.analyze(net, torch.ones(T, N, 4)).energy
    expected = 0.0
    for inputs, outputs in ((4, 8), (8, 2)):
        products = inputs * outputs
        expected += products * 4.6 + move(products * 32, products * 4)
        expected += move(inputs * 32, inputs * 4) + move(outputs * 32, outputs * 4)
    assert energy.model("quantised_ann") == pytest.approx(expected)
    assert energy.ann_bits == 32


def test_ann_sums_grow_with_its_activations():
    """70 ones fit 8 bits; 70 times 0 to 3 do not."""
    x = torch.ones(T, N, 70)
    net = nn.Sequential(layer.Linear(70, 2, bias=False), neuron.IFNode())
    functional.set_step_mode(net, "m")
    config = spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights())
    nn.init.ones_(net[0].weight)
    energy = spq.analyze(spq.convert(net, config, x), x).energy
    assert energy["0"].compute_pj == pytest.approx(T * 140 * 0.03)
    # Activations take 2 bits, whatever the membranes of the spiking network.
    moved = move(140 * 2, 35) + move(70 * 2, 17.5) + move(2 * 2, 0.5)
    assert energy.model("quantised_ann") == pytest.approx(140 * (0.2 + 0.1) + moved)


# --- tables, hosts and what comes back ---------------------------------------------------------


def test_a_table_of_ones_counts_operations_and_words():
    net = always(lambda: neuron.LIFNode(decay_input=False))
    one = dict.fromkeys(("INT8", "INT32", "FP16", "FP32"), 1.0)
    table = EnergyTable("ones", add=one, multiply=one, sram={1: 64.0})
    report = spq.analyze(net, torch.ones(T, N, 4), energy=table)
    total = report.operations.acs + report.operations.comparisons + 2 * report.operations.macs
    assert report.energy.compute_pj == pytest.approx(total)
    bits = T * ((32 + 16) * 32 + 4 + 8 + (8 + 2) * (2 * 32 + 1))
    assert report.energy.memory_pj == pytest.approx(bits)
    assert report.energy.table_name == "ones"
    assert "energy per sample, ones: compute and memory" in report.table()


def test_both_hosts_cost_the_same():
    """An IF neuron is a Leaky one that keeps all; both reset to 0 at once."""
    x = torch.ones(T, N, 4)
    jelly = always(lambda: neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None))
    torch_ = nn.Sequential(
        nn.Linear(4, 8, bias=False),
        snn.Leaky(0.5, init_hidden=True),
        nn.Linear(8, 2, bias=False),
        snn.Leaky(0.5, init_hidden=True),
    )
    for index in (0, 2):
        nn.init.ones_(torch_[index].weight)
    first = spq.analyze(jelly, x).energy
    second = spq.analyze(torch_, x, timesteps=T).energy
    assert [parts(row) for row in first] == [parts(row) for row in second]
    assert first.models == second.models
    config = spq.presets.quant_snn(2)
    first = spq.analyze(spq.convert(jelly, config, x), x).energy
    second = spq.analyze(spq.convert(torch_, config, x[0]), x, timesteps=T).energy
    # A delayed reset stores a fourth value, which fits the same two bits.
    assert [parts(row) for row in first] == [parts(row) for row in second]
    assert first.models == second.models


def report_of(table="45nm"):
    return spq.analyze(padding_free(), torch.rand(T, 1, 2, 8, 8), energy=table)


def test_the_dictionary_survives_json_and_adds_up():
    report = report_of()
    found = report.to_dict()["energy"]
    assert json.loads(report.to_json())["energy"] == found
    assert found["table"] == "45nm"
    for total, names in (
        ("compute_pj", ("compute_pj",)),
        ("memory_pj", ("weight_pj", "input_pj", "membrane_pj", "spike_pj")),
    ):
        assert found[total] == pytest.approx(
            sum(row[name] for row in found["layers"] for name in names)
        )
    assert found["total_pj"] == pytest.approx(found["compute_pj"] + found["memory_pj"])
    assert list(found["models"]) == [
        "compute_and_memory", "compute", "eq31", "spikingjelly", "quantised_ann",
    ]  # fmt: skip
    assert min(found["models"].values()) > 0
    assert any("none is off chip" in line for line in found["convention"])


def test_tables_hold_every_row_the_sum_and_each_model():
    energy = report_of("7nm").energy
    text, lines = energy.table(), energy.to_markdown().splitlines()
    assert text.startswith("energy per sample, 7nm: compute and memory")
    for name, value in energy.models:
        line = next(line for line in text.splitlines() if line.startswith(f"{name}: "))
        assert f"{value / energy.total_pj:.3g} of the rows' total" in line
    grid = [line for line in lines if line.startswith("|")]
    assert len(grid) == 2 + len(energy) + 1
    assert len({line.count("|") for line in grid}) == 1
    assert grid[-1].startswith("| sum |")
    assert "**energy per sample, 7nm: compute and memory**" in lines


def test_comparisons_hold_ratios_for_each_model():
    net, x = always(lambda: neuron.LIFNode(decay_input=False)), torch.ones(T, N, 4)
    first = spq.analyze(net, x)
    second = spq.analyze(spq.convert(net, spq.presets.quant_snn(2), x), x, energy="7nm")
    comparison = spq.compare(first, second, names=["float", "quantised"])
    row = comparison.to_dict()["rows"][1]["energy"]
    assert row["table"] == "7nm"
    assert row["total_pj"] == second.energy.total_pj
    for name, value in second.energy.models:
        assert row["ratios"][name] == pytest.approx(first.energy.model(name) / value)
        assert comparison.energy_ratio(1, name) == row["ratios"][name]
    assert comparison.energy_ratio(0) == 1.0
    assert row["ratios"]["compute_and_memory"] > 8
    assert "at 45nm, but not alike: float 45nm, quantised 7nm" in comparison.table()
    ratio = f"{row['ratios']['compute_and_memory']:.4g}x"
    assert comparison.table().splitlines()[3].split()[-1] == ratio
    assert json.loads(comparison.to_json()) == comparison.to_dict()


def test_plots_show_compute_and_memory_with_units():
    report = report_of()
    axes = report.plot().axes[2]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2", "3", "5", "6"]
    compute, traffic = axes.containers
    assert axes.get_xlabel() == "energy per sample (nJ)"
    assert axes.get_title() == "compute and memory at 45nm"
    for bar, moved, row in zip(compute, traffic, report.energy, strict=True):
        assert bar.get_width() == pytest.approx(row.compute_pj / 1e3)
        assert moved.get_x() == pytest.approx(row.compute_pj / 1e3)
        assert moved.get_width() == pytest.approx(row.memory_pj / 1e3)
    both = spq.compare(report, report_of("7nm"), names=["old", "new"]).plot().axes[2]
    assert both.get_title() == "compute and memory at 45nm, 7nm"
    assert both.get_xlabel().startswith("energy per sample (")
    assert [text.get_text()[-2:] for text in both.texts] == ["nJ", "nJ"]


def test_what_is_not_counted_costs_nothing_and_says_why():
    net = nn.Sequential(nn.Linear(4, 3), neuron.QIFNode(), nn.Linear(3, 3), neuron.IFNode())
    energy = spq.analyze(net, torch.full((N, 4), 9.0)).energy
    assert energy["1"].total_pj == 0.0
    assert energy["1"].note == "updates not counted: no rule for QIFNode"
    assert energy["3"].total_pj > 0


def test_a_model_that_is_not_there_names_the_closest():
    energy = spq.analyze(lively_net(), torch.ones(1, 4)).energy
    with pytest.raises(KeyError, match=r"'computes' has no row here. Closest: 'compute'"):
        energy.model("computes")


def test_activations_are_as_wide_as_the_floats_of_the_layers():
    net = lively_net()
    wide = spq.analyze(net, torch.ones(1, 4)).energy
    narrow = spq.analyze(copy.deepcopy(net).bfloat16(), torch.ones(1, 4).bfloat16()).energy
    assert (wide.ann_bits, narrow.ann_bits) == (32, 16)
    # Float weights compute in floats, however few levels the membranes have.
    ternary = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    found = spq.analyze(ternary, torch.ones(1, 4)).energy
    assert found.ann_bits == 32
    assert found.model("quantised_ann") == wide.model("quantised_ann")


def test_tables_that_differ_are_told_apart_in_a_comparison():
    net, x = lively_net(), torch.ones(1, 4)
    both = spq.compare(spq.analyze(net, x), spq.analyze(net, x, energy="7nm"), names=["a", "b"])
    assert "but not alike: a 45nm, b 7nm" in both.table()


def lively_net():
    net = nn.Sequential(nn.Linear(4, 3, bias=False), neuron.IFNode())
    nn.init.ones_(net[0].weight)
    return net
