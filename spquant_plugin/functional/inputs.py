r"""An analogue input on an integer grid: :math:`x \approx s\,k` with whole ``k``.

The grid holds zero exactly, because a padded convolution adds zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .weights import straight_through


def input_scale(bits: int, low: float, high: float) -> float:
    """Size of one step of the grid.

    >>> input_scale(2, 0.0, 3.0)
    1.0
    """
    return (high - low) / (2**bits - 1)


def input_range(bits: int, low: float, high: float) -> tuple[int, int]:
    """Lowest and highest whole number of the grid.

    >>> input_range(8, 0.0, 1.0), input_range(8, -1.0, 1.0)
    ((0, 255), (-128, 127))
    """
    lowest = round(low / input_scale(bits, low, high))
    return lowest, lowest + 2**bits - 1


def quantize_input(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Whole numbers ``k`` with ``x`` near ``input_scale * k``; straight-through inside the range.

    >>> quantize_input(torch.tensor([0.0, 0.5, 2.0]), bits=8, low=0.0, high=1.0)
    tensor([  0., 128., 255.])
    """
    scale = input_scale(bits, low, high)
    lowest, highest = input_range(bits, low, high)
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    # Multiplied, not divided: the steps per unit are whole for images in 0 to 1, their size is not.
    steps = wide * ((2**bits - 1) / (high - low))
    level = steps.round().clamp(lowest, highest).to(x.dtype)
    inside = (steps >= lowest - 0.5) & (steps <= highest + 0.5)
    return straight_through(x, level, x.new_full((), scale), inside)
