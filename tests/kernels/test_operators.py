"""The operators as torch's machinery sees them: one node each, with exact gradients."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from spquant_plugin.errors import KernelError
from spquant_plugin.kernels import Rule, Sequence, eager, membrane_sequence, use
from spquant_plugin.kernels.inputs import Inputs, Needs, Outputs

from .cases import PROVIDERS, RUNNERS

GPW = Rule(threshold_gradient="gpw")
SHAPE = (5, 2, 3, 4, 4)
DOUBLE = torch.float64


def constants(dtype: torch.dtype = torch.float32, **given) -> dict:
    return {
        "threshold": torch.tensor(0.9, dtype=dtype, requires_grad=True),
        "decay": 0.6,
        "unit": 0.7,
    } | given


# --- exact gradients where the steps are smooth -------------------------------------------------


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        Rule(smooth=True),
        Rule(smooth=True, reset="soft", slope="arctan", lowest=-3, shape="arctan"),
        Rule(smooth=True, reset="hard", slope="sigmoid", rest=-0.2, lowest=0),
        Rule(smooth=True, reset="none", slope="window", lowest=-10, highest=10, temperature=5.0),
        Rule(smooth=True, reset="soft", slope="fast_sigmoid", shape="triangle"),
        Rule(smooth=True, reset="late_subtract", slope="triangle", lowest=-8, highest=7),
        Rule(smooth=True, reset="late_zero", slope="sigmoid", shape="piecewise"),
        Rule(smooth=True, reset="late_drop", slope="window"),
    ],
    ids=lambda rule: f"{rule.reset}-{rule.slope}-{rule.shape}",
)
def test_gradcheck(rule, continued):
    """With the ordinary gradient of a threshold, which is the exact one, and all other leaves."""
    shape = (3, 2, 2, 2)
    unit = 0.1 if rule.highest == 10 else 0.7
    per_channel = (2, 1)
    leaves = {
        "x": torch.randn(shape, dtype=DOUBLE),
        "threshold": torch.rand(per_channel, dtype=DOUBLE) * 0.4 + 0.8,
        "decay": torch.rand((), dtype=DOUBLE) * 0.4 + 0.4,
        "gain": torch.rand(per_channel, dtype=DOUBLE) + 0.5,
    }
    fired = None
    if continued:
        leaves["state"] = torch.randn(shape[1:], dtype=DOUBLE)
        leaves["mask"] = torch.rand(shape[:3], dtype=DOUBLE)
        fired = torch.rand(shape[1:]) < 0.5
    rule = rule._replace(threshold_gradient="host")

    def outputs(*values: Tensor) -> tuple[Tensor | None, ...]:
        named = dict(zip(leaves, values, strict=True))
        return membrane_sequence(
            named.pop("x"), rule, unit=unit, fired=fired, potentials=True, membranes=True, **named
        )

    values = [value.requires_grad_() for value in leaves.values()]
    # Away from the kinks of triangles, which lie on no grid of these random numbers.
    assert torch.autograd.gradcheck(outputs, values, eps=1e-7, atol=1e-6, rtol=1e-6)


# --- torch's own checks -------------------------------------------------------------------------


def arguments(x: Tensor, rule: Rule = GPW, *, bits: int = 0, wanted: bool = True, **given) -> tuple:
    """Arguments of the forward operator."""
    scalar = x.new_tensor(0.9, dtype=torch.promote_types(x.dtype, torch.float32))
    inputs = Inputs(x, None, None, scalar, scalar * 0.6, None, scalar * 0.7, None)
    return (*inputs._replace(**given), *rule, wanted, wanted, bits)


def variants() -> list[tuple]:
    x = torch.randn(3, 8)
    each = torch.rand(8) + 0.5
    return [
        arguments(x.clone().requires_grad_()),
        arguments(x.clone().requires_grad_(), bits=8, wanted=False),
        arguments(x.clone().requires_grad_(), Rule(reset="soft"), bits=16),
        arguments(x.half(), wanted=False),
        arguments(x.double().requires_grad_(), unit=None),
        arguments(
            x.clone().requires_grad_(),
            Rule(reset="late_zero", threshold_gradient="host"),
            state=torch.zeros(8, requires_grad=True),
            fired=torch.ones(8),
            threshold=each.clone().requires_grad_(),
            decay=each.clone().requires_grad_(),
            gain=each.clone().requires_grad_(),
            mask=torch.rand(3, 4).requires_grad_(),
        ),
    ]


# What a provider computes is no matter here: one of each form for the compiled one.
CHECKED = [*(("eager", number) for number in range(6)), ("compiled", 1), ("compiled", 5)]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own check reads it
@pytest.mark.parametrize(("provider", "number"), CHECKED)
def test_opcheck_forward(provider, number):
    with use(provider):
        torch.library.opcheck(torch.ops.spquant_plugin.membrane.default, variants()[number])


@pytest.mark.parametrize(("provider", "number"), CHECKED)
def test_opcheck_backward(provider, number):
    given = [v.detach() if isinstance(v, Tensor) else v for v in variants()[number]]
    n, rule = len(Inputs._fields), given[len(Inputs._fields) : -3]
    potentials, _, bits = given[-3:]
    with use(provider):
        spikes, final, *others, code = torch.ops.spquant_plugin.membrane(*given)
        grads = [torch.randn_like(value) for value in (spikes, final, *others)]
        if not potentials:
            grads[1:] = [None, None, None]
        needs = [i is not None for i in (given[0], given[1], *given[3:6], given[7])]
        torch.library.opcheck(
            torch.ops.spquant_plugin.membrane_backward.default,
            (*given[:n], code if bits else None, *rule, *grads, needs),
        )


class Layer(nn.Module):
    """A layer around the recurrence, with channels last inside and a threshold that learns."""

    def __init__(self, rule: Rule = GPW) -> None:
        super().__init__()
        self.rule = rule
        self.threshold = nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor, state: Tensor | None = None) -> Sequence:
        return membrane_sequence(
            x * 2,
            self.rule,
            threshold=self.threshold,
            decay=0.6,
            unit=0.7,
            state=state,
            membranes=True,
        )


def trained(function, layer: Layer, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
    """Outputs and gradients of a run."""
    x = x.clone().requires_grad_()
    result = function(x, state)
    (result.spikes.sum() + (result.membranes * x.detach()).sum() + result.membrane.sum()).backward()
    grad, layer.threshold.grad = layer.threshold.grad, None
    return result.spikes, result.membrane, result.membranes, x.grad, grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    ("provider", "backend", "bits"),
    [("eager", "eager", 32), ("eager", "aot_eager", 8), ("compiled", "aot_eager", 32)],
)
def test_torch_compile_takes_it_whole(provider, backend, bits):
    torch.compiler.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with use(provider, saved_bits=bits):
        for shape in (SHAPE, (2, 1, 7)):
            x = torch.randn(shape)
            for state in (None, torch.zeros(shape[1:])):
                want, got = trained(layer, layer, x, state), trained(compiled, layer, x, state)
                for a, b in zip(want, got, strict=True):
                    assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_torch_compile_follows_the_choice():
    """How much is kept, and who computes, may change after a model was compiled."""
    torch.compiler.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(SHAPE)
    grads = []
    for bits in (32, 8, 32):
        with use("eager", saved_bits=bits):
            want, got = trained(layer, layer, x), trained(compiled, layer, x)
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
            grads.append(got[3])
    assert torch.equal(grads[0], grads[2])
    assert not torch.equal(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("provider", PROVIDERS)
def test_export_keeps_one_node(provider):
    class Spikes(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).spikes.mean(0)

    layer, x = Spikes(), torch.randn(SHAPE)
    with use(provider):
        program = torch.export.export(layer, (x,))
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert sum("spquant_plugin.membrane" in name for name in called) == 1
        stored = io.BytesIO()
        torch.export.save(program, stored)
        stored.seek(0)
        for run in (program, torch.export.load(stored)):
            assert torch.equal(run.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, DOUBLE])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last_3d])
def test_fake_tensors_look_like_real_ones(format, dtype):
    def run(x: Tensor) -> list[Tensor]:
        leaf = x.requires_grad_()
        result = membrane_sequence(
            leaf,
            GPW,
            threshold=0.9,
            decay=torch.full((3, 1, 1), 0.5, device=leaf.device),
            potentials=True,
            membranes=True,
        )
        return [*result, *torch.autograd.grad(result.spikes.sum() + result.membrane.sum(), leaf)]

    real = run(torch.randn(SHAPE).to(memory_format=format).to(dtype))
    with FakeTensorMode():
        fake = run(torch.randn(SHAPE).to(memory_format=format).to(dtype))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_tensors_without_values_run_too():
    x = torch.empty(SHAPE, device="meta", requires_grad=True)
    result = membrane_sequence(x, GPW, threshold=1.0, decay=0.5, potentials=True)
    assert result.spikes.shape == SHAPE
    assert result.membrane.device.type == "meta"
    (result.spikes.sum() + result.potentials.sum()).backward()
    assert x.grad.shape == SHAPE


@pytest.mark.parametrize("provider", PROVIDERS)
def test_autocast_changes_nothing(provider):
    x = torch.randn(SHAPE)
    layer = Layer()
    with use(provider):
        want = trained(layer, layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            got = trained(layer, layer, x)
    for a, b in zip(want, got, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_second_derivatives_are_refused(provider):
    x = torch.randn(SHAPE, requires_grad=True)
    with use(provider):
        result = membrane_sequence(x, GPW, threshold=1.0, decay=0.5)
        (grad,) = torch.autograd.grad(result.spikes.sum(), x, create_graph=True)
        with pytest.raises(KernelError, match=r"differentiated twice.*Leave create_graph out"):
            grad.square().sum().backward()


@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_what_needs_no_gradient_gets_none(provider, device):
    x = torch.randn(SHAPE, device=device)
    threshold = torch.tensor(0.9, device=device, requires_grad=True)
    with use(provider):
        result = membrane_sequence(x, GPW, threshold=threshold, decay=0.5)
        result.spikes.sum().backward()
        assert x.grad is None
        assert threshold.grad is not None
        with torch.no_grad():
            assert not membrane_sequence(x, GPW, threshold=threshold, decay=0.5).spikes.grad_fn
        with torch.inference_mode():
            quiet = membrane_sequence(x, GPW, threshold=threshold, decay=0.5)
    assert torch.equal(quiet.spikes, result.spikes.detach())
    assert not membrane_sequence(x, GPW, threshold=0.9, decay=0.5).spikes.requires_grad


# --- what is kept for the backward pass ---------------------------------------------------------


def bytes_kept(x: Tensor, bits: int, **given) -> int:
    """Bytes of the distinct memory that a forward pass keeps."""
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with use("auto", saved_bits=bits), saved_tensors_hooks(remember, lambda tensor: tensor):
        result = membrane_sequence(x, GPW, **constants(), **given)
        result.spikes.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize(("bits", "each"), [(32, 4), (16, 2), (8, 1)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_bytes_kept_for_each_element_and_step(bits, each, format):
    steps = torch.randn(8 * 2, 3, 16, 16).to(memory_format=format)
    x = steps.view(8, 2, 3, 16, 16).requires_grad_()
    scalars = 8 * 8
    assert each * x.numel() <= bytes_kept(x, bits) <= each * x.numel() + scalars
    assert bytes_kept(x, bits, membranes=True, potentials=True) <= each * x.numel() + scalars


def test_half_precision_keeps_half():
    x = torch.randn(8, 2, 64).half().requires_grad_()
    assert bytes_kept(x, 32) <= 2 * x.numel() + 64


def test_gradients_that_need_the_input_are_exact_whatever_is_kept():
    """A decay, gain or mask that learns needs what a code forgets."""
    x = torch.randn(8, 2, 3, 5, requires_grad=True)
    for name, value in (
        ("decay", torch.tensor(0.6)),
        ("gain", torch.tensor(0.7)),
        ("mask", torch.rand(8, 2, 3)),
    ):
        grads = []
        for bits in (32, 8):
            leaf = value.clone().requires_grad_()
            with use("compiled", saved_bits=bits):
                result = membrane_sequence(x, GPW, **constants() | {name: leaf})
                grads.append(torch.autograd.grad(result.spikes.sum(), (leaf, x)))
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)


# A code's cell is a share of the unit; the triangle's slope changes by 1/w^2 for each unit of
# distance, so one step's gradient is off by about a cell, and errors of all steps add up.
CELL = {16: 2.0**-11, 8: 2.0**-4}


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("reset", ["hard", "soft", "late_subtract", "late_zero", "late_drop"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_code_gives_the_same_spikes_and_nearly_the_same_gradients(reset, strict, bits):
    rule = Rule(reset=reset, strict=strict, threshold_gradient="gpw")
    x = torch.randn(10, 4, 500)
    if (
        not strict
    ):  # there no spike is a jump of the threshold's window, on which a code has no cell
        x[:, :, :50] = 0.9
    results = []
    for kept in (32, bits):
        for provider in PROVIDERS if not strict else ["eager"]:
            leaf, given = x.clone().requires_grad_(), constants()
            with use(provider, saved_bits=kept):
                result = membrane_sequence(leaf, rule, **given, membranes=True)
                (result.spikes * x.sin()).sum().backward()
            results.append((result.spikes, result.membranes, leaf.grad, given["threshold"].grad))
    exact = results[0]
    for spikes, membranes, grad, threshold_grad in results[len(results) // 2 :]:
        assert torch.equal(spikes, exact[0])
        assert torch.equal(membranes, exact[1])
        off = (grad - exact[2]).norm() / exact[2].norm()
        assert 0 < off < CELL[bits]
        assert abs(threshold_grad / exact[3] - 1) < CELL[bits]
    # Both providers read the same code.
    if not strict:
        assert torch.allclose(results[2][2], results[3][2], rtol=1e-5, atol=1e-6)


def test_a_code_keeps_the_late_reset_that_a_state_brings():
    """A state below the level of a neuron that fired cannot have fired, with a code or without."""
    rule = Rule(reset="late_zero")
    state = torch.tensor([[0.0, 0.7, -0.7, 0.7]])
    fired = torch.tensor([[True, True, True, False]])
    x = torch.full((2, 1, 4), 0.3)
    for provider in PROVIDERS:
        grads = []
        for bits in (32, 16):
            leaf, start = x.clone().requires_grad_(), state.clone().requires_grad_()
            with use(provider, saved_bits=bits):
                result = membrane_sequence(leaf, rule, **constants(), state=start, fired=fired)
                result.spikes.sum().backward()
            grads.append(start.grad)
        assert torch.allclose(*grads, atol=1e-2), provider
        assert grads[0][0, 1] == 0  # this one was reset


class Exponentials(TorchDispatchMode):
    """Counts elements that an exponential, a sigmoid or the like is taken of."""

    KINDS = ("exp", "sigmoid", "tanh", "expm1", "logistic", "softplus")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.rstrip("_") in self.KINDS:
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", ["none", "host", "gpw", "shared", "doubled"])
@pytest.mark.parametrize("slope", ["triangle", "window"])
@pytest.mark.parametrize("levels", [(-1, 1), (0, 1), (-8, 7), (-3, 1)])
def test_one_exponential_for_each_element_and_step(levels, slope, gradient):
    rule = Rule(slope=slope, threshold_gradient=gradient, lowest=levels[0], highest=levels[1])
    x = torch.randn(4, 100)
    scalar = torch.tensor(0.9)
    inputs = Inputs(x, None, None, scalar, scalar, None, scalar, None)
    arriving = Outputs(torch.randn(4, 100), None)
    with Exponentials() as mode:
        eager.backward(inputs, None, rule, arriving, Needs(threshold=True))
    assert mode.count == x.numel()


def test_the_count_of_exponentials_sees_them():
    with Exponentials() as mode:
        torch.randn(3).sigmoid().exp()
    assert mode.count == 6
