"""Neurons of a throw-away copy, run one step after the other so that each step can be watched."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ...convert.hosts import Hosts
from ...errors import AnalysisError
from ...modules.neuron import QuantizedNeuron
from ..modules import MEMBRANES, kind_of

# Takes path, spikes and stored membrane of one step; what it returns is stored instead.
AfterStep = Callable[[str, Tensor, Tensor], Tensor]


def spiking_neurons(model: nn.Module) -> dict[str, nn.Module]:
    """The neuron layers of a model by path, each once; at least one of them keeps a membrane."""
    hosts = Hosts()
    found = {p: m for p, m in model.named_modules() if kind_of(m, hosts) == "neuron"}
    if not any(map(membrane_name, found.values())):
        raise AnalysisError(
            f"{type(model).__name__}: holds {len(found)} spiking neuron layers that keep a "
            "membrane between steps: there must be at least one. Pass a network with neurons of "
            "SpikingJelly or snnTorch."
            if not found
            else f"{type(model).__name__}: none of its {len(found)} neuron layers keeps a membrane "
            "between steps: there must be at least one that does. Pass another network."
        )
    return found


def membrane_name(neuron: nn.Module) -> str | None:
    """What the neuron's host calls its membrane; None for one that keeps none."""
    return next((name for name in MEMBRANES if hasattr(neuron, name)), None)


def watch_steps(model: nn.Module, after: AfterStep) -> None:
    """Have the neurons of a copy call ``after`` at the end of each step of theirs.

    Those that run all steps at once are called with one step after the other, which gives the same.
    """
    for path, neuron in spiking_neurons(model).items():
        name = membrane_name(neuron)
        if name is not None:
            stepper = _Stepper(path, neuron, name, after)
            at_once = getattr(neuron, "step_mode", "s") == "m"
            # Not a hook: what the neuron's own hooks see is to be the result.
            neuron.forward = stepper.all_steps if at_once else stepper.one_step


class _Stepper:
    """Stands for the ``forward`` of one neuron."""

    def __init__(self, path: str, neuron: nn.Module, name: str, after: AfterStep) -> None:
        self.path, self.neuron, self.name, self.after = path, neuron, name, after
        self.forward = neuron.forward

    def one_step(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = self.neuron
        output = self.forward(*args, **kwargs)
        stored: Tensor = getattr(own, self.name)
        kept = self.after(self.path, _tensors(output)[0].reshape(stored.shape), stored)
        if kept is stored:
            return output
        setattr(own, self.name, kept)
        if getattr(own, "store_v_seq", False):
            own.v_seq = torch.cat([own.v_seq[:-1], kept[None]])
        # An explicit loop hands in what it was given, so that has to be the new one as well.
        return tree_map_only(Tensor, lambda tensor: kept if tensor is stored else tensor, output)

    def all_steps(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = self.neuron
        outputs, recorded, told, began = [], [], [], True
        for step in range(len(_tensors((args, kwargs))[0])):
            at = slice(step, step + 1)
            now_args, now_kwargs = tree_map_only(Tensor, itemgetter(at), (args, kwargs))
            outputs.append(self.one_step(*now_args, **now_kwargs))
            if getattr(own, "store_v_seq", False):
                recorded.append(own.v_seq)
            sums = own.level_sums if isinstance(own, QuantizedNeuron) and own.watched else None
            if sums is not None:
                told.append(sums)
                began = own.began if step == 0 else began
        if recorded:
            own.v_seq = torch.cat(recorded)
        if told:  # channel gates read all steps of it
            own.level_sums, own.began = torch.cat(told), began
        return tree_map(lambda *parts: torch.cat(parts), *outputs)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
