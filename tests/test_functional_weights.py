"""Weight quantisers against searches over every level and every scale."""

from __future__ import annotations

import itertools
import math
import signal
import statistics
from contextlib import contextmanager
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import weights as fw

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
quick = settings(deadline=None, max_examples=40, derandomize=True)
double = torch.float64


def printed_levels(bits: int) -> list[float]:
    """Magnitudes as the equations print them: powers of two to 4 bits, their sums from 5 on."""
    if bits <= 4:
        return [0.0] + [2.0**-k for k in range(2 ** (bits - 1) - 1)]
    n = -(-(bits - 1) // 2)
    terms = [[0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n)] for i in range(n)]
    if (bits - 1) % 2:
        terms[-1] = [0.0, 2.0 ** -(n - 1)]
    return sorted({sum(choice) for choice in itertools.product(*terms)})


def levels_of(bits: int) -> tuple[float, ...]:
    make = fw.power_of_two_levels if bits <= 4 else fw.additive_power_of_two_levels
    return make(bits)


def nearest(value: float, levels: list[float]) -> float:
    """By exact distance; the smaller one of a tie."""
    return min(levels, key=lambda level: (abs(Fraction(value) - Fraction(level)), level))


def error(row: list[float], alpha: float, levels: list[float]) -> float:
    return math.fsum(min(abs(abs(w) - alpha * q) for q in levels) ** 2 for w in row)


def least_error(row: list[float], levels: list[float]) -> float:
    """The best of every power of two from far below the weights to far above them."""
    top = math.frexp(max(map(abs, row)))[1]
    return min(error(row, 2.0**e, levels) for e in range(top - 12, top + 8))


@contextmanager
def at_most(seconds: int):
    """A search without end becomes a failure instead of a hanging run."""

    def stop(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


weights = st.floats(-3, 3).map(lambda w: w if abs(w) > 1e-6 else 0.0)
rows = st.lists(weights, min_size=1, max_size=9).filter(any)


# --- powers of two and their sums ---------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_the_printed_ones(bits):
    assert list(levels_of(bits)) == sorted(printed_levels(bits))
    assert len(printed_levels(bits)) == 2 ** (bits - 1)


def test_levels_in_numbers():
    assert fw.power_of_two_levels(2) == (0, 1)
    assert fw.power_of_two_levels(3) == (0, 0.25, 0.5, 1)
    assert fw.power_of_two_levels(4) == (0, *(2.0**-k for k in range(6, -1, -1)))
    assert fw.additive_power_of_two_levels(5)[:6] == (0, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16)


# What bfloat16's eight digits can hold ends at the five-bit sums.
REPRESENTABLE = [
    (bits, dtype)
    for bits in range(2, 9)
    for dtype in DTYPES
    if not (dtype == torch.bfloat16 and bits > 5)
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("bits", "dtype"), REPRESENTABLE)
def test_every_boundary_of_the_magnitudes_and_its_neighbours(device, bits, dtype):
    levels = sorted(printed_levels(bits))
    cuts = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(levels)], dtype=double)
    beside = [torch.nextafter(cuts.to(dtype), torch.tensor(s, dtype=dtype)) for s in (-9.0, 9.0)]
    own = torch.tensor(levels, dtype=dtype)
    z = torch.cat([cuts.to(dtype), *beside, own, torch.tensor([9.0], dtype=dtype)]).to(device)
    got = fw.nearest_magnitude(z, levels_of(bits))
    assert got.dtype == dtype
    assert got.tolist() == [nearest(value, levels) for value in z.tolist()]
    assert own.double().tolist() == levels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("bits", "dtype"), REPRESENTABLE)
@given(row=rows, exponent=st.integers(-6, 3))
@quick
def test_dyadic_weights_are_nearest_on_the_grid_and_stay(device, bits, dtype, row, exponent):
    alpha = 2.0**exponent
    levels = [alpha * q for q in printed_levels(bits)]
    w = torch.tensor([row], dtype=dtype, device=device)
    got = fw.dyadic_quantize(
        w, torch.tensor([[alpha]], dtype=dtype, device=device), levels_of(bits)
    )
    want = [math.copysign(nearest(abs(v), levels), v) for v in w[0].tolist()]
    assert got[0].tolist() == want
    again = torch.tensor([[alpha]], dtype=dtype, device=device)
    assert torch.equal(fw.dyadic_quantize(got, again, levels_of(bits)), got)


@pytest.mark.parametrize("bits", range(2, 9))
@given(row=rows)
@quick
def test_alpha_is_the_power_of_two_with_the_least_error(bits, row):
    alpha = fw.search_alpha(torch.tensor([row], dtype=double), levels_of(bits)).item()
    assert math.frexp(alpha)[0] == 0.5
    levels = printed_levels(bits)
    assert error(row, alpha, levels) <= least_error(row, levels) * (1 + 1e-9) + 1e-30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_of_a_convolution_in_every_type(device, bits, dtype):
    w = (torch.randn(4, 3, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 30.0]).view(4, 1, 1, 1)).to(dtype)
    w = w.to(device)
    levels = printed_levels(bits)
    alpha = fw.search_alpha(w, levels_of(bits))
    assert alpha.shape == (4,)
    for row, found in zip(w.flatten(1).tolist(), alpha.tolist(), strict=True):
        assert error(row, found, levels) <= least_error(row, levels) * (1 + 1e-5)
    whole = fw.search_alpha(w, levels_of(bits), channels=False)
    assert whole.shape == (1,)
    flat = w.flatten().tolist()
    assert error(flat, whole.item(), levels) <= least_error(flat, levels) * (1 + 1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_channel_of_zeros_has_scale_one(bits):
    w = torch.zeros(3, 5)
    w[1] = 4.0
    assert fw.search_alpha(w, levels_of(bits))[[0, 2]].tolist() == [1.0, 1.0]
    assert fw.search_alpha(w[:1], levels_of(bits), channels=False).tolist() == [1.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1e-20, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_tiny_channels_get_their_own_scale(bits, dtype, size):
    """Weights that decay has brought near zero: their squares underflow, they do not."""
    unit = torch.tensor([[0.9, -0.4, 0.1]], dtype=dtype)
    factor = 2.0 ** math.floor(math.log2(size))
    with at_most(2):
        alpha = fw.search_alpha(unit * factor, levels_of(bits))
    assert alpha.item() == fw.search_alpha(unit, levels_of(bits)).item() * factor


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@given(row=rows, start=st.integers(-6, 6))
@quick
def test_refined_alpha_is_the_best_of_three(bits, row, start):
    levels = printed_levels(bits)
    alpha = torch.tensor([2.0**start], dtype=double)
    refined = fw.refine_alpha(torch.tensor([row], dtype=double), alpha, levels_of(bits)).item()
    errors = {2.0**e: error(row, 2.0**e, levels) for e in (start - 1, start, start + 1)}
    assert refined in errors
    assert errors[refined] <= min(errors.values()) * (1 + 1e-9) + 1e-30


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [True, False])
def test_refining_reaches_what_the_search_finds_and_rests_there(bits, channels):
    w = torch.randn(3, 40, dtype=double)
    best = fw.search_alpha(w, levels_of(bits), channels)
    for factor in (0.125, 1.0, 8.0):
        alpha = best * factor
        for _ in range(6):
            alpha = fw.refine_alpha(w, alpha, levels_of(bits), channels)
        assert torch.equal(alpha, best)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_refining_a_dead_channel_does_not_wander(bits, size):
    """Every scale fits zeros equally well: alpha would halve until it is 0 itself."""
    w = torch.tensor([[0.9, -0.4], [0.7, -0.3]]) * torch.tensor([[1.0], [size]])
    with at_most(2):
        start = fw.search_alpha(w, levels_of(bits))
    alpha = start
    for _ in range(5):
        alpha = fw.refine_alpha(w, alpha, levels_of(bits))
    assert torch.equal(alpha, start)


# --- uniform ------------------------------------------------------------------------------------


def uniform_error(row: list[float], scale: float, top: int) -> float:
    return math.fsum(min((w - k * scale) ** 2 for k in range(-top, top + 1)) for w in row)


@pytest.mark.parametrize("bits", range(2, 9))
@given(row=rows)
@quick
def test_uniform_scale_by_brute_force(bits, row):
    top, largest = 2 ** (bits - 1) - 1, max(map(abs, row))
    scale = fw.uniform_scale(torch.tensor([row], dtype=double), bits).item()
    if bits >= 6:
        assert math.isclose(scale, largest / top, rel_tol=1e-12)
        return
    candidates = [largest * i / 16 / top for i in range(1, 17)]
    assert min(abs(scale - c) for c in candidates) <= 1e-12 * largest
    best = min(uniform_error(row, c, top) for c in candidates)
    assert uniform_error(row, scale, top) <= best * (1 + 1e-9) + 1e-25 * largest**2


@pytest.mark.parametrize("ratio", range(1, 17))
def test_every_one_of_the_sixteen_ratios_can_win(ratio):
    """Many weights on one magnitude and a single outlier, which is clipped."""
    w = torch.full((1, 1001), ratio / 16, dtype=double)
    w[0, 0] = 1.0
    assert fw.uniform_scale(w, 2).item() == ratio / 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(2, 9))
@given(row=rows)
@quick
def test_uniform_levels_are_nearest_and_stay(device, dtype, bits, row):
    w = torch.tensor([row], dtype=dtype, device=device)
    if not w.any():
        return
    top = 2 ** (bits - 1) - 1
    scale = fw.uniform_scale(w, bits)
    levels = fw.uniform_levels(w, scale, bits)
    eps = torch.finfo(scale.dtype).eps
    for value, level in zip(w[0].tolist(), levels[0].tolist(), strict=True):
        steps = min(max(value / scale.item(), -top), top)
        assert level == int(level)
        assert abs(level - steps) <= 0.5 + 2 * eps * top
    if dtype in (torch.float32, double):
        again = levels * scale
        assert torch.equal(fw.uniform_levels(again, fw.uniform_scale(again, bits), bits), levels)


@pytest.mark.parametrize("device", DEVICES)
@given(row=st.lists(st.floats(-2, 2), min_size=2, max_size=20))
@quick
def test_sawb_is_the_printed_formula(device, row):
    magnitudes = [abs(w) for w in row]
    mean, largest = statistics.fmean(magnitudes), max(magnitudes)
    reach = min(max((statistics.stdev(row) - 1.013 * mean) / 0.077, mean), largest)
    scale = fw.uniform_scale(torch.tensor([row], dtype=double, device=device), 4, "sawb")
    want = reach / 7 if largest > 0 else 1.0
    assert math.isclose(scale.item(), want, rel_tol=1e-9, abs_tol=1e-13)


def test_sawb_lies_between_its_bounds_and_moves():
    """Bell-shaped weights are clipped, evenly spread ones are not."""
    bell, spike = torch.randn(1, 4000, dtype=double), torch.zeros(1, 100, dtype=double)
    spike[0, 0] = 1.0
    flat = torch.linspace(-1, 1, 1001, dtype=double)[None]
    reach = [fw.uniform_scale(w, 4, "sawb").item() * 7 for w in (bell, spike, flat)]
    assert bell.abs().mean() < reach[0] < bell.abs().max()
    assert reach[1] == pytest.approx(1.0)
    assert reach[2] == pytest.approx(0.92, abs=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "rule"), [(b, "auto") for b in range(2, 9)] + [(4, "sawb")])
def test_uniform_channel_of_zeros_has_scale_one(dtype, bits, rule):
    w = torch.zeros(2, 3, 2, dtype=dtype)
    w[1] = torch.randn(3, 2)
    scale = fw.uniform_scale(w, bits, rule)
    assert scale.shape == (2, 1, 1)
    assert scale[0].item() == 1.0
    assert not fw.uniform_levels(w, scale, bits)[0].any()


# --- ternary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.lists(st.lists(weights, min_size=6, max_size=6), min_size=1, max_size=3))
@quick
def test_ternary_weights_by_hand(device, dtype, data):
    w = torch.tensor(data, dtype=dtype, device=device)
    levels, scale = fw.ternary_quantize(w)
    assert levels.dtype == dtype
    for row, got, a in zip(w.tolist(), levels.tolist(), scale.flatten().tolist(), strict=True):
        cut = 0.05 * max(map(abs, row))
        if any(math.isclose(abs(v), cut, rel_tol=1e-6) for v in row if v):
            continue
        kept = [abs(v) for v in row if abs(v) > cut]
        assert got == [math.copysign(1, v) if abs(v) > cut else 0 for v in row]
        assert math.isclose(a, statistics.fmean(kept) if kept else 1.0, rel_tol=1e-6)
    again, same = fw.ternary_quantize(levels.double() * scale.double())
    assert torch.equal(again, levels.double())
    torch.testing.assert_close(same, scale.double(), rtol=1e-6, atol=0)


# --- straight through ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_straight_through_is_the_identity_through_the_scale(device, dtype):
    w = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], dtype=dtype, device=device)
    w.requires_grad_()
    levels = torch.tensor([[1.0, -1, 1], [0, 1, 1]], dtype=dtype, device=device)
    scale = torch.tensor([[0.5], [0.25]], device=device)
    inside = torch.tensor([[True, True, False], [True, True, True]], device=device)
    out = fw.straight_through(w, levels, scale, inside)
    assert torch.equal(out, levels)
    upstream = torch.tensor([[1.0, 2, 4], [8, 16, 32]], dtype=dtype, device=device)
    (out * scale.to(dtype)).backward(upstream)
    assert w.grad.dtype == dtype
    assert torch.equal(w.grad, upstream * inside)
    out.data.zero_()
    assert levels.any(), "the levels that were handed in are not those that come out"
