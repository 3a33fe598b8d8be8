r"""The learnable threshold: its own gradient path, and bounds that it can leave again.

A spike depends on :math:`u - V`. The surrogate gives one gradient for that distance; the potential
takes it as it is, the threshold takes minus its sum, weighed by a window:

========== =====================================================
gradient   window at :math:`d = u - V`
========== =====================================================
gpw        :math:`\sigma(d)\,1[d \ge 0]`
shared     1
doubled    :math:`1 + \sigma(d)\,1[d \ge 0]`
========== =====================================================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .surrogate import penalty_window


def threshold_window(distance: Tensor, gradient: str) -> Tensor | float:
    """Window that weighs the threshold's share of the gradient."""
    if gradient == "shared":
        return 1.0
    window = penalty_window(distance)
    return window if gradient == "gpw" else window + 1


class _ThresholdDistance(torch.autograd.Function):
    @staticmethod
    def forward(potential: Tensor, threshold: Tensor, gradient: str) -> Tensor:
        return potential - threshold

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, threshold, gradient = inputs
        ctx.save_for_backward(output)
        ctx.threshold_shape = threshold.shape
        ctx.gradient = gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (distance,) = ctx.saved_tensors
        share = grad * threshold_window(distance, ctx.gradient)
        return grad, -share.sum_to_size(ctx.threshold_shape), None


def threshold_distance(potential: Tensor, threshold: Tensor, gradient: str = "gpw") -> Tensor:
    """``u - V`` whose gradient reaches the threshold through a window.

    >>> u, V = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> threshold_distance(u, V, "gpw").sum().backward()
    >>> u.grad, V.grad
    (tensor([1., 1.]), tensor(-0.6225))
    """
    return _ThresholdDistance.apply(potential, threshold, gradient)


class _BoundedThreshold(torch.autograd.Function):
    @staticmethod
    def forward(threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(threshold, low), high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        threshold, low, high = ctx.saved_tensors
        # A descent step moves against the gradient: outwards is what the bound stops.
        outwards = ((threshold <= low) & (grad > 0)) | ((threshold >= high) & (grad < 0))
        return grad.masked_fill(outwards, 0), None, None


def bounded_threshold(threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Threshold clamped to its bounds; on a bound the gradient passes only if it leads inside.

    >>> V = torch.tensor(3.0, requires_grad=True)
    >>> bounded = bounded_threshold(V, torch.tensor(0.5), torch.tensor(2.0))
    >>> (bounded * 1.0).backward()
    >>> bounded.item(), V.grad.item()
    (2.0, 1.0)
    """
    return _BoundedThreshold.apply(threshold, low, high)
