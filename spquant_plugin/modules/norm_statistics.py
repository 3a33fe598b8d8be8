r"""What a batch norm measures in training: of the own batch, or of those of all processes.

With :math:`n` values per channel in one process, :math:`N = \sum n` in all of them:

.. math::

    \mu = \frac{1}{N} \sum x, \qquad \sigma^2 = \frac{1}{N} \sum (x - \mu)^2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    """How many processes train together; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def channel_axis(norm: Any, input: Tensor) -> int:
    """Where the channels are, after the norm's own check: 1, or 2 where it is given all steps."""
    if getattr(norm, "step_mode", "s") == "s":
        norm._check_input_dim(input)
        return 1
    if input.ndim < 3:
        raise ValueError(
            f"expected x with shape [T, N, C, ...] in step mode 'm', but got "
            f"{tuple(input.shape)}. Add what is missing, or use mode 's'."
        )
    norm._check_input_dim(input.narrow(0, 0, 0).flatten(0, 1))  # of one step, without its data
    return 2


class _GlobalMoments(torch.autograd.Function):
    """The derivative by one value holds what every process makes of mean and variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        kept = [size if axis not in axes else 1 for axis, size in enumerate(x.shape)]
        sums = x.sum(axes).double()
        # Counts go along, since a last batch may be split unevenly. A tensor: nothing waits for it.
        totals = torch.cat([sums, sums.new_full((1,), x.numel() // sums.numel())])
        dist.all_reduce(totals)
        count = totals[-1]
        mean = totals[:-1] / count
        squares = (x - mean.to(x.dtype).view(kept)).square_().sum(axes).double()
        dist.all_reduce(squares)
        ctx.save_for_backward(x, mean, count)
        ctx.kept = kept
        ctx.mark_non_differentiable(count)
        return mean, squares / count, count

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor, to_count: Tensor) -> Any:
        x, mean, count = ctx.saved_tensors
        gradients = torch.stack([to_mean, 2 * to_variance])
        dist.all_reduce(gradients)
        constant, slope = (row.to(x.dtype).view(ctx.kept) for row in gradients / count)
        return (x - mean.to(x.dtype).view(ctx.kept)).mul_(slope).add_(constant), None


def global_moments(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance ``[C]`` over all axes but ``axis`` and all processes.

    The third is the number of values per channel. All are float64, the first two differentiable:
    every process must then go through the backward pass as well.
    """
    return _GlobalMoments.apply(x, [other for other in range(x.ndim) if other != axis])


@torch.no_grad()
def follow_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch; ``variance`` is the unbiased one."""
    if norm.running_mean is None:
        return
    share: Any = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # torch's word for the plain average
            share = norm.num_batches_tracked.double().reciprocal()
    for kept, new in ((norm.running_mean, mean), (norm.running_var, variance)):
        kept.copy_((1 - share) * kept.double() + share * new)
