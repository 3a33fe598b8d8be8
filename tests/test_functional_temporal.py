"""Weights that change with the time step, against a slow loop and the reference numbers."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from conftest import GOLDEN as FOLDER
from conftest import close

import spquant_plugin as spq
from spquant_plugin.functional import temporal as ft
from spquant_plugin.kernels.temporal import step_levels

GOLDEN = json.loads((FOLDER / "temporal_ternary.json").read_text())


def fired(drive: Fraction, timesteps: int, top: int) -> list[int]:
    """The neuron itself, in exact arithmetic."""
    potential, levels = Fraction(0), []
    for _ in range(timesteps):
        potential += (drive - potential) / 2
        level = sum(abs(potential) > Fraction(k, 4) for k in range(1, top + 1))
        levels.append(level if potential > 0 else -level)
        potential = Fraction(0) if level else potential
    return levels


class Jump(torch.autograd.Function):
    """A sign whose slope is that of a sigmoid."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        soft = torch.sigmoid(4 * x)
        return grad * 4 * soft * (1 - soft)


def loop(weight, timesteps, bits):
    """The printed recurrence by autograd: every step, every jump, the scale as written."""
    top = 2 ** (bits - 1) - 1
    centred = weight - weight.mean()
    spread = weight.std() if weight.numel() > 1 and (weight != weight.flatten()[0]).any() else 1
    drive, potential, levels = centred / spread, torch.zeros_like(weight), []
    for _ in range(timesteps):
        potential = potential + (drive - potential) / 2
        jumps = [Jump.apply(potential - k / 4) for k in range(-top, top + 1) if k]
        level = sum(jumps) / 2
        levels.append(level)
        potential = torch.where(level == 0, 1.0, 0.0) * potential
    return torch.stack(levels)


def scale_of(levels, rule):
    dims = tuple(range(2, levels.ndim))
    mean = levels.abs().mean(dims if rule == "per_step" else (0, *dims), keepdim=True)
    return 1 / (mean + 1e-6).expand(len(levels), -1, *[1] * (levels.ndim - 2))


@pytest.mark.parametrize("rule", ["per_step", "shared"])
def test_reference_numbers(rule):
    weight = torch.tensor(GOLDEN["weight"], dtype=torch.float64)
    timesteps = len(GOLDEN["codes"])
    levels = ft.temporal_levels(weight, timesteps)
    assert torch.equal(levels, torch.tensor(GOLDEN["codes"], dtype=torch.float64))
    expected = torch.tensor(GOLDEN[f"scale_{rule}"], dtype=torch.float64)
    assert close(ft.temporal_scale(levels, rule), expected.expand(timesteps, -1).tolist())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_patterns_are_those_of_the_neuron(bits):
    for timesteps in range(1, 9):
        patterns = ft.temporal_patterns(timesteps, bits)
        assert list(patterns.breaks) == sorted(set(patterns.breaks))
        assert len(set(patterns.levels)) == len(patterns.levels) == len(patterns.breaks) + 1
        assert all(len(gains) == timesteps for gains in patterns.gains)
        tiny = Fraction(1, 10**9)
        for number, limit in enumerate(patterns.breaks):
            # A tie goes towards 0.
            for drive, row in ((limit, number), (limit + tiny, number + 1), (-limit, number)):
                sign = 1 if drive > 0 else -1
                found = [sign * level for level in patterns.levels[row]]
                assert found == fired(drive, timesteps, 2 ** (bits - 1) - 1)


def test_the_limits_of_four_steps_are_the_published_ones():
    patterns = ft.temporal_patterns(4)
    assert patterns.breaks == (Fraction(4, 15), Fraction(2, 7), Fraction(1, 3), Fraction(1, 2))
    rows = ["".join(map(str, row)) for row in patterns.levels]
    assert rows == ["0000", "0001", "0010", "0101", "1111"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_exact_next_to_every_limit(dtype, bits):
    """Every float next to a break falls on the side where exact arithmetic puts it."""
    for timesteps in (1, 3, 4, 8):
        near = torch.tensor([float(b) for b in ft.temporal_patterns(timesteps, bits).breaks])
        near = near.to(dtype)
        drives = torch.cat([near, near.nextafter(near + 1), near.nextafter(near - 1), -near])
        expected = [fired(Fraction(float(d)), timesteps, 2 ** (bits - 1) - 1) for d in drives]
        levels = ft.pattern_levels(drives, timesteps, bits)
        assert torch.equal(levels.t(), torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("timesteps", [1, 2, 4, 7])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rule", ["per_step", "shared"])
@pytest.mark.parametrize("provider", ["eager", "compiled", "functional"])
def test_levels_scales_and_gradients_of_the_plain_loop(timesteps, bits, rule, provider):
    torch.manual_seed(timesteps + bits)
    weight = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(timesteps, 3, 2, 5, dtype=torch.float64)
    expected = loop(weight, timesteps, bits)
    whole = expected * scale_of(expected, rule)
    (wanted,) = torch.autograd.grad((whole * factors).sum(), weight)
    if provider == "functional":
        levels = ft.temporal_levels(weight, timesteps, bits)
        scale = ft.temporal_scale(levels, rule)
    else:
        with spq.kernels.use(provider):
            steps, sums = step_levels(weight, timesteps, bits)
        levels, scale = torch.stack(steps), ft.scale_from_sums(sums, 10, rule)
    assert torch.equal(levels, expected)
    found = levels * scale.view(timesteps, 3, 1, 1)
    assert torch.allclose(found, whole, rtol=1e-12)
    with spq.kernels.use("eager" if provider == "functional" else provider):
        (grad,) = torch.autograd.grad((found * factors).sum(), weight)
    assert torch.allclose(grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("provider", ["eager", "compiled"])
def test_single_precision_has_the_gradient_of_double_precision(provider):
    torch.manual_seed(0)
    wide = torch.randn(7, 3, 11, dtype=torch.float64).float().double().requires_grad_()
    factors = torch.randn(4, 7, 3, 11, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((loop(wide, 4, 3) * factors).sum(), wide)
    weight = wide.detach().float().requires_grad_()
    with spq.kernels.use(provider):
        steps, _ = step_levels(weight, 4, 3)
        (grad,) = torch.autograd.grad((torch.stack(steps) * factors.float()).sum(), weight)
    assert torch.allclose(grad.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("provider", ["eager", "compiled"])
def test_weights_that_are_all_equal_and_a_single_one_are_zero(provider):
    for shape in ((1, 1), (3, 4), (1,)):
        weight = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
        with spq.kernels.use(provider):
            steps, sums = step_levels(weight, 4, 2)
            scale = ft.scale_from_sums(sums, weight[0].numel())
            assert not any(step.any() for step in steps)
            assert bool(scale.isfinite().all())
            factors = torch.randn(shape, dtype=torch.float64)
            (grad,) = torch.autograd.grad((sum(steps) * factors).sum(), weight)
        expected = loop(weight, 4, 2).sum(0) * factors
        (wanted,) = torch.autograd.grad(expected.sum(), weight)
        assert torch.allclose(grad, wanted)


def test_positive_affine_maps_change_nothing():
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    for bits in (2, 3):
        levels = ft.temporal_levels(weight, 5, bits)
        assert torch.equal(ft.temporal_levels(3.7 * weight - 11.0, 5, bits), levels)
        assert torch.equal(ft.temporal_levels(-weight, 5, bits), -levels)


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_store_every_step(bits):
    torch.manual_seed(0)
    weight = torch.randn(40, 50)
    for timesteps in (1, 4, 8):
        codes = ft.temporal_codes(weight, timesteps, bits)
        assert codes.dtype == torch.int8
        levels = ft.temporal_levels(weight, timesteps, bits)
        assert torch.equal(ft.decode_codes(codes, timesteps, bits).float(), levels)
        assert 2 * int(codes.abs().max()) + 1 <= 2 ** ft.code_bits(timesteps, bits)


def test_bits_of_a_code():
    assert [ft.code_bits(timesteps) for timesteps in (1, 2, 3, 4, 8)] == [2, 3, 3, 4, 5]
    assert [ft.code_bits(4, bits) for bits in (2, 3, 4)] == [4, 4, 5]


def test_half_precision_quantises_in_single_precision():
    weight = torch.randn(8, 9).bfloat16()
    levels = ft.temporal_levels(weight, 4)
    assert levels.dtype == torch.bfloat16
    assert torch.equal(levels.float(), ft.temporal_levels(weight.float(), 4))
    assert ft.temporal_scale(levels).dtype == torch.float32
