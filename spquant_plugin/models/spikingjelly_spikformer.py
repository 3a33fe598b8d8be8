"""Spikformer: SpikingJelly's own spiking transformer, of the size that is asked for."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based.model import spikformer
from torch import nn

from .request import Request
from .spikingjelly_parts import neurons

BLOCKS, EMBEDDING, HEADS, PATCH = 4, 256, 8, 4
ATTENTION_THRESHOLD = 0.5  # Spikformer's: what it gets is a product of spikes, scaled down


def build(request: Request) -> nn.Module:
    new_neuron = neurons(request)

    def of_host(**options: Any) -> nn.Module:  # SpikingJelly passes the step mode
        return new_neuron()

    network = spikformer.Spikformer(
        in_channels=request.in_channels,
        img_size_h=request.height,
        img_size_w=request.width,
        patch_size=PATCH,
        num_classes=request.num_classes,
        embed_dims=_shared_by_heads(request.channels(EMBEDDING)),
        num_heads=HEADS,
        depths=BLOCKS,
        spiking_neuron=of_host,
    )
    if request.neuron is None:
        for block in network.blocks:
            block.attn.attn_lif.v_threshold = ATTENTION_THRESHOLD
    return network


def _shared_by_heads(channels: int) -> int:
    """The next multiple of the heads, which share the channels evenly."""
    return max(1, round(channels / HEADS)) * HEADS
