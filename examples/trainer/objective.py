"""What a stage learns from: its loss on the labels, or on the labels and a teacher."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

import spquant_plugin as spq

from .recipe import Loss


class Objective(Protocol):
    """Loss of a batch, and its outputs ``[B, classes]`` averaged over time."""

    def __call__(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...


class FromLabels:
    """The recipe's loss."""

    def __init__(self, run: nn.Module, loss_of: Loss) -> None:
        self.run, self.loss_of = run, loss_of

    def __call__(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.run(frames)
        return self.loss_of(outputs, labels), outputs.detach().mean(0)


class FromTeacher:
    """MD-SNN's loss: cross entropy, the teacher's outputs and its membrane potentials."""

    def __init__(self, run: nn.Module, teacher: nn.Module) -> None:
        self.loss_of = spq.distill.DistillationLoss(teacher, run)

    def __call__(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.loss_of(frames, labels)
        return loss, self.loss_of.last.student_logits
