"""snnTorch's neurons with our membrane: the host's own dynamics, and the equations in a loop."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch.functional.quant import state_quant
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.snntorch import neuron as st
from spquant_plugin.snntorch.surrogate import triangle

KINDS = ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
RESETS = ("subtract", "zero", "none")
# Lapicque resets late only.
DELAYS = [
    (kind, delay)
    for kind in KINDS
    for delay in (True, False)
    if (kind, delay) != ("Lapicque", False)
]
INIT = {
    "Leaky": "init_leaky",
    "Lapicque": "init_lapicque",
    "Synaptic": "init_synaptic",
    "RLeaky": "init_rleaky",
    "RSynaptic": "init_rsynaptic",
}
FEATURES = 5


def recurrent(kind: str) -> bool:
    return kind.startswith("R")


def arguments(kind: str, **options) -> dict:
    """Constructor arguments that give every kind the same kind of dynamics."""
    base: dict = {"beta": 0.8}
    if kind.endswith("Synaptic"):
        base["alpha"] = 0.6
    if recurrent(kind) and not {"conv2d_channels", "V"} & set(options):
        base["linear_features"] = FEATURES
    return base | options


def ours(kind: str, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Inhibition is an unstable feature")
        return getattr(st, f"Ternary{kind}")(**arguments(kind, **options))


def pair(kind: str, **options) -> tuple[nn.Module, nn.Module]:
    """The host's neuron and ours with a float membrane, with the same numbers inside.

    The host's surrogates give float32 spikes, which its recurrent layers refuse in double
    precision; and thresholds must be exact in float32, because it rounds them with its spikes.
    """
    if torch.get_default_dtype() == torch.float64:
        options = {"spike_grad": triangle()} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Inhibition is an unstable feature")
        theirs = getattr(snn, kind)(**copy.deepcopy(arguments(kind, **options)))
    twin = ours(kind, **copy.deepcopy(options), membrane=None)
    twin.load_state_dict(theirs.state_dict())
    return theirs, twin


def as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def loop(kind: str, neuron: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The explicit-state idiom: spikes and every state, stacked over time."""
    state = as_tuple(neuron.reset_mem())
    results = []
    for step in x:
        result = neuron(step, *state)
        state = result if recurrent(kind) else result[1:]
        results.append(result)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def hidden_loop(neuron: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The hidden-state idiom, with ``output=True``."""
    return tuple(torch.stack(p) for p in zip(*[neuron(step) for step in x], strict=True))


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(
        p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(a, b, strict=True)
    )


def gradients_agree(a: nn.Module, b: nn.Module) -> bool:
    """To 1e-10 relative in double precision, for every parameter that has a gradient."""
    theirs, mine = dict(a.named_parameters()), dict(b.named_parameters())
    assert set(theirs) == set(mine)
    assert theirs
    return all(
        (theirs[name].grad - mine[name].grad).abs().max()
        <= 1e-10 * (1 + theirs[name].grad.abs().max())
        for name in theirs
    )


# --- with a float membrane: the host's neuron, exactly ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_float_membrane_is_the_host_neuron(kind, reset, dtype, float64):
    torch.set_default_dtype(dtype)
    theirs, mine = pair(kind, reset_mechanism=reset, threshold=0.25)
    x = torch.randn(60, 4, FEATURES) * (0.4 if reset == "none" else 1.0)
    expected = loop(kind, theirs, x)
    assert 0 < expected[0].mean() < 1
    assert same(loop(kind, mine, x), expected)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic", "RLeaky"])
def test_float_membrane_with_an_immediate_reset_is_the_host_neuron(kind, reset, float64):
    """As far as the host resets once: above two thresholds it resets again, one step later."""
    theirs, mine = pair(kind, reset_mechanism=reset, threshold=0.75, reset_delay=False)
    for parameter in theirs.recurrent.parameters() if recurrent(kind) else ():
        parameter.data *= 0.1
    mine.load_state_dict(theirs.state_dict())
    if reset == "none":
        x = torch.rand(60, 4, FEATURES) - 0.4
    else:
        x = torch.rand(60, 4, FEATURES) * 0.5 - 0.1
    expected = loop(kind, theirs, x)
    assert 0 < expected[0].mean() < 1
    if reset != "none":
        assert expected[-1].max() <= 0.75
    assert same(loop(kind, mine, x), expected)


@pytest.mark.parametrize(
    ("beta", "resistor", "capacitor", "time_step"),
    [(0.8, False, False, 1), (0.6, 5.0, False, 1), (0.6, False, 3.0, 1), (False, 5.1, 0.7, 0.3)],
)
@pytest.mark.parametrize("reset", RESETS)
def test_lapicque_takes_any_circuit(reset, beta, resistor, capacitor, time_step, float64):
    circuit = {"beta": beta, "R": resistor, "C": capacitor, "time_step": time_step}
    theirs, mine = pair("Lapicque", reset_mechanism=reset, threshold=0.25, **circuit)
    x = torch.randn(40, 3, FEATURES)
    expected = loop("Lapicque", theirs, x)
    assert 0 < expected[0].mean() < 1
    assert same(loop("Lapicque", mine, x), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"conv2d_channels": 2, "kernel_size": 3},
        {"conv2d_channels": 2, "kernel_size": (3, 5)},
        {"all_to_all": False, "V": 0.4},
        {"all_to_all": False, "V": torch.rand(6)},
        {"all_to_all": False, "V": 0.4, "learn_recurrent": False},
    ],
    ids=["conv2d", "conv2d-pair", "one-to-one", "one-to-one-vector", "fixed"],
)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_every_recurrent_connection_is_the_host_one(kind, reset, options, float64):
    options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    theirs, mine = pair(kind, reset_mechanism=reset, **options)
    x = torch.randn(25, 2, 2, 4, 6)
    expected = loop(kind, theirs, x)
    assert 0 < expected[0].mean() < 1
    assert same(loop(kind, mine, x), expected)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_inhibition_fires_one_and_resets_all_above_the_threshold(kind, reset, float64):
    theirs, mine = pair(kind, reset_mechanism=reset, inhibition=True, threshold=0.25)
    x = torch.randn(40, 3, FEATURES)
    expected = loop(kind, theirs, x)
    assert expected[0].sum(-1).max() == 1
    assert ((expected[-1] > 0.25).sum(-1) > 1).any()
    assert same(loop(kind, mine, x), expected)


@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_graded_spikes_are_the_host_ones(kind, reset, inhibition, float64):
    theirs, mine = pair(kind, reset_mechanism=reset, inhibition=inhibition, threshold=0.25)
    for neuron in (theirs, mine):
        neuron.graded_spikes_factor = torch.tensor(0.375)
    x = torch.randn(40, 3, FEATURES)
    expected = loop(kind, theirs, x)
    assert set(expected[0].unique().tolist()) == {0.0, 1.0 if inhibition else 0.375}
    assert same(loop(kind, mine, x), expected)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    # The host's RSynaptic raises with an immediate reset.
    ("kind", "delay"),
    [pair for pair in DELAYS if pair != ("RSynaptic", False)],
)
def test_learned_numbers_get_the_host_gradients(kind, reset, delay, float64):
    options: dict = {"learn_threshold": True, "reset_mechanism": reset, "threshold": 0.75}
    if kind != "Lapicque":
        options["learn_beta"] = True
    if kind == "Leaky":
        options |= {"learn_graded_spikes_factor": True, "graded_spikes_factor": 0.75}
    if kind.endswith("Synaptic"):
        options["learn_alpha"] = True
    if not delay:
        options["reset_delay"] = False
    theirs, mine = pair(kind, **options)
    x = torch.rand(20, 3, FEATURES) * 0.5 - 0.1 if not delay else torch.randn(20, 3, FEATURES)
    weight = torch.randn(20, 3, FEATURES)
    gradients = []
    for neuron in (theirs, mine):
        given = x.clone().requires_grad_()
        spikes, *states = loop(kind, neuron, given)
        ((spikes * weight).sum() + states[-1].square().sum()).backward()
        gradients.append(given.grad)
    assert theirs.threshold.grad != 0
    assert gradients_agree(theirs, mine)
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_beta_and_one_threshold_per_neuron(kind, reset, learn, float64):
    options: dict = {
        "threshold": torch.rand(FEATURES) + 0.5,
        "learn_threshold": learn,
        "reset_mechanism": reset,
    }
    if kind != "Lapicque":
        options |= {"beta": torch.rand(FEATURES) * 1.5 - 0.2, "learn_beta": learn}
    theirs, mine = pair(kind, **options)
    x = torch.randn(40, 3, FEATURES)
    expected, result = loop(kind, theirs, x), loop(kind, mine, x)
    assert same(result, expected)
    if learn:
        for output in (expected, result):
            (output[0].sum() + output[-1].square().sum()).backward()
        assert gradients_agree(theirs, mine)


def test_the_host_surrogate_may_be_switched_off():
    theirs, mine = pair("Leaky", surrogate_disable=True)
    x = torch.randn(30, 2, FEATURES)
    assert same(loop("Leaky", mine, x), loop("Leaky", theirs, x))


# --- the host's way of being called -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_and_arity_are_the_host_ones(kind):
    mine, theirs = getattr(st, f"Ternary{kind}"), getattr(snn, kind)
    assert issubclass(mine, theirs)
    listed = [list(inspect.signature(c.forward).parameters.items()) for c in (mine, theirs)]
    assert [(n, p.default, p.kind) for n, p in listed[0]] == [
        (n, p.default, p.kind) for n, p in listed[1]
    ]
    x = torch.randn(2, FEATURES)
    for hidden in (False, True):
        for output in (False, True):
            options = {"init_hidden": hidden, "output": output}
            twins = getattr(snn, kind)(**arguments(kind, **options)), ours(kind, **options)
            a, b = (neuron(x) for neuron in twins)
            assert type(a) is type(b)
            assert len(as_tuple(a)) == len(as_tuple(b))
            a, b = (as_tuple(neuron.reset_mem()) for neuron in twins)
            assert [s.shape for s in a] == [s.shape for s in b]
            a, b = (as_tuple(getattr(neuron, INIT[kind])()) for neuron in twins)
            assert [s.shape for s in a] == [s.shape for s in b]


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_may_be_positional_as_in_the_host(kind):
    given = (0.6, 0.8) if kind.endswith("Synaptic") else (0.8,)
    given += (0.3, False) if recurrent(kind) else ()
    if kind != "Lapicque" and not recurrent(kind):
        given += (2.5,)
    mine, theirs = getattr(st, f"Ternary{kind}")(*given), getattr(snn, kind)(*given)
    assert mine.state_dict().keys() == theirs.state_dict().keys() | {"membrane_unit"}
    assert all(torch.equal(mine.state_dict()[key], v) for key, v in theirs.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_refuse_to_be_handed_in(kind):
    neuron = ours(kind, init_hidden=True)
    x = torch.randn(2, FEATURES)
    with pytest.raises(TypeError, match=r"`mem`.*should not be passed .* `init_hidden=True`"):
        neuron(x, mem=torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_gains_the_unit_and_bounds_only(kind):
    keys = set(getattr(snn, kind)(**arguments(kind)).state_dict())
    assert set(ours(kind).state_dict()) == keys | {"membrane_unit"}
    assert set(ours(kind, membrane=None).state_dict()) == keys
    learning = ours(kind, learnable_threshold=spq.LearnableThreshold())
    assert set(learning.state_dict()) == keys | {"membrane_unit", "threshold_bounds"}
    assert isinstance(learning.threshold, nn.Parameter)


# --- with a quantised membrane: the equations, in plain Python ----------------------------------

MEMBRANES = {
    "nearest": spq.TernaryMembrane(),
    "eq7": spq.TernaryMembrane("eq7"),
    "binary": spq.BinaryMembrane(),
    "uniform": spq.UniformMembrane(3),
    "grid": spq.UniformMembrane(levels=(-3, 1), unit=0.75),
}
GRIDS = {  # lowest level, boundaries, default unit at threshold 1 and decay 1/2
    "nearest": (-1, [-0.5, 0.5], 1.0),
    "eq7": (-1, [0.0, 0.5], 1.0),
    "binary": (0, [0.5], 1.0),
    "uniform": (-4, [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5], 0.5),
    "grid": (-3, [-2.5, -1.5, -0.5, 0.5], 0.75),
}


class Slow:
    """One sample, one step after another, as the equations are written.

    ``m`` is the stored membrane, ``s`` the spikes that come back, ``reset`` the late reset.
    """

    def __init__(self, kind, grid, reset, delay, *, decay=0.5, alpha=0.5, gain=1.0, threshold=1.0):
        self.kind, self.reset, self.delay = kind, reset, delay
        self.lowest, self.cuts, self.unit = GRIDS[grid]
        self.decay, self.alpha, self.gain, self.threshold = decay, alpha, gain, threshold
        self.weight, self.bias, self.graded, self.inhibition = None, None, 1.0, False

    def store(self, u):
        return self.unit * (self.lowest + sum(u / self.unit > cut for cut in self.cuts))

    def run(self, x):
        """Spikes, synaptic currents and memories of the steps ``x[t][c]``."""
        size = range(len(x[0]))
        m, spikes, syn, late = [[0.0] * len(x[0]) for _ in range(4)]
        record = []
        for current in x:
            fed = list(current)
            if self.weight is not None:
                back = [sum(w * s for w, s in zip(row, spikes, strict=True)) for row in self.weight]
                fed = [fed[c] + back[c] + self.bias[c] for c in size]
            if self.kind.endswith("Synaptic"):
                fed = syn = [self.alpha * syn[c] + fed[c] for c in size]
            u = [self.charge(m[c], self.gain * fed[c], late[c]) for c in size]
            above = [float(value > self.threshold) for value in u]
            spikes = [above[c] if not self.inhibition or u[c] == max(u) else 0.0 for c in size]
            if self.delay:
                late, v = above, u
            else:
                v = [self.at_once(u[c], spikes[c]) for c in size]
            m = [self.store(value) for value in v]
            if not self.inhibition:
                spikes = [s * self.graded for s in spikes]
            record.append((spikes, syn, m))
        return record

    def charge(self, m, x, late):
        if self.reset == "none" or not late:
            return self.decay * m + x
        if self.reset == "subtract":
            return self.decay * m + x - self.threshold
        return x if self.kind == "Leaky" else 0.0

    def at_once(self, u, s):
        if self.reset == "none" or not s:
            return u
        return u - self.threshold if self.reset == "subtract" else 0.0


def check_against(slow: Slow, neuron: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Spikes and states exactly those of the slow loop, for every sample of ``[T, N, C]``."""
    result = loop(slow.kind, neuron, x)
    expected = [slow.run(x[:, n].tolist()) for n in range(x.shape[1])]
    for place, part in ((0, result[0]), (2, result[-1])):
        want = torch.tensor([[step[place] for step in sample] for sample in expected])
        assert torch.equal(part.double(), want.double().transpose(0, 1))
    if slow.kind.endswith("Synaptic"):
        want = torch.tensor([[step[1] for step in sample] for sample in expected])
        assert torch.equal(result[1].double(), want.double().transpose(0, 1))
    return result


def eighths(*shape: int) -> Tensor:
    """Inputs on a coarse grid: sums are exact, and thresholds and boundaries are met exactly."""
    return torch.randint(-12, 18, shape) / 8


def dyadic_circuit(kind: str) -> dict:
    """A decay of 1/2 and, for Lapicque, a gain of 2."""
    if kind == "Lapicque":
        return {"beta": False, "R": 4.0, "C": 0.5}
    return {"beta": 0.5} | ({"alpha": 0.5} if kind.endswith("Synaptic") else {})


def with_weights(kind: str, neuron: nn.Module, slow: Slow) -> None:
    if not recurrent(kind):
        return
    for parameter in neuron.recurrent.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape).to(parameter) / 4
    slow.weight = neuron.recurrent.weight.tolist()
    slow.bias = neuron.recurrent.bias.tolist()


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("membrane", MEMBRANES)
@pytest.mark.parametrize(("kind", "delay"), DELAYS)
def test_quantised_membrane_follows_the_equations(kind, membrane, reset, delay, float64):
    options = dyadic_circuit(kind) | {"reset_mechanism": reset}
    if not delay:
        options["reset_delay"] = False
    neuron = ours(kind, **options, membrane=MEMBRANES[membrane])
    slow = Slow(kind, membrane, reset, delay, gain=2.0 if kind == "Lapicque" else 1.0)
    assert float(neuron.membrane_unit) == slow.unit
    with_weights(kind, neuron, slow)
    x = eighths(25, 3, FEATURES)
    spikes = check_against(slow, neuron, x)[0]
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("kind", "delay"), DELAYS)
def test_quantised_membrane_in_single_precision(kind, reset, delay):
    options = dyadic_circuit(kind) | {"reset_mechanism": reset}
    if not delay:
        options["reset_delay"] = False
    neuron = ours(kind, **options)
    slow = Slow(kind, "nearest", reset, delay, gain=2.0 if kind == "Lapicque" else 1.0)
    with_weights(kind, neuron, slow)
    check_against(slow, neuron, eighths(12, 3, FEATURES))


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("inhibition", [False, True])
def test_quantised_membrane_with_inhibition_and_graded_spikes(inhibition, reset, delay, float64):
    neuron = ours(
        "Leaky",
        beta=0.5,
        reset_mechanism=reset,
        reset_delay=delay,
        inhibition=inhibition,
        graded_spikes_factor=0.25,
    )
    slow = Slow("Leaky", "nearest", reset, delay)
    slow.graded, slow.inhibition = 0.25, inhibition
    check_against(slow, neuron, torch.randn(40, 3, FEATURES))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("decay", [0.9, 0.75, 1.0])
def test_default_unit_and_dynamics_for_any_decay(decay, reset, float64):
    neuron = ours("Leaky", beta=decay, threshold=1.5, reset_mechanism=reset)
    slow = Slow("Leaky", "nearest", reset, True, decay=decay, threshold=1.5)
    slow.unit = 1.5 * 0.75 / max(decay, 0.75)
    assert float(neuron.membrane_unit) == slow.unit
    check_against(slow, neuron, torch.randn(40, 3, FEATURES) * 1.5)


def test_the_unit_of_many_decays_and_thresholds_takes_the_worst(float64):
    neuron = ours("Leaky", beta=torch.tensor([0.5, 0.9]), threshold=torch.tensor([2.0, 1.0]))
    assert float(neuron.membrane_unit) == 1.0 * 0.75 / 0.9
    neuron = ours("Leaky", beta=1.7)
    assert float(neuron.membrane_unit) == 0.75  # the host uses a beta of 1 then


def test_a_state_on_the_threshold_does_not_fire():
    neuron = ours("Leaky", beta=1.0, membrane=spq.TernaryMembrane(unit=1.0))
    spk, mem = neuron(torch.tensor([[1.0, 1.0001]]))
    assert spk.tolist() == [[0.0, 1.0]]
    assert mem.tolist() == [[1.0, 1.0]]
    # Both store the level of the threshold; only the one that fired loses a threshold.
    spk, mem = neuron(torch.tensor([[0.25, 0.25]]), mem)
    assert spk.tolist() == [[1.0, 0.0]]


# --- what a delayed reset remembers -------------------------------------------------------------


def fresh(kind: str, reset: str = "subtract", **options) -> nn.Module:
    extra = {"all_to_all": False, "V": 0.0} if recurrent(kind) else {}
    return ours(kind, reset_mechanism=reset, **extra, **options)


def fired_once(kind: str, reset: str = "subtract", **options) -> nn.Module:
    """A neuron in which every element has just fired."""
    neuron = fresh(kind, reset, **options)
    assert as_tuple(neuron(torch.full((2, 3), 5.0)))[0].min() == 1
    return neuron


@pytest.mark.parametrize("membrane", [None, *MEMBRANES.values()], ids=["float", *MEMBRANES])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_zeros_are_not_reset(kind, reset, membrane):
    neuron, x = fired_once(kind, reset, membrane=membrane), torch.full((2, 3), 3.0)
    zeros = (torch.zeros(2, 3),) * len(neuron.states)
    assert same(neuron(x, *zeros), fresh(kind, reset, membrane=membrane)(x, *zeros))


@pytest.mark.parametrize("unit", [0.25, 0.5, 1.0])
def test_the_level_of_the_threshold_decides_what_counts(unit):
    neuron = ours("Leaky", beta=0.5, membrane=spq.UniformMembrane(levels=(-4, 4), unit=unit))
    level = round(1 / unit) * unit
    x = torch.zeros(1, 2)
    for handed_in, resets in ((level, True), (level - unit, False)):
        neuron(torch.full((1, 2), 5.0))
        _, mem = neuron(x, torch.full((1, 2), handed_in))
        slow = Slow("Leaky", "nearest", "subtract", True)
        slow.lowest, slow.cuts, slow.unit = -4, [k + 0.5 for k in range(-4, 4)], unit
        potential = 0.5 * handed_in - (1.0 if resets else 0.0)
        assert mem.tolist() == [[slow.store(potential)] * 2]


CLEAR = {
    "reset_mem": lambda kind, neuron: neuron.reset_mem(),
    "init": lambda kind, neuron: getattr(neuron, INIT[kind])(),
    "utils.reset": lambda kind, neuron: utils.reset(nn.Sequential(neuron)),
    "spq.reset": lambda kind, neuron: spq.reset(neuron),
}


@pytest.mark.parametrize("how", CLEAR)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_reset_forgets_what_fired(kind, reset, how):
    neuron = fired_once(kind, reset, init_hidden=True, output=True)
    CLEAR[how](kind, neuron)
    x = torch.rand(6, 2, 3) * 1.5
    expected = hidden_loop(fresh(kind, reset, init_hidden=True, output=True), x)
    assert same(hidden_loop(neuron, x), expected)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_shape_starts_anew(kind, reset):
    neuron = fired_once(kind, reset, init_hidden=True, output=True)
    x = torch.rand(6, 4, 3) * 1.5
    expected = hidden_loop(fresh(kind, reset, init_hidden=True, output=True), x)
    assert same(hidden_loop(neuron, x), expected)

    explicit = fired_once(kind, reset)
    first = torch.rand(2, 3)
    odd = tuple(torch.full((7,), 5.0) for _ in explicit.states)
    assert same(explicit(first, *odd), fresh(kind, reset)(first))


def test_a_recording_may_start_in_the_middle_of_another():
    """The loop with fresh states per batch: the batch before leaves no trace."""
    neuron, x = ours("Leaky"), torch.randn(12, 4, FEATURES)
    expected = loop("Leaky", ours("Leaky"), x)
    neuron(torch.full((4, FEATURES), 5.0))
    mem = torch.zeros(4, FEATURES)
    for step, spikes, state in zip(x, *expected, strict=True):
        spk, mem = neuron(step, mem)
        assert torch.equal(spk, spikes)
        assert torch.equal(mem, state)


# --- the same neuron in every mode --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_and_explicit_states_agree(kind, reset, dtype, float64):
    torch.set_default_dtype(dtype)
    explicit = ours(kind, reset_mechanism=reset)
    hidden = ours(kind, reset_mechanism=reset, init_hidden=True, output=True)
    silent = ours(kind, reset_mechanism=reset, init_hidden=True)
    for neuron in (hidden, silent):
        neuron.load_state_dict(explicit.state_dict())
    x = torch.randn(25, 3, FEATURES)
    expected = loop(kind, explicit, x)
    assert expected[-1].dtype == dtype
    assert same(hidden_loop(hidden, x), expected)
    assert torch.equal(torch.stack([silent(step) for step in x]), expected[0])


@pytest.mark.parametrize(("kind", "delay"), DELAYS)
def test_a_compiled_loop_agrees_with_eager(kind, delay):
    options = {} if delay else {"reset_delay": False}
    rule = spq.LearnableThreshold()
    eager = ours(kind, learnable_threshold=rule, spike_grad=triangle(), **options)
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(lambda given: loop(kind, twin, given), backend="eager", fullgraph=True)
    x, outputs, gradients = torch.randn(4, 3, FEATURES), [], []
    for neuron, run in ((eager, lambda given: loop(kind, eager, given)), (twin, compiled)):
        given = x.clone().requires_grad_()
        outputs.append(run(given))
        (outputs[-1][0].sum() + outputs[-1][-1].square().sum()).backward()
        gradients.append((given.grad, neuron.threshold.grad))
    torch._dynamo.reset()
    assert same(*outputs)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_input_keeps_a_float32_state(kind, dtype):
    extra = {"all_to_all": False, "V": 0.5} if recurrent(kind) else {}
    options = dyadic_circuit(kind) | extra
    x = torch.randn(12, 3, FEATURES).to(dtype)
    expected = loop(kind, ours(kind, **options), x.float())
    result = loop(kind, ours(kind, **options), x)
    assert all(part.dtype == torch.float32 for part in result)
    assert same(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_neuron_keeps_a_float32_state(kind, dtype):
    extra = {"all_to_all": False, "V": 0.5} if recurrent(kind) else {}
    options = dyadic_circuit(kind) | extra  # these numbers are the same in half precision
    x = torch.randn(12, 3, FEATURES).to(dtype)
    expected = loop(kind, ours(kind, **options), x.float())
    result = loop(kind, ours(kind, **options).to(dtype), x)
    assert result[-1].dtype == torch.float32
    assert torch.equal(result[0].float(), expected[0])
    assert torch.equal(result[-1], expected[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_changing_precision_midway_keeps_the_state(kind):
    extra = {"all_to_all": False, "V": 0.5} if recurrent(kind) else {}
    neuron = ours(kind, **dyadic_circuit(kind), **extra, init_hidden=True, output=True)
    twin = copy.deepcopy(neuron)
    x = eighths(6, 2, FEATURES)
    whole = hidden_loop(twin, x)
    first = hidden_loop(neuron, x[:3])
    second = hidden_loop(neuron.double(), x[3:].double())
    assert same(first, tuple(part[:3] for part in whole))
    assert second[-1].dtype == torch.float64
    assert torch.equal(second[-1].float(), whole[-1][3:])


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_remembers_what_fired(kind):
    x = torch.rand(5, 2, 3) * 1.5
    with torch.no_grad():
        neuron = fired_once(kind, init_hidden=True, output=True, spike_grad=triangle())
        copies = copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))
        expected = hidden_loop(neuron, x)
        for twin in copies:
            assert same(hidden_loop(twin, x), expected)


# --- learnable threshold ------------------------------------------------------------------------


def test_a_soft_reset_teaches_the_threshold_nothing(float64):
    """V is told by firing only: cut every path but the amount that is subtracted."""
    for delay in (True, False):
        neuron = ours(
            "Leaky",
            beta=0.5,
            reset_delay=delay,
            surrogate_disable=True,  # no gradient through the comparison
            membrane=spq.UniformMembrane(4),
            learnable_threshold=spq.LearnableThreshold(gradient="shared"),
        )
        given = (torch.rand(10, 2, FEATURES) * 2).requires_grad_()
        spikes, states = loop("Leaky", neuron, given)
        assert spikes.sum() > 0
        states.square().sum().backward()
        assert given.grad.abs().sum() > 0
        assert neuron.threshold.grad is None or neuron.threshold.grad == 0


@pytest.mark.parametrize("gradient", ["gpw", "shared", "doubled"])
def test_the_gradient_of_the_threshold_in_one_step(gradient, float64):
    neuron = ours(
        "Leaky",
        threshold=0.8,
        spike_grad=triangle(),
        learnable_threshold=spq.LearnableThreshold(gradient=gradient),
    )
    u, upstream = torch.randn(4, FEATURES), torch.randn(4, FEATURES)
    spikes, _ = neuron(u)
    (spikes * upstream).sum().backward()
    expected = 0.0
    for value, weight in zip(u.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        distance = torch.tensor(value - 0.8)
        window = torch.sigmoid(distance).item() * (value > 0.8)
        factor = {"gpw": window, "shared": 1.0, "doubled": 1 + window}[gradient]
        expected -= weight * max(0.0, 1 - abs(value - 0.8)) * factor
    assert abs(neuron.threshold.grad.item() - expected) < 1e-10


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("per_channel", [False, True])
def test_bounds_hold_under_a_learning_rate_of_one_and_are_left_again(optimizer, per_channel):
    rule = spq.LearnableThreshold(gradient="shared", per_channel=per_channel, bounds=(0.5, 2.0))
    neuron = ours(
        "Leaky",
        beta=0.5,
        threshold=1.0,
        reset_mechanism="none",
        spike_grad=snn.surrogate.sigmoid(slope=2),
        learnable_threshold=rule,
        channels=FEATURES,
    )
    assert neuron.threshold.shape == ((FEATURES,) if per_channel else ())
    update = optimizer([neuron.threshold], lr=1.0)
    x = torch.rand(8, FEATURES) * 2

    def train(sign: float) -> Tensor:
        update.zero_grad()
        (sign * neuron(x, torch.zeros_like(x))[0].sum()).backward()
        update.step()
        return neuron.threshold_value(x).detach()

    low, high = neuron.threshold_bounds.unbind(0)
    assert (high == 2).all()
    assert (low >= 0.5).all()
    for sign, bound, inside in ((1, high, lambda v: v < high), (-1, low, lambda v: v > low)):
        for _ in range(20):
            used = train(sign)
            assert ((used >= low) & (used <= high)).all()
        assert torch.equal(used, bound.expand_as(used))
        # On the bound no gradient leads outwards, but the turned one does lead inwards.
        update.zero_grad()
        (sign * neuron(x, torch.zeros_like(x))[0].sum()).backward()
        assert (neuron.threshold.grad == 0).all()
        for _ in range(60):
            used = train(-sign)
            if inside(used).all():
                break
        assert inside(used).all()


def test_one_threshold_per_channel_of_a_feature_map(float64):
    rule = spq.LearnableThreshold(per_channel=True)
    neuron = ours("Leaky", beta=0.5, learnable_threshold=rule, channels=3, spike_grad=triangle())
    neuron.threshold.data = torch.tensor([0.6, 1.0, 1.8])
    u = torch.rand(2, 3, 4, 4) * 2.5
    spikes, _ = neuron(u)
    assert torch.equal(spikes, (u > torch.tensor([0.6, 1.0, 1.8]).view(3, 1, 1)).double())
    (spikes[:, 1]).sum().backward()
    assert neuron.threshold.grad[1] != 0
    assert neuron.threshold.grad[[0, 2]].tolist() == [0.0, 0.0]


def test_a_threshold_per_channel_needs_their_number():
    rule = spq.LearnableThreshold(per_channel=True)
    with pytest.raises(spq.errors.ConversionError, match="needs the number of channels"):
        ours("Leaky", learnable_threshold=rule)
    with pytest.raises(spq.errors.ConversionError, match="2 values, the neuron 3 channels"):
        ours("Leaky", threshold=torch.ones(2), learnable_threshold=rule, channels=3)


def test_a_learning_threshold_must_be_positive():
    with pytest.raises(spq.errors.ConversionError, match=r"cannot learn.*must be above 0"):
        ours("Leaky", threshold=0.0, membrane=None, learnable_threshold=spq.LearnableThreshold())


def test_the_lower_bound_keeps_a_silent_neuron_silent():
    rule = spq.LearnableThreshold(bounds=(0.1, 2.0))
    neuron = ours("Leaky", beta=0.75, threshold=1.0, learnable_threshold=rule)
    assert float(neuron.membrane_unit) == 1.0
    assert neuron.threshold_bounds.tolist() == pytest.approx([0.75 + 0.01, 2.0])


@pytest.mark.parametrize("low", [0.5, 0.1])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_learned_threshold_on_its_lower_bound_still_tells_who_fired(reset, low):
    """However low V has learned to be, fresh zeros are not reset, and what fired is."""
    rule = spq.LearnableThreshold(bounds=(low, 2.0))
    options = {"beta": 0.25, "reset_mechanism": reset, "learnable_threshold": rule}

    def learned() -> nn.Module:
        neuron = ours("Lapicque" if reset == "zero" else "Leaky", **options)
        neuron.threshold.data.zero_()  # forward uses the bound
        return neuron

    neuron, x = learned(), torch.rand(30, 2, FEATURES)
    neuron(torch.full((2, FEATURES), 5.0))
    assert same(neuron(x[0], torch.zeros(2, FEATURES)), learned()(x[0]))

    kind = "Lapicque" if reset == "zero" else "Leaky"
    gain = float(neuron.time_step / neuron.C) if kind == "Lapicque" else 1.0
    bound = float(neuron.threshold_bounds[0])
    slow = Slow(kind, "nearest", reset, True, decay=float(neuron.decay()), gain=gain)
    slow.threshold, slow.unit = bound, float(neuron.membrane_unit)
    spikes = check_against(slow, neuron, x)[0]
    assert 0 < spikes.mean() < 1


# --- what is refused, and what is warned about --------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_delayed_reset_needs_a_level_above_zero_at_the_threshold(kind):
    coarse = spq.TernaryMembrane(unit=3.0)
    for reset in ("subtract", "zero"):
        with pytest.raises(spq.errors.ConversionError) as caught:
            ours(kind, membrane=coarse, reset_mechanism=reset)
        for word in (f"Ternary{kind}", "threshold 1", "level 0 of unit 3", "smaller unit"):
            assert word in str(caught.value)
    ours(kind, membrane=coarse, reset_mechanism="none")
    if kind != "Lapicque":
        ours(kind, membrane=coarse, reset_delay=False)


@pytest.mark.parametrize("kind", KINDS)
def test_state_quant_is_refused(kind):
    levels = state_quant(num_bits=2)
    with pytest.raises(spq.errors.ConversionError) as caught:
        ours(kind, state_quant=levels)
    for word in (f"Ternary{kind}", "state_quant", "twice", "state_quant=False"):
        assert word in str(caught.value)


def test_a_threshold_at_rest_gives_no_unit():
    with pytest.raises(spq.errors.ConversionError, match=r"not above the rest .*Set unit="):
        ours("Leaky", threshold=0.0)


def test_self_firing_is_strict_as_the_host_fires():
    at = spq.TernaryMembrane(unit=1.0)
    assert ours("Leaky", beta=1.0, membrane=at).self_firing() is None
    warning = ours("Leaky", beta=1.0, membrane=spq.TernaryMembrane(unit=1.25)).self_firing()
    assert (warning.decay, warning.unit, warning.threshold, warning.level) == (1.0, 1.25, 1.0, 1)
    assert warning.largest_safe_unit == 1.0
    neuron = ours("Leaky", beta=1.0, membrane=spq.TernaryMembrane(unit=1.25))
    _, mem = neuron(torch.tensor([[0.9]]))
    spk, _ = neuron(torch.tensor([[0.0]]), mem)
    assert spk.item() == 1


def test_the_hosts_reset_also_clears_what_a_delayed_reset_remembers():
    lif = st.TernaryLeaky(beta=0.5, reset_mechanism="zero")
    lif(torch.tensor([[1.5]]))
    utils.reset(torch.nn.Sequential(lif))
    handed_in = torch.tensor([[1.0]])
    fresh = st.TernaryLeaky(beta=0.5, reset_mechanism="zero")
    current = torch.tensor([[0.6]])
    assert torch.equal(lif(current, handed_in)[0], fresh(current, handed_in)[0])
    assert lif(current, handed_in)[0].item() == 0.0
