"""SpikingJelly neurons against slow references, and against themselves in every mode."""

from __future__ import annotations

import copy
import inspect
from fractions import Fraction

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor
from spikingjelly.activation_based import neuron as host
from spikingjelly.activation_based.distributed import vision
from spikingjelly.activation_based.distributed.vision import config as vision_config
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import ConfigError, ConversionError
from spquant_plugin.spikingjelly import neuron, surrogate

IF, LIF, PLIF = (
    neuron.TernaryMembraneIFNode,
    neuron.TernaryMembraneLIFNode,
    neuron.TernaryMembraneParametricLIFNode,
)
TWINS = {IF: host.IFNode, LIF: host.LIFNode, PLIF: host.ParametricLIFNode}
MEMBRANES = {
    "ternary": spq.TernaryMembrane(),
    "eq7": spq.TernaryMembrane(boundaries="eq7"),
    "binary": spq.BinaryMembrane(),
    "2 bits": spq.UniformMembrane(2),
    "4 bits": spq.UniformMembrane(4),
    "levels": spq.UniformMembrane(levels=(-3, 1)),
    "given unit": spq.TernaryMembrane(unit=0.625),
}
LEVELS = {
    "ternary": (-1, 1, None),
    "eq7": (-1, 1, (0, Fraction(1, 2))),
    "binary": (0, 1, None),
    "2 bits": (-2, 1, None),
    "4 bits": (-8, 7, None),
    "levels": (-3, 1, None),
    "given unit": (-1, 1, None),
}
# Class, constructor arguments, decay of the membrane, gain of the input.
KINDS = {
    "IF": (IF, {}, 1, 1),
    "LIF": (LIF, {"decay_input": False}, Fraction(1, 2), 1),
    "LIF, input decays": (LIF, {"tau": 4.0}, Fraction(3, 4), Fraction(1, 4)),
    "PLIF": (PLIF, {"decay_input": False}, Fraction(1, 2), 1),
    "PLIF, input decays": (PLIF, {}, Fraction(1, 2), Fraction(1, 2)),
}
RESETS = {
    "hard": (1.0, 0.0),
    "hard to -0.25": (1.0, -0.25),
    "hard to 0.5": (1.25, 0.5),
    "soft": (1.0, None),
    "soft, V = 0.75": (0.75, None),
}


def each(table: dict, name: str):
    return pytest.mark.parametrize(name, table)


def eighths(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 1/8: sums are exact, and ties and touched thresholds are frequent."""
    return torch.randint(-20, 25, shape).to(dtype) / 8


def by_steps(node: nn.Module, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and states of single steps, whatever mode the node is in."""
    mode, node.step_mode = node.step_mode, "s"
    spikes, states = [], []
    for x in x_seq:
        spikes.append(node(x))
        states.append(node.v)
    node.step_mode = mode
    return torch.stack(spikes), torch.stack(states)


def at_once(node: nn.Module, x_seq: Tensor) -> Tensor:
    node.step_mode = "m"
    return node(x_seq)


# --- membrane=None: the host's own node ---------------------------------------------------------


def gradients(node: nn.Module, x_seq: Tensor, step_mode: str) -> dict[str, Tensor]:
    x_seq = x_seq.clone().requires_grad_()
    spikes = at_once(node, x_seq) if step_mode == "m" else by_steps(node, x_seq)[0]
    weigh = torch.linspace(-1, 2, x_seq.numel(), dtype=x_seq.dtype).view_as(x_seq)
    loss = (spikes * weigh).sum() + (node.v * weigh[0]).square().sum()
    loss.backward()
    return {
        "spikes": spikes,
        "v": node.v,
        "x": x_seq.grad,
        **{name: p.grad for name, p in node.named_parameters()},
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("detach", [False, True])
@each(RESETS, "reset")
@each(KINDS, "kind")
def test_without_membrane_it_is_the_node_of_the_host(kind, reset, detach, step_mode):
    twin, options, *_ = KINDS[kind]
    threshold, rest = RESETS[reset]
    tau = {"tau": 2.7} if twin is LIF else {"init_tau": 2.7} if twin is PLIF else {}
    options = options | tau | {"v_threshold": threshold, "v_reset": rest, "detach_reset": detach}
    x = torch.randn(7, 3, 11) + 0.4
    ours = gradients(twin(membrane=None, **options), x, step_mode)
    theirs = gradients(TWINS[twin](**options), x, step_mode)
    assert 0 < theirs["spikes"].mean() < 1
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["spikes"], theirs["spikes"])
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12)


# --- quantised membranes: exact fractions -------------------------------------------------------


def nearest(z: Fraction, lowest: int, highest: int, cuts: tuple | None) -> int:
    """Nearest level, ties to the lower one; or as many levels up as there are cuts below."""
    if cuts is not None:
        return lowest + sum(z > cut for cut in cuts)
    return min(range(lowest, highest + 1), key=lambda level: (abs(z - level), level))


def slow_neuron(xs, decay, gain, threshold, rest, unit, levels) -> tuple[list[int], list[Fraction]]:
    """One neuron in exact arithmetic: spikes and stored membranes of every step."""
    r = Fraction(rest or 0)
    m, spikes, stored = r, [], []
    for x in xs:
        u = r + decay * (m - r) + gain * Fraction(x)
        s = int(u >= threshold)
        v = u - threshold * s if rest is None else (r if s else u)
        m = r + unit * nearest((v - r) / unit, *levels)
        spikes.append(s)
        stored.append(m)
    return spikes, stored


def unit_of(name: str, decay: Fraction, threshold: Fraction, rest: Fraction) -> Fraction:
    if name == "given unit":
        return Fraction(5, 8)
    share = Fraction(3, 4) / max(Fraction(decay), Fraction(3, 4))
    return (threshold - rest) * share * (Fraction(1, 4) if name == "4 bits" else 1)


@each(MEMBRANES, "membrane")
@each(RESETS, "reset")
@each(KINDS, "kind")
def test_quantised_membrane_equals_exact_arithmetic(kind, reset, membrane):
    twin, options, decay, gain = KINDS[kind]
    threshold, rest = RESETS[reset]
    options = options | {"v_threshold": threshold, "v_reset": rest}
    x = eighths(6, 3, 10) / float(gain)
    unit = unit_of(membrane, decay, Fraction(threshold), Fraction(rest or 0))
    want = [
        slow_neuron(column, decay, gain, Fraction(threshold), rest, unit, LEVELS[membrane])
        for column in x.flatten(1).T.tolist()
    ]
    spikes = torch.tensor([s for s, _ in want]).T.view_as(x)
    stored = torch.tensor([[float(m) for m in ms] for _, ms in want]).T.view_as(x)
    assert 0 < spikes.float().mean() < 1
    node = twin(membrane=MEMBRANES[membrane], **options)
    assert float(node.membrane_unit) == float(unit)
    got, states = by_steps(node, x)
    assert torch.equal(got, spikes.float())
    assert torch.equal(states, stored)
    node.reset()
    assert torch.equal(at_once(node, x), spikes.float())
    assert torch.equal(node.v, stored[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_known_numbers(dtype):
    """u = 0.7 stays silent and is stored as 1; 0.5 + 0.7 fires; 0.2 is stored as 0."""
    node = LIF(decay_input=False, surrogate_function=surrogate.Triangle())
    x = torch.tensor([[0.7], [0.7], [0.2], [-0.6], [0.5]], dtype=dtype)
    spikes, states = by_steps(node, x)
    assert spikes.flatten().tolist() == [0, 1, 0, 0, 0]
    assert states.flatten().tolist() == [1, 0, 0, -1, 0]


def test_a_potential_on_the_threshold_fires():
    assert IF()(torch.tensor([1.0, 1 - 2**-24])).tolist() == [1, 0]


# --- gradients through quantised membrane and threshold -----------------------------------------


def replace(value: Tensor, smooth: Tensor) -> Tensor:
    """``value`` forward, the gradient of ``smooth`` backward."""
    return value.detach() + (smooth - smooth.detach())


def triangle_primitive(d: Tensor) -> Tensor:
    inside = d.clamp(-1, 1)
    return inside - inside * inside.abs() / 2


def slow_sequence(
    x_seq: Tensor, rate: Tensor, threshold: Tensor, rest: float | None, detach: bool, gradient: str
) -> tuple[Tensor, Tensor]:
    """A LIF neuron with ternary membrane whose every gradient path is written out.

    The threshold's own path is ``dL/ds`` times a weight that is a constant of the step.
    """
    r = rest or 0.0
    unit = float(threshold.detach().min()) - r
    m, spikes = torch.full_like(x_seq[0], r), []
    for x in x_seq:
        u = r + (1 - rate) * (m - r) + rate * x
        d = (u - threshold).detach()
        triangle = (1 - d.abs()).clamp(min=0)
        window = d.sigmoid() * (d >= 0)
        weight = {"gpw": window, "shared": 1.0, "doubled": 1 + window}[gradient] * triangle
        s = replace((d >= 0).to(u), triangle_primitive(u - threshold.detach()))
        s = s - weight * (threshold - threshold.detach())
        acting = s.detach() if detach else s
        v = u - threshold.detach() * acting if rest is None else (1 - acting) * u + acting * r
        z = (v - r) / unit
        level = (z > 0.5).to(z) - (z <= -0.5).to(z)
        m = r + unit * replace(level, torch.sigmoid(2 * (z - 0.5)) + torch.sigmoid(2 * (z + 0.5)))
        spikes.append(s)
    return torch.stack(spikes), m


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("rest", [0.0, -0.3, None])
@pytest.mark.parametrize("gradient", ["gpw", "shared", "doubled"])
def test_gradients_equal_those_written_out(gradient, rest, detach, step_mode):
    x = (torch.randn(6, 3, 8) * 2 + 0.8).requires_grad_()
    node = PLIF(
        init_tau=2.3,
        v_threshold=0.9,
        v_reset=rest,
        surrogate_function=surrogate.Triangle(),
        detach_reset=detach,
        learnable_threshold=spq.LearnableThreshold(gradient),
    )
    w, threshold = (p.detach().clone().requires_grad_() for p in (node.w, node.v_threshold))
    weigh, last = torch.randn_like(x), torch.randn_like(x[0])
    want, m = slow_sequence(x, w.sigmoid(), threshold, rest, detach, gradient)
    ((want * weigh).sum() + (m * last).sum()).backward()
    expected, x.grad = x.grad, None
    got = at_once(node, x) if step_mode == "m" else by_steps(node, x)[0]
    ((got * weigh).sum() + (node.v * last).sum()).backward()
    assert 0.1 < got.mean() < 0.9
    assert torch.equal(got, want)
    assert (expected.abs() > 1e-6).double().mean() > 0.3
    assert threshold.grad.abs() > 1e-6
    torch.testing.assert_close(node.v, m, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(node.w.grad, w.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(node.v_threshold.grad, threshold.grad, rtol=1e-10, atol=1e-12)


# --- one neuron, every mode ---------------------------------------------------------------------

MODES = {
    "IF, ternary": lambda: IF(),
    "IF, soft, 4 bits": lambda: IF(v_reset=None, membrane=spq.UniformMembrane(4)),
    "LIF, no membrane": lambda: LIF(tau=1.7, membrane=None),
    "LIF, eq7, detached": lambda: LIF(
        decay_input=False, detach_reset=True, membrane=spq.TernaryMembrane(boundaries="eq7")
    ),
    "LIF, binary, rest": lambda: LIF(tau=3.0, v_reset=-0.3, membrane=spq.BinaryMembrane()),
    "LIF, one threshold": lambda: LIF(
        surrogate_function=surrogate.Triangle(), learnable_threshold=spq.LearnableThreshold()
    ),
    "PLIF, soft, thresholds": lambda: PLIF(
        init_tau=1.6,
        v_reset=None,
        surrogate_function=surrogate.GradientPenaltyWindow(),
        learnable_threshold=spq.LearnableThreshold("doubled", per_channel=True),
        channels=5,
    ),
}


def functional_forward(node: nn.Module, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    outputs, states = base.to_functional_forward(node)((x_seq,), tuple(node._memories.values()))
    assert node.v in (0.0, node.v_reset), "a functional forward leaves the module alone"
    return outputs[0], states[0]


def outcome(node: nn.Module, x_seq: Tensor, way: str) -> dict[str, Tensor]:
    """Spikes, last state and all gradients of one way of running a node."""
    x = x_seq.clone().requires_grad_()
    node.step_mode, node.store_v_seq = ("s" if way == "steps" else "m"), "recorded" in way
    if "steps" in way:
        spikes, states = by_steps(node, x)
        v = states[-1]
    elif way == "functional":
        spikes, v = functional_forward(node, x)
    elif way == "compiled":
        torch._dynamo.reset()
        spikes = torch.compile(node, backend="eager", fullgraph=True)(x)
        v = node.v
    else:
        spikes, v = node(x), node.v
    weigh = torch.cos(torch.arange(x.numel())).view_as(x)
    ((spikes * weigh).sum() + (v * weigh[0]).sum()).backward()
    found = {"spikes": spikes.detach(), "v": v.detach(), "x": x.grad}
    if "recorded" in way:
        found["v_seq"] = node.v_seq.detach()
        assert torch.equal(node.v_seq[-1], v)
    if way == "steps":
        found["v_seq"] = states.detach()
    return found | {name: p.grad for name, p in node.named_parameters()}


@pytest.mark.parametrize(
    "way", ["sequence", "recorded", "recorded steps", "functional", "compiled"]
)
@each(MODES, "kind")
def test_every_mode_gives_the_same(kind, way):
    node, x = MODES[kind](), torch.randn(4, 3, 5, 2) * 1.5 + 0.5
    want = outcome(copy.deepcopy(node), x, "steps")
    got = outcome(node, x, way)
    assert 0 < want["spikes"].mean() < 1
    assert set(got) == set(want) - ({"v_seq"} if "recorded" not in way else set())
    for name, value in got.items():
        if name in ("spikes", "v", "v_seq"):
            assert torch.equal(value, want[name]), name
        else:
            torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6)


@each(MODES, "kind")
def test_the_state_continues_over_two_calls(kind):
    node, x = MODES[kind](), torch.randn(6, 3, 5, 2) * 1.5 + 0.5
    whole = at_once(node, x)
    last = node.v
    node.reset()
    halves = torch.cat([at_once(node, x[:2]), by_steps(node, x[2:4])[0], at_once(node, x[4:])])
    assert torch.equal(halves, whole)
    assert torch.equal(node.v, last)
    fresh = at_once(copy.deepcopy(node_at_rest(node)), x)
    assert not torch.equal(at_once(node, x), fresh), "the state left over must matter here"


def node_at_rest(node: nn.Module) -> nn.Module:
    """The host refuses to copy a running state with a graph."""
    node.detach()
    other = copy.deepcopy(node)
    other.reset()
    return other


@pytest.mark.parametrize("rest", [0.0, -0.25, None])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_another_shape_starts_anew(step_mode, rest):
    node = LIF(v_reset=rest, step_mode=step_mode)
    node(eighths(2, 4, 6))
    x = eighths(2, 3, 6)
    got = node(x)
    fresh = LIF(v_reset=rest, step_mode=step_mode)
    assert torch.equal(got, fresh(x))
    assert torch.equal(node.v, fresh.v)


@pytest.mark.parametrize("rest", [0.0, -0.25, None])
def test_reset_brings_it_to_rest(rest):
    node = LIF(v_reset=rest, step_mode="m", store_v_seq=True)
    node(eighths(3, 2, 2))
    node.reset()
    assert node.v == (rest or 0.0)
    assert node.v_seq is None


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each(MODES, "kind")
def test_low_precision_input_keeps_a_float32_state(kind, dtype, step_mode, store):
    node, x = MODES[kind](), (torch.randn(4, 3, 5, 2) * 1.5 + 0.5).to(dtype)
    want, states = by_steps(copy.deepcopy(node), x.float())
    node.step_mode, node.store_v_seq = step_mode, store
    got = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
    assert got.dtype == dtype
    assert node.v.dtype == torch.float32
    assert torch.equal(got.float(), want)
    assert torch.equal(node.v, states[-1])
    if store:
        assert torch.equal(node.v_seq, states)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_half_precision_module_keeps_a_float32_state(step_mode):
    node = PLIF(
        step_mode=step_mode,
        surrogate_function=surrogate.Triangle(),
        learnable_threshold=spq.LearnableThreshold(),
    ).bfloat16()
    node(torch.randn(3, 4, dtype=torch.bfloat16) + 1).sum().backward()
    assert node.v.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite() for p in node.parameters())


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_autocast_keeps_a_float32_state(step_mode):
    net = nn.Sequential(layer.Linear(6, 5), LIF(learnable_threshold=spq.LearnableThreshold()))
    functional.set_step_mode(net, step_mode)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = net(torch.randn(4, 3, 6) * 3)
    assert spikes.dtype == torch.bfloat16
    assert net[1].v.dtype == torch.float32
    spikes.float().sum().backward()
    assert net[1].v_threshold.grad.isfinite()


def test_a_double_input_keeps_a_double_state():
    node = LIF()
    node(torch.randn(3, dtype=torch.float64))
    assert node.v.dtype == torch.float64


# --- the host's tools ---------------------------------------------------------------------------


def test_monitors_see_spikes_and_membranes():
    net = nn.Sequential(layer.Linear(6, 5), LIF(store_v_seq=True), layer.Linear(5, 4), IF())
    functional.set_step_mode(net, "m")
    kinds = (LIF, IF)
    spikes = monitor.OutputMonitor(net, kinds)
    stored = monitor.AttributeMonitor("v_seq", False, net, LIF)
    out = net(torch.randn(3, 2, 6) * 3)
    assert set(spikes.monitored_layers) == {"1", "3"}
    assert torch.equal(spikes["3"][0], out)
    assert torch.equal(stored["1"][0], net[1].v_seq)
    assert set(stored["1"][0].unique().tolist()) <= {-1.0, 0.0, 1.0}
    spikes.remove_hooks()
    stored.remove_hooks()


@pytest.mark.parametrize("kind", TWINS)
def test_the_host_registers_our_classes(kind):
    vision.register_neuron_class(kind)
    path = f"{kind.__module__}.{kind.__qualname__}"
    settings = vision.NeuronConfig(path, {"v_threshold": 0.5, "v_reset": None})
    found, kwargs = vision_config._resolve_neuron_config(settings)
    assert found is kind
    assert found(**kwargs).v_threshold == 0.5
    vision_config._NEURON_REGISTRY.pop(path)


@pytest.mark.parametrize("kind", TWINS)
def test_positional_arguments_are_those_of_the_host(kind):
    """A host's constructor call must mean the same here, whichever form it is written in."""
    ours, theirs = (inspect.signature(k).parameters for k in (kind, TWINS[kind]))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in theirs:
        if name != "surrogate_function":
            assert ours[name].default == theirs[name].default
    added = list(ours)[len(theirs) :]
    assert added == ["membrane", "learnable_threshold", "channels", "spatial_gate"]
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LIF(v_threshold=torch.tensor(1.0)), "learnable_threshold=LearnableThreshold()"),
        (lambda: LIF(v_threshold=float("nan")), "TernaryMembraneLIFNode(v_threshold=nan)"),
        (lambda: IF(v_reset=True), "TernaryMembraneIFNode(v_reset=True): must be a finite number"),
        (lambda: LIF(tau=1.0), "TernaryMembraneLIFNode(tau=1.0): must be above 1"),
        (lambda: PLIF(init_tau=0.5), "TernaryMembraneParametricLIFNode(init_tau=0.5)"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


def test_a_threshold_at_rest_gives_no_unit():
    with pytest.raises(ConversionError, match=r"threshold 0\.2 .* rest potential 0\.5.*unit="):
        LIF(v_threshold=0.2, v_reset=0.5)
    assert (
        float(LIF(v_threshold=0.2, v_reset=0.5, membrane=spq.TernaryMembrane(unit=1)).membrane_unit)
        == 1
    )


def test_learnable_tau_moves_and_is_a_key():
    node = PLIF(step_mode="m", surrogate_function=surrogate.Triangle())
    assert list(node.state_dict()) == ["w", "membrane_unit"]
    before = node.w.item()
    node(torch.randn(5, 20) + 0.5).mean().backward()
    torch.optim.SGD(node.parameters(), lr=1).step()
    assert node.w.item() != before


# --- the learnable threshold --------------------------------------------------------------------


def adaptive(optimizer: str, kind: type[nn.Module] = IF, **rule: object) -> tuple:
    node = kind(
        step_mode="m",
        surrogate_function=surrogate.Triangle(),
        learnable_threshold=spq.LearnableThreshold("shared", **rule),
    )
    return node, getattr(torch.optim, optimizer)([node.v_threshold], lr=1.0)


def push(node: nn.Module, optimizer: torch.optim.Optimizer, up: bool) -> float:
    """One step that wants fewer or more spikes; the threshold in force afterwards.

    Potentials lie all around the threshold, so that its gradient is never zero by chance.
    """
    node.reset()
    optimizer.zero_grad()
    spikes = node(torch.linspace(-1, 4, 60).view(1, -1))
    (spikes.mean() if up else -spikes.mean()).backward()
    optimizer.step()
    return node.threshold_value(torch.zeros(1, 1)).item()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("up", [True, False])
def test_bounds_hold_and_are_left_again_at_learning_rate_one(optimizer, up):
    node, stepper = adaptive(optimizer)
    # An IF neuron stores 0.75 at most, so 0.75 + 1 % is where it would begin to fire by itself.
    low, high = 0.76, 2.0
    outwards = [push(node, stepper, up) for _ in range(40)]
    assert all(low - 1e-6 <= v <= high + 1e-6 for v in outwards)
    assert outwards[-1] == pytest.approx(high if up else low)
    back = [push(node, stepper, not up) for _ in range(60)]
    assert all(low - 1e-6 <= v <= high + 1e-6 for v in back)
    assert abs(back[-1] - outwards[-1]) > 0.1


def test_forward_never_writes_the_parameter():
    node, _ = adaptive("SGD")
    with torch.no_grad():
        node.v_threshold.fill_(9.0)
    version = node.v_threshold._version
    node(torch.randn(3, 4))
    assert node.v_threshold.item() == 9.0
    assert node.v_threshold._version == version
    assert node.threshold_value(torch.zeros(1, 1)).item() == 2.0


@pytest.mark.parametrize("gradient", ["gpw", "shared", "doubled"])
def test_a_soft_reset_gives_the_threshold_no_gradient(gradient):
    """A neuron far above its threshold gets no slope from firing, and no other path is left."""
    node = IF(
        v_reset=None,
        step_mode="m",
        membrane=None,
        surrogate_function=surrogate.Triangle(),
        learnable_threshold=spq.LearnableThreshold(gradient),
    )
    x = torch.full((3, 4), 5.0, requires_grad=True)
    node(x)
    node.v.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 4))
    assert node.v_threshold.grad == 0


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (6, 5, 3, 3), (6, 5, 2, 3, 2)])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_one_threshold_per_channel(step_mode, shape):
    """Each channel behaves as a neuron of its own with its own threshold."""
    rule = spq.LearnableThreshold(per_channel=True)
    options = {"step_mode": step_mode, "surrogate_function": surrogate.Triangle()}
    node = LIF(learnable_threshold=rule, channels=5, **options)
    values = torch.linspace(0.6, 1.8, 5)
    with torch.no_grad():
        node.v_threshold.copy_(values)
    x = torch.randn(4, *shape) * 2 + 0.5
    x = x if step_mode == "m" else x[0]
    spikes = node(x)
    spikes.sum().backward()
    assert node.v_threshold.grad.shape == (5,)
    dim = 2 if step_mode == "m" else 1
    for channel, value in enumerate(values):
        # A unit of 1, that of the layer, whatever the channel's own threshold is.
        alone = LIF(learnable_threshold=spq.LearnableThreshold(bounds=(0.5, 2)), **options)
        with torch.no_grad():
            alone.v_threshold.fill_(value)
        part = alone(x.select(dim, channel))
        part.sum().backward()
        assert torch.equal(spikes.select(dim, channel), part)
        torch.testing.assert_close(
            node.v_threshold.grad[channel], alone.v_threshold.grad, rtol=1e-5, atol=1e-6
        )


def test_thresholds_per_channel_need_a_number():
    with pytest.raises(ConversionError, match="Pass channels="):
        LIF(learnable_threshold=spq.LearnableThreshold(per_channel=True))


def test_a_threshold_that_is_not_positive_cannot_learn():
    with pytest.raises(ConversionError, match="must be above 0"):
        LIF(v_threshold=-0.5, v_reset=-1.0, learnable_threshold=spq.LearnableThreshold())
