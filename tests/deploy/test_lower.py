"""What cannot be lowered says why, and lowering leaves a model as it was."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.deploy.lowering.windows import windows
from spquant_plugin.errors import DeployError, SampleError, SelfFiringWarning

from .lively import Loop, converted, events, jelly, positive, small, weights_of

quant = spq.presets.quant_snn
lower = functools.partial(spq.to_integer, engine="torch")


class Free(nn.Module):
    """Layers of one network, and what it does with them as a function of itself and its input."""

    def __init__(self, forward, step_mode: str = "m", **parts: nn.Module) -> None:
        super().__init__()
        self.fc1, self.lif1 = layer.Linear(5, 8), neuron.LIFNode()
        self.fc2, self.lif2 = layer.Linear(8, 8), neuron.LIFNode()
        for name, part in parts.items():
            setattr(self, name, part)
        positive(self)
        functional.set_step_mode(self, step_mode)
        self.does = forward

    def forward(self, x: Tensor) -> object:
        return self.does(self, x)


def free(forward, x: Tensor | None = None, config=None, **parts) -> tuple[nn.Module, Tensor]:
    x = events(6, 4, 5) if x is None else x
    return converted(Free(forward, **parts), config or quant(4), x), x


def hidden(net: Free, x: Tensor) -> Tensor:
    return net.lif1(net.fc1(x))


def row(*parts: nn.Module, x: Tensor | None = None, config=None):
    """A network in a row for events ``[4, 3, 2, 8, 8]``."""
    x = events(4, 3, 2, 8, 8) if x is None else x
    return converted(jelly(*parts), config or quant(4), x), x


def conv(inputs: int = 2, outputs: int = 4, kernel: int = 3, **options) -> nn.Module:
    return layer.Conv2d(inputs, outputs, kernel, **{"padding": 1, **options})


LIF = neuron.LIFNode
eight_bits = quant(4, membrane=spq.UniformMembrane(8), norm=spq.QuantizedNorm("dyadic"))
wide = spq.SpQuantConfig(membrane=spq.TernaryMembrane(), weights=spq.UniformWeights(8))


def write_to_a_view(net, x):
    spikes = hidden(net, x).clone()
    spikes[0] = 0
    return net.lif2(net.fc2(spikes))


def write_to_a_list(net, x):
    spikes = hidden(net, x)
    torch._foreach_mul_([spikes], [0.0])
    return net.lif2(net.fc2(spikes))


def write_to_detached(net, x):
    spikes = hidden(net, x).clone()
    spikes.detach().mul_(0)
    return net.lif2(net.fc2(spikes))


def branch_on_data(net, x):
    spikes = hidden(net, x)
    return net.lif2(net.fc2(spikes) * (1.0 if spikes.sum() > 3 else 2.0))


def last_two(net, x):
    spikes = hidden(net, x)
    return spikes[-2] + spikes[-1]


def leaves_one_out(net, x):
    spikes = hidden(net, x)
    return spikes[0] + spikes[2]


def late_sum(net, x):
    spikes = hidden(net, x)
    return spikes[0] + spikes[1]


def step_by_step(net, x, body):
    return torch.stack([body(net, step, t) for t, step in enumerate(x)])


def scaled_by_time(net, step, t):
    return net.lif1(net.fc1(step) * (0.5 if t else 1.0))


def norms_by_time(net, step, t):
    return net.lif1(net.norms[t](net.fc1(step)))


def reset_inside(net, step, t):
    if t == 3:
        net.lif1.reset()
    return net.lif1(net.fc1(step))


def moving_threshold(net, step, t):
    net.lif1.v_threshold = 1.0 + 0.5 * t
    return net.lif1(net.fc1(step))


def of_steps(body, **parts):
    return free(functools.partial(step_by_step, body=body), step_mode="s", **parts)


def charged_before(net, step, t):
    if t == 0:
        net.lif1.v = 0.6
    return net.lif1(net.fc1(step))


def moving_bias(net, step, t):
    spikes = net.lif1(net.fc1(step))
    net.fc1.bias.data.add_(0.3)
    return spikes


def in_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.lif2(net.fc2(hidden(net, x)))


def written_by_numpy(net, x):
    spikes = hidden(net, x)
    spikes.numpy()[:] = 0
    return net.fc2(spikes)


def replaced_forward():
    model, x = row(conv(), LIF())
    model[1].forward = lambda x: torch.zeros_like(x)
    return model, x


class OwnNeuron(spq.spikingjelly.neuron.TernaryMembraneLIFNode):
    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        return super().multi_step_forward(x_seq * 0.2)


def own_neuron():
    model, x = row(conv(), LIF())
    model[1] = OwnNeuron(membrane=spq.TernaryMembrane(), step_mode="m")
    return model, x


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0.5 + 0.1


def temporal_norm() -> nn.Module:
    norm = layer.TemporalEffectiveBatchNorm2d(4, 4)
    nn.init.uniform_(norm.scale, 0.2, 3.0)
    return norm


def in_box(*parts: nn.Module):
    return row(layer.SeqToANNContainer(*parts), LIF())


def analogue(forward, **parts):
    config = quant(4, input=spq.UniformInput(8))
    return free(forward, torch.rand(6, 4, 5), config, **parts)


def two_quantisers():
    config = quant(
        4, input=spq.UniformInput(8), overrides={"fc3": quant(input=spq.UniformInput(4))}
    )
    return free(
        lambda net, x: net.lif2(net.fc2(hidden(net, x))) + net.lif3(net.fc3(x)),
        torch.rand(6, 4, 5),
        config,
        fc3=layer.Linear(5, 8),
        lif3=LIF(),
    )


def one_quantiser():
    config = quant(4, input=spq.UniformInput(8), overrides={"fc3": quant(4)})
    return free(
        lambda net, x: net.lif2(net.fc2(hidden(net, x))) + net.lif3(net.fc3(x)),
        torch.rand(6, 4, 5),
        config,
        fc3=layer.Linear(5, 8),
        lif3=LIF(),
    )


def loop(make=None, **options):
    make = make or functools.partial(snn.Leaky, beta=0.9, **options)
    x = events(6, 4, 6)
    return converted(Loop(make), quant(4), x), x


class MovedState(Loop):
    """Changes the membrane between two steps."""

    def __init__(self, change) -> None:
        super().__init__(functools.partial(snn.Leaky, beta=0.9))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes = self.lif1.init_leaky(), []
        for t in range(x.shape[0]):
            spk, mem = self.lif1(self.fc1(x[t]), self.change(self.lif1, mem, t))
            spikes.append(spk)
        return torch.stack(spikes)


def moved_state(change):
    x = events(6, 4, 6)
    return converted(MovedState(change), quant(4), x), x


class Remembers(nn.Module):
    """A network of single steps that keeps a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = layer.Linear(5, 8), LIF()
        positive(self)
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif(self.fc(x))
        total = spikes if self.before is None else spikes + self.before
        self.before = spikes
        return total


def remembers():
    x = events(4, 5)
    model = converted(Remembers(), quant(4), x)
    model.before = None
    return model, x


def recurrent():
    box = layer.ElementWiseRecurrentContainer(LIF(), lambda a, b: a + b)
    x = events(4, 5)
    return converted(jelly(layer.Linear(5, 5), box, step_mode="s"), quant(4), x), x


def synaptic():
    x = events(4, 6)
    body = positive(nn.Sequential(nn.Linear(6, 4), snn.Synaptic(0.8, 0.9, init_hidden=True)))
    return converted(body, quant(4), x), x


def inhibited():
    x = events(4, 6)
    lif = snn.Leaky(beta=0.9, inhibition=True, init_hidden=True)
    return converted(positive(nn.Sequential(nn.Linear(6, 4), lif)), quant(4), x), x


def per_pixel():
    x = events(4, 2, 8, 8)
    lif = snn.Leaky(beta=torch.rand(4, 8, 8) * 0.9, init_hidden=True)
    return converted(positive(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), lif)), quant(4), x), x


def in_half():
    model, x = row(conv(), LIF())
    return model.to(torch.bfloat16), x.to(torch.bfloat16)


def unspiking():
    smooth = surrogate.ATan(spiking=False)
    config = quant(4, surrogate=None)
    return row(conv(), LIF(surrogate_function=smooth), config=config)


def not_finite():
    model, x = row(conv(), layer.BatchNorm2d(4), LIF())
    model[1].running_mean.fill_(float("nan"))
    return model, x


def dense_gates():
    config = quant(4, channel_gate=spq.ChannelGate(score="softmax"))
    return row(conv(), LIF(), conv(4, 4), LIF(), config=config)


def analogue_gate():
    config = quant(4, input=spq.UniformInput(8), channel_gate=spq.ChannelGate(source="input"))
    return row(conv(), LIF(), conv(4, 4), LIF(), x=torch.rand(4, 3, 2, 8, 8), config=config)


def float_edges():
    return row(
        conv(), LIF(), conv(4, 4), LIF(), conv(4, 4), LIF(), config=quant(4, edge_weights=None)
    )


def ran_apart():
    model, x = row(conv(), layer.BatchNorm2d(4), LIF(), config=quant(4, norm=spq.QuantizedNorm()))
    # Somebody puts a scale between a layer and the norm that knows its scale.
    model.insert(1, layer.AvgPool2d(1, step_mode="m"))
    return model, x


def many_counts():
    x = torch.randint(0, 200, (6, 4, 5)).float()
    return free(lambda net, x: net.lif2(net.fc3(hidden(net, x)) + x), x, fc3=layer.Linear(8, 5))


def too_wide():
    x = torch.randint(0, 30_000, (6, 4, 400)).float()
    model = jelly(layer.Linear(400, 8), LIF(), layer.Linear(8, 3))
    return converted(model, wide, x), x


def float_membrane():
    return row(conv(), LIF(), config=quant(4, membrane=None, threshold=spq.LearnableThreshold()))


def only_layers():
    x = events(4, 5)
    weights = spq.UniformWeights(4)
    return spq.convert(
        nn.Sequential(nn.Linear(5, 3)), spq.SpQuantConfig(weights=weights, edge_weights=weights), x
    ), x


def neurons_between(pool: nn.Module, last: int = 1):
    return row(conv(), LIF(), pool, conv(4, 4, last, padding=0), LIF())


REFUSED = {
    # layers
    "float weights": (float_edges, r"0 \(Conv2d\): its weights are float.*edge_weights"),
    "transposed": (
        lambda: row(layer.ConvTranspose2d(2, 4, 3), LIF()),
        r"0 \(QuantizedConvTranspose2d\).*cannot be lowered: supported are Conv1d, Conv2d",
    ),
    "current into a layer": (
        lambda: row(conv(), conv(4, 4), LIF()),
        r"1 \(QuantizedConv2d\): it reads a float current: must read spikes",
    ),
    "norm of spikes into a layer": (
        lambda: row(conv(), LIF(), layer.BatchNorm2d(4), conv(4, 4), LIF()),
        r"3 \(QuantizedConv2d\): it reads a float current",
    ),
    "padding mode": (
        lambda: row(conv(padding_mode="circular"), LIF()),
        r"0 \(QuantizedConv2d\): its padding_mode is 'circular': must be 'zeros'",
    ),
    "uneven padding": (
        lambda: row(conv(kernel=2, padding="same"), LIF()),
        r"padding='same' is uneven for an even kernel",
    ),
    "linear over rows": (
        lambda: row(layer.Linear(8, 4), LIF()),
        r"0 \(QuantizedLinear\): it is applied to each row of \(2, 8, 8\): must read one vector",
    ),
    "linear on tokens": (
        lambda: row(layer.Linear(8, 4), LIF(), layer.Linear(4, 4), LIF(), x=events(4, 3, 7, 8)),
        r"0 \(QuantizedLinear\): it is applied to each row of \(7, 8\): .* use a Conv1d with a "
        r"kernel of 1 over \[C, L\] in place of \[L, C\]",
    ),
    "too wide sums": (
        too_wide,
        r"0 \(Dense\): its sums can reach \d+: they must stay below 2\*\*24",
    ),
    "two input quantisers": (two_quantisers, r"quantise the input in 2 ways: must be one"),
    "quantised and not": (one_quantiser, r"fc3 \(QuantizedLinear\): it reads the raw input unq"),
    "quantises what was changed": (
        lambda: analogue(lambda net, x: net.lif1(net.fc1(x + x))),
        r"analogue input|quantises an input that the network has changed",
    ),
    # norms
    "norm without statistics": (
        lambda: row(conv(), layer.BatchNorm2d(4, track_running_stats=False), LIF()),
        r"1 \(BatchNorm2d\): it has no running statistics.*track_running_stats=True",
    ),
    "instance norm": (
        lambda: in_box(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4)),
        r"0\.1 \(InstanceNorm2d\)",
    ),
    "norm with its own forward": (
        lambda: in_box(nn.Conv2d(2, 4, 3), OwnNorm(4)),
        r"0\.1 \(OwnNorm\)",
    ),
    "norm by time": (lambda: row(conv(), temporal_norm(), LIF()), "TemporalEffectiveBatchNorm2d"),
    "group norm": (
        lambda: in_box(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)),
        r"1 \(.*LIFNode\): it reads a value that cannot be lowered.*0\.1 \(GroupNorm\) computes",
    ),
    "norm of other channels": (
        lambda: free(
            lambda net, x: net.lif2(net.bn(net.fc1(x))),
            bn=nn.BatchNorm1d(4),  # of four samples
        ),
        r"bn \(BatchNorm1d\): it normalises 4 channels of a value of shape \(8,\): must be",
    ),
    "norm of a sum": (
        lambda: free(
            lambda net, x: net.lif2(net.bn(net.fc2(hidden(net, x)) + hidden_again(net, x))),
            bn=layer.BatchNorm1d(8),
            lif3=LIF(),
        ),
        r"bn \(BatchNorm1d\): it normalises a gated value or a sum",
    ),
    # neurons
    "float membrane": (float_membrane, r"1 \(.*LIFNode\): its membrane is float"),
    "synaptic": (synaptic, r"1 \(TernarySynaptic\): it also keeps syn: its decision must follow"),
    "inhibition": (inhibited, r"1 \(TernaryLeaky\): inhibition lets .* compete"),
    "constants of each pixel": (per_pixel, r"1 \(TernaryLeaky\): its decay or threshold differs"),
    "levels": (
        lambda: row(conv(), LIF(), config=quant(4, membrane=spq.UniformMembrane(5))),
        r"1 \(.*LIFNode\): its membrane has 32 levels: an integer network takes at most 16",
    ),
    "levels behind a dyadic norm": (
        lambda: row(conv(), layer.BatchNorm2d(4), LIF(), config=eight_bits),
        r"2 \(.*LIFNode\): its membrane has 256 levels: .*whatever the norm, since decay and unit "
        r"stay float.* here about 262,144 bytes for each channel\. Use UniformMembrane\(bits=4\)",
    ),
    "smooth spikes": (unspiking, r"1 \(.*LIFNode\): its spikes are not 0 and 1"),
    "not finite": (not_finite, r"2 \(.*LIFNode\): its potential is not finite"),
    "a sum over time into a neuron": (
        lambda: free(lambda net, x: net.lif2(hidden(net, x).mean(0, keepdim=False)), step_mode="m"),
        r"lif2 \(.*LIFNode\)|cannot run on it",
    ),
    "called twice": (
        lambda: free(lambda net, x: net.lif1(net.fc2(hidden(net, x)))),
        r"calls neurons in step mode 'm' 2 times|called on different values",
    ),
    "scaled by time": (lambda: of_steps(scaled_by_time), r"lif1 .*called on different values"),
    "norms by time": (
        lambda: of_steps(
            norms_by_time, norms=nn.ModuleList([layer.BatchNorm1d(8) for _ in range(6)])
        ),
        r"lif1 .*called on different values",
    ),
    "reset inside": (lambda: of_steps(reset_inside), r"lif1 .*state.* changed"),
    "moving threshold": (lambda: of_steps(moving_threshold), r"lif1 .*constants were changed"),
    "backwards": (
        lambda: free(
            lambda net, x: torch.stack([hidden(net, step) for step in [*x][::-1]]), step_mode="s"
        ),
        r"lif1 .*: its call 1 reads step 6: must be called once for each step",
    ),
    "scaled membrane": (
        lambda: moved_state(lambda lif, mem, t: mem * 0.9),
        r"lif1 \(TernaryLeaky\): it is given a membrane that it did not hand out",
    ),
    "fresh membrane": (
        lambda: moved_state(lambda lif, mem, t: lif.init_leaky() if t == 3 else mem),
        r"lif1 \(TernaryLeaky\): it is given a membrane that it did not hand out",
    ),
    "first membrane": (
        lambda: moved_state(lambda lif, mem, t: mem if t else torch.ones(4, 9)),
        r"lif1 \(TernaryLeaky\): it is given a membrane that it did not hand out",
    ),
    "a membrane read from the neuron": (
        lambda: free(lambda net, x: (hidden(net, x), net.lif1.v)[1]),
        r"lif1 \(.*LIFNode\): its state is read from the neuron itself",
    ),
    "own memory": (remembers, "does something else in its second step"),
    "recurrent container": (recurrent, "called on different values|second step|added"),
    # gates
    "softmax gate": (dense_gates, r"score='softmax' compares channels with each other"),
    # pools
    "average of three": (
        lambda: neurons_between(layer.AvgPool2d(3)),
        r"2 \(AvgPool2d\): an average over 9 pixels: must be a power of two",
    ),
    "average without its padding": (
        lambda: neurons_between(layer.AvgPool2d(2, 2, 1, count_include_pad=False)),
        r"2 \(AvgPool2d\): an average pool with padding=\(1, 1\) and count_include_pad=False "
        "divides by another number at the edge: must divide by the same one. Use",
    ),
    "average with cut off windows": (
        lambda: neurons_between(layer.AvgPool2d(4, 3, ceil_mode=True, divisor_override=4)),
        "ceil_mode=True has windows that are cut off",
    ),
    "maximum with cut off windows": (
        lambda: neurons_between(layer.MaxPool2d(3, 2, ceil_mode=True)),
        "ceil_mode=True has windows that are cut off",
    ),
    "adaptive": (
        lambda: neurons_between(layer.AdaptiveAvgPool2d(3)),
        r"an adaptive pool from \(8, 8\) to \(3, 3\): its windows must have one size",
    ),
    "average of currents": (
        lambda: row(conv(), layer.AvgPool2d(2), LIF()),
        r"2 \(.*LIFNode\).*an average pool stands before a neuron and averages float currents",
    ),
    "maximum of currents": (
        lambda: row(conv(), layer.MaxPool2d(2), LIF()),
        r"2 \(.*LIFNode\).*a max pool stands before a neuron and compares float currents",
    ),
    "places of a maximum": (
        lambda: row(conv(), LIF(), Places(), conv(4, 4), LIF()),
        "the places of a max pool are used",
    ),
    # operations
    "dropout that stays": (
        lambda: free(lambda net, x: net.lif2(net.fc2(F.dropout(hidden(net, x), 0.5, True)))),
        "fc2 .*cannot be lowered",
    ),
    "transposed time": (
        lambda: free(lambda net, x: hidden(net, x).transpose(0, 1)),
        r"the model returns a value that cannot be lowered\..*'transpose",
    ),
    "steps and samples mixed": (
        lambda: free(lambda net, x: net.lif2(net.fc2(hidden(net, x).view(24, 8).view(4, 6, 8)))),
        r"becomes \(4, 6, 8\): time and samples must stay in front, in their order",
    ),
    "channels and samples mixed": (
        lambda: free(lambda net, x: net.lif2(hidden(net, x).view(6, 8, 4))),
        "time and samples must stay in front",
    ),
    "kept axis": (
        lambda: free(lambda net, x: hidden(net, x).mean(0, keepdim=True)),
        "axes of size 1|must stay in front",
    ),
    "broadcast": (lambda: free(lambda net, x: hidden(net, x) + torch.zeros(3, 1, 1, 1)), "becomes"),
    "precision": (lambda: free(lambda net, x: hidden(net, x).double()), "must keep its precision"),
    "precision of a sum": (
        lambda: free(lambda net, x: hidden(net, x).sum(0, dtype=torch.float64)),
        "must keep its precision",
    ),
    "half precision": (in_half, "bfloat16"),
    "a picked sample": (
        lambda: free(lambda net, x: hidden(net, x)[:, 0]),
        "index 0 of axis 1 is picked out: only time",
    ),
    "split channels": (
        lambda: free(lambda net, x: net.lif2(net.fc2(torch.cat(hidden(net, x).chunk(2, 2), 2)))),
        "a value is split: only time may be",
    ),
    "unbound samples": (
        lambda: free(lambda net, x: torch.stack(hidden(net, x).unbind(1), 1)),
        "an axis other than time is taken apart",
    ),
    "stacked in another order": (
        lambda: free(lambda net, x: torch.stack([*hidden(net, x)][::-1])),
        "values are stacked that are not the same one at every step",
    ),
    "concatenated along an odd axis": (
        lambda: free(
            lambda net, x: torch.cat([hidden(net, x), hidden_again(net, x)], 0), lif3=LIF()
        ),
        "values are concatenated along axis 0",
    ),
    "sum over samples": (
        lambda: free(lambda net, x: hidden(net, x).sum(1)),
        r"a sum over axes \[1\]: only time, or all of space",
    ),
    "weighted sum": (
        lambda: free(lambda net, x: torch.add(s := hidden(net, x), s, alpha=2)),
        "a sum has weights",
    ),
    "two currents": (
        lambda: free(lambda net, x: net.lif2(net.fc1(x) + net.fc3(x)), fc3=layer.Linear(5, 8)),
        "two currents are added, each with float factors",
    ),
    "concatenated currents": (
        lambda: free(lambda net, x: net.lif2(torch.cat([net.fc1(x), net.fc1(x)], 2))),
        "currents are concatenated",
    ),
    "reshaped currents": (
        lambda: free(lambda net, x: net.lif2(net.fc1(x).view(6, 4, 2, 4))),
        r"currents of shape \(8,\) are reshaped to \(2, 4\)",
    ),
    "too many numbers": (many_counts, r"a current is added to a value that runs from 0 to 255"),
    "steps apart": (
        lambda: free(lambda net, x: net.fc2((s := hidden(net, x))[0]) + s[1]),
        "values of different steps are joined",
    ),
    "shapes apart": (
        lambda: free(lambda net, x: (s := hidden(net, x)).unsqueeze(-1) + s.unsqueeze(-2)),
        "values of shapes",
    ),
    "a constant": (
        lambda: free(lambda net, x: net.lif2(net.fc2(hidden(net, x)) + 0.5)),
        "a constant is added: must be the bias",
    ),
    "odd factor": (
        lambda: free(lambda net, x: net.lif2(net.fc2(hidden(net, x)) / 3)),
        "a value is scaled by 3: must be a power of two here",
    ),
    "late sum": (last_two, "a sum over time begins late"),
    "a sum with holes": (leaves_one_out, "a sum over time leaves out steps"),
    "a sum of some": (late_sum, "the model returns a sum over some of the steps"),
    "step in the middle": (
        lambda: free(lambda net, x: hidden(net, x)[2]),
        "the model returns step 3 of 6 alone",
    ),
    # in place and in Python
    "a view is written to": (lambda: free(write_to_a_view), "changes in place"),
    "a list is written to": (lambda: free(write_to_a_list), "changes in place|cannot be lowered"),
    "a detached view is written to": (lambda: free(write_to_detached), "changes in place"),
    "a branch on data": (lambda: free(branch_on_data), "reads a value as a Python number"),
    "a number from data": (
        lambda: free(lambda net, x: hidden(net, x) * hidden_again(net, x).max().item(), lif3=LIF()),
        "reads a value as a Python number",
    ),
    # what no operation shows
    "autocast inside": (lambda: free(in_autocast), "bfloat16|precision|differs"),
    "a state that is put in": (lambda: of_steps(charged_before), "."),
    "weights that change": (lambda: of_steps(moving_bias), "."),
    "a forward of its own": (replaced_forward, "."),
    "a neuron of its own": (own_neuron, "."),
    "written to by numpy": (lambda: free(written_by_numpy), "."),
    # the input
    "an analogue input into a neuron": (
        lambda: analogue(lambda net, x: (net.lif1(net.fc1(x)), net.lif3(x)), lif3=LIF()),
        r"lif3 \(.*LIFNode\): it reads the analogue input",
    ),
    "an analogue input is returned": (
        lambda: analogue(lambda net, x: (net.lif1(net.fc1(x)), x)),
        "the analogue input",
    ),
    "an analogue input is concatenated": (
        lambda: analogue(
            lambda net, x: net.lif2(net.fc3(torch.cat([hidden(net, x), x], 2))),
            fc3=layer.Linear(13, 8),
        ),
        "the analogue input",
    ),
    # what is returned
    "a dict": (lambda: free(lambda net, x: {"out": hidden(net, x)}), "the model returns dict"),
    "a constant is returned": (
        lambda: free(lambda net, x: (hidden(net, x), torch.ones(3))[1]),
        "the model returns a constant",
    ),
    "current and spikes": (
        lambda: free(lambda net, x: net.fc2(s := hidden(net, x)) + s),
        "the model returns the sum of a current and spikes",
    ),
    "no neuron": (
        lambda: free(lambda net, x: (hidden(net, x), net.fc1(x))[1]),
        "what it returns does not depend on any neuron",
    ),
    "no neurons at all": (only_layers, "holds no spiking neuron, so there is nothing to lower"),
    "argmax": (
        lambda: free(lambda net, x: hidden(net, x).argmax(-1)),
        r"the model returns a value that cannot be lowered\. \(model\) \(Free\) computes 'argmax'",
    ),
}
for _name in ("late sum", "a sum with holes", "a sum of some"):
    _function, _message = REFUSED[_name]
    REFUSED[_name] = functools.partial(free, _function), _message


def hidden_again(net: Free, x: Tensor) -> Tensor:
    return net.lif3(net.fc1(x))


class Places(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        _, places = F.max_pool2d(flat, 3, 1, 1, return_indices=True)
        return places.view(x.shape).float()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_version_is_refused(name):
    build, message = REFUSED[name]
    model, x = build()
    with pytest.raises(DeployError, match=message) as caught:
        lower(model, x)
    text = str(caught.value)
    assert text.endswith("."), text
    assert len(text) < 600, text


# --- samples and input ranges -------------------------------------------------------------------


@pytest.fixture
def mlp() -> nn.Module:
    x = events(4, 3, 5)
    return converted(jelly(layer.Linear(5, 8), LIF(), layer.Linear(8, 3)), quant(4), x)


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (torch.ones(2, 3, 5), 0, 1),
        (torch.zeros(2, 3, 5), 0, 1),
        (torch.full((2, 3, 5), 7.0), 0, 255),
        (torch.full((2, 3, 5), -1.0), -128, 127),
        (torch.full((2, 3, 5), -500.0), -(2**15), 2**15 - 1),
    ],
)
def test_the_input_range_follows_from_the_sample(mlp, x, low, high):
    node = lower(mlp, x).graph.input
    assert (node.low, node.high) == (low, high)
    assert node.quantizer is None


def test_the_input_range_is_what_is_asked_for(mlp):
    node = lower(mlp, events(2, 3, 5), input_range=(-3, 9)).graph.input
    assert (node.low, node.high) == (-3, 9)


@pytest.mark.parametrize(
    "given",
    [(0, 1, 2), (0,), 5, "ab", (0, 1.5), (0.0, 1.0), (1, 0), (2, 5), (0, 2**24), (0, 2**40)],
)
def test_an_impossible_input_range_is_refused(mlp, given):
    with pytest.raises(DeployError, match=r"input_range = |its sums can reach"):
        lower(mlp, events(2, 3, 5), input_range=given)


def test_a_neuron_that_reads_the_input_is_proven_for_no_more_than_float_holds():
    x = events(3, 2, 5)
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    model = spq.convert(LIF(step_mode="m"), config, x).eval()
    with pytest.raises(DeployError, match=r"below 2\*\*24"):
        lower(model, x, input_range=(0, 2**32))
    assert spq.verify(lower(model, x, input_range=(0, 2**20)), model, x * 2**20).exact


def test_a_quantised_input_has_a_range_already():
    model, x = analogue(hidden)
    node = lower(model, x).graph.input
    assert node.quantizer == (8, 0.0, 1.0)
    assert (node.low, node.high) == (0, 255)
    with pytest.raises(DeployError, match=r"input_range = \(0, 1\): the input is quantised"):
        lower(model, x, input_range=(0, 1))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda x: x * 0.5, "the sample holds fractions, and no layer quantises its input"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: x * float("nan"), "NaN or infinite"),
        (lambda x: x * 1e6 + 1, "more than 16 bits"),
        (lambda x: x[:, :0], r"sample of shape \(2, 0, 5\) holds no data"),
        (lambda x: (x, x), "sample = tuple with 2 tensors: must be one tensor"),
        (lambda x: {"input": x}, "sample = dict with 1 tensors: must be one tensor"),
    ],
)
def test_an_odd_sample_is_refused(mlp, sample, message):
    with pytest.raises(DeployError, match=message):
        lower(mlp, sample(events(2, 3, 5, rate=0.5)))


@pytest.mark.parametrize("sample", [None, [1, 2], torch.ones(2, 3, 4)])
def test_a_sample_that_the_model_does_not_take_is_refused(mlp, sample):
    with pytest.raises(SampleError):
        lower(mlp, sample)


def test_a_tuple_of_one_tensor_is_a_sample(mlp):
    assert lower(mlp, (events(2, 3, 5),)).graph.input.shape == (5,)


def test_an_unknown_engine_is_refused(mlp):
    with pytest.raises(
        DeployError, match=r"engine = 'fast': must be one of 'auto', 'numba', 'torch'"
    ):
        spq.to_integer(mlp, events(2, 3, 5), engine="fast")


def test_a_float_model_is_refused():
    model = jelly(layer.Linear(5, 8), LIF(), layer.Linear(8, 3)).eval()
    with pytest.raises(DeployError, match=r"0 \(Linear\): its weights are float"):
        lower(model, events(2, 3, 5))


# --- what lowering leaves as it was -------------------------------------------------------------


def picture(model: nn.Module) -> dict[str, object]:
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
        "random": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "enlisted": [len(kind.instances) for kind in (snn.SpikingNeuron,)],
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


MODELS = {
    "spikingjelly": lambda: (converted(small(), quant(4), x := events(4, 3, 2, 8, 8)), x),
    "snntorch": lambda: loop(),
    "gated": lambda: (
        converted(small(), spq.presets.spquant_snn(adaptive=True), x := events(4, 3, 2, 8, 8)),
        x,
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_left_as_it_was(name, training):
    model, x = MODELS[name]()
    model.train(training)
    before = picture(model)
    net = lower(model, x)
    assert same(picture(model), before)
    spq.verify(net, model, x)
    assert same(picture(model), before)
    net(x)
    assert same(picture(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_refusal_leaves_a_model_as_it_was_too(name):
    model, x = MODELS[name]()
    before = picture(model)
    with pytest.raises(spq.SpQuantError):
        lower(model, x * 0.5)
    assert same(picture(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_running_state_does_not_matter_and_a_model_is_left_at_rest(name):
    model, x = MODELS[name]()
    expected = model(x)
    spq.reset(model)
    net = lower(model, x)
    with torch.no_grad():
        model(x)  # leaves its neurons charged
    again = lower(model, x)
    assert same_results(again(x), expected)
    assert same_results(net(x), expected)
    assert same_results(model(x), expected)  # it was left at rest
    spq.reset(model)


def same_results(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_a_model_in_training_mode_is_lowered_as_in_eval_mode():
    model, x = MODELS["spikingjelly"]()
    expected = lower(model, x)
    model.train()
    net = lower(model, x)
    assert same_results(net(x), expected(x))
    assert model.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_mode_of_gradients_does_not_matter(mode):
    model, x = MODELS["spikingjelly"]()
    with mode():
        net = lower(model, x)
        assert spq.verify(net, model, x).exact
        out = net(x)
    assert not out.requires_grad
    assert spq.verify(net, model, x).exact


def test_a_dropout_that_stays_is_seen_in_inference_mode_too():
    model, x = free(lambda net, x: net.lif2(net.fc2(F.dropout(hidden(net, x), 0.5, True))))
    with torch.inference_mode(), pytest.raises(DeployError):
        lower(model, x)


def test_autocast_does_not_matter():
    model, x = MODELS["spikingjelly"]()
    with torch.autocast("cpu", torch.bfloat16):
        net = lower(model, x)
    assert spq.verify(net, model, x).exact


def test_hooks_of_users_are_not_called_on_a_copy():
    model, x = MODELS["spikingjelly"]()
    called = []
    for module in model.modules():
        module.register_forward_hook(lambda *args: called.append(args))
        module.register_forward_pre_hook(lambda *args: called.append(args))
    with pytest.raises(DeployError, match=r"holds the forward hook .*lambda.*Remove it"):
        lower(model, x)
    assert called == []


def test_a_hook_that_is_gone_does_no_harm():
    model, x = MODELS["spikingjelly"]()
    net = lower(model, x)
    handle = model[2].register_forward_hook(lambda *args: None)
    with pytest.raises(DeployError, match=r"2 \(.*LIFNode\): holds the forward hook"):
        lower(model, x)
    handle.remove()
    assert same_results(lower(model, x)(x), net(x))


def test_what_a_model_draws_at_random_is_put_back():
    def noisy(net, x):
        torch.rand(3)
        return net.lif2(net.fc2(hidden(net, x)))

    model, x = free(noisy)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    net = lower(model, x)
    assert spq.verify(net, model, x).exact
    assert torch.equal(torch.get_rng_state(), state)


# --- what is lowered --------------------------------------------------------------------------


def test_bounds_hold_at_the_extremes_of_every_input():
    for case in MODELS.values():
        model, x = case()
        if model.__class__ is Loop:
            continue
        net = lower(model, x, input_range=(-3, 5))
        names = {node.name for node in net.graph.nodes}
        for fill in (-3, 5, None):
            whole = (
                torch.randint(0, 2, x.shape) * 8 - 3 if fill is None else torch.full(x.shape, fill)
            )
            values = net.engine.run(whole.int(), net.engine.rest(x.shape[1]), names).values
            for name in names:
                node = net.graph[name]
                assert node.low <= int(values[name].min()), name
                assert int(values[name].max()) <= node.high, name


def test_bounds_are_reached_where_a_layer_reads_the_input():
    model, x = row(conv(padding=0), LIF(), x=events(2, 3, 2, 3, 3))
    net = lower(model, x, input_range=(-2, 3))
    (sums,) = net.graph.layers
    least, most = sums.bounds(-2, 3)
    rows = sums.weight.flatten(1).long()
    worst = torch.where(rows > 0, 3, -2), torch.where(rows > 0, -2, 3)
    for ends, bound in zip(worst, (most, least), strict=True):
        for channel in range(len(rows)):
            whole = ends[channel].view(1, 1, 2, 3, 3).int()
            found = net.engine.run(whole, net.engine.rest(1), {sums.name}).values[sums.name]
            assert int(found[0, 0, channel]) == int(bound[channel])
    assert (sums.low, sums.high) == (int(least.min()), int(most.max()))


def test_accumulators_have_as_many_bits_as_their_filters_need():
    x = torch.full((2, 3, 300), 255.0)
    model = converted(jelly(layer.Linear(300, 4), LIF(), layer.Linear(4, 2)), quant(4), x)
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[0, 0] = 1  # one weight of 127 levels
        model[0].weight[1] = 1  # three hundred of them
    net = lower(model, x)
    bits = net.graph.layers[0].accumulator_bits(0, 255)
    assert bits.tolist()[:2] == [16, 32]
    assert net.graph.layers[0].accumulator_bits(0, 1).tolist()[:2] == [16, 32]
    assert net.graph.layers[0].accumulator_bits(0, 0).unique().tolist() == [16]


def test_weights_beyond_int8_are_split_exactly():
    weights = spq.AdditivePowerOfTwoWeights(8)
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(), weights=weights, edge_weights=weights
    )
    model, x = row(conv(), LIF(), config=config)
    net = lower(model, x)
    high, low = net.graph.layers
    levels, _ = model[0].quantized_weight()
    whole = high.weight.long() * 128 + low.weight.long()
    for one, other in zip(whole, levels.detach(), strict=True):  # a power of two for each channel
        assert len((one / other)[other != 0].unique()) == 1
    assert int(whole.abs().max()) > 127
    assert spq.verify(net, model, x).exact


def test_a_double_precision_model(float64):
    x = events(4, 50, 2, 8, 8).double()
    model = converted(small(v_reset=None), quant(4), x)
    assert weights_of(model)[0].weight.dtype == float64
    net = lower(model, x)
    assert spq.verify(net, model, x).exact
    with torch.no_grad():
        expected = model(x)
    assert net(x).dtype == expected.dtype
    assert torch.equal(net(x), expected)


def test_factors_of_a_double_precision_model_are_double(float64):
    x = events(4, 50, 5).double()
    model, _ = free(lambda net, x: net.fc2(hidden(net, x)) * 0.3, x)
    net = lower(model, x)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))


def test_one_layer_at_two_places_is_two_sums():
    model, x = free(
        lambda net, x: net.lif2(net.same(net.lif1(net.same(x)))) + net.pool(x),
        events(6, 4, 5),
        same=layer.Linear(5, 5),
        pool=nn.Identity(),
    )
    net = lower(model, x)
    assert spq.verify(net, model, x).exact
    assert [node.name for node in net.graph.layers] == ["same", "same#2"]


def test_one_sum_for_two_neurons_and_one_neuron_for_two_layers():
    def forward(net, x):
        current = net.fc1(x)
        first, second = net.lif1(current), net.lif3(current)
        return net.lif2(net.fc2(first) + second), net.fc3(first)

    model, x = free(forward, lif3=LIF(v_threshold=1.7), fc3=layer.Linear(8, 3))
    net = lower(model, x)
    assert spq.verify(net, model, x).exact
    assert len(net.graph.layers) == 3


def test_what_is_not_read_is_left_out():
    model, x = free(lambda net, x: (net.fc2(s := hidden(net, x)), s)[1])
    assert [node.name for node in lower(model, x).graph.nodes] == ["(input)", "fc1", "lif1"]


@pytest.mark.parametrize("name", ["input", "add", "pool", "reshape", "mask", "concat", "scale"])
def test_a_module_may_have_any_name(name):
    def forward(net, x):
        spikes = hidden(net, x)
        both = torch.cat([spikes + spikes, spikes.view(6, 4, 2, 4).flatten(2)], 2)
        return getattr(net, name)(net.fc3(both))

    model, x = free(forward, **{name: LIF(), "fc3": layer.Linear(16, 8)})
    net = lower(model, x)
    result = spq.verify(net, model, x)
    assert result.exact
    assert [check.path for check in result.layers] == ["lif1", name]


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_an_axis_of_channels_may_be_added(samples):
    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = nn.Conv1d(1, 4, 3), snn.Leaky(beta=0.9, init_hidden=True)
            positive(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.conv(x.unsqueeze(1)))

    x = events(6, 4, 9)
    model = converted(Signal(), quant(4), x, x[0, :samples])
    net = lower(model, x[0, :samples])
    assert net.graph.layers[0].shape == (4, 7)
    assert spq.verify(net, model, x).exact


def test_currents_with_spikes_keep_their_shape():
    def forward(net, x):
        spikes = hidden(net, x)
        return net.lif2((net.fc2(spikes) + spikes).unsqueeze(-1).unsqueeze(-1))

    model, x = free(forward)
    try:
        net = lower(model, x)
    except DeployError as error:
        assert "reshape" in str(error)
        return
    assert spq.verify(net, model, x).exact


class Fixed(Loop):
    """A loop that takes sequences of one length alone, and counts its runs."""

    runs = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        Fixed.runs += 1
        if x.shape[0] != 6:
            raise ValueError("six steps")
        return super().forward(x)


def test_a_model_may_insist_on_its_number_of_steps():
    x = events(6, 50, 6)
    model = converted(Fixed(functools.partial(snn.Leaky, beta=0.9)), quant(4), x)
    net = lower(model, x)
    assert (net.graph.takes, net.graph.repeats) == ("sequence", 6)
    assert spq.verify(net, model, x).exact
    with pytest.raises(DeployError, match="x has 5 steps: must have 6"):
        net(x[:5])


def test_a_looping_model_runs_four_times():
    """Once for its steps, once for its graph, once with a step more, once to compare."""
    x = events(6, 3, 6)
    model = converted(Fixed(functools.partial(snn.Leaky, beta=0.9)), quant(4), x)
    Fixed.runs = 0
    lower(model, x)
    assert Fixed.runs == 4


def test_windows_lie_over_as_many_axes_as_they_have():
    with pytest.raises(
        DeployError, match=r"its windows \(3, 3\) lie over pixels \(9,\): must have"
    ):
        windows((9,), (3, 3), (1, 1), (0, 0))


@pytest.mark.parametrize("samples", [4, 6])
def test_a_static_model_with_as_many_samples_as_steps(samples):
    class Static(Loop):
        def forward(self, x: Tensor) -> Tensor:
            spikes, _ = super().forward(x)
            return torch.stack([*spikes])[-1]

    x = events(samples, 6)
    model = converted(Static(functools.partial(snn.Leaky, beta=0.9), steps=6), quant(4), x)
    net = lower(model, x)
    assert (net.graph.takes, net.graph.repeats) == ("static", 6)
    assert spq.verify(net, model, x).exact


def test_a_bare_neuron():
    x = events(6, 4, 5)
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    model = spq.convert(LIF(step_mode="m", decay_input=False), config, x).eval()
    net = lower(model, x)
    result = spq.verify(net, model, x * 1)
    assert result.exact
    assert [check.path for check in result.layers] == ["(model)"]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.filterwarnings("error")
def test_a_network_can_be_copied(copied):
    model, x = MODELS["gated"]()
    net = lower(model, x)
    net.step(x[0])
    other = copied(net)
    assert same_results(other(x), net(x))
    assert same_results(other.step(x[1]), net.step(x[1]))  # the stream goes on in both
    assert spq.verify(other, model, x).exact


def test_self_firing_neurons_fire_alike():
    x = events(4, 50, 2, 8, 8)
    membrane = spq.UniformMembrane(levels=(-2, 3), unit=0.6)
    with pytest.warns(SelfFiringWarning):
        model = spq.convert(small(neuron.IFNode), quant(4, membrane=membrane), x).eval()
    assert spq.verify(lower(model, x), model, x).exact
