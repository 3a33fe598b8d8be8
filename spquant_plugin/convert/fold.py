"""Quantised layers back into plain ones, for tools that know plain layers only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..modules.host import HOOK_TABLES
from ..modules.quantized_layer import QuantizedLayer, shallow
from ..modules.quantized_norm import QuantizedBatchNorm
from .apply import _replace
from .copying import copy_at_rest
from .hosts import Hosts, require_model

# What a quantised layer has beside its framework's own.
OWN = (
    "weight_quantizer",
    "input_quantizer",
    "hands_scale_on",
    "handed_scale",
    "folded_norm",
    "counter",
)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a copy whose quantised layers are plain layers that hold the quantised weights.

    The copy computes the same within float tolerance. Neurons stay as they are. A quantised norm
    becomes a plain one with the factors of eval mode; one in mode ``fold`` goes into weight and
    bias of its layer and becomes an ``nn.Identity``. A layer that quantises its input has no plain
    twin and is refused.

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
    ties = _Ties()
    for parent in list(model.modules()):
        for layer in parent.children():
            if isinstance(layer, QuantizedLayer):
                ties.hold(parent, layer)
    for norm in list(model.modules()):  # while their layers are what they follow
        if isinstance(norm, QuantizedBatchNorm):
            gone = norm.rule.mode == "fold"
            model = _replace(model, norm, _identity(norm) if gone else _plain_norm(norm))
    for layer in list(model.modules()):
        if isinstance(layer, QuantizedLayer):
            model = _replace(model, layer, _plain(layer, ties))
    for host in Hosts().all:
        host.enter(model)
    return model


class _Ties:
    """Weights that several modules share, which stay shared where they still agree.

    One weight under two rules (an edge and a hidden layer, say) folds into two.
    """

    def __init__(self) -> None:
        self._folded: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._owners: list[tuple[nn.Module, str, QuantizedLayer]] = []

    def hold(self, parent: nn.Module, layer: QuantizedLayer) -> None:
        """Remember a parent that holds its child's weight as its own, as RLeaky does with V."""
        for name, parameter in parent._parameters.items():
            if parameter is not None and parameter is layer.weight:
                self._owners.append((parent, name, layer))

    def fold(self, layer: QuantizedLayer, value: Tensor) -> nn.Parameter:
        """The one new parameter for this weight and this value."""
        for old, new in self._folded:
            if old is layer.weight and torch.equal(new, value):
                return new
        new = nn.Parameter(value, requires_grad=layer.weight.requires_grad)
        self._folded.append((layer.weight, new))
        for parent, name, child in self._owners:
            if child is layer:
                parent._parameters[name] = new
        return new


def _check(path: str, layer: QuantizedLayer) -> None:
    if layer.is_temporal:
        raise ConversionError(
            f"{path or '(model)'} ({type(layer).__name__}) holds weights that change with the time "
            "step: a plain layer has one weight for all steps. Keep the quantised layer, or deploy "
            "it with spq.to_integer."
        )
    if layer.input_quantizer is not None:
        raise ConversionError(
            f"{path or '(model)'} ({type(layer).__name__}) quantises its input "
            f"({layer.input_quantizer.rule}): a plain layer cannot. Convert with input=None and "
            "feed the model whole numbers, or keep the quantised layer."
        )


def _plain(layer: QuantizedLayer, ties: _Ties) -> nn.Module:
    training = layer.training
    layer.eval()
    base = layer.plain_class or _plain_class(layer)
    plain = base.__new__(base)
    plain.__dict__.update({name: shallow(value) for name, value in layer.__dict__.items()})
    for name in OWN:
        plain._modules.pop(name, None)
        plain.__dict__.pop(name, None)
    name = "weight" if "weight" in layer._parameters else "V"
    value = layer.effective_weight().detach().clone()
    if name in layer._parameters:
        plain._parameters[name] = ties.fold(layer, value)
    else:
        plain.__dict__[name] = value
    bias = layer.present_bias() if layer.folded_norm else None
    if bias is not None:
        plain._parameters["bias"] = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    return plain.train(training)


def _identity(norm: QuantizedBatchNorm) -> nn.Module:
    """What is left of a norm whose factors are in its layer; gates may hang on it."""
    plain = nn.Identity().train(norm.training)
    tables = {n: shallow(value) for n, value in norm.__dict__.items() if n in HOOK_TABLES}
    plain.__dict__.update(tables)
    return plain


def _plain_norm(norm: QuantizedBatchNorm) -> nn.Module:
    """Its weight and bias make up for the rounding; the statistics stay."""
    base = norm.plain_class or _plain_class(norm)
    plain: Any = base.__new__(base)
    plain.__dict__.update({name: shallow(value) for name, value in norm.__dict__.items()})
    for name in ("rule", "_layer"):
        del plain.__dict__[name]
    for name, value in zip(("weight", "bias"), norm.plain_affine(), strict=True):
        own = plain._parameters[name]
        learns = own is not None and own.requires_grad
        plain._parameters[name] = nn.Parameter(value, requires_grad=learns)
    plain.affine = True
    return plain


def _plain_class(layer: nn.Module) -> type[nn.Module]:
    """The framework's own class that a hand-written quantised layer or norm was built on."""
    ours = (QuantizedLayer, QuantizedBatchNorm)
    for base in type(layer).__mro__:
        inside = issubclass(base, ours) or any(issubclass(kind, base) for kind in ours)
        if not inside and issubclass(base, nn.Module):
            return base
    raise ConversionError(f"{type(layer).__name__} is built on no layer of a framework.")
