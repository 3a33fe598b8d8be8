"""The paper's recipe: the TET loss, Adam, a cosine to zero; and what can be put in their place."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TARGET = 1.0  # the neurons' threshold, at which TET's regulariser holds the outputs
Loss = Callable[[Tensor, Tensor], Tensor]


def tet_loss(outputs: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    r"""Temporal efficient training: every step's output ``[T, B, classes]`` has to answer.

    .. math:: (1-\\beta)\\,\\mathrm{mean}_t\\,\\mathrm{CE}(o_t, y)
              + \\beta\\,\\mathrm{mean}_t\\,\\mathrm{MSE}(o_t, V_\\mathrm{target})

    As its authors do, the second term holds the outputs of all classes at the threshold, 1.

    >>> outputs = torch.tensor([[[2.0, 0.0]]])
    >>> round(tet_loss(outputs, torch.tensor([0]), beta=0.5).item(), 4)  # (log(1 + e^-2) + 1) / 2
    0.5635
    """
    repeated = labels.repeat(len(outputs))
    answers = F.cross_entropy(outputs.flatten(0, 1), repeated, label_smoothing=smoothing)
    held = F.mse_loss(outputs, torch.full_like(outputs, TARGET))
    return (1 - beta) * answers + beta * held


def mean_loss(outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the output averaged over time."""
    return F.cross_entropy(outputs.mean(0), labels, label_smoothing=smoothing)


def loss_of(options: argparse.Namespace) -> Loss:
    if options.loss == "mean":
        return partial(mean_loss, smoothing=options.label_smoothing)
    return partial(tet_loss, beta=options.tet_beta, smoothing=options.label_smoothing)


def optimizer_of(options: argparse.Namespace, net: nn.Module) -> torch.optim.Optimizer:
    """Weight decay pulls weights, and leaves biases, norms, thresholds and scales alone."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=options.lr)


def rate_at(step: int, total: int, warmup: int) -> float:
    """Share of the learning rate in step ``step`` of ``total``, counted from 0.

    >>> [round(rate_at(step, total=6, warmup=2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
