"""Random networks of both hosts convert and run, or are refused with a message that names why."""

from __future__ import annotations

import warnings

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.kernels import use
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer

REFUSED_NEURONS = (neuron.EIFNode, neuron.QIFNode, neuron.KLIFNode, snn.Alpha)

membranes = st.one_of(
    st.none(),
    st.builds(spq.TernaryMembrane, st.sampled_from(["nearest", "eq7"])),
    st.builds(spq.BinaryMembrane),
    st.builds(spq.UniformMembrane, st.integers(2, 8)),
    st.builds(
        spq.UniformMembrane,
        levels=st.tuples(st.integers(-4, 0), st.integers(1, 4)),
        unit=st.floats(0.1, 2.0),
        shape=st.sampled_from(["sigmoid", "arctan", "triangle", "piecewise"]),
    ),
)
weights = st.one_of(
    st.none(),
    st.builds(spq.PowerOfTwoWeights, st.integers(2, 4), per_channel=st.booleans()),
    st.builds(spq.AdditivePowerOfTwoWeights, st.integers(5, 8)),
    st.builds(spq.UniformWeights, st.integers(2, 8)),
    st.just(spq.UniformWeights(4, scale="sawb")),
    st.just(spq.TernaryWeights()),
)
configs = st.builds(
    spq.SpQuantConfig,
    membrane=membranes,
    surrogate=st.none() | st.builds(spq.Triangle, st.floats(0.5, 2.0)),
    threshold=st.none()
    | st.builds(
        spq.LearnableThreshold,
        st.sampled_from(["gpw", "shared", "doubled"]),
        per_channel=st.booleans(),
    ),
    weights=weights,
    edge_weights=weights,
    input=st.none() | st.builds(spq.UniformInput, st.integers(1, 8)),
)


@st.composite
def jelly_neurons(draw) -> nn.Module:
    options = {
        "v_threshold": draw(st.floats(0.3, 2.0)),
        "v_reset": draw(st.none() | st.floats(-0.3, 0.2)),
        "detach_reset": draw(st.booleans()),
    }
    kind = draw(st.sampled_from(["IF", "LIF", "PLIF", "other"]))
    if kind == "IF":
        return neuron.IFNode(**options)
    if kind == "LIF":
        return neuron.LIFNode(tau=draw(st.floats(1.1, 8.0)), **options)
    if kind == "PLIF":
        return neuron.ParametricLIFNode(decay_input=draw(st.booleans()), **options)
    if draw(st.integers(0, 4)):
        return neuron.LIFNode(**options)
    return draw(st.sampled_from(REFUSED_NEURONS[:3]))()


@st.composite
def torch_neurons(draw, features: int) -> nn.Module:
    options = {
        "threshold": draw(st.floats(0.3, 2.0)),
        "reset_mechanism": draw(st.sampled_from(["subtract", "zero", "none"])),
        "learn_threshold": draw(st.booleans()),
        "init_hidden": True,
    }
    late = {"reset_delay": draw(st.booleans())}
    beta = draw(st.floats(0.1, 1.0))
    kind = draw(st.sampled_from(["Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic", "other"]))
    if kind == "Lapicque":
        return snn.Lapicque(beta=min(beta, 0.95), **options)
    if kind == "Synaptic":
        return snn.Synaptic(alpha=0.7, beta=beta, **options, **late)
    if kind == "RLeaky":
        return snn.RLeaky(beta=beta, linear_features=features, **options, **late)
    if kind == "RSynaptic":
        # The host's own RSynaptic cannot reset at once.
        return snn.RSynaptic(alpha=0.5, beta=beta, all_to_all=False, V=0.3, **options)
    if kind == "Leaky" or draw(st.integers(0, 4)):
        return snn.Leaky(beta=beta, **options, **late)
    return snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True)


@st.composite
def jelly_networks(draw) -> tuple[nn.Module, torch.Tensor]:
    """Convolutions of any kind, norms, pools and neurons in a row, then a linear head."""
    channels, size = draw(st.integers(1, 3)), draw(st.sampled_from([4, 5, 6]))
    x = torch.randint(
        0, 2, (draw(st.integers(1, 3)), draw(st.integers(1, 2)), channels, size, size)
    )
    body: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 4))
        groups = width if channels == width and draw(st.booleans()) else 1
        kind = draw(st.sampled_from([layer.Conv2d, layer.Conv2d, layer.ConvTranspose2d]))
        # Padding makes a transposed convolution smaller: two in a row would leave nothing.
        padding = 1 if kind is layer.ConvTranspose2d else draw(st.integers(1, 2))
        bias = draw(st.booleans())
        body.append(kind(channels, width, 3, padding=padding, groups=groups, bias=bias))
        channels = width
        if draw(st.booleans()):
            body.append(layer.BatchNorm2d(channels))
        body.append(draw(jelly_neurons()))
    if draw(st.booleans()):
        body.append(layer.AvgPool2d(2))
    net = nn.Sequential(*body, layer.Flatten())
    functional.set_step_mode(net, "m")
    x = x.float()
    features = net(x).shape[-1]
    functional.reset_net(net)
    head = layer.Linear(features, 2, step_mode="m")
    return nn.Sequential(*net, head), x


@st.composite
def torch_networks(draw) -> tuple[nn.Module, torch.Tensor]:
    features = draw(st.integers(1, 5))
    x = torch.randint(0, 2, (draw(st.integers(1, 3)), features)).float()
    body: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 5))
        body += [nn.Linear(features, width), draw(torch_neurons(width))]
        features = width
    return nn.Sequential(*body, nn.Linear(features, 2)), x


def reasons_to_refuse(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, REFUSED_NEURONS)]


def check(model: nn.Module, x: torch.Tensor, config: spq.SpQuantConfig) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", spq.errors.SelfFiringWarning)
            net = spq.convert(model, config, x)
    except spq.errors.UnsupportedModuleError as error:
        refused = [row for row in spq.plan(model, config, x) if row.action == "refuse"]
        assert refused
        assert all(row.path in str(error) and row.reason in str(error) for row in refused)
        allowed = ("dynamics of its own", "not above the rest", "a delayed reset needs a level")
        for row in refused:
            assert any(words in row.reason for words in allowed), row
        return
    except spq.errors.SelectionError as error:
        assert "none was matched" in str(error)
        return
    if config.changes_neurons:
        assert not reasons_to_refuse(model)
        assert any(isinstance(m, QuantizedNeuron) for m in net.modules())
    if config.weights is not None and config.edge_weights is not None:
        assert any(isinstance(m, QuantizedLayer) for m in net.modules())
    out = net(x)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    spq.reset(net)
    net.eval()
    once = net(x)
    spq.reset(net)
    assert torch.equal(net(x), once)
    for module in net.modules():
        if isinstance(module, QuantizedNeuron) and module.membrane is not None:
            check_stored(module)


def check_stored(node: QuantizedNeuron) -> None:
    """The stored membrane is a whole number of units inside the levels."""
    stored = node.v if hasattr(node, "v") else node.mem
    level = (stored - node.rest) / node.membrane_unit
    assert torch.allclose(level, level.round(), atol=1e-4)
    assert level.round().min() >= node.membrane.lowest
    assert level.round().max() <= node.membrane.highest


@settings(max_examples=130, deadline=None, derandomize=True)
@given(jelly_networks(), configs)
def test_spikingjelly(network, config):
    """Eager: nearly each has a rule of its own, and building one takes longer than all of this."""
    with use("eager"):
        check(*network, config)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(jelly_networks(), configs)
def test_spikingjelly_with_what_is_compiled(network, config):
    check(*network, config)


@settings(max_examples=130, deadline=None, derandomize=True)
@given(torch_networks(), configs)
def test_snntorch(network, config):
    check(*network, config)


@pytest.mark.parametrize("kind", REFUSED_NEURONS)
def test_refused_neurons_are_among_them(kind):
    odd = kind(alpha=0.9, beta=0.8) if kind is snn.Alpha else kind()
    with pytest.raises(spq.errors.UnsupportedModuleError, match=f"1 .{kind.__name__}.: "):
        spq.convert(nn.Sequential(nn.Linear(2, 2), odd), spq.presets.quant_snn())
