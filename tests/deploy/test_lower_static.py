"""Models of one picture, which they show to themselves again and again."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import DeployError

from .lively import Loop, converted, events, positive

STEPS, SAMPLES = 5, 50
quant = spq.presets.quant_snn
lower = functools.partial(spq.to_integer, engine="torch")
LIF = neuron.LIFNode


class Shown(nn.Module):
    """A convolutional network that makes a sequence of its input by a given function."""

    def __init__(self, show: Callable[[Tensor], Tensor], step_mode: str = "m") -> None:
        super().__init__()
        self.show = show
        parts = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), LIF(), layer.MaxPool2d(2)
        self.body = positive(nn.Sequential(*parts, layer.Flatten(), layer.Linear(64, 5), LIF()))
        functional.set_step_mode(self, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.show(x)).mean(0)


class ShownStepwise(Shown):
    """The same, step by step."""

    def __init__(self, show: Callable[[Tensor], Tensor]) -> None:
        super().__init__(show, "s")

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(step) for step in self.show(x)]).mean(0)


class EncodedOnce(nn.Module):
    """The first layer sees the picture once; its current is what is repeated."""

    def __init__(self, step_mode: str = "m") -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.body = nn.Sequential(LIF(), layer.Flatten(), layer.Linear(256, 5), LIF())
        functional.set_step_mode(positive(self).body, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)).mean(0)


class EncodedOnceStepwise(EncodedOnce):
    def __init__(self) -> None:
        super().__init__("s")

    def forward(self, x: Tensor) -> Tensor:
        current = self.conv(x)
        return torch.stack([self.body(current) for _ in range(STEPS)]).mean(0)


SHOWN = {
    "repeat of a new axis": lambda x: x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1),
    "index and repeat": lambda x: x[None].repeat(STEPS, 1, 1, 1, 1),
    "repeat": lambda x: x.repeat(STEPS, 1, 1, 1, 1),
    "expand": lambda x: x.expand(STEPS, *x.shape),
    "expand of a new axis": lambda x: x.unsqueeze(0).expand(STEPS, -1, -1, -1, -1),
    "expand and copy": lambda x: x.unsqueeze(0).expand(STEPS, -1, -1, -1, -1).contiguous(),
    "stack": lambda x: torch.stack([x] * STEPS),
    "cat": lambda x: torch.cat([x.unsqueeze(0)] * STEPS),
    "cat of copies": lambda x: torch.cat([x.unsqueeze(0).clone() for _ in range(STEPS)]),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoded once": EncodedOnce,
    "encoded once, step by step": EncodedOnceStepwise,
}
for _name, _show in SHOWN.items():
    MODELS[_name] = functools.partial(Shown, _show)
for _name in ("repeat", "expand", "stack"):
    MODELS[f"{_name}, step by step"] = functools.partial(ShownStepwise, SHOWN[_name])


@pytest.mark.parametrize("name", MODELS)
def test_one_picture_for_all_steps(name):
    x = events(SAMPLES, 2, 8, 8)
    model = converted(MODELS[name](), quant(4), x)
    net = lower(model, x[:3])
    assert (net.graph.takes, net.graph.repeats) == ("static", STEPS)
    assert net.graph.input.shape == (2, 8, 8)
    result = spq.verify(net, model, x)
    assert result.exact, str(result)
    assert result.samples == SAMPLES
    assert any(0.01 < check.rate < 0.99 for check in result.layers)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))


def test_an_analogue_picture():
    x = torch.rand(SAMPLES, 2, 8, 8)
    config = quant(4, input=spq.UniformInput(6))
    model = converted(Shown(SHOWN["repeat"]), config, x)
    net = lower(model, x[:3])
    assert net.graph.input.quantizer == (6, 0.0, 1.0)
    assert spq.verify(net, model, x).exact


@pytest.mark.parametrize("name", ["repeat", "expand of a new axis", "repeat, step by step"])
@pytest.mark.parametrize("samples", [1, STEPS])
def test_as_many_samples_as_steps_and_one_alone(name, samples):
    x = events(SAMPLES, 2, 8, 8)
    model = converted(MODELS[name](), quant(4), x)
    net = lower(model, x[:samples])
    assert (net.graph.takes, net.graph.repeats) == ("static", STEPS)
    assert spq.verify(net, model, x).exact


def test_a_single_step():
    x = events(SAMPLES, 2, 8, 8)
    model = converted(Shown(lambda x: x.unsqueeze(0).repeat(1, 1, 1, 1, 1)), quant(4), x)
    net = lower(model, x[:3])
    assert (net.graph.takes, net.graph.repeats) == ("static", 1)
    assert spq.verify(net, model, x).exact


def test_gates_of_a_repeated_picture():
    x = events(SAMPLES, 2, 8, 8)
    config = spq.presets.spquant_snn(4, adaptive=True)
    model = converted(Shown(SHOWN["repeat"]), config, x)
    net = lower(model, x[:3])
    assert any(node.kind == "ChannelDecision" for node in net.graph.nodes)
    assert any(neuron.pixels is not None for neuron in net.graph.neurons)
    assert spq.verify(net, model, x).exact


def test_the_example_of_spikingjelly():
    examples = pytest.importorskip("spikingjelly.activation_based.examples.conv_fashion_mnist")
    x = torch.rand(SAMPLES, 1, 28, 28)
    config = quant(4, input=spq.UniformInput(8))
    model = converted(positive(examples.CSNN(T=4, channels=2)), config, x)
    net = lower(model, x[:2])
    assert (net.graph.takes, net.graph.repeats) == ("static", 4)
    result = spq.verify(net, model, x)
    assert result.exact, str(result)


@pytest.mark.parametrize("read", ["stack", "sum", "view"])
def test_a_loop_over_one_input_may_read_out_all_steps(read):
    class Read(Loop):
        def forward(self, x: Tensor) -> Tensor:
            spikes, _ = super().forward(x)
            if read == "view":
                return spikes.flatten(0, 1).unflatten(0, (STEPS, -1))
            return spikes if read == "stack" else spikes.sum(0)

    x = events(SAMPLES, 6)
    make = functools.partial(snn.Leaky, beta=0.9)
    model = converted(Read(make, steps=STEPS), quant(4), x)
    assert spq.verify(lower(model, x[:3]), model, x).exact


def test_a_static_network_is_stored_and_streams(tmp_path):
    x = events(SAMPLES, 2, 8, 8)
    model = converted(Shown(SHOWN["repeat"]), quant(4), x)
    net = lower(model, x[:3])
    net.save(tmp_path / "net.spq")
    again = spq.load_integer(tmp_path / "net.spq", engine="torch")
    assert again.graph.repeats == STEPS
    assert torch.equal(again(x), net(x))
    steps = torch.stack([again.step(x) for _ in range(STEPS)])
    assert torch.equal(steps.mean(0), net(x))


# --- what is refused ----------------------------------------------------------------------------


def shown(show: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return functools.partial(Shown, show)


class Late(Shown):
    """Repeats what is a sequence already."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean(0).unsqueeze(0).expand(3, -1, -1)


class Beside(Shown):
    """One neuron reads the samples as if they were steps."""

    def __init__(self) -> None:
        super().__init__(SHOWN["repeat"])
        self.other = LIF(step_mode="m")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.other(x)


REFUSED = {
    "repeated behind neurons": (
        Late,
        (6, 3, 2, 8, 8),
        r"shape \(1, 3, 5\) is repeated to \(3, 3, 5",
    ),
    "repeated samples": (
        shown(lambda x: x.repeat(STEPS, 1, 1, 1, 1).repeat(1, 2, 1, 1, 1)),
        (3, 2, 8, 8),
        r"shape \(5, 3, 2, 8, 8\) is repeated to \(5, 6, 2, 8, 8\): only one input \[N, \.\.\.\]",
    ),
    "two pictures": (
        shown(lambda x: torch.stack([x, x * 0.5, x])),
        (3, 2, 8, 8),
        "values are stacked that are not the same one at every step",
    ),
    "a sequence and its picture": (
        Beside,
        (STEPS, 2, 8, 8),
        r"other \(.*LIFNode\): it reads one input as if that were a sequence: must read \[T, N",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_repeated_picture_is_refused(name):
    build, shape, message = REFUSED[name]
    x = events(*shape)
    model = converted(build(), quant(4), x)
    with pytest.raises(DeployError, match=message):
        lower(model, x)
