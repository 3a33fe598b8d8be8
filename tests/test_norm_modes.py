"""Batch norms as shifts and folded into weights, in both hosts, against slow references."""

from __future__ import annotations

import copy
import functools
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
from spquant_plugin.functional.norm import dyadic_factors, folded_factors
from spquant_plugin.modules import QuantizedBatchNorm
from spquant_plugin.snntorch import layer as torch_twins
from spquant_plugin.spikingjelly import layer as sj_twins

double = torch.float64
RULES = {
    "pow4": spq.PowerOfTwoWeights(4),
    "sums6": spq.AdditivePowerOfTwoWeights(6, per_channel=False),
    "uniform4": spq.UniformWeights(4),
    "uniform8": spq.UniformWeights(8),
    "ternary": spq.TernaryWeights(),
}
TWINS = {"torch": torch_twins, "spikingjelly": sj_twins}
SHIFT, FOLD = spq.QuantizedNorm("shift"), spq.QuantizedNorm("fold")
lower = functools.partial(spq.to_integer, engine="torch")
both_hosts = pytest.mark.parametrize("host", TWINS)
both_modes = pytest.mark.parametrize("mode", ["shift", "fold"])


# Shifts: the equation.


def nearest_power(value: Fraction) -> Fraction:
    """Of 0 and all signed powers of two from 1 on the nearest; of two as near the smaller."""
    size = abs(value)
    tried = [Fraction(0), *(Fraction(2) ** j for j in range(80))]
    best = min(tried, key=lambda power: (abs(power - size), power))
    return best if value > 0 else -best


def slow_shifts(weight, bias, mean, variance, eps, bits, scale, layer_bias):
    """Channel by channel in fractions, the shift by trying all of them."""
    top = 2 ** (bits - 2)
    slopes = [w / math.sqrt(v + eps) for w, v in zip(weight, variance, strict=True)]
    voters = [c for c, v in enumerate(variance) if v > eps]

    def whole(c: int, k: int) -> Fraction:
        return nearest_power(Fraction(slopes[c] * scale[c]) * Fraction(2) ** k)

    shift = next(k for k in range(40, -99, -1) if all(abs(whole(c, k)) <= top for c in voters))
    for c, slope in enumerate(slopes):
        if abs(whole(c, shift)) > top:
            slopes[c] *= float(top / (abs(Fraction(slope * scale[c])) * Fraction(2) ** shift))
    n = [
        round(Fraction(bias[c] - slopes[c] * (mean[c] - layer_bias[c])) * Fraction(2) ** shift)
        for c in range(len(slopes))
    ]
    return [whole(c, shift) for c in range(len(slopes))], n, shift


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [1e-14, 1e-3, 1.0, 3e6])
def test_shifts_are_those_of_a_slow_search(bits, size):
    generator = torch.Generator().manual_seed(bits)

    def draw(low: float, high: float) -> list[float]:
        return torch.empty(6, dtype=double).uniform_(low, high, generator=generator).tolist()

    for _ in range(5):
        weight = [size * w for w in draw(-1, 1)]
        others = draw(-2, 2), draw(-3, 3), [*draw(0.1, 4)[:4], 0.0, 1e-6], draw(0.1, 2), draw(-1, 1)
        bias, mean, variance, scale, layer_bias = others
        found = dyadic_factors(
            *(torch.tensor(v, dtype=double) for v in (weight, bias, mean, variance)),
            1e-5,
            bits=bits,
            powers=True,
            scale=torch.tensor(scale, dtype=double),
            layer_bias=torch.tensor(layer_bias, dtype=double),
        )
        m, n, shift = slow_shifts(weight, bias, mean, variance, 1e-5, bits, scale, layer_bias)
        assert found.multiplier.tolist() == m
        assert found.offset.tolist() == n
        assert found.step.item() == 2.0**-shift


def test_a_tie_goes_to_the_smaller_power():
    eps = 2.0**-20
    weight = torch.tensor([64.0, 48.0, -48.1, 24.0, 1.5, 1.0, 0.5, -0.51, -0.3, 0.0], dtype=double)
    zero = torch.zeros_like(weight)
    found = dyadic_factors(weight, zero, zero, zero + 1 - eps, eps, bits=8, powers=True)
    assert found.step == 1
    assert found.multiplier.tolist() == [64, 32, -64, 16, 1, 1, 0, -1, 0, 0]
    for top, largest, step in ((96.0, 64.0, 1.0), (96.1, 64.0, 2.0)):  # 96.1 is nearer to 128
        weight[0] = top
        found = dyadic_factors(weight, zero, zero, zero + 1 - eps, eps, bits=8, powers=True)
        assert (found.multiplier[0], found.step) == (largest, step)


# Folding: the equation.


def slow_folded(weight, bias, mean, variance, eps, layer_bias):
    slopes = [w / math.sqrt(v + eps) for w, v in zip(weight, variance, strict=True)]
    alive = [abs(s) for s, v in zip(slopes, variance, strict=True) if v > eps]
    limit = max(alive, default=math.inf)
    slopes = [math.copysign(min(abs(s), limit), s) for s in slopes]
    return slopes, [
        b - s * (m - c) for b, s, m, c in zip(bias, slopes, mean, layer_bias, strict=True)
    ]


def test_folded_factors_are_the_norms():
    def draw(low: float, high: float) -> list[float]:
        return torch.empty(5, dtype=double).uniform_(low, high).tolist()

    for variance in (draw(0.1, 4), [*draw(0.1, 4)[:3], 0.0, 1e-6], [0.0] * 5):
        weight, bias, mean, layer_bias = draw(-1, 1), draw(-2, 2), draw(-3, 3), draw(-1, 1)
        given = (torch.tensor(v, dtype=double) for v in (weight, bias, mean, variance))
        found = folded_factors(*given, 1e-5, layer_bias=torch.tensor(layer_bias, dtype=double))
        expected = slow_folded(weight, bias, mean, variance, 1e-5, layer_bias)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours, torch.tensor(theirs, dtype=double), rtol=1e-14, atol=1e-14)


# One norm behind one layer.

LAYERS = {
    "Conv1d": ((3, 4, 3), (3, 6), 1),
    "Conv2d": ((3, 4, 3), (3, 6, 5), 2),
    "Conv3d": ((2, 4, 2), (2, 3, 4, 4), 3),
    "ConvTranspose2d": ((3, 4, 2), (3, 3, 3), 2),
    "Linear": ((6, 4), (6,), 1),
}


def pair(
    kind: str = "Conv2d",
    host: str = "torch",
    rule: str = "uniform4",
    norm: spq.QuantizedNorm = FOLD,
    **options: object,
):
    """A quantised layer, its norm with uneven parameters and statistics, and spikes for them."""
    arguments, shape, dims = LAYERS[kind]
    layer = getattr(TWINS[host], f"Quantized{kind}")(*arguments, weights=RULES[rule], **options)
    named = {"step_mode": options["step_mode"]} if "step_mode" in options else {}
    own = getattr(TWINS[host], f"QuantizedBatchNorm{dims}d")(4, layer=layer, norm=norm, **named)
    uneven(own)
    layer.refit()
    return layer, own, torch.rand(5, 2, *shape).round()


def plain(kind: str, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """What a layer of torch makes of a batch."""
    layer = getattr(nn, kind)(*LAYERS[kind][0]).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
        return layer(x)


def slow_fold(kind: str, layer: nn.Module, norm: nn.Module, x: Tensor, quantize) -> Tensor:
    """The equations: statistics, folding, the quantiser's levels, one convolution."""
    if norm.training:
        y = plain(kind, layer.weight, layer.bias, x)
        axes = [a for a in range(y.ndim) if a != 1]
        mean, variance = y.mean(axes), y.var(axes, correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    dtype, bias = layer.weight.dtype, layer.bias
    slope = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    offset = norm.bias.double() - slope * (mean.double() - (0 if bias is None else bias.double()))
    first = (lambda w: w.transpose(0, 1)) if "Transpose" in kind else lambda w: w
    rows = first(layer.weight)
    rows = rows * slope.to(dtype).view(-1, *[1] * (rows.ndim - 1))
    levels, scale = quantize(rows)
    y = plain(kind, first(levels), None, x)
    view = (-1, *[1] * (y.ndim - 2))
    y = y if scale is None else y * scale.view(view)
    return y + offset.to(dtype).view(view)


@both_hosts
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["Conv2d", "Conv3d", "ConvTranspose2d", "Linear"])
def test_a_folded_layer_is_the_equation_in_eval(host, rule, kind):
    layer, norm, x = pair(kind, host, rule)
    layer.eval(), norm.eval()
    x = x.flatten(0, 1)
    with torch.no_grad():
        expected = slow_fold(kind, layer, norm, x, layer.weight_quantizer)
        assert torch.equal(norm(layer(x)), expected)
        assert bool((expected != 0).any())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["Conv1d", "ConvTranspose2d", "Linear"])
def test_a_folded_layer_is_the_equation_in_training(rule, kind, float64):
    layer, norm, x = pair(kind, rule=rule)
    x = x.flatten(0, 1)
    twin = copy.deepcopy((layer, norm))  # a quantiser's alpha moves in training
    with torch.no_grad():
        expected = slow_fold(kind, *twin, x, twin[0].weight_quantizer)
        assert torch.allclose(norm(layer(x)), expected, rtol=1e-10, atol=1e-10)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, twin[0].get_buffer(name)), name


@pytest.mark.parametrize("training", [True, False])
def test_with_fine_weights_it_is_the_float_norm(training):
    layer, norm, x = pair(rule="uniform8")
    layer.train(training), norm.train(training)
    float_norm = nn.BatchNorm2d(4).train(training)
    float_norm.load_state_dict(norm.state_dict())
    x = x.flatten(0, 1)
    expected = float_norm(plain("Conv2d", layer.weight, layer.bias, x))
    found = norm(layer(x))
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


class Exact(nn.Module):
    """A quantiser that leaves weights as they are."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        return rows, None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("input", [None, spq.UniformInput(4, low=0.0, high=7.5)])
def test_gradients_are_the_float_norms(float64, training, input):
    """Without roundings the folded layer is batch norm, so all gradients must be its own."""
    layer, norm, x = pair(input=input)
    layer.weight_quantizer = Exact()
    norm.train(training)
    float_norm = nn.BatchNorm2d(4).train(training)
    float_norm.load_state_dict(norm.state_dict())
    x = (x.flatten(0, 1) * 2.5).requires_grad_()
    leaves = [x, layer.weight, layer.bias, norm.weight, norm.bias]
    theirs = [x, *(p.detach().clone().requires_grad_() for p in leaves[1:3])]
    theirs += [float_norm.weight, float_norm.bias]
    found, expected = norm(layer(x)), float_norm(F.conv2d(*theirs[:3]))
    assert torch.allclose(found, expected, atol=1e-10)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    others = torch.autograd.grad((expected * weights).sum(), theirs)
    for name, a, b in zip(("x", "W", "b", "gamma", "beta"), ours, others, strict=True):
        assert torch.allclose(a, b, atol=1e-9), name
        assert (training and name == "b") or bool((a.abs() > 1e-6).any()), name


def test_shifts_learn_as_the_float_norm(float64):
    """Rounding lets the gradient through, so theirs is the very one of the norm without it."""
    layer, norm, x = pair(norm=spq.QuantizedNorm("shift", bits=3))
    float_norm = nn.BatchNorm2d(4)
    float_norm.load_state_dict(norm.state_dict())
    sums = layer(x.flatten(0, 1)).detach()
    y = sums * layer.handed_scale.view(-1, 1, 1) + layer.bias.detach().view(-1, 1, 1)
    weights = torch.randn_like(y)
    (norm(sums) * weights).sum().backward()
    (float_norm(y) * weights).sum().backward()
    assert torch.allclose(norm.weight.grad, float_norm.weight.grad, atol=1e-10)
    assert torch.allclose(norm.bias.grad, float_norm.bias.grad, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_the_float_layer(momentum, float64):
    layer, norm, _ = pair()
    float_norm = nn.BatchNorm2d(4, momentum=momentum)
    float_norm.load_state_dict(norm.state_dict())
    norm.momentum = momentum
    for _ in range(3):
        x = torch.rand(3, 3, 6, 5).round()
        norm(layer(x)), float_norm(plain("Conv2d", layer.weight, layer.bias, x))
    for name, kept in float_norm.named_buffers():
        assert torch.allclose(norm.get_buffer(name), kept, rtol=1e-12), name
    assert norm.num_batches_tracked == 3


def test_a_frozen_norm_keeps_its_statistics_and_learns():
    layer, norm, x = pair()
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    norm(layer(x.flatten(0, 1))).square().sum().backward()
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    for parameter in (layer.weight, layer.bias, norm.weight, norm.bias):
        assert bool((parameter.grad != 0).any())


def test_alpha_follows_the_folded_weight():
    """A factor that grows by 16 takes four steps of training, or one refit."""
    layer, norm, x = pair(rule="pow4", bias=False)
    before, x = layer.weight_quantizer.alpha.clone(), x.flatten(0, 1)
    norm.eval()
    with torch.no_grad():
        norm.weight.mul_(16)
    layer.eval()
    layer(x)
    assert torch.equal(layer.weight_quantizer.alpha, before)
    layer.train()
    twin = copy.deepcopy(layer)
    for _ in range(2):  # the second call sees the same weight
        layer(x)
    assert torch.equal(layer.weight_quantizer.alpha, before * 2)
    twin.refit()
    assert torch.equal(twin.weight_quantizer.alpha, before * 16)


def test_what_a_folded_layer_tells_is_that_of_eval():
    layer, norm, _ = pair(rule="pow4")
    with torch.no_grad():
        norm.running_var.mul_(64)
    state = copy.deepcopy(layer.state_dict())
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = norm.bias - slope * (norm.running_mean - layer.bias)
    assert torch.allclose(layer.present_bias(), expected)
    assert layer.present_scale() == 1.0
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
    layer, norm, _ = pair(rule="uniform8")
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(
        layer.effective_weight(), layer.weight * slope.view(-1, 1, 1, 1), atol=0.01
    )
    assert torch.equal(layer.present_scale(), layer.quantized_weight()[1])
    plain_layer = torch_twins.QuantizedConv2d(1, 1, 1, weights=RULES["ternary"])
    assert torch.equal(plain_layer.present_bias(), plain_layer.bias)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Linear"])
def test_a_sequence_is_its_steps_in_eval_and_one_batch_in_training(kind):
    layer, norm, x = pair(kind, "spikingjelly", step_mode="m")
    flat_layer, flat_norm = copy.deepcopy((layer, norm))
    for module in (flat_layer, flat_norm):
        module.step_mode = "s"
    assert flat_norm.layer is flat_layer
    trained = norm(layer(x))
    assert torch.equal(trained.flatten(0, 1), flat_norm(flat_layer(x.flatten(0, 1))))
    assert torch.equal(norm.running_var, flat_norm.running_var)
    for module in (layer, norm, flat_layer, flat_norm):
        module.eval()
    steps = torch.stack([flat_norm(flat_layer(step)) for step in x])
    assert torch.allclose(norm(layer(x)), steps, atol=1e-6)
    assert torch.equal(flat_layer.quantized_weight()[0], layer.quantized_weight()[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_measures_in_single_precision(dtype):
    layer, norm, x = pair(rule="uniform8", input=spq.UniformInput(8, high=200.0))
    twin, x = copy.deepcopy((layer, norm)), x.flatten(0, 1) * 200
    expected = norm(layer(x))
    with torch.autocast("cpu", dtype=dtype):
        found = twin[1](twin[0](x))
    assert found.dtype == dtype
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    for name, kept in norm.named_buffers():
        assert twin[1].get_buffer(name).dtype == kept.dtype
        assert torch.allclose(twin[1].get_buffer(name), kept, rtol=0.02, atol=0.02), name


def test_half_precision_models_run():
    layer, norm, x = pair("Linear")
    layer.half(), norm.half()
    y = norm(layer(x.flatten(0, 1).half()))
    assert y.dtype == norm.running_mean.dtype == layer.present_bias().dtype == torch.float16
    assert bool(y.isfinite().all())


# Networks.


def sj_net() -> nn.Sequential:
    net = nn.Sequential(
        host_layer.Conv2d(2, 4, 3, padding=1, bias=False),
        host_layer.BatchNorm2d(4),
        neuron.LIFNode(),
        host_layer.SeqToANNContainer(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
        neuron.LIFNode(),
        host_layer.Flatten(),
        host_layer.Linear(6 * 25, 3),
    )
    functional.set_step_mode(net, "m")
    return net


def snn_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(6 * 25, 3),
        snn.Leaky(beta=0.5, init_hidden=True),
    )


SAMPLES = {"spikingjelly": (4, 3, 2, 5, 5), "torch": (3, 2, 5, 5)}
NETS = {"spikingjelly": sj_net, "torch": snn_net}


def config_of(mode: str, **fields: object) -> spq.SpQuantConfig:
    return spq.presets.quant_snn(weight_bits=4, norm=spq.QuantizedNorm(mode), **fields)


def converted(host: str, mode: str, **fields: object) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(1)
    net, x = NETS[host](), torch.rand(SAMPLES[host]).round()
    uneven(net)
    return net, spq.convert(net, config_of(mode, **fields), x), x


def pairs_of(net: nn.Module) -> list[tuple[nn.Module, QuantizedBatchNorm]]:
    return [(m.layer, m) for m in net.modules() if isinstance(m, QuantizedBatchNorm)]


@both_hosts
def test_conversion_ties_norms_to_their_layers(host):
    net, quantized, x = converted(host, "fold")
    for layer, norm in ((quantized[0], quantized[1]), (quantized[3][0], quantized[3][1])):
        assert norm.layer is layer
        assert layer.folded_norm == (norm,)
        assert not layer.hands_scale_on
        assert repr(norm).endswith(", fold)")
    assert quantized[6].folded_norm == ()
    keys = set(quantized.state_dict()) - set(net.state_dict())
    assert all("weight_quantizer" in key or "membrane_unit" in key for key in keys)
    names = [name for name, _ in net.named_parameters()]
    assert [name for name, _ in quantized.named_parameters()] == names
    row = spq.plan(net, config_of("fold"), x)["3.1"]
    assert (row.action, row.bits, row.reason) == ("quantize", "", "folded into 3.0")
    row = spq.plan(net, config_of("shift"), x)["1"]
    assert (row.action, row.bits, row.reason) == ("quantize", "8", "shift, with the scale of 0")
    row = spq.status(quantized)["3.1"]
    assert (row.bits, row.details) == ("", "folded into 3.0")
    assert spq.status(quantized[1])[""].details == "folded into QuantizedConv2d"
    shifts = spq.status(converted(host, "shift")[1])["1"]
    assert shifts.bits == "8"
    assert shifts.details.startswith("shift, behind 0, multipliers ")


@both_hosts
@both_modes
def test_it_trains(host, mode):
    _, quantized, x = converted(host, mode)
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
    assert quantized[1].num_batches_tracked == 15


@both_hosts
def test_copies_fold_their_own_norms(host):
    _, quantized, x = converted(host, "fold")
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
        for layer, norm in ((twin[0], twin[1]), (twin[3][0], twin[3][1])):
            assert norm.layer is layer
            assert layer.folded_norm == (norm,)
        assert torch.equal(run(twin, x), expected)
        nn.init.zeros_(twin[1].weight)
        assert not bool(twin[0].effective_weight().any())
        assert bool((quantized[1].weight != 0).any())


@both_hosts
@both_modes
def test_state_dicts_and_float_checkpoints_load(host, mode):
    net, quantized, x = converted(host, mode)
    run(quantized.train(), x)
    twin = spq.convert(net, config_of(mode), x)
    twin.load_state_dict(quantized.state_dict())
    assert torch.equal(run(twin.eval(), x), run(quantized.eval(), x))
    uneven(net)
    assert spq.load_float_state_dict(quantized, net.state_dict()).fits
    fresh = spq.convert(net, config_of(mode), x).eval()
    assert torch.equal(run(fresh, x), run(quantized, x))


@both_hosts
@both_modes
def test_a_plain_network_computes_the_same(host, mode):
    _, quantized, x = converted(host, mode)
    run(quantized.train(), x)
    quantized.eval()
    plain_net = spq.fold(quantized)
    assert not pairs_of(plain_net)
    for name in ("handed_scale", "hands_scale_on", "folded_norm", "rule"):
        assert not any(hasattr(module, name) for module in plain_net.modules())
    inner = torch.rand(*x.shape[:-3], 4, 5, 5).round()
    for get in (lambda net: net[1](net[0](x)), lambda net: net[3](inner)):
        assert torch.allclose(get(quantized), get(plain_net), atol=1e-5)
    if mode == "fold":
        assert type(plain_net[1]) is nn.Identity
        assert torch.equal(plain_net[3][0].bias, quantized[3][0].present_bias())
        assert quantized[0].folded_norm == (quantized[1],)  # the original stays as it is
        assert quantized[0].bias is None


@both_hosts
def test_calibrate_measures_the_float_layer_and_fits_the_quantiser(host):
    _, quantized, x = converted(host, "fold", weights=spq.PowerOfTwoWeights(4))
    layer, norm = quantized[3][0], quantized[3][1]
    with torch.no_grad():
        norm.running_var.mul_(1e4)
    layer.refit()
    heard = []
    quantized[3].register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    spq.calibrate(quantized, [x, 1 - x])
    means = [
        plain_sums.mean((0, 2, 3))
        for plain_sums in (
            F.conv2d(s.flatten(0, -4), layer.weight, layer.bias, padding=1) for s in heard
        )
    ]
    assert torch.allclose(norm.running_mean, sum(means) / 2, atol=1e-6)
    assert norm.num_batches_tracked == 2
    fitted = layer.weight_quantizer.alpha.clone()
    layer.refit()
    assert torch.equal(layer.weight_quantizer.alpha, fitted)


def test_calibrate_leaves_alone_what_a_quantiser_learned():
    class Learned(Exact):
        def __init__(self) -> None:
            super().__init__()
            self.size = nn.Parameter(torch.ones(()))

        def initialize(self, rows: Tensor) -> None:
            raise AssertionError("forgets what it learned")

    layer, norm, x = pair()
    layer.weight_quantizer = Learned()
    spq.calibrate(nn.Sequential(layer, norm), [x.flatten(0, 1)])
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("training", [False, True])
def test_all_steps_at_once_are_the_loop(training):
    _, quantized, x = converted("torch", "fold")
    quantized.train(training)
    x_seq = torch.rand(5, *x.shape).round()
    twin = copy.deepcopy(quantized)
    spq.reset(quantized), spq.reset(twin)
    expected = torch.stack([twin(step) for step in x_seq])
    assert torch.equal(spq.snntorch.run(quantized, x_seq), expected)
    for (_, norm), (_, other) in zip(pairs_of(quantized), pairs_of(twin), strict=True):
        assert torch.equal(norm.running_var, other.running_var)
        assert int(norm.num_batches_tracked) == 5 * training


@both_modes
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_networks_agree(mode):
    _, quantized, x = converted("spikingjelly", mode)
    for training in (True, False):
        quantized.train(training)
        part = quantized[:2]
        twin = copy.deepcopy(part)
        torch._dynamo.reset()
        outputs = [part(x), torch.compile(twin, backend="aot_eager", fullgraph=True)(x)]
        assert torch.allclose(*outputs, atol=1e-5)
        for y in outputs:
            y.square().sum().backward()
        assert torch.allclose(part[0].weight.grad, twin[0].weight.grad, rtol=1e-4, atol=1e-3)
        assert torch.allclose(part[1].running_mean, twin[1].running_mean)
        quantized.zero_grad()


def test_gates_act_behind_a_folded_norm_also_in_a_second_stage():
    net, x = sj_net(), torch.rand(SAMPLES["spikingjelly"]).round()
    gates = spq.SpQuantConfig(channel_gate=spq.ChannelGate())
    first = spq.convert(net, config_of("fold"), x)
    for quantized in (
        spq.convert(net, spq.presets.spquant_snn(weight_bits=4, norm=FOLD), x),
        spq.convert(first, gates, x),
    ):
        nn.init.constant_(quantized[3][0].channel_gate.bias, -9.0)
        seen = []
        quantized[3].register_forward_hook(lambda m, args, y, seen=seen: seen.append(y))
        run(quantized, x)
        run(spq.fold(quantized), x)
        assert len(seen) == 2
        assert not any(bool(y.any()) for y in seen)


def test_norms_can_follow_in_a_second_stage():
    net, x = sj_net(), torch.rand(SAMPLES["spikingjelly"]).round()
    uneven(net)
    first = spq.convert(net, spq.presets.quant_snn(weight_bits=4), x)
    second = spq.convert(first, spq.SpQuantConfig(norm=FOLD), x)
    expected = spq.convert(net, config_of("fold"), x).eval()
    assert torch.equal(run(second.eval(), x), run(expected, x))
    assert first[0].folded_norm == ()
    assert spq.plan(second, spq.SpQuantConfig(norm=SHIFT), x)["1"].action == "refuse"


# Whole numbers.


def lively(net: nn.Module, x: Tensor) -> None:
    """Statistics of the data, and norms that let a good part of the neurons fire."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, 0.0, 1.0)
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.bias, 0.5, 1.0)
    spq.calibrate(net, [x])


@both_hosts
@both_modes
def test_integer_networks_are_exact(host, mode):
    torch.manual_seed(2)
    net = NETS[host]()
    x = torch.rand((6, 5, 2, 5, 5) if host == "spikingjelly" else (5, 2, 5, 5)).round()
    lively(net, x)
    for weights in (spq.PowerOfTwoWeights(4), spq.UniformWeights(4)):
        quantized = spq.convert(net, config_of(mode, weights=weights), x)
        run(quantized, x)
        quantized.eval()
        x_seq = x if host == "spikingjelly" else torch.rand(6, *x.shape).round()
        integers = lower(quantized, x[:, :3] if host == "spikingjelly" else x[:3])
        assert spq.verify(integers, quantized, x_seq).exact
        assert 0.0 < integers(x_seq).double().mean() < 0.9
    if mode == "shift":
        for _, norm in pairs_of(quantized):
            m = norm.dyadic().multiplier.abs()
            assert bool(((m & (m - 1)) == 0).all())


class Block(nn.Module):
    """Two branches of currents that join before a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sn0 = host_layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode()
        self.conv1, self.bn1 = host_layer.Conv2d(4, 4, 3, padding=1), host_layer.BatchNorm2d(4)
        self.conv2, self.bn2 = host_layer.Conv2d(4, 4, 1), host_layer.BatchNorm2d(4)
        self.sn = neuron.IFNode()
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn0(self.stem(x))
        return self.sn(self.bn1(self.conv1(x)) + self.bn2(self.conv2(x)))


def test_branches_of_shifts_join_exactly():
    x = torch.rand(4, 3, 2, 6, 6).round()
    net = Block()
    lively(net, x)
    nn.init.uniform_(net.bn2.weight, 4, 6)  # another shift than the other branch
    model = spq.convert(net, config_of("shift"), x).eval()
    shifts = [norm.dyadic().shift for norm in (model.bn1, model.bn2)]
    assert shifts[0] != shifts[1]
    integers = lower(model, x)
    assert spq.verify(integers, model, x).exact
    assert 0.0 < integers(x).mean() < 0.9
    model = spq.convert(net, config_of("fold"), x).eval()
    with pytest.raises(spq.errors.DeployError, match=r'QuantizedNorm\(mode="dyadic"\)'):
        lower(model, x)


@both_modes
@pytest.mark.parametrize("input", [None, spq.UniformInput(4, low=0.0, high=7.5)])
def test_nir_holds_the_same_network(tmp_path, mode, input):
    nir = pytest.importorskip("nir")
    _, quantized, x = converted("spikingjelly", mode, input=input)
    quantized.eval()
    with pytest.warns(spq.errors.ExportWarning):
        spq.export_nir(quantized, tmp_path / "net.nir", x)
    node = nir.read(tmp_path / "net.nir").nodes["0"]
    x = (x * 7).flatten(0, 1)  # on the grid of the quantised input
    found = F.conv2d(x, torch.tensor(node.weight), torch.tensor(node.bias), padding=1)
    with torch.no_grad():
        expected = quantized[1](quantized[0](x.unflatten(0, SAMPLES["spikingjelly"][:2])))
    assert torch.allclose(found, expected.flatten(0, 1), atol=1e-4)


# Norms that stay in float, and wrong use.


@both_modes
def test_weights_that_change_in_time_keep_their_norm_in_float(mode):
    _, _, x = converted("spikingjelly", mode)
    temporal = spq.SpQuantConfig(weights=spq.TemporalTernaryWeights(timesteps=len(x)))
    rows = spq.plan(sj_net(), config_of(mode, overrides={"3.0": temporal}), x)
    assert [rows[path].action for path in ("3.0", "1", "3.1")] == ["quantize", "quantize", "keep"]
    told = "the weights of 3.0 change with the time step, so that no one factor fits"
    assert told in rows["3.1"].reason


def test_the_record():
    assert spq.QuantizedNorm("shift") == spq.QuantizedNorm("shift", bits=8)
    for norm in (SHIFT, FOLD):
        assert spq.QuantizedNorm.from_dict(norm.to_dict()) == norm
        config = spq.SpQuantConfig(norm=norm)
        assert spq.SpQuantConfig.from_dict(config.to_dict()) == config
    with pytest.raises(spq.errors.ConfigError, match=r"bits = 8: must be None in mode 'fold'"):
        spq.QuantizedNorm("fold", bits=8)
    with pytest.raises(spq.errors.ConfigError, match="mode = 'half': must be one of 'dyadic', 's"):
        spq.QuantizedNorm("half")
    with pytest.raises(spq.errors.ConfigError, match=r"bits.*whole number from 2 to 8"):
        spq.QuantizedNorm("shift", bits=1)


def test_a_layer_takes_one_norm():
    layer, norm, _ = pair()
    for mode in (FOLD, SHIFT):
        with pytest.raises(spq.errors.ConversionError, match="to another norm already"):
            torch_twins.QuantizedBatchNorm2d(4, layer=layer, norm=mode)
    with pytest.raises(spq.errors.ConversionError, match=r"Norm2d\(4\): in mode 'fold'.*present_b"):
        norm.dyadic()


def test_weights_of_time_steps_take_no_norm():
    layer = torch_twins.QuantizedConv2d(2, 4, 3, weights=RULES["ternary"])
    layer.weight_quantizer.rule = spq.TemporalTernaryWeights(timesteps=2)
    with pytest.raises(spq.errors.ConversionError, match="must not change with the time step"):
        torch_twins.QuantizedBatchNorm2d(4, layer=layer, norm=FOLD)


def test_shapes_that_a_norm_does_not_take():
    layer, norm, _ = pair("Linear")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 6))
    layer.eval(), norm.eval()
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        norm(layer(torch.zeros(6)))


def test_values_that_are_no_numbers_are_told():
    _, quantized, _ = converted("torch", "fold")
    nn.init.constant_(quantized[1].bias, math.inf)
    assert "4 NaN or infinite values" in spq.status(quantized)["1"].details


def test_distributed_data_parallel(tmp_path):
    _, quantized, x = converted("torch", "fold")
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
