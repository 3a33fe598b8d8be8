"""How good a network is on a split."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import spquant_plugin as spq

from .meter import Meter
from .processes import Processes
from .recipe import Loss
from .running import Sequence
from .tasks import placed


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Loss,
    processes: Processes,
    limit: int | None = None,
) -> dict[str, Any]:
    """``loss``, ``accuracy`` and, where it has channel gates, their ``closed`` share.

    Every process takes its own part, and all get the result for the whole. In full precision,
    whatever the training's is. The network's mode is restored.
    """
    meter, closed = Meter(processes.device), torch.zeros(2, dtype=torch.float64)
    run, training = Sequence(net), net.training
    run.eval()
    for frames, labels in islice(batches, limit):
        frames, labels = placed(frames, processes.device), labels.to(processes.device)
        outputs = run(frames)
        meter.add(loss_of(outputs, labels), outputs.mean(0), labels)
        shares = list(spq.gate_stats(net).values())
        if shares:
            closed += torch.tensor([sum(shares) / len(shares), 1.0]) * len(labels)
    spq.reset(net)
    net.train(training)
    found: dict[str, Any] = meter.read(processes)
    total, count = processes.total(closed.to(processes.device)).tolist()
    found["closed"] = total / count if count else None
    return found


def has_gates(net: nn.Module) -> bool:
    """Whether any channel can close."""
    return any(isinstance(module, spq.modules.ChannelGate) for module in net.modules())
