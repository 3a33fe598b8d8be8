"""Surrogates in SpikingJelly's own form: pass one as ``surrogate_function``.

``spiking=True`` gives the step forward and the surrogate backward; ``spiking=False`` the smooth
function whose slope the surrogate is.
"""

from __future__ import annotations

from typing import ClassVar

from spikingjelly.activation_based import surrogate as host
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor

from ..functional import membrane as fm
from ..functional import surrogate as fs

__all__ = [
    "GradientPenaltyWindow",
    "StackedArctan",
    "StackedPiecewise",
    "StackedSigmoid",
    "StackedTriangle",
    "Triangle",
]


class Triangle(SurrogateFunctionBase):
    r"""Firing surrogate with slope :math:`\max(0, w - |x|)/w^2`.

    >>> import torch
    >>> Triangle(width=1.0)(torch.tensor([-0.1, 0.0, 0.1]))
    tensor([0., 1., 1.])
    """

    def __init__(self, width: float = 1.0, spiking: bool = True) -> None:
        super().__init__(spiking=spiking, width=float(width))

    @staticmethod
    def spiking_function(x: Tensor, width: float) -> Tensor:
        return fs.triangle_spike(x, width)

    @staticmethod
    def primitive_function(x: Tensor, width: float) -> Tensor:
        return fs.triangle_integral(x, width)


class GradientPenaltyWindow(SurrogateFunctionBase):
    r"""The window as a plain surrogate: slope :math:`\max(0, w - |x|)/w^2\,\sigma(x)\,1[x \ge 0]`.

    This is what the SpQuant-SNN paper calls "GPW for all".
    """

    def __init__(self, width: float = 1.0, spiking: bool = True) -> None:
        super().__init__(spiking=spiking, width=float(width))

    @staticmethod
    def spiking_function(x: Tensor, width: float) -> Tensor:
        return fs.penalty_window_spike(x, width)

    @staticmethod
    def primitive_function(x: Tensor, width: float) -> Tensor:
        return fs.penalty_window_integral(x, width)


class _Stacked(SurrogateFunctionBase):
    """A quantiser to whole levels with one bump per boundary as its gradient."""

    shape: ClassVar[str]

    def __init__(
        self,
        lowest: int = -1,
        highest: int = 1,
        temperature: float = 2.0,
        cut_points: tuple[float, ...] | None = None,
        spiking: bool = True,
    ) -> None:
        super().__init__(
            spiking=spiking,
            lowest=lowest,
            highest=highest,
            temperature=float(temperature),
            cut_points=cut_points,
        )

    @classmethod
    def spiking_function(
        cls,
        x: Tensor,
        lowest: int,
        highest: int,
        temperature: float,
        cut_points: tuple[float, ...] | None,
    ) -> Tensor:
        return fm.stacked_quantize(
            x, lowest, highest, cut_points, shape=cls.shape, temperature=temperature
        )

    @classmethod
    def primitive_function(
        cls,
        x: Tensor,
        lowest: int,
        highest: int,
        temperature: float,
        cut_points: tuple[float, ...] | None,
    ) -> Tensor:
        shifts = fm.shifts_of(lowest, highest)
        return fs.stacked_staircase(x, lowest, shifts, shape=cls.shape, temperature=temperature)


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


def fused_slope(function: object) -> tuple[str, float] | None:
    """How the fused recurrence calls this surrogate, or None where it does not know it."""
    kind = type(function)
    if not getattr(function, "spiking", False):
        return None
    if kind is Triangle or kind is GradientPenaltyWindow:
        return ("triangle" if kind is Triangle else "window"), function.width  # type: ignore[attr-defined]
    if kind is host.PiecewiseQuadratic:
        return "triangle", 1 / function.alpha  # type: ignore[attr-defined]
    name = {host.Sigmoid: "sigmoid", host.ATan: "arctan"}.get(kind)
    return None if name is None else (name, float(function.alpha))  # type: ignore[attr-defined]
