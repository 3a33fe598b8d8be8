"""The recurrence once more, as slowly as the equations read: autograd over a loop.

Shares no code with the package but the names in a rule. Each nonlinearity is an autograd function
that states its own slope, so every gradient comes from torch's chain rule.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spquant_plugin.kernels import Rule

SLOPES = {
    "triangle": lambda d, k: (k - d.abs()).clamp(min=0) / k**2,
    "window": lambda d, k: (k - d.abs()).clamp(min=0) / k**2 * torch.sigmoid(d) * (d >= 0),
    "sigmoid": lambda d, k: k * torch.sigmoid(k * d) * torch.sigmoid(-k * d),
    "arctan": lambda d, k: k / 2 / (1 + (math.pi / 2 * k * d) ** 2),
    "fast_sigmoid": lambda d, k: 1 / (1 + k * d.abs()) ** 2,
}
BUMPS = {
    "sigmoid": lambda z, t: t * torch.sigmoid(t * z) * torch.sigmoid(-t * z),
    "arctan": lambda z, t: t / 2 / (1 + (math.pi / 2 * t * z) ** 2),
    "triangle": lambda z, t: (2 / t - z.abs()).clamp(min=0) / (2 / t) ** 2,
    "piecewise": lambda z, t: (z.abs() <= 2 / t) * (t / 4),
}
SHARES = {
    "none": lambda d: torch.zeros_like(d),
    "host": lambda d: torch.ones_like(d),
    "shared": lambda d: torch.ones_like(d),
    "gpw": lambda d: torch.sigmoid(d) * (d >= 0),
    "doubled": lambda d: 1 + torch.sigmoid(d) * (d >= 0),
}


class Fire(torch.autograd.Function):
    """``1[u >= V]``, with the threshold's share of the gradient apart from the potential's."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor, rule: Rule) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.rule = rule
        return (u > threshold if rule.strict else u >= threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        u, threshold = ctx.saved_tensors
        d = u - threshold
        into = grad * SLOPES[ctx.rule.slope](d, ctx.rule.sharpness)
        return into, -into * SHARES[ctx.rule.threshold_gradient](d), None


class Store(torch.autograd.Function):
    """The number of boundaries below ``z``, with a bump half way between each two levels."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rule: Rule) -> Tensor:
        ctx.save_for_backward(z)
        ctx.rule = rule
        cuts = rule.cut_points or [k + 0.5 for k in range(rule.lowest, rule.highest)]
        level = torch.full_like(z, rule.lowest)
        for cut in cuts:
            level += z > cut
        return level

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        rule = ctx.rule
        middles = [k + 0.5 for k in range(rule.lowest, rule.highest)]
        bumps = [BUMPS[rule.shape](z - middle, rule.temperature) for middle in middles]
        return grad * torch.stack(bumps).sum(0), None


class Reference(NamedTuple):
    """What the loop went through."""

    spikes: Tensor
    membrane: Tensor
    potentials: Tensor
    membranes: Tensor


def reference(
    x: Tensor,
    rule: Rule,
    *,
    threshold: Tensor,
    decay: Tensor,
    gain: Tensor,
    unit: float | None,
    state: Tensor | None = None,
    fired: Tensor | None = None,
    mask: Tensor | None = None,
) -> Reference:
    """All steps of ``x [T, N, C, ...]``, rounded in the order of the equations."""
    # The fire comparison alone moves a learnable threshold; autograd moves it everywhere.
    amount = threshold if rule.threshold_gradient == "host" else threshold.detach()
    delta = None if unit is None else torch.tensor(unit, dtype=x.dtype)
    m = torch.full_like(x[0], rule.rest) if state is None else state
    s = torch.zeros_like(x[0]) if fired is None else fired.to(x.dtype)
    least = None
    if delta is not None:
        least = (Store.apply(threshold.detach() / delta, rule) * delta).expand_as(m)
        s = s * (m >= least)
    if mask is not None:
        mask = mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim))
    train, potentials, membranes = [], [], []
    for t in range(x.shape[0]):
        current = x[t] if mask is None else x[t] * mask[t]
        late = s.detach()
        held = (1 - late) * m if rule.reset == "late_zero" else m
        u = (held - rule.rest) * decay + rule.rest + current * gain
        if rule.reset == "late_subtract":
            u = u - late * amount
        if rule.reset == "late_drop":
            u = u - late * u
        s = Fire.apply(u, threshold.expand_as(u), rule)
        acting = s.detach() if rule.detach_reset else s
        v = u
        if rule.reset == "hard":
            v = (1 - acting) * u + acting * rule.rest
        if rule.reset == "soft":
            v = u - acting * amount
        m = v if delta is None else Store.apply((v - rule.rest) / delta, rule) * delta + rule.rest
        for kept, value in ((train, s), (potentials, u), (membranes, m)):
            kept.append(value)
    return Reference(torch.stack(train), m, torch.stack(potentials), torch.stack(membranes))
