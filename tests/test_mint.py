"""MINT: one scale for weights and membrane, against slow references in Python and autograd."""

from __future__ import annotations

import copy
import io
import math
import pickle
from fractions import Fraction

import pytest
import snntorch as snn
import torch
from deploy.c99_build import FAST, Builder, expected, export, need, told
from deploy.lively import events
from snntorch import utils
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.functional import mint as fmint
from spquant_plugin.modules import MintQuantizer
from spquant_plugin.modules.mint import share_scale
from spquant_plugin.snntorch import neuron as torch_twins
from spquant_plugin.snntorch import surrogate as twin_surrogate
from spquant_plugin.spikingjelly import layer as jelly_layers
from spquant_plugin.spikingjelly import neuron as jelly_twins

double = torch.float64
HOSTS = ("spikingjelly", "snntorch")
both_hosts = pytest.mark.parametrize("host", HOSTS)


def mint(bits: int = 4, **fields) -> spq.SpQuantConfig:
    """MINT in every layer, so that every neuron shares its layer's scale."""
    weights = spq.MintWeights(bits, start=fields.pop("start", "mean"))
    rest = {"weights": weights, "edge_weights": weights, **fields}
    return spq.SpQuantConfig(membrane=spq.MintMembrane(bits), **rest)


# The equations.


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_and_first_scale_are_the_equations(bits):
    rows = torch.randn(3, 7, dtype=double)
    top = 2 ** (bits - 1) - 1
    beta = 2 * sum(abs(w) for w in rows.flatten().tolist()) / rows.numel() / math.sqrt(top)
    quantizer = MintQuantizer(spq.MintWeights(bits), 3).double()
    quantizer.initialize(rows)
    assert float(quantizer.beta.detach()) == pytest.approx(beta)
    levels, scale = quantizer(rows)
    share = [[max(-1.0, min(1.0, math.tanh(w) / beta)) for w in row] for row in rows.tolist()]
    assert levels.tolist() == [[float(round(top * part)) for part in row] for row in share]
    assert scale.shape == (3, 1)
    assert scale.flatten().tolist() == pytest.approx([beta / top] * 3)


def test_a_layer_of_zeros_starts_from_a_scale_of_one():
    assert float(fmint.initial_scale(torch.zeros(3), 4)) == 1
    assert float(fmint.fitted_scale(torch.zeros(3), 4)) == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fitted_scale_has_the_least_error_of_its_shares(bits):
    rows, top = torch.randn(4, 6, dtype=double) / 3, 2 ** (bits - 1) - 1

    def error(beta: float) -> float:
        levels = [round(top * max(-1.0, min(1.0, math.tanh(w) / beta))) for w in values]
        return sum((k * beta / top - w) ** 2 for k, w in zip(levels, values, strict=True))

    values = rows.flatten().tolist()
    tried = [math.tanh(max(map(abs, values))) * share / 32 for share in range(1, 33)]
    quantizer = MintQuantizer(spq.MintWeights(bits, start="fit"), 4)
    quantizer.initialize(rows)
    assert float(quantizer.beta.detach()) == pytest.approx(min(tried, key=error))


def test_a_scale_starts_in_one_of_two_ways():
    with pytest.raises(spq.errors.ConfigError, match=r"MintWeights.start = 'max': must be one of"):
        spq.MintWeights(4, start="max")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_stored_membrane_is_a_shift_to_the_right(bits):
    top = 2 ** (bits - 1) - 1
    for u in range(-3 * top, 3 * top + 1):
        stored = fmint.leak_and_store(torch.tensor([float(u)] * 2), torch.tensor([0.0, 1.0]), bits)
        assert stored.tolist() == [max(-top, min(top, u >> 1)), 0]


class _Spike(torch.autograd.Function):
    """A step with the slope of a triangle, ``>=`` or ``>``."""

    @staticmethod
    def forward(ctx, distance, strict):
        ctx.save_for_backward(distance)
        return (distance > 0 if strict else distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad):
        (distance,) = ctx.saved_tensors
        return grad * (1 - distance.abs()).clamp(min=0), None


def through(value: Tensor, becomes: Tensor) -> Tensor:
    return value + (becomes - value).detach()


def clipped(value: Tensor, bound: float) -> Tensor:
    """Gradient inside and on the bounds."""
    inside = value.abs() <= bound
    return torch.where(inside, value, value.detach().clamp(-bound, bound))


def reference(weight, bias, beta, x_seq, *, bits, strict, detach, gain=1.0):
    """Spikes and stored membranes of a linear layer and its neuron, as autograd sees them."""
    top = 2 ** (bits - 1) - 1
    slow = beta / math.sqrt(weight.numel() * top)
    beta = through(slow, beta.abs())
    unit = beta / top
    levels = clipped(torch.tanh(weight) / beta, 1.0) * top
    levels = through(levels, levels.round())
    m, spikes, stored = torch.zeros(()), [], []
    for x in x_seq:
        a = (F.linear(x, levels) * unit + bias) / unit
        u = m + through(a, a.round())
        s = _Spike.apply(u * unit * gain - 1.0, strict)
        half = u * (1 - (s.detach() if detach else s)) / 2
        m = clipped(through(half, half.floor()), top)
        spikes.append(s)
        stored.append(m * unit * gain)
    return torch.stack(spikes), torch.stack(stored)


def lively(net: nn.Sequential) -> nn.Sequential:
    nn.init.uniform_(net[0].weight, -1, 2)
    nn.init.uniform_(net[0].bias, -0.3, 0.3)
    return net


def jelly(gain: float, detach: bool) -> nn.Module:
    node = neuron.LIFNode(decay_input=gain == 0.5, detach_reset=detach, step_mode="m")
    return lively(nn.Sequential(layer.Linear(6, 4, step_mode="m"), node))


def leaky(gain: float, detach: bool) -> nn.Module:
    options = {"reset_mechanism": "zero", "reset_delay": detach, "init_hidden": True}
    node = snn.Leaky(beta=0.5, output=True, spike_grad=twin_surrogate.Triangle(), **options)
    return lively(nn.Sequential(nn.Linear(6, 4), node))


def run(model: nn.Module, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and stored membranes of the last neuron."""
    spq.reset(model)
    if isinstance(model[-1], neuron.BaseNode):
        model[-1].store_v_seq = True
        return model(x_seq), model[-1].v_seq
    spikes, stored = zip(*(model(x) for x in x_seq), strict=True)
    return torch.stack(spikes), torch.stack(stored)


CASES = {
    "jelly": (jelly, 1.0, False),
    "jelly, detached": (jelly, 1.0, True),
    "jelly, input halved": (jelly, 0.5, False),
    "leaky, at once": (leaky, 1.0, False),
    "leaky, late": (leaky, 1.0, True),
}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_reference(case, bits):
    make, gain, detach = CASES[case]
    model = make(gain, detach).double()
    x_seq = events(7, 5, 6, rate=0.6).double()
    config = mint(bits, surrogate=spq.Triangle())
    model = spq.convert(model, config, x_seq if make is jelly else x_seq[0])
    own, beta = model[0].weight_quantizer.beta, model[1].membrane_scale
    assert own is beta
    with torch.no_grad():
        beta.fill_((0.45 if bits == 2 else 0.6) / gain)
    inputs = [t.detach().clone().requires_grad_() for t in (model[0].weight, model[0].bias, beta)]
    options = {"bits": bits, "strict": make is leaky, "detach": detach, "gain": gain}
    want = reference(*inputs, x_seq, **options)
    got = run(model, x_seq)
    assert torch.equal(got[0].double(), want[0])
    assert 0.05 < float(want[0].detach().mean()) < 0.95
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-12)
    assert got[1].unique().numel() > 2
    mix = [torch.randn_like(part) for part in want]
    sum((a * b).sum() for a, b in zip(want, mix, strict=True)).backward()
    sum((a * b).sum() for a, b in zip(got, mix, strict=True)).backward()
    for mine, ref in zip((model[0].weight, model[0].bias, beta), inputs, strict=True):
        assert float(ref.grad.abs().max()) > 0
        torch.testing.assert_close(mine.grad, ref.grad, rtol=1e-9, atol=1e-11)


# The sign and the size of the scale.


def test_the_sign_of_the_scale_means_nothing_and_zero_is_no_division():
    fc = jelly_layers.QuantizedLinear(6, 4, bias=False, weights=spq.MintWeights(4))
    beta, x = fc.weight_quantizer.beta, torch.eye(6)
    y = fc(x)
    (up,) = torch.autograd.grad(y.square().sum(), beta)
    with torch.no_grad():
        beta.neg_()
    assert torch.equal(fc(x), y)
    (down,) = torch.autograd.grad(fc(x).square().sum(), beta)
    assert float(down) == -float(up) != 0
    with torch.no_grad():
        beta.zero_()
    assert bool(fc(x).isfinite().all())


def test_a_scale_that_is_no_number_is_seen_and_never_lowered():
    x = events(4, 2, 6)
    model = spq.convert(jelly(1.0, False), mint(), x)
    with torch.no_grad():
        model[1].membrane_scale.fill_(math.nan)
    assert bool(run(model, x)[0].isnan().any()) or bool(model[0](x).isnan().all())
    assert "NaN or infinite" in spq.status(model)["0"].details
    with pytest.raises(spq.errors.DeployError, match=r"(?s)0.*whole numbers"):
        spq.to_integer(model, x)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(spq.errors.ConversionError, match="NaN or infinite values"):
        MintQuantizer(spq.MintWeights(4), 1).initialize(torch.tensor([[math.nan]]))


# What is refused.


@pytest.mark.parametrize("field", ["unit", "shape", "temperature"])
def test_a_membrane_has_nothing_else_to_set(field):
    value = {"unit": 0.5, "shape": "arctan", "temperature": 3.0}[field]
    with pytest.raises(spq.errors.ConfigError, match=rf"MintMembrane.{field} = {value!r}: cannot"):
        spq.MintMembrane(4, **{field: value})


REFUSED = {
    "IF": (lambda: neuron.IFNode(), "keeps 1 of its membrane"),
    "tau": (lambda: neuron.LIFNode(tau=4.0), "keeps 0.75 of its membrane"),
    "learned tau": (lambda: neuron.ParametricLIFNode(), "learns its decay"),
    "soft": (lambda: neuron.LIFNode(v_reset=None), "its reset is soft"),
    "rest": (lambda: neuron.LIFNode(v_reset=-0.5), "its reset is hard, to -0.5"),
    "threshold": (lambda: neuron.LIFNode(v_threshold=-1.0), "threshold -1 is not above 0"),
    "decay": (lambda: snn.Leaky(beta=0.9, reset_mechanism="zero"), "keeps 0.9 of its membrane"),
    "learned decay": (
        lambda: snn.Leaky(beta=0.5, learn_beta=True, reset_mechanism="zero"),
        "learn_beta=True",
    ),
    "subtract": (lambda: snn.Leaky(beta=0.5), "reset_mechanism='subtract'"),
    "lapicque": (lambda: snn.Lapicque(beta=0.5, reset_mechanism="zero"), "it is no Leaky"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_dynamics_are_refused_with_what_was_found(case):
    make, found = REFUSED[case]
    net = nn.Sequential(nn.Linear(2, 2), make())
    row = spq.plan(net, spq.SpQuantConfig(membrane=spq.MintMembrane(4)))["1"]
    assert row.action == "refuse"
    assert found in row.reason
    assert "LIFNode(tau=2.0" in row.reason or "Set a threshold above 0" in row.reason


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_neurons_that_compete_are_refused():
    with pytest.raises(spq.errors.ConversionError, match="inhibition=True"):
        torch_twins.TernaryLeaky(
            beta=0.5, reset_mechanism="zero", inhibition=True, membrane=spq.MintMembrane(4)
        )


def test_a_scale_is_shared_by_two_of_a_kind():
    node = jelly_twins.TernaryMembraneLIFNode(membrane=spq.MintMembrane(4))
    fc = jelly_layers.QuantizedLinear(3, 2, weights=spq.UniformWeights(4))
    with pytest.raises(spq.errors.ConversionError, match=r"UniformWeights.*needs a MintMembrane"):
        share_scale(node, fc)
    fc = jelly_layers.QuantizedLinear(3, 2, weights=spq.MintWeights(2))
    with pytest.raises(spq.errors.ConversionError, match="4 bits and the weights 2"):
        share_scale(node, fc)


# Whose scale.


def lif(**options) -> neuron.LIFNode:
    return neuron.LIFNode(**{"decay_input": False, **options})


class Joined(nn.Module):
    """Two layers, or a layer and spikes, meet before a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.n0 = nn.Linear(4, 4), lif()
        self.left, self.right, self.n1 = nn.Linear(4, 4), nn.Linear(4, 4), lif()
        self.next, self.n2, self.last = nn.Linear(4, 4), lif(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.first(x))
        x = self.n1(self.left(x) + self.right(x))
        return self.last(self.n2(self.next(x) + x))


def test_a_neuron_behind_several_values_has_a_scale_of_its_own():
    x = events(2, 4)
    model = Joined()
    rows = spq.plan(
        model, spq.SpQuantConfig(membrane=spq.MintMembrane(4), weights=spq.MintWeights(4)), x
    )
    assert rows["n0"].reason.endswith("a scale of its own: first has UniformWeights")
    assert rows["n1"].reason.endswith("a scale of its own: it reads left, right")
    assert rows["n2"].reason.endswith("a scale of its own: it reads n1, next")
    converted = spq.convert(model, mint(), x)
    # The threshold is 2 Q + 1 units of a scale of its own.
    assert float(converted.n1.membrane_unit) == pytest.approx(1 / 15)
    assert "unit 0.06667 of own scale" in spq.status(converted)["n1"].details


def test_what_keeps_a_scale_from_being_shared_is_told():
    x = events(3, 2, 4, 4)
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3),
        layer.BatchNorm2d(3),
        lif(),
        layer.Flatten(),
        layer.Linear(12, 2),
        lif(),
    )
    told = spq.plan(net, mint(), x)
    assert told["2"].reason.endswith("the norm 1 between 0 and it is not folded")
    assert told["5"].reason.endswith("; the scale of 4")
    told = spq.plan(net, mint(norm=spq.QuantizedNorm("fold")), x)
    assert told["2"].reason.endswith("; the scale of 0")
    other = spq.SpQuantConfig(membrane=spq.MintMembrane(2))
    told = spq.plan(net, mint(overrides={"5": other}), x)
    assert told["5"].reason.endswith("4 has 4 bits and its membrane 2")
    told = spq.plan(net, other)
    assert told["2"].reason.endswith("only a dry run tells which layer it follows")
    told = spq.plan(net, other, x)
    assert told["2"].reason.endswith("0 has float weights")
    with pytest.raises(
        spq.errors.SampleError, match=r"sample = None, and .* MintMembrane and Mint"
    ):
        spq.plan(net, mint())


def test_a_neuron_shares_with_a_layer_that_was_converted_before():
    x = events(3, 4)
    net = nn.Sequential(nn.Linear(4, 4), lif(), nn.Linear(4, 2), lif())
    layers = spq.SpQuantConfig(weights=spq.MintWeights(4), edge_weights=spq.MintWeights(4))
    net = spq.convert(net, layers, x)
    net = spq.convert(net, spq.SpQuantConfig(membrane=spq.MintMembrane(4)), x)
    assert net[1].membrane_scale is net[0].weight_quantizer.beta
    assert net[3].membrane_scale is net[2].weight_quantizer.beta


# The tie.


def is_tied(model: nn.Module) -> bool:
    return model[1].membrane_scale is model[0].weight_quantizer.beta


@both_hosts
def test_the_tie_outlives_copies_files_and_moves(host):
    x = events(5, 3, 6)
    make, sample = (jelly, x) if host == "spikingjelly" else (leaky, x[0])
    model = spq.convert(make(1.0, False), mint(), sample)
    keys = [key for key in model.state_dict() if key.endswith(("beta", "scale"))]
    assert {"0.weight_quantizer.beta", "1.membrane_scale"} <= set(keys)
    assert "1.membrane_unit" not in model.state_dict()
    spq.reset(model)
    want = run(model, x)[0]
    spq.reset(model)
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(held, weights_only=False),
    ]
    for other in copies:
        assert is_tied(other)
        assert torch.equal(run(other, x)[0], want)
    assert sum(p is model[1].membrane_scale for p in model.parameters()) == 1
    fresh = spq.convert(make(1.0, False), mint(), sample)
    assert not torch.equal(run(fresh, x)[0], want)
    fresh.load_state_dict(model.state_dict())
    assert is_tied(fresh)
    assert torch.equal(run(fresh, x)[0], want)
    assert is_tied(model.double())
    assert model[1].membrane_unit.dtype == double
    assert is_tied(model.to("cpu").half())


def test_a_float_checkpoint_fits_the_scales_anew():
    x = events(3, 2, 6)
    net = jelly(1.0, False)
    model = spq.convert(jelly(1.0, False), mint(), x)
    report = spq.load_float_state_dict(model, net.state_dict())
    assert report
    assert "1.membrane_scale" in report.recomputed
    want = fmint.initial_scale(net[0].weight, 4)
    assert torch.equal(model[1].membrane_scale.detach(), want)
    assert is_tied(model)


# The hosts.


def two_convolutions(host: str, norm: bool = False) -> nn.Module:
    """A convolution between two others whose neuron shares its scale, then a linear layer."""
    own = layer if host == "spikingjelly" else nn

    def block(inputs: int) -> list[nn.Module]:
        node = lif() if host == "spikingjelly" else leaky(1.0, True)[1]
        if host == "snntorch":
            node.output = False
        conv = own.Conv2d(inputs, 4, 3, padding=1, bias=not norm)
        return [conv, own.BatchNorm2d(4) if norm else nn.Identity(), node]

    pool, flat = own.MaxPool2d(2), own.Flatten()
    net = nn.Sequential(*block(2), *block(4), pool, *block(4), flat, own.Linear(4 * 9, 3))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, -0.6, 1.0)
    if host == "spikingjelly":
        functional.set_step_mode(net, "m")
    return net


def whole(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs of all steps, from rest."""
    spq.reset(model)
    if isinstance(model[2], neuron.BaseNode):
        return model(x)
    return torch.stack([model(step) for step in x])


def trained_norms(net: nn.Module, x: Tensor) -> nn.Module:
    """The network in eval, its norms with statistics of the data and offsets at random."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        nn.init.uniform_(norm.bias, -0.2, 0.5)
    with torch.no_grad():
        whole(net.train(), x)
    for norm in norms:
        norm.momentum = 0.1
    spq.reset(net)
    return net.eval()


def exact(model: nn.Module, x: Tensor, sample: Tensor) -> spq.IntegerNetwork:
    """The integer network, verified to be equal and alive."""
    net = spq.to_integer(model, sample, engine="torch")
    found = spq.verify(net, model, x)
    assert found.exact, found
    spikes = net.run(x, record=True).spikes
    assert all(0 < float(train.double().mean()) < 1 for train in spikes.values())
    return net


def test_single_steps_are_the_whole_sequence():
    x = events(5, 2, 2, 6, 6)
    many = spq.convert(two_convolutions("spikingjelly"), mint(), x).eval()
    want = many(x)
    stored = [m.v for m in many if isinstance(m, neuron.BaseNode)]
    spq.reset(many)
    functional.set_step_mode(many, "s")
    got = torch.stack([many(step) for step in x])
    assert torch.equal(got, want)
    assert float(want.detach().abs().max()) > 0
    assert all(map(torch.equal, stored, [m.v for m in many if isinstance(m, neuron.BaseNode)]))


def test_a_sequential_of_leaky_runs_as_its_loop_does():
    x = events(5, 2, 2, 6, 6)
    model = spq.convert(two_convolutions("snntorch"), mint(), x[0]).eval()
    want = whole(model, x)
    spq.reset(model)
    assert torch.equal(spq.snntorch.run(model, x), want)


def test_states_that_are_handed_in_go_on():
    x_seq = torch.rand(4, 2, 3)
    options = {"beta": 0.5, "reset_mechanism": "zero", "membrane": spq.MintMembrane(4)}
    hidden = torch_twins.TernaryLeaky(**options, init_hidden=True, output=True)
    given = torch_twins.TernaryLeaky(**options)
    mem = given.init_leaky()
    for x in x_seq:
        spikes, mem = given(x, mem)
        want, kept = hidden(x)
        assert torch.equal(spikes, want)
        assert torch.equal(mem, kept)
    utils.reset(nn.Sequential(hidden))
    assert not hidden.mem.any()


def test_it_compiles_without_a_break():
    x = events(3, 2, 6)
    model = spq.convert(jelly(1.0, False), mint(), x)
    want = model(x)
    spq.reset(model)
    got = torch.compile(model, backend="eager", fullgraph=True)(x)
    assert torch.equal(got, want)
    got.sum().backward()
    assert float(model[1].membrane_scale.grad) != 0


@both_hosts
def test_training_lowers_a_loss_and_moves_the_scales(host):
    x = events(4, 6, 2, 6, 6)
    sample = x if host == "spikingjelly" else x[0]
    config = mint(start="fit", norm=spq.QuantizedNorm("fold"), surrogate=spq.Triangle())
    net = trained_norms(two_convolutions(host, norm=True), x)
    model = spq.convert(net, config, sample).train()
    labels, losses = torch.arange(6) % 3, []
    before = model[3].weight_quantizer.beta.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.cross_entropy(whole(model, x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not torch.equal(before, model[3].weight_quantizer.beta)
    assert model[5].membrane_scale is model[3].weight_quantizer.beta


# Whole numbers.


@pytest.mark.parametrize("bits", [2, 4])
@both_hosts
def test_the_preset_becomes_integers_exactly(host, bits):
    x = events(6, 3, 2, 6, 6)
    sample = x if host == "spikingjelly" else x[0]
    net = trained_norms(two_convolutions(host, norm=True), x)
    config = spq.presets.mint(bits, weights=spq.MintWeights(bits, start="fit"))
    model = spq.convert(net, config, sample).eval()
    assert model[5].membrane_scale is model[3].weight_quantizer.beta
    assert model[2].scale_count is None  # behind the 8 bits of the first layer
    integer = exact(model, x, sample)
    if (host, bits) == ("spikingjelly", 2):  # one: kernels are compiled for it
        want = integer(x)
        assert torch.equal(integer.use("numba")(x), want)


def test_the_c_export_does_the_same(tmp_path):
    need("gcc")
    x = events(5, 4, 2, 6, 6)
    model = spq.convert(two_convolutions("spikingjelly"), mint(), x).eval()
    graph = exact(model, x, x).graph
    exported = export(graph, tmp_path / "net")
    program = Builder(tmp_path).build(exported, FAST)
    assert told([str(program)], exported, x.int()) == expected(graph, x.int())


@both_hosts
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_tables_are_additions_a_comparison_and_a_shift(host, bits):
    """The layer's integer sum goes in; no factor, no float: u = m + a, u >= n, u >> 1."""
    x = events(6, 2, 2, 6, 6)
    sample = x if host == "spikingjelly" else x[0]
    config = mint(bits, start="fit")
    net = two_convolutions(host)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, -0.5, 1.0)
            nn.init.zeros_(module.bias)
    model = spq.convert(net, config, sample).eval()
    done = exact(model, x, sample).run(x, record=True)
    spikes = x
    for conv, node in ((0, 2), (3, 5)):
        levels = model[conv].quantized_weight()[0].detach()
        unit = Fraction(float(model[node].membrane_unit))
        least = math.ceil(1 / unit) if host == "spikingjelly" else math.floor(1 / unit) + 1
        sums = F.conv2d(spikes.flatten(0, 1), levels, padding=1).unflatten(0, x.shape[:2]).int()
        m, top, trains, stored = torch.zeros_like(sums[0]), 2 ** (bits - 1) - 1, [], []
        for a in sums:
            u = m + a
            s = u >= least
            m = (torch.where(s, 0, u) >> 1).clamp(-top, top)
            trains.append(s.int())
            stored.append(m)
        assert torch.equal(torch.stack(trains), done.spikes[str(node)].int())
        assert torch.equal(torch.stack(stored), done.membranes[str(node)].int())
        spikes = torch.stack(trains).float()


@both_hosts
def test_thresholds_and_gates_take_part(host):
    x = events(5, 2, 2, 6, 6)
    sample = x if host == "spikingjelly" else x[0]
    config = mint(
        threshold=spq.LearnableThreshold(per_channel=True),
        spatial_gate=spq.SpatialGate(0.3),
        channel_gate=spq.ChannelGate(),
    )
    model = spq.convert(two_convolutions(host), config, sample).eval()
    for module in model.modules():
        if isinstance(module, jelly_twins._QuantizedMembraneNode | torch_twins.TernaryLeaky):
            value = module._threshold()
            value.data.uniform_(0.7, 1.3)
            assert value.numel() == 4
            assert module.spatial_gate is not None
    found = spq.verify(spq.to_integer(model, sample, engine="torch"), model, x)
    assert found.exact, found
    spq.reset(model.train())
    whole(model, x).square().sum().backward()
    assert float(model[5]._threshold().grad.abs().max()) > 0


def test_eight_bits_are_too_many_for_tables():
    x = events(4, 2, 6)
    model = spq.convert(jelly(1.0, False), mint(8), x).eval()
    with pytest.raises(
        spq.errors.DeployError, match="255 levels: an integer network takes at most"
    ):
        spq.to_integer(model, x)


# What others say of it.


def test_reports_know_the_membrane():
    x = events(4, 2, 6)
    model = spq.convert(leaky(1.0, True), mint(), x[0]).eval()
    row = next(row for row in spq.analyze(model, x, timesteps=4).memory.layers if row.path == "1")
    assert (row.membrane_bits, row.information_bits) == (4, math.log2(15))
    assert "4 (3.91)" in str(spq.status(model))
    semantics = spq.to_integer(model, x[0]).graph.neurons[0].semantics
    assert semantics["order"] == "charge, fire, reset, leak, store"
    assert semantics["membrane"] == "MintMembrane(bits=4)"


def test_a_fitted_membrane_is_not_exchanged():
    x = events(4, 2, 6)
    model = spq.convert(jelly(1.0, False), mint(), x)
    other = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    from spquant_plugin.analysis.clipping.membranes import with_membrane

    with pytest.raises(
        spq.errors.AnalysisError, match=r"1 stores MintMembrane\(bits=4\) and is to"
    ):
        with_membrane(model, other)
