"""Which quantised class a weight layer becomes, or why it has none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..modules.layers import TORCH_LAYERS
from ..modules.quantized_layer import QuantizedLayer
from .hosts import Hosts

COMPUTES = ("forward", "_conv_forward")
SUPPORTED = ", ".join(kind.__name__ for kind in TORCH_LAYERS)

# These multiply by a weight matrix, in a way that no quantised class here repeats.
REFUSED = (
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


@dataclass(frozen=True)
class LayerKind:
    """The quantised class of a layer, or the reason why it is refused."""

    target: type[QuantizedLayer] | None
    refusal: str | None = None


def layer_kind(module: nn.Module, hosts: Hosts) -> LayerKind | None:
    """How a weight layer takes part in a conversion; None for what is no weight layer.

    Matched along the class hierarchy, because a host's layers are subclasses of torch's; but a
    subclass that computes in its own way is refused, since its way would be lost.
    """
    if isinstance(module, REFUSED):
        name = type(module).__name__
        return LayerKind(None, f"{name} has no quantised version: supported are {SUPPORTED}")
    for base in type(module).__mro__:
        if base in hosts.layers:
            return LayerKind(hosts.layers[base], _obstacle(module, base))
    return None


def _obstacle(module: nn.Module, base: type[nn.Module]) -> str | None:
    kind = type(module)
    if parametrize.is_parametrized(module):
        return "its weight is parametrized, so quantised values would leave their grid"
    for method in COMPUTES:
        if getattr(kind, method, None) is not getattr(base, method, None):
            return f"{kind.__name__} overrides {base.__name__}.{method}, which would be lost"
        if method in module.__dict__:
            return f"its {method} was replaced on this very object, which would bypass quantisation"
    weight = getattr(module, "weight", getattr(module, "V", None))
    if isinstance(weight, torch.Tensor) and nn.parameter.is_lazy(weight):
        return "its weight has no shape yet: run the model once first"
    if not isinstance(weight, torch.Tensor) or (
        hasattr(module, "weight") and "weight" not in module._parameters
    ):
        return "its weight is computed from other parameters (weight_norm or the like)"
    return None


def not_finite(module: nn.Module) -> str | None:
    """Reason to refuse a layer whose own parameters hold NaN or infinity."""
    for name, values in module._parameters.items():
        # One sum tells; counting the culprits is for the message only.
        if values is None or bool(values.detach().double().sum().isfinite()):
            continue
        bad = int((~values.detach().isfinite()).sum())
        if bad:
            held = f"{bad} NaN or infinite values of {values.numel()}"
            return f"its {name} holds {held}: all must be finite"
    return None
