"""What a distillation loss was made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DistillationParts:
    r"""The parts of one loss, detached, before their weights :math:`\lambda`.

    ``total`` is the loss itself and ``ce`` the criterion, ``kl`` has its factor :math:`\tau^2`,
    ``membrane`` holds the difference of each layer's potentials by path and ``weights`` its factor
    in the sum. What has weight 0 is not computed: ``kl`` is 0, ``membrane`` empty. The logits
    ``[N, classes]`` are for accuracies.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    membrane: dict[str, Tensor]
    weights: dict[str, float]
    student_logits: Tensor
    teacher_logits: Tensor

    def __str__(self) -> str:
        rows = [("total", self.total), ("ce", self.ce), ("kl", self.kl), *self.membrane.items()]
        return ", ".join(f"{name} {float(value):.4g}" for name, value in rows)
