"""Which neuron decides over which layer: pairs by path, the reasons against, and space."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from networks import Loop, spiking_jelly
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet, spikformer
from test_random_architectures import jelly_networks, torch_networks
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.convert.hosts import Hosts
from spquant_plugin.convert.pairing import (
    Pair,
    channel_axis,
    is_neuron,
    is_synapse,
    pair_synapses,
    space_reasons,
)
from spquant_plugin.convert.trace import Trace, trace
from spquant_plugin.spikingjelly.layer import ChannelGate
from spquant_plugin.spikingjelly.neuron import TernaryMembraneLIFNode

STEPS, BATCH = 3, 2


def traced(net: nn.Module, x: Tensor) -> Trace:
    hosts = Hosts()
    return trace(net, x, lambda m: is_neuron(m, hosts) or is_synapse(m, hosts))


def pairs_of(net: nn.Module, x: Tensor) -> dict[str, Pair]:
    return pair_synapses(net, traced(net, x), Hosts())


def spaces_of(net: nn.Module, x: Tensor) -> dict[str, str | None]:
    return space_reasons(net, traced(net, x), Hosts())


def gates(net: nn.Module, x: Tensor) -> dict[str, tuple[str | None, str | None, str | None]]:
    """Source, target and end of every synapse that a gate can act on."""
    found = pairs_of(net, x).items()
    return {path: (p.source, p.target, p.end) for path, p in found if p.reason is None}


def refusals(net: nn.Module, x: Tensor) -> dict[str, str]:
    """The reason for every synapse that no gate can act on."""
    return {path: p.reason for path, p in pairs_of(net, x).items() if p.reason is not None}


class Wired(nn.Module):
    """Named modules, and a function that runs them."""

    def __init__(self, run, **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int = 2, outputs: int = 4, mode: str = "m") -> nn.Module:
    return layer.Conv2d(inputs, outputs, 3, padding=1, step_mode=mode)


def norm(channels: int = 4, mode: str = "m") -> nn.Module:
    return layer.BatchNorm2d(channels, step_mode=mode)


def lif(mode: str = "m") -> nn.Module:
    return neuron.LIFNode(step_mode=mode)


def leaky() -> nn.Module:
    return snn.Leaky(beta=0.9)


IMAGES = torch.ones(STEPS, BATCH, 2, 6, 6)
FEATURES = torch.ones(STEPS, BATCH, 5)
RAW = "no spiking neuron reaches its input: it reads the raw input"
READ_OUT = "no spiking neuron reads its output: read-out"


# --- the usual order, in every idiom -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["m", "s"])
def test_spikingjelly_in_both_step_modes(mode):
    x = torch.ones(STEPS, BATCH, 2, 8, 8)
    net, x = spiking_jelly(mode), x if mode == "m" else x[0]
    assert pairs_of(net, x) == {
        "0": Pair("0", None, "2", "1", -3, 0, 4, RAW),
        "4": Pair("4", "2", "6", "5", -3, 4, 6, None),
        "8": Pair("8", "6", None, "8", -1, 6, 3, READ_OUT),
    }
    assert spaces_of(net, x) == {"2": None, "6": None}


def test_a_loop_over_single_steps_of_spikingjelly():
    def run(net: Wired, x: Tensor) -> Tensor:
        return torch.stack([net.sn2(net.bn(net.conv2(net.sn1(net.conv1(step))))) for step in x])

    net = Wired(
        run,
        conv1=conv(mode="s"),
        sn1=lif("s"),
        conv2=conv(4, 6, "s"),
        bn=norm(6, "s"),
        sn2=lif("s"),
    )
    assert gates(net, IMAGES) == {"conv2": ("sn1", "sn2", "bn")}
    assert refusals(net, IMAGES) == {"conv1": RAW}


def test_an_explicit_loop_of_snntorch():
    assert gates(Loop(), FEATURES) == {"fc2": ("lif1", "lif2", "fc2")}
    assert refusals(Loop(), FEATURES) == {"fc1": RAW}


def test_hidden_states_of_snntorch():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )
    assert pairs_of(net, IMAGES[0])["2"] == Pair("2", "1", "4", "3", -3, 4, 6, None)
    assert spaces_of(net, IMAGES[0]) == {"1": None, "4": None}


def test_snntorch_run_over_time_in_one_call():
    """The idiom without a loop of its own: the sample is one step, so each module runs once."""
    net = spq.models.create("mlp", host="snntorch", in_channels=2, size=6, num_classes=3)
    assert gates(net, IMAGES[0]) == {"fc2": ("neuron1", "neuron2", "fc2")}


@pytest.mark.parametrize("preset", [spq.presets.quant_snn(), spq.presets.quant_snn(4)])
def test_converted_models_pair_like_float_ones(preset):
    for net, x in ((spiking_jelly(), torch.ones(STEPS, BATCH, 2, 8, 8)), (Loop(), FEATURES)):
        converted = spq.convert(net, preset, x)
        assert pairs_of(converted, x) == pairs_of(net, x)
        assert [r is None for r in spaces_of(converted, x).values()] == [
            r is None for r in spaces_of(net, x).values()
        ]


def test_order_is_that_of_the_run_and_uncalled_layers_come_last():
    net = Wired(
        lambda net, x: net.last(net.sn(net.first(x))),
        unused=conv(),
        last=conv(4),
        sn=lif(),
        first=conv(),
    )
    assert list(pairs_of(net, IMAGES)) == ["first", "last", "unused"]
    unused = pairs_of(net, IMAGES)["unused"]
    assert unused == Pair("unused", None, None, None, -3, 0, 4, "not called by the sample")


# --- sources -------------------------------------------------------------------------------------


def test_functional_operations_in_between_change_nothing():
    def run(net: Wired, x: Tensor) -> Tensor:
        y = F.relu(net.sn1(net.conv1(x)) * 0.5)
        y = F.avg_pool2d(y.flatten(0, 1), 2).permute(0, 2, 3, 1)
        y = y.reshape(STEPS, BATCH, -1)
        return net.sn2(net.fc(y) + 1)

    net = Wired(run, conv1=conv(), sn1=lif(), fc=nn.Linear(36, 7), sn2=lif())
    assert gates(net, IMAGES) == {"fc": ("sn1", "sn2", "fc")}
    assert pairs_of(net, IMAGES)["fc"].source_channels == 4


def test_of_several_sources_the_one_run_last_decides():
    def run(net: Wired, x: Tensor) -> Tensor:
        second, first = net.sn_b(net.conv_b(x)), net.sn_a(net.conv_a(x))
        return net.sn(net.conv(torch.cat([first, second], 2)))

    net = Wired(
        run, conv_a=conv(2, 3), sn_a=lif(), conv_b=conv(2, 5), sn_b=lif(), conv=conv(8), sn=lif()
    )
    pair = pairs_of(net, IMAGES)["conv"]
    assert (pair.source, pair.source_channels, pair.reason) == ("sn_a", 3, None)


@pytest.mark.parametrize(("again", "source"), [("before", "sn_a"), ("after", "sn_b")])
def test_last_means_before_the_layer_runs(again, source):
    def run(net: Wired, x: Tensor) -> Tensor:
        first, second = net.sn_a(net.conv_a(x)), net.sn_b(net.conv_b(x))
        if again == "before":
            first = net.sn_a(first)
        joined = net.sn(net.conv(torch.cat([first, second], 2)))
        return joined if again == "before" else joined.sum() + net.sn_a(first).sum()

    net = Wired(
        run, conv_a=conv(2, 3), sn_a=lif(), conv_b=conv(2, 5), sn_b=lif(), conv=conv(8), sn=lif()
    )
    assert pairs_of(net, IMAGES)["conv"].source == source
    assert ("conv" in gates(net, IMAGES)) == (again == "after")


class Feedback(nn.Module):
    """The second layer reads what the third one gave in the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 4), leaky()
        self.fc2, self.lif2 = nn.Linear(7, 6), leaky()
        self.fc3, self.lif3 = nn.Linear(6, 3), leaky()
        self.back = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = mem3 = None
        spk3 = torch.zeros(x.shape[1], 3)
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            joined = torch.cat([spk1, spk3], 1)
            spk2, mem2 = self.lif2(self.fc2(joined) + self.back(spk3), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
        return spk3


def test_feedback_over_a_step_is_no_source():
    net = Feedback()
    assert gates(net, FEATURES) == {
        "fc2": ("lif1", "lif2", "fc2"),
        "fc3": ("lif2", "lif3", "fc3"),
    }
    assert refusals(net, FEATURES)["back"] == (
        "no spiking neuron reaches its input: it reads constants, and lif3 only of the step before"
    )


def test_a_layer_behind_a_layer_has_no_source_and_the_first_no_gate():
    net = nn.Sequential(conv(), lif(), conv(4, 4), conv(4, 4), lif())
    assert refusals(net, IMAGES) == {
        "0": RAW,
        "2": "its output also reaches a weight layer without a neuron: 3",
        "3": "no spiking neuron reaches its input: it reads 2",
    }


def test_sequences_layer_by_layer_do_not_take_turns():
    """The first neuron has left its membrane of step 1 before the second layer asks for it."""

    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = [net.sn1(net.fc1(step)) for step in x]
        return torch.stack([net.sn2(net.fc2(step)) for step in spikes])

    net = Wired(run, fc1=nn.Linear(5, 4), sn1=lif("s"), fc2=nn.Linear(4, 3), sn2=lif("s"))
    assert refusals(net, FEATURES)["fc2"] == (
        "its source sn1 does not take turns with it: it has run other steps by then"
    )
    assert "fc2" in gates(net, FEATURES[:1])


def test_a_norm_that_runs_later_than_the_source_goes_on():
    def run(net: Wired, x: Tensor) -> Tensor:
        currents = [net.fc2(net.sn1(net.fc1(step))) for step in x]
        return torch.stack([net.sn2(net.bn(current)) for current in currents])

    parts = {"fc1": nn.Linear(5, 4), "sn1": lif("s"), "fc2": nn.Linear(4, 3), "sn2": lif("s")}
    net = Wired(run, **parts, bn=nn.BatchNorm1d(3))
    assert "does not take turns" in refusals(net, FEATURES)["fc2"]


def test_a_buffer_filled_step_by_step_keeps_its_origins():
    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = torch.zeros(STEPS, BATCH, 4)
        torch.mul(net.sn1(net.fc1(x[0])), 1, out=spikes[0])
        for t in range(1, STEPS):
            spikes[t] = net.sn1(net.fc1(x[t]))
        return net.sn2(net.fc2(spikes))

    net = Wired(run, fc1=nn.Linear(5, 4), sn1=lif("s"), fc2=nn.Linear(4, 3), sn2=lif("m"))
    pair = pairs_of(net, FEATURES)["fc2"]
    assert (pair.source, pair.target) == ("sn1", "sn2")
    assert "sn1 3, sn2 1 times" in pair.reason
    assert pairs_of(net, FEATURES[:1].expand(STEPS, -1, -1))["fc2"].source == "sn1"


def test_a_buffer_filled_by_out_alone_keeps_its_origins():
    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = torch.zeros(2, BATCH, 4)
        torch.mul(net.sn1(net.fc1(x[0])), 1, out=spikes[0])
        return net.sn2(net.fc2(spikes[0]))

    net = Wired(run, fc1=nn.Linear(5, 4), sn1=lif("s"), fc2=nn.Linear(4, 3), sn2=lif("s"))
    assert gates(net, FEATURES) == {"fc2": ("sn1", "sn2", "fc2")}


# --- targets -------------------------------------------------------------------------------------


def test_a_residual_sum_before_the_neuron():
    def run(net: Wired, x: Tensor) -> Tensor:
        y = net.sn0(net.stem(x))
        branch = net.sn1(net.bn1(net.conv1(y)))
        return net.sn2(net.bn2(net.conv2(branch)) + net.bn3(net.shortcut(y)))

    net = Wired(
        run,
        stem=conv(),
        sn0=lif(),
        conv1=conv(4),
        bn1=norm(),
        sn1=lif(),
        conv2=conv(4),
        bn2=norm(),
        shortcut=conv(4),
        bn3=norm(),
        sn2=lif(),
    )
    assert gates(net, IMAGES) == {
        "conv1": ("sn0", "sn1", "bn1"),
        "conv2": ("sn1", "sn2", "bn2"),
        "shortcut": ("sn0", "sn2", "bn3"),
    }


def test_a_norm_behind_a_sum_is_no_layers_own():
    def run(net: Wired, x: Tensor) -> Tensor:
        y = net.sn0(net.stem(x))
        return net.sn(net.bn(net.conv_a(y) + net.conv_b(y)))

    net = Wired(run, stem=conv(), sn0=lif(), conv_a=conv(4), conv_b=conv(4), bn=norm(), sn=lif())
    assert gates(net, IMAGES) == {
        "conv_a": ("sn0", "sn", "conv_a"),
        "conv_b": ("sn0", "sn", "conv_b"),
    }


def test_several_targets_are_named():
    def run(net: Wired, x: Tensor) -> Tensor:
        current = net.conv(net.sn0(net.stem(x)))
        return net.sn_a(current) + net.sn_b(current)

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), sn_a=lif(), sn_b=lif())
    assert refusals(net, IMAGES)["conv"] == "its output reaches several neurons: sn_a, sn_b"
    assert pairs_of(net, IMAGES)["conv"].target is None


def test_a_target_and_a_layer_beside_it():
    def run(net: Wired, x: Tensor) -> Tensor:
        current = net.conv(net.sn0(net.stem(x)))
        return net.sn(current) + net.other(current)

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), sn=lif(), other=conv(4))
    assert refusals(net, IMAGES)["conv"] == (
        "its output also reaches a weight layer without a neuron: other"
    )
    assert pairs_of(net, IMAGES)["conv"].target == "sn"


def test_what_does_not_spike_is_neither_source_nor_target():
    net = nn.Sequential(
        layer.Linear(5, 4, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        layer.Dropout(0.5, step_mode="m"),
        layer.Linear(4, 3, step_mode="m"),
        layer.Dropout(0.5, step_mode="m"),
        layer.BatchNorm1d(3, step_mode="m"),
        layer.SynapseFilter(tau=2.0, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        layer.Linear(3, 2, step_mode="m"),
        neuron.NonSpikingLIFNode(),
    )
    assert gates(net, FEATURES) == {"3": ("1", "7", "5")}
    assert refusals(net, FEATURES) == {"0": RAW, "8": READ_OUT}
    assert set(spaces_of(net, FEATURES)) == {"1", "7"}


def test_stateful_modules_still_count_as_a_change_of_the_raw_input():
    filtered = nn.Sequential(layer.SynapseFilter(tau=2.0, step_mode="m"), nn.Linear(5, 4))
    assert not traced(filtered, FEATURES).reads_input("1")
    normed = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4))
    assert traced(normed, FEATURES).reads_input("1")


def test_refused_neurons_are_neurons():
    net = nn.Sequential(conv(), neuron.QIFNode(step_mode="m"), conv(4), neuron.EIFNode())
    net[3].step_mode = "m"
    assert gates(net, IMAGES) == {"2": ("1", "3", "2")}


@pytest.mark.parametrize("all_to_all", [True, False])
def test_recurrent_weights_belong_to_their_neuron(all_to_all):
    kind = {"linear_features": 4} if all_to_all else {"all_to_all": False, "V": 0.5}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(5, 4), snn.RLeaky(beta=0.8, **kind)
            self.fc2, self.lif2 = nn.Linear(4, 2), leaky()

        def forward(self, x: Tensor) -> Tensor:
            spk1, mem1 = self.lif1.init_rleaky()
            mem2 = self.lif2.init_leaky()
            for step in x:
                spk1, mem1 = self.lif1(self.fc1(step), spk1, mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            return spk2

    assert gates(Recurrent(), FEATURES) == {"fc2": ("lif1", "lif2", "fc2")}
    found = pairs_of(Recurrent(), FEATURES)["lif1.recurrent"]
    assert found.reason == "a weight inside the neuron lif1, as recurrent ones are"
    assert refusals(Recurrent(), FEATURES)["fc1"] == RAW


def test_recurrent_containers_of_spikingjelly():
    """Single steps inside, sequences outside."""
    square = nn.Sequential(nn.Linear(4, 4), neuron.IFNode())
    net = nn.Sequential(
        layer.Linear(5, 4, step_mode="m"),
        lif(),
        layer.ElementWiseRecurrentContainer(square, torch.add, step_mode="m"),
        layer.Linear(4, 3, step_mode="m"),
        lif(),
    )
    found = pairs_of(net, FEATURES)
    assert found["2.sub_module.0"].source == "1"
    assert found["3"].source == "2.sub_module.1"
    assert "called unequally often" in found["2.sub_module.0"].reason
    assert "called unequally often" in found["3"].reason


def test_a_layer_that_is_neither_convolution_nor_linear():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.sn1, self.gru, self.sn2 = nn.Linear(5, 4), lif(), nn.GRU(4, 3), lif()

        def forward(self, x: Tensor) -> Tensor:
            return self.sn2(self.gru(self.sn1(self.fc(x)))[0])

    found = pairs_of(Mixed(), FEATURES)["gru"]
    assert (found.source, found.target, found.channels) == ("sn1", "sn2", 0)
    assert found.reason == "GRU is neither a convolution nor a linear layer"
    assert spaces_of(Mixed(), FEATURES)["sn2"] == "reads gru (GRU), a layer without space"


# --- shared modules, calls, hooks ----------------------------------------------------------------


@pytest.mark.parametrize("shared", ["conv", "sn0", "sn", "bn"])
def test_a_module_at_several_places(shared):
    def run(net: Wired, x: Tensor) -> Tensor:
        return net.sn(net.bn(net.conv(net.sn0(net.stem(x)))))

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), bn=norm(), sn=lif())
    assert gates(net, IMAGES) == {"conv": ("sn0", "sn", "bn")}
    net.again = nn.ModuleDict({"part": getattr(net, shared)})
    who = {"conv": "it", "sn0": "its source", "sn": "its target", "bn": "its norm"}[shared]
    assert refusals(net, IMAGES)["conv"] == (f"shared: {who} stands at {shared}, again.part")


def test_a_neuron_called_twice():
    net = Wired(
        lambda net, x: net.sn(net.fc2(net.sn(net.fc1(x)))),
        fc1=nn.Linear(5, 4),
        sn=lif(),
        fc2=nn.Linear(4, 4),
    )
    assert refusals(net, FEATURES)["fc2"] == (
        "called unequally often, so no call has a step of its own: fc2 1, sn 2 times"
    )


def test_a_layer_called_twice():
    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = net.sn0(net.stem(x))
        return net.sn(net.conv(spikes) + net.conv(spikes.flip(-1)))

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), sn=lif())
    assert refusals(net, IMAGES)["conv"] == (
        "called unequally often, so no call has a step of its own: conv 2, sn0 1, sn 1 times"
    )


def test_a_norm_that_serves_two_layers():
    """A gate before it would not close what it shifts."""

    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = net.sn0(net.stem(x))
        return net.sn_a(net.bn(net.conv_a(spikes))) + net.sn_b(net.bn(net.conv_b(spikes)))

    net = Wired(
        run,
        stem=conv(),
        sn0=lif(),
        conv_a=conv(4),
        conv_b=conv(4),
        bn=norm(),
        sn_a=lif(),
        sn_b=lif(),
    )
    expected = "the norm bn reads it in some calls, and others in other calls"
    assert refusals(net, IMAGES) == {"stem": RAW, "conv_a": expected, "conv_b": expected}


def test_a_norm_for_each_step():
    class PerStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.sn1 = nn.Linear(5, 4), lif("s")
            self.fc2, self.sn2 = nn.Linear(4, 3), lif("s")
            self.bns = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(STEPS))

        def forward(self, x: Tensor) -> Tensor:
            for step, bn in zip(x, self.bns, strict=True):
                y = self.sn2(bn(self.fc2(self.sn1(self.fc1(step)))))
            return y

    assert refusals(PerStep(), FEATURES)["fc2"] == (
        "several norms read it side by side: bns.0, bns.1, bns.2"
    )


def test_hooks_of_users_are_left_out_and_those_of_gates_act():
    seen: list[Tensor] = []

    class Watcher:
        acts_by_hooks = True

        def note(self, module: nn.Module, args: object, output: Tensor) -> None:
            seen.append(output)

    class Doubler(nn.Module):
        """Acts as a gate does: by a hook that reads a neuron's membrane."""

        acts_by_hooks = True

        def __init__(self, source: nn.Module) -> None:
            super().__init__()
            self.source = (source,)
            self.calls = 0

        def act(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
            self.calls += 1
            called.append(("act", self))
            return torch.cat([output, output], -1) + self.source[0].v.mean()

        def hear(self, module: nn.Module, args: object, kwargs: object) -> None:
            called.append(("hear", self))

    called: list[tuple[str, nn.Module]] = []
    net = nn.Sequential(nn.Linear(5, 4), lif("s"), nn.Linear(4, 3), nn.BatchNorm1d(3), lif("s"))
    plain = pairs_of(net, FEATURES[0])
    outsider = Doubler(net[1])
    for module in net:
        module.register_forward_hook(Watcher().note)
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        module.register_forward_hook(outsider.act, always_call=True)
    net[3].gate = Doubler(net[1])
    net[3].register_forward_hook(net[3].gate.act)
    net[3].register_forward_pre_hook(net[3].gate.hear, with_kwargs=True)
    hooks = [len(module._forward_hooks) for module in net]

    assert pairs_of(net, FEATURES[0])["0"] == plain["0"]
    assert traced(net, FEATURES[0]).output_shapes["3"] == (BATCH, 6)
    assert traced(net, FEATURES[0]).origins["4"] == {"1", "2", "3"}  # not "0", through the membrane
    assert not seen
    assert {name for name, _ in called} == {"act", "hear"}
    assert not {outsider, net[3].gate} & {owner for _, owner in called}
    assert net[3].gate.calls == outsider.calls == 0
    assert [len(module._forward_hooks) for module in net] == hooks


def test_a_hook_of_a_module_that_does_not_say_that_it_acts_is_left_out():
    class Monitored(nn.Sequential):
        def note(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
            return output[:, :1]

    net = Monitored(nn.Linear(5, 4), lif("s"), nn.Linear(4, 3), lif("s"))
    net[2].register_forward_hook(net.note)
    assert traced(net, FEATURES[0]).output_shapes["2"] == (BATCH, 3)


def test_a_neuron_that_keeps_what_it_is_given_is_not_its_origin():
    class Keeping(neuron.IFNode):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = x
            return super().forward(x)

    def run(net: Wired, x: Tensor) -> Tensor:
        current = net.conv1(x)
        return net.sn1(current).sum() + net.sn2(net.conv2(current)).sum()

    net = Wired(run, conv1=conv(mode="s"), sn1=Keeping(), conv2=conv(4, mode="s"), sn2=lif("s"))
    assert pairs_of(net, IMAGES[0])["conv2"].source is None


# --- where a gate acts ---------------------------------------------------------------------------


class Tokens(nn.Module):
    """Linear layers over tokens, their norm over transposed ones."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.fc1, self.sn1 = nn.Linear(5, 4), lif()
        self.fc2, self.bn, self.sn2 = nn.Linear(4, 3), bn, lif()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.sn1(self.fc1(x).transpose(-1, -2)).transpose(-1, -2)
        return self.sn2(self.bn(self.fc2(spikes).transpose(-1, -2)))


@pytest.mark.parametrize("tokens", [3, 7])
@pytest.mark.parametrize(
    "bn",
    [
        pytest.param(lambda: layer.BatchNorm1d(3, step_mode="m"), id="steps"),
        pytest.param(lambda: layer.SeqToANNContainer(nn.BatchNorm1d(3)), id="container"),
        pytest.param(lambda: layer.GroupNorm(1, 3, step_mode="m"), id="groups"),
    ],
)
def test_a_norm_over_transposed_tokens_has_its_channels_elsewhere(bn, tokens):
    net, x = Tokens(bn()), torch.ones(STEPS, BATCH, tokens, 5)
    pair = pairs_of(net, x)["fc2"]
    end = "bn.0" if isinstance(net.bn, nn.Sequential) else "bn"
    assert (pair.end, pair.channel_dim, pair.channels, pair.reason) == (end, -2, 3, None)
    assert pair.source_channels == 4


@pytest.mark.parametrize("bn", [nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Identity()])
def test_linear_layers_and_their_norms(bn):
    net = nn.Sequential(nn.Linear(5, 4), leaky_hidden(), nn.Linear(4, 3), bn, leaky_hidden())
    end = "2" if isinstance(bn, nn.Identity) else "3"
    assert pairs_of(net, FEATURES[0])["2"] == Pair("2", "1", "4", end, -1, 4, 3, None)


def leaky_hidden() -> nn.Module:
    return snn.Leaky(beta=0.5, init_hidden=True)


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("transposed", ["", "Transpose"])
def test_convolutions_of_every_dimension(n, mode, transposed):
    kind = getattr(layer, f"Conv{transposed}{n}d")
    bn = getattr(layer, f"BatchNorm{n}d")
    net = nn.Sequential(
        kind(2, 4, 1), neuron.IFNode(), kind(4, 6, 1), bn(6), neuron.IFNode(), layer.Flatten()
    )
    functional.set_step_mode(net, mode)
    x = torch.ones(STEPS, BATCH, 2, *(3, 4, 5)[:n])
    x = x if mode == "m" else x[0]
    assert pairs_of(net, x)["2"] == Pair("2", "1", "4", "3", -1 - n, 4, 6, None)
    assert spaces_of(net, x) == {"1": None, "4": None}
    assert channel_axis(net[2]) == -1 - n


class ScaleNorm(nn.Module):
    """A norm that torch does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().mean()


@pytest.mark.parametrize("bn", [nn.LayerNorm(3), ScaleNorm()])
def test_a_norm_over_tokens_as_they_are(bn):
    net = nn.Sequential(nn.Linear(5, 4), lif(), nn.Linear(4, 3), bn, lif())
    x = torch.ones(STEPS, BATCH, 7, 5)
    # The source's axis 1 holds tokens, which are no channels to decide by.
    reason = "its source 1 reads (3, 2, 7, 4), with the channels of 0 not first"
    assert pairs_of(net, x)["2"] == Pair("2", "1", "4", "3", -1, 7, 3, reason)


def test_an_unknown_norm_over_transposed_tokens():
    net, x = Tokens(ScaleNorm()), torch.ones(BATCH, 7, 5)
    net.sn1.step_mode = net.sn2.step_mode = "s"
    pair = pairs_of(net, x)["fc2"]
    assert (pair.end, pair.channel_dim, pair.reason) == ("bn", -2, None)


def test_norms_in_a_row_end_with_the_last():
    net = nn.Sequential(conv(), lif(), conv(4), norm(), layer.GroupNorm(2, 4, step_mode="m"), lif())
    assert gates(net, IMAGES) == {"2": ("1", "5", "4")}


def test_norms_side_by_side():
    def run(net: Wired, x: Tensor) -> Tensor:
        current = net.conv(net.sn0(net.stem(x)))
        return net.sn(net.bn_a(current) + net.bn_b(current))

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), bn_a=norm(), bn_b=norm(), sn=lif())
    assert refusals(net, IMAGES)["conv"] == "several norms read it side by side: bn_a, bn_b"


def test_a_norm_that_the_target_does_not_read():
    def run(net: Wired, x: Tensor) -> Tensor:
        current = net.conv(net.sn0(net.stem(x)))
        net.bn(current)
        return net.sn(current)

    net = Wired(run, stem=conv(), sn0=lif(), conv=conv(4), bn=norm(), sn=lif())
    assert gates(net, IMAGES) == {"conv": ("sn0", "sn", "conv")}


def test_a_current_that_also_leaves_the_network():
    def run(net: Wired, x: Tensor) -> tuple[Tensor, Tensor]:
        current = net.conv(net.sn0(net.stem(x)))
        return net.sn(current), net.readout(current)

    net = Wired(
        run,
        stem=conv(),
        sn0=lif(),
        conv=conv(4),
        sn=lif(),
        readout=neuron.NonSpikingLIFNode(),
    )
    assert refusals(net, IMAGES)["conv"] == "its output also leaves the network"


def test_a_layer_whose_batch_comes_first_mixes_samples_and_steps():
    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = net.sn0(net.stem(x)).transpose(0, 1)
        return net.sn(net.fc(spikes).transpose(0, 1))

    net = Wired(run, stem=nn.Linear(5, 4), sn0=lif(), fc=nn.Linear(4, 3), sn=lif())
    x = torch.ones(STEPS, BATCH, 5)
    assert "which has not the batch" in refusals(net, x)["fc"]


def test_a_layer_that_is_gated_already():
    def run(net: Wired, x: Tensor) -> Tensor:
        return net.sn(net.gate(net.conv(net.sn0(net.stem(x)))))

    source = TernaryMembraneLIFNode(step_mode="m")
    gate = ChannelGate(4, 4, neuron=source)
    net = Wired(run, stem=conv(), sn0=source, conv=conv(4), gate=gate, sn=lif())
    assert refusals(net, IMAGES)["conv"] == "already gated by gate"


def test_a_norm_made_of_norms_counts_as_one():
    """One norm for each step, in one module."""
    norms = layer.BatchNormThroughTime2d(STEPS, 4, step_mode="m")
    net = nn.Sequential(conv(), lif(), conv(4), norms, lif())
    assert gates(net, IMAGES) == {"2": ("1", "4", "3")}


def test_a_block_named_after_its_norm_is_none():
    class ConvNorm(nn.Sequential):
        pass

    net = nn.Sequential(conv(), lif(), ConvNorm(conv(4), norm()), lif())
    assert gates(net, IMAGES) == {"2.0": ("1", "3", "2.1")}


def test_a_norm_over_other_channels_than_the_layers():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), lif("s"), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.BatchNorm1d(16), lif("s")
    )
    assert refusals(net, IMAGES[0])["2"] == (
        "4 returns (2, 16), whose axis -1 is not its 4 channels"
    )


def test_a_sample_without_a_batch():
    net = nn.Sequential(nn.Linear(5, 4), leaky_hidden(), nn.Linear(4, 3), leaky_hidden())
    assert refusals(net, FEATURES[0, 0])["2"] == (
        "its source 1 reads (4,), which has no axis of channels beside a batch"
    )
    images = nn.Sequential(nn.Conv2d(2, 4, 3), leaky_hidden(), nn.Conv2d(4, 3, 3), leaky_hidden())
    assert "has not the batch (4,) of its source 1" in refusals(images, IMAGES[0, 0])["2"]
    assert "reads (4, 4, 4) in a step" in spaces_of(images, IMAGES[0, 0])["1"]
    single = nn.Sequential(nn.Conv2d(2, 1, 3), leaky_hidden(), nn.Conv2d(1, 3, 3), leaky_hidden())
    assert "has not the batch (1,) of its source 1" in refusals(single, IMAGES[0, 0])["2"]


def test_a_layer_over_parts_of_the_samples():
    """Windows in the batch's place: one decision for each sample cannot be spread over them."""

    def run(net: Wired, x: Tensor) -> Tensor:
        spikes = net.sn1(net.conv1(x))
        return net.sn2(net.conv2(spikes.reshape(4 * BATCH, 4, 3, 3)))

    net = Wired(run, conv1=conv(mode="s"), sn1=lif("s"), conv2=conv(4, mode="s"), sn2=lif("s"))
    assert refusals(net, IMAGES[0])["conv2"] == (
        "conv2 returns (8, 4, 3, 3), which has not the batch (2,) of its source sn1"
    )


# --- space ---------------------------------------------------------------------------------------


def test_reasons_against_space():
    def run(net: Wired, x: Tensor) -> Tensor:
        y = net.sn0(net.stem(x))
        flat = net.flat(net.conv(y).flatten(2))
        product = net.product(y * y)
        tokens = net.tokens(net.to_tokens(y.flatten(3).transpose(-1, -2)))
        mixed = net.mixed(net.conv2(y) + net.wide(y))
        return flat.sum() + product.sum() + tokens.sum() + mixed.sum()

    net = Wired(
        run,
        stem=conv(),
        sn0=lif(),
        conv=conv(4, 5),
        flat=lif(),
        product=lif(),
        to_tokens=nn.Linear(4, 3),
        tokens=lif(),
        conv2=conv(4, 4),
        wide=nn.Linear(6, 6),
        mixed=lif(),
        unused=lif(),
    )
    assert spaces_of(net, IMAGES) == {
        "sn0": None,
        "flat": "reads (2, 180) in a step, where conv gives [N, 5, 2 axes of space]",
        "product": "reads no weight layer, so what its axes mean is unknown",
        "tokens": "reads to_tokens (Linear), a layer without space",
        "mixed": "reads wide (Linear), a layer without space",
        "unused": "not called by the sample",
    }


def test_space_needs_the_convolutions_own_channels():
    """Two images beside each other in the channels' place are no channels."""

    def run(net: Wired, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.sn(torch.cat([y, y], 1))

    net = Wired(run, conv=conv(mode="s"), sn=lif("s"))
    assert spaces_of(net, IMAGES[0]) == {
        "sn": "reads (2, 8, 6, 6) in a step, where conv gives [N, 4, 2 axes of space]"
    }


# --- real networks -------------------------------------------------------------------------------


def test_sew_resnet():
    """The sums join spikes: of a block's two branches the one that runs last is the source."""
    net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.LIFNode, num_classes=3)
    functional.set_step_mode(net, "m")
    x = torch.ones(2, 1, 3, 32, 32)
    expected, before = {}, "sn1"
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            path = f"layer{stage}.{block}"
            expected[f"{path}.conv1"] = (before, f"{path}.sn1", f"{path}.bn1")
            expected[f"{path}.conv2"] = (f"{path}.sn1", f"{path}.sn2", f"{path}.bn2")
            if stage > 1 and block == 0:
                down = f"{path}.downsample"
                expected[f"{down}.0"] = (before, f"{down}_sn", f"{down}.1")
            before = f"{path}.downsample_sn" if stage > 1 and block == 0 else f"{path}.sn2"
    assert gates(net, x) == expected
    assert refusals(net, x) == {"conv1": RAW, "fc": READ_OUT}
    assert set(spaces_of(net, x).values()) == {None}
    pairs = pairs_of(net, x)
    assert pairs["layer3.0.downsample.0"] == Pair(
        "layer3.0.downsample.0",
        "layer2.1.sn2",
        "layer3.0.downsample_sn",
        "layer3.0.downsample.1",
        -3,
        128,
        256,
        None,
    )
    assert pairs["fc"].source == "layer4.1.sn2"


def spikformer_net() -> tuple[nn.Module, Tensor]:
    net = spikformer.Spikformer(
        T=2,
        img_size_h=16,
        img_size_w=16,
        patch_size=4,
        num_classes=3,
        embed_dims=16,
        num_heads=2,
        depths=2,
    )
    return net, torch.ones(2, 2, 3, 16, 16)


def test_spikformer():
    """Attention multiplies spikes; its neuron has heads where others have channels."""
    net, x = spikformer_net()
    stem, encoding = "patch_embed.stages", "patch_embed.positional_encoding"
    expected = {
        f"{stem}.{i}.conv_bn.block.0": (
            f"{stem}.{i - 1}.neuron",
            f"{stem}.{i}.neuron",
            f"{stem}.{i}.conv_bn.block.1",
        )
        for i in (1, 2, 3)
    }
    expected[f"{encoding}.conv_bn.block.0"] = (
        f"{stem}.3.neuron",
        f"{encoding}.neuron",
        f"{encoding}.conv_bn.block.1",
    )
    before = f"{encoding}.neuron"
    for block in ("blocks.0", "blocks.1"):
        attn, mlp = f"{block}.attn", f"{block}.mlp"
        expected |= {
            f"{attn}.qkv_conv_bn.0": (before, f"{attn}.qkv_lif", f"{attn}.qkv_conv_bn.1"),
            f"{attn}.proj_conv_bn.0": (
                f"{attn}.attn_lif",
                f"{attn}.proj_lif",
                f"{attn}.proj_conv_bn.1",
            ),
            f"{mlp}.fc1.0": (f"{attn}.proj_lif", f"{mlp}.neuron1", f"{mlp}.fc1.1"),
            f"{mlp}.fc2.0": (f"{mlp}.neuron1", f"{mlp}.neuron2", f"{mlp}.fc2.1"),
        }
        before = f"{mlp}.neuron2"
    assert gates(net, x) == expected
    assert refusals(net, x) == {f"{stem}.0.conv_bn.block.0": RAW, "head": READ_OUT}
    pairs = pairs_of(net, x)
    assert {pairs[path].channel_dim for path in expected if "blocks" in path} == {-2}
    assert {pairs[path].channel_dim for path in expected if "patch" in path} == {-3}
    assert pairs["blocks.0.attn.qkv_conv_bn.0"].channels == 48
    assert pairs["blocks.0.attn.proj_conv_bn.0"].source_channels == 2
    reasons = {path: reason for path, reason in spaces_of(net, x).items() if reason is not None}
    unknown = "reads no weight layer, so what its axes mean is unknown"
    assert reasons == dict.fromkeys(["blocks.0.attn.attn_lif", "blocks.1.attn.attn_lif"], unknown)


def test_mobilenet_light():
    net = spq.models.create("mobilenet_light", in_channels=2, size=16, num_classes=3)
    x = torch.ones(2, 1, 2, 16, 16)
    expected = {f"conv{i}": (f"neuron{i - 1}", f"neuron{i}", f"norm{i}") for i in range(2, 12)}
    expected["fc1"] = ("neuron11", "neuron12", "fc1")
    assert gates(net, x) == expected
    assert refusals(net, x) == {"conv1": RAW, "fc2": READ_OUT}
    no_space = {"neuron12": "reads fc1 (Linear), a layer without space"}
    assert spaces_of(net, x) == {f"neuron{i}": None for i in range(1, 12)} | no_space


def test_resnet19():
    """The sums join currents: two gates may act on the two branches of one neuron."""
    net = spq.models.create("resnet19", in_channels=2, size=16, num_classes=3, width=0.125)
    x = torch.ones(2, 1, 2, 16, 16)
    expected, before = {}, "neuron1"
    for i in range(1, 9):
        block = f"block{i}"
        expected[f"{block}.conv1"] = (before, f"{block}.neuron1", f"{block}.norm1")
        expected[f"{block}.conv2"] = (f"{block}.neuron1", f"{block}.neuron2", f"{block}.norm2")
        if not isinstance(getattr(net, block).shortcut, nn.Identity):
            shortcut = f"{block}.shortcut"
            ends = (before, f"{block}.neuron2", f"{shortcut}.norm1")
            expected[f"{shortcut}.conv1"] = ends
        before = f"{block}.neuron2"
    expected["fc1"] = (before, "neuron2", "fc1")
    assert sum("shortcut" in path for path in expected) == 3
    assert gates(net, x) == expected
    assert refusals(net, x) == {"conv1": RAW, "fc2": READ_OUT}


def test_snntorch_conv_net():
    net = spq.models.create("conv_net", host="snntorch", in_channels=2, size=16, num_classes=3)
    x = torch.ones(1, 2, 16, 16)
    assert gates(net, x) == {"conv2": ("neuron1", "neuron2", "norm2")}
    assert refusals(net, x) == {"conv1": RAW, "fc1": READ_OUT}
    assert spaces_of(net, x) == {"neuron1": None, "neuron2": None}


# --- what holds of every network -----------------------------------------------------------------


def check_pairs(net: nn.Module, x: Tensor) -> None:
    hosts, record = Hosts(), traced(net, x)
    pairs = pair_synapses(net, record, hosts)
    assert set(pairs) == {path for path, m in net.named_modules() if is_synapse(m, hosts)}
    first = {path: calls[0].tick for path, calls in record.calls.items()}
    for path, pair in pairs.items():
        assert pair.synapse == path
        if pair.reason is None:
            assert first[pair.source] < first[path] <= first[pair.end] < first[pair.target]
            assert pair.source in record.origins[path]
            assert path in record.origins[pair.target]
            shape = record.output_shapes[pair.end]
            assert shape[pair.channel_dim] == pair.channels
            assert len(shape) + pair.channel_dim > 0
            module = net.get_submodule(path)
            rows = module.weight.shape[0]
            if isinstance(module, nn.ConvTranspose2d):
                rows = module.weight.shape[1] * module.groups
            assert rows == pair.channels
    spaces = space_reasons(net, record, hosts)
    assert set(spaces) == {path for path, m in net.named_modules() if is_neuron(m, hosts)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(jelly_networks())
def test_random_networks_of_spikingjelly(network):
    net, x = network
    check_pairs(net, x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    assert pairs_of(net, x[0]) == pairs_of_in_mode(net, x)


def pairs_of_in_mode(net: nn.Module, x: Tensor) -> dict[str, Pair]:
    functional.set_step_mode(net, "m")
    return pairs_of(net, x)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(torch_networks())
def test_random_networks_of_snntorch(network):
    net, x = network
    check_pairs(net, x)
    found = pairs_of(net, x)
    linear = [path for path, m in net.named_children() if isinstance(m, nn.Linear)]
    assert [found[path].reason is None for path in linear] == [
        0 < i < len(linear) - 1 for i in range(len(linear))
    ]


def test_nothing_of_the_model_changes():
    net, x = spikformer_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    check_pairs(net, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
