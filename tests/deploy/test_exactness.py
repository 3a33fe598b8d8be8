"""Integer networks give every spike and membrane of the trained ones, over many random inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import spquant_plugin as spq

from .lively import Loop, converted, events, jelly, moved_break, positive, small

SAMPLES = 50
quant = spq.presets.quant_snn


@dataclass
class Case:
    """A network, how it is converted, what it reads."""

    model: Callable[[], nn.Module]
    config: spq.SpQuantConfig
    x: Callable[[], Tensor]
    takes: str = "sequence"


def frames(*shape: int, steps: int = 4, rate: float = 0.4) -> Callable[[], Tensor]:
    return lambda: events(steps, SAMPLES, *shape, rate=rate)


def analogue(*shape: int, steps: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(steps, SAMPLES, *shape) * 0.7


def small_case(
    config: spq.SpQuantConfig | None = None, x=None, takes="sequence", **options
) -> Case:
    mode = "s" if takes == "step" else "m"
    return Case(
        functools.partial(small, step_mode=mode, **options),
        config or quant(),
        x or frames(2, 8, 8),
        takes,
    )


def named(name: str, size: int, config: spq.SpQuantConfig, x=None, **options) -> Case:
    options = {"in_channels": 2, "num_classes": 10, "width": 0.0625, **options}
    return Case(
        lambda: spq.models.create(name, size=size, **options), config, x or frames(2, size, size)
    )


def sew() -> nn.Module:
    net = sew_resnet.sew_resnet18(
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        cnf="ADD",
        num_classes=10,
    )
    functional.set_step_mode(net, "m")
    return net


def leaky(**options) -> Callable[[], nn.Module]:
    return functools.partial(snn.Leaky, **{"beta": 0.9, "init_hidden": True, **options})


def mlp(**options) -> nn.Module:
    make = leaky(**options)
    return positive(
        nn.Sequential(nn.Linear(12, 16), make(), nn.Linear(16, 9), make(), nn.Linear(9, 4))
    )


def conv_net(**options) -> nn.Module:
    make = leaky(**options)
    body = (nn.Conv2d(2, 6, 3), make(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), make())
    return positive(nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 9, 4), make(output=True)))


class Container(nn.Module):
    """Convolutions of torch itself, inside containers."""

    def __init__(self) -> None:
        super().__init__()
        box = layer.SeqToANNContainer
        self.net = positive(
            nn.Sequential(
                box(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)),
                neuron.LIFNode(step_mode="m"),
                box(nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, dilation=2, padding=2, bias=False)),
                neuron.IFNode(step_mode="m"),
                box(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 4)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(0)


class Joins(nn.Module):
    """Spikes and currents that meet: sums of spikes, a current and spikes, concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = layer.Conv2d(2, 6, 3, padding=1), layer.Conv2d(6, 6, 3, padding=1)
        self.conv3, self.fc = layer.Conv2d(14, 4, 3), layer.Linear(4 * 36, 5)
        self.lif1, self.lif2 = neuron.LIFNode(), neuron.LIFNode(v_reset=None)
        self.lif3, self.lif4 = neuron.IFNode(), neuron.LIFNode()
        functional.set_step_mode(positive(self), "m")

    def forward(self, x: Tensor) -> Tensor:
        first = self.lif1(self.conv1(x))
        second = self.lif2(self.conv2(first) + first)
        both = torch.cat([first + second * 2, second, x], 2)
        return self.lif4(self.fc(self.lif3(self.conv3(both)).flatten(2)))


def one_d() -> nn.Module:
    return jelly(
        layer.Conv1d(2, 6, 3, stride=2),
        layer.BatchNorm1d(6),
        neuron.LIFNode(),
        layer.AvgPool1d(2),
        layer.Conv1d(6, 6, 3, padding=2, dilation=2, groups=3),
        neuron.IFNode(v_reset=None),
        layer.Flatten(),
        layer.Linear(6 * 3, 4),
    )


NETWORKS = {
    "vgg9": named("vgg9", 16, quant()),
    "vgg9 gated": named("vgg9", 16, spq.presets.spquant_snn(adaptive=True)),
    "mobilenet_light": named("mobilenet_light", 16, quant(4), width=0.25),
    "mobilenet_light gated": named("mobilenet_light", 16, spq.presets.spquant_snn(3), width=0.25),
    "residual, dyadic norm": named(
        "resnet19",
        16,
        quant(4, norm=spq.QuantizedNorm("dyadic"), input=spq.UniformInput(8, -2.0, 2.0)),
        analogue(3, 16, 16, steps=2),
        in_channels=3,
    ),
    "residual, dyadic norm of 5 bits": named(
        "resnet19", 8, quant(norm=spq.QuantizedNorm(bits=5)), frames(2, 8, 8)
    ),
    "sew resnet18": Case(
        sew, quant(input=spq.UniformInput(8, -2.0, 2.0)), analogue(3, 16, 16, steps=2)
    ),
    "containers": Case(Container, quant(3), frames(2, 8, 8)),
    "joins": Case(Joins, quant(4), frames(2, 8, 8)),
    "one axis of space": Case(one_d, quant(4), frames(2, 14)),
    "snntorch mlp": Case(mlp, quant(4), frames(12), "step"),
    "snntorch conv net": Case(conv_net, quant(4), frames(2, 8, 8), "step"),
}
for _options in (
    {"reset_mechanism": "zero"},
    {"reset_mechanism": "none"},
    {"reset_mechanism": "subtract", "reset_delay": False},
    {"reset_mechanism": "zero", "reset_delay": False},
    {"graded_spikes_factor": 0.5},
):
    _name = " ".join(map(str, _options.values()))
    NETWORKS[f"snntorch mlp {_name}"] = Case(
        functools.partial(mlp, **_options), quant(4), frames(12), "step"
    )
    NETWORKS[f"snntorch conv net {_name}"] = Case(
        functools.partial(conv_net, **_options), quant(), frames(2, 8, 8), "step"
    )
NETWORKS["snntorch conv net gated"] = Case(
    conv_net, spq.presets.spquant_snn(4, adaptive=True), frames(2, 8, 8), "step"
)
LOOPS = {
    "default": functools.partial(snn.Leaky, beta=0.9),
    "zero": functools.partial(snn.Leaky, beta=0.9, reset_mechanism="zero"),
    "none": functools.partial(snn.Leaky, beta=0.5, reset_mechanism="none"),
    "at once": functools.partial(snn.Leaky, beta=0.9, reset_delay=False),
    "threshold": functools.partial(snn.Leaky, beta=0.8, threshold=0.4, learn_threshold=True),
    "beta of each": functools.partial(snn.Leaky, beta=torch.tensor(0.7), learn_beta=True),
    "lapicque": functools.partial(snn.Lapicque, beta=0.8),
    "lapicque zero": functools.partial(snn.Lapicque, beta=0.8, reset_mechanism="zero"),
    "lapicque R": functools.partial(snn.Lapicque, R=2.0, C=1.5, time_step=1.0),
}
for _name, _make in LOOPS.items():
    NETWORKS[f"loop {_name}"] = Case(functools.partial(Loop, _make), quant(4), frames(6, steps=6))
NETWORKS["loop over one input"] = Case(
    functools.partial(Loop, LOOPS["default"], steps=6),
    quant(4, input=spq.UniformInput(5)),
    lambda: torch.rand(SAMPLES, 6),
    "static",
)

# One layer stack, and what can be different about its neurons, membranes, weights, gates, input.
for _reset in (0.0, None, -0.25, 0.1):
    for _node in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        NETWORKS[f"{_node.__name__} v_reset={_reset}"] = small_case(node=_node, v_reset=_reset)
NETWORKS["decay_input=False"] = small_case(decay_input=False, tau=3.0, v_threshold=0.7)
NETWORKS["ParametricLIF decay_input=False"] = small_case(
    node=neuron.ParametricLIFNode, decay_input=False, init_tau=1.5, v_reset=None
)
NETWORKS["step by step"] = small_case(takes="step", v_reset=None)
NETWORKS["biases, no norm"] = small_case(norm=False, decay_input=False)
for _membrane in (
    spq.BinaryMembrane(),
    spq.TernaryMembrane(boundaries="eq7"),
    spq.TernaryMembrane(unit=0.3),
    spq.UniformMembrane(2),
    spq.UniformMembrane(4),
    spq.UniformMembrane(levels=(-3, 1)),
):
    for _reset in (0.0, None):
        NETWORKS[f"{_membrane} v_reset={_reset}"] = small_case(
            quant(4, membrane=_membrane), v_reset=_reset, decay_input=False
        )
for _weights in (
    *(spq.PowerOfTwoWeights(bits) for bits in (2, 3, 4)),
    spq.PowerOfTwoWeights(3, per_channel=False),
    *(spq.AdditivePowerOfTwoWeights(bits) for bits in (5, 6, 7, 8)),
    *(spq.UniformWeights(bits) for bits in range(2, 9)),
    spq.UniformWeights(4, scale="sawb"),
    spq.TernaryWeights(),
):
    NETWORKS[str(_weights)] = small_case(quant(weights=_weights, edge_weights=_weights))
for _score in ("current", "prior"):
    for _source in ("membrane", "input"):
        _config = quant(
            4,
            spatial_gate=spq.SpatialGate(0.35, _score),
            channel_gate=spq.ChannelGate(source=_source),
        )
        NETWORKS[f"gates {_score} {_source}"] = small_case(_config)
        NETWORKS[f"gates {_score} {_source} snntorch"] = Case(
            conv_net, _config, frames(2, 8, 8), "step"
        )
for _gradient in (False, True):
    NETWORKS[f"threshold per_channel={_gradient}"] = small_case(
        quant(3, threshold=spq.LearnableThreshold(per_channel=_gradient))
    )
for _bits in range(1, 9):
    NETWORKS[f"input of {_bits} bits"] = small_case(
        quant(3, input=spq.UniformInput(_bits, -1.0 if _bits % 2 else 0.0, 1.5)),
        analogue(2, 8, 8),
    )
NETWORKS["event counts"] = small_case(
    x=lambda: torch.randint(0, 7, (4, SAMPLES, 2, 8, 8)).float(), v_threshold=2.0
)
NETWORKS["signed counts"] = small_case(
    x=lambda: torch.randint(-3, 7, (4, SAMPLES, 2, 8, 8)).float(), v_threshold=2.0
)


def build(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    x = case.x()
    sample = x[0] if case.takes == "step" else x
    return converted(case.model(), case.config, x, sample), x, sample


@torch.no_grad()
def learn_thresholds(model: nn.Module) -> None:
    """Move learnable thresholds away from where they began, some beyond their bounds."""
    for module in model.modules():
        if getattr(module, "learnable_threshold", None) is not None:
            value = module._threshold()
            value.mul_(torch.empty_like(value).uniform_(0.4, 1.6))


def off_by_little(net: spq.IntegerNetwork, path: str) -> spq.IntegerNetwork:
    """The comparisons of one layer moved by a 32nd of what its sums can be, at least by one."""
    sums = net.graph[net.graph[path].inputs[0]]
    return moved_break(net, path, 1 + (sums.high - sums.low) // 32)


@pytest.mark.parametrize("name", NETWORKS, ids=[name[:60] for name in NETWORKS])
def test_every_spike_and_membrane_is_the_same(name):
    model, x, sample = build(NETWORKS[name])
    learn_thresholds(model)
    net = spq.to_integer(model, sample, engine="torch")
    assert net.graph.takes == NETWORKS[name].takes
    result = spq.verify(net, model, x)
    assert result.exact, str(result)
    assert result.samples >= SAMPLES
    rates = [check.rate for check in result.layers]
    assert any(0.01 < rate < 0.99 for rate in rates), rates

    # And the check can fail.
    path = max(result.layers, key=lambda check: -abs(check.rate - 0.3)).path
    wrong = spq.verify(off_by_little(net, path), model, x)
    assert not wrong.exact
    assert wrong.first.path == path
    assert wrong.first.first.what in ("spike", "membrane")


@pytest.mark.parametrize("name", ["joins", "gates prior membrane", "snntorch conv net"])
def test_the_compiled_engine_is_verified_as_well(name):
    pytest.importorskip("numba")
    model, x, sample = build(NETWORKS[name])
    net = spq.to_integer(model, sample, engine="numba")
    result = spq.verify(net, model, x)
    assert result.exact, str(result)


def changes_a_weight(layer_: nn.Module) -> None:
    with torch.no_grad():
        layer_.weight[:] = -layer_.weight


def changes_a_norm(norm: nn.Module) -> None:
    norm.running_mean += 0.5


def changes_a_threshold(node: nn.Module) -> None:
    node.v_threshold = node.v_threshold * 1.3


def changes_a_unit(node: nn.Module) -> None:
    node.membrane_unit.mul_(0.7)


@pytest.mark.parametrize(
    ("index", "change", "first"),
    [
        (0, changes_a_weight, "2"),
        (4, changes_a_weight, "6"),
        (5, changes_a_norm, "6"),
        (6, changes_a_threshold, "6"),
        (2, changes_a_unit, "2"),
        (8, changes_a_weight, "9"),
    ],
)
def test_a_changed_model_is_not_the_same_any_more(index, change, first):
    model, x, sample = build(small_case(quant(4), decay_input=False))
    net = spq.to_integer(model, sample, engine="torch")
    assert spq.verify(net, model, x).exact
    change(model[index])
    result = spq.verify(net, model, x)
    assert not result.exact
    assert result.first.path == first
