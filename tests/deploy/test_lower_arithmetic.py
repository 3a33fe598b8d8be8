"""Products, differences and constants between layers, and SEW-ResNet, which is made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.deploy.check import check_graph
from spquant_plugin.deploy.graph import Affine, Product
from spquant_plugin.errors import DeployError

from .lively import converted, events, positive

SAMPLES = 50
quant = spq.presets.quant_snn
lower = functools.partial(spq.to_integer, engine="torch")
LIF = neuron.LIFNode


class Two(nn.Module):
    """Two branches of neurons, and what is made of their spikes."""

    def __init__(self, join: Callable[..., object]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = layer.Linear(5, 8), layer.Linear(5, 8), layer.Linear(8, 4)
        self.lif1, self.lif2 = LIF(), neuron.IFNode(v_threshold=0.7)
        self.fc4, self.lif3, self.join = layer.Linear(8, 8), LIF(v_threshold=0.5), join
        functional.set_step_mode(positive(self), "m")

    def forward(self, x: Tensor) -> object:
        return self.join(self, self.lif1(self.fc1(x)), self.lif2(self.fc2(x)))


def read(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A layer, which takes exact whole numbers alone, reads what was joined."""
    return lambda net, a, b: net.lif3(net.fc4(join(a, b)))


def written(a: Tensor, b: Tensor) -> Tensor:
    both = a.clone()
    both -= b
    both *= 2
    return both


JOINS: dict[str, Callable[..., object]] = {
    "AND": read(lambda a, b: a * b),
    "IAND": read(lambda a, b: a * (1.0 - b)),
    "a product in place": read(lambda a, b: a.clone().mul_(b)),
    "a square": read(lambda a, b: a * a),
    "three": read(lambda a, b: a * b * (1 - a * b) + a),
    "inverted": read(lambda a, b: 1 - a),
    "inverted twice": read(lambda a, b: 1 - (1 - a) * (1 - b)),
    "from a tensor": read(lambda a, b: torch.tensor(1.0) - a),
    "difference": read(lambda a, b: a - b),
    "difference in place": read(written),
    "negative": read(lambda a, b: -a + b),
    "from zero": read(lambda a, b: 0 - a),
    "two more": read(lambda a, b: a + b + 2),
    "one less": read(lambda a, b: a - 1),
    "half a spike more": read(lambda a, b: a * 0.5 + 2.5),
    "four minus two spikes": read(lambda a, b: 4 - (a + b) * 2),
    "product of other units": read(lambda a, b: (a * 0.5) * (b * 4)),
    "current minus spikes": lambda net, a, b: net.lif3(net.fc4(a) - b),
    "spikes minus current": lambda net, a, b: net.lif3(b - net.fc4(a)),
    "negative current": lambda net, a, b: net.lif3(-net.fc4(a)),
    "a current returned with the other sign": lambda net, a, b: -net.fc3(a * b),
    "products returned": lambda net, a, b: (a * b, a * (1 - b), (a - b).mean(0)),
}


@pytest.mark.parametrize("name", JOINS)
def test_what_is_made_of_spikes(name):
    x = events(6, SAMPLES, 5)
    model = converted(Two(JOINS[name]), quant(4), x)
    net = lower(model, x[:, :3])
    check_graph(net.graph)
    result = spq.verify(net, model, x)
    assert result.exact, str(result)
    assert result.samples == SAMPLES
    assert all(check.rate > 0 for check in result.layers if check.path != "lif3")


def test_a_product_is_binary_and_an_inversion_is_one_node():
    x = events(6, 3, 5)
    net = lower(converted(Two(JOINS["IAND"]), quant(4), x), x)
    products = [node for node in net.graph.nodes if isinstance(node, Product)]
    inverted = [node for node in net.graph.nodes if isinstance(node, Affine)]
    assert [node.binary for node in products] == [True]
    assert [(node.low, node.high) for node in inverted] == [(0, 1)]
    assert inverted[0].multiplier.tolist() == [-1] * 8
    assert inverted[0].offset.tolist() == [1] * 8
    assert net.graph.layers[-1].inputs == (products[0].name,)


def branches(join: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> nn.Module:
    """Two normalised branches whose factors are dyadic."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4)
            self.conv2, self.bn2 = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4)
            self.lif = LIF(v_threshold=0.4)
            functional.set_step_mode(positive(self), "m")

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(join(self.bn1(self.conv1(x)), self.bn2(self.conv2(x))))

    return converted(Branches(), quant(4, norm=spq.QuantizedNorm("dyadic")), x)


@pytest.mark.parametrize(
    "join",
    [lambda a, b: a - b, lambda a, b: -(a + b), lambda a, b: b + (1 - a)],
    ids=["a - b", "-(a + b)", "b + (1 - a)"],
)
def test_differences_of_dyadic_branches(join):
    x = events(4, SAMPLES, 2, 8, 8)
    model = branches(join, x)
    assert spq.verify(lower(model, x[:, :3]), model, x).exact


@pytest.mark.parametrize("connect", ["AND", "IAND"])
def test_sew_resnet_of_products(connect):
    model = sew_resnet.sew_resnet18(
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        cnf=connect,
        num_classes=10,
    )
    functional.set_step_mode(model, "m")
    x = torch.randn(2, SAMPLES, 3, 16, 16) * 0.7
    model = converted(model, quant(input=spq.UniformInput(8, -2.0, 2.0)), x)
    net = lower(model, x[:, :2])
    result = spq.verify(net, model, x)
    assert result.exact, str(result)
    rates = [check.rate for check in result.layers]
    assert sum(0.01 < rate < 0.99 for rate in rates) > len(rates) / 2, rates
    assert sum(isinstance(node, Product) for node in net.graph.nodes) == 8


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "a product of counts": (
        read(lambda a, b: (a + b) * a),
        r"two values are multiplied, in whole numbers from 0 to 2 and from 0 to 1: must be spikes",
    ),
    "a product of a current": (
        lambda net, a, b: net.lif3(net.fc4(a) * b),
        "two values are multiplied, .*without float factors",
    ),
    "a quotient": (read(lambda a, b: a / (b + 1)), "a value is multiplied by a tensor, or divides"),
    "a product with a tensor": (
        read(lambda a, b: a * torch.rand(8)),
        "a value is multiplied by a tensor, or divides another",
    ),
    "a product with something refused": (read(lambda a, b: a * b.sin()), "computes 'sin'"),
    "a difference from something refused": (read(lambda a, b: b.sin() - a), "computes 'sin'"),
    "less something refused": (read(lambda a, b: a - b.sin()), "computes 'sin'"),
    "a part of a unit": (
        read(lambda a, b: a + 0.3),
        r"0\.3 is added to multiples of 1: must be one of them, below 2\*\*24",
    ),
    "too much": (read(lambda a, b: a + 2.0**24), "is added to multiples of 1: must be one of them"),
    "a constant for each channel": (
        read(lambda a, b: a + torch.ones(8)),
        "a constant is added: must be the bias of a layer or a norm, or a number that is added to",
    ),
    "a constant less a current": (
        lambda net, a, b: net.lif3(1 - net.fc4(a)),
        "a constant is added: must be the bias",
    ),
    "two currents apart": (
        lambda net, a, b: net.lif3(net.fc4(a) - net.fc3(b).repeat(1, 1, 2)),
        "is repeated to|two currents are added",
    ),
    "a sum is subtracted": (
        lambda net, a, b: net.lif3(a - (net.fc4(a) + b)),
        "a sum is subtracted, of a current and spikes or over time",
    ),
    "steps apart": (
        lambda net, a, b: net.fc4(a)[0] - b[1],
        "values of different steps are joined",
    ),
    "weighted": (read(lambda a, b: torch.sub(a, b, alpha=2)), "a sum has weights"),
    "weighted the other way": (read(lambda a, b: torch.rsub(a, b, alpha=2)), "a sum has weights"),
    "written to": (
        read(lambda a, b: torch.zeros_like(a).sub_(b)),
        "a constant tensor takes part",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_number_is_refused(name):
    join, message = REFUSED[name]
    x = events(6, 3, 5)
    model = converted(Two(join), quant(4), x)
    with pytest.raises(DeployError, match=message) as caught:
        lower(model, x)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 600
