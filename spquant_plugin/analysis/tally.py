"""What layers, neurons and gates did in a dry run: counts over all samples, steps and batches.

Only counts are kept, no inputs. For each layer that a gate may spare pixels of there is a map with
one number per output pixel, until its batch is settled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["GateTally", "LayerTally", "LevelTally", "NeuronTally", "Tallies", "total"]


@dataclass
class LayerTally:
    """One weight layer: pairs of a weight and an input, over all samples and steps."""

    rows: int = 0
    space: tuple[int, ...] = ()
    dense: int = 0
    nonzero: int = 0
    open: int = 0
    inputs: int = 0
    outputs: int = 0
    binary: bool = True
    # Inputs are whole numbers over this power of two, as pooled spikes are; None for others.
    halvings: int | None = 0
    signed: bool = False
    largest: float = 0.0  # of their magnitudes
    weights: int = 0
    zero_weights: float = 0.0  # of weights that change with the step, the mean
    fan_in: int = 0  # weights that add up in one output
    weight_steps: float = 0.0  # largest weight in units of its output channel
    spared: int = 0  # accumulates of pixels that were masked before they were computed
    unlike: bool = False  # its pixels are not those that its neuron masks
    unanswered: int = 0  # calls that its gate did not follow
    pixels: list[Tensor] = field(default_factory=list)  # open pairs, [rows, *space] for each call

    def settle(self, masked: GateTally | None) -> None:
        """Close a batch: what a gate of the neuron behind spared of the pixels."""
        if masked is not None and self.pixels:
            if _spaces(self.pixels) == _spaces(masked.kept):
                counts, mask = (
                    torch.cat([call.flatten() for call in calls])
                    for calls in (self.pixels, masked.kept)
                )
                self.spared += total(counts * ~mask)
            else:
                self.unlike = True
        self.pixels.clear()


@dataclass
class NeuronTally:
    """One spiking neuron layer."""

    outputs: int = 0
    spikes: int = 0
    graded: bool = False


@dataclass
class LevelTally:
    """How often one layer's stored membrane lay on each of its levels, step by step."""

    lowest: int
    highest: int
    steps: list[Tensor] = field(default_factory=list)
    now: int = 0

    def add(self, membrane: Tensor, rest: float, unit: float) -> int:
        """Take in what one step stored, and say how many levels are not zero."""
        if self.now == len(self.steps):
            self.steps.append(torch.zeros(self.highest - self.lowest + 1, dtype=torch.int64))
        counts = self._counts(membrane, rest, unit)
        self.steps[self.now] += counts
        self.now += 1
        at_zero = int(counts[-self.lowest]) if self.lowest <= 0 <= self.highest else 0
        return membrane.numel() - at_zero

    def _counts(self, membrane: Tensor, rest: float, unit: float) -> Tensor:
        bins = self.highest - self.lowest + 1
        if bins > 4:
            levels = ((membrane - rest) / unit).round() - self.lowest
            return torch.bincount(levels.flatten().long(), minlength=bins).cpu()
        # For few levels comparisons half way between them are several times faster.
        cuts = [rest + (self.lowest + k + 0.5) * unit for k in range(bins - 1)]
        edges = [membrane.numel(), *(int((membrane > cut).count_nonzero()) for cut in cuts), 0]
        return torch.tensor([edges[k] - edges[k + 1] for k in range(bins)])


@dataclass
class GateTally:
    """One gate: what it shut, out of how much, and what deciding took."""

    decided: int = 0
    shut: int = 0
    dense: int = 0  # all operations, were no level zero
    additions: int = 0
    multiplications: int = 0
    comparisons: int = 0
    kept: list[Tensor] = field(default_factory=list)  # [N, *space] for each step


@dataclass
class Tallies:
    """Everything that was counted, by the first path of each module."""

    layers: dict[str, LayerTally] = field(default_factory=dict)
    neurons: dict[str, NeuronTally] = field(default_factory=dict)
    levels: dict[str, LevelTally] = field(default_factory=dict)
    channel_gates: dict[str, GateTally] = field(default_factory=dict)
    spatial_gates: dict[str, GateTally] = field(default_factory=dict)

    def settle(self, masks: dict[str, str]) -> None:
        """Close a batch. ``masks`` leads from a layer to the spatial gate behind it."""
        for path, layer in self.layers.items():
            layer.settle(self.spatial_gates.get(masks.get(path, "")))
        for gate in self.spatial_gates.values():
            gate.kept.clear()
        for levels in self.levels.values():
            levels.now = 0


def _spaces(maps: list[Tensor]) -> list[torch.Size]:
    """Sizes of the maps of all calls, sample by sample."""
    return [call.shape[1:] for call in maps for _ in range(len(call))]


def total(counts: Tensor) -> int:
    """Exact sum of whole numbers."""
    return int(counts.sum(dtype=torch.float64))
