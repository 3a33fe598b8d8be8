"""Slopes of the backward pass, where all sigmoids share one exponential."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import surrogate as fs
from .rule import Rule
from .sharing import find_window_fraction, growth, window_fraction


def quantizer_slope(z: Tensor, rule: Rule) -> Tensor:
    r"""Stacked surrogate at ``z``, the membrane's offset from rest in units.

    A sigmoid's bump is :math:`T/(2 + q + 1/q)` with :math:`q = e^{-T(z - s_k)}`, and neighbouring
    bumps differ by a constant factor in ``q``.
    """
    shifts = tuple(level + 0.5 for level in range(rule.lowest, rule.highest))
    factors, near = growth(rule, z.element_size())
    if rule.shape != "sigmoid":
        return fs.stacked_slope(z, shifts, shape=rule.shape, temperature=rule.temperature)
    if near:
        return near_sigmoids(z, shifts, factors, rule.temperature)
    middle = (rule.lowest + rule.highest) / 2
    down = torch.exp((z - middle if middle else z) * -rule.temperature)
    up = 1 / down
    total = 1 / (2 + down * factors[0] + up / factors[0])
    for factor in factors[1:]:
        total = total + 1 / (2 + down * factor + up / factor)
    return total * rule.temperature


def near_sigmoids(
    z: Tensor, shifts: tuple[float, ...], factors: tuple[float, ...], temperature: float
) -> Tensor:
    """Slope of many bumps, of which only those near ``z`` count; ``factors`` are from the nearest.

    Those beyond the ends of the stack do not exist.
    """
    first, count = shifts[0], len(shifts)
    index = (z - (first - 0.5)).floor().clamp(0, count - 1)
    x = z - (index + first)  # the sum is exact
    side = 1 - 2 * (x < 0).to(z.dtype)
    tail = torch.exp(x.abs() * -temperature)
    near, total = len(factors) // 2, torch.zeros_like(z)
    for k, factor in enumerate(factors):
        at = index + side * (k - near)
        bump = tail * factor
        bump = bump / (bump + 1).square()
        total = total + bump * ((at >= 0) & (at < count))
    return total * temperature


def firing_slope(distance: Tensor, rule: Rule) -> Tensor:
    """Slope that stands for the spike at this distance to the threshold."""
    sharpness = rule.sharpness
    if rule.slope == "sigmoid":
        return fs.sigmoid_slope(distance, sharpness)
    if rule.slope == "arctan":
        return fs.arctan_slope(distance, sharpness)
    if rule.slope == "fast_sigmoid":
        return (distance.abs() * sharpness + 1).square().reciprocal()
    triangle = fs.firing_triangle(distance, sharpness)
    return triangle * window(distance, rule) if rule.slope == "window" else triangle


def window(distance: Tensor, rule: Rule) -> Tensor:
    r"""Gradient penalty window :math:`\sigma(d)\,1[d \ge 0]`, as far as the surrogate reaches."""
    # torch's compiler looks through functions, but not at what they keep.
    find = find_window_fraction if torch.compiler.is_compiling() else window_fraction
    fraction = find(rule.slope, rule.sharpness, distance.element_size())
    if fraction is None:
        return torch.sigmoid(distance) * (distance >= 0)
    half = distance.clamp(0, rule.sharpness) / 2
    square = half.square()
    rise = half * polynomial(fraction.up, square) / polynomial(fraction.down, square)
    return (0.5 + 0.5 * rise) * (distance >= 0)


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Value of a polynomial, its coefficients from the lowest power on."""
    *lower, top = coefficients
    total = torch.full_like(x, top)
    for coefficient in reversed(lower):
        total = total * x + coefficient
    return total


def threshold_share(distance: Tensor, rule: Rule) -> Tensor | float:
    """Window that weighs the threshold's share of the spike's gradient."""
    if rule.threshold_gradient == "gpw":
        return window(distance, rule)
    return 1 + window(distance, rule) if rule.threshold_gradient == "doubled" else 1.0


# Smooth stand-ins of both steps, whose slopes are the ones above; for checks.

FIRING_INTEGRALS = {
    "triangle": fs.triangle_integral,
    "window": fs.penalty_window_integral,
    "sigmoid": fs.sigmoid_step,
    "arctan": fs.arctan_step,
    "fast_sigmoid": lambda d, k: d / (1 + k * d.abs()),
}


def smooth_spike(distance: Tensor, rule: Rule) -> Tensor:
    """Integral of :func:`firing_slope`."""
    return FIRING_INTEGRALS[rule.slope](distance, rule.sharpness)


def smooth_level(z: Tensor, rule: Rule) -> Tensor:
    """Integral of :func:`quantizer_slope`."""
    shifts = tuple(level + 0.5 for level in range(rule.lowest, rule.highest))
    return fs.stacked_staircase(
        z, rule.lowest, shifts, shape=rule.shape, temperature=rule.temperature
    )
