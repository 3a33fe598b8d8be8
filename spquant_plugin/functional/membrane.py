r"""The membrane: charge, reset and the quantiser that stores it.

.. math::

    u &= r + \lambda (m - r) + \kappa x \\
    v &= (1 - s) u + s r \;\text{(hard reset)}, \quad u - V s \;\text{(soft reset)} \\
    m &= r + \delta\, Q((v - r) / \delta)

``m`` is the stored membrane, ``x`` the input current, ``u`` the potential before firing, ``v`` the
one after the reset, ``r`` the rest potential, :math:`\delta` the membrane's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .surrogate import stacked_slope


def state_dtype(x: Tensor) -> torch.dtype:
    """Precision of a state: at least float32, whatever the input's.

    >>> state_dtype(torch.zeros(1, dtype=torch.float16))
    torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def nearest_level(z: Tensor, lowest: int, highest: int) -> Tensor:
    """Round to the nearest of the whole numbers ``lowest`` to ``highest``; a tie goes down.

    The comparison with ``floor + 1/2`` is exact, which ``ceil(z - 1/2)`` is not.

    >>> nearest_level(torch.tensor([-9.0, -0.5, 0.5, 0.6, 9.0]), -1, 1)
    tensor([-1., -1.,  0.,  1.,  1.])
    """
    base = z.clamp(lowest, highest).floor()
    return torch.where(z > base + 0.5, base + 1, base).clamp(lowest, highest)


def level_of(
    z: Tensor, lowest: int, highest: int, cut_points: Sequence[float] | None = None
) -> Tensor:
    """Level of ``z``: the number of boundaries below it, counted from ``lowest``.

    ``cut_points`` are the boundaries between neighbouring levels; None puts them half way. A value
    on a boundary takes the lower level.

    >>> level_of(torch.tensor([0.0, 0.5, 0.6]), -1, 1, cut_points=(0.0, 0.5))
    tensor([-1.,  0.,  1.])
    """
    if cut_points is None:
        return nearest_level(z, lowest, highest)
    level = torch.full_like(z, lowest)
    for cut in cut_points:
        level = level + (z > cut)
    return torch.where(z == z, level, z)  # NaN stays visible


def shifts_of(lowest: int, highest: int) -> tuple[float, ...]:
    """Midpoints of neighbouring levels, where the stacked surrogate has its bumps.

    >>> shifts_of(-1, 1)
    (-0.5, 0.5)
    """
    return tuple(level + 0.5 for level in range(lowest, highest))


class _StackedQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        z: Tensor,
        lowest: int,
        highest: int,
        cut_points: Sequence[float] | None,
        shape: str,
        temperature: float,
    ) -> Tensor:
        return level_of(z, lowest, highest, cut_points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, lowest, highest, _, shape, temperature = inputs
        ctx.save_for_backward(z)
        ctx.rule = shifts_of(lowest, highest), shape, temperature

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        shifts, shape, temperature = ctx.rule
        slope = stacked_slope(z, shifts, shape=shape, temperature=temperature)
        return grad * slope, None, None, None, None, None


def stacked_quantize(
    z: Tensor,
    lowest: int = -1,
    highest: int = 1,
    cut_points: Sequence[float] | None = None,
    *,
    shape: str = "sigmoid",
    temperature: float = 2.0,
) -> Tensor:
    """Quantise forward, follow the stacked surrogate backward.

    >>> z = torch.tensor([-2.0, 0.2, 0.9], requires_grad=True)
    >>> stacked_quantize(z).sum().backward()
    >>> z.grad
    tensor([0.1036, 0.7749, 0.5359])
    """
    return _StackedQuantize.apply(z, lowest, highest, cut_points, shape, temperature)


def quantize_membrane(
    potential: Tensor,
    unit: Tensor | float,
    rest: float = 0.0,
    *,
    lowest: int = -1,
    highest: int = 1,
    cut_points: Sequence[float] | None = None,
    shape: str = "sigmoid",
    temperature: float = 2.0,
) -> Tensor:
    r"""Stored membrane :math:`m = r + \delta Q((v - r)/\delta)` of the potential ``v``.

    >>> quantize_membrane(torch.tensor([-0.8, 0.2, 0.7]), unit=0.5)
    tensor([-0.5000,  0.0000,  0.5000])
    """
    offset = potential - rest if rest else potential
    level = stacked_quantize(
        offset / unit, lowest, highest, cut_points, shape=shape, temperature=temperature
    )
    return level * unit + rest if rest else level * unit


def charge(
    membrane: Tensor,
    current: Tensor,
    decay: Tensor | float,
    gain: Tensor | float = 1.0,
    rest: float = 0.0,
) -> Tensor:
    r"""Potential before firing, :math:`u = r + \lambda (m - r) + \kappa x`.

    >>> charge(torch.tensor(1.0), torch.tensor(0.3), decay=0.5)
    tensor(0.8000)
    """
    if rest:
        return (membrane - rest) * decay + rest + current * gain
    return membrane * decay + current * gain


def hard_reset(potential: Tensor, spikes: Tensor, rest: float = 0.0) -> Tensor:
    """What fired goes to rest: ``(1 - s) u + s r``."""
    held = (1 - spikes) * potential
    return held + spikes * rest if rest else held


def soft_reset(potential: Tensor, spikes: Tensor, threshold: Tensor | float) -> Tensor:
    """What fired loses one threshold: ``u - V s``."""
    return potential - spikes * threshold


def self_firing_level(
    threshold: float,
    unit: float,
    rest: float,
    lowest: int,
    highest: int,
    cut_points: Sequence[float] | None = None,
) -> int:
    """Highest level that a silent neuron can store: that of the threshold itself.

    >>> self_firing_level(threshold=1.0, unit=1.0, rest=0.0, lowest=-1, highest=1)
    1
    """
    z = torch.tensor((threshold - rest) / unit, dtype=torch.float64)
    return int(level_of(z, lowest, highest, cut_points))


def default_unit(threshold: float, rest: float, decay: float, factor: float = 1.0) -> float:
    r"""Unit that keeps a silent neuron silent: :math:`(V - r) \cdot 0.75 / \max(\lambda, 0.75)`.

    >>> default_unit(threshold=1.0, rest=0.0, decay=0.5)
    1.0
    """
    return (threshold - rest) * 0.75 / max(decay, 0.75) * factor
