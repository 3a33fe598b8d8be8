"""Surrogate slopes against derivatives and areas taken numerically."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import surrogate as fs

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = ["sigmoid", "arctan", "triangle", "piecewise"]
quick = settings(deadline=None, max_examples=40, derandomize=True)
double = torch.float64


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bump(shape: str, x: float, t: float) -> float:
    """One bump at distance ``x``, from its printed equation."""
    if shape == "sigmoid":
        return t * sigmoid(t * x) * (1 - sigmoid(t * x))
    if shape == "arctan":
        return t / 2 / (1 + (math.pi * t * x / 2) ** 2)
    if shape == "triangle":
        w = 2 / t
        return max(0.0, w - abs(x)) / w**2
    return t / 4 if abs(x) <= 2 / t else 0.0


def kinks(shape: str, t: float) -> list[float]:
    """Distances at which the staircase has no second, or no first, derivative."""
    return {"triangle": [-2 / t, 0.0, 2 / t], "piecewise": [-2 / t, 2 / t]}.get(shape, [])


spans = st.tuples(st.integers(-4, 0), st.integers(1, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@given(
    span=spans,
    t=st.floats(0.5, 8),
    z=st.lists(st.floats(-8, 8), min_size=1, max_size=8),
)
@quick
def test_stack_is_the_sum_of_the_printed_bumps(device, shape, span, t, z):
    shifts = [k + 0.5 for k in range(*span)]
    got = fs.stacked_slope(
        torch.tensor(z, dtype=double, device=device), shifts, shape=shape, temperature=t
    )
    for value, slope in zip(z, got.tolist(), strict=True):
        near_edge = any(abs(abs(value - s) - 2 / t) < 1e-12 for s in shifts)
        if shape == "piecewise" and near_edge:
            continue
        want = sum(bump(shape, value - s, t) for s in shifts)
        assert math.isclose(slope, want, rel_tol=1e-10, abs_tol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@given(span=spans, t=st.floats(0.5, 8))
@quick
def test_slope_is_the_derivative_of_the_staircase(shape, span, t):
    shifts = [k + 0.5 for k in range(*span)]
    z = torch.linspace(-7, 7, 401, dtype=double)
    h = 1e-5
    smooth = torch.ones_like(z, dtype=torch.bool)
    for edge in [s + kink for s in shifts for kink in kinks(shape, t)]:
        smooth &= (z - edge).abs() > 2 * h
    stairs = [
        fs.stacked_staircase(z + side * h, span[0], shifts, shape=shape, temperature=t)
        for side in (1, -1)
    ]
    numerical = (stairs[0] - stairs[1]) / (2 * h)
    slope = fs.stacked_slope(z, shifts, shape=shape, temperature=t)
    assert smooth.sum() > 300
    torch.testing.assert_close(slope[smooth], numerical[smooth], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 7.0])
def test_each_bump_has_area_one_and_climbs_from_zero_to_one(shape, t):
    # The arc tangent's tail falls with 1/x only: what it misses beyond the reach is known.
    reach = 4000.0 if shape == "arctan" else 80.0
    x = torch.linspace(-1, 1, 400_001, dtype=double)
    x = x.pow(3) * reach  # dense around the bump, and still reaching far
    tail = 0.5 - math.atan(math.pi * t / 2 * reach) / math.pi
    missing = 2 * tail if shape == "arctan" else 0
    area = torch.trapezoid(fs.SLOPES[shape](x, t), x).item()
    # The rule may miss half a step at each of the two jumps of the piecewise bump.
    assert math.isclose(area + missing, 1.0, abs_tol=1e-5 if shape != "piecewise" else 1e-4)
    step = fs.STEPS[shape](x, t)
    assert bool((step.diff() >= 0).all())
    ends = torch.tensor([0 + missing / 2, 0.5, 1 - missing / 2], dtype=double)
    got = step[[0, len(x) // 2, -1]]
    torch.testing.assert_close(got, ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@given(x=st.floats(-10, 10), t=st.floats(0.5, 8))
@quick
def test_a_bump_is_even_and_highest_in_the_middle(shape, x, t):
    slope = fs.SLOPES[shape](torch.tensor([x, -x, 0.0], dtype=double), t).tolist()
    assert math.isclose(slope[0], slope[1], rel_tol=1e-9, abs_tol=1e-15)
    assert 0 <= slope[0] <= slope[2] * (1 + 1e-12)
    assert math.isclose(slope[2], {"sigmoid": t / 4, "piecewise": t / 4}.get(shape, t / 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_staircase_joins_the_outermost_levels(shape):
    z = torch.tensor([-1e6, 1e6], dtype=double)
    stairs = fs.stacked_staircase(z, -2, [-1.5, -0.5, 0.5], shape=shape)
    torch.testing.assert_close(stairs, torch.tensor([-2.0, 1.0], dtype=double), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_low_precision_stays_near_and_finite(device, dtype, shape):
    z = torch.tensor([-1e4, -3, -0.7, 0.0, 0.3, 2, 1e4], dtype=dtype, device=device)
    slope = fs.stacked_slope(z, (-0.5, 0.5), shape=shape)
    assert slope.dtype == dtype
    want = fs.stacked_slope(z.double(), (-0.5, 0.5), shape=shape)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(slope.double(), want, rtol=8 * eps, atol=8 * eps)


# --- firing -------------------------------------------------------------------------------------

DISTANCES = [-1.5, -1.0, -0.6, -0.0, 0.0, 0.25, 1.0, 1.4]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spike", [fs.triangle_spike, fs.penalty_window_spike])
def test_spikes_on_the_threshold_follow_the_host(device, dtype, spike):
    d = torch.tensor(DISTANCES, dtype=dtype, device=device)
    reached, exceeded = spike(d, 1.0, False), spike(d, 1.0, True)
    assert reached.dtype == exceeded.dtype == dtype
    assert reached.tolist() == [float(x >= 0) for x in DISTANCES]
    assert exceeded.tolist() == [float(x > 0) for x in DISTANCES]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strict", [False, True])
@given(d=st.lists(st.floats(-4, 4), min_size=1, max_size=8), w=st.floats(0.2, 4))
@quick
def test_slopes_of_the_two_firing_surrogates(device, strict, d, w):
    for spike, window in (
        (fs.triangle_spike, lambda x: 1.0),
        (fs.penalty_window_spike, lambda x: sigmoid(x) * (x >= 0)),
    ):
        x = torch.tensor(d, dtype=double, device=device, requires_grad=True)
        upstream = torch.arange(1.0, len(d) + 1, dtype=double, device=device)
        spike(x, w, strict).backward(upstream)
        want = [
            (i + 1) * max(0.0, w - abs(value)) / w**2 * window(value) for i, value in enumerate(d)
        ]
        torch.testing.assert_close(x.grad.cpu(), torch.tensor(want, dtype=double))


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("integral", [fs.triangle_integral, fs.penalty_window_integral])
def test_integrals_of_the_firing_surrogates(integral, w):
    """Against the trapezoid rule over the slope that the spike's gradient shows."""
    spike = {
        fs.triangle_integral: fs.triangle_spike,
        fs.penalty_window_integral: fs.penalty_window_spike,
    }[integral]
    x = torch.linspace(-2 * w, 2 * w, 200_001, dtype=double, requires_grad=True)
    spike(x, w).sum().backward()
    area = torch.cumulative_trapezoid(x.grad, x.detach())
    got = integral(x.detach(), w)
    assert got[0] == 0
    # The window jumps at 0, where the rule is off by half a step times the jump.
    torch.testing.assert_close(got[1:], area, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", sorted(fs.SLOPES))
@pytest.mark.parametrize("temperature", [0.7, 2.0, 9.0])
def test_leaving_out_far_bumps_changes_nothing(shape, temperature):
    shifts = [level + 0.5 for level in range(-128, 127)]
    z = torch.cat([torch.linspace(-140, 140, 997), torch.tensor(shifts)]).double()
    want = sum(fs.SLOPES[shape](z - shift, temperature) for shift in shifts)
    got = fs.stacked_slope(z, shifts, shape=shape, temperature=temperature)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)
