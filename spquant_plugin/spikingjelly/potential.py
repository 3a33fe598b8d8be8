"""Potentials of SpikingJelly's own neurons, which no forward of theirs gives away.

The neuron's single step runs again on the input and the state that it had, with another firing
function. One that never fires makes the state that is left the potential itself, bit for bit: the
host's resets give ``0 * v_reset + 1 * u`` and ``u - 0 * V``. One that fires what the neuron fired
gives the next state, so that nothing is decided twice and the spikes' own gradient goes on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.potential import Keep, Undo

States = tuple[Any, ...]


class _Firing:
    """Stands for a surrogate function."""

    spikes: Tensor | None = None

    def __call__(self, distance: Tensor) -> Tensor:
        return torch.zeros_like(distance) if self.spikes is None else self.spikes


class _Twin:
    """A neuron's step as a function, with what it fires handed in."""

    def __init__(self, neuron: nn.Module) -> None:
        # Shares the neuron's parameters; what is not the neuron's own dict does not reach it.
        self.neuron: Any = copy.copy(neuron)
        held = vars(self.neuron)
        held["_modules"] = {**held["_modules"]}
        held["_modules"].pop("surrogate_function", None)
        held["surrogate_function"] = self.firing = _Firing()

    def step(self, x: Tensor, states: States, spikes: Tensor | None) -> States:
        self.firing.spikes = spikes
        try:
            return self.neuron.single_step_functional_forward((x,), states)[1]
        finally:
            self.firing.spikes = None

    def potentials(self, x_seq: Tensor, states: States, spikes: Tensor) -> Tensor:
        """Those of all steps ``[T, N, ...]``, from the states before the first."""
        found, fired = [], spikes.unbind(0)
        for t, x in enumerate(x_seq.unbind(0)):
            found.append(self.step(x, states, None)[0])
            if t + 1 < len(x_seq):
                states = self.step(x, states, fired[t].to(found[-1].dtype))
        return torch.stack(found)


def watch_stock(neuron: nn.Module, keep: Keep) -> Undo:
    """Hand on the potentials of each forward of an IF, LIF or parametric LIF node."""
    own: Any = neuron
    before: list[States] = []

    def start(module: nn.Module, args: Any, kwargs: Any) -> None:
        before[:] = [tuple(own._memories.values())]

    def end(module: nn.Module, args: Any, kwargs: Any, spikes: Tensor) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        twin = _Twin(neuron)
        states = own.materialize_states((x,), before.pop(), own.step_mode)
        if own.step_mode == "m":
            keep(twin.potentials(x, states, spikes), True)
        else:
            keep(twin.step(x, states, None)[0], False)

    handles = (
        # Behind hooks that change the input, before those that change the output.
        neuron.register_forward_pre_hook(start, with_kwargs=True),
        neuron.register_forward_hook(end, with_kwargs=True, prepend=True),
    )

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
