"""Weight quantisers as modules: what a quantised layer owns besides its weight.

A quantiser turns *rows* (a weight with the output channels first) into levels and a scale. A scale
of None means that the levels already carry it, which is exact for powers of two only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..errors import ConversionError
from ..functional import temporal as ft
from ..functional import weights as fw
from ..kernels.temporal import step_levels
from ..kernels.weights import Grid, quantize_rows, scale_errors


class WeightQuantizer(nn.Module):
    """Base: rows in, ``(levels, scale or None)`` out."""

    def __init__(self, rule: cfg._Weights, channels: int) -> None:
        super().__init__()
        self.rule = rule

    def initialize(self, rows: Tensor) -> None:
        """Fit whatever the quantiser remembers to float weights. Most remember nothing."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the levels, differentiable straight through, and their scale."""
        raise NotImplementedError

    @property
    def stored_bits(self) -> int:
        """Bits that one stored weight takes in memory."""
        return self.rule.stored_bits

    def extra_repr(self) -> str:
        return repr(self.rule)


class DyadicQuantizer(WeightQuantizer):
    """Powers of two and their sums. ``alpha`` follows training one factor of two at a time.

    It moves once for each change of the weight, not at each call, so that every time step of a
    sequence sees the same levels: ``seen`` remembers the weight's energy. A comparison inside the
    graph, because a Python branch would break a compiled one.
    """

    alpha: Tensor
    seen: Tensor
    table: Tensor

    def __init__(
        self, rule: cfg.PowerOfTwoWeights | cfg.AdditivePowerOfTwoWeights, channels: int
    ) -> None:
        super().__init__(rule, channels)
        self.channels = rule.per_channel
        levels = fw.tabulate(
            fw.power_of_two_levels(rule.bits)
            if isinstance(rule, cfg.PowerOfTwoWeights)
            else fw.additive_power_of_two_levels(rule.bits)
        )
        self.top, self.steps, self.resolution = levels.top, levels.steps, levels.resolution
        self.register_buffer("table", levels.table.clone(), persistent=False)
        self.register_buffer("alpha", torch.ones(channels if self.channels else 1))
        self.register_buffer("seen", torch.zeros(()))

    @property
    def levels(self) -> fw.Levels:
        """The magnitudes, with their table where the weights are."""
        return fw.Levels(self.top, self.steps, self.resolution, self.table)

    @torch.no_grad()
    def initialize(self, rows: Tensor) -> None:
        self.alpha.copy_(fw.search_alpha(rows, self.levels, self.channels))
        self.seen.copy_(_at_least_single(rows).square().sum(dtype=torch.float64).float())

    def _apply(self, *args: Any, **options: Any) -> Any:
        super()._apply(*args, **options)
        self.seen = self.seen.float()  # half precision would not see a weight change
        return self

    @torch.no_grad()
    def _follow(self, rows: Tensor, grid: Grid) -> None:
        """Move alpha by a factor of two where that fits a changed weight better."""
        alpha = self.alpha.to(rows.dtype)
        tried = torch.stack([alpha * factor for factor in fw.ALPHA_FACTORS], 1)
        found = scale_errors(rows if self.channels else rows.reshape(1, -1), tried, grid)
        *errors, energies = found.unbind(1)
        # Each error came in units of its own alpha, whose square is exact.
        common = [error * factor**2 for error, factor in zip(errors, fw.ALPHA_FACTORS, strict=True)]
        empty = (found == 0).all(1)
        refined = fw.better_alpha(self.alpha, torch.stack(common, 1), empty)
        energy = energies.sum().float()
        self.alpha.copy_(torch.where(energy == self.seen, self.alpha, refined))
        self.seen.copy_(energy)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        grid, wide = Grid.dyadic(self.levels), _at_least_single(rows)
        if self.training:
            self._follow(wide.detach(), grid)
        # A copy: the backward pass of this call keeps it, and the next call may move alpha.
        alpha = self.alpha.to(rows.dtype, copy=True)
        return quantize_rows(rows, alpha, grid), None


def _at_least_single(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class UniformQuantizer(WeightQuantizer):
    """Evenly spaced levels. The scale is a function of the weight, so there is nothing to keep."""

    rule: cfg.UniformWeights

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        grid = Grid.whole(self.rule.bits)

        def errors(detached: Tensor, scales: Tensor) -> Tensor:
            return scale_errors(detached, scales, grid)[:, :-1]

        scale = fw.uniform_scale(rows.detach(), self.rule.bits, self.rule.scale, errors)
        return quantize_rows(rows, scale, grid), scale


class TernaryQuantizer(WeightQuantizer):
    """Levels -1, 0, 1 with one magnitude per output channel."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        levels, scale = fw.ternary_quantize(rows)
        inside = torch.ones_like(levels, dtype=torch.bool)
        return fw.straight_through(rows, levels, scale, inside), scale


class TemporalQuantizer(WeightQuantizer):
    """Levels that change with the time step, each time straight from the weight: nothing is kept.

    ``timesteps`` is the rule's; where that is None, the number that was first asked for.
    """

    rule: cfg.TemporalTernaryWeights

    def __init__(self, rule: cfg.TemporalTernaryWeights, channels: int) -> None:
        super().__init__(rule, channels)
        self.timesteps = rule.timesteps

    @property
    def stored_bits(self) -> int:
        """One code tells all steps; of one step where their number is not known yet."""
        return ft.code_bits(1 if self.timesteps is None else self.timesteps, self.rule.bits)

    def steps(self, rows: Tensor, timesteps: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Levels of each step, and the scales ``[T, channels]`` of all."""
        levels, sums = step_levels(rows, timesteps, self.rule.bits)
        return levels, ft.scale_from_sums(sums, rows[0].numel(), self.rule.scale)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        raise ConversionError(
            f"{self.rule}: a weight that changes with the time step has no value without a step. "
            "Ask the layer for step_weights()."
        )


QUANTIZERS: dict[type[cfg._Weights], type[WeightQuantizer]] = {
    cfg.PowerOfTwoWeights: DyadicQuantizer,
    cfg.AdditivePowerOfTwoWeights: DyadicQuantizer,
    cfg.UniformWeights: UniformQuantizer,
    cfg.TernaryWeights: TernaryQuantizer,
    cfg.TemporalTernaryWeights: TemporalQuantizer,
}


def build_weight_quantizer(rule: cfg._Weights, channels: int) -> WeightQuantizer:
    """The quantiser that a configuration record asks for."""
    return QUANTIZERS[type(rule)](rule, channels)
