"""Our counts, those of other tools, and slow loops: all the same, or it says why not."""

from __future__ import annotations

import copy
import importlib
import json
import math
import sys
from itertools import product

import networks
import pytest
import snntorch as snn
import torch
from neurobench.metrics.manager.static_manager import StaticMetricManager
from neurobench.metrics.manager.workload_manager import WorkloadMetricManager
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.utils.layers import single_layer_MACs
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import SynOpCounter
from torch import nn
from torch.nn.utils import parametrize

import spquant_plugin as spq
from spquant_plugin.analysis.agreement import Agreement, AgreementRow, neurobench, op_counter

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


def spikes(*shape, rate=0.4):
    return (torch.rand(*shape) < rate).float()


def thin_out(net):
    """Set about a third of all weights to zero, and make the others fire neurons."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                module.weight.uniform_(-0.3, 1.0)
                module.weight *= spikes(*module.weight.shape, rate=0.67)
    return net


# --- slow loops: one multiplication and one output at a time -----------------------------------


def taps(conv, size):
    """Every (output, kernel, input) position of a convolution that lies inside the input."""
    dims = range(len(size))
    out = [
        (size[d] + 2 * conv.padding[d] - conv.dilation[d] * (conv.kernel_size[d] - 1) - 1)
        // conv.stride[d]
        + 1
        for d in dims
    ]
    for place in product(*map(range, out)):
        for tap in product(*map(range, conv.kernel_size)):
            spot = [
                place[d] * conv.stride[d] - conv.padding[d] + tap[d] * conv.dilation[d]
                for d in dims
            ]
            if all(0 <= spot[d] < size[d] for d in dims):
                yield tap, tuple(spot)


def pairs(module, x):
    """Dense and effective operations of one call, counted one by one."""
    weight, dense, effective = module.weight.detach(), 0, 0
    if isinstance(module, nn.Linear):
        for row in x.reshape(-1, x.shape[-1]):
            for o, i in product(*map(range, weight.shape)):
                dense += 1
                effective += bool(weight[o, i] != 0 and row[i] != 0)
        return dense, effective
    x = x.reshape(-1, *x.shape[-weight.ndim + 1 :])
    found = list(taps(module, x.shape[2:]))
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    for row, group, o, i in product(range(len(x)), range(module.groups), range(outs), range(ins)):
        live = x[row, group * ins + i]
        kernel = weight[group * outs + o, i]
        for tap, spot in found:
            dense += 1
            effective += bool(kernel[tap] != 0 and live[spot] != 0)
    return dense, effective


class Loops:
    """What the loops find in one run of a folded copy."""

    def __init__(self, net, sample, timesteps=None):
        net = spq.fold(net).eval()
        self.dense = self.acs = self.macs = self.zeros = self.outputs = 0
        # Before the run: snnTorch's membranes are buffers, and empty at rest.
        held = [*net.parameters(), *net.buffers()]
        self.footprint = sum(t.numel() * t.element_size() for t in held)
        self.parameters = sum(p.numel() for p in net.parameters())
        calls = {}
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                module.register_forward_pre_hook(
                    lambda m, args: calls.setdefault(m, []).append(args[0].clone())
                )
            elif isinstance(module, neuron.BaseNode | snn.SpikingNeuron):
                module.register_forward_hook(self.fired)
        with torch.no_grad():
            for x in [sample] if timesteps is None else sample:
                net(x)
        for module, inputs in calls.items():
            binary = all(value in (0.0, 1.0) for x in inputs for value in x.flatten().tolist())
            for x in inputs:
                dense, effective = pairs(module, x)
                self.dense += dense
                self.acs += effective if binary else 0
                self.macs += 0 if binary else effective
        weights = [w for module in calls for w in module.weight.flatten().tolist()]
        self.connection = sum(w == 0 for w in weights) / len(weights)

    def fired(self, module, args, output):
        values = (output[0] if isinstance(output, tuple) else output).flatten().tolist()
        self.zeros += sum(value == 0 for value in values)
        self.outputs += len(values)


def agrees_with_loops(net, sample, timesteps=None):
    """Three parties: ours, NeuroBench, loops. Returns the agreement for more."""
    loops, agreement = Loops(net, sample, timesteps), neurobench(net, sample, timesteps=timesteps)
    assert agreement.agrees, str(agreement)
    assert agreement.verdict == "NeuroBench 2.3.0 agrees: yes"
    assert {row.quantity: (row.ours, row.theirs) for row in agreement.rows[-4:]} == {
        "dense operations": (loops.dense, loops.dense),
        "effective operations": (loops.acs + loops.macs, loops.acs + loops.macs),
        "effective ACs": (loops.acs, loops.acs),
        "effective MACs": (loops.macs, loops.macs),
    }
    for name in ("footprint", "parameters"):
        value = getattr(loops, name)
        assert (agreement[name].ours, agreement[name].theirs) == (value, value)
    assert abs(agreement["connection sparsity"].theirs - loops.connection) <= 0.5001e-4
    silent = agreement["activation sparsity"]
    share = loops.zeros / loops.outputs
    assert 0 < share < 1
    assert max(abs(silent.ours - share), abs(silent.theirs - share)) <= 1e-12
    assert loops.acs + loops.macs < loops.dense
    return agreement


CONVOLUTIONS = {
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": (1, 0)},
    "groups": {"groups": 2, "padding": 1},
    "dilation, bias": {"dilation": 2, "padding": 2, "bias": True},
}


def small(options, step_mode="m"):
    """A convolution, a neuron with soft reset, and a linear layer, a third of all weights zero."""
    conv = layer.Conv2d(2, 4, 3, **({"bias": False} | options))
    rows = conv(torch.zeros(1, 2, 5, 4)).shape[-2:].numel() * 4
    net = nn.Sequential(
        conv, neuron.IFNode(v_reset=None), layer.Flatten(), layer.Linear(rows, 3),
        neuron.LIFNode(v_threshold=0.5),
    )  # fmt: skip
    functional.set_step_mode(net, step_mode)
    return thin_out(net)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_a_network_that_can_be_counted_by_hand(name, step_mode):
    net, sample = small(CONVOLUTIONS[name], step_mode), spikes(2, 3, 2, 5, 4)
    agreement = agrees_with_loops(net, sample, timesteps=2 if step_mode == "s" else None)
    assert agreement["effective MACs"].theirs == 0
    assert agreement["connection sparsity"].theirs > 0.2
    assert agreement.model == "Sequential"


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_same_converted_with_zeros_among_the_quantised_weights(name):
    sample = spikes(2, 2, 2, 5, 4)
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(),
        weights=spq.TernaryWeights(),
        edge_weights=spq.TernaryWeights(),
    )
    net = spq.convert(small(CONVOLUTIONS[name]), config, sample=sample)
    agreement = agrees_with_loops(net, sample)
    (note,) = agreement.notes
    assert "and so does the copy" in note
    pairs_per_sample = agreement["effective operations"].theirs / 2
    assert f"meets {pairs_per_sample:,.12g} pairs of a nonzero weight" in note


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("network", ["snn_torch", "Loop"])
def test_both_idioms_of_snntorch(network, converted):
    net, sample = thin_out(getattr(networks, network)()), spikes(4, 3, 5)
    timesteps = 4 if network == "snn_torch" else None
    if converted:
        one = sample[0] if timesteps else sample
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=one)
    agrees_with_loops(net, sample, timesteps)


def test_inputs_that_are_no_spikes_are_macs_in_both():
    net, sample = small({"padding": 1}), spikes(2, 2, 2, 5, 4) * 3
    agreement = agrees_with_loops(net, sample)
    assert agreement["effective MACs"].theirs > 0
    assert agreement["effective ACs"].theirs > 0


def lively(host, bits, device="cpu"):
    """A network of several convolutions whose neurons fire, a sample, and its number of steps."""
    name = "conv_net" if host == "snntorch" else "vgg5"
    library = "snntorch" if host == "snntorch" else "spikingjelly"
    options = {"in_channels": 2, "size": 16, "num_classes": 4, "width": 0.25}
    net = thin_out(spq.models.create(name, host=library, **options).to(device))
    sample = spikes(3, 2, 2, 16, 16).to(device)
    if host == "single steps":
        functional.set_step_mode(net, "s")
    timesteps = None if host == "spikingjelly" else 3
    if bits:
        config = spq.presets.quant_snn(weight_bits=bits, adaptive=True)
        net = spq.convert(net, config, sample=sample if timesteps is None else sample[0])
    return net, sample, timesteps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [None, 2, 4])
@pytest.mark.parametrize("host", ["spikingjelly", "single steps", "snntorch"])
def test_a_converted_network_of_each_host(host, bits, device):
    net, sample, timesteps = lively(host, bits, device)
    agreement = neurobench(net, sample, timesteps=timesteps)
    assert agreement.agrees
    # Average pools give multiples of 1/4, in some steps of a layer only 0 and 1.
    told_apart = [row.quantity for row in agreement.rows if row.equal is None]
    assert set(told_apart) <= {"effective ACs", "effective MACs"}
    assert agreement["effective operations"].theirs > 10_000
    assert agreement["connection sparsity"].theirs > 0
    assert 0.01 < agreement["activation sparsity"].theirs < 0.99
    counted = op_counter(net, sample, timesteps=timesteps)
    assert counted.agrees
    assert counted["effective operations"].theirs > 10_000
    assert counted["dense operations"].equal


def test_a_gated_network_is_compared_before_its_gates():
    net, sample, _ = lively("spikingjelly", None)
    gated = spq.convert(net, spq.presets.spquant_snn(weight_bits=2), sample=sample)
    agreement = neurobench(gated, sample)
    assert agreement.agrees
    layers = [row for row in spq.analyze(gated, sample).operations if row.kind in ("AC", "MAC")]
    assert agreement["effective operations"].ours == round(2 * sum(row.nonzero for row in layers))
    convention = agreement["connection sparsity"].convention
    assert "without conv2, conv3, conv4, which it skips for the gate inside" in convention


# --- SpikingJelly's counters --------------------------------------------------------------------


def test_op_counter_is_the_loop_where_its_definition_fits():
    net, sample = small({}), spikes(2, 3, 2, 5, 4)
    loops, agreement = Loops(net, sample), op_counter(net, sample)
    assert agreement.agrees
    row = agreement["effective operations"]
    assert (row.ours, row.theirs) == (loops.acs, loops.acs)
    row = agreement["dense operations"]
    assert (row.ours, row.theirs) == (loops.dense, loops.dense)
    # Its synaptic operations give zero weights no credit, and both layers have some.
    assert agreement["synaptic operations"].equal is None
    assert agreement["synaptic operations"].why == "0, 3 (zero weights, which it counts)"
    assert agreement["flops"].theirs == 2 * loops.dense  # nothing is padded
    assert (
        agreement.verdict
        == f"{agreement.tool} {agreement.version} agrees: yes, on 3 of 4 quantities"
    )


def test_op_counter_counts_every_synapse_of_a_layer_without_zeros():
    net, sample = small({}), spikes(2, 3, 2, 5, 4)
    net[0].weight.data.uniform_(0.1, 1.0)
    agreement = op_counter(net, sample)
    row = agreement["synaptic operations"]
    assert row.ours == row.theirs == pairs(net[0], sample)[1]
    assert "1 of 2 layers" in row.convention
    assert "synaptic operations without 3 (zero weights, which it counts)" in agreement.notes


REFUSED = {
    "padding": (nn.Conv2d(1, 1, 3, padding=1), "zero padding"),
    "same": (nn.Conv2d(1, 1, 3, padding="same"), "zero padding"),
    "crop": (nn.ConvTranspose2d(1, 1, 3, padding=1), "an output that is cropped"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_op_counter_is_not_compared_where_it_counts_what_we_do_not(name):
    module, why = REFUSED[name]
    nn.init.constant_(module.weight, 0.5)
    agreement = op_counter(nn.Sequential(module, neuron.IFNode()), torch.ones(1, 1, 4, 4))
    flops = agreement["flops"]
    assert flops.equal is None
    assert (
        flops.why
        == f"0 ({why}, {'of which it counts all' if name == 'crop' else 'which it counts'})"
    )
    dense = agreement["dense operations"]
    assert dense.ours == dense.theirs < 9 * 16
    assert agreement["effective operations"].equal
    assert agreement.agrees


def test_padding_with_values_of_the_other_side_is_counted_by_all():
    module = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    nn.init.constant_(module.weight, 0.5)
    net, sample = nn.Sequential(module, neuron.IFNode()), torch.ones(1, 1, 4, 4)
    for tool in (neurobench, op_counter):
        row = tool(net, sample)["dense operations"]
        assert row.ours == row.theirs == 9 * 16


def test_inputs_that_are_no_spikes_are_none_of_its_synaptic_operations():
    agreement = op_counter(nn.Sequential(positive(4, 3), neuron.IFNode()), torch.full((1, 4), 2.0))
    assert "inputs other than 0 and 1" in agreement["effective operations"].why
    assert agreement["dense operations"].equal


def positive(*sizes, **options):
    module = nn.Linear(*sizes, **options)
    nn.init.uniform_(module.weight, 0.6, 1.0)
    return module


def test_a_call_that_it_has_no_rule_for_is_left_out(monkeypatch):
    """Where the tensor library computes a layer by another operation, it counts 0 in silence."""
    monkeypatch.setattr(SynOpCounter, "has_rule", lambda self, operation: False)
    agreement = op_counter(nn.Sequential(positive(4, 3), neuron.IFNode()), torch.ones(1, 4))
    assert agreement.verdict.endswith("no, nothing could be compared")
    assert "0 (operations without a rule: aten.mm" in agreement["effective operations"].why


def test_one_sample_without_a_batch():
    net = nn.Sequential(positive(4, 3), snn.Leaky(beta=0.5, init_hidden=True))
    for tool in (neurobench, op_counter):
        agreement = tool(net, torch.ones(2, 4), timesteps=2)
        assert agreement.agrees
        assert agreement["dense operations"].theirs == 24


# --- where definitions differ -------------------------------------------------------------------


def test_minus_one_is_a_spike_for_neurobench_and_a_factor_for_us():
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    agreement = neurobench(net, torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert agreement.agrees
    assert agreement["effective operations"].theirs == 24
    for name, theirs in (("effective ACs", 24), ("effective MACs", 0)):
        assert agreement[name].theirs == theirs
        assert agreement[name].why == "it adds the inputs -1 of 0, where we multiply"
    assert agreement.verdict == "NeuroBench 2.3.0 agrees: yes, on 6 of 8 quantities"


def test_calls_that_see_only_spikes_in_some_steps_are_not_told_apart_alike():
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    sample = torch.ones(2, 1, 4)
    sample[1, 0, 0] = 0.5
    agreement = neurobench(net, sample, timesteps=2)
    assert agreement.agrees
    assert "0 sees only 0 and 1 in some, not in all" in agreement["effective ACs"].why


def test_a_layer_without_a_rule_is_left_out_and_named():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), neuron.IFNode(), nn.ConvTranspose2d(2, 1, 2), neuron.IFNode()
    )
    for module in (net[0], net[2]):
        nn.init.uniform_(module.weight, 0.6, 1.0)
    agreement = neurobench(net, torch.ones(1, 1, 4, 4))
    assert agreement.agrees
    assert agreement["dense operations"].theirs == 2 * 4 * 9
    assert "1 of 2 layers" in agreement["dense operations"].convention
    (note,) = agreement.notes
    assert note.startswith("NeuroBench has no rule for 2 (ConvTranspose2d)")


def test_recurrent_weights_of_snntorch():
    options = {"beta": 0.5, "init_hidden": True, "threshold": 0.5}
    full = snn.RLeaky(linear_features=3, **options)
    single = snn.RLeaky(all_to_all=False, V=torch.ones(3), **options)
    sample = torch.ones(3, 2, 4)
    agreement = neurobench(nn.Sequential(positive(4, 3), full), sample, timesteps=3)
    assert agreement.agrees
    assert agreement["dense operations"].theirs == 3 * 2 * (4 * 3 + 3 * 3)
    net = nn.Sequential(positive(4, 3), single)
    for tool in (neurobench, op_counter):
        agreement = tool(net, sample, timesteps=3)
        assert agreement["dense operations"].theirs == 3 * 2 * 4 * 3
        assert "1.recurrent" in " ".join(agreement.notes)


def test_a_layer_at_two_places_is_counted_twice_by_neurobench():
    shared = positive(4, 4)
    net = nn.Sequential(
        nn.Sequential(shared, neuron.IFNode()), nn.Sequential(shared, neuron.IFNode())
    )
    sample = torch.ones(2, 4)
    agreement = neurobench(net, sample)
    assert agreement["dense operations"].theirs == 2 * 64
    assert "0.0 stands at several places" in agreement["dense operations"].why
    assert op_counter(net, sample)["dense operations"].theirs == 64


def test_a_neuron_at_two_places_or_called_twice_is_not_compared():
    node = neuron.IFNode()
    net = nn.Sequential(nn.Sequential(positive(4, 4), node), nn.Sequential(positive(4, 4), node))
    agreement = neurobench(net, torch.ones(2, 4))
    assert agreement["activation sparsity"].why == "it does not count 0.1 exactly once, as we do"

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.first, self.second = positive(4, 4), neuron.IFNode(), neuron.IFNode()

        def forward(self, x):
            return self.second(self.first(self.first(self.fc(x))))

    agreement = neurobench(Twice(), torch.ones(2, 4))
    assert "called a different number of times" in agreement["activation sparsity"].why
    assert agreement.agrees


class Standardised(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean() + 1)


def test_a_layer_with_a_forward_of_its_own_is_not_compared():
    net = nn.Sequential(Standardised(4, 3), neuron.IFNode())
    agreement = neurobench(net, torch.ones(1, 4))
    assert agreement["dense operations"].why == "0 computes in a way of its own"
    counted = op_counter(net, torch.ones(1, 4))
    assert not counted.agrees
    assert counted.verdict.endswith("agrees: no, nothing could be compared")


class WithCell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.fc, self.node = kind(4, 3), positive(3, 2), neuron.IFNode()

    def forward(self, x):
        state = self.cell(x)
        return self.node(self.fc((state[0] if isinstance(state, tuple) else state).abs() + 1))


def test_what_only_neurobench_counts_is_not_compared():
    agreement = neurobench(WithCell(nn.RNNCell), torch.ones(2, 4))
    assert agreement["dense operations"].why == "it counts cell, for which we have no rule"
    assert agreement["connection sparsity"].why == "it counts biases of cell"


def test_a_network_without_weights_has_neurons_to_compare_only():
    agreement = neurobench(neuron.IFNode(), torch.full((2, 4), 2.0))
    assert agreement.agrees
    assert agreement["activation sparsity"].theirs == 0
    assert agreement["dense operations"].why == "there is no layer that both count"
    assert "no linear or convolutional" in agreement["connection sparsity"].why
    counted = op_counter(neuron.IFNode(), torch.full((2, 4), 2.0))
    assert {row.why for row in counted.rows} == {"there is no weight layer"}
    assert not counted.agrees


def test_modules_that_the_sample_does_not_call_are_no_matter():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.node = positive(4, 3), neuron.IFNode()
            self.other, self.silent = nn.Linear(3, 3), neuron.IFNode()
            nn.init.zeros_(self.other.weight)

        def forward(self, x):
            return self.node(self.fc(x))

    for tool in (neurobench, op_counter):
        agreement = tool(Unused(), torch.ones(2, 4))
        assert agreement.verdict.endswith("agrees: yes")
        assert agreement["dense operations"].theirs == 24
    # A weight that is held is a connection all the same.
    agreement = neurobench(Unused(), torch.ones(2, 4))
    assert agreement["connection sparsity"].theirs == round(9 / 21, 4)


def test_a_layer_alone_and_a_sample_of_positional_or_named_arguments():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.node = positive(4, 3), neuron.IFNode()

        def forward(self, x, scale):
            return self.node(self.fc(x * scale))

    x, scale = torch.ones(2, 4), torch.ones(1)
    for sample in ((x, scale), {"x": x, "scale": scale}):
        assert neurobench(Named(), sample)["dense operations"].theirs == 24


def test_counts_above_what_single_precision_holds_are_exact():
    net = nn.Sequential(nn.Conv1d(1, 1, 5, bias=False), neuron.IFNode())
    nn.init.uniform_(net[0].weight, 0.6, 1.0)
    x = torch.ones(1, 1, 3_400_003)
    count = 3_399_999 * 5
    assert count > 2**24
    assert single_layer_MACs(x, net[0], total=True)[0] != count  # NeuroBench by itself
    agreement = neurobench(net, x)
    assert agreement["dense operations"].theirs == agreement["dense operations"].ours == count


def test_what_is_changed_in_place_afterwards_is_counted_as_it_was():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.node = positive(4, 3), neuron.IFNode()

        def forward(self, x):
            y = self.node(self.fc(x))
            x.fill_(1.0)
            return y.add_(3.0)

    sample = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    agreement = neurobench(InPlace(), sample)
    assert agreement.agrees
    assert agreement["effective operations"].theirs == 6
    assert agreement["activation sparsity"].theirs >= 0.5
    assert sample.sum() == 2


# --- failures of the other tools ----------------------------------------------------------------


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight - 1.5


def parametrized():
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    nn.init.constant_(net[0].weight, 0.5)
    parametrize.register_parametrization(net[0], "weight", Double())
    return net


def test_neurobench_itself_counts_a_parametrized_weight_below_zero():
    net = parametrized()
    assert single_layer_MACs(torch.ones(1, 4), net[0])[0] < 0


@pytest.mark.parametrize("tool", [neurobench, op_counter])
def test_a_parametrized_weight_is_refused(tool):
    net = nn.Sequential(nn.Sequential(positive(4, 4), neuron.IFNode()), parametrized())
    with pytest.raises(spq.errors.AnalysisError) as caught:
        tool(net, torch.ones(1, 4))
    message = str(caught.value)
    assert message.startswith(
        "1.0 (ParametrizedLinear): its weight is computed by a parametrization"
    )
    assert "negative counts" in message
    assert "remove_parametrizations" in message


@pytest.mark.parametrize("tool", [neurobench, op_counter])
def test_a_weight_that_a_hook_computes_is_refused(tool):
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    weight = net[0]._parameters.pop("weight")
    net[0].latent, net[0].weight = nn.Parameter(weight.detach()), weight.detach()
    with pytest.raises(spq.errors.AnalysisError, match="computed by a hook or its class"):
        tool(net, torch.ones(1, 4))


def fails(*args):
    raise RuntimeError("no such layer")


@pytest.mark.parametrize(
    ("metric", "error"),
    [
        (Footprint, "Footprint of NeuroBench"),
        (ConnectionSparsity, "ConnectionSparsity of NeuroBench"),
        (ActivationSparsity, "ActivationSparsity of NeuroBench"),
        (SynapticOperations, "SynapticOperations of NeuroBench"),
    ],
)
def test_an_exception_inside_a_metric_is_a_failure(metric, error, monkeypatch, capsys):
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    monkeypatch.setattr(metric, "__call__", fails)
    with pytest.raises(
        spq.errors.AnalysisError, match=f"{error} 2.3.0 failed on Sequential"
    ) as caught:
        neurobench(net, torch.ones(1, 4))
    assert "RuntimeError: no such layer" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert capsys.readouterr().out == ""


def test_neurobench_itself_prints_a_line_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(ActivationSparsity, "__call__", fails)
    monkeypatch.setattr(Footprint, "__call__", fails)
    model = TorchModel(nn.Sequential(positive(4, 3), neuron.IFNode()))
    data = (torch.ones(1, 4), torch.ones(1))
    workload = WorkloadMetricManager([ActivationSparsity]).run_metrics(model, None, data, 1, 1)
    static = StaticMetricManager([Footprint]).run_metrics(model)
    assert (dict(workload), static) == ({"ActivationSparsity": 0.0}, {"Footprint": None})
    assert capsys.readouterr().out.count("no such layer") == 2


def operations(**changed):
    return lambda *_: {"Effective_MACs": 0, "Effective_ACs": 12, "Dense": 12} | changed


NONSENSE = [
    (Footprint, None, "a finite number"),
    (Footprint, -4, "a finite number that is not negative"),
    (Footprint, 10.5, "a whole number"),
    (ConnectionSparsity, math.nan, "a number from 0 to 1"),
    (ActivationSparsity, 1.5, "a number from 0 to 1"),
    (SynapticOperations, operations(Effective_ACs=-5), "a finite number that is not negative"),
    (SynapticOperations, operations(Dense=math.inf), "a finite number"),
    (SynapticOperations, operations(Effective_MACs=0.25), "a whole number"),
]


@pytest.mark.parametrize(("metric", "value", "rule"), NONSENSE)
def test_a_number_that_no_count_can_be_is_a_failure(metric, value, rule, monkeypatch):
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    answer = value if callable(value) else lambda *_: value
    monkeypatch.setattr(metric, "__call__", answer)
    with pytest.raises(spq.errors.AnalysisError, match=f"must be {rule}"):
        neurobench(net, torch.ones(1, 4))


def test_a_wrong_number_is_no_agreement(monkeypatch):
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    monkeypatch.setattr(SynapticOperations, "__call__", operations(Dense=13))
    agreement = neurobench(net, torch.ones(1, 4))
    assert not agreement.agrees
    assert agreement.verdict == "NeuroBench 2.3.0 agrees: no, not on dense operations"
    assert agreement["dense operations"].cells()[:4] == ("dense operations", "12", "13", "NO")


def test_a_negative_number_of_the_counters_is_a_failure(monkeypatch):
    monkeypatch.setattr(SynOpCounter, "get_total", lambda self: -3)
    with pytest.raises(spq.errors.AnalysisError, match=r"0: .* counts -3 operations"):
        op_counter(nn.Sequential(positive(4, 3), neuron.IFNode()), torch.ones(1, 4))


def test_a_layer_that_neurobench_cannot_count_is_a_failure():
    class Lstm(WithCell):
        def forward(self, x):
            return self.node(self.fc(self.cell(x)[0].abs() + 1))

    with pytest.raises(spq.errors.AnalysisError, match=r"SynapticOperations .* failed on Lstm"):
        neurobench(Lstm(nn.LSTM), torch.ones(2, 4))


def test_a_layer_called_by_keyword_is_a_failure_of_neurobench_only():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.node = positive(4, 3), neuron.IFNode()

        def forward(self, x):
            return self.node(self.fc(input=x))

    with pytest.raises(spq.errors.AnalysisError, match="one positional tensor"):
        neurobench(Keyword(), torch.ones(2, 4))
    assert op_counter(Keyword(), torch.ones(2, 4)).agrees


@pytest.mark.parametrize("tool", [neurobench, op_counter])
def test_wrong_samples_are_refused(tool):
    net = nn.Sequential(positive(4, 3), neuron.IFNode())
    with pytest.raises(spq.errors.AnalysisError, match=r"sample = list: .* Pass one batch"):
        tool(net, [torch.ones(1, 4)])
    with pytest.raises(spq.errors.SampleError, match="cannot run on it"):
        tool(net, torch.ones(1, 5))
    with pytest.raises(spq.errors.AnalysisError, match="timesteps = 3"):
        tool(net, torch.ones(2, 1, 4), timesteps=3)
    with pytest.raises(spq.errors.ConversionError, match=r"must be a torch\.nn\.Module"):
        tool("net", torch.ones(1, 4))


@pytest.mark.parametrize(
    ("tool", "module", "extra"),
    [
        (neurobench, "neurobench.metrics.static", "neurobench"),
        (op_counter, "spikingjelly.activation_based.op_counter", "spikingjelly"),
    ],
)
def test_a_missing_tool_is_an_error_with_the_command_that_fixes_it(
    tool, module, extra, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(spq.errors.MissingHostError) as caught:
        tool(nn.Sequential(positive(4, 3), neuron.IFNode()), torch.ones(1, 4))
    assert f'python -m pip install "spquant-plugin[{extra}]"' in str(caught.value)
    assert module in str(caught.value)


# --- what is left behind ------------------------------------------------------------------------


@pytest.mark.parametrize("tool", [neurobench, op_counter])
@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_the_model_is_as_it_was(tool, host):
    net, sample, timesteps = lively(host, 2)
    net.train()
    heard = []
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda *_: heard.append(1))
    net(sample if timesteps is None else sample[0])
    heard.clear()
    before = copy.deepcopy(net.state_dict())
    states = [copy.deepcopy(m.__dict__.get("v")) for m in net.modules()]
    modules, generator = list(net.modules()), torch.get_rng_state()
    modes = [m.training for m in modules]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    instances = len(snn.SpikingNeuron.instances)
    given = sample.clone()
    assert tool(net, sample, timesteps=timesteps).agrees
    assert list(net.modules()) == modules
    assert [m.training for m in modules] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules] == hooks
    assert heard == []
    assert torch.equal(sample, given)
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(snn.SpikingNeuron.instances) == instances
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for module, state in zip(modules, states, strict=True):
        now = module.__dict__.get("v")
        assert torch.equal(now, state) if isinstance(state, torch.Tensor) else now == state


def test_states_that_an_earlier_run_left_in_buffers_are_told():
    net, sample = thin_out(networks.snn_torch()), spikes(4, 3, 5)
    fresh = neurobench(net, sample, timesteps=4)["footprint"]
    net(sample[0])
    used = neurobench(net, sample, timesteps=4)["footprint"]
    assert fresh.equal
    assert used.equal
    assert used.theirs - fresh.theirs == 4 * 3 * (7 + 7 + 2)
    assert "192 of them are states" in used.convention


# --- the record ---------------------------------------------------------------------------------


def test_a_copy_that_rounds_to_another_side_is_told():
    """The scale goes in after the sum in the model, before it in its folded copy."""
    net, sample, _ = lively("spikingjelly", 2)
    with pytest.MonkeyPatch.context() as patch:
        subject = importlib.import_module("spquant_plugin.analysis.agreement.subject")
        real, calls = subject.analyze, []

        def other(model, given, **options):
            calls.append(model)
            return real(model, given if model is not net else 1 - given, **options)

        patch.setattr(subject, "analyze", other)
        agreement = neurobench(net, sample)
    assert calls[-1] is net
    assert agreement.agrees
    assert "it rounds in another order" in agreement.notes[-1]


def test_an_agreement_as_text_values_and_markdown():
    rows = (
        AgreementRow("operations", 1200, 1200, "every weight"),
        AgreementRow("share", 0.25, 0.2500000000001, "zeros | all", tolerance=1e-12),
        AgreementRow("bytes", None, 7, why="it counts biases"),
    )
    agreement = Agreement("Tool", "1.0", "Net", rows, ("left out: fc",))
    assert str(agreement).splitlines()[0] == "Tool 1.0 agrees: yes, on 2 of 3 quantities"
    assert str(agreement) == repr(agreement) == agreement.table()
    assert str(agreement).endswith("left out: fc")
    assert "1,200" in agreement.table()
    assert "not comparable: it counts biases" in agreement.table()
    values = json.loads(agreement.to_json())
    assert values == agreement.to_dict()
    assert values["agrees"] is True
    assert [row["equal"] for row in values["rows"]] == [True, True, None]
    text = agreement.to_markdown()
    assert text.startswith("**Tool 1.0 agrees: yes")
    assert "zeros \\| all" in text
    with pytest.raises(
        KeyError, match=r"'flops' is no quantity of Tool here. There are: 'operations'"
    ):
        agreement["flops"]


def test_a_share_outside_its_tolerance_is_not_equal():
    row = AgreementRow("share", 0.25, 0.2500001, tolerance=1e-12)
    assert row.equal is False
    assert not Agreement("Tool", "1.0", "Net", (row,)).agrees
