"""Sums of losses and right answers, on the device: reading one would wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from .processes import Processes


class Meter:
    """Mean loss and accuracy of the recordings that it has seen, over all processes."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, answers: Tensor, labels: Tensor) -> None:
        """A batch: its mean loss, outputs ``[B, classes]`` averaged over time, and labels."""
        right = (answers.argmax(1) == labels).sum()
        count = torch.full_like(self.sums[0], len(labels))
        self.sums += torch.stack([loss.detach().double() * count, right.double(), count])

    def read(self, processes: Processes) -> dict[str, float]:
        """``loss`` and ``accuracy``; all processes call it together."""
        loss, right, count = processes.total(self.sums).tolist()
        return {"loss": loss / count, "accuracy": right / count}

    def clear(self) -> None:
        self.sums.zero_()
