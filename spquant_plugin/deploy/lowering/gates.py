"""Channel gates of a trained model, as one comparison of whole numbers per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import DeployError
from ...functional import gates as fg
from ..graph import ChannelDecision, Neuron, size
from .draft import Draft
from .symbol import Symbol


def lower_gate(draft: Draft, path: str, gate: Any, source: Symbol, x: Symbol) -> Symbol:
    """``x`` with the channels that the gate closes; ``source`` is what it reads."""
    if gate.rule.score != "sigmoid":
        raise DeployError(
            f"score={gate.rule.score!r} compares channels with each other: an integer network "
            'decides each alone. Use ChannelGate(score="sigmoid").'
        )
    if gate.channel_dim is not None and gate.channel_dim != -len(x.shape):
        raise DeployError(
            f"it gates axis {gate.channel_dim} of a value of shape {x.shape}: must be the channels."
        )
    if x.gate is not None or x.added is not None or x.analogue:
        raise DeployError(
            "it gates a gated value or a sum: must follow one branch's norm or layer."
        )
    node = draft.nodes[source.node]
    membrane = gate.source == "membrane"
    if not membrane and not (source.exact and source.uniform):
        raise DeployError(
            "it reads a float current or an analogue input: must read spikes. Use "
            'source="membrane".'
        )
    area = size(node.shape[1:])
    unit = 1.0 if membrane else float(source.unit[0])
    levels, threshold = decision(gate, _reach(node, membrane), area, unit)
    decided = ChannelDecision(
        name=path,
        inputs=(source.node,),
        shape=(levels.shape[0],),
        low=0,
        high=1,
        reads="membrane" if membrane else "value",
        weight=levels,
        threshold=threshold,
        bits=gate.weight_quantizer.rule.stored_bits,
    )
    named = draft.add(("gate", path, source.node), decided).name
    return x.but(gate=named)


def _reach(node: Any, membrane: bool) -> int:
    """Largest magnitude of what the gate sums."""
    if membrane:
        if not isinstance(node, Neuron):
            raise DeployError("its source is no neuron: must be the neuron before its layer.")
        return max(-node.lowest, node.highest)
    return max(-node.low, node.high)


@torch.no_grad()
def decision(gate: Any, reach: int, area: int, unit: float) -> tuple[Tensor, Tensor]:
    """Weights (int8) and, for each channel, the least weighted sum that opens it.

    The score is the gate's own float arithmetic on that sum; it grows with the sum, so bisection
    finds the first number that opens.
    """
    levels, scale = gate.weight_quantizer(gate.weight)
    whole = levels.to(torch.int64).cpu()
    most = whole.abs().sum(1) * reach * area

    def is_open(sums: Tensor) -> Tensor:
        accumulated = sums.double().to(scale.device) * unit
        logits = fg.scaled_logits(accumulated, area, scale.flatten(), gate.bias)
        return fg.open_channels(logits, gate.rule.threshold).bool().cpu()

    return whole.to(torch.int8), first_true(is_open, -most, most)


def first_true(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Least whole number from ``low`` to ``high`` for which ``holds``, else ``high + 1``.

    ``holds`` must not change back once it is true.
    """
    low, high = low.clone(), high + 1
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        found = holds(middle) | (middle >= high)
        low, high = torch.where(found, low, middle + 1), torch.where(found, middle, high)
    return low
