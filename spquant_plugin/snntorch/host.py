"""How conversion finds, rebuilds and resets snnTorch's modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from snntorch._neurons.rleaky import RecurrentOneToOne as LeakyOneToOne
from snntorch._neurons.rsynaptic import RecurrentOneToOne as SynapticOneToOne
from torch import nn

from ..config import SpQuantConfig
from ..errors import ConversionError
from ..modules.host import Host, NeuronKind, NeuronUpdate, carry_over
from ..modules.potential import Keep, Undo
from ..modules.quantized_layer import QuantizedLayer
from . import step_counter, surrogate
from .layer import LAYERS, QuantizedOneToOne
from .neuron import (
    TernaryLapicque,
    TernaryLeaky,
    TernaryRLeaky,
    TernaryRSynaptic,
    TernarySynaptic,
)
from .potential import watch_stock
from .step_counter import StepClock

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    snn.Leaky: TernaryLeaky,
    snn.Lapicque: TernaryLapicque,
    snn.Synaptic: TernarySynaptic,
    snn.RLeaky: TernaryRLeaky,
    snn.RSynaptic: TernaryRSynaptic,
}
LEAKS = {kind: 2 if kind in (snn.Synaptic, snn.RSynaptic) else 1 for kind in TWINS}
LEAKS |= {TWINS[kind]: leaks for kind, leaks in LEAKS.items()}
ONE_TO_ONE = (LeakyOneToOne, SynapticOneToOne)
TABLE: dict[type[nn.Module], type[QuantizedLayer]] = {
    **LAYERS,
    **dict.fromkeys(ONE_TO_ONE, QuantizedOneToOne),
}
STATES = ("mem", "syn", "spk", "fired", "reset")


class SnnTorchHost(Host):
    """snnTorch 1."""

    returns_membrane = True
    layers = TABLE

    def neuron_kind(self, module: nn.Module) -> NeuronKind | None:
        kind = type(module)
        if kind in TWINS:
            return NeuronKind("convert", f"becomes {TWINS[kind].__name__}")
        if isinstance(module, ONE_TO_ONE):
            return None
        if isinstance(module, SpikingNeuron) or kind.__module__.startswith("snntorch._neurons"):
            listed = ", ".join(twin.__name__ for twin in TWINS)
            parent = next((base for base in kind.__mro__[1:] if base in TWINS), None)
            what = "has dynamics of its own"
            if parent is not None:
                what = f"is a subclass of {parent.__name__} with code of its own"
            return NeuronKind("refuse", f"{kind.__name__} {what}: convertible are {listed}")
        return None

    def neuron_update(self, module: nn.Module) -> NeuronUpdate | None:
        own: Any = module
        leaks = LEAKS.get(type(module))
        soft = leaks is not None and own.reset_mechanism == "subtract"
        return None if leaks is None else NeuronUpdate(leaks, soft)

    def watch_potentials(self, neuron: nn.Module, keep: Keep) -> Undo | None:
        if type(neuron) in TWINS:
            return watch_stock(neuron, keep)
        return super().watch_potentials(neuron, keep)

    def build_neuron(
        self, neuron: nn.Module, config: SpQuantConfig, channels: int | None
    ) -> nn.Module:
        _check_dynamics(neuron)
        known = len(SpikingNeuron.instances)
        try:
            return _build(neuron, config, channels)
        except Exception:
            del SpikingNeuron.instances[known:]  # the half-built neuron entered the list
            raise

    def tells_time(self, module: nn.Module) -> bool:
        return step_counter.tells_time(module)

    def attach_counter(self, layer: QuantizedLayer, model: nn.Module) -> None:
        step_counter.attach(layer, model)

    def states(self, module: nn.Module) -> Iterable[tuple[Any, Any]]:
        if isinstance(module, StepClock) and module.left is not None:
            yield module.left, torch.zeros_like(module.left)
        if not isinstance(module, SpikingNeuron):
            return
        for name in (*STATES, *module._buffers):
            value = getattr(module, name, None)
            if isinstance(value, torch.Tensor) and _is_state(module, name):
                yield value, torch.zeros_like(value)

    def named_states(self, module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
        if isinstance(module, SpikingNeuron):
            for name in dict.fromkeys((*STATES, *module._buffers)):
                value = getattr(module, name, None)
                if isinstance(value, torch.Tensor) and _is_state(module, name):
                    yield name, value

    def reset(self, module: nn.Module) -> None:
        if isinstance(module, StepClock):
            module.begin()
        if not isinstance(module, SpikingNeuron):
            return
        for name in (*STATES, *module._buffers):
            value = getattr(module, name, None)
            if isinstance(value, torch.Tensor) and _is_state(module, name):
                setattr(module, name, torch.zeros_like(value))

    def enter(self, model: nn.Module) -> None:
        known = {id(instance) for instance in SpikingNeuron.instances}
        SpikingNeuron.instances.extend(
            module
            for module in model.modules()
            if isinstance(module, SpikingNeuron) and id(module) not in known
        )

    def leave(self, modules: Iterable[nn.Module]) -> None:
        gone = {id(module) for module in modules}
        # In place: the host's classes share this very list.
        SpikingNeuron.instances[:] = [
            instance for instance in SpikingNeuron.instances if id(instance) not in gone
        ]


def _build(neuron: nn.Module, config: SpQuantConfig, channels: int | None) -> nn.Module:
    with warnings.catch_warnings():
        # The user was told that inhibition is unstable when the neuron was made.
        warnings.filterwarnings("ignore", "Inhibition is an unstable feature")
        new: Any = TWINS[type(neuron)](**_options(neuron, config), membrane=None)
    carry_over(new, neuron, but=(*STATES, "spike_grad"))
    new.state_function = None  # the host's dispatch, which our forward does not use
    new.install(config.membrane, config.threshold, channels, config.spatial_gate)
    new.check()
    return new


def _check_dynamics(neuron: Any) -> None:
    """The host binds its dynamics once; a mechanism that was set afterwards never acts."""
    bound = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    acting = bound.get(getattr(neuron.state_function, "__name__", ""))
    if acting is not None and acting != neuron.reset_mechanism:
        raise ConversionError(
            f"{type(neuron).__name__}.reset_mechanism = {neuron.reset_mechanism!r} was set after "
            f"the neuron was made, which still resets by {acting!r}: both must agree. Make the "
            f"neuron with reset_mechanism={neuron.reset_mechanism!r}."
        )


def _is_state(module: nn.Module, name: str) -> bool:
    """States are what the host keeps out of its state dict, and the last reset signal."""
    return name == "reset" or name in module._non_persistent_buffers_set


def _options(neuron: nn.Module, config: SpQuantConfig) -> dict[str, Any]:
    """Arguments that rebuild a neuron; its parameters and buffers follow afterwards."""
    old: Any = neuron
    options: dict[str, Any] = {
        "threshold": old.threshold.detach(),
        "spike_grad": old.spike_grad,
        "surrogate_disable": old.surrogate_disable,
        "init_hidden": old.init_hidden,
        "inhibition": old.inhibition,
        "learn_threshold": isinstance(old.threshold, nn.Parameter),
        "reset_mechanism": old.reset_mechanism,
        "state_quant": old.state_quant,
        "output": old.output,
    }
    if config.surrogate is not None:
        options |= {
            "spike_grad": surrogate.Triangle(config.surrogate.width),
            "surrogate_disable": False,
        }
    if isinstance(old, snn.Lapicque):
        # R, C and the time step are buffers, which follow; any decay serves to build it.
        return options | {"beta": 0.5}
    options |= {
        "beta": old.beta.detach(),
        "learn_beta": isinstance(old.beta, nn.Parameter),
        "reset_delay": old.reset_delay,
    }
    if isinstance(old, snn.Synaptic | snn.RSynaptic):
        options |= {
            "alpha": old.alpha.detach(),
            "learn_alpha": isinstance(old.alpha, nn.Parameter),
        }
    if isinstance(old, snn.RLeaky | snn.RSynaptic):
        options |= {
            "all_to_all": old.all_to_all,
            "linear_features": old.linear_features,
            "conv2d_channels": old.conv2d_channels,
            "kernel_size": old.kernel_size,
            "learn_recurrent": old.learn_recurrent,
        }
    return options
