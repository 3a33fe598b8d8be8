"""The host's own models, whole: planned, converted, trained, copied, compiled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from spikingjelly.activation_based.model import (
    ms_resnet,
    qkformer,
    sew_resnet,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer

CONFIGS = {
    "2 bits": spq.presets.quant_snn(weight_bits=2),
    "4 bits, adaptive": spq.presets.quant_snn(4, adaptive=True),
}
CLASSES, STEPS, BATCH = 4, 2, 2


def narrow(make: Callable[[], nn.Module], divisor: int = 16) -> nn.Module:
    """A published network with thinner layers; what is wired to what stays."""

    def thin(channels: int) -> int:
        return channels if channels <= 3 else channels // divisor

    with torch.device("meta"):  # at full width nothing is allocated
        net = make()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            options = {"stride": m.stride, "padding": m.padding, "bias": m.bias is not None}
            m.__init__(thin(m.in_channels), thin(m.out_channels), m.kernel_size, **options)
        elif isinstance(m, nn.Linear):
            m.__init__(thin(m.in_features), thin(m.out_features))
        elif isinstance(m, nn.BatchNorm2d):
            m.__init__(thin(m.num_features))
    functional.set_step_mode(net, "m")
    return net


def published(make: Callable[..., nn.Module], **options: object) -> Callable[[], nn.Module]:
    options = {"num_classes": CLASSES * 16, "spiking_neuron": neuron.LIFNode} | options
    return lambda: narrow(lambda: make(**options, tau=2.0, decay_input=False))


def recurrent() -> nn.Module:
    """Both recurrent containers, whose inner neurons stay in single-step mode."""
    inner = nn.Sequential(nn.Linear(16, 12), neuron.LIFNode(decay_input=False))
    square = nn.Sequential(nn.Linear(12, 12), neuron.IFNode(v_reset=None))
    return nn.Sequential(
        layer.Flatten(step_mode="m"),
        layer.Linear(3 * 8 * 8, 16, step_mode="m"),
        neuron.ParametricLIFNode(decay_input=False, step_mode="m"),
        layer.LinearRecurrentContainer(inner, 16, 12, step_mode="m"),
        layer.ElementWiseRecurrentContainer(square, torch.add, step_mode="m"),
        layer.Linear(12, CLASSES, step_mode="m"),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg11": (published(spiking_vgg.spiking_vgg11_bn), 32),
    "resnet18": (published(spiking_resnet.spiking_resnet18), 32),
    "sew18": (published(sew_resnet.sew_resnet18, cnf="ADD"), 32),
    "ms18": (
        lambda: ms_resnet.ms_resnet18(T=STEPS, num_classes=CLASSES, base_channels=4),
        32,
    ),
    "spikformer": (
        lambda: spikformer.Spikformer(
            T=STEPS,
            img_size_h=16,
            img_size_w=16,
            patch_size=4,
            num_classes=CLASSES,
            embed_dims=16,
            num_heads=2,
            depths=1,
        ),
        16,
    ),
    "qkformer": (
        lambda: qkformer.QKFormer(
            T=STEPS, num_classes=CLASSES, embed_dims=32, num_heads=(1, 2, 2), depths=(1, 1, 1)
        ),
        16,
    ),
    "recurrent": (recurrent, 8),
}


def build(name: str) -> nn.Module:
    """The float model, its currents raised so that deep layers fire, too."""
    net = MODELS[name][0]()
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=3 / m.in_features**0.5)
            nn.init.constant_(m.bias, 0.3)
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(m.weight, 2.0)
            nn.init.constant_(m.bias, 0.5)
    return net


def states(net: nn.Module) -> dict[str, object]:
    """Every memory of every module."""
    modules = {path: m for path, m in net.named_modules() if isinstance(m, base.MemoryModule)}
    return {f"{path}.{name}": v for path, m in modules.items() for name, v in m.named_memories()}


@dataclass
class Case:
    """One model, its conversion, and what the model was before that."""

    name: str
    config: spq.SpQuantConfig
    x: Tensor
    model: nn.Module
    before: dict[str, Tensor]
    memories: dict[str, tuple[object, object]]
    modes: dict[str, bool]
    generator: tuple[Tensor, Tensor]
    plan: spq.ConversionPlan
    converted: nn.Module
    converted_modes: dict[str, bool]

    def fresh(self) -> nn.Module:
        """A converted network that no test has touched."""
        return copy.deepcopy(self.converted).train()


@pytest.fixture(scope="module", params=[(n, c) for n in MODELS for c in CONFIGS], ids=" ".join)
def case(request) -> Case:
    name, config = request.param
    torch.manual_seed(0)
    model, size = build(name), MODELS[name][1]
    x = torch.randint(0, 2, (STEPS, BATCH, 3, size, size)).float()
    model(x)  # leaves running memories behind, with their graph
    model[3].eval() if name == "recurrent" else next(model.children()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    memories = {
        key: (value, value.detach().clone() if isinstance(value, Tensor) else value)
        for key, value in states(model).items()
    }
    modes = {path: m.training for path, m in model.named_modules()}
    generator = torch.get_rng_state()
    plan = spq.plan(model, CONFIGS[config], x)
    converted = spq.convert(model, CONFIGS[config], x)
    after = torch.get_rng_state()
    return Case(
        name,
        CONFIGS[config],
        x,
        model,
        before,
        memories,
        modes,
        (generator, after),
        plan,
        converted,
        {path: m.training for path, m in converted.named_modules()},
    )


def some(names: tuple[str, ...], config: str) -> pytest.MarkDecorator:
    """The cases of one configuration."""
    pairs = [pytest.param((name, config), id=name) for name in names]
    return pytest.mark.parametrize("case", pairs, indirect=True)


def shallow(net: nn.Module) -> nn.Module:
    """Without blocks like others, for what takes long: one a stage, and the whole last stage."""
    for name in ("layer1", "layer2", "layer3"):
        if isinstance(stage := getattr(net, name, None), nn.Sequential):
            setattr(net, name, stage[:1])
    return net


def neurons(net: nn.Module) -> dict[str, QuantizedNeuron]:
    return {path: m for path, m in net.named_modules() if isinstance(m, QuantizedNeuron)}


def logits(net: nn.Module, x: Tensor) -> Tensor:
    """Class scores; some models average over time themselves."""
    out = net(x)
    return out if out.ndim == 2 else out.mean(0)


def train_step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    functional.reset_net(net)
    optimizer.zero_grad()
    loss = F.cross_entropy(logits(net, x), torch.arange(BATCH) % CLASSES)
    loss.backward()
    optimizer.step()
    return loss.item()


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and last membranes, from rest, in eval mode."""
    functional.reset_net(net)
    with torch.no_grad():
        out = net.eval()(x)
    found = {path: m.v.clone() for path, m in neurons(net).items()}
    functional.reset_net(net)
    return out, found


def assert_same_run(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    (out, stored), (want, expected) = run(one, x), run(other, x)
    assert torch.equal(out, want)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[path], expected[path]) for path in expected)


# --- the plan and the original ------------------------------------------------------------------


def test_every_module_is_in_the_plan_once(case):
    rows = {row.path: row for row in case.plan if row.path != "(input)"}
    assert len(rows) == len([row for row in case.plan if row.path != "(input)"])
    inside = tuple(
        f"{path}." for path, m in case.model.named_modules() if isinstance(m, neuron.BaseNode)
    )
    for path, m in case.model.named_modules():
        if path.startswith(inside):
            continue
        stateful = isinstance(m, base.MemoryModule) and m._memories
        own = m._parameters or m._buffers or stateful or not list(m.children())
        assert (path in rows) == bool(own), path
        if not own:
            continue
        row = rows[path]
        assert row.type == type(m).__name__
        assert row.reason
        if isinstance(m, neuron.BaseNode):
            assert row.action == "convert"
        elif isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            assert row.action == "quantize"
        else:
            assert row.action == "keep"
        if row.action != "keep":
            assert row.shape
            assert row.bits
    text = str(case.plan)
    assert all(path in text for path in rows)


def test_what_the_plan_says_is_done(case):
    found = {path: type(m).__name__ for path, m in case.converted.named_modules()}
    for row in case.plan:
        if row.action == "convert":
            assert isinstance(case.converted.get_submodule(row.path), QuantizedNeuron)
        elif row.action == "quantize":
            assert isinstance(case.converted.get_submodule(row.path), QuantizedLayer)
        elif row.path != "(input)":
            assert found[row.path] == row.type
    listed = {row.path for row in spq.status(case.converted)}
    assert listed == {row.path for row in case.plan if row.action in ("convert", "quantize")}


def test_the_original_is_as_it_was_bit_for_bit(case):
    now = case.model.state_dict()
    assert now.keys() == case.before.keys()
    assert all(torch.equal(now[key], value) for key, value in case.before.items())
    for key, value in states(case.model).items():
        held, copied = case.memories[key]
        assert value is held
        assert torch.equal(value, copied) if isinstance(value, Tensor) else value == copied
    assert {path: m.training for path, m in case.model.named_modules()} == case.modes
    assert not all(case.modes.values())
    assert torch.equal(*case.generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())
    assert not neurons(case.model)


def test_weights_keys_and_modes_are_carried_over(case):
    now = case.converted.state_dict()
    for key, value in case.before.items():
        assert torch.equal(now[key], value), key
    for row in case.plan:
        if row.path != "(input)":
            assert case.converted_modes[row.path] == case.modes[row.path], row.path
    shared = {id(p) for p in case.model.parameters()} & {id(p) for p in case.converted.parameters()}
    assert not shared


# --- training -----------------------------------------------------------------------------------


def test_one_training_step_reaches_every_weight_and_threshold(case):
    net = case.fresh()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    train_step(net, case.x, optimizer)
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, start[name])]
    layers = [path for path, m in net.named_modules() if isinstance(m, QuantizedLayer)]
    assert all(f"{path}.weight" in moved for path in (layers[0], layers[-1]))
    assert len(moved) > len(start) / 2
    for path, m in neurons(net).items():
        assert (f"{path}.v_threshold" in start) == (case.config.threshold is not None)
        assert set((m.v / m.membrane_unit).unique().tolist()) <= {-1.0, 0.0, 1.0}


@some(tuple(MODELS), "4 bits, adaptive")
def test_training_lowers_the_loss(case):
    net = case.fresh()
    for m in net.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0  # its noise is larger than what a few steps gain
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = [train_step(net, case.x, optimizer) for _ in range(16)]
    assert min(losses[-8:]) < losses[0]


def test_the_reset_of_the_host_reaches_everything(case):
    net = case.fresh()
    logits(net, case.x).sum().backward()
    assert all(isinstance(m.v, Tensor) for m in neurons(net).values())
    functional.reset_net(net)
    rest = states(case.fresh())
    assert states(net) == rest
    copy.deepcopy(net)
    logits(net, case.x)
    spq.reset(net)
    assert states(net) == rest


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["copy", "pickle"],
)
def test_a_duplicate_runs_alike_and_apart(case, duplicate):
    net = case.fresh()
    functional.reset_net(net)
    other = duplicate(net)
    assert_same_run(other, net, case.x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    train_step(other.train(), case.x, torch.optim.SGD(other.parameters(), lr=0.1))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_a_state_dict_goes_into_a_second_conversion(case):
    net = case.fresh()
    train_step(net, case.x, torch.optim.SGD(net.parameters(), lr=0.1))
    torch.manual_seed(1)
    second = spq.convert(build(case.name), case.config, case.x)
    assert not torch.equal(run(second, case.x)[0], run(net, case.x)[0])
    second.load_state_dict(net.state_dict(), strict=True)
    assert_same_run(second, net, case.x)


# --- modes --------------------------------------------------------------------------------------


@some(tuple(MODELS), "2 bits")
def test_inference_compiles_without_a_graph_break(case):
    net = shallow(case.fresh()).eval()
    want, stored = run(copy.deepcopy(net), case.x)
    torch._dynamo.reset()
    with torch.no_grad():
        out = torch.compile(net, backend="eager", fullgraph=True)(case.x)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    for path, m in neurons(net).items():
        assert torch.equal(m.v, stored[path]), path


@some(("vgg11", "recurrent"), "4 bits, adaptive")
def test_training_compiles_without_a_graph_break(case):
    net, other = case.fresh(), case.fresh()
    torch._dynamo.reset()
    found = []
    for forward in (net, torch.compile(other, backend="eager", fullgraph=True)):
        torch.manual_seed(0)  # for the dropout
        out = forward(case.x)
        out.square().sum().backward()
        found.append(out)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    for path, m in neurons(net).items():
        assert torch.equal(m.v, other.get_submodule(path).v), path
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-5, msg=name)
    for (name, p), q in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-6, msg=name)


def test_it_trains_under_autocast(case):
    net = case.fresh()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(net, case.x)
    assert out.isfinite().all()
    F.cross_entropy(out.float(), torch.arange(BATCH) % CLASSES).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert all(m.v.dtype == torch.float32 for m in neurons(net).values())
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


@some(("vgg11", "resnet18", "sew18"), "2 bits")
def test_single_steps_equal_the_sequence_in_eval_mode(case):
    """The other models put time into their own forward."""
    net = case.fresh()
    together, stored = run(net, case.x)
    functional.set_step_mode(net, "s")
    with torch.no_grad():
        apart = torch.stack([net.eval()(step) for step in case.x])
    for path, m in neurons(net).items():
        assert torch.equal(m.v, stored[path]), path
    assert torch.equal(apart, together)
    assert any((v != 0).any() for v in stored.values())
