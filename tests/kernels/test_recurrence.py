"""Every provider against the reference numbers, against slow autograd, and against each other."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from conftest import close, golden
from torch import Tensor

from spquant_plugin.kernels import Rule, Sequence, membrane_sequence, use

from .cases import (
    DEVICES,
    OPTIONS,
    PROVIDERS,
    RUNNERS,
    Layer,
    allowed,
    covering,
    gradients,
    layer_of,
    pairs_of,
    run,
)
from .reference import Reference, reference

IMMEDIATE, DELAYED = golden("membrane"), golden("membrane_delayed")
CASES = covering()
# Each rule is built once, so that the compiled provider takes those that hold most pairs.
BUILT = 16
SINGLE, DOUBLE = torch.float32, torch.float64


# --- reference numbers --------------------------------------------------------------------------


def golden_rule(case: dict) -> Rule:
    levels = case["levels"]
    late = "kind" in case
    middles = [level + 0.5 for level in levels[:-1]]
    return Rule(
        reset=f"late_{case['kind']}" if late else case["reset"],
        detach_reset=False if late else case["detach_reset"],
        strict=True if late else case["strict"],
        rest=0.0 if late else case["rest"],
        threshold_gradient=case["threshold_gradient"],
        lowest=levels[0],
        highest=levels[-1],
        cut_points=() if case.get("boundaries", middles) == middles else tuple(case["boundaries"]),
        temperature=case["temperature"],
    )


def rarely_built() -> list[dict]:
    """For each value of each field one case of the reference numbers, and all without new rules."""
    seen: set[object] = set()
    rules: set[Rule] = set()
    kept = []
    for case in (*IMMEDIATE, *DELAYED):
        rule = golden_rule(case)
        new = {(name, value) for name, value in zip(Rule._fields, rule, strict=True)} - seen
        if new or rule in rules:
            seen |= new
            rules.add(rule)
            kept.append(case)
    return kept


BUILT_NUMBERS = rarely_built()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_reference_numbers(provider, device, dtype):
    numbers = (*IMMEDIATE, *DELAYED)
    if provider == "compiled":  # the hosts' tests build the others
        numbers = [case for case in BUILT_NUMBERS if ("kind" in case) == (dtype == DOUBLE)]
    assert numbers
    for case in numbers:
        x = torch.tensor(case["x"], dtype=dtype, device=device, requires_grad=True)
        threshold = torch.tensor(case["threshold"], dtype=dtype, device=device, requires_grad=True)
        with use(provider):
            result = membrane_sequence(
                x,
                golden_rule(case),
                threshold=threshold,
                decay=case["decay"],
                gain=case.get("gain", 1.0),
                unit=case["unit"],
                potentials=True,
                membranes=True,
            )
            (result.spikes * x.new_tensor(case["grad_spikes"])).sum().backward()
        about = {name: case[name] for name in case if not isinstance(case[name], list)}
        assert result.spikes.tolist() == case["spikes"], about
        for value, name in ((result.membranes, "membrane"), (result.potentials, "pre_fire")):
            assert close(value.detach().cpu(), case[name]), (name, about)
        for value, name in ((x.grad, "grad_x"), (threshold.grad, "grad_threshold")):
            assert close(value.cpu(), case[name]), (name, about)
        assert torch.equal(result.membrane, result.membranes[-1])


def test_reference_numbers_that_are_built_hold_all_kinds():
    rules = [golden_rule(case) for case in (*IMMEDIATE, *DELAYED)]
    built = [golden_rule(case) for case in BUILT_NUMBERS]
    for name in Rule._fields:
        values = {getattr(rule, name) for rule in rules}
        assert {getattr(rule, name) for rule in built} == values
    assert len(set(built)) <= 16
    assert {case["kind"] for case in BUILT_NUMBERS if "kind" in case} == {
        "subtract",
        "zero",
        "drop",
    }


# --- slow autograd ------------------------------------------------------------------------------


def test_cases_hold_every_pair_of_options():
    held = set().union(*map(pairs_of, CASES))
    for (a, values), (b, others) in itertools.combinations(OPTIONS.items(), 2):
        for p, q in itertools.product(values, others):
            possible = allowed({"reset": "hard", "rest": 0.0} | {a: p, b: q})
            assert possible == (((a, p), (b, q)) in held)
    built = set().union(*map(pairs_of, CASES[:BUILT]))
    assert len(built) > 0.75 * len(held)


class Expected(NamedTuple):
    """Outputs and gradients of the slow loop, and the magnitude of what each gradient sums."""

    result: Reference
    gradients: dict[str, Tensor]
    magnitudes: dict[str, float]


def expected(layer: Layer, dtype: torch.dtype) -> Expected:
    """The slow loop, with a constant of its own for each neuron so that every term is seen."""
    layer = layer.to("cpu", dtype)
    spread = {}
    for name, value in layer.constants.items():
        if name in ("threshold", "decay", "gain"):
            value = value.detach().expand(layer.x.shape[1:]).clone().requires_grad_()
        if name == "mask":
            value = value.detach()[..., None, None].expand(layer.x.shape).clone().requires_grad_()
        spread[name] = value
    wide = layer._replace(constants=spread)
    result = reference(wide.x, wide.rule, **spread)
    totals, magnitudes = {}, {}
    for name, each in gradients(result, wide).items():
        shape = layer.leaves[name].shape
        if name == "mask":
            shape = (*shape, 1, 1)
        each = each.double()  # its terms may cancel
        totals[name] = each.sum_to_size(shape).view(layer.leaves[name].shape)
        magnitudes[name] = float(each.abs().sum_to_size(shape).max())
    return Expected(result, totals, magnitudes)


def agree(got: dict[str, Tensor], want: Expected, tolerance: float) -> str:
    """Where a gradient is off by more than the tolerance; empty if nowhere.

    Relative to its largest entry, or where an entry is a sum, to the sum of magnitudes: terms of
    both signs cancel, but not their rounding.
    """
    wrong = []
    for name, value in want.gradients.items():
        off = float((got[name].cpu().double() - value.double()).abs().max())
        limit = tolerance * want.magnitudes[name]
        if not off <= limit:
            wrong.append(f"{name}: off by {off:.3e}, allowed {limit:.3e}")
    return "; ".join(wrong)


def tolerance_of(rule: Rule, dtype: torch.dtype) -> float:
    """Single precision rounds a membrane of many units by more than the last digit of one unit."""
    if dtype == DOUBLE:
        return 1e-10
    reach = max(-rule.lowest, rule.highest)
    return max(1e-6, torch.finfo(dtype).eps * reach * rule.temperature)


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("device", DEVICES)
def test_slow_autograd_eager(device, number):
    for dtype in (SINGLE, DOUBLE):
        check_case(CASES[number], "eager", device, dtype)


@pytest.mark.parametrize("number", range(BUILT))
def test_slow_autograd_compiled(number):
    check_case(CASES[number], "compiled", "cpu", (SINGLE, DOUBLE)[number % 2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("number", range(4))
def test_slow_autograd_compiled_for_cuda(number):
    check_case(CASES[number], "compiled", "cuda", (SINGLE, DOUBLE)[number % 2])


def check_case(case: dict, provider: str, device: str, dtype: torch.dtype) -> None:
    """Spikes and states exactly, gradients to rounding."""
    layer = layer_of(case, dtype)
    result, got = run(layer.to(device), provider)
    want = expected(layer, dtype)
    for name in Sequence._fields:
        assert torch.equal(getattr(result, name).cpu(), getattr(want.result, name)), (name, case)
    assert not (wrong := agree(got, want, tolerance_of(layer.rule, dtype))), (wrong, case)


@pytest.mark.parametrize("wanted", ["spikes", "membrane", "potentials", "membranes"])
@pytest.mark.parametrize("reset", ["soft", "late_drop"])
@pytest.mark.parametrize(("provider", "device"), RUNNERS)
def test_each_output_carries_its_own_gradient(provider, device, reset, wanted):
    """Alone, since a gradient that arrives through another output might hide a missing one."""
    case = {name: values[0] for name, values in OPTIONS.items()} | {"reset": reset}
    layer = layer_of(case | {"continued": True, "per_channel": True}, DOUBLE)
    place = Sequence._fields.index(wanted)
    lone = layer._replace(
        arriving=tuple(g if k == place else g * 0 for k, g in enumerate(layer.arriving))
    )
    slow = expected(lone, DOUBLE)
    moved = layer.to(device)
    with use(provider):
        result = membrane_sequence(
            moved.x,
            moved.rule,
            **moved.constants,
            potentials=wanted == "potentials",
            membranes=wanted == "membranes",
        )
        leaves = moved.leaves
        value, grad = getattr(result, wanted), moved.arriving[place]
        got = torch.autograd.grad(value, list(leaves.values()), grad, allow_unused=True)
    assert not agree(dict(zip(leaves, got, strict=True)), slow, 1e-10)


# --- one provider against the other -------------------------------------------------------------

HARD = Rule(threshold_gradient="gpw")
FINE = Rule(reset="soft", lowest=-128, highest=127, strict=True)


def same(a: Sequence, b: Sequence) -> bool:
    """Equal numbers, and NaN in the same places."""
    return all(torch.equal(p.nan_to_num(7e7), q.nan_to_num(7e7)) for p, q in zip(a, b, strict=True))


def both(x: Tensor, rule: Rule, **constants) -> tuple[Sequence, Sequence]:
    """The same layer by both providers, all outputs."""
    constants = {"threshold": 0.9, "decay": 0.6, "unit": 0.7} | constants
    results = []
    for provider in PROVIDERS:
        with use(provider):
            results.append(membrane_sequence(x, rule, **constants, potentials=True, membranes=True))
    return results[0], results[1]


@pytest.mark.parametrize("steps", [1, 2, 7, 33, 100])
@pytest.mark.parametrize("neurons", [1, 63, 64, 1000, 1025, 5000])
def test_all_sizes(neurons, steps):
    x = torch.randn(steps, 1, neurons)
    for rule, unit in ((HARD, 0.7), (FINE, 0.013)):
        assert same(*both(x, rule, unit=unit))


@pytest.mark.parametrize("neurons", [1, 63, 1025])
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_gradients_of_all_sizes(neurons, steps):
    """Blocks end inside a row of the mask, and rows inside a block."""
    case = {name: values[0] for name, values in OPTIONS.items()}
    case |= {"masked": True, "continued": True, "per_channel": True}
    for shape in ((steps, 1, 1, neurons), (steps, 2, neurons), (steps, 3, 2, neurons)):
        for channels in (False, True):
            layer = layer_of(case | {"per_channel": channels}, DOUBLE, shape)
            eager, want = run(layer, "eager")
            compiled, got = run(layer, "compiled")
            assert same(eager, compiled)
            for name, value in want.items():
                assert (got[name] - value).abs().max() <= 1e-11 * value.abs().max(), (name, shape)


@pytest.mark.parametrize("unit", [0.1, 0.3, 0.7, 1.0, 1 / 3, 3.7])
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (HARD, SINGLE),
        (HARD, DOUBLE),
        (FINE, SINGLE),
        (FINE, DOUBLE),
        (Rule(lowest=-3, highest=1, reset="none"), SINGLE),
        (Rule(cut_points=(0.0, 0.5)), SINGLE),
        (Rule(cut_points=(-0.3, 0.1), strict=True), DOUBLE),
        (Rule(reset="soft", rest=-0.2), SINGLE),
    ],
    ids=str,
)
def test_values_on_and_beside_every_boundary(rule, unit, dtype):
    """The threshold, all boundaries and all levels, and the three numbers to each side of them."""
    cuts = torch.tensor(rule.cuts, dtype=dtype)
    levels = torch.arange(rule.lowest, rule.highest + 1, dtype=dtype)
    marks = torch.cat([cuts, levels]) * torch.tensor(unit, dtype=dtype) + rule.rest
    marks = torch.cat([marks, torch.tensor([1.6 * unit, rule.rest, 0.0], dtype=dtype)])
    near = [marks]
    for direction in (torch.inf, -torch.inf):
        value = marks
        for _ in range(3):
            value = torch.nextafter(value, torch.full_like(value, direction))
            near.append(value)
    # Without decay or gain the input is the potential.
    x = torch.cat(near).expand(2, 1, -1)
    eager, compiled = both(x, rule, unit=unit, decay=0.0, threshold=1.6 * unit)
    assert same(eager, compiled)
    assert eager.spikes.min() == 0
    if rule.lowest == -1:
        assert len(set(eager.membranes.flatten().tolist())) == 3


def test_ties_take_the_lower_level_and_thresholds_are_reached():
    x = torch.tensor([[-2.5, -0.5, 0.5, 0.75, 1.5]])
    for provider in PROVIDERS:
        with use(provider):
            for strict, spikes in ((False, [0, 0, 0, 1, 1]), (True, [0, 0, 0, 0, 1])):
                rule = Rule(reset="none", strict=strict, lowest=-3, highest=1)
                result = membrane_sequence(x[None], rule, threshold=0.75, decay=0.5)
                assert result.spikes.flatten().tolist() == spikes
                assert result.membrane.flatten().tolist() == [-3, -1, 0, 1, 1]


ODD = torch.tensor([0.7, torch.nan, torch.inf, -torch.inf, -0.0, 1e-42, -1e-42, 3e38, -3e38])


@pytest.mark.parametrize(
    "rule",
    [
        HARD,
        FINE,
        Rule(reset="none", detach_reset=True),
        Rule(reset="soft"),
        Rule(cut_points=(0.0, 0.5)),
        Rule(reset="late_subtract"),
        Rule(reset="late_zero"),
        Rule(reset="late_drop"),
    ],
    ids=lambda rule: f"{rule.reset}{rule.lowest}{rule.cut_points}",
)
def test_odd_numbers(rule):
    """Not a number, infinite, subnormal, and minus zero: at every step, and left from the first."""
    x = torch.cat([ODD, ODD]).repeat(4, 1)
    x[1:, : len(ODD)] = 0.3
    eager, compiled = both(x[:, None], rule)
    assert same(eager, compiled)
    assert eager.membranes[0, 0, 1].isnan()  # a broken input does not hide behind a level
    assert not eager.spikes.isnan().any()


@pytest.mark.parametrize("rule", [HARD, Rule(reset="none", detach_reset=True), Rule(reset="soft")])
def test_gradients_do_not_hide_what_is_no_number(rule):
    """A loss scaler looks for such gradients to skip a step."""
    hidden = []
    for provider in PROVIDERS:
        x = torch.tensor([[0.7, torch.nan]]).repeat(3, 1)[:, None].requires_grad_()
        with use(provider):
            result = membrane_sequence(x, rule, threshold=0.9, decay=0.6, unit=0.7)
            (result.spikes.sum() + result.membrane.sum()).backward()
        assert x.grad[..., 0].isfinite().all()
        hidden.append(not x.grad[..., 1].isnan().any())
    assert hidden == [False, False]


def test_any_number_of_threads_gives_the_same_spikes():
    before = torch.get_num_threads()
    x = torch.randn(10, 4, 3, 40, 40)
    mask = torch.rand(10, 4, 3)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for constants in ({}, {"mask": mask}):
                leaf = x.clone().requires_grad_()
                threshold = torch.tensor(0.9, requires_grad=True)
                with use("compiled"):
                    result = membrane_sequence(
                        leaf,
                        HARD,
                        threshold=threshold,
                        decay=0.5,
                        unit=0.7,
                        potentials=True,
                        membranes=True,
                        **constants,
                    )
                    (result.spikes * x).sum().backward()
                results.append((*result, leaf.grad, threshold.grad))
    finally:
        torch.set_num_threads(before)
    for later in (results[2:4], results[4:6]):
        for one, other in zip(results[:2], later, strict=True):
            for a, b in zip(one[:-1], other[:-1], strict=True):
                assert torch.equal(a, b)
            assert torch.isclose(one[-1], other[-1], rtol=1e-6)
