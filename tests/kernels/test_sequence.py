"""The public function: memory layouts, precisions, sizes, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from spquant_plugin.errors import KernelError
from spquant_plugin.kernels import Rule, Sequence, membrane_sequence, use

from .cases import PROVIDERS, RUNNERS

GPW = Rule(threshold_gradient="gpw")
SHAPE = (5, 2, 3, 4, 6)
DOUBLE = torch.float64


def run(x: Tensor, rule: Rule = GPW, **given) -> Sequence:
    constants = {"threshold": 0.9, "decay": 0.6, "unit": 0.7}
    return membrane_sequence(x, rule, **constants | given, potentials=True, membranes=True)


def same(a: Sequence, b: Sequence) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# --- layouts ------------------------------------------------------------------------------------


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, differently in memory."""
    time, batch, *_ = x.shape
    wide = torch.zeros(time, batch, x.shape[2], x.shape[3], 2 * x.shape[4], device=x.device)
    wide[..., ::2] = x
    steps = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": x,
        "channels last": steps.unflatten(0, (time, batch)),
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "time last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "transposed": x.transpose(3, 4).contiguous().transpose(3, 4),
        "strided": wide[..., ::2],
        "offset": torch.cat([x[:1], x])[1:],
        "flipped": x.flip(4).flip(4),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_layouts_do_not_matter(provider, device, masked):
    x, grad = torch.randn(SHAPE, device=device), torch.randn(SHAPE, device=device)
    given = {
        "threshold": torch.rand(3, 1, 1, device=device) + 0.5,
        "decay": torch.rand(1, 1, 6, device=device),
        "gain": torch.rand(2, 1, 4, 1, device=device),
        "state": torch.randn(SHAPE[1:], device=device),
    }
    if masked:
        given["mask"] = torch.rand(SHAPE[:3], device=device)
    results = []
    with use(provider):
        for value in layouts(x).values():
            leaf = value.detach().requires_grad_()
            result = run(leaf, **given)
            (got,) = torch.autograd.grad((result.spikes * grad).sum(), leaf)
            results.append((*result, got))
        for state in layouts(given["state"][None].expand(2, *SHAPE[1:])).values():
            results.append((*run(x, **given | {"state": state[0]}), results[0][-1]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_dense_layouts_are_kept_and_not_copied(provider):
    """Channels-last networks stay so, and the input itself is kept for the backward pass."""
    for name, value in layouts(torch.randn(SHAPE)).items():
        if name not in ("contiguous", "channels last", "transposed", "offset"):
            continue
        leaf = value.detach().requires_grad_()
        kept = []
        with (
            use(provider),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor
            ),
        ):
            result = run(leaf)
        for sequence in (result.spikes, result.potentials, result.membranes):
            assert sequence.stride() == value.stride(), name
        assert result.membrane.stride() == value[0].stride(), name
        large = [tensor for tensor in kept if tensor.numel() >= value.numel()]
        assert [tensor.data_ptr() for tensor in large] == [leaf.data_ptr()], name


@pytest.mark.parametrize("provider", PROVIDERS)
def test_expanded_inputs(provider):
    """One step for all, one sample for all, one pixel for all."""
    for shape in ((1, 2, 3, 4, 6), (5, 1, 3, 4, 6), (5, 2, 3, 1, 1), (1, 1, 1, 1, 1)):
        small = torch.randn(shape)
        grads = []
        with use(provider):
            for spread in (Tensor.expand, lambda x, size: x.expand(size).clone()):
                leaf = small.clone().requires_grad_()
                result = run(spread(leaf, SHAPE))
                result.spikes.sum().backward()
                grads.append((*result, leaf.grad))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_results_share_no_memory(provider):
    """Hosts write into the states they carry."""
    for steps in (1, 3):
        for unit, rule in ((0.7, GPW), (None, Rule(reset="none"))):
            x = torch.randn(steps, 2, 3)
            before = x.clone()
            with use(provider):
                result = run(x, rule, unit=unit, state=torch.zeros(2, 3))
            copies = [value.clone() for value in result]
            for value in result:
                value.fill_(7)
            assert torch.equal(x, before)
            for k, value in enumerate(result):
                fresh = run(x, rule, unit=unit, state=torch.zeros(2, 3))
                assert torch.equal(fresh[k], copies[k])
                value.fill_(k)
            assert [float(value.max()) for value in result] == [0, 1, 2, 3]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_states_can_be_detached_in_place(format):
    """As both hosts do between sequences."""
    x = torch.randn(10, 3, 4, 4).to(memory_format=format).view(5, 2, 3, 4, 4).requires_grad_()
    membrane = run(x).membrane
    assert membrane.requires_grad
    membrane.detach_()
    assert not membrane.requires_grad


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 0, 2), (3, 2, 0), (1, 0, 3, 4), (3, 2, 3, 0, 4)])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_nothing_to_do(provider, shape, masked):
    x = torch.randn(shape, requires_grad=True)
    given = {"threshold": torch.tensor(0.9, requires_grad=True)}
    if masked:
        given["mask"] = torch.rand(shape[:3], requires_grad=True)
    for bits in (32, 8):
        with use(provider, saved_bits=bits):
            result = run(x, **given)
            assert result.spikes.shape == shape
            assert result.membrane.shape == shape[1:]
            (result.spikes.sum() + result.membrane.sum()).backward()
        assert x.grad.shape == shape
        assert given["threshold"].grad == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (2, 1), (1, 1, 1, 1, 1), (1, 5, 3)])
@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_one_element_or_one_step(provider, device, shape):
    x = torch.full(shape, 1.2, device=device, requires_grad=True)
    with use(provider):
        result = run(x, threshold=torch.full((1,), 0.9, device=device))
    result.spikes.sum().backward()
    assert result.spikes.tolist() == torch.ones(shape).tolist()
    assert result.membrane.tolist() == torch.zeros(shape[1:]).tolist()
    assert bool((x.grad > 0).all())


@pytest.mark.parametrize(("provider", "device"), RUNNERS)
@pytest.mark.parametrize("reset", ["hard", "soft", "late_subtract", "late_zero", "late_drop"])
def test_a_sequence_in_parts_is_the_sequence(provider, device, reset):
    """What one call leaves is where the next goes on, gradients included."""
    x = torch.randn(6, 2, 3, 5, dtype=DOUBLE, device=device, requires_grad=True)
    rule = Rule(reset=reset, threshold_gradient="gpw")
    with use(provider):
        whole = run(x, rule)
        first = run(x[:2], rule)
        rest = run(x[2:], rule, state=first.membrane, fired=first.spikes[-1].detach() > 0)
    for name in ("spikes", "potentials", "membranes"):
        assert torch.equal(
            torch.cat([getattr(first, name), getattr(rest, name)]), getattr(whole, name)
        )
    (want,) = torch.autograd.grad(whole.membrane.sum() + whole.spikes.sum(), x)
    spikes = first.spikes.sum() + rest.spikes.sum()
    (got,) = torch.autograd.grad(rest.membrane.sum() + spikes, x)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_half_precision_keeps_a_single_precision_state(provider, device, dtype):
    """The run on the same values in single precision, with the input's precision at the rim."""
    for bits in (32, 8):
        half = torch.randn(SHAPE, device=device).to(dtype).requires_grad_()
        single = half.detach().float().requires_grad_()
        grads = []
        with use(provider, saved_bits=bits):
            for x in (half, single):
                threshold = torch.tensor(0.9, device=device, requires_grad=True)
                result = run(x, threshold=threshold, state=torch.ones(SHAPE[1:], device=device))
                (result.spikes.float() * single.detach()).sum().backward()
                grads.append((result, threshold.grad))
        (narrow, narrow_grad), (wide, wide_grad) = grads
        assert narrow.spikes.dtype == dtype
        assert {value.dtype for value in narrow[1:]} == {torch.float32}
        assert torch.equal(narrow.spikes.float(), wide.spikes)
        assert all(torch.equal(a, b) for a, b in zip(narrow[1:], wide[1:], strict=True))
        assert half.grad.dtype == dtype
        # The loss weighs spikes of either precision by numbers that half precision holds.
        assert torch.allclose(half.grad.float(), single.grad, rtol=1e-2, atol=1e-3)
        assert torch.allclose(narrow_grad, wide_grad, rtol=1e-2)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_double_precision_throughout(provider):
    x = torch.randn(SHAPE, dtype=DOUBLE, requires_grad=True)
    threshold = torch.tensor(0.9, requires_grad=True)  # single, as a layer's parameter may be
    with use(provider):
        result = run(x, threshold=threshold)
        result.spikes.sum().backward()
    assert {value.dtype for value in result} == {DOUBLE}
    assert x.grad.dtype == DOUBLE
    assert threshold.grad.dtype == torch.float32


@pytest.mark.parametrize("provider", PROVIDERS)
def test_constants_in_any_form(provider):
    """Numbers, tensors of one number and tensors of one for each channel mean the same."""
    x = torch.randn(SHAPE)
    with use(provider):
        want = run(x, gain=1)
        for form in (
            lambda v: torch.tensor(v),
            lambda v: torch.tensor([v]),
            lambda v: torch.tensor(v, dtype=DOUBLE),
            lambda v: torch.full((3, 1, 1), v),
            lambda v: torch.full(SHAPE[1:], v),
        ):
            got = run(x, threshold=form(0.9), decay=form(0.6), gain=form(1.0))
            assert same(got, want)
        assert same(run(x, unit=torch.tensor([0.7]), fired=torch.ones(SHAPE[1:])), want)


# --- refusals -----------------------------------------------------------------------------------


def refused(match: str, x: object = None, rule: Rule = GPW, **given) -> None:
    x = torch.randn(3, 2, 4, 5) if x is None else x
    for provider in PROVIDERS:
        with use(provider), pytest.raises(KernelError, match=match):
            run(x, rule, **given)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_inputs_that_are_no_numbers_of_this_kind(dtype):
    refused(rf"the input is {dtype}.*floating-point.*Convert", torch.zeros(3, 2, 4, dtype=dtype))


def test_inputs_that_are_no_tensors():
    refused(r"the input is list.*floating-point", [[1.0]])


@pytest.mark.parametrize("shape", [(), (3,), (0, 2, 3), (0, 4)])
def test_inputs_without_time(shape):
    refused(r"shape \(.*\[T, N, \.\.\.\].*at least one time step", torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (1,), (2, 4, 1), (3, 2, 4, 5), (2, 5, 4)])
def test_states_of_another_shape(shape):
    for name, rule in (("state", GPW), ("fired", Rule(reset="late_zero"))):
        refused(
            rf"{name} of shape .*like one step of the input, \(2, 4, 5\)",
            rule=rule,
            **{name: torch.zeros(shape)},
        )


@pytest.mark.parametrize("name", ["threshold", "decay", "gain", "unit"])
@pytest.mark.parametrize("shape", [(4,), (3, 1, 1), (2, 4, 6), (1, 2, 4, 5), (2, 1, 4, 5)])
def test_constants_that_do_not_broadcast(name, shape):
    refused(rf"{name} of shape .*broadcast.*\(2, 4, 5\)", **{name: torch.ones(shape)})


def test_a_unit_for_each_channel():
    refused("unit: received one for each neuron, must be one number", unit=torch.ones(4, 1))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 5), (2, 2, 4), (3, 2, 4, 1)])
def test_masks_of_another_shape(shape):
    refused(r"mask of shape .*\[T, N, C\].*\(3, 2, 4\)", mask=torch.ones(shape))


def test_masks_need_channels():
    refused(r"mask of shape .*\[T, N, C\]", torch.zeros(3, 2), mask=torch.ones(3, 2))


@pytest.mark.parametrize("name", ["threshold", "decay", "gain", "unit", "state", "fired", "mask"])
def test_tensors_elsewhere(name):
    """Memory that this processor does not see is refused, not read."""
    size = {"state": (2, 4, 5), "fired": (2, 4, 5), "mask": (3, 2, 4)}.get(name, ())
    refused(
        rf"{name}.* on meta.* on cpu",
        rule=Rule(reset="late_zero"),
        **{name: torch.ones(size, device="meta")},
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"reset": "late"}, r"Rule\(reset='late'\).*one of hard, soft"),
        ({"slope": "atan"}, r"Rule\(slope='atan'\).*one of triangle"),
        ({"threshold_gradient": None}, r"Rule\(threshold_gradient=None\).*one of none, host"),
        ({"shape": "box"}, r"Rule\(shape='box'\).*one of sigmoid"),
        ({"sharpness": 0.0}, r"Rule\(sharpness=0.0\).*above 0"),
        ({"temperature": math.inf}, r"Rule\(temperature=inf\).*finite"),
        ({"temperature": "2"}, r"Rule\(temperature='2'\).*number"),
        ({"rest": math.nan}, r"Rule\(rest=nan\).*finite"),
        ({"lowest": 1}, r"Rule\(lowest=1, highest=1\).*above"),
        ({"lowest": -1.5}, r"Rule\(lowest=-1.5.*whole"),
        ({"cut_points": (0.5,)}, r"Rule\(cut_points=\(0.5,\)\).*must be 2 numbers"),
        ({"cut_points": (math.nan, 0.5)}, r"Rule\(cut_points=\(nan, 0.5\)\).*finite"),
    ],
)
def test_rules_that_are_none(fields, match):
    refused(match, rule=Rule()._replace(**fields))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": "high"}, "threshold='high'.*number or a tensor"),
        ({"decay": None}, "decay=None.*number or a tensor"),
        ({"gain": [0.5]}, r"gain=\[0.5\].*number or a tensor"),
        ({"state": 0.0}, "state=0.0.*must be a tensor like one step"),
    ],
)
def test_constants_and_states_of_another_kind(options, match):
    given = {"threshold": 1.0, "decay": 0.5, **options}
    with pytest.raises(KernelError, match=match):
        membrane_sequence(torch.zeros(2, 1, 3), Rule(), **given)


def test_a_rule_is_a_rule():
    with pytest.raises(KernelError, match=r"rule='hard'.*must be a Rule"):
        membrane_sequence(torch.zeros(2, 1, 3), "hard", threshold=1.0, decay=0.5)


UNITS = """
import math, torch
from spquant_plugin.errors import KernelError
from spquant_plugin.kernels import Rule, membrane_sequence, use
x = torch.randn(3, 1, 8)
for unit in (-1.0, 0.0, math.inf, math.nan):
    for given in (unit, torch.tensor(unit)):
        for rule in (Rule(), Rule(cut_points=(0.0, 0.5))):
            results = []
            for provider in ("eager", "compiled"):
                with use(provider):
                    try:
                        run = membrane_sequence(x, rule, threshold=1.0, decay=0.5, unit=given)
                        results.append(run.spikes.tolist())
                    except KernelError as error:
                        results.append(str(error).split(":")[0])
            assert results[0] == results[1], (given, rule, results)
for unit in (1e-30, 1e30):
    for rule in (Rule(), Rule(cut_points=(0.0, 0.5))):
        with use("compiled"):
            membrane_sequence(x, rule, threshold=1.0, decay=0.5, unit=unit)
print("done")
"""
FLUSHED = """
import torch
from spquant_plugin.kernels import Rule, membrane_sequence, use
torch.set_flush_denormal(True)
for dtype in (torch.float32, torch.float64):
    with use("compiled"):
        membrane_sequence(
            torch.zeros(1, 1, 1, dtype=dtype), Rule(cut_points=(0.0, 0.5)), threshold=1.0, decay=0.5
        )
print("done")
"""


@pytest.mark.parametrize("program", [UNITS, FLUSHED], ids=["units", "flushed"])
def test_no_unit_makes_it_hang(program):
    """In a process of its own, since what hangs cannot be interrupted."""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False
    )
    assert told.stdout.strip() == "done", told.stderr
