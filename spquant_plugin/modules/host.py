"""What conversion needs to know of a framework, as an interface that each host fills in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..config import SpQuantConfig
from .gates import ChannelGate
from .layers import TORCH_LAYERS, TORCH_NORMS
from .neuron import QuantizedNeuron
from .potential import Keep, Undo, watch_quantized
from .quantized_layer import QuantizedLayer
from .quantized_norm import QuantizedBatchNorm

# Hooks that act when a module is called, and those that act when it is saved or loaded.
STATE_HOOK_TABLES = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass(frozen=True)
class NeuronKind:
    """How a stateful module takes part in a conversion.

    ``action`` is "convert", "refuse" or "keep"; ``reason`` says why for the last two, and what it
    becomes for the first.
    """

    action: str
    reason: str


@dataclass(frozen=True)
class NeuronUpdate:
    """What one time step of a spiking neuron computes.

    ``leaks`` are the states that it multiplies by a decay, ``soft`` says that it resets by
    subtracting its threshold.
    """

    leaks: int
    soft: bool


@dataclass(frozen=True)
class TimeWay:
    """How a layer whose weight changes with the time step gets to know its step.

    ``kind`` is "sequence" (it is given all steps), "folded" (a container tells how many steps its
    batch holds), "counted" (it is called once per step), "unknown" where only a dry run can say, or
    "refuse". ``reason`` says why for the last two.
    """

    kind: str
    reason: str = ""


class Host:
    """Base of the two hosts: knows torch's own layers and no neuron."""

    layers: dict[type[nn.Module], type[QuantizedLayer]] = TORCH_LAYERS
    norms: dict[type[nn.Module], type[QuantizedBatchNorm]] = TORCH_NORMS
    channel_gate: type[ChannelGate] = ChannelGate
    # Whether neurons return their membrane too, so that a loss may read the last one's.
    returns_membrane = False

    def neuron_kind(self, module: nn.Module) -> NeuronKind | None:
        """What to do with a stateful module of this host; None for any other module."""
        return None

    def neuron_update(self, module: nn.Module) -> NeuronUpdate | None:
        """What a step of this neuron computes; None where its class is not known."""
        return None

    def watch_potentials(self, neuron: nn.Module, keep: Keep) -> Undo | None:
        """Have ``keep`` told the potentials before firing of every forward, until undone.

        None where this neuron's potential is not known.
        """
        return watch_quantized(neuron, keep) if isinstance(neuron, QuantizedNeuron) else None

    def build_neuron(
        self, neuron: nn.Module, config: SpQuantConfig, channels: int | None
    ) -> nn.Module:
        """The quantised twin of a neuron, at rest."""
        raise NotImplementedError

    def channels(self, neuron: nn.Module, shape: tuple[int, ...]) -> int | None:
        """Number of channels that a neuron sees, from the shape of its input in a dry run."""
        return shape[1] if len(shape) > 1 else None

    def states(self, module: nn.Module) -> Iterable[tuple[Any, Any]]:
        """Pairs of a running state and the value it has at rest."""
        return ()

    def named_states(self, module: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """Running states by name; a state may be several tensors under one name."""
        return ()

    def reset(self, module: nn.Module) -> None:
        """Bring one module to rest, if it is of this host."""

    def tells_time(self, module: nn.Module) -> bool:
        """Whether a module of this host knows when a sequence begins."""
        return self.neuron_kind(module) is not None

    def time_way(self, model: nn.Module, path: str) -> TimeWay:
        """How the weight layer at this path of a model gets to know the time step."""
        return TimeWay("counted")

    def time_container(self, module: nn.Module) -> nn.Module | None:
        """The twin of a container that folds steps into the batch, if it is one."""
        return None

    def attach_counter(self, layer: QuantizedLayer, model: nn.Module) -> None:
        """Have a layer whose weights change with the time step hear where sequences begin.

        For frameworks whose layers know no time; others build their counters with the layer.
        """

    def enter(self, model: nn.Module) -> None:
        """Make a changed or copied model known to the host's global books."""

    def leave(self, modules: Iterable[nn.Module]) -> None:
        """Take modules that are no longer used out of the host's global books."""


def carry_over(new: nn.Module, old: nn.Module, but: Iterable[str] = ()) -> None:
    """Give ``new`` the very parameters, buffers, children, hooks and mode of ``old``.

    The same Parameter objects, so that ties and optimizers hold. Names in ``but`` stay as they are.
    """
    skip = set(but)
    for name, parameter in old._parameters.items():
        if name not in skip:
            setattr(new, name, parameter)
    for name, buffer in old._buffers.items():
        if name not in skip and name in new._buffers:
            new._buffers[name] = buffer
    for name, child in old._modules.items():
        if name not in skip and name in new._modules:
            new._modules[name] = child
    for table in (*HOOK_TABLES, *STATE_HOOK_TABLES):
        if table in old.__dict__:
            held = old.__dict__[table]
            new.__dict__[table] = held.copy() if hasattr(held, "copy") else held
    new.training = old.training
