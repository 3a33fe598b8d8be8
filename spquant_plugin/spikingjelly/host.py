"""How conversion finds, rebuilds and resets SpikingJelly's modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from spikingjelly.activation_based.functional import net_config
from torch import nn

from ..config import SpQuantConfig
from ..modules.host import Host, NeuronKind, NeuronUpdate, TimeWay, carry_over
from ..modules.potential import Keep, Undo
from ..modules.quantized_layer import QuantizedLayer
from . import surrogate
from .container import TemporalSeqToANNContainer
from .layer import LAYERS, NORMS, ChannelGate
from .neuron import (
    TernaryMembraneIFNode,
    TernaryMembraneLIFNode,
    TernaryMembraneParametricLIFNode,
)
from .potential import watch_stock
from .step_counter import StepCounter
from .time_way import time_way

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    neuron.IFNode: TernaryMembraneIFNode,
    neuron.LIFNode: TernaryMembraneLIFNode,
    neuron.ParametricLIFNode: TernaryMembraneParametricLIFNode,
}
LEAKS = {neuron.IFNode: 0, neuron.LIFNode: 1, neuron.ParametricLIFNode: 1}
LEAKS |= {TWINS[kind]: leaks for kind, leaks in LEAKS.items()}
NEURON_PACKAGE = neuron.__name__


class SpikingJellyHost(Host):
    """SpikingJelly 2."""

    layers = LAYERS
    norms = NORMS
    channel_gate = ChannelGate

    def neuron_kind(self, module: nn.Module) -> NeuronKind | None:
        kind = type(module)
        if kind in TWINS:
            return NeuronKind("convert", f"becomes {TWINS[kind].__name__}")
        if isinstance(module, neuron.NonSpikingBaseNode):
            return NeuronKind("keep", "does not spike: its potential is an output, in float")
        if isinstance(module, neuron.BaseNode | neuron.SimpleBaseNode) or any(
            base_class.__module__.startswith(NEURON_PACKAGE) for base_class in kind.__mro__
        ):
            listed = ", ".join(twin.__name__ for twin in TWINS)
            parent = next((base for base in kind.__mro__[1:] if base in TWINS), None)
            what = "has dynamics of its own"
            if parent is not None:
                what = f"is a subclass of {parent.__name__} with code of its own"
            return NeuronKind("refuse", f"{kind.__name__} {what}: convertible are {listed}")
        if isinstance(module, base.MemoryModule):
            return NeuronKind("keep", "stateful, but no spiking neuron")
        return None

    def neuron_update(self, module: nn.Module) -> NeuronUpdate | None:
        own: Any = module
        leaks = LEAKS.get(type(module))
        return None if leaks is None else NeuronUpdate(leaks, soft=own.v_reset is None)

    def tells_time(self, module: nn.Module) -> bool:
        return isinstance(module, base.StepModule)

    def time_way(self, model: nn.Module, path: str) -> TimeWay:
        return time_way(model, path)

    def time_container(self, module: nn.Module) -> nn.Module | None:
        if type(module) is not layer.SeqToANNContainer:
            return None
        return TemporalSeqToANNContainer.from_host(module)

    def attach_counter(self, layer: QuantizedLayer, model: nn.Module) -> None:
        path = next(path for path, module in model.named_modules() if module is layer)
        way = time_way(model, path)
        if layer.counter is None and way.kind != "folded":
            counter: Any = StepCounter()
            # In a network of sequences a layer of torch's own passed the dry run with sequences.
            counter.step_mode = "m" if way.kind == "unknown" else "s"
            layer.counter = counter

    def watch_potentials(self, neuron: nn.Module, keep: Keep) -> Undo | None:
        if type(neuron) in TWINS:
            return watch_stock(neuron, keep)
        return super().watch_potentials(neuron, keep)

    def build_neuron(
        self, neuron: nn.Module, config: SpQuantConfig, channels: int | None
    ) -> nn.Module:
        old: Any = neuron
        twin = TWINS[type(neuron)]
        options: dict[str, Any] = {
            "v_threshold": old.v_threshold,
            "v_reset": old.v_reset,
            "surrogate_function": old.surrogate_function
            if config.surrogate is None
            else surrogate.Triangle(config.surrogate.width),
            "detach_reset": old.detach_reset,
            "step_mode": old.step_mode,
            "store_v_seq": old.store_v_seq,
            "membrane": config.membrane,
        }
        if twin is TernaryMembraneLIFNode:
            options |= {"tau": old.tau, "decay_input": old.decay_input}
        if twin is TernaryMembraneParametricLIFNode:
            options |= {"decay_input": old.decay_input}
        # The threshold learns only once the decay is the old neuron's: its bounds depend on it.
        new: Any = twin(**options)
        carry_over(new, neuron, but=("surrogate_function",))
        new.install(config.membrane, config.threshold, channels, config.spatial_gate)
        return new

    def channels(self, neuron: nn.Module, shape: tuple[int, ...]) -> int | None:
        step = shape[1:] if getattr(neuron, "step_mode", "s") == "m" else shape
        return step[1] if len(step) > 1 else None

    def states(self, module: nn.Module) -> Iterable[tuple[Any, Any]]:
        if not isinstance(module, base.MemoryModule):
            return
        for name, value in module.named_memories():
            if isinstance(value, torch.Tensor):
                yield value, module.get_reset_value(name)
        if getattr(module, "v_seq", None) is not None:
            yield module.v_seq, None

    def named_states(self, module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
        held: list[tuple[str, Any]] = []
        if isinstance(module, base.MemoryModule):
            held = [*module.named_memories(), ("v_seq", getattr(module, "v_seq", None))]
        elif isinstance(module, neuron.NonSpikingBaseNode):
            held = [("v", getattr(module, "v", None))]
        for name, value in held:
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, torch.Tensor):
                    yield name, part

    def reset(self, module: nn.Module) -> None:
        ours = isinstance(module, base.MemoryModule) or any(
            kind.__module__.startswith("spikingjelly.") for kind in type(module).__mro__
        )
        if ours and callable(getattr(module, "reset", None)):
            cast(Any, module).reset()

    def enter(self, model: nn.Module) -> None:
        # An outer network may have cached the module list of the part that changed.
        for net in [*model.modules(), *net_config._RESET_MODULE_CACHE]:
            functional.invalidate_reset_cache(net)
