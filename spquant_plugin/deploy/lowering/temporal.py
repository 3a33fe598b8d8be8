"""Weights that change with the time step: such a model is recorded once for each of its steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import DeployError
from ...modules.quantized_layer import QuantizedLayer
from .draft import Draft


def most_steps(copy: nn.Module) -> int | None:
    """For how many steps the weights of a model are known, once it ran; None if they are the same
    in all."""
    layers = {
        path: layer.timesteps
        for path, layer in copy.named_modules()
        if isinstance(layer, QuantizedLayer) and layer.is_temporal and layer.timesteps is not None
    }
    if len(set(layers.values())) > 1:
        listed = ", ".join(f"{path} {steps}" for path, steps in layers.items())
        raise DeployError(
            f"weights change over different numbers of steps: {listed}: must be one number. "
            "Convert all layers with the same TemporalTernaryWeights(timesteps=...)."
        )
    return next(iter(layers.values()), None)


def check_called(copy: nn.Module, steps: int) -> None:
    """Refuse a layer that a run of so many steps called step by step, but not in each of them."""
    for path, layer in copy.named_modules():
        if isinstance(layer, QuantizedLayer) and layer.is_temporal and layer.counter is not None:
            called = layer.counter.step
            if called not in (0, steps) and not layer.takes_sequences:
                raise DeployError(
                    f"{path} ({type(layer).__name__}): is called {called} times in {steps} steps, "
                    "and its weights change with the step: must be called once in each. Call it "
                    "inside the loop, or give it other weights with overrides={...}."
                )


@torch.no_grad()
def weight_of_step(draft: Draft, layer: QuantizedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers (int8) of the draft's step, their unit per output channel, and the scale."""
    levels, scale = layer.step_weights()
    # The very tensor that the node will hold, so that the draft knows what it becomes later.
    weight = draft.weight_of_step(levels.cpu().to(torch.int8))
    unit = torch.ones(len(weight), dtype=torch.float64)
    return weight, unit, scale[draft.step].detach().clone()
