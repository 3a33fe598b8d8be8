"""Gates as modules and as requests: what they refuse, how they learn, what stays as it was."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from networks import Loop, snn_torch, spiking_jelly
from spikingjelly.activation_based import functional, layer
from spikingjelly.activation_based import neuron as host_neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import ConfigError, GateError, SampleError, SelectionError
from spquant_plugin.modules.gates import ChannelGate, SpatialGate
from spquant_plugin.spikingjelly import neuron

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


def by_input(into: int = 4, out: int = 12, **rule) -> ChannelGate:
    """A gate that the layer's input decides, which needs no neuron."""
    return ChannelGate(into, out, source="input", **rule)


def spikes(*shape: int) -> Tensor:
    """Channels that are busy, each to another degree in every sample."""
    rates = torch.rand(*shape[:2], *[1] * (len(shape) - 2))
    return (torch.rand(shape) < rates).float()


# --- the modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_a_spatial_gate_keeps_the_pixels_of_largest_norm(device):
    gate, levels = SpatialGate(0.5), torch.randint(-1, 2, (3, 4, 3, 5)).float()
    kept = gate(levels.to(device)).cpu()
    for sample, mask in zip(levels, kept, strict=True):
        norms = [sum(v * v for v in column) for column in sample.flatten(1).T.tolist()]
        order = sorted(range(15), key=lambda pixel: (norms[pixel], pixel))
        assert [p for p in range(15) if not mask.flatten()[p]] == sorted(order[:7])


def test_a_spatial_gate_knows_nothing_at_first():
    gate, levels = SpatialGate(0.5, "prior"), torch.zeros(2, 1, 4)
    assert gate(levels, True).all()
    assert gate(levels, False).sum() == 4
    assert gate(levels, torch.tensor(True)).all()
    assert gate(levels, torch.tensor(False)).sum() == 4
    assert gate.sparsity == 0.5
    assert gate.score == "prior"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_spatial_gate_refuses_levels_without_space(shape):
    with pytest.raises(GateError, match=r"must be \[N, C, \.\.\.\].*Leave layers without space"):
        SpatialGate()(torch.zeros(shape))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "4"])
@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
def test_channels_must_be_whole_numbers(name, value):
    given = {"in_channels": 2, "out_channels": 3} | {name: value}
    with pytest.raises(GateError, match=rf"ChannelGate\({name}=.*whole number above 0"):
        ChannelGate(**given)


def test_an_input_is_asked_for():
    with pytest.raises(GateError, match=r"source='input'.*Call gate\(current, x\)"):
        by_input()(torch.zeros(2, 12, 3, 3))
    with pytest.raises(GateError, match=r"its source has 3 channels: must be 4"):
        by_input()(torch.zeros(2, 12, 3, 3), torch.zeros(2, 3, 5, 5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("space", [(), (6,), (4, 5), (2, 3, 2)], ids=str)
def test_decisions_are_those_of_a_whole_number_loop(space, device):
    gate, x = by_input(threshold=0.5), spikes(5, 4, *space)
    nn.init.normal_(gate.weight)
    nn.init.normal_(gate.bias, std=0.3)
    current = torch.randn(5, 12, *space)
    out = copy.deepcopy(gate).to(device)(current.to(device), x.to(device)).cpu()
    area = math.prod(space)
    for n in range(5):
        sums = [int(x[n, c].sum()) for c in range(4)]
        for o in range(12):
            row = gate.weight[o].tolist()
            scale = max(abs(w) for w in row) / 127
            total = sum(round(w / scale) * s for w, s in zip(row, sums, strict=True))
            is_open = scale * total / area + gate.bias[o].item() >= 0
            assert torch.equal(out[n, o], current[n, o] * float(is_open))


def test_weights_are_whole_numbers_of_eight_bits():
    gate = by_input()
    nn.init.normal_(gate.weight, std=3)
    levels, scale = gate.weight_quantizer(gate.weight)
    assert torch.equal(levels, levels.round())
    assert levels.abs().amax(1).tolist() == [127.0] * 12
    assert (gate.weight - levels * scale).abs().max() <= scale.max() / 2 * 1.001


@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_a_score_on_the_threshold_is_open(threshold):
    gate = by_input(threshold=threshold)
    nn.init.zeros_(gate.weight)
    nn.init.constant_(gate.bias, 0.0 if threshold == 0.5 else -10.0)
    gate(torch.ones(1, 12, 2), torch.zeros(1, 4, 2))
    assert gate.open_mask.tolist() == [[float(threshold == 0.5)] * 12]


def test_softmax_opens_two_channels_at_most():
    gate = by_input(score="softmax")
    nn.init.normal_(gate.weight, std=20)
    gate(torch.ones(64, 12, 2), spikes(64, 4, 9))
    assert set(gate.open_mask.sum(1).tolist()) <= {0.0, 1.0, 2.0}
    assert gate.open_mask.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_spikes_are_counted_in_half_precision(dtype):
    """257 is no number of bfloat16, 2,049 none of float16."""
    x = torch.zeros(1, 4, 64, 64, dtype=dtype)
    x.flatten(2)[..., :2049] = 1
    gate = by_input().to(dtype)
    sums, area = gate._over_space(x)
    assert sums.tolist() == [[2049.0] * 4]
    assert area == 4096
    x.flatten(2)[..., 257:] = 0
    assert gate._over_space(x)[0].tolist() == [[257.0] * 4]
    assert gate(torch.ones(1, 12, 3, dtype=dtype), x).dtype == dtype


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("threshold", [0.05, 0.47, 0.95])
def test_sigmoid_gates_start_open(threshold, score):
    gate = by_input(4, 2, threshold=threshold, score=score)
    gate(torch.ones(32, 2, 3), spikes(32, 4, 6))
    assert gate.open_mask.all() or score == "softmax"
    assert len(gate.bias.unique()) == 2  # else all channels would close at the same moment


# --- what was closed, and the loss on it ----------------------------------------------------------


def test_the_loss_is_the_mean_over_gates_of_the_squared_difference():
    net = nn.ModuleList([by_input(2, 4), by_input(2, 5)])
    for gate, closed in zip(net, (1, 3), strict=True):
        nn.init.zeros_(gate.weight)
        with torch.no_grad():
            gate.bias.fill_(5.0)[:closed] = -5.0
        gate(torch.ones(3, gate.out_channels), torch.ones(3, 2))
    assert spq.gate_stats(net) == pytest.approx({"0": 1 / 4, "1": 3 / 5})
    expected = ((1 / 4 - 0.5) ** 2 + (3 / 5 - 0.5) ** 2) / 2
    assert spq.gate_loss(net, 0.5).item() == pytest.approx(expected)
    assert spq.gate_loss(net, 0).item() == pytest.approx((1 / 16 + 9 / 25) / 2)
    spq.gate_loss(net, 0.5).backward()
    assert net[0].bias.grad.gt(0).all()  # fewer than half are closed: scores have to fall
    assert net[1].bias.grad.lt(0).all()


@pytest.mark.parametrize(
    "target", [-0.1, 1.0, 1, math.nan, math.inf, True, None, "0.5", torch.tensor(0.5)]
)
def test_a_target_is_a_share_below_one(target):
    gate = by_input()
    gate(torch.ones(1, 12), torch.ones(1, 4))
    with pytest.raises(GateError, match=r"gate_loss\(target=.*at least 0 and below 1"):
        spq.gate_loss(gate, target)


def test_a_loss_needs_a_gate_that_ran():
    with pytest.raises(GateError, match="Linear holds no channel gate"):
        spq.gate_loss(nn.Linear(2, 2), 0.5)
    assert spq.gate_stats(nn.Linear(2, 2)) == {}
    net = nn.Sequential(by_input())
    for ask in (spq.gate_stats, lambda net: spq.gate_loss(net, 0.5)):
        with pytest.raises(GateError, match=r"^0 \(ChannelGate\): has not run.*Run the network"):
            ask(net)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 0.77, 0.9])
def test_the_loss_alone_reaches_its_target(target):
    """Random data, few steps, from gates as they are made; and no constant mask comes of it."""
    gate = by_input(16, 32)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(120):
        x = spikes(64, 16, 9)
        gate(torch.ones(64, 32), x)
        optimizer.zero_grad()
        spq.gate_loss(gate, target).backward()
        optimizer.step()
    gate(torch.ones(512, 32), spikes(512, 16, 9))
    assert spq.gate_stats(gate)[""] == pytest.approx(target, abs=0.05)
    if target:
        assert len(gate.open_mask.unique(dim=0)) > 4


def test_a_copy_of_a_gate_that_ran_holds_no_graph():
    gate = by_input()
    gate(torch.ones(1, 12), torch.ones(1, 4))
    other = copy.deepcopy(gate)
    assert other.closed_fraction() == gate.closed_fraction()
    assert not other.closed_fraction().requires_grad
    assert gate.closed_fraction().requires_grad


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan, math.inf, "0.3", None, True])
def test_a_sparsity_is_a_share_below_one(sparsity):
    for make in (spq.SpatialGate, SpatialGate):
        with pytest.raises(ConfigError, match="sparsity"):
            make(sparsity=sparsity)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, math.nan, "0.5", None, True])
def test_a_threshold_is_one_that_a_sigmoid_reaches(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        spq.ChannelGate(threshold=threshold)
    with pytest.raises(ConfigError, match="threshold"):
        ChannelGate(2, 3, threshold=threshold)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (spq.SpatialGate, "score", "last"),
        (spq.ChannelGate, "score", "tanh"),
        (spq.ChannelGate, "source", "output"),
        (spq.ChannelGate, "source", None),
    ],
)
def test_a_choice_is_one_of_those_listed(make, name, value):
    with pytest.raises(ConfigError, match=name):
        make(**{name: value})


def test_a_request_survives_a_file():
    config = spq.presets.spquant_snn(
        spatial_gate=spq.SpatialGate(0.2, "prior"),
        channel_gate=spq.ChannelGate(0.3, "softmax", "input"),
        overrides={"fc": spq.SpQuantConfig(channel_gate=spq.ChannelGate()), "conv": None},
    )
    assert spq.SpQuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_preset_asks_for_both_gates_and_for_nothing_else_than_quant_snn():
    quant, spquant = spq.presets.quant_snn(4, True).to_dict(), spq.presets.spquant_snn(4, True)
    assert spquant.spatial_gate == spq.SpatialGate(0.35, "current")
    assert spquant.channel_gate == spq.ChannelGate(0.47, "sigmoid", "membrane")
    changed = {key for key, value in spquant.to_dict().items() if value != quant[key]}
    assert changed == {"spatial_gate", "channel_gate"}


# --- conversion -----------------------------------------------------------------------------------

NETWORKS = {
    "SpikingJelly, m": (lambda: spiking_jelly("m"), torch.ones(2, 2, 2, 8, 8)),
    "SpikingJelly, s": (lambda: spiking_jelly("s"), torch.ones(2, 2, 8, 8)),
    "hidden": (snn_torch, torch.ones(2, 5)),
    "explicit": (Loop, torch.ones(3, 2, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_request_leaves_the_network_as_it_is(name):
    make, x = NETWORKS[name]
    net = make()
    same = spq.convert(net, spq.SpQuantConfig(), x)
    assert [type(m) for m in same.modules()] == [type(m) for m in net.modules()]
    assert same.state_dict().keys() == net.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in same.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_need_a_sample(name):
    make, _ = NETWORKS[name]
    for config, asked in (
        (spq.presets.spquant_snn(), "spatial_gate and channel_gate"),
        (spq.presets.spquant_snn(spatial_gate=None), "channel_gate"),
        (
            spq.SpQuantConfig(overrides={"Linear": spq.presets.spquant_snn()}),
            "spatial_gate and chan",
        ),
    ):
        for call in (spq.plan, spq.convert):
            with pytest.raises(SampleError, match=rf"asks for {asked}.*Pass sample="):
                call(make(), config)


@pytest.mark.parametrize("name", ["hidden", "explicit"])
def test_a_network_without_space_has_channel_gates_alone(name):
    make, x = NETWORKS[name]
    net = spq.convert(make(), spq.presets.spquant_snn(), x, on_unmatched="ignore")
    assert any(isinstance(m, ChannelGate) for m in net.modules())
    assert not any(isinstance(m, SpatialGate) for m in net.modules())
    net(x)
    assert set(spq.gate_stats(net).values()) == {0.0}
    with pytest.raises(spq.errors.SelectionError, match="neurons with space to gate"):
        spq.convert(make(), spq.presets.spquant_snn(channel_gate=None), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gate_is_a_child_of_its_layer_in_the_state_dict(name):
    make, x = NETWORKS[name]
    net = spq.convert(make(), spq.presets.spquant_snn(), x, on_unmatched="ignore")
    without = spq.convert(make(), spq.presets.quant_snn(), x)
    added = set(net.state_dict()) - set(without.state_dict())
    assert added
    assert {key.rpartition("channel_gate.")[2] for key in added} == {"weight", "bias"}


@pytest.mark.parametrize("mode", [True, False])
def test_a_gate_has_the_mode_and_the_precision_of_its_layer(mode):
    make, x = NETWORKS["SpikingJelly, m"]
    net = spq.convert(make().double().train(mode), spq.presets.spquant_snn(), x.double())
    assert net[4].channel_gate.training == mode
    assert {p.dtype for p in net[4].channel_gate.parameters()} == {torch.float64}


# --- what must not pass unseen -------------------------------------------------------------------


def gated_pair() -> nn.Sequential:
    """Two convolutions between neurons, gated, in step mode m."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, step_mode="m"),
        host_neuron.LIFNode(step_mode="m"),
        layer.Conv2d(4, 6, 3, step_mode="m"),
        host_neuron.LIFNode(step_mode="m"),
    )
    config = spq.presets.spquant_snn(spatial_gate=None)
    return spq.convert(net, config, sample=torch.ones(3, 2, 2, 7, 7))


def test_a_part_that_is_copied_alone_does_not_decide_by_a_neuron_that_no_longer_runs():
    net = gated_pair()
    with torch.no_grad():
        net(torch.ones(3, 2, 2, 7, 7))
    net[2] = copy.deepcopy(net[2])
    with pytest.raises(GateError, match="ran before its source neuron"):
        net(torch.ones(3, 2, 2, 7, 7))


def test_a_gate_does_not_decide_by_the_sequence_before_a_reset():
    net = gated_pair()
    net(torch.ones(3, 2, 2, 7, 7))
    functional.reset_net(net)
    with pytest.raises(GateError, match="ran before its source neuron"):
        net[2](torch.ones(3, 2, 4, 5, 5))


def test_a_layer_is_not_gated_twice():
    net = gated_pair()
    with pytest.raises(SelectionError, match="2: already gated"):
        spq.convert(
            net, spq.SpQuantConfig(channel_gate=spq.ChannelGate()), torch.ones(3, 2, 2, 7, 7)
        )


def test_a_quantised_network_is_gated_in_a_second_stage():
    x = torch.randint(0, 2, (3, 2, 2, 9, 9)).float()
    quantized = spq.convert(spiking_jelly(), spq.presets.quant_snn(), x)
    gated = spq.convert(quantized, spq.SpQuantConfig(channel_gate=spq.ChannelGate()), x)
    assert list(spq.plan(quantized, spq.SpQuantConfig(channel_gate=spq.ChannelGate()), x).pairs)
    paths = [path for path, module in gated.named_modules() if isinstance(module, ChannelGate)]
    assert paths == ["4.channel_gate"]
    assert gated[4].channel_gate.neuron is gated[2]
    for key, value in quantized.state_dict().items():
        assert torch.equal(gated.state_dict()[key], value)
    quantized.eval(), gated.eval()
    assert torch.equal(gated(x), quantized(x))  # gates start open


def test_an_empty_batch_passes():
    assert gated_pair().eval()(torch.ones(3, 0, 2, 7, 7)).shape == (3, 0, 6, 3, 3)


def test_the_layer_may_be_called_by_keyword():
    gate = ChannelGate(2, 3, source="input")
    fc = nn.Linear(2, 3)
    fc.add_module("channel_gate", gate)
    gate.attach(fc, fc, -1)
    assert fc(input=torch.ones(4, 2)).shape == (4, 3)
    assert gate.open_mask.shape == (4, 3)


def test_replicas_of_data_parallel_are_refused():
    with pytest.raises(GateError, match="Use DistributedDataParallel"):
        ChannelGate(2, 3, source="input")._replicate_for_data_parallel()


@pytest.mark.parametrize("levels", [spq.TernaryMembrane(), spq.UniformMembrane(8)])
def test_new_gates_are_open_whatever_the_levels(levels):
    lif = neuron.TernaryMembraneLIFNode(membrane=levels)
    gate = ChannelGate(32, 64, neuron=lif)
    lif(3 * torch.randn(16, 32, 4, 4))
    assert float((gate(torch.ones(16, 64, 4, 4)) == 0).float().mean()) < 0.02


def test_sums_over_many_pixels_are_exact():
    lif = neuron.TernaryMembraneLIFNode(membrane=spq.UniformMembrane(8))
    lif.watched = True
    lif(torch.full((1, 1, 720, 1280), 0.9))
    level = lif.stored_levels(lif.v).flatten()
    assert int(lif.level_sums) == int(level.long().sum())


def test_a_share_of_zero_masks_nothing_and_is_no_error():
    net, x = spiking_jelly(), torch.randint(0, 2, (3, 2, 2, 9, 9)).float()
    ungated = spq.convert(net, spq.presets.quant_snn(), x).eval()
    config = spq.presets.quant_snn(spatial_gate=spq.SpatialGate(sparsity=0.0))
    assert torch.equal(spq.convert(net, config, x).eval()(x), ungated(x))


def test_a_share_of_less_than_one_pixel_is_a_reason():
    x = torch.randint(0, 2, (3, 2, 2, 2, 2)).float()
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, step_mode="m"), host_neuron.LIFNode(step_mode="m")
    )
    plan = spq.plan(
        net,
        spq.SpQuantConfig(
            membrane=spq.TernaryMembrane(), spatial_gate=spq.SpatialGate(sparsity=0.2)
        ),
        x,
        on_unmatched="ignore",
    )
    assert "no spatial gate: 0.2 of 4 pixels is less than one" in plan["1"].reason
