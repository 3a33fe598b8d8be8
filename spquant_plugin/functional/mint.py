r"""MINT: weights and membrane as whole numbers of one learned unit, so that no step multiplies.

.. math::

    \Delta &= \beta / Q, \qquad Q = 2^{b-1} - 1 \\
    k &= \mathrm{round}(Q \,\mathrm{clip}(\tanh(W) / \beta, -1, 1)), \qquad
    a = \mathrm{round}(x / \Delta) \\
    u &= m + a, \qquad s = 1[\Delta u \ge V], \qquad
    m \leftarrow \mathrm{clip}(\lfloor u (1 - s) / 2 \rfloor, -Q, Q)

The layer's sums are whole numbers of :math:`\Delta`, so ``a`` is the sum itself. Rounding is
straight through, and so is clipping inside its bounds, which belong to the inside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# No scale is smaller: dividing by it must not overflow.
SMALLEST = 2.0**-40


def top_level(bits: int) -> int:
    """The largest level: half of the numbers of ``bits`` bits, without the lowest.

    >>> top_level(4)
    7
    """
    return 2 ** (bits - 1) - 1


def initial_scale(weight: Tensor, bits: int) -> Tensor:
    r"""Where the scale starts, :math:`2\,\mathrm{mean}|W| / \sqrt{Q}`; 1 for a weight of zeros.

    >>> initial_scale(torch.tensor([0.5, -1.5]), bits=2)
    tensor(2.)
    """
    scale = 2 * weight.detach().abs().mean() / top_level(bits) ** 0.5
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def fitted_scale(weight: Tensor, bits: int) -> Tensor:
    r"""The one of 32 shares of the largest weight under which the levels have the least error.

    >>> fitted_scale(torch.tensor([0.1, -0.1, 0.1]), bits=2)
    tensor(0.0997)
    """
    weight = weight.detach()
    best, least = initial_scale(weight, bits), torch.full_like(weight.sum(), math.inf)
    for share in range(1, 33):
        scale = weight.abs().amax().tanh() * share / 32
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        found = weight_levels(weight, scale, bits) * scale / top_level(bits)
        error = (found - weight).square().sum()
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


class _ScaleInUse(torch.autograd.Function):
    @staticmethod
    def forward(scale: Tensor, divisor: float) -> Tensor:
        size = scale.abs()
        return torch.where(size < SMALLEST, SMALLEST, size)  # NaN stays visible

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.divisor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        grad = grad / ctx.divisor
        return torch.where(scale < 0, -grad, grad), None


def scale_in_use(scale: Tensor, count: int, bits: int) -> Tensor:
    r"""The positive scale that forward computes with, :math:`|\beta|`.

    Backward its gradient is divided by :math:`\sqrt{\mathrm{count}\, Q}`: as a sum over ``count``
    values it would be that much larger than theirs. The sign means nothing, so a step of the
    optimizer that leaves the positive numbers does no harm.

    >>> beta = torch.tensor(-0.5, requires_grad=True)
    >>> scale_in_use(beta, count=16, bits=2).backward()
    >>> beta.grad
    tensor(-0.2500)
    """
    return _ScaleInUse.apply(scale, (count * top_level(bits)) ** 0.5)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, how: str) -> Tensor:
        return value.round() if how == "round" else value.floor()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


def round_through(value: Tensor) -> Tensor:
    """The nearest whole number, a tie to the even one; backward the identity.

    >>> round_through(torch.tensor([0.5, 1.5, -0.6]))
    tensor([ 0.,  2., -1.])
    """
    return _Through.apply(value, "round")


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, bound: float) -> Tensor:
        return value.clamp(-bound, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        return torch.where(value.abs() <= ctx.bound, grad, 0.0), None


def clip(value: Tensor, bound: float) -> Tensor:
    """Clip to ``-bound`` and ``bound``; the gradient passes inside and on the bounds.

    An explicit function, because the gradient of ``clamp`` is 0 at its bound.

    >>> x = torch.tensor([1.0, 1.5], requires_grad=True)
    >>> clip(x, 1.0).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    return _Clip.apply(value, bound)


def weight_levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    r"""Levels :math:`\mathrm{round}(Q\,\mathrm{clip}(\tanh(W)/\beta, -1, 1))` for a scale in use.

    >>> weight_levels(torch.tensor([0.1, -0.3, 2.0]), torch.tensor(0.5), bits=4)
    tensor([ 1., -4.,  7.])
    """
    return round_through(clip(weight.tanh() / scale, 1.0) * top_level(bits))


def charge(membrane: Tensor, current: Tensor, unit: Tensor) -> Tensor:
    """The potential in units, ``m + a``, of a stored membrane and a current.

    >>> charge(torch.tensor(0.75), torch.tensor([0.5, -1.1]), torch.tensor(0.25))
    tensor([ 5., -1.])
    """
    return round_through(membrane / unit) + round_through(current / unit)


def leak_and_store(levels: Tensor, spikes: Tensor, bits: int) -> Tensor:
    """What is stored of a potential in units: reset, halved by a shift to the right, clipped.

    >>> leak_and_store(torch.tensor([-3.0, 3.0, 9.0, 40.0]), torch.tensor([0.0, 0, 1, 0]), bits=4)
    tensor([-2., 1., 0., 7.])
    """
    halved = _Through.apply((1 - spikes) * levels / 2, "floor")
    return clip(halved, float(top_level(bits)))
