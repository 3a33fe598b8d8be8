r"""Gates: which pixels of a neuron layer, and which output channels of a layer, take part.

A spatial gate ranks the pixels of one step by their importance, and masks the lowest:

.. math::

    I_p = \sum_c Q(u)_{c,p}^2, \qquad \text{masked: the } \lfloor p\,H\,W \rfloor
    \text{ pixels of least } I_p

A channel gate scores each output channel by whole numbers summed over space, multiplied, and only
then scaled:

.. math::

    g = \alpha\,\Bigl(W_{int} \sum_{HW} m / \delta\Bigr) / HW + b, \qquad
    \text{open: } 1[\sigma(g) \ge \theta]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_count(sparsity: float, pixels: int) -> int:
    """How many pixels a spatial gate masks: the share, rounded down.

    >>> masked_count(0.35, 9)
    3
    """
    return math.floor(sparsity * pixels)


@torch.no_grad()
def kept_pixels(levels: Tensor, sparsity: float) -> Tensor:
    """Pixels that a spatial gate keeps: ``[N, C, *space]`` to a Boolean ``[N, 1, *space]``.

    Squares rank as their root, the norm, does; sums of whole numbers are exact in any order. Of
    equally important pixels those of lowest index are masked first.

    >>> levels = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    >>> kept_pixels(levels, sparsity=0.5)
    tensor([[[[ True, False],
              [False,  True]]]])
    """
    return kept_but(levels, masked_count(sparsity, levels.shape[2:].numel()))


@torch.no_grad()
def kept_but(levels: Tensor, count: int) -> Tensor:
    """:func:`kept_pixels` by the number of pixels that are masked."""
    importance = levels.square().sum(1).flatten(1)
    lowest = importance.argsort(dim=1, stable=True)[:, :count]
    kept = torch.ones_like(importance, dtype=torch.bool).scatter(1, lowest, False)
    return kept.view(levels.shape[0], 1, *levels.shape[2:])


def channel_logits(
    sums: Tensor, area: int, weight_levels: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Score of each output channel before the sigmoid: ``[..., C_in]`` to ``[..., C_out]``.

    ``sums`` are whole numbers summed over ``area`` pixels. In float64 their product with the levels
    of the weight is exact, whatever the number of pixels and channels, so that every order of
    summation (a step or a sequence, one sample or many) gives the same decision.

    >>> sums, levels = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    >>> channel_logits(sums, 4, levels, torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    tensor([[0.1250, 0.5000]])
    """
    return scaled_logits(F.linear(sums.double(), weight_levels.double()), area, scale, bias)


def scaled_logits(accumulated: Tensor, area: int, scale: Tensor, bias: Tensor) -> Tensor:
    """Scores of weighted sums, which are whole numbers in float64."""
    # Half precision cannot hold the sum of many levels.
    precise = torch.promote_types(scale.dtype, torch.float32)
    return (accumulated.to(precise) / area) * scale + bias


class _HardGate(torch.autograd.Function):
    """1 where a score reaches the threshold. The gradient goes straight through to the score."""

    @staticmethod
    def forward(score: Tensor, reached: Tensor) -> Tensor:
        return reached.to(score.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return grad, None


def logit(share: float) -> float:
    """The sigmoid's argument at a value of it.

    >>> logit(0.5)
    0.0
    """
    return math.log(share / (1 - share))


def open_channels(logits: Tensor, threshold: float = 0.47, score: str = "sigmoid") -> Tensor:
    """Mask ``[..., C]`` of the open channels, hard forward, with the score's slope backward.

    >>> logits = torch.tensor([-1.0, 0.0], requires_grad=True)
    >>> mask = open_channels(logits)
    >>> mask.sum().backward()
    >>> mask.detach(), logits.grad
    (tensor([0., 1.]), tensor([0.1966, 0.2500]))
    """
    if score == "sigmoid":
        # Compared before the sigmoid, whose last bit depends on where in a tensor a value stands.
        return _HardGate.apply(logits.sigmoid(), logits >= logit(threshold))
    scores = logits.softmax(-1)
    return _HardGate.apply(scores, scores >= threshold)
