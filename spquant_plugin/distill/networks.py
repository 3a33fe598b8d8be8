"""Which network is meant, and which of its neurons show their potential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..convert.hosts import Hosts
from ..errors import DistillationError
from ..modules.potential import Keep

Potentials = dict[str, Tensor]


def eager(role: str, model: object) -> nn.Module:
    """The network as it is to be called: what a compiled one was made of.

    Compiled code shows no potentials, and would be compiled anew in order to.
    """
    if not isinstance(model, nn.Module):
        name = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise DistillationError(
            f"DistillationLoss({role}={name}): must be a torch.nn.Module. Pass the network itself."
        )
    network: nn.Module = model
    while "_orig_mod" in network._modules:
        network = network.get_submodule("_orig_mod")
    for path, module in network.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise DistillationError(
                f"DistillationLoss({role}=...): {path or '(model)'} ({type(module).__name__}) is "
                "compiled inside of it: potentials can be read from code that is not compiled "
                "only. Pass the network as it was before, which has the same parameters."
            )
    if isinstance(network, DataParallel):
        raise DistillationError(
            f"DistillationLoss({role}=DataParallel): its copies of the network keep their "
            "potentials to themselves. Use DistributedDataParallel, or the network in it."
        )
    return network


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers like DistributedDataParallel, whose paths are the user's."""
    while isinstance(model, DistributedDataParallel) or _is_wrapper(model):
        model = model.get_submodule("module")
    return model


def _is_wrapper(model: nn.Module) -> bool:
    own = [*model._parameters, *model._buffers]
    return list(model._modules) == ["module"] and model._modules["module"] is not None and not own


def spiking_paths(role: str, model: nn.Module, wanted: Iterable[str] | None) -> list[str]:
    """Paths of the neurons that show their potential; those that do not are refused.

    ``wanted`` are paths that the caller gave; None means all of them.
    """
    hosts, found = Hosts(), []
    for path, module in model.named_modules():
        if wanted is not None and path not in wanted:
            continue
        if shows_potential(module, hosts):
            found.append(path)
        elif _fires(module, hosts):
            raise DistillationError(
                f"{role}: {path or '(model)'} ({type(module).__name__}) has dynamics of its own: "
                "its potential before firing is not known. Pass layers=[...] without it."
            )
    return found


def shows_potential(module: nn.Module, hosts: Hosts) -> bool:
    """Whether a module is a neuron whose potential before firing can be read."""
    undo = watch(module, hosts, lambda potential, sequence: None)
    if undo is not None:
        undo()
    return undo is not None


def _fires(module: nn.Module, hosts: Hosts) -> bool:
    known = hosts.neuron_kind(module)
    return known is not None and known[1].action != "keep"


def watch(module: nn.Module, hosts: Hosts, keep: Keep) -> Any:
    """Start to watch, and return what ends it; None for what is no neuron."""
    return next((u for host in hosts.all if (u := host.watch_potentials(module, keep))), None)


@contextmanager
def watched(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Potentials ``[t, N, ...]`` of each call of these neurons, by path in the order of calls.

    What watches is gone in the end, also after an error.
    """
    hosts, found = Hosts(), {}  # type: ignore[var-annotated]
    with ExitStack() as stack:
        for path in paths:
            undo = watch(model.get_submodule(path), hosts, _keep(path, found))
            stack.callback(undo)
        yield found


def _keep(path: str, found: dict[str, list[Tensor]]) -> Keep:
    def keep(potential: Tensor, sequence: bool) -> None:
        found.setdefault(path, []).append(potential if sequence else potential.unsqueeze(0))

    return keep


def joined(role: str, found: dict[str, list[Tensor]]) -> Potentials:
    """The potentials of all calls ``[T, N, ...]``, in single precision at least."""
    potentials = {}
    for path, parts in found.items():
        shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in parts))
        if len(shapes) > 1:
            raise DistillationError(
                f"{role}: {path} was called with steps of shapes {shapes[0]} and {shapes[1]}: must "
                "be the same in every call, for its calls are time steps. Leave it out of layers."
            )
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        potentials[path] = whole.to(torch.promote_types(whole.dtype, torch.float32))
    return potentials
