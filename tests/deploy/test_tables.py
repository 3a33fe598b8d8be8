"""Tables of neurons and thresholds of gates, at every sum, state and number there can be.

The trained model itself is the reference: it runs one step from every stored state.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.config import ChannelGate
from spquant_plugin.deploy.graph import Neuron
from spquant_plugin.deploy.lowering.draft import Draft
from spquant_plugin.deploy.lowering.gates import decision, first_true
from spquant_plugin.deploy.lowering.symbol import Symbol
from spquant_plugin.deploy.lowering.tables import Probe, tabulate
from spquant_plugin.errors import DeployError
from spquant_plugin.functional import gates as fg
from spquant_plugin.modules import gates as gate_modules
from spquant_plugin.modules.neuron import Outcome

from .lively import unsettle

CHANNELS, REACH = 6, 12


class Differences(nn.Module):
    """Every channel sums ``x[0] - x[1]``; norm and neuron differ from channel to channel."""

    def __init__(self, node: nn.Module, norm: bool, added: bool) -> None:
        super().__init__()
        self.fc = layer.Linear(2, 2 if added else CHANNELS)
        features = self.fc.out_features
        self.fc.weight.data = torch.tensor([[1.0, -1.0]]) * torch.rand(features, 1).add(0.1)
        self.fc.bias.data = torch.randn(features) * 0.2
        self.bn = layer.BatchNorm1d(features) if norm else nn.Identity()
        if norm:
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.1, 4.0)
            self.bn.weight.data.uniform_(0.2, 3.0)
            unsettle(self.bn)
        self.lif, self.added = node, added

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn(self.fc(x))
        return self.lif(current + x if self.added else current)


def every_input() -> Tensor:
    """All pairs of numbers up to REACH, so that all differences and all numbers occur."""
    numbers = torch.tensor([*itertools.product(range(REACH + 1), repeat=2)])
    return numbers.to(torch.get_default_dtype())


def lower(model: Differences, membrane, **fields) -> tuple[nn.Module, spq.IntegerNetwork]:
    weights = spq.TernaryWeights()
    config = spq.SpQuantConfig(
        membrane=membrane, weights=weights, edge_weights=weights, surrogate=spq.Triangle(), **fields
    )
    x = every_input()
    model = spq.convert(model, config, x).eval()
    spq.reset(model)
    return model, spq.to_integer(model, x[:2], input_range=(0, REACH), engine="torch")


def one_step(model: nn.Module, state: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and states of the trained model after one step from a state."""
    lif, shape = model.lif, (len(x), model.fc.out_features)
    levels = lif.membrane.highest - lif.membrane.lowest + 1
    remembers = lif.remembers
    index, fired = (state // 2, state % 2) if remembers else (state, 0)
    assert index < levels
    membrane = lif.membrane_of(torch.full(shape, float(index + lif.membrane.lowest)))
    spq.reset(model)
    if hasattr(lif, "v_threshold"):
        lif.v = membrane
    else:
        lif.mem, lif.fired = membrane, torch.full(shape, bool(fired))
    with torch.no_grad():
        spikes = model(x)
    spikes = spikes[0] if isinstance(spikes, tuple) else spikes
    stored = lif.v if hasattr(lif, "v_threshold") else lif.mem
    after = (stored - lif.rest).div(lif.membrane_unit).round().long() - lif.membrane.lowest
    return spikes, 2 * after + lif.fired.long() if remembers else after


def looked_up(node: Neuron, channel: int, state: int, number: int, total: int) -> tuple[int, int]:
    """Spike and next state, word for word as the docstring of Neuron says."""
    signed = int(node.sign[channel]) * total
    place = number - (node.counts[0] if node.counts else 0)
    outcome = 0
    for least in node.breaks[channel, state, place].tolist():
        outcome += signed >= least
    return tuple(node.outcomes[outcome, :2].tolist())


def reachable(lif: nn.Module, state: int) -> bool:
    """A neuron that fired has stored what is above its threshold; other states never occur."""
    if not lif.remembers or state % 2 == 0:
        return True
    membrane = lif.membrane_of(torch.tensor(float(state // 2 + lif.membrane.lowest)))
    return bool((membrane >= lif._threshold_level(lif.threshold_value(membrane))).all())


MEMBRANES = [
    spq.TernaryMembrane(),
    spq.TernaryMembrane(boundaries="eq7"),
    spq.BinaryMembrane(),
    spq.UniformMembrane(4),
    spq.UniformMembrane(levels=(-3, 1), unit=0.37),
]
NODES = {
    "IF": functools.partial(neuron.IFNode, v_threshold=0.9),
    "IF soft": functools.partial(neuron.IFNode, v_reset=None),
    "LIF": functools.partial(neuron.LIFNode, tau=1.7),
    "LIF soft": functools.partial(neuron.LIFNode, decay_input=False, v_reset=None),
    "LIF below rest": functools.partial(neuron.LIFNode, v_reset=-0.25),
    "PLIF above rest": functools.partial(
        neuron.ParametricLIFNode, decay_input=False, v_reset=0.1, v_threshold=1.3
    ),
    "Leaky": functools.partial(snn.Leaky, beta=0.9, init_hidden=True),
    "Leaky zero": functools.partial(
        snn.Leaky, beta=0.7, init_hidden=True, reset_mechanism="zero", threshold=0.6
    ),
    "Leaky none": functools.partial(snn.Leaky, beta=0.5, init_hidden=True, reset_mechanism="none"),
    "Leaky at once": functools.partial(snn.Leaky, beta=0.9, init_hidden=True, reset_delay=False),
    "Leaky zero at once": functools.partial(
        snn.Leaky, beta=0.9, init_hidden=True, reset_delay=False, reset_mechanism="zero"
    ),
    "Leaky, a beta each": functools.partial(
        snn.Leaky, beta=torch.linspace(0.3, 0.95, CHANNELS), init_hidden=True
    ),
    "Lapicque": functools.partial(snn.Lapicque, beta=0.8, init_hidden=True),
    "Lapicque zero": functools.partial(
        snn.Lapicque, beta=0.8, init_hidden=True, reset_mechanism="zero"
    ),
}


def compare(model: nn.Module, net: spq.IntegerNetwork) -> set[tuple[int, int]]:
    """Every outcome of the model from every state, against the table; returns those that occur."""
    (node,) = net.graph.neurons
    x = every_input()
    seen = set()
    if not model.added:  # one input for each difference is enough
        x = torch.stack(
            [x.diff(dim=1)[:, 0].neg().clamp(min=0), x.diff(dim=1)[:, 0].clamp(min=0)], 1
        )
        x = x.unique(dim=0)
    totals, numbers = (x[:, 0] - x[:, 1]).int().tolist(), x.int().tolist()
    for state in range(node.states):
        if not reachable(model.lif, state):
            continue
        spikes, after = one_step(model, state, x)
        for row, total in enumerate(totals):
            for channel in range(node.shape[0]):
                number = numbers[row][channel] if model.added else 0
                expected = int(spikes[row, channel] != 0), int(after[row, channel])
                found = looked_up(node, channel, state, number, total)
                assert found == expected, (channel, state, number, total)
                seen.add(expected)
    return seen


@pytest.mark.parametrize("membrane", MEMBRANES, ids=lambda m: f"{type(m).__name__}{m.lowest}")
@pytest.mark.parametrize("name", NODES)
def test_a_table_is_the_neuron_at_every_sum_and_state(name, membrane):
    try:
        model, net = lower(Differences(NODES[name](), norm=True, added=False), membrane)
    except spq.errors.UnsupportedModuleError as error:
        # A delayed reset must be able to tell what fired from what did not.
        assert "delayed reset" in str(error)
        assert membrane.highest < 1 or "Leaky" in name or "Lapicque" in name
        return
    seen = compare(model, net)
    assert {spike for spike, _ in seen} == {0, 1}
    assert len({state for _, state in seen}) > 1


@pytest.mark.parametrize("name", ["IF", "LIF soft", "Leaky", "Leaky zero at once"])
def test_a_table_is_the_neuron_at_every_number_that_is_added(name):
    model, net = lower(Differences(NODES[name](), norm=True, added=True), spq.TernaryMembrane())
    assert net.graph.neurons[0].counts == (0, REACH)
    assert {spike for spike, _ in compare(model, net)} == {0, 1}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["LIF soft", "Leaky"])
def test_learnt_thresholds_are_those_of_forward_bounds_included(name, per_channel):
    rule = spq.LearnableThreshold(per_channel=per_channel)
    model = Differences(NODES[name](), norm=False, added=False)
    model, _ = lower(model, spq.TernaryMembrane(), threshold=rule)
    threshold = model.lif._threshold()
    factors = torch.linspace(0.3, 2.5, threshold.numel()).view(threshold.shape)
    threshold.data.mul_(factors)  # some beyond both bounds
    net = spq.to_integer(model, every_input()[:2], input_range=(0, REACH), engine="torch")
    assert {spike for spike, _ in compare(model, net)} >= {0}


@pytest.mark.usefixtures("float64")
def test_a_table_of_a_model_in_double_precision():
    model, net = lower(Differences(NODES["LIF soft"](), norm=True, added=False), MEMBRANES[3])
    assert model.fc.weight.dtype == torch.float64
    assert {spike for spike, _ in compare(model, net)} == {0, 1}


def test_a_closed_channel_does_what_a_silent_current_does():
    body = nn.Sequential(
        layer.Linear(4, 5), neuron.LIFNode(), layer.Linear(5, 3), neuron.LIFNode(v_reset=-0.25)
    )
    nn.init.uniform_(body[0].weight, -0.2, 1.0)
    config = spq.presets.quant_snn(channel_gate=ChannelGate())
    x = torch.ones(2, 4)
    model = spq.convert(body, config, x).eval()
    net = spq.to_integer(model, x, engine="torch")
    node, lif = net.graph.neurons[1], model[3]
    assert node.gate is not None
    for state in range(node.states):
        lif.v = lif.membrane_of(torch.full((1, 3), float(state + lif.membrane.lowest)))
        spikes = lif(torch.zeros(1, 3))
        after = lif.stored_levels(lif.v).long() - lif.membrane.lowest
        for channel in range(3):
            row = node.outcomes[int(node.closed[channel, state, 0])]
            assert row[:2].tolist() == [int(spikes[0, channel]), int(after[0, channel])]
        spq.reset(model)


# --- gates --------------------------------------------------------------------------------------


def a_gate(outputs: int, inputs: int, threshold: float = 0.47) -> nn.Module:
    gate = gate_modules.ChannelGate(inputs, outputs, threshold)
    nn.init.normal_(gate.weight)
    nn.init.normal_(gate.bias, std=0.5)
    gate.weight_quantizer.initialize(gate.weight)
    return gate.eval()


@pytest.mark.parametrize("threshold", [0.1, 0.47, 0.5, 0.83])
@pytest.mark.parametrize("area", [1, 9, 49])
def test_a_gate_opens_at_every_sum_where_the_trained_one_does(area, threshold):
    gate = a_gate(11, 1, threshold)
    levels, scale = gate.weight_quantizer(gate.weight)
    weight, least = decision(gate, 2, area, 1.0)
    assert torch.equal(weight.float(), levels)
    sums = torch.arange(-2 * area, 2 * area + 1).float().unsqueeze(1)
    with torch.no_grad():
        logits = fg.channel_logits(sums, area, levels, scale.flatten(), gate.bias)
        expected = fg.open_channels(logits, threshold).bool()
    assert torch.equal(sums.long() @ weight.long().T >= least, expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("channels", [1, 3, 8, 9, 64])
def test_a_gate_on_the_very_boundary_opens_alike_wherever_its_channel_stands(channels):
    """torch's sigmoid of this number is another one in the last places of a tensor."""
    logits = torch.full((3, channels), -0.12014435231685638)
    opened = fg.open_channels(logits)
    assert len(opened.unique()) == 1
    assert torch.equal(opened[:1, :1], fg.open_channels(logits[:1, :1]))
    assert torch.equal(opened[0, 0], fg.open_channels(torch.full((64,), float(logits[0, 0])))[0])


@pytest.mark.parametrize("first", range(-5, 6))
def test_bisection_finds_the_first_true_number(first):
    low, high = torch.tensor([-4, -4]), torch.tensor([4, 4])
    limit = torch.tensor([first, 0])
    found = first_true(lambda at: at >= limit, low, high)
    assert found.tolist() == [min(max(first, -4), 5), 0]


# --- what is no table ---------------------------------------------------------------------------


class Odd:
    """A neuron that is asked for outcomes, with rules of its own."""

    remembers = False

    def __init__(self, membrane, rule) -> None:
        self.membrane, self.rule = membrane, rule

    def outcome(self, current: Tensor, levels: Tensor, fired: Tensor) -> Outcome:
        spikes = self.rule(current).to(current.dtype)
        stored = torch.zeros_like(current) * levels
        return Outcome(spikes, stored, spikes > 0, stored)


def odd_table(rule, membrane=None, remembers: bool = False, gated: bool = False):
    odd = Odd(membrane or spq.TernaryMembrane(), rule)
    odd.remembers = remembers
    symbol = Symbol("sums", (2,), (1,))
    probe = Probe(odd, symbol, (0, 0), False, torch.float32, torch.device("cpu"))
    return tabulate(probe, torch.tensor([-50, -20]), torch.tensor([50, 70]), gated)


def test_a_monotone_rule_is_a_table():
    table = odd_table(lambda current: current >= 3)
    assert table.breaks[:, :, 0, 0].unique().tolist() == [3]
    assert table.breaks.shape == (2, 3, 1, 1)
    assert table.outcomes[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("constant", [0, 1])
def test_a_rule_that_never_changes_is_a_comparison_that_never_holds(constant):
    table = odd_table(lambda current: torch.full_like(current, constant))
    assert bool((table.breaks[..., 0] > torch.tensor([50, 70]).view(2, 1, 1)).all())
    assert table.outcomes[:, 0].tolist() == [constant, constant]


@pytest.mark.parametrize(
    "rule",
    [
        lambda current: current.abs() >= 8,
        lambda current: (current >= -10) & (current < 30),
        lambda current: current <= 0,
    ],
)
def test_a_decision_that_goes_up_and_down_is_refused(rule):
    with pytest.raises(DeployError, match="does not change in one direction"):
        odd_table(rule)


def test_spikes_of_other_sizes_are_refused():
    with pytest.raises(DeployError, match=r"spikes are not 0 and 1.*surrogate function"):
        odd_table(lambda current: current.sigmoid())


def test_other_remembered_spikes_are_refused():
    class Forgetful(Odd):
        def outcome(self, current, levels, fired):
            return super().outcome(current, levels, fired)._replace(fired=current > 40)

    odd = Forgetful(spq.TernaryMembrane(), lambda current: current >= 3)
    odd.remembers = True
    probe = Probe(
        odd, Symbol("sums", (2,), (1,)), (0, 0), False, torch.float32, torch.device("cpu")
    )
    with pytest.raises(DeployError, match="remembers other spikes than it emits"):
        tabulate(probe, torch.tensor([-50, -20]), torch.tensor([50, 70]), False)


def test_more_than_sixteen_levels_are_refused():
    with pytest.raises(DeployError, match=r"17 levels: .* at most 16, .*Use UniformMembrane"):
        odd_table(lambda current: current >= 3, spq.UniformMembrane(levels=(-8, 8)))


def test_a_potential_that_is_not_finite_is_refused():
    class Endless(Odd):
        def outcome(self, current, levels, fired):
            found = super().outcome(current, levels, fired)
            return found._replace(levels=found.levels * float("nan"))

    probe = Probe(
        Endless(spq.TernaryMembrane(), lambda current: current >= 3),
        Symbol("sums", (2,), (1,)),
        (0, 0),
        False,
        torch.float32,
        torch.device("cpu"),
    )
    with pytest.raises(DeployError, match=r"not finite: weights, norms and thresholds must be"):
        tabulate(probe, torch.tensor([-50, -20]), torch.tensor([50, 70]), False)


def test_a_draft_names_every_node_once():
    draft = Draft()
    first = draft.input((2,), 0, 1, None)
    assert draft.input((2,), 0, 1, None) is first
