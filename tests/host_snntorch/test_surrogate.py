"""snnTorch surrogates: what they give forward, which slope they follow, and that they travel."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from spquant_plugin.snntorch import neuron as st
from spquant_plugin.snntorch import surrogate

FIRING = {
    "triangle": surrogate.Triangle,
    "gradient_penalty_window": surrogate.GradientPenaltyWindow,
}
STACKED = {
    "stacked_sigmoid": surrogate.StackedSigmoid,
    "stacked_arctan": surrogate.StackedArctan,
    "stacked_triangle": surrogate.StackedTriangle,
    "stacked_piecewise": surrogate.StackedPiecewise,
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def triangle(x: float, width: float) -> float:
    return max(0.0, width - abs(x)) / width**2


def window(x: float, width: float) -> float:
    return triangle(x, width) * sigmoid(x) * (x >= 0)


def bump(shape: str, x: float, temperature: float) -> float:
    if shape == "stacked_sigmoid":
        return temperature * sigmoid(temperature * x) * (1 - sigmoid(temperature * x))
    if shape == "stacked_arctan":
        return temperature / 2 / (1 + (math.pi / 2 * temperature * x) ** 2)
    if shape == "stacked_triangle":
        return triangle(x, 2 / temperature)
    return temperature / 4 * (abs(x) <= 2 / temperature)


def slope(module: nn.Module, x: Tensor) -> Tensor:
    given = x.clone().requires_grad_()
    module(given).sum().backward()
    return given.grad


@pytest.mark.parametrize("width", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("name", "expected"), [("triangle", triangle), ("gradient_penalty_window", window)]
)
def test_firing_is_strict_and_follows_its_slope(name, expected, width, float64):
    spike_grad = getattr(surrogate, name)(width)
    assert type(spike_grad) is FIRING[name]
    x = torch.cat([torch.randn(200), torch.tensor([0.0, width, -width, 1e-12, -1e-12])])
    assert torch.equal(spike_grad(x), torch.tensor([float(v > 0) for v in x.tolist()]))
    want = torch.tensor([expected(v, width) for v in x.tolist()])
    assert torch.allclose(slope(spike_grad, x), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [2.0, 1.0, 4.0])
@pytest.mark.parametrize("levels", [(-1, 1), (0, 1), (-4, 3)])
@pytest.mark.parametrize("name", STACKED)
def test_stacked_quantisers_round_and_follow_one_bump_per_boundary(
    name, levels, temperature, float64
):
    quantizer = getattr(surrogate, name)(*levels, temperature)
    assert type(quantizer) is STACKED[name]
    cuts = [level + 0.5 for level in range(*levels)]
    x = torch.cat([torch.randn(200) * 3, torch.tensor(cuts)])  # a tie goes down
    want = [levels[0] + sum(v > cut for cut in cuts) for v in x.tolist()]
    assert quantizer(x).tolist() == want
    off_edges = x[:200]
    want = [sum(bump(name, v - cut, temperature) for cut in cuts) for v in off_edges.tolist()]
    assert torch.allclose(slope(quantizer, off_edges), torch.tensor(want), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STACKED)
def test_a_stacked_slope_climbs_as_many_steps_as_there_are(name, float64):
    x = torch.linspace(-400, 400, 1_600_001)
    area = slope(getattr(surrogate, name)(-2, 1), x).sum() * (x[1] - x[0])
    assert area == pytest.approx(3.0, abs=5e-3)


def test_boundaries_may_lie_elsewhere():
    quantizer = surrogate.StackedSigmoid(-1, 1, cut_points=(0.0, 0.5))
    x = torch.tensor([-0.4, 0.0, 0.1, 0.5, 0.6])
    assert quantizer(x).tolist() == [-1, -1, 0, 0, 1]


@pytest.mark.parametrize("name", [*FIRING, *STACKED])
def test_surrogates_pickle_and_copy_where_the_host_closures_do_not(name):
    with pytest.raises(Exception, match=r"local object|Can't pickle"):
        pickle.dumps(snn.surrogate.atan())
    made = getattr(surrogate, name)() if name in FIRING else getattr(surrogate, name)(-3, 2, 1.5)
    x = torch.randn(50) * 2
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert torch.equal(twin(x), made(x))
        assert torch.equal(slope(twin, x), slope(made, x))
        assert repr(twin) == repr(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*FIRING, *STACKED])
def test_surrogates_keep_the_precision_of_their_input(name, dtype):
    made = getattr(surrogate, name)()
    x = torch.randn(20).to(dtype)
    assert made(x).dtype == dtype
    assert slope(made, x).dtype == dtype
    assert slope(made, x).isfinite().all()


@pytest.mark.parametrize("name", FIRING)
def test_a_firing_surrogate_serves_host_and_converted_neurons_alike(name, float64):
    spike_grad = getattr(surrogate, name)()
    twins = (
        snn.Leaky(beta=0.5, spike_grad=spike_grad, learn_beta=True),
        st.TernaryLeaky(beta=0.5, spike_grad=spike_grad, learn_beta=True, membrane=None),
    )
    x = torch.randn(10, 3, 4)
    results = []
    for neuron in twins:
        mem, train = neuron.init_leaky(), []
        for step in x:
            spk, mem = neuron(step, mem)
            train.append(spk)
        torch.stack(train).sum().backward()
        results.append((torch.stack(train).detach(), neuron.beta.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-12)
    assert results[0][1] != 0


def test_a_stacked_quantiser_serves_as_state_quant_of_a_host_neuron():
    lif = snn.Leaky(beta=0.5, state_quant=surrogate.stacked_sigmoid(), reset_mechanism="none")
    mem = lif.init_leaky()
    seen = set()
    for step in torch.randn(30, 2, 4):
        _, mem = lif(step, mem)
        seen |= set(mem.unique().tolist())
    assert seen == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("name", ["triangle", "stacked_sigmoid"])
def test_a_surrogate_compiles_without_graph_break(name):
    torch._dynamo.reset()
    made = getattr(surrogate, name)()
    x = torch.randn(20)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), made(x))
    torch._dynamo.reset()
