"""Surrogates in the host's form: steps, slopes, primitives, and life inside the host's nodes."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import surrogate as host
from spikingjelly.activation_based.distributed import vision
from spikingjelly.activation_based.distributed.vision import config as vision_config
from torch import Tensor

from spquant_plugin.spikingjelly import surrogate

STACKED = (
    surrogate.StackedSigmoid,
    surrogate.StackedArctan,
    surrogate.StackedTriangle,
    surrogate.StackedPiecewise,
)
ALL = (surrogate.Triangle, surrogate.GradientPenaltyWindow, *STACKED)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(function: host.SurrogateFunctionBase, x: float) -> float:
    """Slope at ``x``, from the printed equations."""
    if isinstance(function, (surrogate.Triangle, surrogate.GradientPenaltyWindow)):
        triangle = max(0.0, function.width - abs(x)) / function.width**2
        window = sigmoid(x) if x >= 0 else 0.0
        return triangle if isinstance(function, surrogate.Triangle) else triangle * window
    t = function.temperature
    bump = {
        "sigmoid": lambda d: t * sigmoid(t * d) * (1 - sigmoid(t * d)),
        "arctan": lambda d: t / 2 / (1 + (math.pi / 2 * t * d) ** 2),
        "triangle": lambda d: max(0.0, 2 / t - abs(d)) * t**2 / 4,
        "piecewise": lambda d: t / 4 if abs(d) <= 2 / t else 0.0,
    }[function.shape]
    return sum(bump(x - k - 0.5) for k in range(function.lowest, function.highest))


def cases() -> list:
    plain = [(kind, {}) for kind in ALL]
    set_up = [(kind, {"lowest": -3, "highest": 2, "temperature": 3.0}) for kind in STACKED]
    wide = [(kind, {"width": 2.5}) for kind in ALL[:2]]
    return [
        pytest.param(kind, options, id=f"{kind.__name__} {options or ''}".strip())
        for kind, options in plain + set_up + wide
    ]


def grid() -> Tensor:
    """Points off every kink, from one end of the levels to the other."""
    return torch.linspace(-4.013, 4.017, 241, dtype=torch.float64)


def gradient(function: host.SurrogateFunctionBase, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    function(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("kind", ALL[:2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_firing_starts_on_the_threshold(kind, dtype):
    x = torch.tensor([-1.0, -(2.0**-14), 0.0, 2.0**-14, 1.0], dtype=dtype)
    spikes = kind()(x)
    assert spikes.tolist() == [0, 0, 1, 1, 1]
    assert spikes.dtype == dtype


@pytest.mark.parametrize("kind", STACKED)
def test_levels_and_ties(kind):
    x = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.5, 0.75, 1.5, 9.0])
    assert kind()(x).tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    assert kind(0, 2)(x).tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert kind(cut_points=(0.0, 0.5))(x).tolist() == [-1, -1, -1, -1, 0, 1, 1, 1]


@pytest.mark.parametrize(("kind", "options"), cases())
def test_the_gradient_is_the_printed_slope(kind, options):
    function = kind(**options)
    want = torch.tensor([slope(function, x) for x in grid().tolist()], dtype=torch.float64)
    assert want.max() > 0.1
    torch.testing.assert_close(gradient(function, grid()), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "options"), cases())
def test_the_primitive_is_the_integral_of_the_slope(kind, options):
    """By its own gradient, and by midpoint sums between any two points."""
    smooth = kind(**options, spiking=False)
    torch.testing.assert_close(
        gradient(smooth, grid()), gradient(kind(**options), grid()), rtol=1e-9, atol=1e-11
    )
    start, end, parts = -1.3, 1.7, 20000
    step = (end - start) / parts
    area = step * sum(slope(smooth, start + (i + 0.5) * step) for i in range(parts))
    rise = smooth(torch.tensor([start, end], dtype=torch.float64)).diff()
    assert rise.item() == pytest.approx(area, abs=1e-4)


@pytest.mark.parametrize("kind", STACKED)
def test_the_smooth_staircase_joins_the_outermost_levels(kind):
    ends = kind(-2, 3, spiking=False)(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    torch.testing.assert_close(
        ends, torch.tensor([-2.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "options"), cases())
def test_copies_and_pickles(kind, options):
    function = kind(**options)
    for other in (copy.deepcopy(function), pickle.loads(pickle.dumps(function))):
        assert repr(other) == repr(function)
        assert torch.equal(other(grid()), function(grid()))


@pytest.mark.parametrize("kind", ALL)
def test_it_is_a_surrogate_of_the_host(kind):
    function = kind()
    assert isinstance(function, host.SurrogateFunctionBase)
    assert not list(function.parameters())
    assert not function.state_dict()
    x = grid().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)(x)
    compiled.sum().backward()
    assert torch.equal(compiled, function(x))
    assert torch.equal(x.grad, gradient(function, grid()))
    function.set_spiking_mode(False)
    assert not torch.equal(function(x), compiled)


@pytest.mark.parametrize("kind", ALL[:2])
def test_the_host_registers_and_builds_it(kind):
    vision.register_surrogate_class(kind)
    path = f"{kind.__module__}.{kind.__qualname__}"
    settings = vision.NeuronConfig(
        "spikingjelly.activation_based.neuron.LIFNode", {}, path, {"width": 0.5}
    )
    node, kwargs = vision_config._resolve_neuron_config(settings)
    assert node(**kwargs).surrogate_function.width == 0.5
    vision_config._SURROGATE_REGISTRY.pop(path)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", ALL[:2])
def test_the_nodes_of_the_host_take_it_in_both_modes(kind, detach):
    """A stock LIF node: h = v + (x - v) / 2, with every gradient path written out."""
    x = (torch.randn(5, 40, dtype=torch.float64) * 2 + 1).requires_grad_()
    found = []
    for step_mode in ("s", "m"):
        node = neuron.LIFNode(surrogate_function=kind(), detach_reset=detach, step_mode=step_mode)
        spikes = functional.multi_step_forward(x, node) if step_mode == "s" else node(x)
        (grad,) = torch.autograd.grad(spikes.sum() + node.v.sum(), x)
        found.append((spikes.detach(), grad))
    v, train = torch.zeros(40, dtype=torch.float64), []
    for step in x:
        h = v + (step - v) / 2
        d = (h - 1).detach()
        rise = torch.tensor([slope(kind(), value) for value in d.tolist()], dtype=torch.float64)
        s = (d >= 0).double() + rise * (h - h.detach())
        v = h * (1 - (s.detach() if detach else s))
        train.append(s)
    spikes = torch.stack(train)
    (want,) = torch.autograd.grad(spikes.sum() + v.sum(), x)
    assert 0.1 < spikes.mean() < 0.9
    for got, grad in found:
        assert torch.equal(got, spikes)
        torch.testing.assert_close(grad, want, rtol=1e-10, atol=1e-12)
