"""Surrogates in snnTorch's own form: pass a factory's result as ``spike_grad``.

The host's factories return closures, which do not pickle; these return modules, which do.
A neuron fires above its threshold, not on it, as everywhere in snnTorch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from snntorch import surrogate as host
from torch import Tensor, nn

from ..functional import membrane as fm
from ..functional import surrogate as fs

__all__ = [
    "ATan",
    "GradientPenaltyWindow",
    "StackedArctan",
    "StackedPiecewise",
    "StackedSigmoid",
    "StackedTriangle",
    "Triangle",
    "gradient_penalty_window",
    "stacked_arctan",
    "stacked_piecewise",
    "stacked_sigmoid",
    "stacked_triangle",
    "triangle",
]


class Triangle(nn.Module):
    r"""Firing surrogate with slope :math:`\max(0, w - |x|)/w^2`.

    >>> import torch
    >>> Triangle()(torch.tensor([-0.1, 0.0, 0.1]))
    tensor([0., 0., 1.])
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = float(width)

    def forward(self, x: Tensor) -> Tensor:
        return fs.triangle_spike(x, self.width, strict=True)

    def extra_repr(self) -> str:
        return f"width={self.width}"


class GradientPenaltyWindow(Triangle):
    r"""The window as a plain surrogate.

    Its slope is :math:`\max(0, w - |x|)/w^2\,\sigma(x)\,1[x \ge 0]`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return fs.penalty_window_spike(x, self.width, strict=True)


class ATan(nn.Module):
    """``snntorch.surrogate.atan(alpha)`` as a module; the host's own closure does not pickle."""

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        return host.ATan.apply(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class _Stacked(nn.Module):
    """A quantiser to whole levels with one bump per boundary as its gradient."""

    shape: ClassVar[str]

    def __init__(
        self,
        lowest: int = -1,
        highest: int = 1,
        temperature: float = 2.0,
        cut_points: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.lowest = lowest
        self.highest = highest
        self.temperature = float(temperature)
        self.cut_points = cut_points

    def forward(self, x: Tensor) -> Tensor:
        return fm.stacked_quantize(
            x,
            self.lowest,
            self.highest,
            self.cut_points,
            shape=self.shape,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"lowest={self.lowest}, highest={self.highest}, temperature={self.temperature}"


class StackedSigmoid(_Stacked):
    """Quantiser to the levels ``lowest`` to ``highest``, sigmoid bumps.

    >>> import torch
    >>> StackedSigmoid()(torch.tensor([-0.8, 0.2, 0.7]))
    tensor([-1.,  0.,  1.])
    """

    shape = "sigmoid"


class StackedArctan(_Stacked):
    """Quantiser to the levels ``lowest`` to ``highest``, arc tangent bumps."""

    shape = "arctan"


class StackedTriangle(_Stacked):
    """Quantiser to the levels ``lowest`` to ``highest``, triangular bumps."""

    shape = "triangle"


class StackedPiecewise(_Stacked):
    """Quantiser to the levels ``lowest`` to ``highest``, rectangular bumps."""

    shape = "piecewise"


def triangle(width: float = 1.0) -> Triangle:
    """Firing surrogate with a triangular slope."""
    return Triangle(width)


def gradient_penalty_window(width: float = 1.0) -> GradientPenaltyWindow:
    """The gradient penalty window as a plain firing surrogate."""
    return GradientPenaltyWindow(width)


def stacked_sigmoid(lowest: int = -1, highest: int = 1, temperature: float = 2.0) -> StackedSigmoid:
    """Quantiser with sigmoid bumps, which also serves as ``state_quant`` of a host neuron."""
    return StackedSigmoid(lowest, highest, temperature)


def stacked_arctan(lowest: int = -1, highest: int = 1, temperature: float = 2.0) -> StackedArctan:
    """Quantiser with arc tangent bumps."""
    return StackedArctan(lowest, highest, temperature)


def stacked_triangle(
    lowest: int = -1, highest: int = 1, temperature: float = 2.0
) -> StackedTriangle:
    """Quantiser with triangular bumps."""
    return StackedTriangle(lowest, highest, temperature)


def stacked_piecewise(
    lowest: int = -1, highest: int = 1, temperature: float = 2.0
) -> StackedPiecewise:
    """Quantiser with rectangular bumps."""
    return StackedPiecewise(lowest, highest, temperature)


# The host's closures do not say what they are, but their names do.
_CLOSURES = {
    "atan.<locals>.inner": "arctan",
    "fast_sigmoid.<locals>.inner": "fast_sigmoid",
    "sigmoid.<locals>.inner": "sigmoid",
}


def fused_slope(function: Any) -> tuple[str, float] | None:
    """How the fused recurrence calls this surrogate, or None where it does not know it.

    >>> import snntorch
    >>> fused_slope(Triangle(0.5)), fused_slope(snntorch.surrogate.atan(alpha=3.0))
    (('triangle', 0.5), ('arctan', 3.0))
    >>> fused_slope(snntorch.surrogate.heaviside())
    """
    kind = type(function)
    if kind is Triangle or kind is GradientPenaltyWindow:
        name, sharpness = "triangle" if kind is Triangle else "window", function.width
    elif kind is ATan:
        name, sharpness = "arctan", function.alpha
    elif getattr(function, "__module__", None) == "snntorch.surrogate":
        name = _CLOSURES.get(getattr(function, "__qualname__", ""), "")
        cells = list(getattr(function, "__closure__", None) or ())
        sharpness = cells[0].cell_contents if len(cells) == 1 else None
    else:
        return None
    usable = type(sharpness) in (int, float) and math.isfinite(sharpness) and sharpness > 0
    return (name, float(sharpness)) if name and usable else None
