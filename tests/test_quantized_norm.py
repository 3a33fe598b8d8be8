"""Dyadic batch norms of both hosts, against slow references in fractions and in float64."""

from __future__ import annotations

import copy
import io
import math
import pickle
from fractions import Fraction

import pytest
import snntorch as snn
import torch
from networks import run_from_rest as run
from networks import uneven
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import layer as host_layer
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.functional.norm import dyadic_factors, moments
from spquant_plugin.modules import QuantizedBatchNorm
from spquant_plugin.snntorch import layer as torch_twins
from spquant_plugin.spikingjelly import layer as sj_twins

double = torch.float64
EPS = 2.0**-17
RULES = {
    "pow2": spq.PowerOfTwoWeights(2),
    "pow4": spq.PowerOfTwoWeights(4),
    "sums6": spq.AdditivePowerOfTwoWeights(6),
    "uniform4": spq.UniformWeights(4),
    "uniform8": spq.UniformWeights(8),
    "ternary": spq.TernaryWeights(),
}
TWINS = {"torch": torch_twins, "spikingjelly": sj_twins}
both_hosts = pytest.mark.parametrize("host", TWINS)
all_rules = pytest.mark.parametrize("rule", RULES)
NORM = spq.QuantizedNorm(bits=8)


# The equation.


def reference(weight, bias, mean, variance, eps, bits, scale, layer_bias):
    """Channel by channel in fractions, the shift by trying all of them."""
    top = 2 ** (bits - 1) - 1
    slopes = [w / math.sqrt(v + eps) for w, v in zip(weight, variance, strict=True)]
    voters = [c for c, v in enumerate(variance) if v > eps] or range(len(weight))
    shift = next(
        k
        for k in range(40, -200, -1)
        if all(abs(round(Fraction(slopes[c] * scale[c]) * Fraction(2) ** k)) <= top for c in voters)
    )
    m, n = [], []
    for c, slope in enumerate(slopes):
        size = abs(round(Fraction(slope * scale[c]) * Fraction(2) ** shift))
        if size > top:
            slope *= float(top / (abs(Fraction(slope * scale[c])) * Fraction(2) ** shift))
        m.append(round(Fraction(slope * scale[c]) * Fraction(2) ** shift))
        n.append(
            round(Fraction(bias[c] - slope * (mean[c] - layer_bias[c])) * Fraction(2) ** shift)
        )
    return m, n, shift


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [1e-14, 1e-3, 1.0, 40.0, 3e6])
def test_whole_factors_are_those_of_a_slow_search(bits, size):
    generator = torch.Generator().manual_seed(bits)

    def draw(low: float, high: float) -> list[float]:
        return torch.empty(6, dtype=double).uniform_(low, high, generator=generator).tolist()

    for _ in range(5):
        weight = [size * w for w in draw(-1, 1)]
        others = draw(-2, 2), draw(-3, 3), [*draw(0.1, 4)[:4], 0.0, 1e-6], draw(0.1, 2), draw(-1, 1)
        bias, mean, variance, scale, layer_bias = others
        given = (torch.tensor(v, dtype=double) for v in (weight, bias, mean, variance))
        found = dyadic_factors(
            *given,
            1e-5,
            bits=bits,
            scale=torch.tensor(scale, dtype=double),
            layer_bias=torch.tensor(layer_bias, dtype=double),
        )
        m, n, shift = reference(weight, bias, mean, variance, 1e-5, bits, scale, layer_bias)
        assert found.multiplier.tolist() == m
        assert found.offset.tolist() == n
        assert found.step.item() == 2.0**-shift
        assert max(map(abs, m)) <= 2 ** (bits - 1) - 1


def factors(weight: list[float], variance: list[float], bits: int = 8, bias: float = 0.0):
    zero = torch.zeros(len(weight), dtype=double)
    weights, variances = (torch.tensor(values, dtype=double) for values in (weight, variance))
    m, n, step = dyadic_factors(weights, zero + bias, zero, variances, EPS, bits=bits)
    return m.tolist(), n.tolist(), -math.log2(step)


def test_factors_above_the_largest_whole_number_have_a_negative_shift():
    assert factors([1000.0, 10.0], [1.0, 1.0]) == ([125.0, 1.0], [0.0, 0.0], -3.0)


def test_a_layer_of_zeros_gives_its_offset():
    assert factors([0.0, -0.0], [1.0, 1.0], bias=0.5) == ([0.0, 0.0], [64.0, 64.0], 7.0)


def test_the_largest_factor_may_round_down_to_the_largest_whole_number():
    rest = 1 - EPS  # with which eps makes 1
    assert rest + EPS == 1
    assert factors([127.4, 1.0], [rest, rest])[0] == [127.0, 1.0]
    assert factors([127.5, 1.0], [rest, rest])[::2] == ([64.0, 0.0], -1.0)  # 127.5 rounds to 128
    assert factors([1.4, 1.0], [rest, rest], bits=2)[::2] == ([1.0, 1.0], 0.0)


def test_a_dead_channel_does_not_cost_the_others_their_bits():
    """Its factor is some 316 times the others', and it has nothing to multiply."""
    alive = factors([1.0, 0.5], [1.0, 1.0])
    m, n, shift = factors([1.0, 0.5, 1.0], [1.0, 1.0, 0.0], bias=0.25)
    assert (m[:2], shift) == (alive[0], alive[2])
    assert (m[2], n[2]) == (127.0, 0.25 * 2**shift)
    assert factors([1.0, 1.0], [0.0, 0.0])[::2] == ([91.0, 91.0], -2.0)  # all alike: they decide


def test_moments_are_mean_and_variance_with_their_gradients(float64):
    for shape, axis in (((3, 4, 2, 5), 1), ((2, 3, 4, 5), 2), ((7, 3), 1)):
        x = torch.randn(shape, requires_grad=True)
        axes = [a for a in range(x.ndim) if a != axis]
        mean, variance = moments(x, axis)
        assert torch.allclose(mean, x.mean(axes), atol=1e-14)
        assert torch.allclose(variance, x.var(axes, correction=0), atol=1e-14)
        assert torch.autograd.gradcheck(lambda t, a=axis: moments(t, a), x)


# One norm behind one layer.

LAYERS = {
    "Conv1d": ((3, 4, 3), (3, 6), 1),
    "Conv2d": ((3, 4, 3), (3, 6, 5), 2),
    "Conv3d": ((2, 4, 2), (2, 3, 4, 4), 3),
    "ConvTranspose2d": ((3, 4, 2), (3, 3, 3), 2),
    "Linear": ((6, 4), (6,), 1),
}
all_layers = pytest.mark.parametrize("kind", LAYERS)


def pair(kind: str, host: str = "torch", rule: str = "uniform4", bits: int = 8, **options):
    """A quantised layer, its norm with uneven parameters and statistics, and spikes for them."""
    arguments, shape, dims = LAYERS[kind]
    layer = getattr(TWINS[host], f"Quantized{kind}")(*arguments, weights=RULES[rule], **options)
    if isinstance(layer, nn.Linear):
        with torch.no_grad():
            layer.weight.mul_(3)
        layer.refit()
    named = {"step_mode": options["step_mode"]} if "step_mode" in options else {}
    norm = getattr(TWINS[host], f"QuantizedBatchNorm{dims}d")(
        4, layer=layer, norm=spq.QuantizedNorm(bits=bits), **named
    )
    uneven(norm)
    return layer, norm, torch.rand(5, 2, *shape).round()


def plain_sums(layer: nn.Module, x: Tensor) -> Tensor:
    """Raw sums in double precision: levels without scale and bias, computed apart."""
    twin = copy.deepcopy(layer).double().eval()
    twin.hands_scale_on, twin.bias = False, None
    scale = layer.present_scale()
    with torch.no_grad():
        twin = spq.fold(twin)
        levels = layer.eval().quantized_weight()[0]
        twin.weight.copy_(levels)
        assert isinstance(scale, float) or scale.shape == (4,)
        return twin(x.double())


def whole_formula(norm: QuantizedBatchNorm, sums: Tensor, axis: int) -> Tensor:
    """(m x + n) 2^-k in 64-bit integers; sums of powers of two are whole in units of 2^-12."""
    m, n, k = norm.dyadic()
    units = 2**20
    whole = (sums * units).to(torch.int64)
    assert torch.equal(whole.double() / units, sums)
    view = (-1, *(1,) * (sums.ndim - axis - 1))
    result = whole * m.view(view) + n.view(view) * units
    assert int(result.abs().max()) < 2**53
    return result.double() / units / 2.0**k


@both_hosts
@all_rules
@all_layers
def test_eval_is_the_integer_formula(host, rule, kind):
    layer, norm, x = pair(kind, host, rule)
    norm.eval(), layer.eval()
    x = x.flatten(0, 1)
    expected = whole_formula(norm, plain_sums(layer, x), 1)
    assert torch.equal(norm(layer(x)).double(), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_eval_is_close_to_the_plain_norm(bits):
    """Rounding moves a factor by half a step of the largest, an offset by half a step."""
    layer, norm, x = pair("Conv2d", bits=bits)
    norm.eval(), layer.eval()
    x = x.flatten(0, 1)
    found, sums = norm(layer(x)), plain_sums(layer, x).abs().max()
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(norm.state_dict())
    layer.hands_scale_on = False
    error = (found - plain(layer(x))).abs().max()
    step = 2.0 ** -norm.dyadic().shift
    assert 0 < error <= step / 2 * (sums + 1) * 1.0001


def test_an_analogue_input_is_part_of_the_scale():
    layer, norm, x = pair("Conv2d", input=spq.UniformInput(bits=4))
    norm.eval(), layer.eval()
    x = torch.rand_like(x.flatten(0, 1))
    levels = (x * 15).round()
    bare = copy.deepcopy(layer)
    bare.input_quantizer = None
    assert torch.equal(norm(layer(x)).double(), whole_formula(norm, plain_sums(bare, levels), 1))
    assert torch.equal(layer.present_scale(), bare.present_scale() * layer.input_quantizer.scale)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Conv3d", "Linear"])
def test_a_sequence_is_its_steps_in_eval_and_one_batch_in_training(kind):
    layer, norm, x = pair(kind, "spikingjelly", step_mode="m")
    flat_layer, flat_norm = copy.deepcopy((layer, norm))
    for module in (flat_layer, flat_norm):
        module.step_mode = "s"
    trained = norm(layer(x))
    assert torch.equal(trained.flatten(0, 1), flat_norm(flat_layer(x.flatten(0, 1))))
    assert torch.equal(norm.running_var, flat_norm.running_var)
    for module in (layer, norm, flat_layer, flat_norm):
        module.eval()
    steps = torch.stack([flat_norm(flat_layer(step)) for step in x])
    assert torch.equal(norm(layer(x)), steps)
    assert torch.equal(steps.double(), whole_formula(norm, plain_sums(layer, x), 2))


# Training.


def slow_norm(sums, weight, bias, scale, layer_bias, eps, bits):
    """Written as the equation, in double; each rounding is a constant that is added."""
    view = (-1, 1, 1)
    y = sums * scale.view(view) + layer_bias.view(view)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    slope = weight / (variance + eps).sqrt()
    factor, offset = slope * scale, bias - slope * mean + slope * layer_bias
    top = 2 ** (bits - 1) - 1
    k = next(k for k in range(40, -99, -1) if (factor.detach() * 2.0**k).round().abs().max() <= top)
    rounded = [
        value + (torch.round(value * 2.0**k) / 2.0**k - value).detach()
        for value in (factor, offset)
    ]
    return sums * rounded[0].view(view) + rounded[1].view(view)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_gradients_are_those_of_a_slow_reference(float64, bits):
    layer, norm, x = pair("Conv2d", rule="uniform8", bits=bits)
    sums = layer(x.flatten(0, 1)).detach().requires_grad_()
    scale = layer.handed_scale.detach().clone().requires_grad_()
    layer.handed_scale = scale
    found = norm(sums)
    leaves = (sums, norm.weight, norm.bias, scale, layer.bias)
    expected = slow_norm(*leaves, norm.eps, bits)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for name, a, b in zip(("sums", "weight", "bias", "scale", "b"), ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), name
        assert name == "b" or bool((a != 0).any()), name


def test_parameters_learn_as_in_the_plain_norm(float64):
    """Roundings let the gradient through, so theirs is the very one of the norm without them."""
    layer, norm, x = pair("Conv2d", bits=3)
    plain = nn.BatchNorm2d(4)
    plain.load_state_dict(norm.state_dict())
    sums = layer(x.flatten(0, 1)).detach()
    y = sums * layer.handed_scale.view(-1, 1, 1) + layer.bias.detach().view(-1, 1, 1)
    weights = torch.randn_like(y)
    (norm(sums) * weights).sum().backward()
    (plain(y) * weights).sum().backward()
    assert torch.allclose(norm.weight.grad, plain.weight.grad, atol=1e-10)
    assert torch.allclose(norm.bias.grad, plain.bias.grad, atol=1e-10)


def test_in_eval_gradients_pass_the_rounded_factors():
    layer, norm, x = pair("Conv2d")
    norm.eval()
    sums = layer(x.flatten(0, 1)).detach().requires_grad_()
    norm(sums).sum().backward()
    m, _, k = norm.dyadic()
    assert torch.equal(sums.grad, (m / 2.0**k).float().view(-1, 1, 1).expand_as(sums))


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_running_statistics_are_those_of_the_plain_norm(momentum, float64):
    layer, norm, _ = pair("Conv2d")
    plain = nn.BatchNorm2d(4, momentum=momentum)
    plain.load_state_dict(norm.state_dict())
    norm.momentum = momentum
    whole = copy.deepcopy(layer)
    whole.hands_scale_on = False
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.rand(3, 3, 6, 5).round()
        norm(layer(x)), plain(whole(x))
    for name, kept in plain.named_buffers():
        assert torch.allclose(norm.get_buffer(name), kept, rtol=1e-12), name
    assert norm.num_batches_tracked == 3


def test_statistics_of_a_norm_that_counts_no_batches():
    layer, norm, x = pair("Conv2d")
    norm.num_batches_tracked = None
    before = norm.running_mean.clone()
    for momentum, moves in ((None, False), (0.5, True)):
        norm.momentum = momentum
        norm(layer(x.flatten(0, 1)))
        assert torch.equal(norm.running_mean, before) != moves


def test_reading_whole_factors_changes_nothing():
    layer, norm, _ = pair("Conv2d", rule="pow4")
    with torch.no_grad():
        layer.weight.mul_(8)
    before = copy.deepcopy(layer.state_dict())
    norm.dyadic()
    assert layer.weight_quantizer.training
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_a_frozen_norm_keeps_its_statistics():
    layer, norm, x = pair("Conv2d")
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    norm(layer(x.flatten(0, 1))).sum().backward()
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    assert bool((layer.weight.grad != 0).any())
    assert bool((norm.weight.grad != 0).any())


# Networks.


def sj_net() -> nn.Sequential:
    net = nn.Sequential(
        host_layer.Conv2d(2, 4, 3, padding=1, bias=False),
        host_layer.BatchNorm2d(4),
        neuron.LIFNode(),
        host_layer.Conv2d(4, 6, 3, padding=1),
        host_layer.BatchNorm2d(6),
        neuron.LIFNode(),
        host_layer.Flatten(),
        host_layer.Linear(6 * 25, 3),
    )
    functional.set_step_mode(net, "m")
    uneven(net)
    return net


def snn_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(6 * 25, 3),
        snn.Leaky(beta=0.5, init_hidden=True),
    )
    uneven(net)
    return net


SAMPLES = {"spikingjelly": (4, 3, 2, 5, 5), "torch": (3, 2, 5, 5)}
NETS = {"spikingjelly": sj_net, "torch": snn_net}
CONFIG = spq.presets.quant_snn(weight_bits=4, norm=NORM)


def converted(host: str, config: spq.SpQuantConfig = CONFIG) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(1)
    net, x = NETS[host](), torch.rand(SAMPLES[host]).round()
    return net, spq.convert(net, config, x), x


def norms_of(net: nn.Module) -> list[QuantizedBatchNorm]:
    return [module for module in net.modules() if isinstance(module, QuantizedBatchNorm)]


@both_hosts
def test_conversion_pairs_norms_with_their_layers(host):
    net, quantized, x = converted(host)
    names = {"torch": torch_twins, "spikingjelly": sj_twins}[host]
    for norm, layer in ((quantized[1], quantized[0]), (quantized[4], quantized[3])):
        assert type(norm) is names.QuantizedBatchNorm2d
        assert norm.layer is layer
        assert layer.hands_scale_on
    assert not quantized[7].hands_scale_on
    assert all(not hasattr(module, "hands_scale_on") for module in net.modules())
    keys = set(quantized.state_dict()) - set(net.state_dict())
    assert all("weight_quantizer" in key or "membrane_unit" in key for key in keys)
    assert [name for name, _ in quantized.named_parameters()] == [
        name for name, _ in net.named_parameters()
    ]
    rows = spq.plan(net, CONFIG, x)
    assert (rows["1"].action, rows["1"].bits) == ("quantize", "8")
    assert rows["4"].reason == "dyadic, with the scale of 3"
    assert spq.status(quantized)["4"].bits == "8"
    assert spq.status(quantized)["4"].details.startswith("dyadic, behind 3, multipliers ")
    assert "behind QuantizedConv2d, " in spq.status(quantized[4])[""].details


@both_hosts
def test_every_current_of_a_network_is_whole(host):
    _, quantized, x = converted(host)
    quantized.train()
    run(quantized, x)
    quantized.eval()
    seen = []
    for norm in norms_of(quantized):
        norm.register_forward_hook(lambda m, args, y: seen.append((m, args[0], y)))
    run(quantized, x)
    assert len(seen) == 2
    for norm, sums, y in seen:
        axis = 2 if host == "spikingjelly" else 1
        assert torch.equal(y.double(), whole_formula(norm, sums.double(), axis))


@both_hosts
def test_it_trains(host):
    _, quantized, x = converted(host)
    optimizer = torch.optim.Adam(quantized.parameters(), 0.01)
    target, losses = torch.tensor([0, 1, 2]), []
    for _ in range(15):
        optimizer.zero_grad()
        y = run(quantized, x)
        loss = F.cross_entropy(y if host == "torch" else y.mean(0), target)
        loss.backward()
        assert all(p.grad is not None for p in quantized.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@both_hosts
def test_copies_follow_their_own_layers(host):
    _, quantized, x = converted(host)
    quantized.eval()
    expected = run(quantized, x)
    quantized(x).sum().backward()
    spq.reset(quantized)
    twins = [copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))]
    stored = io.BytesIO()
    torch.save(quantized, stored)
    stored.seek(0)
    twins.append(torch.load(stored, weights_only=False))
    for twin in twins:
        assert twin[1].layer is twin[0]
        assert twin[4].layer is twin[3]
        assert torch.equal(run(twin, x), expected)
        nn.init.zeros_(twin[4].layer.weight)
        assert bool((quantized[3].weight != 0).any())


@both_hosts
def test_a_copy_in_the_middle_of_a_step_takes_no_graph_along(host):
    quantized = converted(host, spq.presets.quant_snn(weights=RULES["ternary"], norm=NORM))[1]
    quantized[0].handed_scale = torch.ones(4, requires_grad=True) * 2
    assert not copy.deepcopy(quantized[0]).handed_scale.requires_grad


@both_hosts
def test_state_dicts_and_float_checkpoints_load(host):
    net, quantized, x = converted(host)
    run(quantized.train(), x)
    twin = spq.convert(net, CONFIG, x)
    twin.load_state_dict(quantized.state_dict())
    assert torch.equal(run(twin.eval(), x), run(quantized.eval(), x))
    report = spq.load_float_state_dict(quantized, net.state_dict())
    assert report.fits
    fresh = spq.convert(net, CONFIG, x).eval()
    assert torch.equal(run(fresh, x), run(quantized, x))


@both_hosts
def test_a_folded_network_is_plain_and_computes_the_same(host):
    _, quantized, x = converted(host)
    run(quantized.train(), x)
    quantized.eval()
    plain = spq.fold(quantized)
    assert not norms_of(plain)
    for name in ("handed_scale", "hands_scale_on", "rule"):
        assert not any(hasattr(module, name) for module in plain.modules())
    assert type(plain[1]) in (nn.BatchNorm2d, host_layer.BatchNorm2d)
    currents = {}
    for net in (quantized, plain):
        spq.reset(net)
        currents[net] = net[1](net[0](x))
        assert torch.allclose(currents[net], currents[quantized], atol=1e-5)
    inner = torch.rand(*x.shape[:-3], 4, 5, 5).round()
    assert torch.allclose(quantized[4](quantized[3](inner)), plain[4](plain[3](inner)), atol=1e-5)
    assert quantized[0].hands_scale_on  # the original stays as it is


def test_norms_without_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False))
    config = spq.SpQuantConfig(weights=RULES["uniform4"], norm=NORM)
    x = torch.rand(6, 3).round()
    quantized = spq.convert(net, config, x)
    for _ in range(3):
        quantized(x)
    quantized.eval()
    assert torch.equal(
        quantized(x).double(), whole_formula(quantized[1], plain_sums(quantized[0], x), 1)
    )
    assert quantized.state_dict().keys() == net.state_dict().keys()
    assert torch.allclose(spq.fold(quantized)(x), quantized(x), atol=1e-5)


@both_hosts
def test_calibrate_measures_scaled_sums(host):
    _, quantized, x = converted(host)
    spq.calibrate(quantized, [x, 1 - x])
    layer, norm = copy.deepcopy(quantized[0]).eval(), quantized[1]
    layer.hands_scale_on = False
    means = [
        (y if y.ndim == 4 else y.flatten(0, 1)).mean((0, 2, 3)) for y in map(layer, (x, 1 - x))
    ]
    assert torch.allclose(norm.running_mean, sum(means) / 2, atol=1e-6)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("training", [False, True])
def test_all_steps_at_once_are_the_loop(training, monkeypatch):
    _, quantized, x = converted("torch")
    quantized.train(training)
    x_seq = torch.rand(5, *x.shape).round()
    twin = copy.deepcopy(quantized)
    spq.reset(quantized), spq.reset(twin)
    expected = torch.stack([twin(step) for step in x_seq])
    calls, forward = [], QuantizedBatchNorm.forward
    monkeypatch.setattr(
        QuantizedBatchNorm, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1]
    )
    assert torch.equal(spq.snntorch.run(quantized, x_seq), expected)
    assert calls == ([3] * 10 if training else [15, 15])
    assert torch.equal(quantized[4].running_var, twin[4].running_var)


@both_hosts
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_networks_agree(host):
    _, quantized, x = converted(host)
    for training in (True, False):
        quantized.train(training)
        twin = copy.deepcopy(quantized)
        part, twin_part = quantized[:2], twin[:2]
        torch._dynamo.reset()
        compiled = torch.compile(twin_part, backend="aot_eager", fullgraph=True)
        outputs = [part(x), compiled(x)]
        assert torch.allclose(*outputs, atol=1e-5)
        for y in outputs:
            y.square().sum().backward()
        assert torch.allclose(part[0].weight.grad, twin_part[0].weight.grad, atol=1e-3)
        assert torch.allclose(part[1].running_mean, twin_part[1].running_mean)
        quantized.zero_grad()


def test_containers_hold_torchs_own():
    net = nn.Sequential(
        host_layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        neuron.LIFNode(step_mode="m"),
        host_layer.SeqToANNContainer(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3)),
    )
    uneven(net)
    x = torch.rand(4, 2, 2, 5, 5).round()
    quantized = spq.convert(net, CONFIG, x).eval()
    assert type(quantized[0][1]) is torch_twins.QuantizedBatchNorm2d
    assert type(quantized[2][2]) is torch_twins.QuantizedBatchNorm1d
    sums = plain_sums(quantized[0][0], x.flatten(0, 1))
    expected = whole_formula(quantized[0][1], sums, 1)
    assert torch.equal(quantized[0](x).flatten(0, 1).double(), expected)


class Block(nn.Module):
    """Two branches of currents that join before a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sn0 = host_layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode()
        self.conv1, self.bn1 = host_layer.Conv2d(4, 4, 3, padding=1), host_layer.BatchNorm2d(4)
        self.conv2, self.bn2 = host_layer.Conv2d(4, 4, 1), host_layer.BatchNorm2d(4)
        self.sn = neuron.IFNode()
        self.fc = host_layer.Linear(4, 2)
        functional.set_step_mode(self, "m")
        uneven(self)
        nn.init.uniform_(self.bn2.weight, 20, 30)  # another shift than the other branch

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn0(self.stem(x))
        return self.fc(self.sn(self.bn1(self.conv1(x)) + self.bn2(self.conv2(x))).mean((3, 4)))


def test_branches_that_join_stay_whole():
    x = torch.rand(4, 2, 2, 5, 5).round()
    net = spq.convert(Block(), CONFIG, x).eval()
    spikes, joined = [], []
    net.sn0.register_forward_hook(lambda m, args, y: spikes.append(y))
    net.sn.register_forward_pre_hook(lambda m, args: joined.append(args[0]))
    net(x)
    parts = []
    for norm in (net.bn1, net.bn2):
        m, n, k = norm.dyadic()
        sums = (plain_sums(norm.layer, spikes[0]) * 2**12).to(torch.int64)
        parts.append((sums * m.view(-1, 1, 1) + n.view(-1, 1, 1) * 2**12, k))
    (one, k1), (two, k2) = parts
    assert k1 != k2
    k = max(k1, k2)  # the coarser branch shifts to the finer one's grid
    total = one * 2 ** (k - k1) + two * 2 ** (k - k2)
    assert torch.equal(joined[0].double(), total.double() / 2.0 ** (k + 12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_normalises_in_single_precision(dtype):
    layer, norm, x = pair("Conv2d")
    expected = norm(layer(x.flatten(0, 1)))
    with torch.autocast("cpu", dtype=dtype):
        found = norm(layer(x.flatten(0, 1)))
    assert found.dtype == dtype
    assert norm.running_var.dtype == torch.float32
    assert torch.allclose(found.float(), expected, rtol=0.05, atol=0.05)
    assert isinstance(layer.handed_scale, float) == (dtype == torch.float16)


def test_half_precision_models_run():
    layer, norm, x = pair("Linear")
    layer.half(), norm.half()
    y = norm(layer(x.flatten(0, 1).half()))
    assert y.dtype == norm.running_mean.dtype == torch.float16
    assert bool(y.isfinite().all())


def test_gates_act_behind_a_quantised_norm():
    _, quantized, x = converted("spikingjelly", spq.presets.spquant_snn(norm=NORM))
    gate = quantized[3].channel_gate
    seen = []
    quantized[4].register_forward_hook(lambda m, args, y: seen.append(y))
    nn.init.constant_(gate.bias, -9.0)
    run(quantized, x)
    assert spq.gate_stats(quantized) == {"3.channel_gate": 1.0}
    assert not bool(seen[0].any())


def test_norms_can_follow_in_a_second_stage():
    net, x = sj_net(), torch.rand(SAMPLES["spikingjelly"]).round()
    first = spq.convert(net, spq.presets.quant_snn(weight_bits=4), x)
    second = spq.convert(first, spq.SpQuantConfig(norm=NORM), x)
    assert torch.equal(run(second.eval(), x), run(spq.convert(net, CONFIG, x).eval(), x))
    assert not first[0].hands_scale_on
    third = spq.plan(
        second, spq.presets.spquant_snn(weights=None, membrane=None, surrogate=None), x
    )
    assert third["1"].reason == "already converted"
    again = spq.plan(second, spq.SpQuantConfig(norm=NORM), x)
    assert again["1"].action == "refuse"
    assert "already converted" in again["1"].reason


def test_an_analysis_counts_a_quantised_network():
    net, quantized, x = converted("spikingjelly")
    plain = spq.convert(net, spq.presets.quant_snn(weight_bits=4), x)
    reports = [spq.analyze(model.eval(), x) for model in (quantized, plain)]
    rows = [{row.path: row for row in report.memory.layers} for report in reports]
    assert rows[0]["1"].kind == "norm"
    assert rows[0]["1"].other_bytes == rows[1]["1"].other_bytes == 4 * 4 * 4


# Norms that stay in float.


class Wired(nn.Module):
    """A network of named parts, wired by a function."""

    def __init__(self, wiring, **parts: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def conv(inputs: int = 2) -> nn.Module:
    return nn.Conv2d(inputs, 4, 3, padding=1)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Echo(nn.Module):
    """Gives back what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


REASONS = {
    "relu": (lambda n, x: n.bn(n.conv(x).relu()), {}, "not the output of one layer as it is"),
    "pool": (lambda n, x: n.bn(F.avg_pool2d(n.conv(x), 2)), {}, "not the output of one layer"),
    "dropout": (
        lambda n, x: n.bn(n.drop(n.conv(x))),
        {"drop": nn.Dropout()},
        "the output of conv is also read by drop",
    ),
    "sum": (
        lambda n, x: n.bn(n.conv(x) + n.other(x)),
        {"other": conv()},
        "not the output of one layer as it is",
    ),
    "input": (lambda n, x: n.conv(n.bn(x)), {"bn": nn.BatchNorm2d(2)}, "not the output of one"),
    "bypass": (
        lambda n, x: n.bn(y := n.conv(x)) + y,
        {},
        "the output of conv is also read by aten.add",
    ),
    "echo": (
        lambda n, x: n.bn(n.echo(n.conv(x))),
        {"echo": Echo()},
        "the output of conv is also read by echo",
    ),
    "leaves": (
        lambda n, x: [n.bn(y := n.conv(x)), y],
        {},
        "the output of conv is also read by the caller of the model",
    ),
    "two norms": (
        lambda n, x: n.bn(y := n.conv(x)) + n.other(y),
        {"other": nn.InstanceNorm2d(4)},
        "the output of conv is also read by other",
    ),
    "another layer": (
        lambda n, x: n.bn(y := n.conv(x)) + n.other(y),
        {"other": conv(4)},
        "the output of conv is also read by other",
    ),
    "chain": (
        lambda n, x: n.bn(n.first(n.conv(x))),
        {"first": nn.BatchNorm2d(4)},
        "not the output of one layer as it is",
    ),
    "shared norm": (
        lambda n, x: n.bn(n.conv(x)) + n.bn(n.other(x)),
        {"other": conv()},
        "it follows several layers: conv, other",
    ),
    "shared layer": (
        lambda n, x: n.bn(n.conv(x)) + n.other(n.conv(x)),
        {"other": nn.GroupNorm(2, 4)},
        "the output of conv is also read by other",
    ),
    "other calls": (
        lambda n, x: n.bn(n.conv(x)) + n.bn(x.repeat(1, 2, 1, 1)),
        {},
        "not the output of one layer as it is",
    ),
    "called more often": (
        lambda n, x: (n.conv(x), n.bn(n.conv(x)))[1],
        {},
        "conv is called 2 times, and it 1 times",
    ),
    "not called": (lambda n, x: n.conv(x), {}, "not called by the sample"),
    "no statistics": (
        lambda n, x: n.bn(n.conv(x)),
        {"bn": nn.BatchNorm2d(4, track_running_stats=False)},
        "keeps no running statistics",
    ),
    "own forward": (
        lambda n, x: n.bn(n.conv(x)),
        {"bn": OwnNorm(4)},
        "OwnNorm is none of BatchNorm1d, BatchNorm2d, BatchNorm3d, or computes in its own way",
    ),
    "group norm": (
        lambda n, x: n.bn(n.conv(x)),
        {"bn": nn.GroupNorm(2, 4)},
        "GroupNorm is none of BatchNorm1d",
    ),
    "tokens": (
        lambda n, x: n.bn(n.fc(x.flatten(2))),
        {"fc": nn.Linear(25, 2), "bn": nn.BatchNorm1d(2)},
        "its channels are not those of fc",
    ),
}


def reason_of(net: nn.Module, config: spq.SpQuantConfig, x: Tensor | None, path: str = "bn") -> str:
    table = spq.plan(net, config, x, on_unmatched="ignore")
    assert table[path].action == "keep"
    assert path not in [step.path for step in table.norms]
    return table[path].reason


ONLY = spq.SpQuantConfig(weights=RULES["uniform4"], norm=NORM)
IMAGES = torch.ones(2, 2, 5, 5)


@pytest.mark.parametrize("case", REASONS)
def test_a_norm_that_cannot_be_has_a_reason(case):
    wiring, parts, told = REASONS[case]
    net = Wired(wiring, **{"conv": conv(), "bn": nn.BatchNorm2d(4), **parts})
    reason = reason_of(net, ONLY, IMAGES)
    assert reason.startswith("normalisation stays in float: ")
    assert told in reason


def test_an_override_of_the_very_path_must_be_met():
    net = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))
    wish = spq.SpQuantConfig(weights=RULES["uniform4"], overrides={"2": ONLY})
    with pytest.raises(spq.errors.UnsupportedModuleError, match=r"as it is. Set norm=None for it"):
        spq.convert(net, wish, IMAGES)


def test_norms_that_are_asked_for_must_be_found():
    net = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(spq.errors.SelectionError, match=r"asks for batch norms.* 2: what it is"):
        spq.convert(net, ONLY, IMAGES)
    with pytest.raises(spq.errors.SelectionError, match=r"dry run .* pass sample"):
        spq.convert(nn.Sequential(conv(), nn.BatchNorm2d(4)), ONLY)
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    assert "pass sample=" in reason_of(net, ONLY, None, "1")


def test_a_layer_in_float_keeps_its_norm_in_float():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    for config in (
        spq.SpQuantConfig(norm=NORM),
        spq.SpQuantConfig(norm=NORM, input=spq.UniformInput()),
        spq.SpQuantConfig(norm=NORM, weights=RULES["pow2"], edge_weights=None),
        spq.SpQuantConfig(norm=NORM, weights=RULES["pow2"], overrides={"0": None}),
    ):
        assert "0 is no layer with quantised weights" in reason_of(net, config, IMAGES, "1")


def test_a_module_at_two_places_is_shared():
    bn, other = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(other, bn, nn.ReLU(), other, bn)
    assert "shared: it stands at 1, 4" in reason_of(net, ONLY, IMAGES, "1")
    net = nn.Sequential(other, bn, nn.ReLU(), other, nn.BatchNorm2d(2))
    assert "shared: 0 stands at 0, 3" in reason_of(net, ONLY, IMAGES, "1")


def test_a_norm_with_bad_values_stays_in_float():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    nn.init.constant_(net[1].weight, math.nan)
    assert "its weight holds 4 NaN or infinite values" in reason_of(net, ONLY, IMAGES, "1")
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    nn.utils.parametrize.register_parametrization(net[1], "weight", nn.Identity())
    assert "it is parametrized" in reason_of(net, ONLY, IMAGES, "1")


def test_a_gate_in_between():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    gate = sj_twins.ChannelGate(2, 4, source="input")
    net[0].add_module("channel_gate", gate)
    gate.attach(net[0], net[0], -3)
    assert "a channel gate acts between 0 and it" in reason_of(net, ONLY, IMAGES, "1")


def test_what_changes_nothing_is_no_obstacle():
    """Identities, norms that are registered first, subclasses by name, calls in a loop."""

    class Named(nn.BatchNorm2d):
        pass

    def loop(n: Wired, x: Tensor) -> Tensor:
        return torch.stack([n.bn(n.rest(n.conv(step))) for step in (x, 1 - x)])

    net = Wired(loop, bn=Named(4), conv=conv(), rest=nn.Identity())
    quantized = spq.convert(net, ONLY, IMAGES).eval()
    assert quantized.bn.layer is quantized.conv
    x = torch.rand(2, 2, 5, 5).round()
    for inputs, found in zip((x, 1 - x), quantized(x), strict=True):
        sums = plain_sums(quantized.conv, inputs)
        assert torch.equal(found.double(), whole_formula(quantized.bn, sums, 1))
    assert type(spq.fold(quantized).bn) is Named


def test_left_alone_and_excluded_norms_stay():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4), nn.BatchNorm2d(4))
    table = spq.plan(net, ONLY, IMAGES, exclude="1")
    assert [(table[path].action, table[path].reason) for path in ("1", "4")] == [
        ("keep", "excluded"),
        ("quantize", "dyadic, with the scale of 3"),
    ]
    coarse = spq.SpQuantConfig(norm=spq.QuantizedNorm(bits=3))
    config = spq.SpQuantConfig(weights=RULES["pow2"], norm=NORM, overrides={"4": coarse})
    quantized = spq.convert(net, config, IMAGES)
    assert [norm.rule.bits for norm in norms_of(quantized)] == [8, 3]
    assert spq.plan(net, config, IMAGES)["4"].bits == "3"


# Wrong use.


def test_the_record():
    assert spq.QuantizedNorm.from_dict(NORM.to_dict()) == NORM == spq.QuantizedNorm()
    assert spq.SpQuantConfig.from_dict(CONFIG.to_dict()) == CONFIG
    for bits in (1, 9, 2.5, True, "8"):
        with pytest.raises(spq.errors.ConfigError, match=r"bits.*whole number from 2 to 8"):
            spq.QuantizedNorm(bits=bits)
    with pytest.raises(spq.errors.ConfigError, match="mode = 'int': must be one of 'dyadic'"):
        spq.QuantizedNorm(mode="int")
    with pytest.raises(spq.errors.ConfigError, match="must be None or one of QuantizedNorm"):
        spq.SpQuantConfig(norm=8)


@both_hosts
def test_a_norm_must_fit_its_layer(host):
    twins, rule = TWINS[host], RULES["pow2"]

    def refused(layer: nn.Module, *arguments, **options) -> str:
        with pytest.raises(spq.errors.ConversionError) as caught:
            twins.QuantizedBatchNorm2d(*arguments, layer=layer, **options)
        return str(caught.value)

    layer = twins.QuantizedConv2d(2, 4, 3, weights=rule)
    assert "must have quantised weights" in refused(nn.Conv2d(2, 4, 3), 4)
    assert "must have quantised weights" in refused(twins.QuantizedConv2d(2, 4, 3), 4)
    assert "gives 4 channels and must give 5" in refused(layer, 5)
    assert "must keep running statistics" in refused(layer, 4, track_running_stats=False)
    assert not layer.hands_scale_on
    twins.QuantizedBatchNorm2d(4, layer=layer)
    assert "to another norm already" in refused(layer, 4)
    with pytest.raises(spq.errors.ConfigError, match=r"norm=8.*must be a QuantizedNorm"):
        twins.QuantizedBatchNorm2d(4, layer=layer, norm=8)


def test_a_norm_runs_after_its_layer_on_enough_values():
    norm = pair("Conv2d")[1]
    with pytest.raises(spq.errors.ConversionError, match=r"Norm2d\(4\) ran before QuantizedConv2d"):
        norm(torch.zeros(1, 4, 2, 2))
    layer, norm, _ = pair("Linear")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(layer(torch.zeros(1, 6)))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        norm(layer(torch.zeros(6)))
    layer, norm, _ = pair("Conv2d", "spikingjelly", step_mode="m")
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(layer(torch.zeros(2, 1, 3, 6, 5))[..., 0])
    with pytest.raises(ValueError, match=r"shape \[T, N, C, ...\] in step mode 'm'"):
        norm(torch.zeros(3, 4))


def test_values_that_are_no_numbers_give_no_whole_factors():
    _, quantized, _ = converted("torch")
    nn.init.constant_(quantized[1].bias, math.inf)
    with pytest.raises(spq.errors.ConversionError, match="no 64-bit number holds"):
        quantized[1].dyadic()
    assert "4 NaN or infinite values" in spq.status(quantized)["1"].details


def test_data_parallel_is_refused():
    _, norm, _ = pair("Conv2d")
    with pytest.raises(spq.errors.ConversionError, match="Use DistributedDataParallel"):
        norm._replicate_for_data_parallel()


def test_distributed_data_parallel(tmp_path):
    _, quantized, x = converted("torch")
    alone = copy.deepcopy(quantized)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(quantized)
        for net in (wrapped, alone):
            spq.reset(net)
            net(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(quantized.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(quantized[1].running_mean, alone[1].running_mean)
