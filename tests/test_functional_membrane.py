"""The membrane's equations against exact arithmetic on fractions and plain floats."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import membrane as fm

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
quick = settings(deadline=None, max_examples=40, derandomize=True)

ranges = st.tuples(st.integers(-8, 0), st.integers(1, 8))
# Halves are the boundaries between whole levels; quarters lie clearly on either side.
values = st.one_of(
    st.floats(-12, 12, width=16),
    st.integers(-25, 25).map(lambda i: i / 2),
    st.integers(-25, 25).flatmap(
        lambda i: st.sampled_from([math.nextafter(i / 2, side) for side in (-99, 99)])
    ),
)
rows = st.lists(values, min_size=1, max_size=12)


def nearest(z: float, low: int, high: int) -> int:
    """Nearest level, a tie to the lower: exact, because fractions do not round."""
    return min(max(math.ceil(Fraction(z) - Fraction(1, 2)), low), high)


def staircase(z: float, low: int, cuts: tuple[float, ...]) -> int:
    return low + sum(Fraction(z) > Fraction(cut) for cut in cuts)


def slope_of(z: float, low: int, high: int, temperature: float = 2.0) -> float:
    """The sum of sigmoid bumps, one term after another, at the value as it is."""
    total = 0.0
    for k in range(low, high):
        rise = 1 / (1 + math.exp(-temperature * (z - (k + 0.5))))
        total += temperature * rise * (1 - rise)
    return total


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(z=rows, span=ranges)
@quick
def test_nearest_level_is_the_nearest_and_a_tie_goes_down(device, dtype, z, span):
    z = torch.tensor(z, dtype=dtype, device=device)
    level = fm.nearest_level(z, *span)
    assert level.dtype == dtype
    assert level.tolist() == [nearest(value, *span) for value in z.tolist()]
    assert torch.equal(fm.nearest_level(level, *span), level)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [(-128, 127), (-1, 1), (0, 1), (-3, 1), (0, 255)])
def test_every_boundary_and_its_neighbours(dtype, span):
    """All values of a small type around each boundary, where rounding errors would show."""
    cuts = torch.arange(span[0] - 2, span[1] + 2, dtype=torch.float64).add(0.5).to(dtype)
    beside = [torch.nextafter(cuts, torch.full_like(cuts, side * 1e4)) for side in (-1, 1)]
    z = torch.cat([cuts, *beside, cuts - 0.5, torch.tensor([-0.0, 1e4, -1e4], dtype=dtype)])
    assert fm.nearest_level(z, *span).tolist() == [nearest(v, *span) for v in z.tolist()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), z=rows, low=st.integers(-4, 0))
@quick
def test_level_of_counts_the_cut_points_below(device, dtype, data, z, low):
    exact = st.integers(-32, 32).map(lambda i: i / 8)
    cuts = tuple(sorted(data.draw(st.lists(exact, min_size=1, max_size=5, unique=True))))
    z = torch.tensor([*z, *cuts], dtype=dtype, device=device)
    level = fm.level_of(z, low, low + len(cuts), cuts)
    assert level.dtype == dtype
    assert level.tolist() == [staircase(value, low, cuts) for value in z.tolist()]


@pytest.mark.parametrize(
    ("span", "cuts", "z", "levels"),
    [
        ((-1, 1), None, [-9, -0.51, -0.5, 0, 0.5, 0.51, 9], [-1, -1, -1, 0, 0, 1, 1]),
        ((-1, 1), (0.0, 0.5), [-1, -0.1, 0, 0.1, 0.5, 0.6], [-1, -1, -1, 0, 0, 1]),
        ((0, 1), None, [-9, -0.1, 0.5, 0.51, 9], [0, 0, 0, 1, 1]),
        ((-3, 1), None, [-9, -2.5, -2.4, 1.5, 9], [-3, -3, -2, 1, 1]),
    ],
)
def test_levels_in_numbers(span, cuts, z, levels):
    assert fm.level_of(torch.tensor(z, dtype=torch.float64), *span, cuts).tolist() == levels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    z=rows,
    span=ranges,
    unit=st.floats(0.25, 4, width=16),
    rest=st.floats(-1, 1, width=16),
)
@example(z=[0.5, -0.5], span=(-1, 1), unit=0.5, rest=-0.25)
@quick
def test_stored_membrane_is_near_on_the_grid_and_stays(device, dtype, z, span, unit, rest):
    low, high = span
    v = (torch.tensor(z, dtype=torch.float64) * unit + rest).to(dtype).to(device)
    m = fm.quantize_membrane(v, unit, rest, lowest=low, highest=high)
    grid = torch.tensor(range(low, high + 1), dtype=dtype, device=device) * unit
    grid = grid + rest if rest else grid
    assert m.dtype == dtype
    assert set(m.tolist()) <= set(grid.tolist())
    assert torch.equal(fm.quantize_membrane(m, unit, rest, lowest=low, highest=high), m)
    # Subtracting the rest and dividing round once each, and storing rounds twice.
    slack = 4 * torch.finfo(dtype).eps * (v.double().abs() + abs(rest) + unit * max(-low, high))
    best = (v.double()[:, None] - grid.double()).abs().amin(1)
    assert bool(((v.double() - m.double()).abs() <= best + slack).all())


@pytest.mark.parametrize("unit", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("rest", [0.0, -0.5, 1.0])
def test_ties_of_the_stored_membrane_go_down(unit, rest):
    """With dyadic units every boundary is hit exactly."""
    levels = torch.arange(-3, 3, dtype=torch.float32)
    ties = rest + unit * (levels + 0.5)
    m = fm.quantize_membrane(ties, unit, rest, lowest=-3, highest=3)
    assert torch.equal(m, rest + unit * levels)


@pytest.mark.parametrize("device", DEVICES)
@given(z=st.floats(-6, 6), span=ranges, unit=st.floats(0.1, 5), temperature=st.floats(0.5, 8))
@quick
def test_gradient_is_the_stacked_slope(device, z, span, unit, temperature):
    v = torch.tensor([z * unit], dtype=torch.float64, device=device, requires_grad=True)
    options = {"lowest": span[0], "highest": span[1], "temperature": temperature}
    fm.quantize_membrane(v, unit, **options).backward(torch.ones_like(v))
    want = slope_of(v.item() / unit, *span, temperature)
    assert math.isclose(v.grad.item(), want, rel_tol=1e-9, abs_tol=1e-14)


@pytest.mark.parametrize("z", [-3.0, -1.2, 1.2, 3.0])
def test_a_saturated_potential_keeps_the_slope_of_the_unclamped_value(z):
    """Beyond the outermost level neither 0 nor the slope at that level."""
    v = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    m = fm.quantize_membrane(v, 1.0)
    m.backward(torch.ones_like(m))
    assert m.item() == math.copysign(1.0, z)
    assert math.isclose(v.grad.item(), slope_of(z, -1, 1), rel_tol=1e-12)
    assert 0 < v.grad.item() < slope_of(math.copysign(1.0, z), -1, 1)


@pytest.mark.parametrize("cuts", [None, (0.0, 0.5)])
def test_boundaries_do_not_move_the_bumps(cuts):
    v = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    fm.stacked_quantize(v, -1, 1, cuts).sum().backward()
    want = [slope_of(value, -1, 1) for value in v.tolist()]
    torch.testing.assert_close(v.grad, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_shapes_survive_both_ways(device, dtype):
    v = torch.randn(2, 3, 4, 5, dtype=dtype, device=device, requires_grad=True)
    unit = torch.tensor(0.75, device=device)
    m = fm.quantize_membrane(v, unit, -0.25, shape="arctan")
    m.sum().backward()
    assert (m.dtype, m.shape) == (dtype, v.shape)
    assert (v.grad.dtype, v.grad.shape) == (dtype, v.shape)


@pytest.mark.parametrize("shape", ["sigmoid", "arctan", "triangle", "piecewise"])
def test_second_use_of_the_graph_of_one_step_by_the_next(shape):
    """Through two steps the slopes multiply, as the chain rule says."""
    v = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    first = fm.stacked_quantize(v, shape=shape)
    fm.stacked_quantize(0.5 * first + 0.2, shape=shape).sum().backward()
    alone = []
    for point in (v.detach(), 0.5 * first.detach() + 0.2):
        z = point.clone().requires_grad_()
        fm.stacked_quantize(z, shape=shape).sum().backward()
        alone.append(z.grad)
    torch.testing.assert_close(v.grad, 0.5 * alone[0] * alone[1])


@given(
    x=st.lists(st.floats(-3, 3), min_size=1, max_size=12),
    decay=st.floats(0, 1),
    gain=st.floats(0.1, 1),
    rest=st.sampled_from([0.0, -0.5, 0.25]),
    threshold=st.floats(0.5, 2),
    unit=st.floats(0.3, 2),
    hard=st.booleans(),
)
@quick
def test_a_sequence_follows_the_printed_recurrence(x, decay, gain, rest, threshold, unit, hard):
    m, stored = rest, torch.tensor(rest, dtype=torch.float64)
    for current in x:
        u = rest + decay * (m - rest) + gain * current
        s = float(u >= threshold)
        v = (1 - s) * u + s * rest if hard else u - threshold * s
        potential = fm.charge(stored, torch.tensor(current, dtype=stored.dtype), decay, gain, rest)
        spike = torch.tensor(s).to(stored)
        if hard:
            left = fm.hard_reset(potential, spike, rest)
        else:
            left = fm.soft_reset(potential, spike, threshold)
        stored = fm.quantize_membrane(left, unit, rest)
        # The level of the very value that came out: one rounding more may cross a boundary.
        m = rest + unit * nearest((left.item() - rest) / unit, -1, 1)
        for got, want in ((potential, u), (left, v), (stored, m)):
            assert math.isclose(got.item(), want, rel_tol=1e-12, abs_tol=1e-12)


def test_resets_carry_the_gradient_of_the_spike():
    u = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    fm.hard_reset(u, s, rest=-0.5).backward()
    assert (u.grad.item(), s.grad.item()) == (0.0, -2.0)
    u.grad = s.grad = None
    fm.soft_reset(u, s, 0.75).backward()
    assert (u.grad.item(), s.grad.item()) == (1.0, -0.75)


@pytest.mark.parametrize("cuts", [None, (0.0, 0.5)])
@given(threshold=st.integers(1, 40), unit=st.integers(1, 40), rest=st.integers(-20, 0))
@quick
def test_self_firing_level_is_the_highest_that_silence_stores(cuts, threshold, unit, rest):
    """Searched: the levels of many potentials below the threshold."""
    v = [Fraction(threshold) - Fraction(step, 1000) for step in range(1, 40)]
    rule = nearest if cuts is None else lambda z, low, high: staircase(z, low, cuts)
    want = max(rule((value - rest) / unit, -1, 1) for value in v)
    assert fm.self_firing_level(threshold, unit, rest, -1, 1, cuts) == want


@given(
    threshold=st.floats(0.1, 5), rest=st.floats(-3, 0), decay=st.floats(0.01, 1), low=st.booleans()
)
@quick
def test_default_unit_keeps_silent_neurons_silent(threshold, rest, decay, low):
    unit = fm.default_unit(threshold, rest, decay)
    n = fm.self_firing_level(threshold, unit, rest, 0 if low else -1, 1)
    assert n == 1
    assert rest + decay * n * unit < threshold


@pytest.mark.parametrize(
    ("decay", "factor", "unit"),
    [(0.5, 1.0, 1.5), (0.75, 1.0, 1.5), (1.0, 1.0, 1.125), (0.9, 1.0, 1.25), (0.5, 0.25, 0.375)],
)
def test_default_unit_in_numbers(decay, factor, unit):
    got = fm.default_unit(threshold=1.0, rest=-0.5, decay=decay, factor=factor)
    assert math.isclose(got, unit, rel_tol=1e-15)


@pytest.mark.parametrize("span", [(-1, 1), (0, 1), (-8, 7)])
def test_shifts_are_the_midpoints(span):
    want = [(k + k + 1) / 2 for k in range(*span)]
    assert list(fm.shifts_of(*span)) == want
