"""What the gates of a network decide: which channels open when, which pixels are kept."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import spquant_plugin as spq


def decisions(net: nn.Module, frames: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Open channels ``[T, B, C]`` of every gate and kept pixels ``[T, B, H, W]`` of every neuron.

    ``net`` is a SpikingJelly network that takes the whole sequence ``[T, B, ...]``.
    """
    kept: dict[str, list[Tensor]] = {}
    hooks = []
    for path, module in net.named_modules():
        gate: Any = getattr(module, "spatial_gate", None)
        if gate is not None:
            steps = kept[path] = []
            hooks.append(gate.register_forward_hook(lambda *call, to=steps: to.append(call[2])))
    spq.reset(net)
    with torch.no_grad():
        net.eval()(frames)
    spq.reset(net)
    for hook in hooks:
        hook.remove()
    channels = {
        path.removesuffix(".channel_gate"): net.get_submodule(path).open_mask
        for path in spq.gate_stats(net)
    }
    return channels, {path: torch.stack(steps)[:, :, 0] for path, steps in kept.items()}


def gate_maps(net: nn.Module, frames: Tensor, sample: int = 0) -> Figure:
    """Above, the share of recordings that open a channel; below, the pixels kept of one of them."""
    channels, kept = decisions(net, frames)
    figure = Figure(figsize=(9, 3 + 1.1 * len(kept)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, 1.1 * len(kept)])
    above.suptitle("share of recordings for which a channel is open")
    panels = above.subplots(1, len(channels), squeeze=False)[0]
    for axes, (path, mask) in zip(panels, channels.items(), strict=True):
        shares = mask.mean(1).T.numpy()
        image = axes.imshow(shares, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=path, xlabel="step", ylabel="channel")
    above.colorbar(image, ax=list(panels))
    below.suptitle("pixels kept of one recording (white), step by step")
    grid = below.subplots(len(kept), len(frames), squeeze=False)
    for row, (path, masks) in zip(grid, kept.items(), strict=True):
        row[0].set_ylabel(path)
        for axes, mask in zip(row, masks[:, sample].numpy(), strict=True):
            axes.imshow(mask, vmin=0, vmax=1, cmap="gray")
            axes.set(xticks=[], yticks=[])
    return figure
