"""snnTorch models through conversion: the host's traps, and the life of a converted network."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch as snn
import torch
from networks import Loop, snn_torch
from snntorch import utils
from snntorch._neurons.neurons import SpikingNeuron
from snntorch.functional.quant import state_quant
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer
from spquant_plugin.snntorch import neuron as st
from spquant_plugin.snntorch.layer import QuantizedConv2d, QuantizedLinear, QuantizedOneToOne
from spquant_plugin.snntorch.surrogate import ATan, Triangle

MEMBRANE = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
QUANT = spq.presets.quant_snn(weight_bits=2)
ADAPTIVE = spq.presets.quant_snn(weight_bits=4, adaptive=True)
STEPS = 6


@pytest.fixture(autouse=True)
def _kept_instances():
    """Some neurons made here have no membrane, and the host's reset of any other then raises."""
    before = list(SpikingNeuron.instances)
    yield
    SpikingNeuron.instances[:] = before


# --- networks: each takes a whole sequence, however it keeps its states --------------------------


class Hidden(nn.Module):
    """Runs a net of hidden states over time, from rest."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        spq.reset(self.net)
        return torch.stack([first(self.net(step)) for step in x])


class Recurrent(nn.Module):
    """RLeaky, all to all, its spikes and membrane handed round."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.RLeaky(beta=0.8, linear_features=6)
        self.fc2, self.lif2 = nn.Linear(6, 2), snn.RLeaky(beta=0.8, all_to_all=False, V=0.5)

    def forward(self, x: Tensor) -> Tensor:
        spk1, mem1 = self.lif1.init_rleaky()
        spk2, mem2 = self.lif2.init_rleaky()
        record = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), spk2, mem2)
            record.append(spk2)
        return torch.stack(record)


class Synapses(nn.Module):
    """Synaptic and RSynaptic, explicit states."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Synaptic(alpha=0.3, beta=0.5)
        self.fc2 = nn.Linear(6, 6)
        self.lif2 = snn.RSynaptic(alpha=0.3, beta=0.5, linear_features=6)
        self.fc3 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        syn1, mem1 = self.lif1.init_synaptic()
        spk2, syn2, mem2 = self.lif2.init_rsynaptic()
        record = []
        for step in x:
            spk1, syn1, mem1 = self.lif1(self.fc1(step), syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), spk2, syn2, mem2)
            record.append(self.fc3(spk2))
        return torch.stack(record)


class Listed(nn.Module):
    """Neurons in a ModuleList, and deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6)])
        self.neurons = nn.ModuleList(
            [snn.Leaky(beta=0.9), snn.Leaky(beta=0.5, reset_mechanism="zero")]
        )
        self.head = nn.ModuleDict(
            {"deep": nn.Sequential(nn.Linear(6, 2), snn.Lapicque(R=2.0, C=1.0, init_hidden=True))}
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [lif.reset_mem() for lif in self.neurons]
        self.head["deep"][1].reset_mem()
        record = []
        for step in x:
            for k, (fc, lif) in enumerate(zip(self.layers, self.neurons, strict=True)):
                step, states[k] = lif(fc(step), states[k])
            record.append(self.head["deep"](step))
        return torch.stack(record)


class ConvRecurrent(nn.Module):
    """A convolution that recurs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.lif = snn.RLeaky(
            beta=0.8, conv2d_channels=3, kernel_size=3, init_hidden=True, reset_mechanism="zero"
        )
        self.fc = nn.Linear(3 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_mem()
        return torch.stack([self.fc(self.lif(self.conv(step)).flatten(1)) for step in x])


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def lively(model: nn.Module) -> nn.Module:
    """With weights that make the neurons fire: a silent network would agree with anything."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.uniform_(-0.4, 2.0).mul_(3.0 / fan_in)
    return model


NETS = {
    "hidden": lambda: Hidden(snn_torch()),
    "loop": Loop,
    "recurrent": Recurrent,
    "synapses": Synapses,
    "listed": Listed,
    "conv-recurrent": ConvRecurrent,
}


def sample_for(name: str) -> Tensor:
    return events(STEPS, 4, 2, 4, 4) if name == "conv-recurrent" else events(STEPS, 4, 5)


@pytest.fixture(params=NETS)
def case(request):
    return lively(NETS[request.param]()), sample_for(request.param)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def enlisted(module: nn.Module) -> int:
    return sum(instance is module for instance in SpikingNeuron.instances)


def host_neurons(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, SpikingNeuron)]


# --- the life of a converted network ------------------------------------------------------------


@pytest.mark.parametrize("config", [QUANT, ADAPTIVE], ids=["quant", "adaptive"])
def test_a_converted_network_trains_resets_copies_pickles_and_round_trips(case, config):
    model, sample = case
    net = spq.convert(model, config, sample)
    assert all(isinstance(m, QuantizedNeuron) for m in host_neurons(net))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    (net(sample) - 1).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(before[name], p)}
    assert {name for name in before if name.endswith("weight")} <= changed

    spq.reset(net)
    net.eval()
    expected = net(sample).detach()
    assert len(expected.unique()) > 1
    spq.reset(net)
    assert torch.equal(net(sample), expected)

    spq.reset(net)
    twins = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        spq.convert(model, config, sample),
    ]
    twins[2].eval().load_state_dict(net.state_dict())
    for twin in twins:
        assert torch.equal(twin(sample), expected)
        assert list(twin.state_dict()) == list(net.state_dict())

    with torch.autocast("cpu", torch.bfloat16):
        assert net(sample).isfinite().all()
    for module in host_neurons(net):
        assert module.mem.dtype == torch.float32


@torch.no_grad()  # dynamo itself warns where a state that is handed in has a graph
def test_a_converted_network_compiles_without_graph_break(case):
    model, sample = case
    net = spq.convert(model, ADAPTIVE, sample).eval()
    part = sample[:2]
    expected = net(part)
    assert len(expected.unique()) > 1
    spq.reset(net)
    torch._dynamo.reset()
    if isinstance(net, Hidden):  # the loop and its reset are the user's; one step is the network
        one_step = torch.compile(net.net, backend="eager", fullgraph=True)
        result = torch.stack([first(one_step(step)) for step in part.unbind(0)])
    else:
        result = torch.compile(net, backend="eager", fullgraph=True)(part)
    torch._dynamo.reset()
    assert torch.equal(result, expected)


def test_membranes_stay_on_their_levels(case):
    model, sample = case
    net = spq.convert(model, MEMBRANE, sample)
    net(sample)
    assert any(module.mem.any() for module in host_neurons(net))
    for module in host_neurons(net):
        levels = module.mem / module.membrane_unit
        assert torch.equal(levels, levels.round())
        assert levels.abs().max() <= 1


def test_keys_of_the_host_stay_and_ours_are_the_unit_and_bounds(case):
    model, _ = case
    old = set(model.state_dict())
    paths = [path for path, m in model.named_modules() if isinstance(m, SpikingNeuron)]
    assert paths
    assert set(spq.convert(model, MEMBRANE).state_dict()) - old == {
        f"{path}.membrane_unit" for path in paths
    }
    learning = spq.SpQuantConfig(threshold=spq.LearnableThreshold())
    net = spq.convert(model, learning)
    assert set(net.state_dict()) - old == {f"{path}.threshold_bounds" for path in paths}
    assert old <= set(net.state_dict())
    assert all(f"{path}.threshold" in dict(net.named_parameters()) for path in paths)


def test_a_float_checkpoint_of_the_host_loads(case):
    model, sample = case
    net = spq.convert(model, QUANT, sample)
    for parameter in model.parameters():
        parameter.data *= 1.5
    assert spq.load_float_state_dict(net, model.state_dict())
    fresh = spq.convert(model, QUANT, sample)
    assert torch.equal(net.eval()(sample), fresh.eval()(sample))


def test_every_module_appears_in_the_plan(case):
    model, sample = case
    plan = spq.plan(model, QUANT, sample)
    rows = {row.path for row in plan}
    holding = {
        path
        for path, module in model.named_modules()
        if (module._parameters or module._buffers or not list(module.children())) and path
    }
    assert holding <= rows
    assert str(plan)


# --- trap 1: the reset that the user chose ------------------------------------------------------


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_trap_1_conversion_never_changes_the_reset(reset, delay):
    model = nn.Sequential(snn.Leaky(beta=0.5, reset_mechanism=reset, reset_delay=delay))
    new = spq.convert(model, MEMBRANE)[0]
    assert (new.reset_mechanism, new.reset_delay) == (reset, delay)
    assert new.reset_mechanism_val == SpikingNeuron.reset_dict[reset]


def test_trap_1_a_delayed_zero_is_the_immediate_one_of_leaky():
    """The published recurrence: whichever way one counts the reset, the spikes are the same."""
    x = torch.randn(50, 4, 6) * 1.5
    trains = []
    for delay in (True, False):
        neuron = snn.Leaky(beta=0.5, reset_mechanism="zero", reset_delay=delay, init_hidden=True)
        net = spq.convert(nn.Sequential(neuron), MEMBRANE)
        trains.append(torch.stack([net(step) for step in x]))
    assert 0 < trains[0].mean() < 1
    assert torch.equal(*trains)


# --- trap 3: state_quant ------------------------------------------------------------------------


def test_trap_3_state_quant_is_refused_with_path_and_remedy():
    model = nn.ModuleDict({"a": nn.Sequential(snn.Leaky(0.5, state_quant=state_quant(num_bits=2)))})
    assert spq.plan(model, MEMBRANE)["a.0"].action == "refuse"
    with pytest.raises(spq.errors.UnsupportedModuleError) as caught:
        spq.convert(model, MEMBRANE)
    for word in ("a.0 (Leaky)", "state_quant", "quantised twice", "state_quant=False", "exclude"):
        assert word in str(caught.value)


def test_trap_3_the_spike_path_meets_one_surrogate_only(float64):
    net = spq.convert(
        nn.Sequential(snn.Leaky(beta=0.5, init_hidden=True)),
        spq.SpQuantConfig(membrane=spq.TernaryMembrane(), surrogate=spq.Triangle()),
    )
    u = (torch.rand(4, 6) * 2).requires_grad_()
    net(u).sum().backward()
    assert torch.allclose(u.grad, (1 - (u.detach() - 1).abs()).clamp(min=0), rtol=1e-12)


# --- trap 4: gradients at a bound ---------------------------------------------------------------


def test_trap_4_a_saturated_membrane_still_learns(float64):
    net = spq.convert(nn.Sequential(snn.Leaky(0.5, init_hidden=True, output=True)), MEMBRANE)
    for value in (1.0, 1.5, -1.0, -2.5):
        spq.reset(net)
        u = torch.tensor([[value]], requires_grad=True)
        _, mem = net(u)
        assert abs(mem.item()) == 1
        mem.sum().backward()
        rise = [torch.sigmoid(torch.tensor(2 * (value - shift))).item() for shift in (-0.5, 0.5)]
        assert u.grad.item() == pytest.approx(sum(2 * r * (1 - r) for r in rise), abs=1e-12)


# --- trap 5: the host's list of instances -------------------------------------------------------


def run_hidden(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([first(net(step)) for step in x])


def converted_and_copies() -> dict[str, nn.Module]:
    model = lively(snn_torch())
    net = spq.convert(model, QUANT).eval()
    return {
        "converted": net,
        "deep copy": copy.deepcopy(net),
        "copy of a copy": copy.deepcopy(copy.deepcopy(net)),
        "pickled": pickle.loads(pickle.dumps(net)),
        "in place": spq.convert_(copy.deepcopy(model), QUANT).eval(),
    }


def test_trap_5_the_host_reset_reaches_converted_networks_and_their_copies():
    x = events(6, 4, 5)
    for name, net in converted_and_copies().items():
        before = run_hidden(net, x)
        assert before.sum() > 0, name
        utils.reset(net)
        assert all((m.mem == 0).all() for m in host_neurons(net)), name
        assert torch.equal(run_hidden(net, x), before), name


def test_trap_5_our_reset_reaches_exactly_one_network():
    x = events(6, 4, 5)
    nets = converted_and_copies()
    for net in nets.values():
        run_hidden(net, x)
    for name, net in nets.items():
        others = [m for other in nets.values() if other is not net for m in host_neurons(other)]
        held = [m.mem.clone() for m in others]
        assert any(m.mem.any() for m in host_neurons(net)), name
        spq.reset(net)
        assert not any(m.mem.any() or m.fired.any() for m in host_neurons(net)), name
        assert all(torch.equal(m.mem, mem) for m, mem in zip(others, held, strict=True)), name
        run_hidden(net, x)


def test_trap_5_the_host_reset_and_ours_reach_float_networks_too():
    float_net, x = lively(snn_torch()), events(6, 4, 5)
    before = run_hidden(float_net, x)
    assert before.sum() > 0
    spq.reset(float_net)
    assert torch.equal(run_hidden(float_net, x), before)


def test_trap_5_the_list_holds_each_neuron_of_a_conversion_once():
    for net in converted_and_copies().values():
        assert [enlisted(m) for m in host_neurons(net)] == [1, 1, 1]


def test_trap_5_conversion_in_place_takes_replaced_neurons_off_the_list():
    model = snn_torch()
    old = host_neurons(model)
    assert [enlisted(m) for m in old] == [1, 1, 1]
    spq.convert_(model, QUANT, events(4, 5))
    assert [enlisted(m) for m in old] == [0, 0, 0]


def test_trap_5_a_copying_conversion_leaves_the_original_on_the_list():
    model = snn_torch()
    spq.convert(model, QUANT, events(4, 5))
    assert [enlisted(m) for m in host_neurons(model)] == [1, 1, 1]


@pytest.mark.parametrize("given", [False, True], ids=["without sample", "with sample"])
def test_trap_5_the_list_does_not_leak(given):
    model = snn_torch()
    sample = events(4, 5) if given else None
    before = list(SpikingNeuron.instances)
    spq.plan(model, QUANT, sample)
    assert [id(i) for i in SpikingNeuron.instances] == [id(i) for i in before]
    net = spq.convert(model, QUANT, sample)
    added = [i for i in SpikingNeuron.instances if all(i is not b for b in before)]
    assert {id(i) for i in added} == {id(m) for m in host_neurons(net)}
    assert len(SpikingNeuron.instances) == len(before) + 3


@pytest.mark.parametrize(
    ("odd", "config"),
    [
        (lambda: snn.Alpha(0.9, 0.8), QUANT),
        (lambda: snn.Leaky(0.5), spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=9.0))),
        (lambda: snn.Leaky(0.5, state_quant=state_quant(num_bits=2)), MEMBRANE),
        (lambda: snn.Leaky(0.5, threshold=0.0), MEMBRANE),
    ],
    ids=["kind", "unit", "state_quant", "threshold"],
)
def test_trap_5_a_refused_conversion_does_not_leak(odd, config):
    model = nn.Sequential(nn.Linear(5, 5), snn.Leaky(0.5), odd(), nn.Linear(5, 2))
    before = [id(instance) for instance in SpikingNeuron.instances]
    with pytest.raises(spq.errors.UnsupportedModuleError):
        spq.convert(model, config)
    assert [id(instance) for instance in SpikingNeuron.instances] == before


# --- trap 6: rebuilt through __init__ -----------------------------------------------------------


def options_of_every_kind() -> dict[str, nn.Module]:
    own = {"threshold": 0.7, "learn_threshold": True, "reset_mechanism": "zero"}
    return {
        "Leaky": snn.Leaky(
            torch.rand(6), learn_beta=True, graded_spikes_factor=0.5,
            learn_graded_spikes_factor=True, reset_delay=False, **own,
        ),
        "Lapicque": snn.Lapicque(R=5.1, C=0.7, time_step=0.3, **own),
        "Synaptic": snn.Synaptic(torch.rand(6), 0.8, learn_alpha=True, learn_beta=True, **own),
        "RLeaky": snn.RLeaky(0.8, linear_features=6, learn_beta=True, reset_delay=False, **own),
        "RSynaptic": snn.RSynaptic(0.7, 0.8, all_to_all=False, V=torch.rand(6), **own),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic"])
def test_trap_6_a_rebuilt_neuron_keeps_everything_of_the_old_one(kind):
    old = options_of_every_kind()[kind].double().eval()
    calls: list[str] = []
    old.register_forward_hook(lambda *_: calls.append("after"))
    old.register_forward_pre_hook(lambda *_: calls.append("before"))
    for parameter in old.parameters():
        parameter.requires_grad_(kind != "RLeaky")
    model = nn.Sequential(old)
    parameters, buffers = dict(old.named_parameters()), dict(old.named_buffers())
    children = dict(old.named_children())
    spq.convert_(model, MEMBRANE)
    new = model[0]
    assert type(new) is getattr(st, f"Ternary{kind}")
    assert dict(new.named_parameters()).keys() == parameters.keys()
    assert all(dict(new.named_parameters())[name] is p for name, p in parameters.items())
    assert all(p.requires_grad == (kind != "RLeaky") for p in new.parameters())
    for name in old.state_dict():
        if name in buffers:
            assert dict(new.named_buffers())[name] is buffers[name]
    for name, child in children.items():
        assert getattr(new, name) is child
    assert not new.training
    for name in ("reset_mechanism", "init_hidden", "output", "inhibition", "spike_grad"):
        assert getattr(new, name) == getattr(old, name)
    assert getattr(new, "reset_delay", True) == getattr(old, "reset_delay", True)
    new(torch.randn(2, 6, dtype=torch.float64))
    assert calls == ["before", "after"]


@pytest.mark.parametrize("kind", ["Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic"])
def test_trap_6_a_rebuilt_neuron_has_the_precision_of_the_old_one(kind):
    old = options_of_every_kind()[kind].double()
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(), threshold=spq.LearnableThreshold())
    state = spq.convert(old, config).state_dict()
    assert {"membrane_unit", "threshold_bounds"} <= set(state)
    assert {n: v.dtype for n, v in state.items() if v.is_floating_point()} == {
        n: torch.float64 for n, v in state.items() if v.is_floating_point()
    }


@pytest.mark.parametrize("kind", ["Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic"])
def test_trap_6_a_surrogate_alone_leaves_spikes_and_states_as_they_were(kind):
    old = options_of_every_kind()[kind]
    old.init_hidden = old.output = True
    new = spq.convert(old, spq.SpQuantConfig(surrogate=spq.Triangle(2.0)))
    assert isinstance(new.spike_grad, Triangle)
    assert new.spike_grad.width == 2.0
    x = torch.rand(20, 3, 6) * 0.5
    with torch.no_grad():
        for step in x:
            for theirs, mine in zip(old(step), new(step), strict=True):
                assert torch.allclose(theirs, mine, atol=1e-6)


def test_trap_6_an_optimizer_made_before_an_in_place_conversion_still_holds():
    model = snn_torch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spq.convert_(model, QUANT)
    before = model[0].weight.detach().clone()
    (first(model(events(4, 5) * 3)) - 1).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_trap_6_one_threshold_tied_between_neurons_stays_tied():
    model = nn.Sequential(
        nn.Linear(3, 3),
        snn.Leaky(0.5, learn_threshold=True, init_hidden=True),
        nn.Linear(3, 3),
        snn.Leaky(0.5, learn_threshold=True, init_hidden=True),
    )
    model[3].threshold = model[1].threshold
    net = spq.convert(model, ADAPTIVE)
    assert net[3].threshold is net[1].threshold
    assert net[1].threshold is not model[1].threshold


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trap_6_conversion_goes_to_the_device_of_the_neuron():
    net = spq.convert(snn_torch().cuda(), ADAPTIVE, events(4, 5).cuda())
    assert {v.device.type for v in net.state_dict().values()} == {"cuda"}
    assert first(net(events(4, 5).cuda())).device.type == "cuda"


# --- trap 7: states of another shape, closures --------------------------------------------------


def test_trap_7_a_last_smaller_batch_starts_anew():
    net = spq.convert(lively(snn_torch()), QUANT).eval()
    x = events(4, 6, 5)
    expected = run_hidden(net, x[:, :3])
    assert expected.sum() > 0
    run_hidden(net, x)
    assert torch.equal(run_hidden(net, x[:, :3]), expected)


@pytest.mark.parametrize("kind", [snn.Leaky, snn.Lapicque])
def test_a_surrogate_that_is_a_module_gives_way_to_the_configuration(kind):
    """The host keeps it among a neuron's children, which conversion carries over."""
    net = nn.Sequential(nn.Linear(3, 2), kind(beta=0.5, spike_grad=ATan(3.0), init_hidden=True))
    kept = spq.convert(net, MEMBRANE)
    assert (type(kept[1].spike_grad), kept[1].spike_grad.alpha) == (ATan, 3.0)
    replaced = spq.convert(net, spq.SpQuantConfig(surrogate=spq.Triangle(0.5)))
    assert (type(replaced[1].spike_grad), replaced[1].spike_grad.width) == (Triangle, 0.5)
    assert type(net[1].spike_grad) is ATan


def test_trap_7_a_closure_of_the_host_does_not_pickle_and_our_surrogate_does():
    net = spq.convert(snn_torch(), MEMBRANE)
    with pytest.raises(Exception, match=r"local object|Can't pickle"):
        pickle.dumps(net)
    pickle.loads(pickle.dumps(spq.convert(snn_torch(), QUANT)))


def test_trap_7_copies_after_a_forward_with_gradient():
    """As in the host, deepcopy refuses a running graph until a reset; pickle does not."""
    for model in (snn_torch(), spq.convert(snn_torch(), QUANT)):
        first(model(events(4, 5) * 3))
        with pytest.raises(RuntimeError, match="graph leaves"):
            copy.deepcopy(model)
        spq.reset(model)
        copy.deepcopy(model)
    net, x = spq.convert(lively(snn_torch()), QUANT), events(4, 5)
    net(x)
    twin = pickle.loads(pickle.dumps(net))
    assert torch.equal(first(twin(x)), first(net(x)))


# --- trap 8: by exact type; recurrent weights ---------------------------------------------------


class Mine(snn.Leaky):
    """A neuron of the user's own, whose dynamics nobody knows."""


REFUSED = {
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8),
    "SLSTM": lambda: snn.SLSTM(5, 5),
    "SConv2dLSTM": lambda: snn.SConv2dLSTM(2, 2, 3),
    "DeltaLeaky": lambda: snn.DeltaLeaky(beta=0.5),
    "StateLeaky": lambda: snn.StateLeaky(beta=0.5, channels=5),
    "LinearLeaky": lambda: snn.LinearLeaky(
        beta=torch.full((5,), 0.5), in_features=5, out_features=5
    ),
    "AssociativeLeaky": lambda: snn.AssociativeLeaky(5, 4, 4, 16),
    "LeakyParallel": lambda: snn.LeakyParallel(5, 5),
    "Mine": lambda: Mine(beta=0.5),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_trap_8_other_neurons_are_refused_by_path_and_type(kind):
    model = nn.Sequential(
        nn.Linear(5, 5), snn.Leaky(0.5), nn.ModuleDict({"odd": REFUSED[kind]()}), nn.Linear(5, 2)
    )
    plan = spq.plan(model, QUANT)
    assert plan["2.odd"].action == "refuse"
    with pytest.raises(spq.errors.UnsupportedModuleError) as caught:
        spq.convert(model, QUANT)
    message = str(caught.value)
    for word in (f"2.odd ({kind})", "of its own", "Leaky, Lapicque, Synaptic", "exclude"):
        assert word in message
    net = spq.convert(model, QUANT, exclude="2.odd")
    assert type(net[2]["odd"]) is type(model[2]["odd"])
    assert isinstance(net[1], st.TernaryLeaky)


def test_trap_8_recurrent_weights_have_a_row_and_are_hidden_layers():
    plan = spq.plan(Recurrent(), QUANT, events(STEPS, 4, 5))
    assert plan["lif1.recurrent"].action == "quantize"
    assert plan["lif1.recurrent"].bits == "2"
    assert plan["lif2.recurrent"].action == "quantize"
    assert plan["lif2.recurrent"].bits == "2"
    # Neither is the first or last layer of the network, without a sample either.
    for given in (plan, spq.plan(Recurrent(), QUANT)):
        assert {row.path: row.bits for row in given if row.action == "quantize"} == {
            "fc1": "8",
            "fc2": "8",
            "lif1.recurrent": "2",
            "lif2.recurrent": "2",
        }
    last = nn.Sequential(nn.Linear(5, 6), snn.Leaky(0.5), nn.Linear(6, 6), snn.RLeaky(
        0.5, linear_features=6))  # fmt: skip
    bits = {row.path: row.bits for row in spq.plan(last, QUANT) if row.action == "quantize"}
    assert bits == {"0": "8", "2": "8", "3.recurrent": "2"}


def test_trap_8_recurrent_weights_lie_on_their_levels():
    net = spq.convert(Recurrent(), QUANT, events(STEPS, 4, 5)).eval()
    assert type(net.lif1.recurrent) is QuantizedLinear
    x = torch.eye(6)
    weight = (net.lif1.recurrent(x) - net.lif1.recurrent.bias).detach().T
    for row in weight:
        magnitudes = {round(v, 6) for v in row.abs().tolist()} - {0.0}
        assert len(magnitudes) <= 1
    conv = spq.convert(ConvRecurrent(), QUANT)
    assert type(conv.lif.recurrent) is QuantizedConv2d


def test_trap_8_the_one_to_one_weight_is_quantised_and_keeps_its_key():
    value = torch.tensor([0.9, -1.1, 0.05, 0.5])
    model = snn.RLeaky(0.5, all_to_all=False, V=value.clone(), init_hidden=True)
    config = spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights())
    net = spq.convert(model, config)
    assert type(net.recurrent) is QuantizedOneToOne
    assert set(model.state_dict()) <= set(net.state_dict())
    big = value[value.abs() > 0.05 * 1.1].abs().mean()
    used = net.recurrent(torch.ones(4)).detach()
    assert torch.allclose(used, value.sign() * big * (value.abs() > 0.05 * 1.1), atol=1e-6)
    net.recurrent(torch.ones(4)).sum().backward()
    assert net.recurrent.V.grad.abs().sum() > 0
    assert torch.equal(net.recurrent.V, value)


@pytest.mark.parametrize("kind", [snn.RLeaky, snn.RSynaptic])
def test_trap_8_the_one_to_one_weight_stays_one_parameter(kind):
    given = {"alpha": 0.5} if kind is snn.RSynaptic else {}
    model = nn.Sequential(
        nn.Linear(4, 4), kind(beta=0.5, all_to_all=False, V=torch.rand(4), **given)
    )
    assert model[1].V is model[1].recurrent.V
    net = spq.convert(model, QUANT)
    assert net[1].V is net[1].recurrent.V
    assert isinstance(net[1].V, nn.Parameter)
    assert len(list(net.parameters())) == len(list(model.parameters()))
    net[1].V.data.fill_(0.0)
    assert net[1].recurrent(torch.ones(4)).tolist() == [0.0] * 4


# --- trap 10: what must be imported -------------------------------------------------------------


def test_trap_10_conversion_needs_no_utils_of_the_host():
    script = (
        "import sys, torch, snntorch as snn, spquant_plugin as spq\n"
        "net = torch.nn.Sequential(torch.nn.Linear(2, 2), snn.Leaky(0.5, init_hidden=True))\n"
        "net = spq.convert(net, spq.presets.quant_snn(), torch.ones(1, 2))\n"
        "net(torch.ones(1, 2)); spq.reset(net)\n"
        "assert 'snntorch.utils' not in sys.modules\n"
        "assert 'spikingjelly' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- trap 11: inhibition ------------------------------------------------------------------------


def test_trap_11_inhibition_survives_and_is_not_warned_about_twice():
    with pytest.warns(UserWarning, match="Inhibition is an unstable feature"):
        model = nn.Sequential(snn.Leaky(0.5, inhibition=True, init_hidden=True))
    net = spq.convert(model, MEMBRANE)  # warnings are errors here
    assert net[0].inhibition
    spikes = run_hidden(net, torch.rand(10, 3, 6) * 3)
    assert spikes.sum(-1).max() == 1


# --- thresholds and units through conversion ----------------------------------------------------


def test_a_unit_too_coarse_for_a_delayed_reset_is_refused_with_the_path():
    model = nn.ModuleDict({"stem": nn.Sequential(nn.Linear(2, 2), snn.Leaky(0.5))})
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=4.0))
    with pytest.raises(spq.errors.UnsupportedModuleError) as caught:
        spq.convert(model, config)
    for word in ("stem.1 (Leaky)", "threshold 1", "level 0 of unit 4", "smaller unit"):
        assert word in str(caught.value)
    for other in (snn.Leaky(0.5, reset_delay=False), snn.Leaky(0.5, reset_mechanism="none")):
        spq.convert(nn.Sequential(other), config)


def test_self_firing_is_warned_about_once_per_layer_and_only_above_the_threshold():
    model = nn.Sequential(snn.Leaky(1.0), snn.Leaky(0.5), snn.Lapicque(beta=0.99))
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.2))
    with pytest.warns(spq.errors.SelfFiringWarning) as caught:
        spq.convert(model, config)
    texts = [str(warning.message) for warning in caught]
    assert [text.split(":")[0] for text in texts] == ["0", "2"]
    assert "1 * 1 * unit 1.2 reaches the threshold 1" in texts[0]
    assert texts[0].endswith("Use a unit below 1.")
    on_it = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.0))
    assert "fires without input" not in spq.plan(model, on_it)["0"].reason


def test_thresholds_per_channel_follow_the_sample():
    config = spq.SpQuantConfig(threshold=spq.LearnableThreshold(per_channel=True))
    net = spq.convert(ConvRecurrent(), config, events(STEPS, 4, 2, 4, 4))
    assert net.lif.threshold.shape == (3,)
    assert net.lif.threshold_bounds.shape == (2, 3)
    net(events(STEPS, 4, 2, 4, 4)).square().sum().backward()
    assert net.lif.threshold.grad.shape == (3,)
    with pytest.raises(spq.errors.SpQuantError, match="number of channels"):
        spq.convert(ConvRecurrent(), config)


def test_a_learning_threshold_of_the_host_keeps_its_parameter():
    model = nn.Sequential(snn.Leaky(0.5, learn_threshold=True, init_hidden=True))
    old = model[0].threshold
    spq.convert_(model, spq.SpQuantConfig(threshold=spq.LearnableThreshold()))
    assert model[0].threshold is old
    model(torch.rand(3, 4) * 2).sum().backward()
    assert old.grad is not None


def test_synaptic_says_that_its_current_stays_in_float():
    plan = spq.plan(Synapses(), QUANT)
    net = spq.convert(Synapses(), QUANT)
    for path in ("lif1", "lif2"):
        assert "syn stays float32" in plan[path].reason
        assert "syn float32" in spq.status(net)[path].details
    assert "syn" not in spq.plan(Loop(), QUANT)["lif1"].reason


def test_layers_of_every_kind_are_quantised_ones_afterwards(case):
    model, sample = case
    net = spq.convert(model, QUANT, sample)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert isinstance(net.get_submodule(path), QuantizedLayer), path
            assert isinstance(net.get_submodule(path), type(module)), path


def test_trap_9_the_exporter_would_take_ours_for_plain_neurons_and_the_pages_say_so():
    """``export_to_nir`` asks ``isinstance`` only, and NIR has no word for a quantised membrane."""
    assert issubclass(st.TernaryLeaky, snn.Leaky)
    page = Path(__file__).parents[2] / "docs/how-to/troubleshooting.rst"
    assert "export_to_nir" in page.read_text()


# --- a loss that reads the membrane -------------------------------------------------------------


def _reasons(net: nn.Module, sample: torch.Tensor | None, **fields) -> dict[str, str]:
    plan = spq.plan(net, spq.SpQuantConfig(**fields), sample=sample)
    return {row.path: row.reason for row in plan if "Leaky" in row.type}


def test_the_plan_warns_of_the_last_neuron_whose_membrane_a_loss_may_read():
    net = nn.Sequential(
        *(nn.Linear(6, 5), snn.RLeaky(beta=0.5, linear_features=5, init_hidden=True)),
        *(nn.Linear(5, 4), snn.Leaky(beta=0.5, init_hidden=True, output=True)),
    )
    x = torch.ones(2, 6)
    said = "last neuron: a loss that reads its membrane sees 3 levels"
    reasons = _reasons(net, x, membrane=spq.TernaryMembrane())
    assert said in reasons["3"]
    assert "last neuron" not in reasons["1"]
    assert "sees 16 levels" in _reasons(net, x, membrane=spq.UniformMembrane(4))["3"]
    # Nothing is said where no sample tells the order, where the membrane stays in float, or where
    # a layer follows.
    assert "last neuron" not in _reasons(net, None, membrane=spq.TernaryMembrane())["3"]
    assert "last neuron" not in _reasons(net, x, threshold=spq.LearnableThreshold())["3"]
    followed = nn.Sequential(*net[:2], nn.Linear(5, 4))
    assert "last neuron" not in _reasons(followed, x, membrane=spq.TernaryMembrane())["1"]
    # The recurrent layer of a last neuron reads it, but is a part of it; a lone neuron is the last.
    assert said in _reasons(net[:2], x, membrane=spq.TernaryMembrane())["1"]
    assert said in _reasons(snn.Leaky(beta=0.5), x, membrane=spq.TernaryMembrane())[""]
    # With explicit states a neuron reads its own membrane.
    loop = _reasons(Loop(), torch.ones(6, 3, 5), membrane=spq.TernaryMembrane())
    assert {path: said in reason for path, reason in loop.items()} == {"lif1": False, "lif2": True}
