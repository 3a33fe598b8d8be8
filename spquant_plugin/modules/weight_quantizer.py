"""Weight quantisers as modules: what a quantised layer owns besides its weight.

A quantiser turns *rows* (a weight with the output channels first) into levels and a scale. A scale
of None means that the levels already carry it, which is exact for powers of two only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..functional import weights as fw


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
        self.seen.copy_(_energy(rows))

    def _apply(self, *args: Any, **options: Any) -> Any:
        super()._apply(*args, **options)
        self.seen = self.seen.float()  # half precision would not see a weight change
        return self

    @torch.no_grad()
    def _follow(self, rows: Tensor) -> None:
        energy = _energy(rows)
        readable = energy.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and bool(energy == self.seen):
            return  # the comparison below would come to the same, after three errors for nothing
        refined = fw.refine_alpha(rows, self.alpha, self.levels, self.channels)
        self.alpha.copy_(torch.where(energy == self.seen, self.alpha, refined))
        self.seen.copy_(energy)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.training:
            self._follow(rows)
        detached = rows.detach()
        alpha = fw.per_channel(self.alpha.to(rows.dtype), rows)
        quantized = fw.dyadic_quantize(detached, alpha, self.levels)
        inside = detached.abs() <= alpha * self.top
        return fw.straight_through(rows, quantized, torch.ones_like(alpha), inside), None


def _energy(rows: Tensor) -> Tensor:
    return rows.detach().float().square().sum()


class UniformQuantizer(WeightQuantizer):
    """Evenly spaced levels. The scale is a function of the weight, so there is nothing to keep."""

    rule: cfg.UniformWeights

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        detached = rows.detach()
        scale = fw.uniform_scale(detached, self.rule.bits, self.rule.scale)
        levels = fw.uniform_levels(detached, scale, self.rule.bits)
        top = 2 ** (self.rule.bits - 1) - 1
        # Half a level of slack: the largest weight may round to just above the top level.
        inside = detached.abs() <= scale * (top + 0.5)
        return fw.straight_through(rows, levels.to(rows.dtype), scale, inside), scale


class TernaryQuantizer(WeightQuantizer):
    """Levels -1, 0, 1 with one magnitude per output channel."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        levels, scale = fw.ternary_quantize(rows)
        inside = torch.ones_like(levels, dtype=torch.bool)
        return fw.straight_through(rows, levels, scale, inside), scale


QUANTIZERS: dict[type[cfg._Weights], type[WeightQuantizer]] = {
    cfg.PowerOfTwoWeights: DyadicQuantizer,
    cfg.AdditivePowerOfTwoWeights: DyadicQuantizer,
    cfg.UniformWeights: UniformQuantizer,
    cfg.TernaryWeights: TernaryQuantizer,
}


def build_weight_quantizer(rule: cfg._Weights, channels: int) -> WeightQuantizer:
    """The quantiser that a configuration record asks for."""
    return QUANTIZERS[type(rule)](rule, channels)
