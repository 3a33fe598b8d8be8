"""The equations of the loss: pure functions of logits and potentials."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soften(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r""":math:`\tau^2\,\mathrm{KL}(\mathrm{softmax}(z_T/\tau)\,\|\,\mathrm{softmax}(z_S/\tau))`.

    Logits ``[N, K]``; the mean over the batch.

    >>> z = torch.tensor([[1.0, 0.0]])
    >>> float(soften(z, z, 4.0)), bool(soften(z, -z, 4.0) > 0)
    (0.0, True)
    """
    told = F.log_softmax(student / temperature, 1)
    wanted = F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(told, wanted, reduction="batchmean", log_target=True)


def depth_weights(count: int) -> list[float]:
    """:math:`2^{-(n-1-i)}`: the last layer counts in full, each one before it half as much.

    >>> depth_weights(3)
    [0.25, 0.5, 1.0]
    """
    return [2.0 ** (index + 1 - count) for index in range(count)]


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of potentials ``[T, N, ...]``, of their time averages if T differs.

    >>> float(squared_difference(torch.ones(4, 1, 2), torch.zeros(8, 1, 2)))
    1.0
    """
    if len(student) != len(teacher):
        student, teacher = student.mean(0), teacher.mean(0)
    return (student - teacher).square().mean()


def distribution_difference(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean over channels of :math:`(\mu_S - \mu_T)^2 + (\sigma_S - \sigma_T)^2`.

    Means and standard deviations of potentials ``[T, N, C, ...]`` over time, batch and space.

    >>> u = torch.tensor([1.0, 3.0]).view(1, 2, 1)
    >>> float(distribution_difference(u, torch.zeros(3, 5, 1)))  # mean 2, deviation 1
    5.0
    """
    means, deviations = zip(_moments(student), _moments(teacher), strict=True)
    difference = (means[0] - means[1]).square() + (deviations[0] - deviations[1]).square()
    return difference.mean()


def _moments(potentials: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(potentials.ndim) if axis != 2]
    variance, mean = torch.var_mean(potentials, axes, correction=0)
    # A root at 0 has no slope: the gradient of a channel that never changes is 0, not NaN.
    changes = variance > 0
    return mean, variance.where(changes, 1.0).sqrt().where(changes, 0.0)
