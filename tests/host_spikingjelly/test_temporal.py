"""Weights that change with the time step on SpikingJelly: every way to be called gives the same."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.errors import ConversionError, TimestepError, UnsupportedModuleError
from spquant_plugin.modules import layers as plain
from spquant_plugin.spikingjelly import layer as ours
from spquant_plugin.spikingjelly.container import TemporalSeqToANNContainer

T, N = 4, 2
RULE = spq.TemporalTernaryWeights()
CONFIG = spq.SpQuantConfig(weights=RULE, edge_weights=None, overrides={})
LAYERS = {
    "conv1d": (ours.QuantizedConv1d, (3, 5, 3), (3, 9)),
    "conv2d": (ours.QuantizedConv2d, (3, 5, 3), (3, 6, 5)),
    "depthwise": (partial(ours.QuantizedConv2d, groups=3), (3, 6, 3), (3, 6, 5)),
    "conv3d": (ours.QuantizedConv3d, (3, 5, 2), (3, 4, 3, 5)),
    "linear": (ours.QuantizedLinear, (7, 5), (7,)),
}


def rule(**options) -> spq.SpQuantConfig:
    temporal = spq.TemporalTernaryWeights(**options)
    return spq.SpQuantConfig(weights=temporal, edge_weights=temporal)


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(shape) < 0.4).float()


def stepwise(made, x_seq):
    """The printed equation: a convolution for each step, on the effective weight."""
    levels, scale = made.step_weights(len(x_seq))
    trailing = [1] * (made.weight.ndim - 1)
    out = []
    for x, level, factor in zip(x_seq, levels, scale, strict=True):
        effective = level * factor.view(-1, *trailing)
        if made.weight.ndim == 2:
            out.append(F.linear(x, effective, made.bias))
        else:
            convolve = (F.conv1d, F.conv2d, F.conv3d)[made.weight.ndim - 3]
            out.append(convolve(x, effective, made.bias, padding=made.padding, groups=made.groups))
    return torch.stack(out)


def gradients(made, output, factors):
    (output * factors).sum().backward()
    found = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    return found


def same(found, expected) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", ["per_step", "shared"])
def test_steps_one_by_one_are_the_sequence_and_both_the_equation(name, scale):
    kind, sizes, shape = LAYERS[name]
    made = kind(*sizes, weights=spq.TemporalTernaryWeights(scale=scale), step_mode="m")
    x_seq = spikes(T, N, *shape)
    whole = made(x_seq)
    factors = torch.randn_like(whole)
    assert torch.allclose(whole, stepwise(made, x_seq), atol=1e-5)
    wanted = gradients(made, stepwise(made, x_seq), factors)
    assert same(gradients(made, whole, factors), wanted)
    assert made.timesteps == T
    functional.set_step_mode(made, "s")
    single = torch.stack([made(x) for x in x_seq])
    assert torch.equal(single, whole)
    assert same(gradients(made, single, factors), wanted)


@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_inside_a_container_is_as_outside(name):
    kind, sizes, shape = LAYERS[name]
    outside = kind(*sizes, weights=RULE, step_mode="m")
    inside = getattr(plain, kind.__name__)(*sizes, weights=RULE)
    inside.load_state_dict(outside.state_dict())
    container = TemporalSeqToANNContainer(nn.Sequential(nn.Identity(), inside), nn.ReLU())
    x_seq = spikes(T, N, *shape)
    assert torch.equal(container(x_seq), outside(x_seq).relu())
    factors = torch.randn_like(container(x_seq))
    assert same(
        gradients(inside, container(x_seq), factors),
        gradients(outside, outside(x_seq).relu(), factors),
    )
    assert inside.given_steps is None


def network(mode: str = "m", *, container: bool = True) -> nn.Module:
    """Layers of the host, and torch's own in a container, as Spikformer mixes them."""
    block = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    return nn.Sequential(
        layer.Conv2d(2, 4, 3, step_mode=mode),
        neuron.IFNode(step_mode=mode),
        layer.SeqToANNContainer(block, nn.BatchNorm2d(6))
        if container
        else layer.Conv2d(4, 6, 3, padding=1, step_mode=mode),
        neuron.LIFNode(step_mode=mode),
        layer.Flatten(step_mode=mode),
        layer.Linear(6 * 16, 3, step_mode=mode),
    ).eval()


def test_conversion_opens_containers_and_keeps_keys_and_paths():
    net, x_seq = network(), spikes(T, N, 2, 6, 6)
    converted = spq.convert(net, spq.presets.tawq(T), x_seq)
    assert type(converted[2]) is TemporalSeqToANNContainer
    assert type(net[2]) is layer.SeqToANNContainer
    assert list(converted.state_dict()) == list(net.state_dict())
    inner = converted[2][0][0]
    assert inner.is_temporal
    assert inner.counter is None
    assert inner.path == "2.0.0"
    assert type(converted[0]) is layer.Conv2d  # edges stay in float
    seen = {}
    inner.register_forward_hook(lambda m, args, y: seen.update(x=args[0], y=y))
    converted(x_seq)
    expected = stepwise(inner, seen["x"].unflatten(0, (T, N))).flatten(0, 1)
    assert torch.allclose(seen["y"], expected, atol=1e-5)


def test_a_container_alone_is_opened():
    net = layer.SeqToANNContainer(nn.Linear(3, 2))
    opened = nn.Sequential(net, neuron.IFNode(step_mode="m"))
    converted = spq.convert(opened, rule(timesteps=T), spikes(T, N, 3))
    assert type(converted[0]) is TemporalSeqToANNContainer
    assert type(spq.convert(net, rule(timesteps=T))) is TemporalSeqToANNContainer


@pytest.mark.parametrize("options", [{"timesteps": T}, {"bits": 3}, {"scale": "shared"}])
def test_step_modes_can_be_switched_after_conversion(options):
    net, x_seq = network(container=False), spikes(T, N, 2, 6, 6)
    converted = spq.convert(net, rule(**options), x_seq)
    whole = converted(x_seq)
    assert whole.any()
    for reset in (functional.reset_net, spq.reset):
        functional.set_step_mode(converted, "s")
        for _ in range(2):
            reset(converted)
            assert torch.equal(torch.stack([converted(x) for x in x_seq]), whole)
        reset(converted)
        functional.set_step_mode(converted, "m")
        assert torch.equal(converted(x_seq), whole)
        reset(converted)


def test_single_steps_and_sequences_have_the_same_gradients():
    converted = spq.convert(network(container=False), rule(), spikes(T, N, 2, 6, 6))
    x_seq = spikes(T, N, 2, 6, 6)
    factors = torch.randn(T, N, 3)
    wanted = gradients(converted, converted(x_seq), factors)
    spq.reset(converted)
    functional.set_step_mode(converted, "s")
    found = gradients(converted, torch.stack([converted(x) for x in x_seq]), factors)
    assert any(grad.any() for grad in wanted)
    assert same(found, wanted)


class Looping(nn.Module):
    """A network that takes a sequence and loops itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(3, 4), neuron.LIFNode(), nn.Linear(4, 2)

    def forward(self, x_seq):
        return torch.stack([self.out(self.lif(self.fc(x))) for x in x_seq])


def test_layers_of_torch_are_counted_where_a_network_loops():
    net, x_seq = Looping(), spikes(T, N, 3)
    converted = spq.convert(net, rule(), x_seq)
    assert converted.fc.timesteps == T
    with torch.no_grad():
        first = converted(x_seq)
    with pytest.raises(TimestepError, match=r"fc \(QuantizedLinear\) received step 5 .* 4 steps"):
        converted(x_seq)
    spq.reset(converted)
    assert torch.equal(converted(x_seq), first)
    spq.reset(converted)
    expected = stepwise(converted.fc, x_seq)[0]
    assert torch.allclose(converted.fc(x_seq[0]), expected, atol=1e-6)


def test_a_linear_of_torch_that_is_given_sequences_takes_them():
    net = nn.Sequential(nn.Linear(3, 4), neuron.IFNode(step_mode="m"), layer.Linear(4, 2))
    functional.set_step_mode(net, "m")
    x_seq = spikes(T, N, 3)
    with pytest.raises(UnsupportedModuleError, match=r"only a dry run tells.*Pass sample="):
        spq.convert(net, rule(timesteps=T))
    converted = spq.convert(net, rule(), x_seq)
    assert torch.allclose(converted[0](x_seq), stepwise(converted[0], x_seq), atol=1e-6)
    with pytest.raises(TimestepError, match=r"0 \(QuantizedLinear\): received 8 time steps"):
        converted[0](x_seq.flatten(0, 1))


class Folding(nn.Module):
    """A network that folds steps into the batch by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.lif = layer.Conv2d(2, 4, 3, step_mode="m"), neuron.IFNode(step_mode="m")
        self.inner = inner

    def forward(self, x_seq):
        return functional.seq_to_ann_forward(self.lif(self.first(x_seq)), self.inner)


@pytest.mark.parametrize("inner", [nn.Conv2d, layer.Conv2d], ids=["torch", "host"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_that_is_given_folded_steps_is_refused(inner, batch):
    net = Folding(inner(4, 3, 3))
    plan = spq.plan(net, rule(), spikes(T, batch, 2, 8, 8))
    assert plan["inner"].action == "refuse"
    assert "folded together" in plan["inner"].reason or "called 1 times" in plan["inner"].reason
    assert "SeqToANNContainer" in plan["inner"].reason
    assert plan["first"].action == "quantize"
    assert "Pass sample" in spq.plan(net, rule())["inner"].reason


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (lambda: layer.StepModeContainer(False, "m", nn.Linear(3, 2)), "StepModeContainer"),
        (lambda: layer.TLastSeqToANNContainer(nn.Linear(3, 2)), "TLastSeqToANNContainer"),
    ],
    ids=["StepMode", "TLast"],
)
def test_other_containers_are_refused_by_name(container, reason):
    row = spq.plan(nn.Sequential(container(), neuron.IFNode()), rule(timesteps=T))["0.0"]
    assert row.action == "refuse"
    assert reason in row.reason
    assert "Use a" in row.reason


def test_layers_in_a_container_of_single_steps_are_counted():
    inner = layer.MultiStepContainer(layer.Linear(3, 5), neuron.IFNode(), nn.Linear(5, 2))
    converted = spq.convert(inner, rule(timesteps=T))
    x_seq = spikes(T, N, 3)
    hidden = stepwise(converted[0], x_seq)
    assert torch.allclose(converted[2].step_weights()[0], converted[2].step_weights(T)[0])
    spq.reset(converted)
    seen = []
    converted[0].register_forward_hook(lambda m, args, y: seen.append(y))
    converted(x_seq)
    assert torch.allclose(torch.stack(seen), hidden, atol=1e-6)


def test_without_a_number_of_steps_single_steps_are_refused():
    net = network("s", container=False)
    assert "nothing tells how many" in spq.plan(net, rule())["0"].reason
    plan = spq.plan(net, rule(), spikes(N, 2, 6, 6))
    assert "how many follow? Give TemporalTernaryWeights(timesteps=...)" in plan["0"].reason
    assert spq.plan(net, rule(timesteps=T), spikes(N, 2, 6, 6))["0"].action == "quantize"
    made = ours.QuantizedLinear(3, 2, weights=RULE)
    with pytest.raises(TimestepError, match=r"called step by step.*timesteps="):
        made(spikes(N, 3))


def test_a_sample_of_another_length_is_refused():
    plan = spq.plan(network(), rule(timesteps=3), spikes(T, N, 2, 6, 6))
    assert "the sample has 4 time steps, and timesteps=3" in plan["0"].reason
    plan = spq.plan(Looping(), rule(timesteps=3), spikes(T, N, 3))
    assert "the sample calls it 4 times, and timesteps=3" in plan["fc"].reason


def test_kinds_of_layers_without_time_are_refused():
    net = nn.Sequential(layer.ConvTranspose2d(2, 3, 3), neuron.IFNode(), layer.Conv2d(3, 2, 3))
    row = spq.plan(net, rule(timesteps=T))["0"]
    assert row.action == "refuse"
    assert "exist for Linear, Conv1d, Conv2d and Conv3d" in row.reason
    with pytest.raises(ConversionError, match=r"QuantizedConvTranspose2d received Temporal"):
        ours.QuantizedConvTranspose2d(2, 3, 3, weights=RULE)
    assert "no neuron of a framework" in spq.plan(nn.Linear(3, 2), rule(timesteps=T))[""].reason


def test_a_plan_says_bits_steps_and_scale():
    row = spq.plan(network(), rule(), spikes(T, N, 2, 6, 6))["2.0.0"]
    assert row.bits == "4"
    assert "2 bit, 4 time steps, one scale per step" in row.reason
    row = spq.plan(network(), rule(bits=4, scale="shared"))["0"]
    assert row.bits == "4 per step"
    assert "as many steps as the first input has, one scale for all steps" in row.reason
    converted = spq.convert(network(), rule(bits=4))
    assert "zeros" in spq.status(converted)["0"].details
    converted(spikes(T, N, 2, 6, 6))
    assert spq.status(converted)["0"].bits == "5"


def test_another_number_of_steps_is_an_error():
    converted = spq.convert(network(), rule(), spikes(T, N, 2, 6, 6))
    with pytest.raises(TimestepError, match=r"^0 \(QuantizedConv2d\): received 3 time steps.*4"):
        converted(spikes(3, N, 2, 6, 6))
    inner = converted[2][0][0]
    inner.given_steps = T
    with pytest.raises(TimestepError, match=r"2\.0\.0 .*received \(7, 4, 4, 4\).*multiple of 4"):
        inner(spikes(7, 4, 4, 4))


def test_a_layer_that_nobody_tells_the_step_is_an_error():
    made = plain.QuantizedLinear(3, 2, weights=RULE)
    with pytest.raises(TimestepError, match=r"cannot tell which time step.*forward_steps"):
        made(spikes(N, 3))
    with pytest.raises(TimestepError, match=r"number of time steps is not known yet"):
        made.step_weights()
    assert torch.allclose(made.forward_steps(spikes(T, N, 3) * 0), made.bias)
    with pytest.raises(ConversionError, match=r"Use step_weights"):
        made.quantized_weight()
    with pytest.raises(ConversionError, match=r"Ask the layer for step_weights"):
        made.weight_quantizer(made.weight)
    with pytest.raises(ConversionError, match=r"the same in every step"):
        plain.QuantizedLinear(3, 2, weights=spq.TernaryWeights()).step_weights()


def test_held_levels_are_never_stale(monkeypatch):
    made = ours.QuantizedLinear(6, 5, weights=spq.TemporalTernaryWeights(timesteps=T))
    calls = []
    steps = made.weight_quantizer.steps
    monkeypatch.setattr(made.weight_quantizer, "steps", lambda *a: calls.append(0) or steps(*a))
    x_seq = spikes(T, N, 6)
    for x in x_seq:
        made(x)
    assert len(calls) == 1
    assert made.counter.held is None
    functional.reset_net(made)
    made(x_seq[0])
    assert made.counter.held is not None
    with torch.no_grad():
        made.weight.copy_(torch.randn_like(made.weight))
    assert torch.allclose(made(x_seq[1]), stepwise(made, x_seq)[1], atol=1e-6)
    made(x_seq[2]).sum().backward()  # consumes the graph of what is held
    made(x_seq[3]).sum().backward()
    functional.reset_net(made)
    with torch.no_grad():
        made(x_seq[0])
    assert made(x_seq[1]).requires_grad
    functional.reset_net(made)
    assert made.counter.held is None


def test_an_input_quantiser_and_half_precision_go_with_it():
    made = ours.QuantizedConv2d(2, 3, 3, step_mode="m", weights=RULE, input=spq.UniformInput(4))
    x_seq = torch.rand(T, N, 2, 6, 6)
    rounded = (x_seq * 15).round() / 15
    assert torch.allclose(made(x_seq), stepwise(made, rounded), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = made(x_seq)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), made(x_seq), atol=0.1)
    half = ours.QuantizedLinear(64, 3, step_mode="m", weights=RULE).half()
    wide, x_seq = copy.deepcopy(half).float(), spikes(T, N, 64)
    found = half(x_seq.half())
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), wide(x_seq), atol=0.05)


def test_copies_pickles_and_states_go_round():
    converted = spq.convert(network(), rule(), spikes(T, N, 2, 6, 6))
    x_seq = spikes(T, N, 2, 6, 6)
    expected = converted(x_seq).detach()
    spq.reset(converted)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert torch.equal(twin(x_seq), expected)
    other = spq.convert(network(), rule(), x_seq)
    assert spq.load_float_state_dict(other, converted.state_dict())
    assert torch.equal(other(x_seq), expected)
    running = spq.convert(network("s", container=False), rule(timesteps=T))
    with torch.no_grad():
        running(x_seq[0])
    assert copy.deepcopy(running)[0].counter.step == 1
    resting = spq.convert(running, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    assert resting[0].counter.step == 0
    assert running[0].counter.step == 1


def test_whole_graph_compiles():
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Linear(3, 4)), layer.Conv1d(1, 2, 1, step_mode="m")
    )
    x_seq = spikes(T, N, 1, 3)
    converted = spq.convert(net, rule(), x_seq)
    found = torch.compile(converted, fullgraph=True, backend="aot_eager")(x_seq)
    assert torch.allclose(found, converted(x_seq), atol=1e-6)
    found.square().sum().backward()
    assert bool(converted[0][0].weight.grad.any())


def test_it_goes_with_membranes_gates_and_float_norms():
    config = spq.presets.spquant_snn(
        weights=RULE, edge_weights=RULE, spatial_gate=None, norm=spq.QuantizedNorm()
    )
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3),
        neuron.LIFNode(),
        layer.Conv2d(4, 4, 3),
        layer.BatchNorm2d(4),
        neuron.LIFNode(),
        layer.Conv2d(4, 2, 2),
    )
    functional.set_step_mode(net, "m")
    x_seq = spikes(T, N, 2, 6, 6)
    plan = spq.plan(net, config, x_seq, on_unmatched="ignore")
    assert "change with the time step" in plan["3"].reason
    assert plan["3"].action == "keep"
    with pytest.raises(spq.errors.SelectionError):
        spq.convert(net, config, x_seq)
    converted = spq.convert(net, config, x_seq, on_unmatched="ignore")
    assert converted(x_seq).shape == (T, N, 2, 1, 1)
    assert spq.gate_stats(converted)
    with pytest.raises(ConversionError, match=r"0 \(QuantizedConv2d\) holds weights that change"):
        spq.fold(converted)


@pytest.mark.parametrize(
    ("name", "options"), [("vgg9", {"width": 0.125}), ("spikformer_4_256", {})]
)
def test_presets_convert_and_train_networks(name, options):
    net = spq.models.create(name, in_channels=2, size=32, num_classes=3, **options)
    x_seq = spikes(2, 1, 2, 32, 32)
    converted = spq.convert(net, spq.presets.tawq(2), x_seq)
    timed = [m for m in converted.modules() if getattr(m, "is_temporal", False)]
    assert len(timed) > 5
    converted(x_seq).sum().backward()
    assert all(bool(module.weight.grad.any()) for module in timed)
