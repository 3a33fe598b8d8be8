"""Every reference number, through the host's class where the host has those dynamics."""

from __future__ import annotations

import json
import math

import pytest
import snntorch as snn
import torch
from conftest import GOLDEN, close, golden

import spquant_plugin as spq
from spquant_plugin.functional import membrane as fm
from spquant_plugin.functional import surrogate as fs
from spquant_plugin.functional import threshold as ft
from spquant_plugin.functional import weights as fw
from spquant_plugin.snntorch import neuron as st
from spquant_plugin.snntorch.surrogate import triangle
from spquant_plugin.spikingjelly import neuron as sj
from spquant_plugin.spikingjelly.surrogate import StackedSigmoid, Triangle

IMMEDIATE = golden("membrane")
DELAYED = golden("membrane_delayed")


def membrane_of(case: dict) -> spq.config._Membrane:
    low, high = case["levels"][0], case["levels"][-1]
    unit, temperature = case["unit"], case["temperature"]
    if (low, high) == (0, 1):
        return spq.BinaryMembrane(unit=unit, temperature=temperature)
    if case.get("boundaries") == [0.0, 0.5]:
        return spq.TernaryMembrane("eq7", unit=unit, temperature=temperature)
    if (low, high) == (-1, 1):
        return spq.TernaryMembrane(unit=unit, temperature=temperature)
    return spq.UniformMembrane(levels=(low, high), unit=unit, temperature=temperature)


def rule_of(case: dict) -> spq.LearnableThreshold:
    return spq.LearnableThreshold(gradient=case["threshold_gradient"])


def tensors(case: dict, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor(case["x"], dtype=dtype, requires_grad=True)
    return x, torch.tensor(case["grad_spikes"], dtype=dtype)


def check(case: dict, x, threshold, spikes, membranes, potentials=None) -> None:
    assert torch.equal(spikes.double(), torch.tensor(case["spikes"], dtype=torch.float64))
    assert close(membranes, case["membrane"])
    if potentials is not None:
        assert close(potentials, case["pre_fire"])
    assert close(x.grad, case["grad_x"])
    assert close(threshold.grad, case["grad_threshold"])


def host_node(case: dict):
    """The SpikingJelly node with a case's dynamics; None where the host has none such."""
    options = {
        "v_threshold": case["threshold"],
        "v_reset": case["rest"] if case["reset"] == "hard" else None,
        "surrogate_function": Triangle(width=1.0),
        "detach_reset": case["detach_reset"],
        "membrane": membrane_of(case),
        "learnable_threshold": rule_of(case),
    }
    if case["strict"]:
        return None
    if case["decay"] == 1.0:
        return sj.TernaryMembraneIFNode(**options)
    decay_input = case["gain"] != 1.0
    tau = 1 / (1 - case["decay"])
    assert math.isclose(case["gain"], 1 / tau if decay_input else 1.0)
    return sj.TernaryMembraneLIFNode(tau=tau, decay_input=decay_input, **options)


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [c for c in IMMEDIATE if not c["strict"]])
def test_immediate_reset_through_spikingjelly(case, dtype, step_mode, float64):
    torch.set_default_dtype(dtype)
    x, grad = tensors(case, dtype)
    node = host_node(case)
    node.step_mode, node.store_v_seq = step_mode, True
    spikes = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
    (spikes * grad).sum().backward()
    check(case, x, node.v_threshold, spikes.detach(), node.v_seq.detach())


@pytest.mark.parametrize("case", [c for c in IMMEDIATE if c["strict"]])
def test_immediate_reset_through_snntorch(case, float64):
    assert case["gain"] == 1.0
    assert case["rest"] == 0.0
    x, grad = tensors(case, torch.float64)
    lif = st.TernaryLeaky(
        beta=case["decay"],
        threshold=case["threshold"],
        spike_grad=triangle(),
        reset_mechanism={"hard": "zero", "soft": "subtract"}[case["reset"]],
        reset_delay=False,
        membrane=membrane_of(case),
        learnable_threshold=rule_of(case),
    )
    mem = lif.init_leaky()
    train, states = [], []
    for step in x:
        spikes, mem = lif(step, mem)
        train.append(spikes)
        states.append(mem)
    (torch.stack(train) * grad).sum().backward()
    check(case, x, lif.threshold, torch.stack(train).detach(), torch.stack(states).detach())


@pytest.mark.parametrize("case", IMMEDIATE)
def test_immediate_reset_through_functional(case):
    """The same numbers from the equations alone, with the potentials in between."""
    x, grad = tensors(case, torch.float64)
    threshold = torch.tensor(case["threshold"], dtype=torch.float64, requires_grad=True)
    membrane = torch.full_like(x[0], case["rest"]).detach()
    train, potentials, states, left = [], [], [], []
    for current in x:
        u = fm.charge(membrane, current, case["decay"], case["gain"], case["rest"])
        distance = ft.threshold_distance(u, threshold, case["threshold_gradient"])
        s = fs.triangle_spike(distance, 1.0, case["strict"])
        acting = s.detach() if case["detach_reset"] else s
        if case["reset"] == "hard":
            v = fm.hard_reset(u, acting, case["rest"])
        else:
            v = fm.soft_reset(u, acting, threshold.detach())
        membrane = fm.quantize_membrane(
            v,
            case["unit"],
            case["rest"],
            lowest=case["levels"][0],
            highest=case["levels"][-1],
            cut_points=case["boundaries"],
            temperature=case["temperature"],
        )
        for kept, value in ((train, s), (potentials, u), (left, v), (states, membrane)):
            kept.append(value)
    (torch.stack(train) * grad).sum().backward()
    check(
        case,
        x,
        threshold,
        torch.stack(train).detach(),
        torch.stack(states),
        torch.stack(potentials),
    )
    assert close(torch.stack(left), case["post_reset"])


def delayed_neuron(case: dict):
    options = {
        "threshold": case["threshold"],
        "spike_grad": triangle(),
        "membrane": membrane_of(case),
        "learnable_threshold": rule_of(case),
    }
    if case["kind"] == "drop":
        # Lapicque keeps 1 - dt/RC and adds dt/C of the input.
        lapicque = st.TernaryLapicque(beta=0.5, reset_mechanism="zero", **options)
        lapicque.R, lapicque.C = torch.tensor(1 / (1 - case["decay"])), torch.tensor(1.0)
        lapicque.refit()
        return lapicque
    return st.TernaryLeaky(beta=case["decay"], reset_mechanism=case["kind"], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", DELAYED)
def test_delayed_reset(case, dtype, float64):
    torch.set_default_dtype(dtype)
    x, grad = tensors(case, dtype)
    neuron = delayed_neuron(case)
    mem = neuron.reset_mem()
    train, states = [], []
    for step in x:
        spikes, mem = neuron(step, mem)
        train.append(spikes)
        states.append(mem)
    (torch.stack(train) * grad).sum().backward()
    check(case, x, neuron.threshold, torch.stack(train).detach(), torch.stack(states).detach())


@pytest.mark.parametrize("case", [c for c in DELAYED if c["kind"] == "drop"])
@pytest.mark.parametrize("kind", ["RLeaky", "Synaptic", "RSynaptic"])
def test_delayed_drop_of_the_other_neurons(case, kind, float64):
    """With no recurrent weight and no synaptic memory they are the same recurrence."""
    x, grad = tensors(case, torch.float64)
    options = {
        "beta": case["decay"],
        "threshold": case["threshold"],
        "spike_grad": triangle(),
        "reset_mechanism": "zero",
        "membrane": membrane_of(case),
        "learnable_threshold": rule_of(case),
        "init_hidden": True,
        "output": True,
    }
    if kind != "Synaptic":
        options |= {"all_to_all": False, "V": 0.0}
    if kind != "RLeaky":
        options["alpha"] = 0.0
    neuron = getattr(st, f"Ternary{kind}")(**options)
    outputs = [neuron(step) for step in x]
    train = torch.stack([output[0] for output in outputs])
    (train * grad).sum().backward()
    states = torch.stack([output[-1] for output in outputs])
    check(case, x, neuron.threshold, train.detach(), states.detach())


@pytest.mark.parametrize("surrogate", ["functional", "spikingjelly", "snntorch"])
def test_stacked_sigmoid(surrogate):
    case = json.loads((GOLDEN / "stacked_sigmoid.json").read_text())
    v = torch.tensor(case["v"], dtype=torch.float64, requires_grad=True)
    low, high, temperature = case["levels"][0], case["levels"][-1], case["temperature"]
    if surrogate == "functional":
        slope = fs.stacked_slope(v, fm.shifts_of(low, high), temperature=temperature)
        assert close(slope, case["slope"])
        return
    if surrogate == "spikingjelly":
        out = StackedSigmoid(low, high, temperature)(v)
    else:
        from spquant_plugin.snntorch.surrogate import stacked_sigmoid

        out = stacked_sigmoid(low, high, temperature)(v)
    out.sum().backward()
    assert close(v.grad, case["slope"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", golden("power_of_two"))
def test_power_of_two_weights(case, dtype):
    weight = torch.tensor(case["weight"], dtype=dtype)
    make = {"power_of_two": fw.power_of_two_levels, "additive": fw.additive_power_of_two_levels}
    levels = make[case["kind"]](case["bits"])
    assert sorted({*levels, *(-level for level in levels)}) == case["levels"]
    alpha = fw.search_alpha(weight[None], levels)
    assert alpha.item() == case["alpha"]
    quantized = fw.dyadic_quantize(weight[None], alpha[:, None], levels)[0]
    assert quantized.tolist() == torch.tensor(case["quantized"], dtype=dtype).tolist()


@pytest.mark.parametrize("case", golden("power_of_two"))
def test_power_of_two_weights_through_a_layer(case, float64):
    config = {
        "power_of_two": spq.PowerOfTwoWeights,
        "additive": spq.AdditivePowerOfTwoWeights,
    }[case["kind"]]
    layer = torch.nn.Linear(len(case["weight"]), 1, bias=False)
    layer.weight.data = torch.tensor([case["weight"]])
    quantized = spq.convert(
        layer, spq.SpQuantConfig(weights=config(case["bits"]), edge_weights=config(case["bits"]))
    )
    assert quantized(torch.eye(len(case["weight"]))).flatten().tolist() == case["quantized"]


def test_reference_numbers_are_whole():
    assert (len(IMMEDIATE), len(DELAYED), len(golden("power_of_two"))) == (67, 36, 6)
    assert isinstance(st.TernaryLeaky(beta=0.5), snn.Leaky)
