"""Weights that change with the time step in a framework whose layers know no time."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.convert.trace import quiet_copy
from spquant_plugin.errors import TimestepError
from spquant_plugin.snntorch import run
from spquant_plugin.snntorch import surrogate as ours
from spquant_plugin.snntorch.layer import QuantizedLinear
from spquant_plugin.snntorch.step_counter import StepClock, attach

T, N = 4, 3
ARGUMENTS = {
    "Leaky": {"beta": 0.75},
    "Lapicque": {"R": 2.0, "C": 2.0, "time_step": 1.0},
    "Synaptic": {"alpha": 0.5, "beta": 0.75},
    "RLeaky": {"beta": 0.75, "linear_features": 6},
    "RSynaptic": {"alpha": 0.5, "beta": 0.75, "linear_features": 6},
}
RULE = spq.TemporalTernaryWeights(timesteps=T)
CONFIGS = {
    "stock": spq.SpQuantConfig(weights=RULE, edge_weights=RULE),
    "ternary": spq.SpQuantConfig(weights=RULE, edge_weights=RULE, membrane=spq.TernaryMembrane()),
}
UNITS = "ignore::spquant_plugin.errors.SelfFiringWarning"


@pytest.fixture(autouse=True)
def _kept_instances():
    """The host's reset reaches every neuron of the process; those made here go again."""
    before = list(SpikingNeuron.instances)
    yield
    SpikingNeuron.instances[:] = before


def neuron(kind: str, **options) -> nn.Module:
    options = {"spike_grad": ours.triangle(), "threshold": 0.5, **ARGUMENTS[kind], **options}
    return getattr(snn, kind)(**options)


class Explicit(nn.Module):
    """The explicit-state idiom, over a whole sequence and step by step."""

    def __init__(self, kind: str = "Leaky", bias: bool = True, **options) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6, bias), neuron(kind, **options)
        self.fc2, self.lif2 = nn.Linear(6, 6, bias), neuron(kind, **options)

    def start(self) -> list:
        return [as_tuple(self.lif1.reset_mem()), as_tuple(self.lif2.reset_mem())]

    def step(self, x: Tensor, states: list) -> tuple[Tensor, list]:
        spk, one = after(self.lif1, self.lif1(self.fc1(x), *states[0]))
        spk, two = after(self.lif2, self.lif2(self.fc2(spk), *states[1]))
        return spk, [one, two]

    def forward(self, x_seq: Tensor) -> Tensor:
        states, spikes = self.start(), []
        for x in x_seq:
            spk, states = self.step(x, states)
            spikes.append(spk)
        return torch.stack(spikes)


def as_tuple(states) -> tuple:
    return states if isinstance(states, tuple) else (states,)


def after(lif: nn.Module, result: tuple) -> tuple[Tensor, tuple]:
    """Spikes, and the states that the next call takes: recurrent neurons take spikes back."""
    recurrent = isinstance(lif, snn.RLeaky | snn.RSynaptic)
    return result[0], tuple(result) if recurrent else tuple(result[1:])


def hidden(kind: str = "Leaky", bias: bool = True, **options) -> nn.Sequential:
    """The hidden-state idiom: one step per call."""
    return nn.Sequential(
        nn.Linear(5, 6, bias),
        neuron(kind, init_hidden=True, **options),
        nn.Linear(6, 6, bias),
        neuron(kind, init_hidden=True, output=True, **options),
    )


def converted(net: nn.Module, way: str = "stock") -> nn.Module:
    return spq.convert(net, CONFIGS[way])


def inputs(*lead: int) -> Tensor:
    return torch.randint(0, 2, (*(lead or (T, N)), 5)).float()


def loop(net: nn.Module, x_seq: Tensor):
    """What users of the hidden-state idiom write, stacked."""
    results = [net(x) for x in x_seq]
    if isinstance(results[0], Tensor):
        return (torch.stack(results),)
    return tuple(torch.stack(part) for part in zip(*results, strict=True))


def forward(net: nn.Module, x_seq: Tensor) -> tuple:
    """A sequence in either idiom, from rest."""
    if isinstance(net, Explicit):
        return (net(x_seq),)
    spq.reset(net)
    return loop(net, x_seq)


def steps(net: nn.Module) -> list[int]:
    return [m.counter.step for m in net.modules() if getattr(m, "is_temporal", False)]


def same(one: tuple, other: tuple) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Plain(nn.Module):
    """A layer with one plain weight for each step. Somebody else says which step it is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.levels, self.scale = layer.step_weights()
        self.now = 0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.levels[self.now]) * self.scale[self.now] + self.bias


def plain(net: nn.Module) -> nn.Module:
    """The network without counters: a loop has to say the step."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, SpikingNeuron):
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if getattr(child, "is_temporal", False):
                parent._modules[name] = Plain(child)
    return net


def plain_forward(net: nn.Module, x_seq: Tensor) -> tuple:
    spq.reset(net)
    states = net.start() if isinstance(net, Explicit) else None
    results = []
    for now, x in enumerate(x_seq):
        for module in net.modules():
            if isinstance(module, Plain):
                module.now = now
        if states is None:
            results.append(net(x))
        else:
            spk, states = net.step(x, states)
            results.append((spk,))
    return tuple(torch.stack(part) for part in zip(*results, strict=True))


def gradients(net: nn.Module, result: tuple) -> dict[str, Tensor]:
    sum(
        (part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in result
    ).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


# A sequence.


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("idiom", [hidden, Explicit])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_each_step_has_its_own_weight_and_gradient(kind, idiom, way):
    net, x_seq = converted(idiom(kind), way), inputs()
    for _ in range(2):  # from rest, and after a sequence
        slow = plain(net)
        got, want = forward(net, x_seq), plain_forward(slow, x_seq)
        assert same(got, want)
        assert got[0].unique().numel() == 2
        assert set(steps(net)) == {T}
        found, expected = gradients(net, got), gradients(slow, want)
        assert set(found) == set(expected)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, msg=name)
        spq.reset(net)
        net.zero_grad()


@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_a_recurrent_weight_takes_one_step_even_where_the_host_calls_it_twice(kind):
    net = converted(hidden(kind, reset_mechanism="zero"))
    slow, x_seq = plain(net), inputs()
    assert same(forward(net, x_seq), plain_forward(slow, x_seq))
    assert steps(net) == [T] * 4


def test_a_norm_and_a_convolution_between_neurons():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        neuron("Leaky", init_hidden=True),
        nn.Conv2d(4, 4, 3),
        neuron("Leaky", init_hidden=True),
    ).eval()
    net, x_seq = converted(net), torch.randint(0, 2, (T, N, 2, 6, 6)).float()
    assert (got := forward(net, x_seq))[0].any()
    spq.reset(net)
    assert same(got, (run(net, x_seq),))


# Where a sequence begins.

RESETS = {
    "spq.reset": lambda net, states: spq.reset(net),
    "utils.reset": lambda net, states: utils.reset(net),
    "reset_mem": lambda net, states: [m.reset_mem() for m in net.modules() if is_lif(m)],
}


def is_lif(module: nn.Module) -> bool:
    return isinstance(module, SpikingNeuron)


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("ran", [1, 2, T])
@pytest.mark.parametrize("reset", RESETS)
def test_every_reset_begins_anew_also_amid_a_sequence(reset, ran, way):
    net, x_seq = converted(hidden(), way), inputs()
    want = forward(net, x_seq)
    spq.reset(net)
    loop(net, x_seq[:ran])
    RESETS[reset](net, None)
    assert same(loop(net, x_seq), want)


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("ran", [1, 2, T])
def test_explicit_states_from_the_neuron_begin_anew_also_amid_a_sequence(ran, way):
    net, x_seq = converted(Explicit(), way), inputs()
    want = net(x_seq)
    states = net.start()
    for x in x_seq[:ran]:
        _, states = net.step(x, states)
    assert torch.equal(net(x_seq), want)
    assert torch.equal(net(x_seq), want)


def test_a_layer_behind_the_first_neuron_alone_hears_it_too():
    net = spq.convert(hidden(), spq.presets.tawq(T, overrides={"2": CONFIGS["stock"]}))
    assert type(net[0]) is nn.Linear
    x_seq = inputs()
    want = forward(net, x_seq)
    for ran in (1, 2, T):
        spq.reset(net)
        loop(net, x_seq[:ran])
        utils.reset(net)
        assert same(loop(net, x_seq), want)
    copied = spq.convert(net, spq.SpQuantConfig())  # with the graph of its states
    assert not copied[1].mem.any()
    assert same(loop(copied, x_seq), want)


def test_another_batch_after_a_reset_is_no_fault():
    net = converted(hidden())
    assert forward(net, inputs(T, 5))[0].shape == (T, 5, 6)
    assert forward(net, inputs(T, 2))[0].shape == (T, 2, 6)


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("idiom", [hidden, Explicit])
def test_one_step_too_many_is_an_error_with_the_remedies(idiom, way):
    net, x_seq = converted(idiom(), way), inputs(T + 1, N)
    first, lif = ("0", "1") if idiom is hidden else ("fc1", "lif1")
    kind = type(net.get_submodule(lif)).__name__
    with pytest.raises(TimestepError) as error:
        forward(net, x_seq)
    assert f"{first} (QuantizedLinear) received step 5 of a sequence of 4 steps" in str(error.value)
    assert f"no reset of {lif} ({kind}) was heard" in str(error.value)
    remedies = f"spq.reset(model), snntorch.utils.reset(net) or {lif}.init_leaky()"
    assert remedies in str(error.value)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_the_remedy_names_a_method_that_the_neuron_has(kind):
    net = converted(hidden(kind))
    remedy = net[0].counter.clock.remedies()
    assert callable(getattr(net[1], re.search(r"1\.(init_\w+)\(\)", remedy)[1]))


# Membranes from elsewhere.


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_zeros_made_by_hand_amid_a_sequence_are_an_error(kind, way):
    net, x_seq = converted(Explicit(kind), way), inputs()

    def by_hand() -> list:
        return [tuple(torch.zeros(N, 6) for _ in state) for state in net.start()]

    want = net(x_seq)
    states = by_hand()  # calls start() as well, so this is heard
    spikes = []
    for x in x_seq:
        spk, states = net.step(x, states)
        spikes.append(spk)
    assert torch.equal(torch.stack(spikes), want)
    states = net.start()
    for x in x_seq[:2]:
        _, states = net.step(x, states)
    zeros = [tuple(torch.zeros(N, 6) for _ in state) for state in states]
    message = r"lif1 \(.*\): received a membrane of zeros that it did not leave, after 2 steps"
    with pytest.raises(TimestepError, match=message):
        net.step(x_seq[0], zeros)
    assert torch.equal(net(x_seq), want)


def test_zeros_made_by_hand_for_a_whole_sequence_are_heard_too_late():
    net, x_seq = converted(Explicit()), inputs()
    net(x_seq)
    zeros = [(torch.zeros(N, 6),), (torch.zeros(N, 6),)]
    with pytest.raises(TimestepError, match="membranes made by hand cannot be heard"):
        net.step(x_seq[0], zeros)


@pytest.mark.parametrize("idiom", [hidden, Explicit])
def test_another_batch_amid_a_sequence_is_an_error(idiom):
    net = converted(idiom())
    states = [(None,), (None,)]

    def call(x: Tensor) -> None:
        nonlocal states
        if idiom is hidden:
            net(x)
        else:
            _, states = net.step(x, states)

    call(inputs(N))
    call(inputs(N))
    message = r"received an input of shape \(5, 6\) for a membrane of another shape, \(3, 6\)"
    with pytest.raises(TimestepError, match=message):
        call(inputs(5))


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("how", ["detach", "clone", "in place"])
def test_membranes_that_go_on_in_another_tensor(how, way):
    """Truncated backpropagation detaches; a clone goes on, too, where it holds anything."""
    net, x_seq = converted(Explicit(), way), inputs()
    net.lif1.threshold.fill_(2.0)  # charged at all times
    with torch.no_grad():
        net.fc1.bias.fill_(0.5)
    want, states, spikes = net(x_seq), net.start(), []
    change = {"detach": Tensor.detach, "clone": lambda m: m.detach().clone()}.get(how)
    for x in x_seq:
        if change is not None:
            states = [tuple(change(m) for m in state) for state in states]
        elif spikes:
            snn.Leaky.detach_hidden()
        spk, states = net.step(x, states)
        spk.sum().backward()
        spikes.append(spk)
        states = [tuple(m.detach_() for m in state) for state in states]
    assert torch.equal(torch.stack(spikes), want)


def test_a_silent_membrane_that_is_detached_goes_on():
    net = converted(Explicit(bias=False))
    states = net.start()
    for x in torch.zeros(T, N, 5):
        states = [tuple(m.detach() for m in state) for state in states]
        _, states = net.step(x, states)
    assert not states[0][0].any()
    assert steps(net) == [T, T]


def test_a_weight_that_changes_amid_a_sequence_is_quantised_anew():
    net, x_seq = converted(hidden()), inputs()
    forward(net, x_seq)
    spq.reset(net)
    loop(net, x_seq[:2])
    with torch.no_grad():
        net[0].weight.neg_()
    spk = net[0](x_seq[2])
    levels, scale = net[0].step_weights()
    assert torch.equal(spk, F.linear(x_seq[2], levels[2]) * scale[2] + net[0].bias)


def test_a_model_that_moves_amid_a_sequence_goes_on():
    net, x_seq = converted(hidden()), inputs()
    loop(net, x_seq[:2])
    assert net[1].mem.any()
    net.double()
    loop(net, x_seq[2:].double())
    assert steps(net) == [T, T]


class Shared(nn.Module):
    """One neuron for three layers, each with a membrane of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(3))
        self.lif = neuron("Leaky", beta=0.5)

    def forward(self, x_seq: Tensor) -> Tensor:
        membranes, spikes = [self.lif.init_leaky() for _ in range(3)], []
        for spk in x_seq:
            for k, fc in enumerate(self.fcs):
                spk, membranes[k] = self.lif(fc(spk), membranes[k])
            spikes.append(spk)
        return torch.stack(spikes)


@pytest.mark.parametrize("kept", [(), ("fcs.0",)], ids=["all", "all but the first"])
def test_a_neuron_that_layers_share_is_not_blamed_for_silent_membranes(kept):
    net = spq.convert(
        Shared(), dataclasses.replace(CONFIGS["stock"], overrides=dict.fromkeys(kept))
    )
    x_seq = torch.zeros(T, N, 6)
    x_seq[-1] = 1.0
    want = net(x_seq)
    assert torch.equal(net(x_seq), want)
    assert steps(net) == [T] * (3 - len(kept))


# Copies and other models.


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_by_itself(how, way):
    net, x_seq = converted(hidden(), way), inputs()
    want = forward(net, x_seq)
    spq.reset(net)
    with torch.no_grad():
        loop(net, x_seq[:2])
    copied = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    assert copied[0].counter.clock.neuron is copied[1]
    assert copied[0].counter.clock is copied[2].counter.clock is not net[0].counter.clock
    spq.reset(net)
    assert steps(net) == [0, 0]
    assert steps(copied) == [2, 2]
    rest = loop(copied, x_seq[2:])
    assert all(torch.equal(part, whole[2:]) for part, whole in zip(rest, want, strict=True))
    assert same(loop(net, x_seq), want)
    spq.reset(copied)
    assert same(loop(copied, x_seq), want)


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
def test_the_hosts_reset_begins_another_model_anew_where_it_clears_its_neurons(way):
    one, other, x_seq = converted(hidden(), way), converted(hidden(), way), inputs()
    want = forward(other, x_seq)
    spq.reset(other)
    loop(other, x_seq[:2])
    loop(one, x_seq[:3])
    spq.reset(one)  # this model only
    assert steps(other) == [2, 2]
    utils.reset(one)  # every Leaky of the process
    assert same(loop(other, x_seq), want)


def test_a_conversion_amid_a_sequence_begins_anew():
    net, x_seq = converted(hidden()), inputs()
    loop(net, x_seq[:2])
    again = spq.convert(net, spq.SpQuantConfig(surrogate=spq.Triangle()))
    assert type(again[1]).__name__ == "TernaryLeaky"
    assert steps(net) == [2, 2]
    assert steps(again) == [0, 0]
    kept = spq.convert(net, spq.SpQuantConfig())  # with neurons and layers as they are
    assert steps(kept) == [0, 0]
    assert not kept[1].mem.any()
    assert same(loop(kept, x_seq), forward(kept, x_seq))
    for _ in range(2):
        utils.reset(again)
        loop(again, x_seq)
    assert again[0].counter.clock.neuron is again[1]
    with pytest.raises(TimestepError):
        again(x_seq[0])
    loop(net, x_seq[2:])


def test_a_dry_run_counts_too():
    net = converted(hidden(bias=False))
    with quiet_copy(net) as copied:
        loop(copied, torch.zeros(2, N, 5))
        assert steps(copied) == [2, 2]
    assert steps(net) == [0, 0]


def test_attaching_twice_changes_nothing():
    net = converted(hidden())
    counter, clock = net[0].counter, net[0].counter.clock
    attach(net[0], net)
    assert net[0].counter is counter
    assert len(clock._counters) == 2
    assert len([m for m in net.modules() if isinstance(m, StepClock)]) == 1


def test_the_state_dict_has_no_counters():
    assert set(converted(hidden()).state_dict()) == set(hidden().state_dict())


def test_data_parallel_is_refused():
    net = converted(hidden())
    with pytest.raises(TimestepError, match=r"1 \(Leaky\): nn.DataParallel copies modules"):
        net[0].counter.clock._replicate_for_data_parallel()


@pytest.mark.parametrize("net", [nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6))], ids=["layers"])
def test_a_model_without_a_neuron_is_refused(net):
    assert "no neuron" in str(spq.plan(net, CONFIGS["stock"]))
    attach(net[0], net)  # nothing to listen to
    assert not hasattr(net[0], "counter")


def test_a_model_without_timesteps_is_refused_with_the_remedy():
    rule = spq.TemporalTernaryWeights()
    table = spq.plan(hidden(), spq.SpQuantConfig(weights=rule, edge_weights=rule), inputs()[0])
    assert "Give TemporalTernaryWeights(timesteps=...)" in str(table)


class Short(nn.Module):
    """One layer and two steps, since every step is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = QuantizedLinear(5, 6, weights=spq.TemporalTernaryWeights(timesteps=2))
        self.lif = neuron("Leaky")

    def forward(self, x_seq: Tensor) -> Tensor:
        mem, spikes = self.lif.init_leaky(), []
        for x in x_seq:
            spk, mem = self.lif(self.fc(x), mem)
            spikes.append(spk)
        return torch.stack(spikes)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
def test_a_compiled_network_counts_without_a_break():
    net, x_seq = Short(), inputs(2, N)
    attach(net.fc, net)
    want = net(x_seq)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x_seq), want)
        assert steps(net) == [2]
    torch._dynamo.reset()


# All steps at once.


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_run_gives_and_leaves_what_the_loop_does(kind, way):
    net, x_seq = converted(hidden(kind), way), inputs()
    other = copy.deepcopy(net)
    want, got = forward(net, x_seq), run(other, x_seq)
    assert same(got, want)
    expected, found = gradients(net, want), gradients(other, got)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, msg=name)
    assert torch.equal(other[3].mem, net[3].mem)
    assert steps(other) == steps(net)
    for go_on in (
        lambda: other(x_seq[0]),
        lambda: run(other, x_seq),
        lambda: run(other, x_seq[:1]),
    ):
        with pytest.raises(TimestepError, match="received step 5 of a sequence of 4"):
            go_on()
    spq.reset(other)
    assert same(run(other, x_seq), want)


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("first", [run, loop])
@pytest.mark.parametrize("then", [run, loop])
def test_runs_and_loops_go_on_from_each_other(first, then, way):
    net, x_seq = converted(hidden(), way), inputs()
    want = forward(net, x_seq)
    spq.reset(net)
    parts = first(net, x_seq[:1]), then(net, x_seq[1:3]), first(net, x_seq[3:])
    assert same(tuple(torch.cat(part) for part in zip(*parts, strict=True)), want)
    assert steps(net) == [T, T]


@pytest.mark.filterwarnings(UNITS)
@pytest.mark.parametrize("way", CONFIGS)
def test_a_silent_run_is_no_reset(way):
    net = converted(hidden(bias=False), way)
    run(net, torch.zeros(2, N, 5))
    assert not net[1].mem.any()
    net(torch.zeros(N, 5))
    assert steps(net) == [3, 3]


def test_a_run_beyond_the_last_step_is_an_error():
    net = converted(hidden())
    with pytest.raises(TimestepError, match=r"0 .QuantizedLinear. received step 5 of a sequence"):
        run(net, inputs(T + 1, N))


def test_a_run_gives_a_layer_all_steps_and_fuses_the_clocks_neuron(monkeypatch):
    net = converted(hidden(), "ternary")
    calls = []
    for module in (net[0], net[2]):
        monkeypatch.setattr(module, "forward_steps", counted(module.forward_steps, calls))
    for module in (net[1], net[3]):
        monkeypatch.setattr(module, "run_sequence", counted(module.run_sequence, calls))
    run(net, inputs())
    assert len(calls) == 4


def counted(function, calls: list):
    def told(*args, **options):
        calls.append(function)
        return function(*args, **options)

    return told


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_gates_behind_such_layers_act_in_each_step(source):
    config = spq.SpQuantConfig(
        weights=RULE,
        edge_weights=RULE,
        membrane=spq.TernaryMembrane(),
        channel_gate=spq.ChannelGate(0.5, source=source),
    )
    net = nn.Sequential(
        nn.Linear(5, 6),
        neuron("Leaky", init_hidden=True),
        nn.Linear(6, 6),
        neuron("Leaky", init_hidden=True),
        nn.Linear(6, 6),
        neuron("Leaky", init_hidden=True),
    )
    net, x_seq = spq.convert(net, config, inputs()[0]), inputs()
    torch.nn.init.normal_(net[2].channel_gate.weight)
    want = forward(net, x_seq)
    spq.reset(net)
    assert same((run(net, x_seq),), want)
    assert net[2].channel_gate.closed_fraction() > 0


def test_a_layer_that_runs_twice_in_a_step_keeps_its_order():
    layer = QuantizedLinear(6, 6, weights=RULE)
    lif = [neuron("Leaky", init_hidden=True) for _ in range(2)]
    net = nn.Sequential(layer, lif[0], layer, lif[1])
    attach(layer, net)
    x_seq = torch.randint(0, 2, (2, N, 6)).float()
    want = loop(net, x_seq)
    spq.reset(net)
    assert same((run(net, x_seq),), want)
    assert layer.counter.step == 4


def test_a_block_that_is_not_known_runs_step_by_step():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 6), neuron("Leaky", init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x)) + x

    net = nn.Sequential(nn.Linear(5, 6), neuron("Leaky", init_hidden=True), Block(), Block())
    net, x_seq = converted(net), inputs()
    want = forward(net, x_seq)
    spq.reset(net)
    assert same((run(net, x_seq),), want)
    assert steps(net) == [T] * 3
