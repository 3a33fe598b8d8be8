r"""Weights that change with the time step (TaWQ): a ternary neuron driven by the weight.

The normalised weight :math:`I` is the constant input of a neuron that starts from 0, and what the
neuron fires in step :math:`t` is the weight in that step:

.. math::

    C \leftarrow C + (I - C)/2, \quad
    q_t = \mathrm{sign}(C)\,\min(L, \lceil |C| / \theta \rceil - 1), \quad
    C \leftarrow 0 \text{ where } q_t \ne 0

with :math:`\theta = 1/4` and :math:`L = 2^{b-1} - 1`. Because the input is constant, a weight
follows one of few fixed *patterns*, and ``|I|`` alone says which: so there is no loop over time,
the comparison is exact, and one small code per weight stores all its steps.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

THETA = Fraction(1, 4)  # a step fires beyond this potential
SLOPE = 4.0  # of the sigmoids that stand in for the jumps in the backward pass
SCALE_EPSILON = 1e-6


class Patterns(NamedTuple):
    """What a weight of magnitude ``|I|`` does in each step.

    Pattern ``p`` holds for ``breaks[p - 1] < |I| <= breaks[p]``. ``levels[p][t]`` is what it fires,
    and ``gains[p][t]`` is the factor by which the potential before firing follows from I.
    """

    breaks: tuple[Fraction, ...]
    levels: tuple[tuple[int, ...], ...]
    gains: tuple[tuple[Fraction, ...], ...]


@cache
def temporal_patterns(timesteps: int, bits: int = 2) -> Patterns:
    """Every pattern of ``timesteps`` steps, by ascending magnitude, in exact arithmetic.

    >>> found = temporal_patterns(4)
    >>> [str(limit) for limit in found.breaks]
    ['4/15', '2/7', '1/3', '1/2']
    >>> found.levels
    ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1))
    """
    top = 2 ** (bits - 1) - 1
    # Since the last firing the potential grew to (1 - 2^-k) I; only there can a level change.
    grown = [1 - Fraction(1, 2**k) for k in range(1, timesteps + 1)]
    limits = sorted({level * THETA / gain for level in range(1, top + 1) for gain in grown})
    inside = [limits[0] / 2, *((low + high) / 2 for low, high in pairwise(limits)), limits[-1] + 1]
    found = [_follow(magnitude, timesteps, top) for magnitude in inside]
    kept = [i for i, (before, after) in enumerate(pairwise(found)) if before != after]
    rows = [found[0], *(found[i + 1] for i in kept)]
    levels, gains = zip(*rows, strict=True)
    return Patterns(tuple(limits[i] for i in kept), levels, gains)


def _follow(
    magnitude: Fraction, timesteps: int, top: int
) -> tuple[tuple[int, ...], tuple[Fraction, ...]]:
    """Levels and gains of one magnitude, step by step."""
    gain, levels, gains = Fraction(0), [], []
    for _ in range(timesteps):
        gain = (gain + 1) / 2
        level = max(0, min(top, math.ceil(gain * magnitude / THETA) - 1))
        levels.append(level)
        gains.append(gain)
        gain = gain if level == 0 else Fraction(0)
    return tuple(levels), tuple(gains)


def code_bits(timesteps: int, bits: int = 2) -> int:
    """Bits that store one weight: a pattern and its sign.

    >>> code_bits(4), code_bits(1)
    (4, 2)
    """
    return (2 * len(temporal_patterns(timesteps, bits).breaks)).bit_length()


def normalized(weight: Tensor) -> Tensor:
    r""":math:`(w - \bar w)/s` over the whole tensor, in at least single precision.

    ``s`` is the unbiased standard deviation, or 1 where all weights are equal.

    >>> normalized(torch.tensor([1.0, 2.0, 3.0])), normalized(torch.ones(1))
    (tensor([-1.,  0.,  1.]), tensor([0.]))
    """
    return normalize(weight)[0]


def normalize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised weight, and the deviation that it was divided by: 0 stands for 1."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    low, high = wide.aminmax()
    # The mean of equal weights may differ from them in its last digit, which would be blown up.
    centred = wide - torch.where(low == high, low, wide.mean())
    variance = centred.square().sum() / max(1, weight.numel() - 1)
    safe = torch.where(variance > 0, variance, 1).sqrt()
    return centred / safe, torch.where(variance > 0, safe, 0)


def normalize_gradient(grad: Tensor, drive: Tensor, spread: Tensor) -> Tensor:
    """Gradient of the weight from that of the normalised one."""
    along = (grad * drive).sum() / max(1, drive.numel() - 1)
    passed = grad - grad.mean() - drive * along
    return passed / torch.where(spread > 0, spread, 1)


@cache
def limits(timesteps: int, bits: int, dtype: torch.dtype) -> tuple[float, ...]:
    """The breaks rounded down to ``dtype``: ``|I|`` then exceeds both or neither."""
    found = []
    for limit in temporal_patterns(timesteps, bits).breaks:
        near = torch.tensor(float(limit), dtype=dtype)
        below = torch.nextafter(near, near.new_zeros(()))
        found.append(float(near if Fraction(float(near)) <= limit else below))
    return tuple(found)


def _above(drive: Tensor, timesteps: int, bits: int) -> list[Tensor]:
    """For each break, which magnitudes lie above it."""
    magnitude = drive.detach().abs()
    # Scalars, not a table: nothing has to be copied to a device, not even while it is recorded.
    return [magnitude > limit for limit in limits(timesteps, bits, drive.dtype)]


def _piecewise(above: list[Tensor], values: tuple[Any, ...], drive: Tensor) -> Tensor:
    """One value per pattern, looked up for each weight."""
    out = torch.full_like(drive, float(values[0]))
    for mask, (low, high) in zip(above, pairwise(values), strict=True):
        if low != high:
            out = out.add(mask, alpha=float(high - low))
    return out


@torch.no_grad()
def temporal_codes(weight: Tensor, timesteps: int, bits: int = 2) -> Tensor:
    """Number of the pattern of each weight, with the weight's sign; 0 never fires.

    >>> temporal_codes(torch.tensor([-1.0, 0.0, 0.4, 1.0]), 4)
    tensor([-4,  0,  3,  4], dtype=torch.int8)
    """
    drive = normalized(weight)
    number = torch.zeros_like(drive, dtype=torch.int8)
    for mask in _above(drive, timesteps, bits):
        number = number + mask
    return number * drive.sign().to(torch.int8)


def decode_codes(codes: Tensor, timesteps: int, bits: int = 2) -> Tensor:
    """Levels ``[T, *codes.shape]`` of such codes.

    >>> decode_codes(torch.tensor([-3, 4], dtype=torch.int8), 4).tolist()
    [[0, 1], [-1, 1], [0, 1], [-1, 1]]
    """
    table = codes.new_tensor(temporal_patterns(timesteps, bits).levels)
    return table.t()[:, codes.abs().long()] * codes.sign()


def firing_slope(potential: Tensor, bits: int = 2) -> Tensor:
    r"""Slope that stands in for :math:`dq/dC`: half of one sigmoid's slope at each jump.

    .. math:: \tfrac12 \sum_{k=1}^{L} \sum_{\pm} \alpha\,\sigma(\alpha (C \mp k\theta))
              \,(1 - \sigma(\alpha (C \mp k\theta))), \quad \alpha = 4
    """
    # All sigmoids share one exponential. The slope is even, and e^-|x| cannot overflow.
    decay = (potential.abs() * -SLOPE).exp()
    total = torch.zeros_like(decay)
    for level in range(1, 2 ** (bits - 1)):
        for shift in (level, -level):
            shifted = decay * math.exp(SLOPE * float(THETA) * shift)
            total = total + shifted / (1 + shifted).square()
    return total * (SLOPE / 2)


def pattern_levels(drive: Tensor, timesteps: int, bits: int = 2) -> Tensor:
    """Levels ``[T, ...]`` of normalised weights, without gradient."""
    patterns = temporal_patterns(timesteps, bits)
    above, sign = _above(drive, timesteps, bits), drive.sign()
    steps = zip(*patterns.levels, strict=True)
    return torch.stack([_piecewise(above, values, drive) * sign for values in steps])


class _Levels(torch.autograd.Function):
    """Levels of all steps. Their gradient needs no loop either: the patterns give every gain."""

    @staticmethod
    def forward(drive: Tensor, timesteps: int, bits: int) -> Tensor:
        return pattern_levels(drive, timesteps, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        drive, _, ctx.bits = inputs
        ctx.save_for_backward(drive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (drive,) = ctx.saved_tensors
        return pattern_gradient(grad, drive, ctx.bits), None, None


def pattern_gradient(grad: Tensor, drive: Tensor, bits: int = 2) -> Tensor:
    r""":math:`\sum_t g_t\, f(c_t I)\, c_t`, from the gradient ``[T, ...]`` of the levels."""
    patterns = temporal_patterns(grad.shape[0], bits)
    above = _above(drive, grad.shape[0], bits)
    total = torch.zeros_like(drive)
    for step, values in zip(grad, zip(*patterns.gains, strict=True), strict=True):
        gain = _piecewise(above, values, drive)
        total = total + step * firing_slope(gain * drive, bits) * gain
    return total


def temporal_levels(weight: Tensor, timesteps: int, bits: int = 2) -> Tensor:
    """Whole numbers ``[T, *weight.shape]``, differentiable.

    >>> temporal_levels(torch.tensor([-1.0, 0.0, 0.4, 1.0]), 4).int().tolist()
    [[-1, 0, 0, 1], [-1, 0, 1, 1], [-1, 0, 0, 1], [-1, 0, 1, 1]]
    """
    return _Levels.apply(normalized(weight), timesteps, bits).to(weight.dtype)


def temporal_scale(levels: Tensor, rule: str = "per_step") -> Tensor:
    r"""Scale ``[T, C]`` of levels ``[T, C, ...]``: :math:`1 / (\mathrm{mean}|q| + 10^{-6})`.

    The mean is over all but the output channel and, where ``rule`` is ``"per_step"``, the step;
    ``"shared"`` repeats one scale for all steps.

    >>> levels = torch.tensor([[[1.0, 0.0]], [[1.0, -1.0]]])
    >>> temporal_scale(levels).flatten(), temporal_scale(levels, "shared").flatten()
    (tensor([2.0000, 1.0000]), tensor([1.3333, 1.3333]))
    """
    wide = torch.promote_types(levels.dtype, torch.float32)
    sums = levels.abs().reshape(*levels.shape[:2], -1).sum(2, dtype=wide)
    return scale_from_sums(sums, levels[0, 0].numel(), rule)


def scale_from_sums(sums: Tensor, size: int, rule: str = "per_step") -> Tensor:
    """The scale ``[T, C]`` from the sums ``[T, C]`` of ``size`` magnitudes each."""
    mean = sums / size
    if rule == "shared":
        mean = mean.mean(0, keepdim=True).expand_as(sums)
    return 1 / (mean + SCALE_EPSILON)
