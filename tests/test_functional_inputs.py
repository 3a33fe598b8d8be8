"""The input grid: nearest whole number of steps, zero on the grid, straight-through inside."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import inputs as fi

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
quick = settings(deadline=None, max_examples=60, derandomize=True)

spans = st.tuples(st.integers(-8, 0), st.integers(0, 8)).filter(lambda span: span[0] < span[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(bits=st.integers(1, 8), span=spans, x=st.lists(st.floats(-9, 9), min_size=1, max_size=10))
@quick
def test_levels_are_whole_in_range_and_nearest(device, dtype, bits, span, x):
    low, high = (float(edge) for edge in span)
    x = torch.tensor(x, dtype=dtype, device=device)
    levels = fi.quantize_input(x, bits, low, high)
    lowest, highest = fi.input_range(bits, low, high)
    assert levels.dtype == dtype
    assert highest - lowest == 2**bits - 1
    assert lowest <= 0 <= highest
    assert set(levels.tolist()) <= set(range(lowest, highest + 1))
    step = Fraction(span[1] - span[0], 2**bits - 1)
    for value, level in zip(x.tolist(), levels.tolist(), strict=True):
        steps = min(max(Fraction(value) / step, lowest), highest)
        # One multiplication and its factor round, in single precision at least: a smaller type
        # holds the levels, but not the fractions that decide between them.
        eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        slack = Fraction(2 * eps) * max(abs(steps), 1)
        assert abs(int(level) - steps) <= Fraction(1, 2) + slack


@given(bits=st.integers(1, 16), span=spans)
@quick
def test_the_grid_covers_the_range_to_half_a_step(bits, span):
    low, high = (float(edge) for edge in span)
    step, (lowest, highest) = fi.input_scale(bits, low, high), fi.input_range(bits, low, high)
    assert step == (high - low) / (2**bits - 1)
    assert abs(lowest * step - low) <= step / 2 * (1 + 1e-9)
    assert abs(highest * step - high) <= step / 2 * (1 + 1e-9)
    assert fi.quantize_input(torch.zeros(1), bits, low, high).item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_a_value_on_the_grid_stays(dtype, bits):
    if dtype == torch.bfloat16 and bits == 8:
        bits = 7  # its eight digits cannot tell 256 neighbours apart, whatever the quantiser does
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-3.0, 0.5)):
        lowest, highest = fi.input_range(bits, low, high)
        levels = torch.arange(lowest, highest + 1, dtype=torch.float64)
        x = (levels * fi.input_scale(bits, low, high)).to(dtype)
        assert torch.equal(fi.quantize_input(x, bits, low, high).double(), levels)


def test_bytes_of_an_image_come_back_as_they_were():
    pixels = torch.arange(256)
    assert torch.equal(fi.quantize_input(pixels / 255, 8, 0.0, 1.0).long(), pixels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_straight_through_inside_only(device, dtype):
    """Scaled back by the step, the chain is the identity; at the edges too, beyond them nothing."""
    x = torch.tensor([-2.0, -1.0, 0.0, 0.3, 1.0, 2.0], dtype=dtype, device=device)
    x.requires_grad_()
    step = fi.input_scale(4, -1.0, 1.0)
    (fi.quantize_input(x, 4, -1.0, 1.0) * step).sum().backward()
    assert x.grad.dtype == dtype
    want = torch.tensor([0, 1, 1, 1, 1, 0], dtype=dtype, device=device)
    torch.testing.assert_close(x.grad, want, rtol=2 * torch.finfo(dtype).eps, atol=0)
