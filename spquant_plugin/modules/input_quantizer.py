"""The input quantiser: what the first layer owns when its input is analogue."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import UniformInput
from ..functional.inputs import input_scale, quantize_input


class InputQuantizer(nn.Module):
    """Whole numbers and the size of their step, so that the layer can convolve integers.

    >>> import torch
    >>> levels, scale = InputQuantizer(UniformInput(bits=8))(torch.tensor([0.25]))
    >>> levels, round(scale, 6)
    (tensor([64.]), 0.003922)
    """

    def __init__(self, rule: UniformInput) -> None:
        super().__init__()
        self.rule = rule
        self.scale = input_scale(rule.bits, rule.low, rule.high)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return quantize_input(x, self.rule.bits, self.rule.low, self.rule.high), self.scale

    def extra_repr(self) -> str:
        return repr(self.rule)
