"""Quantised layers of both hosts against plain layers that hold weights quantised by search."""

from __future__ import annotations

import copy
import math
import pickle
import statistics

import pytest
import snntorch as snn
import spikingjelly.activation_based.layer as host_layer
import torch
from torch import nn

import spquant_plugin as spq
from spquant_plugin.snntorch import layer as snn_layer
from spquant_plugin.spikingjelly import layer as sj_layer

double = torch.float64
EPS = {t: torch.finfo(t).eps for t in (torch.float16, torch.bfloat16, torch.float32, double)}

# kind, arguments, options, shape of one sample
CASES = {
    "Conv1d": ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1}, (4, 9)),
    "Conv1d-circular": ("Conv1d", (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 7)),
    "Conv2d": ("Conv2d", (3, 5, 3), {"padding": 1}, (3, 6, 7)),
    "Conv2d-groups": ("Conv2d", (4, 6, (3, 2)), {"groups": 2, "dilation": 2}, (4, 7, 6)),
    "Conv2d-depthwise": ("Conv2d", (4, 4, 3), {"groups": 4, "bias": False}, (4, 5, 5)),
    "Conv3d": ("Conv3d", (2, 4, 2), {"groups": 2, "stride": (1, 2, 1)}, (2, 3, 4, 4)),
    "ConvTranspose1d": ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "groups": 2}, (4, 5)),
    "ConvTranspose2d": (
        "ConvTranspose2d",
        (4, 6, 3),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        (4, 4, 5),
    ),
    "ConvTranspose2d-wide": ("ConvTranspose2d", (3, 2, (2, 3)), {"dilation": 2}, (3, 4, 4)),
    "ConvTranspose3d": (
        "ConvTranspose3d",
        (2, 4, 2),
        {"stride": 2, "output_padding": (1, 0, 1), "bias": False},
        (2, 2, 3, 2),
    ),
    "Linear": ("Linear", (7, 5), {}, (7,)),
    "Linear-flat": ("Linear", (4, 3), {"bias": False}, (4,)),
}
RULES = {
    "pow2": spq.PowerOfTwoWeights(2),
    "pow4": spq.PowerOfTwoWeights(4),
    "pow3-layer": spq.PowerOfTwoWeights(3, per_channel=False),
    "sums5": spq.AdditivePowerOfTwoWeights(5),
    "sums8": spq.AdditivePowerOfTwoWeights(8),
    "uniform2": spq.UniformWeights(2),
    "uniform4": spq.UniformWeights(4),
    "sawb": spq.UniformWeights(4, scale="sawb"),
    "uniform8": spq.UniformWeights(8),
    "ternary": spq.TernaryWeights(),
}
HOSTS = {"torch": snn_layer, "spikingjelly": sj_layer}
all_cases = pytest.mark.parametrize("case", CASES)
all_rules = pytest.mark.parametrize("rule", RULES)
both_hosts = pytest.mark.parametrize("host", HOSTS)


def build(case: str, rule: spq.config._Weights | None, host: str = "torch", **more) -> nn.Module:
    kind, arguments, options, _ = CASES[case]
    made = getattr(HOSTS[host], f"Quantized{kind}")(*arguments, weights=rule, **options, **more)
    return made.double()


def plain(case: str, layer: nn.Module) -> nn.Module:
    """Torch's own layer with the same float parameters."""
    kind, arguments, options, _ = CASES[case]
    twin = getattr(nn, kind)(*arguments, **options).double()
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def spikes(case: str, *lead: int, dtype: torch.dtype = double) -> torch.Tensor:
    return torch.randint(0, 3, (*lead, *CASES[case][3])).to(dtype)


# --- the reference: rows one by one, every level and every scale tried ----------------------------


def channels_of(case: str, weight: torch.Tensor) -> list[tuple]:
    """Index of everything that belongs to one output channel."""
    kind, arguments, options, _ = CASES[case]
    if "Transpose" not in kind:
        return [(c,) for c in range(weight.shape[0])]
    groups = options.get("groups", 1)
    span = arguments[0] // groups
    return [
        (slice(g * span, (g + 1) * span), j) for g in range(groups) for j in range(weight.shape[1])
    ]


def magnitudes(rule: spq.config._Weights) -> torch.Tensor:
    if isinstance(rule, spq.PowerOfTwoWeights):
        exponents = range(2 ** (rule.bits - 1) - 1)
        return torch.tensor([0.0, *(2.0**-k for k in reversed(exponents))], dtype=double)
    n, odd = math.ceil((rule.bits - 1) / 2), (rule.bits - 1) % 2
    sums = {0.0}
    for i in range(n):
        term = [0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n)]
        if odd and i == n - 1:
            term = [0.0, 2.0 ** -(n - 1)]
        sums = {a + b for a in sums for b in term}
    return torch.tensor(sorted(sums), dtype=double)


def snap(row: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Nearest magnitude with the row's sign; ``argmin`` takes the first, the smaller, of a tie."""
    return grid[(row.abs()[..., None] - grid).abs().argmin(-1)] * row.sign()


def quantize_row(row: torch.Tensor, rule: spq.config._Weights) -> tuple[torch.Tensor, float]:
    """Levels and scale of one channel."""
    largest = row.abs().max().item()
    if largest == 0:
        return row, 1.0
    if isinstance(rule, spq.TernaryWeights):
        kept = row.abs() > 0.05 * largest
        return row.sign() * kept, statistics.fmean(row.abs()[kept].tolist())
    if isinstance(rule, spq.UniformWeights):
        top = 2 ** (rule.bits - 1) - 1
        grid = torch.arange(top + 1, dtype=double)
        reaches = [largest] if rule.bits >= 6 else [largest * i / 16 for i in range(1, 17)]
        if rule.scale == "sawb":
            mean, std = row.abs().mean().item(), row.std().item()
            reaches = [min(max((std - 1.013 * mean) / 0.077, mean), largest)]
        scales = [reach / top for reach in reaches]
    else:
        grid = magnitudes(rule)
        exponent = math.frexp(largest)[1]
        scales = [2.0**e for e in range(exponent - 12, exponent + 8)]
    best = min(scales, key=lambda a: (row - a * snap(row / a, grid)).square().sum().item())
    return snap(row / best, grid), best


def reference(case: str, weight: torch.Tensor, rule: spq.config._Weights):
    """Levels, their scale per element, both in the weight's layout."""
    weight = weight.detach().double()
    levels, scale = torch.empty_like(weight), torch.empty_like(weight)
    if not getattr(rule, "per_channel", True):
        whole, alpha = quantize_row(weight.flatten(), rule)
        return whole.reshape(weight.shape), torch.full_like(weight, alpha)
    for at in channels_of(case, weight):
        row, alpha = quantize_row(weight[at].flatten(), rule)
        levels[at], scale[at] = row.reshape(weight[at].shape), alpha
    return levels, scale


# --- what a layer computes ------------------------------------------------------------------------


@both_hosts
@all_rules
@all_cases
def test_output_is_that_of_the_quantised_weight(case, rule, host):
    layer = build(case, RULES[rule], host)
    levels, scale = reference(case, layer.weight, RULES[rule])
    torch.testing.assert_close(layer.effective_weight(), levels * scale, rtol=1e-6, atol=1e-12)
    twin = plain(case, layer)
    with torch.no_grad():
        twin.weight.copy_(layer.effective_weight())
    for x in (spikes(case, 2), spikes(case)):  # a batch, and a sample on its own
        torch.testing.assert_close(layer(x), twin(x), rtol=1e-10, atol=1e-10)


@all_rules
@pytest.mark.parametrize("case", ["Conv2d-groups", "ConvTranspose2d", "Linear"])
def test_the_levels_are_convolved_and_scaled_afterwards(case, rule):
    """The output is one function of an exact sum, whatever the batch and the memory layout."""
    layer = build(case, RULES[rule]).float()
    levels, scale = layer.quantized_weight()
    want, _ = reference(case, layer.weight, RULES[rule])
    if scale is None:  # a power of two may stay inside the weight
        levels, _ = reference(case, levels, RULES[rule])
    else:
        assert torch.equal(levels.double(), want)
    x = spikes(case, 3, dtype=torch.float32)
    whole = layer(x)
    assert torch.equal(torch.cat([layer(sample[None]) for sample in x]), whole)
    if x.ndim == 4:
        assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), whole)
    if scale is not None:
        twin = plain(case, layer)
        with torch.no_grad():
            twin.weight.copy_(levels)
            twin.bias.zero_()
        sums = twin(x.double()).float()
        assert torch.equal(sums, sums.round())
        trailing = (1,) * (x.ndim - 2)
        expected = sums * scale.view(-1, *trailing) + layer.bias.view(-1, *trailing)
        assert torch.equal(whole, expected)


@both_hosts
@all_cases
def test_without_a_rule_it_is_the_plain_layer(case, host):
    layer = build(case, None, host)
    x = spikes(case, 2)
    torch.testing.assert_close(layer(x), plain(case, layer)(x), rtol=1e-12, atol=1e-12)
    assert set(layer.state_dict()) == set(plain(case, layer).state_dict())


@all_cases
@pytest.mark.parametrize("rule", ["pow2", "sums5", "uniform4"])
def test_both_step_modes_and_the_container_agree(case, rule):
    x = spikes(case, 3, 2)
    layer = build(case, RULES[rule], "spikingjelly").eval()
    want = torch.stack([layer(step) for step in x])
    if hasattr(layer, "step_mode"):
        layer.step_mode = "m"
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    if hasattr(layer, "step_mode"):
        layer.step_mode = "s"
    inner = build(case, RULES[rule]).eval()
    inner.load_state_dict(layer.state_dict())
    container = host_layer.SeqToANNContainer(inner)
    torch.testing.assert_close(container(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if "Linear" not in c])
def test_many_steps_of_a_wrong_shape_are_refused_as_by_the_host(case):
    kind, arguments, options, _ = CASES[case]
    own = getattr(host_layer, kind)(*arguments, step_mode="m", **options).double()
    layer = build(case, spq.PowerOfTwoWeights(2), "spikingjelly", step_mode="m")
    for module in (own, layer):
        with pytest.raises(ValueError, match="expected x with shape"):
            module(spikes(case, 2))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_output_size(dimensions):
    kind = f"ConvTranspose{dimensions}d"
    layer = getattr(snn_layer, f"Quantized{kind}")(2, 3, 3, stride=2, weights=RULES["pow2"])
    x, size = torch.ones(1, 2, *[4] * dimensions), [10] * dimensions
    twin = getattr(nn, kind)(2, 3, 3, stride=2)
    twin.load_state_dict({"weight": layer.effective_weight(), "bias": layer.bias})
    torch.testing.assert_close(layer(x, output_size=size), twin(x, output_size=size))


# --- gradients ------------------------------------------------------------------------------------


@all_rules
@all_cases
def test_gradients_are_straight_through_inside_the_range(case, rule):
    layer = build(case, RULES[rule]).eval()
    with torch.no_grad():  # a few weights far outside, so that something saturates
        layer.weight[..., 0] *= 6
        layer.refit()
    _, scale = reference(case, layer.weight, RULES[rule])
    twin = plain(case, layer)
    with torch.no_grad():
        twin.weight.copy_(layer.effective_weight())
    x = [spikes(case, 2).requires_grad_() for _ in range(2)]
    x[1].data.copy_(x[0])
    grad = torch.randn_like(layer(x[0]))
    for module, given in ((layer, x[0]), (twin, x[1])):
        module(given).backward(grad)
    torch.testing.assert_close(x[0].grad, x[1].grad, rtol=1e-9, atol=1e-9)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad)
    config, size = RULES[rule], layer.weight.detach().abs() / scale
    if isinstance(config, spq.TernaryWeights):
        top, slack = math.inf, 0.0
    elif isinstance(config, spq.UniformWeights):
        top, slack = 2 ** (config.bits - 1) - 1, 0.5  # what rounds to the top level is inside
    else:
        top, slack = magnitudes(config).max().item(), 0.0
    inside, outside = size <= top * (1 + 1e-12), size > (top + slack) * (1 + 1e-12)
    got, want = layer.weight.grad, twin.weight.grad
    torch.testing.assert_close(got[inside], want[inside], rtol=1e-9, atol=1e-9)
    assert not got[outside].any()
    if rule == "pow2":
        assert outside.any(), "the case was meant to saturate"


@pytest.mark.parametrize("rule", ["pow2", "pow4", "sums5", "uniform2", "uniform4", "uniform8"])
def test_a_weight_on_the_outermost_level_still_learns(rule):
    """Where a clamp would have gradient 0."""
    layer = nn.Linear(4, 1, bias=False)
    top = magnitudes(RULES[rule]).max().item() if "uniform" not in rule else 1.0
    layer.weight.data = torch.tensor([[top, -top, top, 0.0]])
    twin = snn_layer.QuantizedLinear.from_float(layer, RULES[rule]).eval()
    assert twin.effective_weight()[0, :2].tolist() == pytest.approx([top, -top])
    twin(torch.ones(1, 4)).sum().backward()
    torch.testing.assert_close(twin.weight.grad, torch.ones(1, 4))


# --- the scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["pow2", "pow4", "pow3-layer", "sums5", "sums8"])
def test_alpha_moves_one_factor_of_two_per_training_step_and_never_in_eval(rule):
    layer = build("Conv2d", RULES[rule])
    x = spikes("Conv2d", 1)
    first = layer.weight_quantizer.alpha.clone()
    with torch.no_grad():
        layer.weight *= 8
    layer.eval()
    layer(x)
    assert torch.equal(layer.weight_quantizer.alpha, first)
    layer.train()
    for factor in (2, 4, 8, 8):
        for _ in range(3):  # the time steps of one sequence, which must see one weight
            layer(x)
            assert torch.equal(layer.weight_quantizer.alpha, first * factor)
        with torch.no_grad():
            layer.weight *= 1 + 1e-5  # stands for a step of the optimizer
    with torch.no_grad():
        layer.weight /= 4
    for factor in (4, 2, 2):
        layer(x)
        assert torch.equal(layer.weight_quantizer.alpha, first * factor)
        with torch.no_grad():
            layer.weight *= 1 + 1e-5


@all_rules
@all_cases
def test_a_channel_of_zeros_has_scale_one_and_keeps_it(case, rule):
    layer = build(case, RULES[rule])
    with torch.no_grad():
        layer.weight[channels_of(case, layer.weight)[1]] = 0
        if not getattr(RULES[rule], "per_channel", True):
            layer.weight.zero_()
    layer.refit()
    for _ in range(3):
        layer(spikes(case, 1))
    _, scale = layer.quantized_weight()
    if scale is None:
        scale = layer.weight_quantizer.alpha
    assert scale.flatten()[-1 if scale.numel() == 1 else 1] == 1
    effective = layer.effective_weight()
    assert effective.isfinite().all()
    assert not effective[channels_of(case, effective)[1]].any()


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rule", ["pow2", "pow4", "sums5", "uniform2", "uniform8", "ternary"])
@pytest.mark.parametrize("case", ["Conv1d", "Conv2d-groups", "Conv3d", "ConvTranspose2d", "Linear"])
def test_every_type_computes_the_same_levels(case, rule, dtype):
    layer = build(case, RULES[rule]).to(dtype).eval()
    layer.refit()
    levels, scale = reference(case, layer.weight, RULES[rule])
    x = spikes(case, 2, dtype=dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    twin, reach = plain(case, layer), plain(case, layer)
    with torch.no_grad():
        twin.weight.copy_(levels * scale)
        reach.weight.copy_((levels * scale).abs())
        reach.bias.abs_()
        want, size = twin(x.double()), reach(x.double())
    assert bool(((y.double() - want).abs() <= 4 * max(EPS[dtype], 1e-7) * size).all())
    y.sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == dtype
    assert layer.weight.grad.isfinite().all()


# --- the input quantiser --------------------------------------------------------------------------


@both_hosts
@pytest.mark.parametrize("case", ["Conv1d", "Conv2d", "ConvTranspose2d", "Linear"])
@pytest.mark.parametrize("rule", [None, "pow2", "uniform8"])
@pytest.mark.parametrize(("low", "high", "bits"), [(0.0, 1.0, 8), (-1.0, 3.0, 4)])
def test_analogue_input_is_put_on_its_grid(case, rule, host, low, high, bits):
    config = spq.UniformInput(bits, low, high)
    layer = build(case, RULES.get(rule), host, input=config).eval()
    x = (torch.rand(2, *CASES[case][3], dtype=double) * 1.5 - 0.25) * (high - low) + low
    step = (high - low) / (2**bits - 1)
    lowest = round(low / step)
    levels = (x / step).round().clamp(lowest, lowest + 2**bits - 1)
    twin = plain(case, layer)
    with torch.no_grad():
        twin.weight.copy_(layer.effective_weight())
    ours, theirs = x.clone().requires_grad_(), (levels * step).requires_grad_()
    y, want = layer(ours), twin(theirs)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(y)
    y.backward(grad)
    want.backward(grad)
    inside = (x >= (lowest - 0.5) * step) & (x <= (lowest + 2**bits - 0.5) * step)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(ours.grad, theirs.grad * inside, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["half", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_integer_sums_do_not_overflow_in_low_precision(how, dtype):
    """255 · 127 · 27 is beyond float16, while the output itself is 13.5."""
    layer = snn_layer.QuantizedConv2d(
        3, 2, 3, weights=spq.UniformWeights(8), input=spq.UniformInput(8), bias=False
    )
    layer.weight.data.fill_(0.5)
    x = torch.ones(1, 3, 4, 4)
    if how == "half":
        y = layer.to(dtype)(x.to(dtype))
    else:
        with torch.autocast("cpu", dtype):
            y = layer(x)
    torch.testing.assert_close(
        y.double(), torch.full((1, 2, 2, 2), 13.5, dtype=double), rtol=2 * EPS[dtype], atol=0
    )


# --- a citizen of its host ------------------------------------------------------------------------


@both_hosts
@all_rules
@all_cases
def test_state_dict_keeps_the_keys_and_comes_back(case, rule, host):
    layer, other = (build(case, RULES[rule], host) for _ in range(2))
    assert set(plain(case, layer).state_dict()) <= set(layer.state_dict())
    assert "weight" in dict(layer.named_parameters())
    assert {n for n, _ in layer.named_parameters()} <= {"weight", "bias"}
    other.load_state_dict(layer.state_dict())
    x = spikes(case, 2)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@both_hosts
@all_cases
def test_made_from_a_float_layer_it_shares_the_parameters_and_leaves_the_layer(case, host):
    kind, arguments, options, _ = CASES[case]
    own = getattr(nn if host == "torch" else host_layer, kind)(*arguments, **options).double()
    before = {**own.__dict__, "_modules": dict(own._modules)}
    seen = []
    own.register_forward_hook(lambda *_: seen.append(1))
    twin = getattr(HOSTS[host], f"Quantized{kind}").from_float(own, spq.PowerOfTwoWeights(3))
    assert isinstance(twin, type(own))
    assert twin.weight is own.weight
    assert twin.bias is own.bias
    assert own._modules == before["_modules"]
    twin(spikes(case, 2))
    assert seen == [1]


def test_its_text_names_the_rule():
    layer = snn_layer.QuantizedConv2d(
        1, 2, 3, weights=spq.UniformWeights(4), input=spq.UniformInput(6)
    )
    assert "UniformWeights(bits=4" in repr(layer)
    assert "UniformInput(bits=6" in repr(layer)


@pytest.mark.parametrize("rule", ["pow2", "sums8", "uniform4", "ternary"])
def test_one_to_one_recurrent_weights_share_one_scale(rule):
    recurrent = snn.RLeaky(0.5, all_to_all=False, V=1.0).recurrent
    recurrent.V = nn.Parameter(torch.tensor([0.9, -0.4, 0.02, 0.3]))
    layer = snn_layer.QuantizedOneToOne.from_float(recurrent, RULES[rule]).eval()
    levels, alpha = quantize_row(recurrent.V.detach().double(), RULES[rule])
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(layer(x), (x * levels * alpha).float())
    assert list(dict(layer.named_parameters())) == ["V"]


@pytest.mark.parametrize("rule", [spq.PowerOfTwoWeights(2), spq.UniformWeights(4)])
def test_a_loop_over_steps_in_training_can_go_back(rule):
    """Each step keeps its own scale, whatever the quantiser remembers for the next."""
    layer = snn_layer.QuantizedLinear(8, 4, weights=rule)
    x_seq = torch.rand(3, 2, 8)
    torch.stack([layer(x) for x in x_seq]).sum().backward()
    looped, layer.weight.grad = layer.weight.grad, None
    layer(x_seq).sum().backward()
    torch.testing.assert_close(looped, layer.weight.grad)
