r"""A normalisation by dyadic numbers: whole multipliers and offsets over one power of two.

Batch norm of :math:`y = \alpha x + b` is :math:`A' x + B'` with :math:`A = \gamma / \sqrt{\sigma^2
+ \epsilon}`, :math:`A' = A\alpha` and :math:`B' = \beta - A(\mu - b)`. Here

.. math::

   A'_c \approx m_c\, 2^{-k}, \qquad B'_c \approx n_c\, 2^{-k}

with ``m`` of ``bits`` bits, or a power of two that fits into them, and one ``k`` for the layer.
Both roundings pass the gradient as it is. Folded into a layer before its weight is quantised,
``A`` goes into the weight and ``B'`` is the bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Beyond this an offset leaves 64 bits, and factors are so small that nothing depends on them.
LARGEST_SHIFT = 40


class Factors(NamedTuple):
    """Whole ``multiplier`` and ``offset`` ``[C]`` and ``step``, 2**-k; float64, differentiable."""

    multiplier: Tensor
    offset: Tensor
    step: Tensor


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _NearestPower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size = x.abs()
        mantissa, _ = torch.frexp(size)
        above = size / torch.where(size > 0, mantissa, 1.0)  # exact: the next larger power of two
        power = torch.where(mantissa > 0.75, above, above / 2)
        power = torch.where(size < 1, (size > 0.5).to(x.dtype), power)
        return torch.where(x < 0, -power, power)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Moments(torch.autograd.Function):
    """By hand: torch's own are slow over such axes, or keep a second copy of their input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square_().mean(axes)
        ctx.save_for_backward(x, mean)
        ctx.count = x.numel() // mean.numel()
        return mean.reshape(-1), variance

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor) -> Any:
        x, mean = ctx.saved_tensors
        slope = 2 * to_variance.view_as(mean) / ctx.count
        constant = to_mean.view_as(mean) / ctx.count - slope * mean
        return x * slope + constant, None


def moments(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance ``[C]`` over all axes but ``axis``.

    >>> moments(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1)
    (tensor([2., 0.]), tensor([1., 0.]))
    """
    return _Moments.apply(x, [other for other in range(x.ndim) if other != axis])


def dyadic_factors(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    *,
    bits: int,
    powers: bool = False,
    scale: Tensor | float = 1.0,
    layer_bias: Tensor | float = 0.0,
) -> Factors:
    """Whole factors of a batch norm of ``scale * x + layer_bias``, applied to ``x``.

    ``weight``, ``bias``, ``mean`` and ``variance`` are the norm's own, ``[C]``; ``scale`` is above
    0. Computed in float64, so that the same integers come out on every device.

    ``k`` is the largest for which every ``|m|`` is at most ``2**(bits - 1) - 1``, and at most 40. A
    channel whose variance does not reach ``eps`` has no say in that: it hardly varies, so its large
    factor would cost all others their bits for nothing. It gets the largest multiplier that there
    is, and the offset for that one.

    With ``powers`` each multiplier is 0 or plus or minus a power of two, up to ``2**(bits - 2)``:
    the nearest one, of two as near the smaller.

    >>> one, zero = torch.ones(2), torch.zeros(2)
    >>> m, n, step = dyadic_factors(torch.tensor([1.0, -0.25]), one, zero, one, 0.0, bits=8)
    >>> m.tolist(), n.tolist(), step.item()
    ([64.0, -16.0], [64.0, 64.0], 0.015625)
    >>> weight = torch.tensor([1.0, -0.7])
    >>> dyadic_factors(weight, one, zero, one, 0.0, bits=8, powers=True).multiplier.tolist()
    [64.0, -32.0]
    """
    weight, bias, mean, variance = (t.double() for t in (weight, bias, mean, variance))
    scale, layer_bias = _double(scale), _double(layer_bias)
    slope = weight / (variance + eps).sqrt()
    grid = _grid((slope * scale).detach().abs(), variance.detach() > eps, bits, powers)
    size = (slope * scale).detach().abs() * grid
    top = 2 ** (bits - 2) if powers else 2 ** (bits - 1) - 1
    fits = size <= 1.5 * top if powers else size < top + 0.5  # rounds to the top at most
    slope = slope * torch.where(fits, 1.0, top / size)
    intercept = bias - slope * (mean - layer_bias)
    nearest = _NearestPower if powers else _Rounded
    return Factors(
        nearest.apply(slope * scale * grid), _Rounded.apply(intercept * grid), grid.reciprocal()
    )


def folded_factors(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    *,
    layer_bias: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``A`` and ``B'`` ``[C]`` of a batch norm of ``conv(x, W) + layer_bias``, in float64.

    ``conv(x, A W) + B'`` is the norm's output. A channel whose variance does not reach ``eps`` has
    the largest factor of the others at most: it hardly varies, and where all channels share one
    scale, its large factor would cost the others their levels.

    >>> one = torch.ones(2)
    >>> folded_factors(one, one, torch.tensor([1.0, 0.0]), 4 * one, 0.0)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([0.5000, 1.0000], dtype=torch.float64))
    """
    weight, bias, mean, variance = (t.double() for t in (weight, bias, mean, variance))
    slope = weight / (variance + eps).sqrt()
    size, alive = slope.detach().abs(), variance.detach() > eps
    peak = torch.where(alive, size, 0.0).max()
    limited = alive.any() & (size > peak)
    slope = slope * torch.where(limited, peak / size, 1.0)
    return slope, bias - slope * (mean - _double(layer_bias))


def _double(value: Tensor | float) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _grid(size: Tensor, counts: Tensor, bits: int, powers: bool) -> Tensor:
    """``2**k``; exact, as a quotient of a number and its mantissa is."""
    counts = counts | ~counts.any()
    peak = torch.where(counts, size, 0.0).max()
    mantissa, _ = torch.frexp(peak)
    below = torch.where(peak > 0, mantissa / peak, 1.0)  # the power of two next above 1 / (2 peak)
    fits = mantissa <= 0.75 if powers else mantissa < 1 - 2.0**-bits
    return (below * torch.where(fits, 2.0 ** (bits - 1), 2.0 ** (bits - 2))).clamp(
        max=2.0**LARGEST_SHIFT
    )
