"""The crossbar estimate: the public tool's numbers, hand counts, and what both hosts show."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise

import networks
import pytest
import snntorch as snn
import torch
from conftest import GOLDEN
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter.spikesim import (
    SpikeSimEnergyConfig,
    SpikeSimEnergyProfiler,
)
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import hardware
from spquant_plugin.analysis.hardware import Crossbar, Layer, estimate, estimate_layers
from spquant_plugin.errors import AnalysisError, ConfigError, MissingHostError, SampleError

PUBLISHED = json.loads((GOLDEN / "spikesim_ela.json").read_text())
QUANT = spq.presets.quant_snn(weight_bits=2)


def close(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-10)


def published_layers() -> list[Layer]:
    return [Layer(f"conv{n}", *sizes) for n, sizes in enumerate(PUBLISHED["layers"], 1)]


# --- the public tool ----------------------------------------------------------------------------


def test_compat_gives_the_published_numbers():
    report = estimate_layers(published_layers(), 5, Crossbar(64, "rram"), compat=True)
    assert len(PUBLISHED["expected"]) == 5
    for name, wanted in PUBLISHED["expected"].items():
        assert close(getattr(report, name), wanted), name


def test_compat_reads_the_published_network_from_a_model():
    """Strides stand for its pools, whose sides the public tool gives to the layer before them."""
    net = nn.Sequential()
    for c_in, c_out, side, out in PUBLISHED["layers"]:
        conv = layer.Conv2d(c_in, c_out, 3, stride=side // out, padding=1, bias=False)
        net.extend([conv, neuron.IFNode()])
    net.extend([layer.Flatten(), layer.Linear(4096, 10)])
    functional.set_step_mode(net, "m")
    report = estimate(net, torch.ones(5, 1, 3, 32, 32), compat=True)
    for name, wanted in PUBLISHED["expected"].items():
        assert close(getattr(report, name), wanted), name
    (left_out,) = report.unmapped
    assert left_out.note == "the public tool takes square convolutions only"


def test_without_bits_only_the_memory_of_the_last_outputs_is_added_to_the_published_area():
    report = estimate_layers(published_layers(), 5)
    expected = PUBLISHED["expected"]
    for name in ("pes", "tiles", "energy_pj", "latency_ns"):
        assert close(getattr(report, name), expected[name]), name
    left_out = sum(c_out * out * out for _, c_out, _, out in PUBLISHED["layers"][5:])
    assert close(report.area_um2 - expected["area_um2"], 0.7391 * 22 * left_out)


def test_compat_knows_neither_bits_nor_rates_nor_gates_nor_own_steps():
    some = {"weight_bits": 8, "membrane_bits": 2, "input_bits": 2}
    some |= {"spike_rate": 0.1, "gate_factor": 0.5, "steps": 1}
    layers = [Layer(f"conv{n}", *sizes, **some) for n, sizes in enumerate(PUBLISHED["layers"], 1)]
    report = estimate_layers(layers, 5, Crossbar(neuron_bits=8, cell_bits=2), compat=True)
    for name, wanted in PUBLISHED["expected"].items():
        assert close(getattr(report, name), wanted), name


def test_compat_says_what_the_public_tool_does_not_take():
    layers = [
        Layer.linear("fc", 8, 4),
        Layer("first", 4, 8, 6, 6),
        Layer("flat", 4, 8, 6, 6, (1, 3)),
        Layer("point", 4, 8, 6, 6, 1),
        Layer("grouped", 4, 8, 6, 6, groups=2),
        Layer("line", 4, 8, (6,), (6,), (3,)),
    ]
    report = estimate_layers(layers, 1, compat=True)
    assert [row.path for row in report] == [given.path for given in layers]
    assert [row.path for row in report if row.mapped] == ["first"]
    assert "one kernel size, here that of the first layer: (3, 3)" in report["point"].note
    assert "no groups" in report["grouped"].note
    assert {report[name].note for name in ("fc", "flat", "line")} == {
        "the public tool takes square convolutions only"
    }
    assert "5 layers are not mapped" in report.table()


def test_compat_says_where_the_public_tool_would_refuse_the_order():
    wide, slim = Layer("wide", 128, 128, 4, 4), Layer("slim", 8, 8, 4, 4)
    words = "refuses layers whose PEs become fewer"
    assert words in estimate_layers([wide, slim], 1, compat=True).table()
    assert words not in estimate_layers([slim, wide], 1, compat=True).table()


# --- by hand ------------------------------------------------------------------------------------


def crossbars_by_hand(one: Layer, own: Crossbar) -> int:
    """Cell by cell: which crossbars of a kernel position hold a weight."""
    columns = 1
    while one.weight_bits is not None and columns * own.cell_bits < one.weight_bits:
        columns += 1
    rows, wide = one.in_channels // one.groups, one.out_channels // one.groups * columns
    used, row, column, current = set(), 0, 0, 0
    for group in range(one.groups):
        if one.groups == 1 or rows > own.size or wide > own.size:
            for r in range(rows):
                for c in range(wide):
                    used.add((group, r // own.size, c // own.size))
            continue
        # Along the diagonal: the next group starts below and beside the one before it.
        if row + rows > own.size or column + wide > own.size:
            row, column, current = 0, 0, current + 1
        used.add(current)
        row, column = row + rows, column + wide
    return len(used)


def energy_by_hand(one: Layer, steps: int, own: Crossbar) -> float:
    """Step by step, pixel by pixel, PE by PE, part by part."""
    array = {"rram": 1.76423, "sram": 671.089}[own.device]
    energy, pes = 0.0, crossbars_by_hand(one, own)
    for _step in range(steps):
        for _pixel in range(math.prod(one.out_size)):
            for _pe in range(pes):
                energy += 157.12 + 4.64 + 5.096 + 397.0
                for _converters in range(own.size // 8):
                    energy += 16 * 1.15e-6 + 0.2
                    for _position in range(math.prod(one.kernel)):
                        energy += array
                    for _converter in range(own.size // 8):
                        energy += 2.03084 + 0.094245
    return energy


def area_by_hand(layers: list[Layer], own: Crossbar) -> tuple[int, float]:
    array = {"rram": 26.2144, "sram": 671.089}[own.device]
    shared, tiles, area = own.size / 8, 0, 0.0
    for positions in {math.prod(one.kernel) for one in layers}:
        same = [one for one in layers if math.prod(one.kernel) == positions]
        left = sum(crossbars_by_hand(one, own) for one in same)
        pe = positions * array + shared * (693.633 + 45.9)
        while left > 0:
            left -= own.pes_per_tile
            tiles += 1
            area += shared * 13411.41498 + 484.643999 + 0.7391 * 64 * 128
            area += own.pes_per_tile * pe + 433660
    for one in layers:
        for _ in range(one.in_channels * math.prod(one.in_size)):
            area += 0.7391 * (one.input_bits or 22)
        for _ in range(one.out_channels * math.prod(one.out_size)):
            area += 0.7391 * (one.membrane_bits or 22)
    return tiles, area


def latency_by_hand(layers: list[Layer], steps: int, own: Crossbar) -> float:
    clocks = 0
    for one in layers:
        outputs = one.out_channels * math.prod(one.out_size)
        waits = outputs if one is layers[-1] else (outputs * 3) // 4
        for _step in range(steps):
            clocks += 26 * waits
    return clocks / own.clock_mhz * 1000


CASES = {
    "conv": [Layer("a", 3, 5, 4, 4, weight_bits=2, membrane_bits=2, input_bits=8)],
    "wide": [Layer("a", 70, 9, 4, 4, weight_bits=8, membrane_bits=3)],
    "stride, not square": [Layer("a", 3, 7, (9, 5), (5, 3), (5, 3), weight_bits=4)],
    "pointwise": [Layer("a", 20, 17, 3, 3, 1, weight_bits=4, membrane_bits=2)],
    "linear": [Layer.linear("a", 130, 11, weight_bits=8)],
    "tokens": [Layer.linear("a", 10, 12, tokens=6, weight_bits=32, membrane_bits=32)],
    "depthwise": [Layer("a", 20, 20, 4, 4, groups=20, weight_bits=3, membrane_bits=2)],
    "groups": [Layer("a", 12, 18, 3, 3, groups=3, weight_bits=2)],
    "large groups": [Layer("a", 40, 36, 2, 2, groups=2, weight_bits=8)],
    "one axis": [Layer("a", 4, 6, (7,), (5,), (3,), weight_bits=1, membrane_bits=1)],
    "three axes": [Layer("a", 4, 6, (3, 3, 3), (2, 2, 2), (2, 2, 2), weight_bits=5)],
    "chain": [
        Layer("a", 2, 7, 6, 6, weight_bits=8, membrane_bits=2),
        Layer("b", 7, 30, 6, 3, weight_bits=2, membrane_bits=2, input_bits=2),
        Layer("c", 30, 30, 3, 3, 1, weight_bits=2, membrane_bits=2, input_bits=2),
        Layer.linear("d", 270, 10, weight_bits=8, input_bits=2),
    ],
}
CHIPS = {
    "rram": Crossbar(16, pes_per_tile=3),
    "cells": Crossbar(16, cell_bits=3, clock_mhz=100),
    "sram": Crossbar(24, "sram"),
}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("case", CASES)
def test_energy_latency_and_area_agree_with_slow_loops(case, chip):
    layers, own, steps = CASES[case], CHIPS[chip], 2
    report = estimate_layers(layers, steps, own)
    for one, row in zip(layers, report, strict=True):
        assert row.pes == crossbars_by_hand(one, own)
        assert close(row.energy_pj, energy_by_hand(one, steps, own))
    tiles, area = area_by_hand(layers, own)
    assert report.tiles == tiles
    assert close(report.area_um2, area)
    assert close(report.latency_ns, latency_by_hand(layers, steps, own))


def test_macs_count_every_weight_at_every_position():
    def by_hand(one: Layer) -> int:
        return sum(
            1
            for _pixel in range(math.prod(one.out_size))
            for _channel in range(one.out_channels)
            for _input in range(one.in_channels // one.groups)
            for _position in range(math.prod(one.kernel))
        )

    for layers in CASES.values():
        report = estimate_layers(layers, 3)
        assert report.macs == 3 * sum(map(by_hand, layers))
        assert all(row.macs == 3 * by_hand(one) for one, row in zip(layers, report, strict=True))


def test_derived_totals():
    report = estimate_layers(CASES["chain"], 4)
    seconds, joules, mm2 = report.latency_ns / 1e9, report.energy_pj / 1e12, report.area_um2 / 1e6
    assert close(report.edap, joules * seconds * mm2)
    assert close(report.tops, 2 * report.macs / seconds / 1e12)
    assert close(report.tops_per_watt, report.tops / (joules / seconds))
    assert close(report.tops_per_mm2, report.tops / mm2)
    for name in ("energy_pj", "latency_ns", "area_um2", "pes"):
        assert close(getattr(report, name), sum(getattr(row, name) for row in report))


def test_a_spike_rate_scales_the_arrays_alone():
    def energy(rate: float) -> float:
        one = Layer("a", 3, 5, 4, 4, weight_bits=2, spike_rate=rate)
        return estimate_layers([one], 3, Crossbar(16)).energy_pj

    arrays = 3 * 16 * 1 * 2 * 9 * 1.76423  # steps, pixels, PEs, X/8, kernel positions
    assert close(energy(1.0) - energy(0.0), arrays)
    assert close(energy(0.3), energy(0.0) + 0.3 * arrays)


def test_gates_scale_energy_and_latency_of_their_layer():
    def report(factor: float) -> hardware.HardwareReport:
        first = Layer("a", 3, 5, 4, 4, gate_factor=factor)
        return estimate_layers([first, Layer("b", 5, 6, 4, 4)], 3)

    whole, part = report(1.0), report(0.3)
    assert close(part["a"].energy_pj, 0.3 * whole["a"].energy_pj)
    assert part["a"].latency_ns == 3 * 104 * 18  # floor(0.75 * 0.3 * 80)
    assert part["b"] == whole["b"]
    assert part.area_um2 == whole.area_um2
    assert part.macs == whole.macs


def test_gates_that_leave_nothing_leave_no_rate():
    report = estimate_layers([Layer("a", 3, 5, 4, 4, gate_factor=0.0)], 3)
    assert report.energy_pj == report.latency_ns == 0
    assert report.tops is report.tops_per_watt is report.tops_per_mm2 is None
    assert "TOPS/W" in report.table()
    assert hardware.compare(report, report).ratio(1, "energy_pj") is None


def test_own_steps_replace_the_time_steps():
    once, each = (estimate_layers([Layer("a", 3, 5, 4, 4, steps=s)], 6) for s in (1, None))
    assert (each.energy_pj, each.latency_ns) == (6 * once.energy_pj, 6 * once.latency_ns)


@pytest.mark.parametrize("case", CASES)
def test_fewer_bits_never_cost_more(case):
    def costs(cell_bits: int = 1, **bits: int) -> tuple[float, ...]:
        layers = [Layer.from_dict(one.to_dict() | bits) for one in CASES[case]]
        report = estimate_layers(layers, 2, Crossbar(16, cell_bits=cell_bits))
        return report.pes, report.energy_pj, report.latency_ns, report.area_um2

    def never_rises(rows: list[tuple[float, ...]]) -> bool:
        return all(
            less <= more * (1 + 1e-14)  # areas are sums of shares, which are rounded
            for fewer, further in pairwise(rows)
            for less, more in zip(fewer, further, strict=True)
        )

    for name in ("weight_bits", "membrane_bits", "input_bits"):
        rows = [costs(**{name: bits}) for bits in range(1, 33)]
        assert never_rises(rows)
        assert rows[0] < rows[-1]
    assert never_rises([costs(cell_bits=bits, weight_bits=8) for bits in range(8, 0, -1)])


# --- models of both hosts -----------------------------------------------------------------------

EVENTS = (torch.rand(4, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def wanted_layers(bits: list[int], membrane: int) -> list[Layer]:
    conv = {"type": "Conv2d", "membrane_bits": membrane}
    return [
        Layer("0", 2, 4, 8, 8, weight_bits=bits[0], **conv),
        Layer("4", 4, 6, 4, 4, weight_bits=bits[1], input_bits=membrane, **conv),
        Layer.linear("8", 96, 3, weight_bits=bits[2], input_bits=membrane),
    ]


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_spikingjelly_model_is_read_as_its_layers(step_mode, quantized):
    net, sample = networks.spiking_jelly(step_mode), EVENTS if step_mode == "m" else EVENTS[0]
    if quantized:
        net = spq.convert(net, QUANT, sample=sample)
    timesteps = None if step_mode == "m" else 4
    report = estimate(net, EVENTS, timesteps=timesteps)
    wanted = wanted_layers([8, 2, 8], 2) if quantized else wanted_layers([32] * 3, 32)
    assert report.timesteps == 4
    by_hand = estimate_layers(wanted, 4)
    for name in ("pes", "tiles", "energy_pj", "latency_ns", "area_um2", "macs"):
        assert close(getattr(report, name), getattr(by_hand, name)), name
    assert [row.input_bits for row in report] == ([22, 2, 2] if quantized else [22, 32, 32])
    assert [row.membrane_bits for row in report] == ([2, 2, 22] if quantized else [32, 32, 22])


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("loop", [False, True])
def test_a_snntorch_model_is_read_as_its_layers(loop, quantized):
    net = networks.Loop() if loop else networks.snn_torch()
    sequence = torch.rand(6, 3, 5).round()
    if quantized:
        net = spq.convert(net, QUANT, sample=sequence if loop else sequence[0])
    report = estimate(net, sequence, timesteps=None if loop else 6)
    weights = [row.weight_bits for row in report]
    sizes = [(5, 6), (6, 2)] if loop else [(5, 7), (7, 7), (7, 2)]
    stored = 2 if quantized else 32
    by_hand = estimate_layers(
        [
            Layer.linear(
                row.path,
                *size,
                weight_bits=bits,
                membrane_bits=stored,
                input_bits=stored if place else None,
            )
            for place, (row, size, bits) in enumerate(zip(report, sizes, weights, strict=True))
        ],
        6,
    )
    assert set(weights) == ({8} if loop else {8, 2}) if quantized else {32}
    for name in ("pes", "tiles", "energy_pj", "latency_ns", "area_um2", "macs"):
        assert close(getattr(report, name), getattr(by_hand, name)), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_gives_the_same_report():
    net = networks.spiking_jelly()
    on_cpu = estimate(net, EVENTS).to_dict()
    assert estimate(net.cuda(), EVENTS.cuda()).to_dict() == on_cpu


def test_reading_leaves_the_model_as_it_is():
    net = networks.spiking_jelly()
    net(EVENTS)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held = net[2].v.clone()
    estimate(net, EVENTS, spike_rates=True)
    assert net.training
    assert torch.equal(net[2].v, held)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_synaptic_current_is_stored_beside_the_membrane():
    net = nn.Sequential(
        nn.Linear(5, 4), snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True, output=True)
    )
    report = estimate(net, torch.ones(3, 1, 5), timesteps=3)
    assert report["0"].membrane_bits == 64


class Branches(nn.Module):
    """A stem that runs once, an addition of two branches, and a pointwise shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.fire = neuron.LIFNode(step_mode="m")
        self.conv = layer.Conv2d(4, 8, 3, padding=1, step_mode="m")
        self.shortcut = layer.Conv2d(4, 8, 1, step_mode="m")
        self.join = neuron.IFNode(step_mode="m")

    def forward(self, image):
        spikes = self.fire(self.stem(image).expand(5, *image.shape[:1], 4, -1, -1))
        return self.join(self.conv(spikes) + self.shortcut(spikes))


def test_stems_that_run_once_branches_and_sizes_that_are_not_square():
    net = spq.convert(Branches(), QUANT, sample=torch.rand(2, 1, 6, 10))
    report = estimate(net, torch.rand(2, 1, 6, 10))
    assert report.timesteps == 5
    assert [(row.path, row.steps) for row in report] == [("stem", 1), ("conv", 5), ("shortcut", 5)]
    bits = {row.path: row.weight_bits for row in report}
    wanted = [
        Layer("stem", 1, 4, (6, 10), (3, 5), weight_bits=bits["stem"], membrane_bits=2, steps=1),
        Layer("conv", 4, 8, (3, 5), (3, 5), weight_bits=2, membrane_bits=2, input_bits=2),
        Layer("shortcut", 4, 8, (3, 5), (3, 5), 1, weight_bits=2, membrane_bits=2, input_bits=2),
    ]
    for own, by_hand in zip(report, estimate_layers(wanted, 5), strict=True):
        for name in ("pes", "energy_pj", "latency_ns", "area_um2", "macs"):
            assert close(getattr(own, name), getattr(by_hand, name)), (own.path, name)
    assert "other values than 0 and 1" in report["stem"].note
    assert not report["conv"].note


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fire = neuron.IFNode(step_mode="m")
        self.mix = nn.Linear(6, 4)

    def forward(self, x):  # [T, N, tokens, C]
        return self.mix(self.fire(x))


def test_a_linear_layer_runs_for_each_token():
    report = estimate(Tokens(), torch.rand(3, 2, 7, 6))
    wanted = Layer.linear("mix", 6, 4, tokens=7, weight_bits=32, input_bits=32)
    by_hand = estimate_layers([wanted], 3)
    assert close(report.energy_pj, by_hand.energy_pj)
    assert close(report.area_um2, by_hand.area_um2)
    assert report.macs == 3 * 7 * 6 * 4


def test_spike_rates_are_the_shares_of_nonzero_inputs():
    net, seen = networks.spiking_jelly(), {}
    for path in ("0", "4", "8"):
        net[int(path)].register_forward_hook(
            lambda module, args, output, path=path: seen.update({path: args[0].clone()})
        )
    net.eval()(EVENTS)
    shares = {}
    for path, x in seen.items():
        values = x.flatten().tolist()
        shares[path] = sum(1 for value in values if value != 0) / len(values)
    functional.reset_net(net)
    report = estimate(net, EVENTS, spike_rates=True)
    assert 0 < shares["4"] < 1
    assert {row.path: row.spike_rate for row in report} == pytest.approx(shares, abs=1e-12)
    assert report.energy_pj < estimate(net, EVENTS).energy_pj
    assert estimate(net, EVENTS, spike_rates=shares).energy_pj == report.energy_pj
    only = estimate(net, EVENTS, spike_rates={"4": 0.25})
    assert [row.spike_rate for row in only] == [1, 0.25, 1]


def gated() -> nn.Module:
    net = networks.spiking_jelly()
    net[4].weight.data.abs_()
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(),
        weights=spq.PowerOfTwoWeights(2),
        channel_gate=spq.ChannelGate(),
    )
    net = spq.convert(net, config, sample=EVENTS)
    (gate,) = [m for m in net.modules() if type(m).__name__ == "ChannelGate"]
    gate.bias.data[:3] = -1e3  # three of six channels stay closed
    return net


def test_gates_are_measured_on_the_sample():
    net = gated()
    open_, closed = estimate(net, EVENTS), estimate(net, EVENTS, gates=True)
    row = spq.analyze(net, EVENTS).operations["4"]
    assert 0 < row.effective < row.nonzero
    assert closed["4"].gate_factor == row.effective / row.nonzero
    assert open_["4"].gate_factor == 1
    assert close(closed["4"].energy_pj, open_["4"].energy_pj * closed["4"].gate_factor)
    assert closed["0"] == open_["0"]
    assert estimate(net, EVENTS, gates={"4": 0.5})["4"].gate_factor == 0.5
    # The neurons behind the gate are those of its layer.
    assert [row.membrane_bits for row in open_ if row.mapped] == [2, 2, 22]
    assert "no unit that decides" in open_["4.channel_gate"].note


class Odd(nn.Module):
    """Layers that no equation maps, beside one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.fire = neuron.IFNode(step_mode="m")
        self.attention = nn.MultiheadAttention(4, 2)
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.rnn = nn.GRU(4, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, x):  # [T, N, 4]
        x = self.fire(self.fc(x))
        x = self.attention(x, x, x)[0] + self.rnn(x)[0]
        return self.up(x.permute(1, 2, 0))


def test_layers_that_cannot_be_mapped_are_rows_with_a_reason():
    report = estimate(Odd(), torch.rand(3, 2, 4))
    assert {row.path: row.note for row in report.unmapped} == {
        "attention": "no convolution or linear layer: the equations have no mapping for it",
        "attention.out_proj": "part of attention, which is not mapped as a whole",
        "up": "no convolution or linear layer: the equations have no mapping for it",
        "rnn": "no convolution or linear layer: the equations have no mapping for it",
        "idle": "not called by the sample",
    }
    assert [row.path for row in report if row.mapped] == ["fc"]
    assert report.pes == report["fc"].pes
    assert report.table().count("not mapped  ") == 5
    comparison = hardware.compare(report).table()
    assert "not mapped and in no total: attention, " in comparison


def test_a_layer_with_a_computation_of_its_own_says_so():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    report = estimate(nn.Sequential(Halved(4, 4), neuron.IFNode()), torch.ones(1, 4))
    assert "computes in a way of its own" in report["0"].note


# --- another implementation ---------------------------------------------------------------------


def test_dense_energy_agrees_with_spikingjellys_profiler():
    convs = [nn.Conv2d(3, 70, 3, padding=1, stride=2), nn.Conv2d(70, 9, 3), nn.Conv2d(9, 130, 3)]
    net = nn.Sequential(*convs).eval()
    sample = torch.rand(1, 3, 16, 12)
    for device in ("rram", "sram"):
        with (
            torch.no_grad(),
            SpikeSimEnergyProfiler(config=SpikeSimEnergyConfig(device=device)) as p,
        ):
            net(sample)
        theirs = p.get_report().energy_by_stage
        ours = estimate(net, sample, compat=True, crossbar=Crossbar(64, device))
        assert len(theirs) == 3
        for row in ours:
            (wanted,) = [e for path, e in theirs.items() if path.split(".")[-1] == row.path]
            assert math.isclose(row.energy_pj, wanted, rel_tol=1e-9)


def test_energy_of_arrays_at_a_spike_rate_agrees_with_spikingjellys_profiler():
    """Where every input is read equally often; theirs weighs inputs by the windows they are in."""
    net = nn.Sequential(nn.Conv2d(64, 70, 1)).eval()
    sample = (torch.rand(1, 64, 5, 4) < 0.2).float()
    with (
        torch.no_grad(),
        SpikeSimEnergyProfiler(config=SpikeSimEnergyConfig(activity_mode="event")) as profiler,
    ):
        net(sample)
    (theirs,) = profiler.get_report().energy_by_component["by_stage"].values()
    rate = float(sample.mean())

    def ours(rate: float) -> float:
        one = Layer("0", 64, 70, (5, 4), (5, 4), 1, spike_rate=rate)
        return estimate_layers([one], 1).energy_pj

    assert math.isclose(ours(rate) - ours(0.0), theirs["xbar_pj"], rel_tol=1e-6)


# --- the report and the comparison --------------------------------------------------------------


def reports() -> tuple[hardware.HardwareReport, hardware.HardwareReport]:
    net = networks.spiking_jelly()
    return estimate(net, EVENTS), estimate(spq.convert(net, QUANT, sample=EVENTS), EVENTS)


def test_a_report_as_dictionary_json_and_markdown():
    report = reports()[1]
    plain = json.loads(report.to_json())
    assert plain == json.loads(json.dumps(report.to_dict()))
    assert plain["energy_pj"] == report.energy_pj
    assert plain["edap"] == report.edap
    assert Crossbar.from_dict(plain["crossbar"]) == report.crossbar == Crossbar()
    assert [row["path"] for row in plain["layers"]] == ["0", "4", "8"]
    assert plain["layers"][1]["columns"] == 2
    markdown = report.to_markdown()
    assert markdown.startswith("**Sequential: 64 x 64 rram crossbars, 1 bit per cell, ")
    assert "| 4 | QuantizedConv2d | 1 | 2 | 2/2 | 1 | 1 |" in markdown
    assert str(report) == repr(report) == report.table()
    assert "nothing here was measured on silicon" in report.table()
    with pytest.raises(KeyError, match="'9' has no row here"):
        report["9"]


def test_a_comparison_has_ratios_against_the_first():
    full, small = reports()
    both = hardware.compare(full, small, names=["float", "quantised"])
    for name in ("energy_pj", "latency_ns", "area_um2", "edap"):
        assert both.ratio(1, name) == getattr(full, name) / getattr(small, name)
    for name in ("tops_per_watt", "tops_per_mm2"):
        assert both.ratio(1, name) == getattr(small, name) / getattr(full, name)
    assert both.ratio(1, "energy_pj") == pytest.approx(both.ratio(1, "tops_per_watt"))
    assert both.ratio(1, "latency_ns") == 1
    assert both.ratio(1, "energy_pj") > 1
    plain = json.loads(both.to_json())
    assert [row["name"] for row in plain["rows"]] == ["float", "quantised"]
    assert plain["rows"][1]["ratios"]["edap"] == both.ratio(1, "edap")
    assert plain["rows"][0]["energy_pj"] == full.energy_pj
    heading, _, first, second = both.table().splitlines()[:4]
    names = ["energy", "latency", "area", "EDAP", "TOPS/W", "TOPS/mm²"]
    assert [word for word in heading.split() if word != "ratio"] == ["model", "tiles", *names]
    assert first.startswith("float ")
    assert second.startswith("quantised ")
    assert both.to_markdown().count("\n|") == 3
    assert "decides the ratios" in str(both)
    assert repr(both) == str(both)
    assert "has another" not in str(both)


def test_a_comparison_says_what_differs_beside_the_networks():
    layers = published_layers()
    other = estimate_layers(layers, 4, Crossbar(128))
    words = hardware.compare(estimate_layers(layers, 5), other).table()
    assert "layers 2 has another crossbar and another timesteps: layers: 128 x 128" in words
    both = [estimate_layers(layers, 5, compat=True)] * 2
    assert "decides the ratios" not in hardware.compare(*both).table()


def test_names_are_the_models_own_where_none_are_given():
    report = estimate_layers(published_layers(), 5)
    assert hardware.compare(report).names == ("layers",)
    assert hardware.compare(report, report).names == ("layers 1", "layers 2")


def test_plots_have_a_bar_for_each_layer_and_each_report():
    full, small = reports()
    figure = full.plot()
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["energy", "latency", "area"]
    assert all(len(axes.patches) == 3 for axes in figure.axes)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "4", "8"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    energies = [row.energy_pj for row in full]
    assert widths == pytest.approx([w * widths[0] / energies[0] for w in energies])
    both = hardware.compare(full, small, names=["float", "quantised"]).plot()
    assert len(both.axes) == 6
    assert all(len(axes.patches) == 2 for axes in both.axes)
    assert all("(" in axes.get_xlabel() for axes in both.axes)


def test_plotting_says_what_to_install(monkeypatch):
    report = estimate_layers(published_layers(), 5)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingHostError, match=r"needs matplotlib.*spquant-plugin\[plots\]"):
        report.plot()


def test_records_round_trip_through_dictionaries():
    for record in (Crossbar(128, cell_bits=2), *CASES["chain"], *CASES["one axis"]):
        assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "Crossbar.size = 0: must be a whole number from 8"),
        ({"size": 60}, "Crossbar.size = 60: must be a multiple of 8.*Choose 64"),
        ({"device": "pcm"}, "Crossbar.device = 'pcm': must be one of 'rram', 'sram'"),
        ({"cell_bits": 0}, "Crossbar.cell_bits = 0: must be a whole number from 1"),
        (
            {"device": "sram", "cell_bits": 2},
            "Crossbar.cell_bits = 2: must be 1, because an SRAM cell stores one bit.*device='rram'",
        ),
        ({"clock_mhz": 0}, "Crossbar.clock_mhz = 0: must be a finite number above 0"),
        ({"pes_per_tile": True}, "Crossbar.pes_per_tile = True: must be a whole number"),
        ({"neuron_bits": 65}, "Crossbar.neuron_bits = 65: must be a whole number from 1 to 64"),
    ],
)
def test_an_accelerator_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Crossbar(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": 3}, "Layer.path = 3: must be text"),
        ({"in_channels": 0}, "Layer.in_channels = 0: must be a whole number from 1"),
        ({"out_size": 0}, "Layer.out_size = 0: must be a whole number above 0, or a tuple"),
        ({"in_size": (4, 2.5)}, r"Layer.in_size = \(4, 2.5\).*or use Layer.linear"),
        ({"kernel": True}, "Layer.kernel = True: must be a whole number above 0"),
        ({"kernel": None}, "Layer.kernel = None: must be a whole number above 0"),
        ({"groups": 3}, "Layer.groups = 3: must divide in_channels = 4 and out_channels = 6"),
        ({"weight_bits": 65}, "Layer.weight_bits = 65: must be a whole number from 1 to 64"),
        ({"membrane_bits": 0}, "Layer.membrane_bits = 0: must be a whole number from 1"),
        ({"spike_rate": 12.0}, "Layer.spike_rate = 12.0: must be a share from 0 to 1. Divide"),
        ({"gate_factor": "a"}, "Layer.gate_factor = 'a': must be a share from 0 to 1"),
        ({"steps": 0}, "Layer.steps = 0: must be a number above 0. Leave it out"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(options, message):
    sizes = {"path": "a", "in_channels": 4, "out_channels": 6, "in_size": 4, "out_size": 4}
    with pytest.raises(ConfigError, match=message):
        Layer(**sizes | options)


def test_wrong_layers_steps_and_settings_are_refused():
    layers = published_layers()
    with pytest.raises(AnalysisError, match=r"layer 2 is tuple: each must be a hardware.Layer"):
        estimate_layers([layers[0], (3, 64, 32, 32)], 5)
    with pytest.raises(AnalysisError, match="layer 1 is str"):
        estimate_layers("conv", 5)
    with pytest.raises(AnalysisError, match=r"layers: holds no layer .*\(it holds none\)"):
        estimate_layers([], 5)
    with pytest.raises(AnalysisError, match=r"fc: the public tool takes square convolutions only"):
        estimate_layers([Layer.linear("fc", 4, 4)], 5, compat=True)
    for steps in (0, True, 2.0, None):
        with pytest.raises(AnalysisError, match=r"timesteps = .*: must be a whole number above 0"):
            estimate_layers(layers, steps)
    with pytest.raises(AnalysisError, match=r"crossbar = 64: must be a hardware.Crossbar"):
        estimate_layers(layers, 5, 64)
    with pytest.raises(AnalysisError, match="compat = 1: must be True or False"):
        estimate_layers(layers, 5, compat=1)


def test_wrong_models_samples_and_shares_are_refused():
    net = networks.spiking_jelly()
    with pytest.raises(spq.errors.ConversionError, match=r"must be a torch.nn.Module"):
        estimate("vgg9", EVENTS)
    with pytest.raises(SampleError, match="cannot run on it"):
        estimate(net, torch.rand(4, 2, 3, 8, 8))
    with pytest.raises(SampleError, match="without a tensor"):
        estimate(net, iter([EVENTS]))
    with pytest.raises(AnalysisError, match="timesteps = 0"):
        estimate(net, EVENTS, timesteps=0)
    with pytest.raises(AnalysisError, match=r"spike_rates = 0.1: must be True, False or a dict"):
        estimate(net, EVENTS, spike_rates=0.1)
    with pytest.raises(AnalysisError, match=r"gates\['conv1'\]: the model has no module"):
        estimate(net, EVENTS, gates={"conv1": 0.5})
    with pytest.raises(AnalysisError, match=r"spike_rates\['4'\] = 8: must be a share from 0 to 1"):
        estimate(net, EVENTS, spike_rates={"4": 8})
    with pytest.raises(
        AnalysisError, match=r"holds no layer that a crossbar can take \(\(model\): no convolution"
    ):
        estimate(nn.ModuleDict({"rnn": nn.GRU(4, 4)})["rnn"], torch.rand(2, 1, 4))


def test_wrong_comparisons_are_refused():
    report = estimate_layers(published_layers(), 5)
    with pytest.raises(AnalysisError, match="received no report"):
        hardware.compare()
    with pytest.raises(AnalysisError, match="argument 2 is dict: each must be a HardwareReport"):
        hardware.compare(report, {})
    for names in ("ab", ["a"], 3):
        with pytest.raises(
            AnalysisError, match="for 2 reports: there must be a list with one name"
        ):
            hardware.compare(report, report, names=names)
    with pytest.raises(AnalysisError, match=r"ratio\('tops'\): must be one of 'energy_pj'"):
        hardware.compare(report).ratio(0, "tops")
