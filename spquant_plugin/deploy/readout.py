"""From whole numbers to the model's real ones: the same float operations in the same order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Step = tuple[Any, ...]


def apply_steps(x: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """Float arithmetic per channel of ``x [N, C, *space]``, as the model's layers do it."""
    behind = [1] * (x.ndim - 2)
    for kind, *values in steps:
        if kind == "multiply":
            x = x * _shaped(values[0], behind)
        elif kind == "add":
            x = x + _shaped(values[0], behind)
        else:
            mean, variance, weight, bias, epsilon = values
            x = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)
    return x


def _shaped(values: Tensor, behind: list[int]) -> Tensor:
    return values if values.ndim == 0 else values.view(-1, *behind)


def real(whole: Tensor, unit: Tensor, steps: tuple[Step, ...], dtype: torch.dtype) -> Tensor:
    """Real numbers of whole ones ``[N, C, *space]``."""
    scaled = whole.to(dtype) * _shaped(unit.to(dtype), [1] * (whole.ndim - 2))
    return apply_steps(scaled, steps)
