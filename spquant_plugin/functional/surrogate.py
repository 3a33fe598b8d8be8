r"""Surrogate gradients: what a step is replaced by on the way back.

A *bump* is the slope that stands for one step. Each bump has area 1, so that its integral climbs
from 0 to 1 as the step does. With temperature :math:`T`:

=========== ====================================== =============
shape       slope at distance x                    peak at T = 2
=========== ====================================== =============
sigmoid     :math:`T\sigma(Tx)(1 - \sigma(Tx))`    0.5
arctan      :math:`(T/2) / (1 + (\pi T x / 2)^2)`  1
triangle    :math:`\max(0, w - |x|)/w^2, w = 2/T`  1
piecewise   :math:`T/4` where :math:`|x| \le 2/T`  0.5
=========== ====================================== =============

The stacked surrogate of a quantiser is the sum of one bump per boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sigmoid_slope(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Slope of the sigmoid."""
    rise = torch.sigmoid(temperature * x)
    return temperature * rise * (1 - rise)


def sigmoid_step(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Integral of :func:`sigmoid_slope`."""
    return torch.sigmoid(temperature * x)


def arctan_slope(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Slope of the arc tangent."""
    return temperature / 2 / (1 + (math.pi * temperature / 2 * x).square())


def arctan_step(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Integral of :func:`arctan_slope`."""
    return torch.atan(math.pi * temperature / 2 * x) / math.pi + 0.5


def triangle_slope(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Triangle of half width ``2 / temperature``."""
    width = 2 / temperature
    return (width - x.abs()).clamp(min=0) / width**2


def triangle_step(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Integral of :func:`triangle_slope`."""
    width = 2 / temperature
    inside = x.clamp(-width, width)
    return 0.5 + inside / width - inside * inside.abs() / (2 * width**2)


def piecewise_slope(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Slope of the piecewise linear step that follows the sigmoid."""
    return (x.abs() <= 2 / temperature).to(x.dtype) * (temperature / 4)


def piecewise_step(x: Tensor, temperature: float = 2.0) -> Tensor:
    """Integral of :func:`piecewise_slope`."""
    return (x * (temperature / 4) + 0.5).clamp(0, 1)


SLOPES = {
    "sigmoid": sigmoid_slope,
    "arctan": arctan_slope,
    "triangle": triangle_slope,
    "piecewise": piecewise_slope,
}
STEPS = {
    "sigmoid": sigmoid_step,
    "arctan": arctan_step,
    "triangle": triangle_step,
    "piecewise": piecewise_step,
}


# Distance, times the temperature, from which on a bump is zero to double precision.
REACHES = {"sigmoid": 38.0, "arctan": math.inf, "triangle": 3.0, "piecewise": 3.0}


def stacked_slope(
    z: Tensor, shifts: Sequence[float], *, shape: str = "sigmoid", temperature: float = 2.0
) -> Tensor:
    r"""Stacked surrogate :math:`\sum_k \mathrm{bump}(z - s_k)` of a quantiser (SGS).

    The shifts ascend in steps of 1, as those of whole levels do.

    >>> stacked_slope(torch.tensor([0.0, 2.0]), shifts=(-0.5, 0.5))
    tensor([0.7864, 0.1036])
    """
    bump, count = SLOPES[shape], len(shifts)
    reach = REACHES[shape] / temperature + 1
    if count <= 2 * reach + 1:
        total = bump(z - shifts[0], temperature)
        for shift in shifts[1:]:
            total = total + bump(z - shift, temperature)
        return total
    # Far bumps are zero to the last digit, so of many only those near z are summed.
    nearest = (z - shifts[0]).round().clamp(0, count - 1)
    total = torch.zeros_like(z)
    for offset in range(-math.ceil(reach), math.ceil(reach) + 1):
        index = nearest + offset
        exists = (index >= 0) & (index < count)
        total = total + bump(z - shifts[0] - index, temperature) * exists
    return total


def stacked_staircase(
    z: Tensor,
    lowest: int,
    shifts: Sequence[float],
    *,
    shape: str = "sigmoid",
    temperature: float = 2.0,
) -> Tensor:
    """Smooth staircase whose slope is :func:`stacked_slope`: the quantiser without its steps."""
    step = STEPS[shape]
    total = step(z - shifts[0], temperature) + lowest
    for shift in shifts[1:]:
        total = total + step(z - shift, temperature)
    return total


def fires(distance: Tensor, strict: bool = False) -> Tensor:
    """1 where the distance to the threshold is reached (``strict``: exceeded), else 0."""
    return (distance > 0 if strict else distance >= 0).to(distance.dtype)


def firing_triangle(distance: Tensor, width: float = 1.0) -> Tensor:
    r"""Slope :math:`\max(0, w - |u - V|)/w^2` of the firing surrogate."""
    return (width - distance.abs()).clamp(min=0) / width**2


def penalty_window(distance: Tensor) -> Tensor:
    r"""Gradient penalty window :math:`\sigma(u - V)\,1[u \ge V]`."""
    return torch.sigmoid(distance) * (distance >= 0)


def windowed_triangle(distance: Tensor, width: float = 1.0) -> Tensor:
    """The firing triangle inside the gradient penalty window."""
    return firing_triangle(distance, width) * penalty_window(distance)


FIRING_SLOPES = {"triangle": firing_triangle, "window": windowed_triangle}


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(distance: Tensor, slope: str, width: float, strict: bool) -> Tensor:
        return fires(distance, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        distance, ctx.slope, ctx.width, _ = inputs
        ctx.save_for_backward(distance)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (distance,) = ctx.saved_tensors
        return grad * FIRING_SLOPES[ctx.slope](distance, ctx.width), None, None, None


def triangle_spike(distance: Tensor, width: float = 1.0, strict: bool = False) -> Tensor:
    """Spike of ``distance = u - V`` with the triangle as its gradient.

    >>> distance = torch.tensor([-0.5, 0.25], requires_grad=True)
    >>> spikes = triangle_spike(distance)
    >>> spikes.sum().backward()
    >>> spikes.detach(), distance.grad
    (tensor([0., 1.]), tensor([0.5000, 0.7500]))
    """
    return _Spike.apply(distance, "triangle", width, strict)


def penalty_window_spike(distance: Tensor, width: float = 1.0, strict: bool = False) -> Tensor:
    """Spike with the triangle inside the gradient penalty window as its gradient."""
    return _Spike.apply(distance, "window", width, strict)


def triangle_integral(distance: Tensor, width: float = 1.0) -> Tensor:
    """Integral of :func:`firing_triangle`."""
    return triangle_step(distance, 2 / width)


# Nodes and weights of 16-point Gauss-Legendre quadrature on [-1, 1]: the window's integral has no
# closed form, and this reaches float64 precision because the integrand is smooth on [0, width].
_NODES, _WEIGHTS = (
    (
        0.0950125098376374,
        0.2816035507792589,
        0.4580167776572274,
        0.6178762444026438,
        0.7554044083550030,
        0.8656312023878318,
        0.9445750230732326,
        0.9894009349916499,
    ),
    (
        0.1894506104550685,
        0.1826034150449236,
        0.1691565193950025,
        0.1495959888165767,
        0.1246289712555339,
        0.0951585116824928,
        0.0622535239386479,
        0.0271524594117541,
    ),
)


def penalty_window_integral(distance: Tensor, width: float = 1.0) -> Tensor:
    """Integral of the slope that :func:`penalty_window_spike` follows."""
    reach = distance.clamp(0, width)
    total = torch.zeros_like(distance)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        for sign in (-1, 1):
            at = reach / 2 * (1 + sign * node)
            total = total + weight * firing_triangle(at, width) * torch.sigmoid(at)
    return total * reach / 2
