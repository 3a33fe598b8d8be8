"""Gates on SpikingJelly: masks against slow loops, every mode alike, and whole networks."""

from __future__ import annotations

import copy
import io
import math
import pickle
from fractions import Fraction

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor
from spikingjelly.activation_based import neuron as host
from spikingjelly.activation_based.model import sew_resnet, spikformer
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import GateError, UnsupportedModuleError
from spquant_plugin.modules.gates import ChannelGate
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.spikingjelly import layer as ours
from spquant_plugin.spikingjelly import neuron

IF, LIF, PLIF = (
    neuron.TernaryMembraneIFNode,
    neuron.TernaryMembraneLIFNode,
    neuron.TernaryMembraneParametricLIFNode,
)
# Class, constructor arguments, decay of the membrane, gain of the input.
KINDS = {
    "IF": (IF, {}, 1.0, 1.0),
    "LIF": (LIF, {"decay_input": False}, 0.5, 1.0),
    "LIF, input decays": (LIF, {"tau": 4.0}, 0.75, 0.25),
    "PLIF": (PLIF, {"decay_input": False}, 0.5, 1.0),
}
RESETS = {"hard": 0.0, "hard to -0.25": -0.25, "hard to 0.5": 0.5, "soft": None}
# Lowest and highest level, and the boundaries where they do not lie half way.
MEMBRANES = {
    "ternary": (spq.TernaryMembrane(), -1, 1, None, 1.0),
    "eq7": (spq.TernaryMembrane(boundaries="eq7"), -1, 1, (0.0, 0.5), 1.0),
    "binary": (spq.BinaryMembrane(), 0, 1, None, 1.0),
    "3 bits": (spq.UniformMembrane(3), -4, 3, None, 0.5),
    "-3..1": (spq.UniformMembrane(levels=(-3, 1)), -3, 1, None, 1.0),
    "float": (None, 0, 0, None, 1.0),
}
SPACES = [(3, 3), (5,), (2, 2, 3), (1, 1)]


def eighths(*shape: int) -> Tensor:
    """Multiples of 1/8: sums are exact, and ties are frequent."""
    return torch.randint(-12, 17, shape).float() / 8


def fire(net: nn.Module) -> nn.Module:
    """Raise what norms and linear layers give out, so that every layer fires."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.weight, 2.0)
            nn.init.constant_(module.bias, 0.47)  # on no boundary of the membrane
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=3 / module.in_features**0.5)
            nn.init.constant_(module.bias, 0.31)
    return net


def settle(net: nn.Module, x: Tensor) -> nn.Module:
    """Let the norms learn what they see, so that layers fire in eval mode, too."""
    norms = [m for m in fire(net).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    functional.reset_net(net)
    return net


def open_half(net: nn.Module) -> nn.Module:
    """Gates that decide by what they see: about half of the channels are open."""
    for gate in net.modules():
        if isinstance(gate, ChannelGate):
            nn.init.normal_(gate.weight)
            nn.init.normal_(gate.bias, std=0.3)
    return net


# --- spatial gates against a slow loop ------------------------------------------------------------


def level(z: float, lowest: int, highest: int, cuts: tuple[float, ...] | None) -> float:
    if cuts is not None:
        return lowest + sum(z > cut for cut in cuts)
    return min(range(lowest, highest + 1), key=lambda k: (abs(Fraction(z) - k), k))


def masked_pixels(importance: list[float], sparsity: float) -> set[int]:
    order = sorted(range(len(importance)), key=lambda pixel: (importance[pixel], pixel))
    return set(order[: math.floor(sparsity * len(importance))])


def slow_layer(x: Tensor, kind: str, reset: str, membrane: str, gate) -> tuple[Tensor, Tensor]:
    """Spikes and stored membranes ``[T, N, C, P]`` of a gated layer, one neuron after another."""
    _, _, decay, gain = KINDS[kind]
    rest = RESETS[reset] or 0.0
    _, *levels, share = MEMBRANES[membrane]
    unit = (1.0 - rest) * 0.75 / max(decay, 0.75) * share

    def stored_level(v: float) -> float:
        return v - rest if membrane == "float" else level((v - rest) / unit, *levels)

    steps, batch, channels, pixels = x.shape
    spikes, stored = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(batch):
        m = [[rest] * pixels for _ in range(channels)]
        for t in range(steps):
            u = [
                [
                    rest + decay * (m[c][p] - rest) + gain * x[t, n, c, p].item()
                    for p in range(pixels)
                ]
                for c in range(channels)
            ]
            ranks = [
                [
                    stored_level(u[c][p])
                    if gate.score == "current"
                    else (m[c][p] - rest) / (1.0 if membrane == "float" else unit)
                    for c in range(channels)
                ]
                for p in range(pixels)
            ]
            importance = [sum(z * z for z in column) for column in ranks]
            masked = masked_pixels(importance, gate.sparsity)
            if gate.score == "prior" and t == 0:
                masked = set()
            for c in range(channels):
                for p in range(pixels):
                    s = float(u[c][p] >= 1.0)
                    v = u[c][p] - s if RESETS[reset] is None else (rest if s else u[c][p])
                    kept = stored_level(v) * (1.0 if membrane == "float" else unit) + rest
                    m[c][p] = rest if p in masked else kept
                    spikes[t, n, c, p] = 0.0 if p in masked else s
                    stored[t, n, c, p] = m[c][p]
    return spikes, stored


def gated(kind: str, reset: str, membrane: str, gate, **options) -> nn.Module:
    made, arguments, *_ = KINDS[kind]
    return made(
        v_reset=RESETS[reset],
        membrane=MEMBRANES[membrane][0],
        spatial_gate=gate,
        **arguments,
        **options,
    )


def modes_of(node: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Spikes and states of single steps, of a recorded sequence, and of a watched one."""
    found, stored = [], []
    for step in x:
        found.append(node(step))
        stored.append(node.v)
    results = {"s": (torch.stack(found), torch.stack(stored))}
    for watched in (False, True):
        node.reset()
        node.step_mode, node.store_v_seq, node.watched = "m", True, watched
        results[f"recorded, watched={watched}"] = (node(x), node.v_seq)
        node.reset()
        node.store_v_seq = False
        results[f"sequence, watched={watched}"] = (node(x), node.v)
    return results


def check_layer(x: Tensor, kind: str, reset: str, membrane: str, gate) -> None:
    expected = slow_layer(x.flatten(3), kind, reset, membrane, gate)
    spikes, stored = (part.view_as(x) for part in expected)
    for mode, (s, m) in modes_of(gated(kind, reset, membrane, gate), x).items():
        assert torch.equal(s, spikes), mode
        assert torch.equal(m, stored if m.ndim == x.ndim else stored[-1]), mode


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_a_loop_for_every_neuron(kind, reset, score):
    gate = spq.SpatialGate(0.35, score)
    check_layer(eighths(4, 2, 2, 3, 3), kind, reset, "ternary", gate)


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("membrane", MEMBRANES)
def test_masks_are_those_of_a_loop_for_every_membrane(membrane, score):
    x = eighths(4, 2, 2, 3, 3)
    check_layer(x, "LIF", "hard", membrane, spq.SpatialGate(0.5, score))


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("sparsity", [0.0, 0.35, 0.95])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_masks_are_those_of_a_loop_in_every_space(space, sparsity, score):
    """A batch of one, and a space of one pixel, which floor never masks."""
    x = eighths(3, 1, 2, *space)
    check_layer(x, "LIF", "hard to -0.25", "ternary", spq.SpatialGate(sparsity, score))


def test_a_masked_pixel_goes_to_a_rest_that_is_no_round_number():
    node = LIF(v_reset=-0.3, step_mode="m", spatial_gate=spq.SpatialGate(0.5), store_v_seq=True)
    spikes = node(torch.randn(5, 3, 2, 4, 4) * 3)
    at_rest = (node.v_seq == -0.3) & (spikes == 0)
    assert at_rest.all(2).flatten(2).sum(-1).ge(8).all()
    assert 0 < spikes.mean() < 0.5
    assert set((node.stored_levels(node.v_seq)).unique().tolist()) == {-1.0, 0.0, 1.0}


# --- the first step -------------------------------------------------------------------------------

PRIOR = spq.SpatialGate(0.5, "prior")
STRONG = torch.full((2, 1, 2, 2), 5.0)


def test_a_silent_later_step_is_masked_by_index():
    """After the first step nothing is stored; every pixel is as important as any other."""
    for membrane in (spq.TernaryMembrane(), spq.BinaryMembrane(), spq.UniformMembrane(2)):
        node = LIF(membrane=membrane, spatial_gate=PRIOR)
        assert not node(torch.zeros(2, 1, 2, 2)).any()
        assert node(STRONG).flatten(1).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize(
    "renew",
    [
        lambda node: node.reset(),
        lambda node: functional.reset_net(nn.Sequential(node)),
        lambda node: spq.reset(node),
        lambda node: node(torch.zeros(2, 3, 2, 2)) is None or node.reset(),
    ],
    ids=["reset", "reset_net", "spq.reset", "after another shape"],
)
def test_prior_masks_nothing_after_a_reset(renew):
    node = LIF(spatial_gate=PRIOR)
    for _ in range(2):
        assert node(STRONG).all()
        assert node(STRONG).mean() == 0.5
        renew(node)


def test_prior_masks_nothing_where_a_state_of_another_shape_starts_anew():
    node = LIF(spatial_gate=PRIOR)
    node(STRONG)
    assert node(STRONG[:1]).all()
    assert node(STRONG[:1]).mean() == 0.5
    node.step_mode = "m"
    assert node(STRONG.repeat(2, 2, 1, 1, 1)).flatten(1).mean(1).tolist() == [1, 0.5]


def test_prior_goes_on_after_a_detach():
    node = LIF(spatial_gate=PRIOR)
    node(torch.zeros(2, 1, 2, 2))
    node.detach()
    assert node(STRONG).mean() == 0.5


def test_prior_goes_on_between_two_sequences():
    node = LIF(spatial_gate=PRIOR, step_mode="m")
    x = eighths(6, 2, 2, 3, 3)
    together = node(x)
    node.reset()
    assert torch.equal(torch.cat([node(x[:2]), node(x[2:])]), together)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("reset", RESETS)
def test_no_gradient_passes_the_mask(reset, score):
    """At masked places none; elsewhere that of a neuron without a gate."""
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64) * 2
    gate = spq.SpatialGate(0.4, score)
    states = torch.full_like(x[0], -0.25 if reset == "hard to -0.25" else 0.0)
    states[..., ::2] += 1.0  # "prior" has something to rank
    results = {}
    for name, rule in (("gated", gate), ("plain", None)):
        node = gated("LIF", reset, "ternary", rule).double()
        start, current = states.clone().requires_grad_(), x[0].clone().requires_grad_()
        node.v = start
        if rule is not None and score == "prior":
            node.begun = True
        spikes = node(current)
        weigh = torch.linspace(-1, 2, spikes.numel(), dtype=torch.float64).view_as(spikes)
        ((spikes + node.v.square()) * weigh).sum().backward()
        results[name] = (spikes, node.v, current.grad, start.grad)
    kept = results["gated"][2].ne(0).any(1, keepdim=True).expand_as(x[0])
    assert kept.flatten(1).float().mean() == pytest.approx(1 - 6 / 16)
    for ours_, plain in zip(results["gated"][2:], results["plain"][2:], strict=True):
        assert plain.ne(0).all()
        assert torch.equal(ours_[kept], plain[kept])
        assert not ours_[~kept].any()


# --- channel gates in hand-written networks -------------------------------------------------------


class Branches(nn.Module):
    """A gated branch beside a shortcut: what is closed must add nothing."""

    def __init__(self, source: str = "membrane") -> None:
        super().__init__()
        self.conv1, self.sn1 = ours.QuantizedConv2d(2, 4, 3, padding=1), LIF(decay_input=False)
        self.conv2, self.bn2 = ours.QuantizedConv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)
        self.gate = ours.ChannelGate(4, 4, source=source, neuron=self.sn1)
        self.sn2 = LIF(decay_input=False, spatial_gate=ours.SpatialGate(0.35))
        nn.init.constant_(self.bn2.bias, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.sn1(self.conv1(x))
        self.branch = self.gate(self.bn2(self.conv2(spikes)), spikes)
        return self.sn2(self.branch + spikes)


def branches(mode: str, source: str = "membrane") -> Branches:
    torch.manual_seed(3)
    net = open_half(Branches(source)).eval()
    nn.init.normal_(net.gate.weight, std=3)  # the means of a layer differ little between samples
    functional.set_step_mode(net, mode)
    return net


def slow_mask(gate: ChannelGate, sums: Tensor, area: int) -> Tensor:
    """The decision, one weight after another: ``[M, C_in]`` whole numbers to ``[M, C_out]``."""
    mask = torch.zeros(len(sums), gate.out_channels)
    for o in range(gate.out_channels):
        row = gate.weight[o].detach().double().tolist()
        scale = max(abs(w) for w in row) / 127
        levels = [round(w / scale) for w in row]
        assert max(abs(k) for k in levels) == 127
        for i, values in enumerate(sums.tolist()):
            total = sum(k * int(v) for k, v in zip(levels, values, strict=True))
            score = scale * total / area + gate.bias[o].item()
            assert abs(score - math.log(0.47 / 0.53)) > 1e-5  # no tie to be decided by rounding
            mask[i, o] = float(1 / (1 + math.exp(-score)) >= 0.47)
    return mask


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_decisions_are_those_of_a_whole_number_loop(source):
    net, x = branches("m", source), eighths(4, 3, 2, 5, 5) * 2
    seen = {}
    net.sn1.store_v_seq = True
    net.sn1.register_forward_hook(lambda m, a, out: seen.update(out=out, v=m.v_seq))
    net(x)
    held = seen["v"] / net.sn1.membrane_unit if source == "membrane" else seen["out"]
    sums = torch.zeros(12, 4)
    for i, image in enumerate(held.flatten(0, 1)):
        for c in range(4):
            sums[i, c] = sum(int(v) for v in image[c].flatten())
    expected = slow_mask(net.gate, sums, 25).view(4, 3, 4)
    assert torch.equal(net.gate.open_mask, expected)
    assert 0.2 < expected.mean() < 0.8
    assert len(expected.flatten(0, 1).unique(dim=0)) > 1


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_a_closed_channel_adds_nothing(source):
    """Also with a bias in the norm in front of the gate."""
    net = branches("m", source)
    net(eighths(4, 3, 2, 5, 5) * 2)
    closed = net.gate.open_mask == 0
    assert closed.any()
    assert not net.branch[closed].any()
    assert net.branch[~closed].ne(0).any(-1).any(-1).all()


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_single_steps_decide_as_the_sequence(source):
    x = eighths(5, 3, 2, 5, 5) * 2
    runs = {}
    for mode in "ms":
        net, masks = branches(mode, source), []
        net.gate.register_forward_hook(lambda gate, a, o, masks=masks: masks.append(gate.open_mask))
        out = net(x) if mode == "m" else torch.stack([net(step) for step in x])
        masks = masks[0] if mode == "m" else torch.stack(masks)
        runs[mode] = (out, net.sn2.v, masks, net.gate.closed_fraction())
    assert all(torch.equal(a, b) for a, b in zip(runs["m"][:3], runs["s"][:3], strict=True))
    torch.testing.assert_close(runs["m"][3], runs["s"][3])
    assert runs["m"][3].item() == pytest.approx(1 - runs["m"][2].mean().item())


def test_a_recording_source_tells_the_whole_sequence():
    x = eighths(5, 3, 2, 5, 5) * 2
    plain, recording = branches("m"), branches("m")
    recording.sn1.store_v_seq = True
    assert torch.equal(plain(x), recording(x))
    assert torch.equal(plain.gate.open_mask, recording.gate.open_mask)
    assert recording.sn1.v_seq.shape == (5, 3, 4, 5, 5)


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_samples_do_not_know_of_each_other(source):
    net, x = branches("m", source), eighths(4, 3, 2, 5, 5) * 2
    together = net(x)
    mask = net.gate.open_mask
    for n in range(3):
        spq.reset(net)
        assert torch.equal(net(x[:, n : n + 1]), together[:, n : n + 1])
        assert torch.equal(net.gate.open_mask, mask[:, n : n + 1])


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_a_gate_inside_a_container_sees_time_and_batch_in_one_axis(source):
    sn, conv, norm = LIF(step_mode="m", store_v_seq=True), nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
    folded = layer.SeqToANNContainer(conv, norm.eval())
    gate = open_half(ours.ChannelGate(2, 6, source=source, neuron=sn, channel_dim=-3))
    spikes = sn(eighths(4, 3, 2, 5, 5) * 2)
    ungated = folded(spikes)
    gate.attach(conv, norm, -3)
    out, mask = folded(spikes), gate.open_mask.reshape(12, 6)
    held = sn.v_seq / sn.membrane_unit if source == "membrane" else spikes
    assert torch.equal(mask, slow_mask(gate, held.flatten(0, 1).flatten(2).sum(-1), 25))
    assert torch.equal(out, ungated * mask.view(4, 3, 6, 1, 1))
    assert 0 < mask.mean() < 1


class Tokens(nn.Module):
    """Linear layers on tokens: channels last, one decision for all tokens of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.sn, self.fc = LIF(), layer.Linear(5, 6)
        self.gate = ours.ChannelGate(4, 6, neuron=self.sn, channel_dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.fc(self.sn(x)))


def test_channels_may_lie_last():
    """The source has 4 channels and 5 features, whose sum decides over the 6 of the last axis."""
    net, x = open_half(Tokens()), eighths(3, 2, 4, 5) * 2
    functional.set_step_mode(net, "m")
    out, mask = net(x), net.gate.open_mask
    assert mask.shape == (3, 2, 6)
    spq.reset(net)
    assert torch.equal(out, net.fc(net.sn(x)) * mask[:, :, None])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layer.Linear(4, 5), (4,)),
        (lambda: layer.Conv1d(4, 5, 3), (4, 6)),
        (lambda: layer.Conv2d(4, 5, 3), (4, 4, 5)),
        (lambda: layer.Conv3d(4, 5, 2), (4, 2, 3, 2)),
    ],
    ids=["Linear", "Conv1d", "Conv2d", "Conv3d"],
)
@pytest.mark.parametrize("source", ["membrane", "input"])
def test_a_gate_behind_every_kind_of_layer(make, shape, source):
    """A linear layer has an area of one. Levels are counted from rest."""
    sn, after = LIF(v_reset=0.5, step_mode="m", store_v_seq=True), make()
    after.step_mode = "m"
    gate = open_half(ours.ChannelGate(4, 5, source=source, neuron=sn))
    spikes = sn(eighths(3, 2, *shape) * 2)
    out = gate(after(spikes), spikes)
    held = (sn.v_seq - 0.5) / sn.membrane_unit if source == "membrane" else spikes
    area = math.prod(shape[1:])
    sums = held.flatten(0, 1).reshape(6, 4, area).sum(-1)
    expected = slow_mask(gate, sums, area).view(3, 2, 5, *[1] * (len(shape) - 1))
    assert torch.equal(out, after(spikes) * expected)
    assert 0 < expected.mean() < 1


def test_an_input_alone_may_decide():
    """Without a neuron the step mode tells which axes are no channels."""
    x = eighths(3, 2, 4, 5, 5)
    gate = open_half(ours.ChannelGate(4, 4, source="input"))
    masks = []
    for step in x:
        gate(step, step)
        masks.append(gate.open_mask)
    functional.set_step_mode(gate, "m")
    gate(x, x)
    assert torch.equal(gate.open_mask, torch.stack(masks))


@pytest.mark.usefixtures("float64")
def test_gradients_are_those_of_a_straight_through_reference():
    sn = LIF(step_mode="m", store_v_seq=True)
    gate = open_half(ours.ChannelGate(3, 5, neuron=sn))
    x = torch.randn(4, 2, 3, 4, 4).requires_grad_()
    current = torch.randn(4, 2, 5, 4, 4).requires_grad_()
    sn(x)
    weigh = torch.randn(4, 2, 5, 4, 4)
    (gate(current) * weigh).sum().backward()
    assert x.grad is None  # the source is only read

    w, b = (p.detach().clone().requires_grad_() for p in (gate.weight, gate.bias))
    other = current.detach().clone().requires_grad_()
    scale = w.detach().abs().amax(1, keepdim=True) / 127
    rounded = w + ((w / scale).round() * scale - w).detach()
    means = (sn.v_seq.detach() / sn.membrane_unit).mean((-1, -2))
    soft = torch.sigmoid(means @ rounded.T + b)
    mask = soft + ((soft >= 0.47).double() - soft).detach()
    (other * mask[..., None, None] * weigh).sum().backward()
    torch.testing.assert_close(gate.weight.grad, w.grad)
    torch.testing.assert_close(gate.bias.grad, b.grad)
    torch.testing.assert_close(current.grad, other.grad)
    assert gate.weight.grad.ne(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_current_keeps_its_precision(dtype):
    sn = LIF()
    gate = open_half(ours.ChannelGate(2, 3, neuron=sn))
    sn(eighths(2, 2, 3, 3))
    out = gate(torch.ones(2, 3, 3, 3, dtype=dtype))
    assert out.dtype == dtype
    assert set(out.unique().tolist()) <= {0.0, 1.0}


# --- what can be wrong with a hand-written gate ---------------------------------------------------


def test_a_source_must_store_levels():
    for wrong in (host.LIFNode(), nn.ReLU(), LIF(membrane=None)):
        with pytest.raises(GateError, match=f"neuron={type(wrong).__name__}.*source='input'"):
            ours.ChannelGate(2, 3, neuron=wrong)
    assert ours.ChannelGate(2, 3, source="input", neuron=LIF(membrane=None)).neuron is not None


def test_a_gate_may_not_run_before_its_source():
    gate = ours.ChannelGate(2, 3, neuron=LIF())
    with pytest.raises(GateError, match=r"ran before its source neuron.*call that neuron first"):
        gate(torch.zeros(1, 3, 4, 4))
    with pytest.raises(GateError, match=r"has no source neuron.*Pass neuron="):
        ours.ChannelGate(2, 3)(torch.zeros(1, 3, 4, 4))


def test_the_sources_channels_must_be_those_of_the_gate():
    sn = LIF()
    gate = ours.ChannelGate(3, 5, neuron=sn)
    sn(torch.zeros(1, 2, 4, 4))
    with pytest.raises(GateError, match=r"has 2 channels: must be 3. Correct in_channels"):
        gate(torch.zeros(1, 5, 4, 4))


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (2, 5, 4, 4), (1, 2, 5, 4, 4), (5,), ()], ids=str)
def test_a_current_must_have_the_batch_and_the_channels(shape):
    sn = LIF()
    gate = ours.ChannelGate(3, 5, neuron=sn)
    sn(torch.zeros(1, 3, 4, 4))
    with pytest.raises(GateError, match=r"received a current of shape .*Correct out_channels"):
        gate(torch.zeros(shape))


def test_a_spatial_gate_needs_space():
    node = LIF(spatial_gate=spq.SpatialGate())
    with pytest.raises(GateError, match=r"levels of shape \(2, 3\).*must be \[N, C, ...\]"):
        node(torch.zeros(2, 3))


# --- what was closed ------------------------------------------------------------------------------


def chain(mode: str) -> nn.Sequential:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        host.LIFNode(decay_input=False),
        layer.Conv2d(4, 6, 3, padding=1),
        layer.BatchNorm2d(6),
        host.IFNode(),
        layer.Flatten(),
        layer.Linear(6 * 25, 16),
        host.LIFNode(decay_input=False),
        layer.Linear(16, 12),
        host.LIFNode(),
        layer.Linear(12, 3),
    )
    functional.set_step_mode(net, mode)
    return fire(net)


def converted(mode: str, **fields) -> nn.Sequential:
    torch.manual_seed(0)
    sample = torch.ones(2, 2, 5, 5) if mode == "s" else torch.ones(2, 2, 2, 5, 5)
    return spq.convert(chain(mode), spq.presets.spquant_snn(**fields), sample)


GATED = ("3", "7", "9")


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def test_the_loss_and_the_numbers_are_those_of_the_masks():
    x = events(4, 3, 2, 5, 5)
    found = {}
    for mode in "ms":
        net, seen = open_half(converted(mode)).eval(), {path: [] for path in GATED}
        for path in GATED:
            net.get_submodule(path).channel_gate.register_forward_hook(
                lambda gate, a, o, path=path, seen=seen: seen[path].append(gate.open_mask)
            )
        net(x) if mode == "m" else [net(step) for step in x]
        closed = {p: 1 - torch.stack(masks).double().mean().item() for p, masks in seen.items()}
        stats = spq.gate_stats(net)
        assert stats == pytest.approx({f"{p}.channel_gate": c for p, c in closed.items()})
        assert 0 < sum(closed.values()) < 3
        expected = sum((c - 0.3) ** 2 for c in closed.values()) / 3
        assert spq.gate_loss(net, 0.3).item() == pytest.approx(expected, rel=1e-5)
        found[mode] = stats
    assert found["m"] == pytest.approx(found["s"])


@pytest.mark.parametrize(
    "renew",
    [
        functional.reset_net,
        functional.detach_net,
        spq.reset,
        lambda net: net(events(5, 2, 5, 5)),
        lambda net: [setattr(m, "v", m.v.clone()) for m in net.modules() if hasattr(m, "v")],
    ],
    ids=["reset_net", "detach_net", "spq.reset", "another batch", "states handed in"],
)
def test_a_loop_of_steps_is_counted_anew(renew):
    net, x = open_half(converted("s")).train(), events(4, 3, 2, 5, 5)
    for step in x[:3]:
        net(step)
    assert net[3].channel_gate._calls == 3
    renew(net)
    net(x[3])
    assert net[3].channel_gate._calls == 1
    masks = {p: net.get_submodule(p).channel_gate.open_mask for p in GATED}
    expected = {f"{p}.channel_gate": 1 - m.mean().item() for p, m in masks.items()}
    assert spq.gate_stats(net) == pytest.approx(expected)


@pytest.mark.parametrize("idiom", ["sequence", "loop", "detached loop"])
def test_two_iterations_of_training_follow_each_other(idiom):
    """Nothing of the first one's graph is left."""
    net = converted("m" if idiom == "sequence" else "s").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def learn(out: Tensor) -> None:
        optimizer.zero_grad()
        (out.square().mean() + spq.gate_loss(net, 0.5)).backward()
        optimizer.step()

    for _ in range(2):
        x = events(3, 4, 2, 5, 5)
        if idiom == "sequence":
            learn(net(x))
        elif idiom == "loop":
            learn(torch.stack([net(step) for step in x]))
        else:
            for step in x:
                learn(net(step))
                functional.detach_net(net)
        if idiom != "detached loop":
            functional.reset_net(net)


@pytest.mark.parametrize(
    ("mode", "target"), [("m", 0.0), ("m", 0.3), ("m", 0.5), ("m", 0.77), ("s", 0.5)]
)
def test_the_loss_alone_reaches_its_target(mode, target):
    """Gates start open; random data, few steps."""
    net = converted(mode).train()
    gates = gates_of(net).values()
    for gate in gates:
        nn.init.normal_(gate.weight, std=0.5)  # channels that are alike stay alike
    optimizer = torch.optim.Adam([p for gate in gates for p in gate.parameters()], lr=0.05)
    for _ in range(60):
        functional.reset_net(net)
        x = events(2, 16, 2, 5, 5)
        net(x) if mode == "m" else [net(step) for step in x]
        optimizer.zero_grad()
        spq.gate_loss(net, target).backward()
        optimizer.step()
    functional.reset_net(net)
    x = events(2, 64, 2, 5, 5)
    net(x) if mode == "m" else [net(step) for step in x]
    stats = spq.gate_stats(net)
    assert sum(stats.values()) / 3 == pytest.approx(target, abs=0.05)


def test_decisions_differ_between_inputs():
    net, x = open_half(converted("m")).eval(), events(4, 8, 2, 5, 5)
    net(x)
    for path in GATED:
        mask = net.get_submodule(path).channel_gate.open_mask.flatten(0, 1)
        assert len(mask.unique(dim=0)) > 1, path


# --- conversion of the host's own networks, and of ours -------------------------------------------


def jelly(name: str) -> tuple[nn.Module, Tensor]:
    """A narrow network that fires, and a sample."""
    torch.manual_seed(0)
    if name == "sew18":
        x = events(2, 2, 3, 32, 32)
        net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=host.LIFNode, num_classes=3)
        thin(net)
        functional.set_step_mode(net, "m")
    elif name == "spikformer":
        x = events(2, 2, 3, 16, 16)
        options = {"embed_dims": 16, "num_heads": 2, "depths": 1, "num_classes": 3}
        size = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4}
        net = spikformer.Spikformer(T=2, **size, **options)
    else:
        x = events(3, 2, 2, 16, 16)
        net = spq.models.create(name, in_channels=2, size=16, num_classes=3, width=0.25)
    return settle(net, x), x


def thin(net: nn.Module) -> None:
    """A sixteenth of the channels."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            into, out = (c if c <= 3 else c // 16 for c in (m.in_channels, m.out_channels))
            options = {"stride": m.stride, "padding": m.padding, "bias": m.bias is not None}
            m.__init__(into, out, m.kernel_size, **options)
        elif isinstance(m, nn.BatchNorm2d):
            m.__init__(m.num_features // 16)
        elif isinstance(m, nn.Linear):
            m.__init__(m.in_features // 16, m.out_features)


NETWORKS = ("vgg5", "sew18", "spikformer", "mobilenet_light")
CONFIG = spq.presets.spquant_snn()


class Case:
    """A float network, its plan and its conversion; what was in it before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.x = jelly(name)
        self.before = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.plan = spq.plan(self.model, CONFIG, self.x)
        self.net = spq.convert(self.model, CONFIG, self.x)

    def fresh(self) -> nn.Module:
        """A copy whose gates decide by what they see."""
        torch.manual_seed(1)
        return open_half(copy.deepcopy(self.net))


@pytest.fixture(scope="module", params=NETWORKS)
def case(request) -> Case:
    return Case(request.param)


def gates_of(net: nn.Module) -> dict[str, ChannelGate]:
    return {path: m for path, m in net.named_modules() if isinstance(m, ChannelGate)}


def answer(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        return net.eval()(x)


def test_the_plan_says_which_layers_are_gated(case):
    gated_layers = {step.path for step in case.plan.gates}
    assert gated_layers == {path for path, pair in case.plan.pairs.items() if pair.reason is None}
    assert {f"{path}.channel_gate" for path in gated_layers} == set(gates_of(case.net))
    for path, pair in case.plan.pairs.items():
        row = case.plan[path]
        assert row.action == "quantize"
        if path in gated_layers:
            assert f"channel gate, decided by {pair.source}" in row.reason
            gate, into = gates_of(case.net)[f"{path}.channel_gate"], case.net
            assert gate.neuron is into.get_submodule(pair.source)
            assert gate.out_channels == into.get_submodule(path).weight.shape[0]
        else:
            assert f"no channel gate: {pair.reason}" in row.reason
    spaces = {row.path: row.reason for row in case.plan if row.action == "convert"}
    for path, reason in spaces.items():
        has = case.net.get_submodule(path).spatial_gate is not None
        assert (" pixels" in reason and "masks" in reason) == has
        assert ("no spatial gate: " in reason) == (not has)
    assert "gated after" in str(case.plan)


EXPECTED_PAIRS = {
    "vgg5": {f"conv{i}": (f"neuron{i - 1}", f"neuron{i}", f"norm{i}") for i in (2, 3, 4)},
    "mobilenet_light": {
        **{f"conv{i}": (f"neuron{i - 1}", f"neuron{i}", f"norm{i}") for i in range(2, 12)},
        "fc1": ("neuron11", "neuron12", "fc1"),
    },
}


@pytest.mark.parametrize("name", EXPECTED_PAIRS)
def test_pairs_by_path(name):
    plan = spq.plan(jelly(name)[0], CONFIG, jelly(name)[1])
    found = {step.path: (step.pair.source, step.pair.target, step.pair.end) for step in plan.gates}
    assert found == EXPECTED_PAIRS[name]


def test_the_original_is_as_it_was(case):
    now = case.model.state_dict()
    assert now.keys() == case.before.keys()
    assert all(torch.equal(now[key], value) for key, value in case.before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())
    assert not gates_of(case.model)


def test_gates_start_open_and_change_nothing(case):
    """With an equal spatial gate, before any training."""
    without = spq.convert(case.model, spq.presets.spquant_snn(channel_gate=None), case.x)
    assert torch.equal(answer(copy.deepcopy(case.net), case.x), answer(without, case.x))
    net = copy.deepcopy(case.net)
    answer(net, case.x)
    assert set(spq.gate_stats(net).values()) == {0.0}


def test_one_step_of_training_reaches_every_gate(case):
    net = case.fresh().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    start = {path: gate.weight.detach().clone() for path, gate in gates_of(net).items()}
    out = net(case.x)
    (out.square().mean() + spq.gate_loss(net, 0.5)).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    optimizer.step()
    for path, gate in gates_of(net).items():
        assert gate.weight.grad.ne(0).any(), path
        assert gate.bias.grad.ne(0).any(), path
        assert not torch.equal(gate.weight, start[path]), path


def through_file(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), through_file],
    ids=["copy", "pickle", "torch.save"],
)
def test_a_duplicate_decides_alike_and_apart(case, duplicate):
    """Also of a network that has just run, and still holds what it closed."""
    net = case.fresh()
    net(case.x)
    loss = spq.gate_loss(net, 0.5)
    functional.reset_net(net)
    other = duplicate(net)
    assert torch.equal(spq.gate_loss(other, 0.5), loss)
    assert torch.equal(answer(other, case.x), answer(net, case.x))
    for path, gate in gates_of(other).items():
        assert gate.neuron is other.get_submodule(case.plan.pairs[path[:-13]].source)
        assert gate.neuron is not gates_of(net)[path].neuron
    before = answer(net, case.x)
    open_half(other)
    assert torch.equal(answer(net, case.x), before)


def test_a_state_dict_goes_into_a_second_conversion(case):
    net = case.fresh()
    second = spq.convert(case.model, CONFIG, case.x)
    assert not torch.equal(answer(second, case.x), answer(net, case.x))
    second.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(answer(second, case.x), answer(net, case.x))


def test_a_float_checkpoint_leaves_the_gates_alone(case):
    net = case.fresh()
    gates = {key: v.clone() for key, v in net.state_dict().items() if "channel_gate" in key}
    torch.manual_seed(5)
    other = {
        k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v
        for k, v in case.before.items()
    }
    report = spq.load_float_state_dict(net, other)
    assert report
    assert set(report.kept) == set(gates)
    assert f"kept {len(gates)} keys of gates" in str(report)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in gates.items())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in other.items())


def test_folding_keeps_the_gates(case):
    net = case.fresh()
    want = answer(net, case.x)
    plain = spq.fold(net)
    assert set(gates_of(plain)) == set(gates_of(net))
    torch.testing.assert_close(answer(plain, case.x), want, rtol=1e-4, atol=1e-5)
    assert spq.gate_stats(plain) == spq.gate_stats(net)


def test_both_resets_bring_it_to_rest(case):
    net = case.fresh()
    want = answer(net, case.x)
    with torch.no_grad():
        assert not torch.equal(net(case.x), want) or case.name == "spikformer"
    for reset in (spq.reset, functional.reset_net):
        reset(net)
        with torch.no_grad():
            assert torch.equal(net(case.x), want)


def test_the_status_lists_every_gate(case):
    net = case.fresh()
    for path in gates_of(net):
        assert "not run yet" in spq.status(net)[path].details
        assert spq.status(net)[path].bits == "8"
    answer(net, case.x)
    for path, closed in spq.gate_stats(net).items():
        assert f"{closed:.1%} closed" in spq.status(net)[path].details
    for path, m in net.named_modules():
        if isinstance(m, QuantizedNeuron):
            masks = "masks 35% of the pixels (current)" in spq.status(net)[path].details
            assert masks == (m.spatial_gate is not None)


@pytest.mark.parametrize("name", ["vgg5", "mobilenet_light", "sew18"])
def test_single_steps_equal_the_sequence_in_eval_mode(name):
    case = Case(name)
    net = case.fresh()
    together, masks = answer(net, case.x), spq.gate_stats(net)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    with torch.no_grad():
        apart = torch.stack([net.eval()(step) for step in case.x])
    assert torch.equal(apart, together)
    assert spq.gate_stats(net) == pytest.approx(masks)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("mode", ["m", "s"])
def test_it_compiles_without_a_graph_break(mode):
    """Training, where the record of a loop grows from step to step (and states carry a graph)."""
    net, x = open_half(converted(mode)), events(3, 4, 2, 5, 5)
    other = copy.deepcopy(net)
    torch._dynamo.reset()
    found = []
    for model, run in ((net, net), (other, torch.compile(other, backend="eager", fullgraph=True))):
        out = run(x) if mode == "m" else torch.stack([run(step) for step in x])
        loss = out.square().mean() + spq.gate_loss(model, 0.5)
        loss.backward()
        found.append(loss.detach())
    torch.testing.assert_close(*found)
    assert spq.gate_stats(net) == pytest.approx(spq.gate_stats(other))
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_it_runs_in_other_precisions():
    net, x = open_half(converted("m")).eval(), events(3, 4, 2, 5, 5)
    want, stats = answer(net, x), spq.gate_stats(net)
    double = copy.deepcopy(net).double()
    assert answer(double, x.double()).dtype == torch.float64
    assert spq.gate_stats(double).keys() == stats.keys()
    half = copy.deepcopy(net).bfloat16()
    out = answer(half, x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        out = net.train()(x)
        loss = spq.gate_loss(net, 0.5)
    (out.float().square().mean() + loss).backward()
    for gate in gates_of(net).values():
        assert gate.weight.grad.dtype == torch.float32
        assert gate.weight.grad.isfinite().all()
    assert want.dtype == torch.float32


def test_a_functional_forward_decides_alike():
    net, x = open_half(converted("m")).eval(), events(3, 4, 2, 5, 5)
    want, masks = net(x), {p: g.open_mask for p, g in gates_of(net).items()}
    functional.reset_net(net)
    net(events(3, 4, 2, 5, 5))  # what another batch left must not decide
    functional.reset_net(net)
    forward = base.to_functional_forward(net)
    (out,), states = forward((x,), tuple(base.extract_memories(net)))
    assert torch.equal(out, want)
    assert all(torch.equal(g.open_mask, masks[p]) for p, g in gates_of(net).items())
    assert all(isinstance(v, Tensor) for v in states)


def test_a_monitor_of_the_host_sees_gated_currents():
    net, x = open_half(converted("m")).eval(), events(3, 4, 2, 5, 5)
    seen = monitor.OutputMonitor(net, nn.BatchNorm2d)
    net(x)
    current = seen.records[-1].view(3, 4, 6, 5, 5)
    closed = net[3].channel_gate.open_mask == 0
    assert closed.any()
    assert not current[closed].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("move", ["before", "after"])
def test_gates_follow_to_a_device(move):
    x = events(3, 4, 2, 5, 5).cuda()
    net = chain("m").cuda() if move == "before" else chain("m")
    net = spq.convert(net, CONFIG, x if move == "before" else x.cpu()).cuda()
    open_half(net)(x).sum().backward()
    assert {v.device.type for v in net.state_dict().values()} == {"cuda"}
    assert {g.open_mask.device.type for g in gates_of(net).values()} == {"cuda"}


# --- what may be asked for ------------------------------------------------------------------------


def test_an_override_that_asks_for_an_impossible_gate_is_refused():
    x = events(2, 2, 2, 5, 5)
    for path, reason in {
        "0": "no spiking neuron reaches its input: it reads the raw input",
        "11": "no spiking neuron reads its output: read-out",
    }.items():
        config = spq.presets.spquant_snn(overrides={path: spq.presets.spquant_snn()})
        assert spq.plan(chain("m"), config, x)[path].action == "refuse"
        with pytest.raises(UnsupportedModuleError, match=f"  {path} .*{reason}"):
            spq.convert(chain("m"), config, x)
    config = spq.presets.quant_snn(overrides={"8": spq.presets.spquant_snn(channel_gate=None)})
    with pytest.raises(UnsupportedModuleError, match=r"  8 .*reads 7 .Linear., a layer without"):
        spq.convert(chain("m"), config, x)


def test_gates_can_be_left_out_by_path():
    x = events(2, 2, 2, 5, 5)
    excluded = spq.convert(chain("m"), CONFIG, x, exclude=["7", "2"])
    assert set(gates_of(excluded)) == {"9.channel_gate"}  # 3 lost the membrane that decides
    included = spq.convert(chain("m"), CONFIG, x, include=["re:[2357]"])
    assert set(gates_of(included)) == {"3.channel_gate", "7.channel_gate"}
    plan = spq.plan(chain("m"), CONFIG, x, exclude=["2"])
    assert "its source 2 keeps a float membrane" in plan["3"].reason


def test_a_float_source_cannot_decide():
    x, only = events(2, 2, 2, 5, 5), spq.SpQuantConfig(channel_gate=spq.ChannelGate())
    with pytest.raises(spq.errors.SelectionError, match="weight layers to gate between two neuron"):
        spq.convert(chain("m"), only, x)
    plan = spq.plan(chain("m"), only, x, on_unmatched="ignore")
    assert "its source 2 keeps a float membrane" in plan["3"].reason
    assert "source='input'" in plan["3"].reason


@pytest.mark.parametrize("mode", ["m", "s"])
def test_the_input_of_a_float_network_can_decide(mode):
    """Host neurons and host layers around the gates; samples do not mix."""
    only = spq.SpQuantConfig(channel_gate=spq.ChannelGate(source="input"))
    x = events(3, 4, 2, 5, 5)
    net = spq.convert(chain(mode), only, x if mode == "m" else x[0])
    assert type(net[2]) is host.LIFNode
    assert {
        p: spq.plan(chain(mode), only, x if mode == "m" else x[0])[p].action for p in GATED
    } == (dict.fromkeys(GATED, "gate"))
    open_half(net).eval()
    masks: dict[str, list[Tensor]] = {path: [] for path in gates_of(net)}
    for path, gate in gates_of(net).items():
        gate.register_forward_hook(lambda g, a, o, p=path: masks[p].append(g.open_mask))
    out = net(x) if mode == "m" else torch.stack([net(step) for step in x])
    found = {p: m[0] if mode == "m" else torch.stack(m) for p, m in masks.items()}
    assert all(mask.shape[:2] == (3, 4) for mask in found.values())
    assert 0 < torch.cat([m.flatten() for m in found.values()]).mean() < 1
    functional.reset_net(net)
    alone = net(x[:, :1]) if mode == "m" else torch.stack([net(step[:1]) for step in x])
    assert torch.equal(alone, out[:, :1])


def test_gates_work_with_float_membranes_where_only_pixels_are_masked():
    x = events(2, 2, 2, 5, 5)
    net = spq.convert(chain("m"), spq.SpQuantConfig(spatial_gate=spq.SpatialGate(0.5)), x)
    assert type(net[2]) is LIF
    assert net[2].membrane is None
    assert type(net[8]) is host.LIFNode  # no space, so nothing was asked of it
    spikes = net[:3](x)
    assert (spikes.sum(2) == 0).flatten(2).sum(-1).ge(12).all()
