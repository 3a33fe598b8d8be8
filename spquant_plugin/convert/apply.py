"""Conversion: a plan, carried out on a copy or in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from ..config import SpQuantConfig
from ..errors import ConversionError, SelfFiringWarning
from ..modules.device import device_of
from ..modules.mint import share_scale
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from .copying import copy_at_rest
from .hosts import Hosts
from .pairing import channel_axis
from .plan import ConversionPlan, GateStep, LayerStep, NeuronStep, NormStep
from .planner import plan


def convert(
    model: nn.Module,
    config: SpQuantConfig,
    sample: Any = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    on_unmatched: str = "error",
) -> nn.Module:
    """Return a low-precision copy of a SpikingJelly or snnTorch model.

    The original is never run, reset or changed. Build the optimizer after conversion.

    ``sample`` is what one call of the model takes (a tensor, a tuple of arguments, a dict of
    keyword arguments). It is run once, on another copy, to learn the order and the shapes; without
    it, the order of registration decides which layers are first and last.

    ``include`` and ``exclude`` take selectors: an exact path (which covers what it holds),
    ``"re:"`` and a regular expression, or a class name. ``on_unmatched`` says what happens when a
    selector or the whole configuration matches nothing: ``"error"``, ``"warn"`` or ``"ignore"``.

    >>> import torch, spquant_plugin as spq
    >>> from torch import nn
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(2, 3), neuron.LIFNode(), layer.Linear(3, 2))
    >>> quantized = spq.convert(net, spq.presets.quant_snn(), torch.rand(1, 2).round())
    >>> type(quantized[1]).__name__
    'TernaryMembraneLIFNode'
    >>> sorted(set(quantized.state_dict()) - set(net.state_dict()))
    ['1.membrane_unit']
    """
    table = plan(model, config, sample, include=include, exclude=exclude, on_unmatched=on_unmatched)
    table.raise_if_refused()
    _warn_of_self_firing(table)
    return _carry_out(copy_at_rest(model), table)


def convert_(
    model: nn.Module,
    config: SpQuantConfig,
    sample: Any = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    on_unmatched: str = "error",
) -> nn.Module:
    """Convert a model in place, and return it. Arguments as for :func:`convert`.

    >>> import spquant_plugin as spq
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    >>> _ = spq.convert_(net, spq.SpQuantConfig(weights=spq.UniformWeights(4)))
    >>> type(net[0]).__name__
    'QuantizedLinear'
    """
    table = plan(model, config, sample, include=include, exclude=exclude, on_unmatched=on_unmatched)
    table.raise_if_refused()
    if any(step.path == "" for step in table.steps):
        raise ConversionError(
            f"(model) ({type(model).__name__}): convert_ cannot replace the module that it was "
            "given. Use model = spq.convert(model, config)."
        )
    _warn_of_self_firing(table)  # before anything is changed: a warning may be an error
    return _carry_out(model, table)


def _carry_out(model: nn.Module, table: ConversionPlan) -> nn.Module:
    hosts, replaced = Hosts(), []
    devices = _nearest_devices(model)
    # A rebuilt neuron hands its inner layers on, so neurons go first.
    for step in sorted(table.steps, key=lambda step: isinstance(step, LayerStep)):
        old = model.get_submodule(step.path)
        new = _build(step, old, devices[step.path])
        replaced.append(old)
        model = _replace(model, old, new)
    for norm in table.norms:
        _quantize_norm(model, norm)
    for neuron, layer in table.scales.items():
        share_scale(model.get_submodule(neuron), cast(QuantizedLayer, model.get_submodule(layer)))
    for gate in table.gates:
        _attach_gate(model, gate)
    model = _tell_time(model, table, hosts)
    for host in hosts.all:
        host.leave(replaced)
        host.enter(model)
    return model


def _tell_time(model: nn.Module, table: ConversionPlan, hosts: Hosts) -> nn.Module:
    """Have layers whose weight changes with the time step know their step."""
    layers = {step.path: model.get_submodule(step.path) for step in table.steps}
    timed = {p: m for p, m in layers.items() if isinstance(m, QuantizedLayer) and m.is_temporal}
    for path, layer in timed.items():
        layer.path = path
        for host in hosts.all:
            if any(map(host.tells_time, model.modules())):
                host.attach_counter(layer, model)
    for module in list(model.modules()):
        inside = any(layer in timed.values() for layer in module.modules())
        twin = next(filter(None, (h.time_container(module) for h in hosts.all)), None)
        if inside and twin is not None:
            model = _replace(model, module, twin)
    return model


def _quantize_norm(model: nn.Module, step: NormStep) -> None:
    """A norm behind a layer that is what it will be; so the norm is never the whole model."""
    old, layer = model.get_submodule(step.path), model.get_submodule(step.layer)
    _replace(model, old, step.target.from_float(old, step.rule, cast(QuantizedLayer, layer)))


def _attach_gate(model: nn.Module, step: GateStep) -> None:
    """A gate between modules that are what they will be; it is a child of the layer it gates."""
    pair, rule = step.pair, step.rule
    layer: Any = model.get_submodule(step.path)
    source = model.get_submodule(pair.source) if pair.source is not None else None
    gate = step.host.channel_gate(
        _input_channels(layer) if rule.source == "input" else pair.source_channels,
        pair.channels,
        rule.threshold,
        rule.score,
        rule.source,
        neuron=source if isinstance(source, QuantizedNeuron) else None,
        channel_dim=pair.channel_dim,
    )
    layer.add_module("channel_gate", gate.to(device=device_of(layer), dtype=layer.weight.dtype))
    gate.train(layer.training)
    gate.attach(layer, model.get_submodule(pair.end or step.path), channel_axis(layer) or -1)


def _input_channels(layer: nn.Module) -> int:
    own: Any = layer
    return own.in_features if isinstance(layer, nn.Linear) else own.in_channels


def _warn_of_self_firing(table: ConversionPlan) -> None:
    for path, warning in table.self_firing.items():
        warnings.warn(f"{path or '(model)'}: {warning}", SelfFiringWarning, stacklevel=3)


def _build(step: NeuronStep | LayerStep, old: nn.Module, device: torch.device | None) -> nn.Module:
    if isinstance(step, LayerStep):
        return step.target.from_float(old, step.weights, step.input)
    new = step.host.build_neuron(old, step.config, step.channels)
    return new if device is None else new.to(device)


def _nearest_devices(model: nn.Module) -> dict[str, torch.device | None]:
    """Device of each module: its own, or that of the nearest module before it that has one."""
    device, found = device_of(model), {}
    for path, module in model.named_modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        device = next((tensor.device for tensor in own if tensor is not None), device)
        found[path] = device
    return found


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` stands, which may be several places."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return model
