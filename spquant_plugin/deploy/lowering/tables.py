r"""A trained neuron as a table of comparisons, found by asking the neuron itself.

Everything between a layer's sum and the neuron's decision is elementwise and monotone in each
channel, and the stored state has few values. Order what a neuron can do by its potential: first
every level that a silent neuron stores, then those of one that fires. For a channel, a state and an
added number, the *outcome* can then only climb (or only fall) as the sum grows, so each outcome
begins at one whole number, which bisection finds on the very arithmetic that the model runs.

A list of outcomes that occur is needed for that. It starts with those of some sums, the least and
the largest among them; the sums at which known outcomes begin, and their neighbours below, show
any other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import DeployError
from ..readout import real
from .gates import first_true
from .symbol import Symbol

LEVELS = 16
SPREAD = 33


class Table(NamedTuple):
    """The comparisons of a :class:`~spquant_plugin.deploy.graph.Neuron`."""

    sign: Tensor
    breaks: Tensor
    outcomes: Tensor
    closed: Tensor | None


@dataclass
class Probe:
    """A neuron with what stands between it and its sums; arrays are ``[C, state, number, ...]``."""

    neuron: Any  # a copy without gates
    x: Symbol
    numbers: tuple[int, int]  # of the added value; (0, 0) without one
    scored: bool  # whether a pixel mask ranks by the potential's level
    dtype: torch.dtype
    device: torch.device

    @property
    def levels(self) -> int:
        """How many levels are stored."""
        rule = self.neuron.membrane
        return rule.highest - rule.lowest + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, states, added numbers."""
        states = self.levels * (2 if self.neuron.remembers else 1)
        return self.x.shape[0], states, self.numbers[1] - self.numbers[0] + 1

    def codes(self, sums: Tensor, *, is_open: bool = True) -> Tensor:
        """Outcome of every sum ``[C, state, number, K]``: (spike, level, score) as one number."""
        _, states, numbers, _ = sums.shape
        state = torch.arange(states).view(1, -1, 1, 1).expand_as(sums)
        number = torch.arange(numbers).view(1, 1, -1, 1).expand_as(sums) + self.numbers[0]
        laid = [self._laid_out(part) for part in (sums, state, number)]
        current = real(laid[0], self.x.unit.to(self.device), self.x.steps, self.dtype)
        if not is_open:
            current = current * torch.zeros_like(current)
        if self.x.added is not None:
            unit = self.x.added.unit.to(self.device)
            current = current + real(laid[2], unit, (), self.dtype)
        index, fired = (
            (laid[1] // 2, laid[1] % 2) if self.neuron.remembers else (laid[1], laid[1] * 0)
        )
        levels = (index + self.neuron.membrane.lowest).to(self.dtype)
        result = self.neuron.outcome(current, levels, fired.bool())
        return self._code(result).flatten(2).movedim(0, -1).flatten(1).view_as(sums).cpu()

    def _laid_out(self, part: Tensor) -> Tensor:
        """``[1, C, K, 1, ...]`` where the layer has space, else ``[K, C]``, as the model's own."""
        channels, space = self.x.shape[0], len(self.x.shape) - 1
        flat = part.reshape(channels, -1).to(self.device)
        if space == 0:
            return flat.T.contiguous()
        return flat.view(1, channels, -1, *[1] * (space - 1))

    def _code(self, result: Any) -> Tensor:
        lowest = self.neuron.membrane.lowest
        spikes = result.spikes
        if result.spikes.shape != result.levels.shape or not _is_spikes(spikes):
            raise DeployError(
                "its spikes are not 0 and 1: must be, in eval mode. Use a surrogate function that "
                "spikes."
            )
        if self.neuron.remembers and not torch.equal(result.fired, spikes > 0):
            raise DeployError("it remembers other spikes than it emits: must be the same ones.")
        scores = result.scores - lowest if self.scored else torch.zeros_like(result.scores)
        code = (spikes * self.levels + result.levels - lowest) * self.levels + scores
        if not bool(code.isfinite().all()):
            raise DeployError("its potential is not finite: weights, norms and thresholds must be.")
        code = code.to(torch.int64)
        return code if code.ndim > 2 else code.T.unsqueeze(0)


def _is_spikes(spikes: Tensor) -> bool:
    return bool(((spikes == 0) | (spikes == 1)).all())


@torch.no_grad()
def tabulate(probe: Probe, least: Tensor, most: Tensor, gated: bool) -> Table:
    """Table of a neuron whose sums lie in ``least`` to ``most``, one pair per channel."""
    channels, states, numbers = probe.shape
    if probe.levels > LEVELS:
        raise DeployError(
            f"its membrane has {probe.levels} levels: an integer network takes at most {LEVELS}, "
            "whatever the norm, since decay and unit stay float and a table of comparisons takes "
            f"their place: one for each pair of levels, here about {4 * probe.levels**2:,} bytes "
            "for each channel. Use UniformMembrane(bits=4) or fewer."
        )
    sign = _direction(probe, least, most)
    ends = torch.stack([sign * least, sign * most]).sort(0).values
    low, high = (end.view(-1, 1, 1, 1).expand(channels, states, numbers, 1) for end in ends)

    def codes(signed: Tensor) -> Tensor:
        return probe.codes(signed * sign.view(-1, 1, 1, 1))

    known = codes(_spread(low, high, SPREAD)).unique()
    closed = probe.codes(low * 0, is_open=False)[..., 0] if gated else None
    if closed is not None:
        known = torch.cat([known, closed.flatten()]).unique()
    breaks, wanted = _begins(codes, known[1:], low, high), known[1:]
    while wanted.numel():
        begun = breaks[..., torch.isin(known[1:], wanted)]
        around = torch.cat([begun, begun - 1], -1)
        shown = codes(torch.minimum(torch.maximum(around, low), high)).unique()
        wanted = shown[~torch.isin(shown, known)]
        breaks = torch.cat([breaks, _begins(codes, wanted, low, high)], -1)
        order = torch.cat([known[1:], wanted]).argsort()
        breaks, known = breaks[..., order], torch.cat([known, wanted]).sort().values
    _check_monotone(codes, breaks, known, low, high)
    return _table(probe, sign, breaks, known, high, closed)


def _begins(codes: Any, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Least sum whose outcome is at least each wanted one, ``high + 1`` where none is."""
    shape = (*low.shape[:-1], wanted.numel())
    if not wanted.numel():
        return torch.zeros(shape, dtype=torch.int64)
    first, last = low.expand(shape), high.expand(shape)

    def reached(sums: Tensor) -> Tensor:
        return codes(torch.minimum(sums, last)) >= wanted

    return first_true(reached, first, last)


def _direction(probe: Probe, least: Tensor, most: Tensor) -> Tensor:
    """-1 for channels whose current falls as the sum grows."""
    ends = torch.stack([least, most], 1).view(-1, 1, 1, 2).expand(*probe.x.shape[:1], 1, 1, 2)
    laid = probe._laid_out(ends)
    current = real(laid, probe.x.unit.to(probe.device), probe.x.steps, probe.dtype)
    pair = current.view(2, -1).T if current.ndim == 2 else current.view(-1, 2)
    return torch.where(pair[:, 1] < pair[:, 0], -1, 1).cpu()


def _check_monotone(codes: Any, breaks: Tensor, known: Tensor, low: Tensor, high: Tensor) -> None:
    """Probe sums between the breaks; what they show must be what the table says."""
    sums = _spread(low, high, 17)
    said = known[(sums.unsqueeze(-1) >= breaks.unsqueeze(-2)).sum(-1)]
    if not torch.equal(said, codes(sums)):
        raise DeployError(
            "its decision does not change in one direction as the layer's sum grows, so it is no "
            "list of thresholds: decay and gain must not be negative."
        )


def _spread(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Whole numbers from low to high, evenly spaced."""
    places = torch.linspace(0, 1, count, dtype=torch.float64)
    return low + ((high - low).double() * places).floor().to(torch.int64)


def _table(
    probe: Probe,
    sign: Tensor,
    breaks: Tensor,
    known: Tensor,
    high: Tensor,
    closed: Tensor | None,
) -> Table:
    if breaks.shape[-1] == 0:  # always the same outcome: a comparison that never holds
        breaks, known = high + 1, torch.cat([known, known])
    index = (
        None if closed is None else torch.searchsorted(known, closed.contiguous()).to(torch.uint8)
    )
    spike, rest = known // probe.levels**2, known % probe.levels**2
    level, score = rest // probe.levels, rest % probe.levels
    state = 2 * level + spike if probe.neuron.remembers else level
    outcomes = torch.stack([spike, state, score + probe.neuron.membrane.lowest], 1)
    return Table(
        sign.to(torch.int8), breaks.to(torch.int32).contiguous(), outcomes.to(torch.int16), index
    )
