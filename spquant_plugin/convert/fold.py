"""Quantised layers back into plain ones, for tools that know plain layers only."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ConversionError
from ..modules.quantized_layer import QuantizedLayer, shallow
from .apply import _replace
from .copying import copy_at_rest
from .hosts import Hosts, require_model


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
    for path, layer in require_model(model).named_modules():
        if isinstance(layer, QuantizedLayer):
            _check(path, layer)
    model = copy_at_rest(model)
    folded: dict[int, nn.Parameter] = {}
    for layer in list(model.modules()):
        if isinstance(layer, QuantizedLayer):
            model = _replace(model, layer, _plain(layer, folded))
    for module in model.modules():  # whoever else held such a weight: ties stay ties
        for name, parameter in module._parameters.items():
            if id(parameter) in folded:
                module._parameters[name] = folded[id(parameter)]
    for host in Hosts().all:
        host.enter(model)
    return model


def _check(path: str, layer: QuantizedLayer) -> None:
    if layer.input_quantizer is not None:
        raise ConversionError(
            f"{path or '(model)'} ({type(layer).__name__}) quantises its input "
            f"({layer.input_quantizer.rule}): a plain layer cannot. Convert with input=None and "
            "feed the model whole numbers, or keep the quantised layer."
        )


def _plain(layer: QuantizedLayer, folded: dict[int, nn.Parameter]) -> nn.Module:
    training = layer.training
    layer.eval()
    base = layer.plain_class or _plain_class(layer)
    plain = base.__new__(base)
    plain.__dict__.update({name: shallow(value) for name, value in layer.__dict__.items()})
    for name in ("weight_quantizer", "input_quantizer"):
        plain._modules.pop(name, None)
        plain.__dict__.pop(name, None)
    name = "weight" if "weight" in layer._parameters else "V"
    old = layer.weight
    value = layer.effective_weight().detach().clone()
    if name in layer._parameters:
        new = nn.Parameter(value, requires_grad=old.requires_grad)
        plain._parameters[name] = folded.setdefault(id(old), new)
    else:
        plain.__dict__[name] = value
    return plain.train(training)


def _plain_class(layer: QuantizedLayer) -> type[nn.Module]:
    """The framework's own class that a hand-written quantised layer was built on."""
    for base in type(layer).__mro__:
        if issubclass(base, nn.Module) and not issubclass(base, QuantizedLayer):
            return base
    raise ConversionError(f"{type(layer).__name__} is built on no layer of a framework.")
