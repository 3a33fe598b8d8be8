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

from ...convert.copying import _held_tensors
from ...convert.hosts import Hosts
from ...convert.pairing import is_neuron, is_synapse
from ...convert.trace import _written, tensors_in, untraced
from ...errors import DeployError
from ...modules.gates import ChannelGate
from . import arithmetic, functions, pools  # noqa: F401 (they register their handlers)
from .calls import HANDLERS, Call, Refused
from .draft import Draft
from .gates import lower_gate
from .layers import lower_layer, lower_norm
from .neurons import lower_neuron, membrane_symbol
from .symbol import Symbol

Known = Symbol | Refused
# What makes a tensor of its own from another one's shape.
FRESH = ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_empty", "new_full")


PLAIN_NORMS = (
    *("_BatchNorm", "BatchNorm1d", "BatchNorm2d", "QuantizedBatchNorm", "SynchronizedNorm"),
)
ADD_IN_PLACE = torch.ops.aten.add_.Tensor
# How the hosts and torch call what a neuron or a layer reads, where it is given by name.
READS = ("input_", "x", "input", "inputs", "x_seq", "current")
READ_BY_PYTHON = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::item")


def _in_order(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a module was given, what it reads first."""
    named = [kwargs[name] for name in READS if name in kwargs]
    return [*args, *named, *(value for name, value in kwargs.items() if name not in READS)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _check_result(known: Any, result: Any, source: Tensor) -> None:
    """A symbol must describe the very tensor that came out."""
    symbols = known if isinstance(known, list) else [known]
    for symbol, tensor in zip(symbols, tensors_in(result), strict=False):
        if not isinstance(symbol, Symbol):
            continue
        shape = (*symbol.lead, *symbol.shape)
        if tuple(tensor.shape) != shape:
            raise DeployError(
                f"a value of shape {shape} becomes {tuple(tensor.shape)}: axes of size 1 must not "
                "be added, kept or broadcast here."
            )
        if tensor.dtype != source.dtype:
            raise DeployError(
                f"a value of {source.dtype} becomes {tensor.dtype}: must keep its precision."
            )


def _is_plain(norm: nn.Module) -> bool:
    """Whether a norm computes what its base class says; others are seen operation by operation."""
    owner = next(kind for kind in type(norm).__mro__ if "forward" in vars(kind))
    known = owner.__module__.partition(".")[0] in ("torch", "spikingjelly", "spquant_plugin")
    return known and owner.__name__ in PLAIN_NORMS and "forward" not in vars(norm)


def _first(output: Any) -> Tensor:
    return next(tensors_in(output))


def _snapshot(neuron: nn.Module) -> list[Tensor]:
    held = [*_held_tensors(neuron), *neuron.parameters()]
    numbers = [value for value in vars(neuron).values() if isinstance(value, float)]
    return [*(tensor.detach().clone() for tensor in held), *map(torch.tensor, numbers)]


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
        self.membranes: dict[str, Symbol] = {}
        self.left: dict[str, list[Tensor]] = {}  # states and constants after the last call
        self.arriving: dict[str, list[Tensor]] = {}  # the same before the next one
        self.calls: dict[str, int] = {}
        self.paths = {module: path for path, module in reversed([*model.named_modules()])}

    def of(self, tensor: Any) -> Known | None:
        """What a tensor stands for, None for a constant."""
        return self.known.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        follows = self.depth == 0 and any(t in self.known for t in tensors_in((args, kwargs)))
        if follows and func.name() in READ_BY_PYTHON:
            raise DeployError(
                f"{self._where()} reads a value as a Python number, so that what runs may depend "
                "on the data: must be the same operations for every input. Take the branch out."
            )
        first = args[0] if args else None
        # A total that starts as zeros is what is added to it; afterwards nobody can tell.
        zeros = follows and func is ADD_IN_PLACE and self.of(first) is None
        zeros = zeros and isinstance(first, Tensor) and not bool(first.any())
        result = func(*args, **kwargs)
        if follows:
            self._follow(func, args, kwargs, result, zeros)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any, zeros: bool) -> None:
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
            given = tree_map(read, args), tree_map(read, kwargs)
            try:
                known = handler(Call(func, self.draft, *given, result, self.steps, zeros))
                _check_result(known, result, next(tensors_in(args)))
            except DeployError as error:
                known = Refused(f"{self._where()}: {error}")
        self._forget_written(func, args, kwargs)
        self.mark(result, known)

    def _forget_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """What shares memory with a tensor that is written to is no longer what it was."""
        places = {_memory(tensor) for tensor in _written(func, args, kwargs)}
        changed = [t for t in list(self.known.keys()) if _memory(t) in places] if places else []
        bases = [tensor._base for tensor in _written(func, args, kwargs)]
        for tensor in [*changed, *(base for base in bases if base is not None)]:
            self.known[tensor] = Refused(
                f"{self._where()} changes in place a tensor that shares its memory: must be left "
                "as it is. Use operations that return a new tensor, such as torch.stack."
            )

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
        return self._norm if isinstance(module, _NormBase) and _is_plain(module) else None

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda module, args: self.place.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.place.pop()

    def _begin(self, path: str, lower: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.place.append(path)
            if self.depth == 0 and path in self.left:
                with untraced():
                    self.arriving[path] = _snapshot(module)
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
                    with untraced():
                        lower(path, module, _in_order(args, kwargs), output)
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
        if output.dtype != self.draft.dtype:
            raise DeployError(
                f"it gives {output.dtype}: must give {self.draft.dtype}, which holds sums of whole "
                "numbers. Take autocast out of forward, and keep one precision."
            )
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
        if x.once and not self.steps_by_call:
            raise DeployError(
                "it reads one input as if that were a sequence: must read [T, N, ...]. Repeat the "
                "input in front of it, as for the other neurons."
            )
        if self.steps_by_call:
            if x.time not in (None, call):
                raise DeployError(
                    f"its call {call + 1} reads step {x.time + 1}: must be called once for each "
                    "step, in their order."
                )
            x = x.but(time=call, once=False)
        for state in args[1:]:
            self._check_state(path, state, call)
        self._check_untouched(path, neuron)
        spikes = lower_neuron(self.draft, path, neuron, x)
        self.spikes[path] = spikes
        membrane = membrane_symbol(neuron, spikes)
        self.membranes[path] = membrane.but(lead=tuple(_first(output).shape[: -len(x.shape)]))
        self.left[path] = _snapshot(neuron)
        for state in _held_tensors(neuron):
            if not isinstance(state, nn.Parameter):
                self.known[state] = Refused(
                    f"{path} ({type(neuron).__name__}): its state is read from the neuron itself: "
                    "must be what the neuron returns. Read its spikes, or the membrane of a "
                    "snnTorch neuron with output=True."
                )
        if isinstance(output, Tensor):
            self._give(output, spikes)
            return
        parts = [*tensors_in(output)]
        self._give(parts[0], spikes)
        if len(parts) > 1:
            self._give(parts[1], membrane)

    steps_by_call = False
    single = True  # whether the model returned one tensor

    def _check_untouched(self, path: str, neuron: Any) -> None:
        """Between two steps nobody may reset a neuron, or change its constants."""
        before, now = self.left.get(path), self.arriving.pop(path, [])
        if before is None:
            return
        same = len(before) == len(now) and all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, now, strict=True)
        )
        if not same:
            raise DeployError(
                "its state or its constants were changed from outside between two steps: must go "
                "on as they are. Reset it before a sequence, not inside."
            )

    def _check_state(self, path: str, state: Any, call: int) -> None:
        """A membrane that is handed in must be the one that the neuron handed out."""
        if state is None:
            return
        known = self.of(state)
        if isinstance(known, Symbol):
            before = self.membranes.get(path)
            if before is not None and known.same(before):
                return
        elif call == 0 and not bool(torch.as_tensor(state).any()):
            return
        raise DeployError(
            "it is given a membrane that it did not hand out in the step before: must start from "
            "rest and go on from its own. Return it unchanged from step to step."
        )
