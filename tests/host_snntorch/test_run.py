"""A network over all steps at once against the loop over its steps."""

from __future__ import annotations

import copy
import itertools
import warnings
from functools import partial

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import GateError, KernelError
from spquant_plugin.modules.gates import ChannelGate
from spquant_plugin.modules.weight_quantizer import DyadicQuantizer
from spquant_plugin.snntorch import neuron as st
from spquant_plugin.snntorch import run
from spquant_plugin.snntorch import surrogate as ours

T = 6
ARGUMENTS = {
    "Leaky": {"beta": 0.75},
    "Lapicque": {"R": 2.0, "C": 2.0, "time_step": 1.0},
    "Synaptic": {"alpha": 0.5, "beta": 0.75},
    "RLeaky": {"beta": 0.75, "all_to_all": False, "V": 0.5},
    "RSynaptic": {"alpha": 0.5, "beta": 0.75, "all_to_all": False, "V": 0.5},
}
FUSED = ("Leaky", "Lapicque", "Synaptic")
RESETS = ("subtract", "zero", "none")
WAYS = [
    (kind, reset, delay)
    for kind, reset, delay in itertools.product(FUSED, RESETS, (True, False))
    if (kind, delay) != ("Lapicque", False)
]
MEMBRANES = {
    "ternary": spq.TernaryMembrane(),
    "eq7": spq.TernaryMembrane(boundaries="eq7"),
    "binary": spq.BinaryMembrane(),
    "4 bits": spq.UniformMembrane(4),
    "float": None,
}
SURROGATES = {
    "triangle": ours.Triangle(),
    "narrow triangle": ours.Triangle(0.5),
    "window": ours.GradientPenaltyWindow(),
    "atan": surrogate.atan(),
    "atan 3": surrogate.atan(alpha=3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=5),
    "sigmoid": surrogate.sigmoid(slope=4),
}


@pytest.fixture(autouse=True)
def _kept_instances():
    """The host's reset reaches every neuron of the process; those made here go again."""
    before = list(SpikingNeuron.instances)
    yield
    SpikingNeuron.instances[:] = before


@pytest.fixture
def count_fused(monkeypatch):
    """Number of calls of the fused recurrence of a neuron."""
    calls = []

    def counted(neuron, *args, **options):
        calls.append(neuron)
        return original(neuron, *args, **options)

    original = st._QuantizedStateNeuron.run_fused
    monkeypatch.setattr(st._QuantizedStateNeuron, "run_fused", counted)
    return calls


def eighths(*shape: int) -> Tensor:
    """Multiples of 1/8: sums are exact, and ties are frequent."""
    return torch.randint(-12, 17, shape).to(torch.get_default_dtype()) / 8


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).to(torch.get_default_dtype())


def neuron(kind: str, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Inhibition is an unstable feature")
        return getattr(st, f"Ternary{kind}")(**ARGUMENTS[kind] | options, init_hidden=True)


def loop(net: nn.Module, x_seq: Tensor):
    """What users write, stacked."""
    results = [net(x) for x in x_seq]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(part) for part in zip(*results, strict=True))
    return torch.stack(results)


def states(net: nn.Module) -> dict[str, Tensor]:
    """Everything that a run leaves behind."""
    found = {name: buffer.detach() for name, buffer in net.named_buffers()}
    for path, module in net.named_modules():
        for name in ("spk", "syn", "mem", "fired", "level_sums"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                found[f"{path}.{name}"] = value.detach()
        for name in ("began", "level_area"):
            if isinstance(module, SpikingNeuron) and hasattr(module, name):
                found[f"{path}.{name}"] = torch.tensor(getattr(module, name))
        if isinstance(module, ChannelGate) and module.closed_fraction() is not None:
            found[f"{path}.closed"] = module.closed_fraction().detach()
            found[f"{path}.calls"] = module._calls
    return found


def assert_close(actual: Tensor, expected: Tensor, name: str, single: float = 1e-6) -> None:
    """Agreement to rounding, relative to the tensor's own size."""
    assert actual.shape == expected.shape, name
    assert actual.dtype == expected.dtype, name
    actual, expected = actual.detach(), expected.detach()
    size = float(expected.double().abs().max())
    error = float((actual.double() - expected.double()).abs().max())
    tolerance = 1e-10 if expected.dtype == torch.float64 else single
    assert error <= tolerance * max(size, 1e-30), (name, error, size)


def as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def gradients(net: nn.Module, x: Tensor, outputs) -> dict[str, Tensor | None]:
    """Of a loss in which every number counts differently."""
    torch.manual_seed(5)
    parts = [value.double() for value in as_tuple(outputs)]
    loss = sum((part * torch.randn(part.shape, dtype=torch.float64)).sum() for part in parts)
    net.zero_grad()
    wanted = [x, *net.parameters()]
    wanted_names = ["x", *(name for name, _ in net.named_parameters())]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
    return dict(zip(wanted_names, found, strict=True))


def assert_same(
    net: nn.Module, *inputs: Tensor, exact: bool = True, grads: bool = True, single: float = 1e-6
) -> None:
    """Runs and loops, one after the other from the same state, agree in all that they do.

    ``single`` is the tolerance of gradients in single precision.
    """
    one, other = copy.deepcopy(net), copy.deepcopy(net)
    for x_seq in inputs:
        x, y = (x_seq.clone().requires_grad_(grads) for _ in range(2))
        torch.manual_seed(3)
        got = run(one, x)
        torch.manual_seed(3)
        want = loop(other, y)
        assert type(got) is type(want)
        for actual, expected in zip(as_tuple(got), as_tuple(want), strict=True):
            if exact:
                assert actual.dtype == expected.dtype
                assert torch.equal(actual, expected)
            else:
                assert_close(actual, expected, "output", single)
        left, expected_left = states(one), states(other)
        assert left.keys() == expected_left.keys()
        for name, value in expected_left.items():
            assert left[name].dtype == value.dtype, name
            if exact and not name.endswith("closed"):
                assert torch.equal(left[name], value), name
            else:
                assert_close(left[name], value, name, single)
        if grads:
            found, expected_found = gradients(one, x, got), gradients(other, y, want)
            for name, value in expected_found.items():
                if value is None or found[name] is None:
                    assert value is found[name], name
                else:
                    assert_close(found[name], value, name, single)
        for copied in (one, other):  # as between the pieces of a truncated backward pass
            for module in copied.modules():
                if isinstance(module, SpikingNeuron):
                    module.mem.detach_()
                    getattr(module, "syn", module.mem).detach_()


# --- neurons --------------------------------------------------------------------------------------


@pytest.mark.parametrize("membrane", MEMBRANES)
@pytest.mark.parametrize(("kind", "reset", "delay"), WAYS)
def test_neurons_do_what_the_loop_does(kind, reset, delay, membrane, count_fused):
    """Twice in a row, the second time from the state of the first."""
    options = {} if kind == "Lapicque" else {"reset_delay": delay}
    lif = neuron(
        kind,
        reset_mechanism=reset,
        membrane=MEMBRANES[membrane],
        spike_grad=ours.triangle(),
        output=True,
        **options,
    )
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), eighths(T, 3, 5), eighths(4, 3, 5))
    assert len(count_fused) == 2
    assert float(loop(nn.Sequential(lif), eighths(T, 3, 5))[0].mean()) not in (0.0, 1.0)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("reset", RESETS)
def test_the_compiled_recurrence_does_it_too(kind, reset, count_fused):
    lif = neuron(kind, reset_mechanism=reset, spike_grad=ours.triangle(), output=True)
    with spq.kernels.use("compiled"):
        assert_same(nn.Sequential(lif), eighths(T, 3, 5), eighths(4, 3, 5))
        assert_same(nn.Sequential(lif), torch.randn(T, 3, 5), torch.randn(4, 3, 5))
    assert len(count_fused) == 4


@pytest.mark.parametrize("membrane", ["ternary", "float"])
@pytest.mark.parametrize(("kind", "reset", "delay"), WAYS)
def test_neurons_agree_in_double_precision(kind, reset, delay, membrane, float64, count_fused):
    options = {} if kind == "Lapicque" else {"reset_delay": delay}
    lif = neuron(
        kind,
        reset_mechanism=reset,
        membrane=MEMBRANES[membrane],
        spike_grad=ours.triangle(),
        output=True,
        threshold=0.7,
        learn_threshold=True,
        **options,
    )
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), torch.randn(T, 3, 5), torch.randn(4, 3, 5))
    assert len(count_fused) == 2


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_agree(name, delay, count_fused):
    lif = neuron("Leaky", spike_grad=SURROGATES[name], reset_delay=delay, output=True)
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), eighths(T, 3, 5))
    assert len(count_fused) == 1


@pytest.mark.parametrize("delay", [True, False])
def test_the_hosts_single_precision_spikes_are_kept(delay, float64, count_fused):
    """Its surrogates give float32, in which an immediate reset is then computed as well."""
    lif = neuron("Leaky", reset_delay=delay, threshold=0.7, output=True)
    net = nn.Sequential(lif)
    with spq.kernels.use("eager"):
        assert_same(net, eighths(T, 3, 5))
    assert len(count_fused) == delay
    assert run(net, eighths(T, 3, 5))[0].dtype == torch.float32


@pytest.mark.parametrize("learns", ["host", "gpw", "shared", "doubled", "per channel"])
@pytest.mark.parametrize(("kind", "reset", "delay"), WAYS)
def test_learned_thresholds_agree(kind, reset, delay, learns, float64, count_fused):
    options = {} if kind == "Lapicque" else {"reset_delay": delay}
    if learns == "host":
        options["learn_threshold"] = True
    else:
        each = learns == "per channel"
        rule = spq.LearnableThreshold(gradient="gpw" if each else learns, per_channel=each)
        options |= {"learnable_threshold": rule, "channels": 4}
    lif = neuron(kind, reset_mechanism=reset, spike_grad=ours.triangle(), output=True, **options)
    with torch.no_grad():
        lif.threshold.mul_(0.875)
        if learns == "per channel":
            lif.threshold.add_(torch.tensor([0.0, 0.125, 0.25, 0.0625]))
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), eighths(T, 3, 4, 5), eighths(3, 3, 4, 5))
    assert len(count_fused) == 2


@pytest.mark.parametrize("membrane", ["ternary", "float"])
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_learned_decays_and_factors_agree(kind, membrane, float64, count_fused):
    """Several of each: one for every feature."""
    constants = {"beta": torch.tensor([0.5, 0.75, 0.875, 1.25, 0.25]), "learn_beta": True}
    if kind == "Synaptic":
        constants |= {"alpha": torch.tensor([0.5, 0.25, 0.75, 0.5, 1.0]), "learn_alpha": True}
    else:
        constants |= {"graded_spikes_factor": torch.rand(5), "learn_graded_spikes_factor": True}
    lif = neuron(
        kind, membrane=MEMBRANES[membrane], spike_grad=ours.triangle(), output=True, **constants
    )
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), eighths(T, 3, 5), eighths(4, 3, 5))
    assert len(count_fused) == 2


def test_a_threshold_on_its_bound_weighs_all_steps_together():
    """The loop asks of each step whether it would lead outwards, a run of their sum."""
    rule = spq.LearnableThreshold(gradient="shared", bounds=(0.5, 1.0))
    net = nn.Sequential(neuron("Leaky", learnable_threshold=rule, spike_grad=ours.triangle()))
    x = torch.tensor([[[0.5]], [[0.75]]])
    # Slopes of the two steps are 0.5 and 0.75 behind a membrane of 0. Outwards is a negative sum.
    for first, second, together, apart in ((1, -3, 1.75, 2.25), (3, -1, 0.0, 0.75)):
        for way, expected in ((run, together), (loop, apart)):
            utils.reset(net)
            net.zero_grad()
            (way(net, x) * torch.tensor([first, second]).view(2, 1, 1)).sum().backward()
            assert float(net[0].threshold.grad) == expected


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize(("kind", "reset", "delay"), WAYS)
def test_spatially_gated_neurons_agree(kind, reset, delay, score, count_fused):
    options = {} if kind == "Lapicque" else {"reset_delay": delay}
    lif = neuron(
        kind,
        reset_mechanism=reset,
        spike_grad=ours.triangle(),
        spatial_gate=spq.SpatialGate(0.5, score),
        output=True,
        **options,
    )
    with spq.kernels.use("eager"):
        assert_same(nn.Sequential(lif), eighths(T, 2, 3, 4), eighths(3, 2, 3, 4))
    assert len(count_fused) == T + 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_precisions_keep_a_state_of_single_precision(dtype):
    net = nn.Sequential(neuron("Leaky", spike_grad=ours.triangle(), output=True))
    x = (eighths(T, 3, 5) * 2).to(dtype)
    assert_same(net, x, grads=dtype.is_floating_point)
    assert net[0].mem.dtype == torch.float32


def test_a_new_shape_starts_anew_and_a_state_that_was_set_is_taken():
    net = nn.Sequential(neuron("Synaptic", spike_grad=ours.triangle(), output=True))
    assert_same(net, eighths(T, 3, 5), eighths(4, 2, 7), eighths(1, 2, 7))
    net[0].mem, net[0].syn = torch.full((3, 5), 2.0), torch.full((3, 5), -0.5)
    net[0].fired = torch.ones(3, 5, dtype=torch.bool)
    assert_same(net, eighths(T, 3, 5))
    assert_same(net, eighths(T, 5))


@pytest.mark.parametrize("membrane", ["ternary", "float"])
def test_a_float_state_above_the_threshold_resets_in_the_first_step(membrane):
    net = nn.Sequential(neuron("Leaky", membrane=MEMBRANES[membrane], output=True))
    net[0].mem = torch.full((2, 3), 1.5)
    assert_same(net, eighths(T, 2, 3))


def test_runs_and_loops_continue_each_other():
    net = nn.Sequential(nn.Linear(4, 5), neuron("Leaky", spike_grad=ours.triangle()))
    net[0].weight.data = eighths(5, 4)
    net[0].bias.data = eighths(5)
    other, x = copy.deepcopy(net), events(12, 3, 4)
    want = loop(other, x)
    got = [run(net, x[:3]), loop(net, x[3:7]), run(net, x[7:8]), run(net, x[8:])]
    assert torch.equal(torch.cat(got), want)
    assert torch.equal(net[1].mem, other[1].mem)
    (torch.cat(got) * torch.arange(12.0).view(-1, 1, 1)).sum().backward()
    (want * torch.arange(12.0).view(-1, 1, 1)).sum().backward()
    assert_close(net[0].weight.grad, other[0].weight.grad, "weight")


def test_the_hosts_resets_work_after_a_run():
    net = nn.Sequential(nn.Linear(4, 5), neuron("Synaptic", spike_grad=ours.triangle()))
    x = torch.rand(T, 3, 4) * 4
    first = run(net, x)
    for module in (snn.Synaptic, snn.Leaky):
        module.detach_hidden()
    assert not net[1].mem.requires_grad
    assert not net[1].syn.requires_grad
    utils.reset(net)
    assert torch.equal(run(net, x), first)
    assert first.any()


# --- what is called step by step ------------------------------------------------------------------


def inhibited() -> nn.Module:
    return neuron("Leaky", inhibition=True, output=True)


STEPPED = {
    "RLeaky": lambda: neuron("RLeaky", spike_grad=ours.triangle(), output=True),
    "RSynaptic": lambda: neuron("RSynaptic", spike_grad=ours.triangle(), output=True),
    "inhibition": inhibited,
    "surrogate": lambda: neuron("Leaky", spike_grad=surrogate.heaviside(), output=True),
    "no surrogate": lambda: neuron("Leaky", surrogate_disable=True, output=True),
    "host": lambda: snn.Leaky(beta=0.5, init_hidden=True, output=True),
    "host's synaptic": lambda: snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True, output=True),
    "wide decay": lambda: neuron("Leaky", beta=torch.rand(5, dtype=torch.float64), output=True),
}


@pytest.mark.parametrize("kind", STEPPED)
def test_what_does_not_fuse_is_called_step_by_step(kind, count_fused):
    net = nn.Sequential(nn.Linear(4, 5), STEPPED[kind]())
    net[0].weight.data, net[0].bias.data = eighths(5, 4), eighths(5)
    assert_same(net, events(T, 3, 4), events(4, 3, 4))
    assert count_fused == []


def test_hooks_of_users_see_every_step(count_fused):
    net = nn.Sequential(nn.Linear(4, 5), neuron("Leaky"), nn.Sequential(nn.Linear(5, 2)))
    seen = []

    def note(module, args, output):
        seen.append((type(module).__name__, tuple(output.shape)))

    for module in (net[0], net[1], net[2]):
        module.register_forward_hook(note)
    run(net, events(T, 3, 4))
    expected = [("Linear", (3, 5))] * T + [("TernaryLeaky", (3, 5))] * T
    assert seen == expected + [("Sequential", (3, 2))] * T
    assert count_fused == []


def test_hooks_on_the_network_see_every_step():
    net, seen = nn.Sequential(nn.Linear(4, 5), neuron("Leaky")), []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    run(net, events(T, 3, 4))
    assert seen == [(3, 4)] * T


class Counting(nn.Module):
    """A module with a memory, which hands on a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.count = self.count + 1
        return x * self.count, [x, x + 1]


class Joining(nn.Module):
    def forward(self, given: tuple[Tensor, list[Tensor]]) -> Tensor:
        return given[0] + given[1][0].add_(1) - given[1][1]


def test_unknown_modules_are_called_in_their_order():
    net = nn.Sequential(nn.Linear(4, 5), Counting(), Joining(), neuron("Leaky", output=True))
    net[0].weight.data, net[0].bias.data = eighths(5, 4), eighths(5)
    assert_same(net, events(T, 3, 4), events(2, 3, 4))


def test_a_module_that_is_used_twice_sees_its_calls_in_the_loops_order(count_fused):
    lif = neuron("Leaky", spike_grad=ours.triangle())
    net = nn.Sequential(lif, nn.Linear(4, 4), lif, nn.Flatten())
    net[1].weight.data, net[1].bias.data = eighths(4, 4), eighths(4)
    assert_same(net, eighths(T, 3, 4), eighths(2, 3, 4))
    assert count_fused == []


def test_neurons_may_share_their_surrogate(count_fused):
    grad = ours.triangle()
    net = nn.Sequential(neuron("Leaky", spike_grad=grad), neuron("Leaky", spike_grad=grad))
    assert_same(net, eighths(T, 3, 4))
    assert len(count_fused) == 2


# --- layers ---------------------------------------------------------------------------------------

BATCHED = {
    "Linear": (nn.Linear(4, 3), (4,)),
    "Linear with tokens": (nn.Linear(4, 3), (2, 4)),
    "Conv1d": (nn.Conv1d(2, 3, 3), (2, 5)),
    "Conv2d": (nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "Conv3d": (nn.Conv3d(2, 3, 3), (2, 4, 5, 6)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 3), (2, 5, 6)),
    "MaxPool2d": (nn.MaxPool2d(2), (2, 4, 6)),
    "AvgPool1d": (nn.AvgPool1d(2), (2, 6)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(2), (2, 4, 6)),
    "BatchNorm1d": (nn.BatchNorm1d(4).eval(), (4,)),
    "BatchNorm2d": (nn.BatchNorm2d(2).eval(), (2, 4, 6)),
    "GroupNorm": (nn.GroupNorm(2, 4), (4, 3)),
    "LayerNorm": (nn.LayerNorm(4), (4,)),
    "LayerNorm over the batch": (nn.LayerNorm((3, 4)), (4,)),
    "Dropout": (nn.Dropout(0.5).eval(), (4,)),
    "Flatten": (nn.Flatten(), (2, 3, 4)),
    "Flatten from the end": (nn.Flatten(2, -1), (2, 3, 4)),
    "Unflatten": (nn.Unflatten(1, (2, 2)), (4,)),
    "PReLU": (nn.PReLU(4), (4,)),
    "ReLU": (nn.ReLU(inplace=True), (4,)),
    "GELU": (nn.GELU(), (4,)),
    "Identity": (nn.Identity(), (4,)),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.Sequential()), (4,)),
}
STEPWISE = {
    "BatchNorm1d": (nn.BatchNorm1d(4), (4,)),
    "BatchNorm without statistics": (nn.BatchNorm1d(4, track_running_stats=False).eval(), (4,)),
    "Dropout": (nn.Dropout(0.5), (4,)),
    "Flatten with the batch": (nn.Flatten(0), (2, 4)),
    "Softmax over the batch": (nn.Softmax(0), (4,)),
    "pool with indices": (nn.MaxPool1d(2, return_indices=True), (2, 6)),
}


def count_calls(monkeypatch, kind: type) -> list:
    calls, original = [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: calls.append(1) or original(*args))
    return calls


@pytest.mark.parametrize("name", BATCHED)
def test_layers_without_a_state_run_once(name, monkeypatch):
    layer, shape = BATCHED[name]
    net = nn.Sequential(nn.Identity(), layer)
    x = eighths(T, 3, *shape)
    grads = name != "ReLU"  # a leaf cannot be written to
    assert_same(net, x, exact=False, grads=grads)
    inner = layer[0][0] if name == "nested" else layer
    calls = count_calls(monkeypatch, type(inner))
    run(net, x)
    assert calls == [1] * (2 if isinstance(inner, nn.Identity) else 1)


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Conv2d", "MaxPool2d", "AdaptiveAvgPool2d"])
def test_a_sample_without_a_batch_is_no_batch(name, monkeypatch):
    layer, shape = BATCHED[name]
    assert_same(nn.Sequential(layer), eighths(T, *shape), exact=False)
    calls = count_calls(monkeypatch, type(layer))
    run(nn.Sequential(layer), eighths(T, *shape))
    assert calls == [1]


@pytest.mark.parametrize("name", STEPWISE)
def test_what_reads_the_batch_runs_step_by_step(name, monkeypatch):
    """Also its running statistics and random numbers are those of the loop."""
    layer, shape = STEPWISE[name]
    net = nn.Sequential(layer)
    x = torch.randn(T, 3, *shape)
    assert_same(net, x, grads="indices" not in name)
    calls = count_calls(monkeypatch, type(layer))
    run(net, x)
    assert len(calls) == T


def test_parametrized_layers_are_their_own_kind():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert_same(nn.Sequential(layer, neuron("Leaky")), events(T, 2, 4), exact=False)


# --- whole networks -------------------------------------------------------------------------------


def network(name: str, config, *, trained: bool = True, x: Tensor | None = None) -> nn.Module:
    net = spq.models.create(
        name,
        host="snntorch",
        in_channels=2,
        size=8,
        num_classes=3,
        width=0.25,
        neuron=partial(snn.Leaky, beta=0.5, init_hidden=True, reset_mechanism="zero"),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(2.0)
            module.running_var.fill_(0.25)
    net.train(trained)
    return net if config is None else spq.convert(net, config, sample=x)


CONFIGS = {
    "quant_snn": spq.presets.quant_snn(adaptive=True),
    "4 bits": spq.presets.quant_snn(4, membrane=spq.UniformMembrane(4)),
    "uniform": spq.presets.quant_snn(weights=spq.UniformWeights(4)),
    "host's surrogate": spq.presets.quant_snn(surrogate=None),
    "float": None,
}


@pytest.mark.parametrize("trained", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("config", list(CONFIGS)[:3])
@pytest.mark.parametrize("name", ["conv_net", "mlp"])
def test_networks_agree(name, config, trained, count_fused):
    x = events(T, 4, 2, 8, 8)
    net = network(name, CONFIGS[config], trained=trained)
    assert_same(net.double(), x.double(), x.double().flip(0), exact=False)
    assert len(count_fused) == 2 * 2


@pytest.mark.parametrize("trained", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["conv_net", "mlp"])
def test_networks_agree_in_single_precision(name, config, trained):
    """Sums are added up in another order, and no potential lies that close to its threshold."""
    net = network(name, CONFIGS[config], trained=trained)
    assert_same(net, events(T, 4, 2, 8, 8), exact=False, single=1e-4)


@pytest.mark.parametrize("trained", [True, False], ids=("train", "eval"))
def test_weights_are_quantised_once(trained, monkeypatch):
    net = network("conv_net", CONFIGS["quant_snn"], trained=trained)
    calls = count_calls(monkeypatch, DyadicQuantizer)
    x = events(T, 2, 2, 8, 8)
    quantizers = [m for m in net.modules() if isinstance(m, DyadicQuantizer)]
    run(net, x)
    assert len(calls) == len(quantizers) > 0
    loop(net, x)
    assert len(calls) == len(quantizers) * (T + 1)


# --- channel gates --------------------------------------------------------------------------------


def gated(source: str, *, trained: bool, **fields) -> nn.Module:
    config = spq.presets.spquant_snn(
        adaptive=True, channel_gate=spq.ChannelGate(source=source), **fields
    )
    net = network("conv_net", config, trained=trained, x=events(2, 2, 8, 8))
    utils.reset(net)
    gates = [m for m in net.modules() if isinstance(m, ChannelGate)]
    for gate in gates:
        nn.init.normal_(gate.weight, std=2)
        nn.init.normal_(gate.bias, std=0.3)
    assert gates
    return net


@pytest.mark.parametrize("trained", [True, False], ids=("train", "eval"))
@pytest.mark.parametrize("source", ["membrane", "input"])
@pytest.mark.parametrize("spatial", [True, False])
def test_gated_networks_agree(source, trained, spatial):
    fields = {} if spatial else {"spatial_gate": None}
    net = gated(source, trained=trained, **fields).double()
    x = events(T, 4, 2, 8, 8).double()
    # The second goes on from the first, but detached: gates begin to count anew.
    assert_same(net, x, x.flip(0)[:3], exact=False)
    other = copy.deepcopy(net)
    run(net, x)
    loop(other, x)
    found, wanted = spq.gate_stats(net), spq.gate_stats(other)
    assert found == pytest.approx(wanted)
    assert 0 < sum(found.values()) < len(found)
    losses = spq.gate_loss(net, 0.25), spq.gate_loss(other, 0.25)
    assert_close(*losses, "gate_loss")
    for loss in losses:
        loss.backward()
    for (path, value), twin in zip(net.named_parameters(), other.parameters(), strict=True):
        if twin.grad is not None:
            assert_close(value.grad, twin.grad, path)


def test_a_loop_and_a_run_count_gates_alike():
    """Steps weigh the same, whether they come one by one or many at once."""
    net = gated("membrane", trained=False)
    other, x = copy.deepcopy(net), events(9, 4, 2, 8, 8)
    run(net, x[:2])
    loop(net, x[2:4])
    run(net, x[4:])
    loop(other, x)
    gate, twin = (next(g for g in n.modules() if isinstance(g, ChannelGate)) for n in (net, other))
    assert gate._calls == twin._calls == 9
    assert_close(gate.closed_fraction(), twin.closed_fraction(), "closed")
    assert gate.open_mask.shape == (5, 4, 16)
    assert torch.equal(gate.open_mask[-1], twin.open_mask)


def stack(source: str, first: nn.Module, *, learned: bool = False) -> nn.Sequential:
    """A gate on the second layer, which reads the neuron between."""
    between = [nn.BatchNorm1d(4)] if learned else []
    # In front of the norm a bias would have no gradient but rounding.
    gated_layer = nn.Linear(4, 4, bias=not learned)
    net = nn.Sequential(first, gated_layer, *between, neuron("Leaky"), nn.Linear(4, 2))
    gate = ChannelGate(4, 4, source=source, neuron=first, channel_dim=-1)
    net[1].add_module("channel_gate", gate)
    gate.attach(net[1], net[2 if learned else 1], -1)
    nn.init.normal_(gate.weight, std=2)
    nn.init.normal_(gate.bias, std=0.3)
    return net.double()


@pytest.mark.parametrize("learned", [True, False], ids=["batch norm", "plain"])
@pytest.mark.parametrize("source", ["membrane", "input"])
@pytest.mark.parametrize("kind", ["fused", "inhibited", "recurrent", "renewed"])
def test_gates_agree_behind_any_neuron(kind, source, learned):
    first = {
        "fused": partial(neuron, "Synaptic", spike_grad=ours.triangle()),
        "inhibited": partial(neuron, "Leaky", inhibition=True, spike_grad=ours.triangle()),
        "recurrent": partial(neuron, "RLeaky", spike_grad=ours.triangle()),
        "renewed": partial(neuron, "Leaky", spike_grad=ours.triangle()),
    }[kind]()
    net = stack(source, first, learned=learned)
    for module in net.modules():
        if isinstance(module, SpikingNeuron):
            module.spike_grad = ours.triangle()
    if kind == "renewed":
        first.mem = torch.ones(3, 4, dtype=torch.float64)
    assert_same(net, eighths(T, 3, 4).double() * 2, eighths(1, 3, 4).double() * 2, exact=False)


def test_a_gate_that_reads_a_later_neuron_sees_its_last_step():
    late = neuron("Leaky", spike_grad=ours.triangle())
    net = nn.Sequential(nn.Linear(4, 4), ChannelGate(4, 4, neuron=late), late)
    net[0].weight.data, net[0].bias.data = eighths(4, 4), eighths(4)
    nn.init.normal_(net[1].weight, std=2)
    for way in (run, loop):
        with pytest.raises(GateError, match="ran before its source neuron"):
            way(net, events(T, 3, 4))
    late(eighths(3, 4) * 2)
    assert_same_gate(net, events(T, 3, 4))


def test_a_gate_of_a_neuron_elsewhere_is_called_step_by_step():
    other, last = neuron("Leaky"), neuron("Leaky", spike_grad=ours.triangle())
    net = nn.Sequential(nn.Linear(4, 4), ChannelGate(4, 4, neuron=other), last)
    net[0].weight.data, net[0].bias.data = eighths(4, 4), eighths(4)
    nn.init.normal_(net[1].weight, std=2)
    nn.init.normal_(net[1].bias, std=0.3)
    other(eighths(3, 4) * 2)
    assert_same_gate(net, events(T, 3, 4))


def assert_same_gate(net: nn.Module, x: Tensor) -> None:
    """Copies forget what neurons told, so one network does both."""
    last, source = net[2], net[1].neuron
    start = last.mem, last.fired, source.level_sums
    found = []
    for way in (run, loop):
        last.mem, last.fired, source.level_sums = start
        found.append((way(net, x), net[1].open_mask, last.mem, source.level_sums))
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)
    assert 0 < net[1].open_mask.mean() < 1


@pytest.mark.parametrize("trained", [True, False], ids=["train", "eval"])
def test_a_user_hook_on_a_gate_sees_every_step(trained):
    net, shapes = gated("membrane", trained=trained), []
    gate = next(m for m in net.modules() if isinstance(m, ChannelGate))
    gate.register_forward_hook(lambda module, args, output: shapes.append(module.open_mask.shape))
    run(net, events(T, 4, 2, 8, 8))
    assert shapes == [(4, 16)] * T


# --- errors ---------------------------------------------------------------------------------------


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("net", [nn.Linear(4, 4), Own(nn.Linear(4, 4)), snn.Leaky(0.5), None])
def test_only_a_sequential_runs(net):
    with pytest.raises(KernelError, match=r"run\(net=.*must be an nn.Sequential.*for x in x_seq"):
        run(net, events(T, 3, 4))


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ([torch.ones(3, 4)], r"x_seq=list.*torch.stack"),
        (torch.ones(0, 3, 4), r"shape \(0, 3, 4\).*at least one time step"),
        (torch.tensor(1.0), r"shape \(\).*\[T, ...\]"),
    ],
)
def test_the_input_has_time(x, told):
    with pytest.raises(KernelError, match=told):
        run(nn.Sequential(nn.Linear(4, 4)), x)


def test_neurons_keep_their_own_states():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(snn.Leaky(beta=0.5)))
    with pytest.raises(KernelError, match=r"1\.0 \(Leaky\) has init_hidden=False: must.*Make it"):
        run(net, events(T, 3, 4))


def test_only_the_last_neuron_returns_its_states():
    net = nn.Sequential(neuron("Leaky", output=True), nn.Linear(4, 4))
    with pytest.raises(KernelError, match=r"1 \(Linear\) received a tuple.*output=False"):
        run(net, events(T, 3, 4))
    with pytest.raises(TypeError):
        loop(net, events(T, 3, 4))


def test_a_module_returns_tensors():
    class Telling(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    with pytest.raises(KernelError, match=r"0 \(Telling\) returned dict: must.*Loop"):
        run(nn.Sequential(Telling()), events(T, 3, 4))


# --- surrogates -----------------------------------------------------------------------------------


def test_surrogates_are_recognised():
    assert ours.fused_slope(ours.Triangle(0.5)) == ("triangle", 0.5)
    assert ours.fused_slope(ours.GradientPenaltyWindow(2)) == ("window", 2.0)
    assert ours.fused_slope(surrogate.atan()) == ("arctan", 2.0)
    assert ours.fused_slope(surrogate.fast_sigmoid()) == ("fast_sigmoid", 25.0)
    assert ours.fused_slope(surrogate.sigmoid(slope=10)) == ("sigmoid", 10.0)


class Mine(ours.Triangle):
    """A subclass may do anything."""


def atan():
    alpha = 2.0

    def inner(x):
        return x * alpha

    return inner


@pytest.mark.parametrize(
    "function",
    [
        Mine(),
        atan(),
        surrogate.heaviside(),
        surrogate.spike_rate_escape(),
        surrogate.triangular(),
        surrogate.ATan.apply,
        surrogate.sigmoid(slope=0),
        surrogate.sigmoid(slope=-1),
        surrogate.atan(alpha=torch.tensor(2.0)),
        ours.Triangle(-1.0),
        ours.StackedSigmoid(),
        None,
    ],
)
def test_others_are_not(function):
    assert ours.fused_slope(function) is None
