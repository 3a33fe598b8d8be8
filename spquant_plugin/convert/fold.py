"""Quantised layers back into plain ones, for tools that know plain layers only."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ConversionError
from ..modules.quantized_layer import QuantizedLayer
from .apply import _replace
from .copying import copy_at_rest
from .hosts import Hosts


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a copy whose quantised layers are plain layers that hold the quantised weights.

    The copy computes the same within float tolerance. Neurons stay as they are. A layer that
    quantises its input has no plain twin and is refused.

    >>> import torch, spquant_plugin as spq
    >>> from torch import nn
    >>> net = spq.convert(nn.Linear(4, 2), spq.SpQuantConfig(weights=spq.UniformWeights(4))).eval()
    >>> plain, x = spq.fold(net), torch.ones(1, 4)
    >>> type(plain).__name__, torch.allclose(plain(x), net(x))
    ('Linear', True)
    """
    model = copy_at_rest(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLayer):
            model = _replace(model, layer, _plain(path, layer))
    for host in Hosts().all:
        host.enter(model)
    return model


def _plain(path: str, layer: QuantizedLayer) -> nn.Module:
    if layer.input_quantizer is not None:
        raise ConversionError(
            f"{path or '(model)'} ({type(layer).__name__}) quantises its input "
            f"({layer.input_quantizer.rule}): a plain layer cannot. Convert with input=None and "
            "feed the model whole numbers, or keep the quantised layer."
        )
    training = layer.training
    layer.eval()
    base = _plain_class(layer)
    plain = base.__new__(base)
    plain.__dict__.update(
        {name: v.copy() if isinstance(v, dict) else v for name, v in layer.__dict__.items()}
    )
    for name in ("weight_quantizer", "input_quantizer"):
        plain._modules.pop(name, None)
        plain.__dict__.pop(name, None)
    old = layer.weight
    folded = layer.effective_weight().detach().clone()
    name = "weight" if "weight" in layer._parameters else "V"
    if name in layer._parameters:
        plain._parameters[name] = nn.Parameter(folded, requires_grad=old.requires_grad)
    else:
        plain.__dict__[name] = folded
    return plain.train(training)


def _plain_class(layer: QuantizedLayer) -> type[nn.Module]:
    """The framework's own class that a quantised class was built on."""
    for base in type(layer).__mro__:
        if issubclass(base, nn.Module) and not issubclass(base, QuantizedLayer):
            return base
    raise ConversionError(f"{type(layer).__name__} is built on no layer of a framework.")
