r"""Weight quantisers: from float weights to integer levels and a scale.

Every function takes *rows*, a weight whose first dimension is the output channel. A scale comes
with shape ``[channels, 1, ...]``, ready to multiply the rows. Nothing here carries a gradient:
:func:`straight_through` adds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConversionError

Errors = Callable[[Tensor, Tensor], Tensor]
SAWB_COEFFICIENTS = {4: (0.077, 1.013)}
UNIFORM_RATIOS = 16
ALPHA_FACTORS = (1.0, 0.5, 2.0)


def per_channel(values: Tensor, rows: Tensor) -> Tensor:
    """Reshape one value per channel so that it multiplies the rows."""
    return values.reshape(-1, *[1] * (rows.ndim - 1))


def _channel_sum(values: Tensor, channels: bool) -> Tensor:
    """Sum in float64: over each row, or (as one channel) over everything."""
    flat = values.flatten(1) if channels else values.reshape(1, -1)
    return flat.sum(1, dtype=torch.float64)


def _largest(rows: Tensor, channels: bool = True) -> Tensor:
    flat = rows.abs().flatten(1) if channels else rows.abs().reshape(1, -1)
    return flat.amax(1)


# --- straight through ---------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, quantized: Tensor, scale: Tensor, inside: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2], inputs[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, inside = ctx.saved_tensors
        return (grad / scale) * inside, None, None, None


def straight_through(value: Tensor, quantized: Tensor, scale: Tensor, inside: Tensor) -> Tensor:
    """``quantized`` forward; backward the identity through ``scale * quantized``, where ``inside``.

    An explicit function, because the gradient of ``clamp`` is 0 at its bound, where a saturated
    weight would stay for ever.
    """
    return _StraightThrough.apply(value, quantized, scale, inside)


# --- powers of two and their sums ---------------------------------------------------------------


@cache
def power_of_two_levels(bits: int) -> tuple[float, ...]:
    """Magnitudes ``0`` and ``2**-k``, ascending.

    >>> power_of_two_levels(3)
    (0.0, 0.25, 0.5, 1.0)
    """
    return (0.0, *(2.0**-k for k in range(2 ** (bits - 1) - 2, -1, -1)))


@cache
def additive_power_of_two_levels(bits: int) -> tuple[float, ...]:
    """Magnitudes that are sums of powers of two, ascending.

    >>> len(additive_power_of_two_levels(5)), max(additive_power_of_two_levels(5))
    (16, 1.5)
    """
    terms = math.ceil((bits - 1) / 2)
    sums = {0.0}
    for i in range(terms):
        choices = [0.0, 2.0**-i, 2.0 ** -(i + terms), 2.0 ** -(i + 2 * terms)]
        if i == terms - 1 and (bits - 1) % 2:
            choices = [0.0, 2.0 ** -(terms - 1)]
        sums = {have + choice for have in sums for choice in choices}
    return tuple(sorted(sums))


class Levels(NamedTuple):
    """Dyadic magnitudes as a table, since a search among them takes ten times as long.

    All boundaries between such levels are whole numbers of one small power of two, ``1 / steps``. A
    magnitude between two of these steps has the level of the upper one, so rounding up and looking
    up is exact. Entries are whole numbers of ``1 / resolution``, which no precision can damage.
    """

    top: float
    steps: int
    resolution: int
    table: Tensor


@cache
def tabulate(values: tuple[float, ...]) -> Levels:
    """Table of ascending dyadic magnitudes.

    >>> tabulate((0.0, 0.5, 1.0))
    Levels(top=1.0, steps=4, resolution=2, table=tensor([0, 0, 1, 1, 2], dtype=torch.int32))
    """
    cuts = [(low + high) / 2 for low, high in pairwise(values)]
    steps = max(cut.as_integer_ratio()[1] for cut in cuts)
    resolution = max(value.as_integer_ratio()[1] for value in values)
    index = [sum(cut * steps < step for cut in cuts) for step in range(round(cuts[-1] * steps) + 2)]
    table = torch.tensor([int(values[i] * resolution) for i in index], dtype=torch.int32)
    return Levels(values[-1], steps, resolution, table)


def _tabulated(levels: tuple[float, ...] | Levels) -> Levels:
    return levels if isinstance(levels, Levels) else tabulate(levels)


def nearest_magnitude(magnitude: Tensor, levels: tuple[float, ...] | Levels) -> Tensor:
    """Nearest of the ascending dyadic ``levels``; a tie goes to the smaller one.

    >>> nearest_magnitude(torch.tensor([0.5, 0.51, 7.0]), (0.0, 1.0))
    tensor([0., 1., 1.])
    """
    top, steps, resolution, table = _tabulated(levels)
    if steps == 2:  # 0 and 1
        return (magnitude > top / 2).to(magnitude.dtype)
    wide = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
    # fmin, not clamp: a weight that training turned into NaN must not become an address.
    address = torch.fmin((wide * steps).ceil(), wide.new_full((), table.numel() - 1))
    level = table.to(wide.device).take(address.to(torch.int64)).to(wide.dtype)
    return (level / resolution).to(magnitude.dtype)


def dyadic_quantize(rows: Tensor, alpha: Tensor, levels: tuple[float, ...] | Levels) -> Tensor:
    """Nearest ``±alpha * level``; exact, because alpha is a power of two."""
    return nearest_magnitude(rows.abs() / alpha, levels) * alpha * rows.sign()


def _magnitude(rows: Tensor) -> Tensor:
    """Absolute values in at least single precision, without gradient."""
    magnitude = rows.detach().abs()
    return magnitude if magnitude.dtype == torch.float64 else magnitude.float()


def dyadic_error(
    magnitude: Tensor, alpha: Tensor, levels: tuple[float, ...] | Levels, channels: bool = True
) -> Tensor:
    """Squared error, per channel or in all, of quantising these magnitudes with ``alpha``."""
    wide = per_channel(alpha, magnitude)
    error = nearest_magnitude(magnitude / wide, levels).mul_(wide).sub_(magnitude)
    return _channel_sum(error.square_(), channels)


def search_alpha(rows: Tensor, levels: tuple[float, ...] | Levels, channels: bool = True) -> Tensor:
    r"""Power of two with the least :math:`\sum (w - w_q)^2`, for each channel or for all.

    Starts above the largest weight and halves. What lies beyond the top level costs at least its
    clipping error, which only grows as alpha falls: once it alone exceeds the best error in every
    channel, nothing better can follow. Equal errors go to the smaller alpha, which keeps more small
    levels in use. A channel of zeros gets 1.

    >>> search_alpha(torch.tensor([[0.1, -0.12, 0.02]]), power_of_two_levels(2))
    tensor([0.1250])
    """
    levels = _tabulated(levels)
    magnitude = _magnitude(rows)
    top = _largest(magnitude, channels)
    if not bool(top.isfinite().all()):
        raise ConversionError(
            "the weights hold NaN or infinite values: every weight must be finite. Repair them."
        )
    empty = top == 0
    # In units of the largest weight's own power of two, which is exact, no square can underflow.
    unit = torch.exp2(torch.log2(top.masked_fill(empty, 1)).ceil())
    magnitude = magnitude / per_channel(unit, magnitude)
    # Sums of powers of two are unevenly spaced: a few weights may fit far below the top level best.
    start = 1 if levels.top == 1 else 4
    alpha = best_alpha = torch.full_like(top, 2.0**start)
    best_error = torch.full_like(top, math.inf, dtype=torch.float64)
    while True:
        error = dyadic_error(magnitude, alpha, levels, channels)
        better = error <= best_error
        best_error = torch.where(better, error, best_error)
        best_alpha = torch.where(better, alpha, best_alpha)
        alpha = alpha / 2
        reach = per_channel(alpha * levels.top, magnitude)
        clipped = _channel_sum((magnitude - reach).clamp_(min=0).square_(), channels)
        if bool(((clipped > best_error) | empty).all()):
            return (best_alpha * unit).masked_fill(empty, 1)


def refine_alpha(
    rows: Tensor, alpha: Tensor, levels: tuple[float, ...] | Levels, channels: bool = True
) -> Tensor:
    """The best of ``alpha``, ``alpha / 2`` and ``2 * alpha``: how alpha follows training.

    A channel of zeros keeps its alpha.
    """
    magnitude = _magnitude(rows)
    empty = _largest(magnitude, channels) == 0
    # In units of alpha, which is exact, no square can underflow.
    magnitude = magnitude / per_channel(alpha.to(magnitude.dtype), magnitude)
    errors = [
        dyadic_error(
            magnitude, torch.full_like(alpha, factor, dtype=magnitude.dtype), levels, channels
        )
        for factor in ALPHA_FACTORS
    ]
    return better_alpha(alpha, torch.stack(errors, 1), empty)


def better_alpha(alpha: Tensor, errors: Tensor, empty: Tensor) -> Tensor:
    """The multiple of ``alpha`` with the least of the errors ``[..., 3]`` of ``ALPHA_FACTORS``.

    Equal errors go to the smaller alpha. A channel of zeros keeps its alpha.
    """
    stays, halves, doubles = errors.unbind(1)
    best = torch.where(halves <= stays, 0.5, 1.0)
    best = torch.where(doubles < torch.minimum(halves, stays), 2.0, best)
    return alpha * best.masked_fill(empty, 1).to(alpha.dtype)


# --- uniform and ternary ------------------------------------------------------------------------


def uniform_levels(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest whole number of scales, clamped to ``±(2**(bits-1) - 1)``."""
    top = 2 ** (bits - 1) - 1
    return (rows / scale).round().clamp(-top, top)


def max_scale(rows: Tensor, bits: int) -> Tensor:
    """Scale that just reaches the largest magnitude of each channel."""
    return _largest(rows) / (2 ** (bits - 1) - 1)


def least_squares_scale(rows: Tensor, bits: int, errors: Errors | None = None) -> Tensor:
    """Best of 16 ratios of the largest magnitude, by squared error per channel.

    ``errors`` of (rows, scales ``[channels, 16]``) may come from elsewhere.
    """
    reach = max_scale(rows, bits)
    safe = reach.masked_fill(reach == 0, 1)
    ratios = [step / UNIFORM_RATIOS for step in range(UNIFORM_RATIOS, 0, -1)]
    scales = torch.stack([safe * ratio for ratio in ratios], 1)
    if errors is None:
        found = torch.stack([_uniform_error(rows, scale, bits) for scale in scales.unbind(1)], 1)
    else:
        found = errors(rows, scales)
    best, best_error = safe, torch.full_like(reach, math.inf, dtype=torch.float64)
    for scale, error in zip(scales.unbind(1), found.unbind(1), strict=True):
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scale, best)
    return best.masked_fill(reach == 0, 0)


def _uniform_error(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    wide = per_channel(scale, rows)
    return _channel_sum((rows - uniform_levels(rows, wide, bits) * wide).square(), True)


def sawb_scale(rows: Tensor, bits: int = 4) -> Tensor:
    r"""Statistics-aware scale: reach :math:`(\mathrm{std} - z_1\,\mathrm{mean}|w|)/z_0`."""
    z0, z1 = SAWB_COEFFICIENTS[bits]
    flat = rows.flatten(1)
    mean = flat.abs().mean(1)
    spread = flat.std(1) if flat.shape[1] > 1 else torch.zeros_like(mean)
    reach = ((spread - z1 * mean) / z0).maximum(mean).minimum(_largest(rows))
    return reach / (2 ** (bits - 1) - 1)


UNIFORM_SCALES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max": max_scale,
    "sawb": sawb_scale,
}


def uniform_scale(
    rows: Tensor, bits: int, rule: str = "auto", errors: Errors | None = None
) -> Tensor:
    """Scale of each output channel, ``[channels, 1, ...]``; a channel of zeros has scale 1.

    ``auto`` is the largest magnitude from 6 bits on and the least squared error below.

    >>> uniform_scale(torch.tensor([[0.5, -1.27]]), bits=8)
    tensor([[0.0100]])
    """
    if rule == "auto":
        rule = "max" if bits >= 6 else "least_squares"
    rows = rows.detach()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if rule == "least_squares":
        scale = least_squares_scale(rows, bits, errors)
    else:
        scale = UNIFORM_SCALES[rule](rows, bits)
    return per_channel(scale.masked_fill(scale == 0, 1), rows)


def ternary_quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Levels -1, 0, 1 and their scale: zero up to 5 % of the largest magnitude of the channel.

    >>> ternary_quantize(torch.tensor([[1.0, -0.5, 0.01]]))
    (tensor([[ 1., -1.,  0.]]), tensor([[0.7500]]))
    """
    magnitude = _magnitude(rows)
    kept = (magnitude > per_channel(0.05 * _largest(magnitude), rows)).to(magnitude.dtype)
    count = kept.flatten(1).sum(1)
    mean = (magnitude * kept).flatten(1).sum(1) / count.clamp(min=1)
    scale = per_channel(mean.masked_fill(count == 0, 1), rows)
    return (kept * rows.detach().sign()).to(rows.dtype), scale
