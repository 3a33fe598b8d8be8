"""A run of the trained model that writes down what its tensors stand for.

Layers, norms, neurons and gates are taken as wholes: hooks around them turn the symbols of what
they read into the symbol of what they give, and what they compute inside is not looked at. What
happens in between, sums and pools and views, is seen operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from ..convert.hosts import Hosts
from ..convert.pairing import is_neuron, is_synapse
from ..convert.trace import tensors_in
from ..errors import DeployError
from ..modules.gates import ChannelGate
from . import functions, pools  # noqa: F401 (they register their handlers)
from .calls import HANDLERS, Call, Refused
from .draft import Draft
from .gates import lower_gate
from .layers import lower_layer, lower_norm
from .neurons import lower_neuron, membrane_symbol
from .symbol import Symbol

Known = Symbol | Refused
# What makes a tensor of its own from another one's shape.
FRESH = ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_empty", "new_full")


class Recorder(TorchDispatchMode):
    """Knows what each tensor of a run stands for."""

    def __init__(self, model: nn.Module, draft: Draft, steps: int) -> None:
        super().__init__()
        self.model, self.draft, self.steps = model, draft, steps
        self.known = WeakTensorKeyDictionary()
        self.depth = 0  # inside how many modules that are taken as wholes
        self.place: list[str] = []
        self.spikes: dict[str, Symbol] = {}  # of each neuron, in its last call
        self.heard: dict[str, Known | None] = {}  # what each weight layer read last
        self.calls: dict[str, int] = {}
        self.paths = {module: path for path, module in reversed([*model.named_modules()])}

    def of(self, tensor: Any) -> Known | None:
        """What a tensor stands for, None for a constant."""
        return self.known.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.depth == 0 and any(t in self.known for t in tensors_in((args, kwargs))):
            self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if any(func.name().startswith(f"aten::{name}") for name in FRESH):
            return

        def read(value: Any) -> Any:
            return self.known.get(value, value) if isinstance(value, Tensor) else value

        handler = HANDLERS.get(func)
        if handler is None:
            name = func.name().removeprefix("aten::")
            known: Any = Refused(
                f"{self._where()} computes {name!r}, which has no version on whole numbers. "
                "Replace it by layers, neurons, pools and sums, or move it behind the network."
            )
        else:
            call = Call(
                func, self.draft, tree_map(read, args), tree_map(read, kwargs), result, self.steps
            )
            try:
                known = handler(call)
            except DeployError as error:
                known = Refused(f"{self._where()}: {error}")
        self.mark(result, known)

    def mark(self, result: Any, known: Any) -> None:
        """Write down what tensors stand for; a list has one entry for each."""
        if isinstance(result, Tensor):
            self.known[result] = known
            return
        parts = [*tensors_in(result)]
        each = known if isinstance(known, list) else [known] * len(parts)
        for tensor, one in zip(parts, each, strict=False):
            self.known[tensor] = one

    def _where(self) -> str:
        path = self.place[-1] if self.place else ""
        kind = type(self.model.get_submodule(path)).__name__
        return f"{path or '(model)'} ({kind})"

    # Modules.

    def watch(self) -> None:
        """Hang hooks into the model, a copy that is thrown away."""
        hosts = Hosts()
        inside: set[str] = set()
        for path, module in self.model.named_modules():
            if any(path.startswith(f"{outer}.") for outer in inside) and not isinstance(
                module, ChannelGate
            ):
                continue
            lower = self._lowering(module, hosts)
            if lower is None:
                module.register_forward_pre_hook(self._enter(path), prepend=True)
                module.register_forward_hook(self._leave, prepend=True)
                continue
            inside.add(path)
            module.register_forward_pre_hook(
                self._begin(path, lower), prepend=True, with_kwargs=True
            )
            module.register_forward_hook(self._end(path, lower), prepend=True, with_kwargs=True)

    def _lowering(self, module: nn.Module, hosts: Hosts) -> Callable[..., Any] | None:
        if isinstance(module, ChannelGate):
            return self._gate
        if is_neuron(module, hosts):
            return self._neuron
        if is_synapse(module, hosts):
            return self._layer
        return self._norm if isinstance(module, _NormBase) else None

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda module, args: self.place.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.place.pop()

    def _begin(self, path: str, lower: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.place.append(path)
            if self.depth == 0 and lower == self._layer:
                first = next(tensors_in((args, kwargs)), None)
                self.heard[path] = self.of(first)
            self.depth += 1

        return hook

    def _end(self, path: str, lower: Callable[..., Any]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.depth -= 1
            if self.depth == 0:
                try:
                    lower(path, module, [*args, *kwargs.values()], output)
                except DeployError as error:
                    raise DeployError(f"{self._where()}: {error}") from None
            self.place.pop()

        return hook

    def _read(self, value: Any) -> Symbol:
        known = self.of(value)
        if isinstance(known, Symbol):
            return known
        if isinstance(known, Refused):
            raise DeployError(f"it reads a value that cannot be lowered. {known.reason}")
        raise DeployError("it reads a constant: must read what follows from the model's input.")

    def _layer(self, path: str, layer: Any, args: list[Any], output: Any) -> None:
        self._give(output, lower_layer(self.draft, path, layer, self._read(args[0])))

    def _norm(self, path: str, norm: Any, args: list[Any], output: Any) -> None:
        self._give(output, lower_norm(path, norm, self._read(args[0])))

    def _give(self, output: Tensor, symbol: Symbol) -> None:
        lead = tuple(output.shape[: output.ndim - len(symbol.shape)])
        self.mark(output, symbol.but(lead=lead))

    def _gate(self, path: str, gate: ChannelGate, args: list[Any], output: Any) -> None:
        x = self._read(args[0])
        if gate.source == "membrane":
            if gate.neuron is None or self.paths.get(gate.neuron) not in self.spikes:
                raise DeployError("its source neuron did not run before it: must be lowered.")
            source = self.spikes[self.paths[gate.neuron]]
        elif len(args) > 1 and args[1] is not None:
            source = self._read(args[1])
        else:
            heard = self.heard.get(path.rpartition(".")[0])
            if not isinstance(heard, Symbol):
                raise DeployError("what it reads cannot be lowered: must be its layer's input.")
            source = heard
        if source.time != x.time:
            raise DeployError("it decides by another step than its own: must be the same.")
        self._give(output, lower_gate(self.draft, path, gate, source, x))

    # Neurons.

    def _neuron(self, path: str, neuron: Any, args: list[Any], output: Any) -> None:
        x, call = self._read(args[0]), self.calls.get(path, 0)
        self.calls[path] = call + 1
        if self.steps_by_call:
            if x.time not in (None, call):
                raise DeployError(
                    f"its call {call + 1} reads step {x.time + 1}: must be called once for each "
                    "step, in their order."
                )
            x = x.but(time=call)
        for state in args[1:]:
            self._check_state(path, state, call)
        spikes = lower_neuron(self.draft, path, neuron, x)
        self.spikes[path] = spikes
        if isinstance(output, Tensor):
            self._give(output, spikes)
            return
        parts = [*tensors_in(output)]
        self._give(parts[0], spikes)
        if len(parts) > 1:
            self._give(parts[1], membrane_symbol(neuron, spikes))

    steps_by_call = False

    def _check_state(self, path: str, state: Any, call: int) -> None:
        """A membrane that is handed in must be the one that the neuron handed out."""
        if state is None:
            return
        known = self.of(state)
        if isinstance(known, Symbol):
            before = self.spikes.get(path)
            own = before is not None and known.reads == "membrane" and known.node == before.node
            if own and known.time == call - 1:
                return
        elif call == 0 and not bool(torch.as_tensor(state).any()):
            return
        raise DeployError(
            "it is given a membrane that it did not hand out in the step before: must start from "
            "rest and go on from its own. Return it unchanged from step to step."
        )
