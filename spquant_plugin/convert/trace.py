"""A dry run: in which order modules are called, with which shapes, and what they read.

Runs a copy in eval mode without gradient and restores the random generator. Each tensor carries its
*origins*, the model's input to begin with, renewed by each weight layer and neuron; so one can
tell which layers read the raw input, and which neurons a layer reads. Norms and other stateful
modules only add themselves. Who reads the very tensor that a weight layer returned is kept as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import SampleError
from ..modules.gates import ChannelGate
from ..modules.host import HOOK_TABLES
from .copying import _held_tensors, copy_at_rest
from .hosts import Hosts

INPUT = "(input)"
CALLER = "(caller)"


@dataclass(frozen=True)
class Call:
    """One call of a module: when it began, counted over all calls, and the origins it read."""

    tick: int
    reads: frozenset[str]


@dataclass
class Trace:
    """What a dry run saw. Paths are those of ``named_modules()``; shapes are of the first call."""

    order: list[str] = field(default_factory=list)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    # For each call of a norm the layer whose very output it was given, and for each layer all that
    # reads its output: paths of modules, names of operations outside them, "(caller)".
    given: dict[str, list[str | None]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    gates: set[str] = field(default_factory=set)
    returned: frozenset[str] = frozenset()
    ticks: int = 0
    integer_sample: bool = True

    def reads_input(self, path: str) -> bool:
        """Whether nothing but raw input, changed by no weight or neuron, reaches this module."""
        return self.origins.get(path, frozenset()) - self.norms == {INPUT}


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's classes, or by its name."""
    return isinstance(module, _NormBase) or "Norm" in type(module).__name__


class _Output(frozenset[str]):
    """The origin of what a layer or neuron returned, as long as that is the very tensor."""


def _union(found: list[frozenset[str]]) -> frozenset[str]:
    return frozenset(found[0]) if len(found) == 1 else frozenset().union(*found)


class _Origins(TorchDispatchMode):
    """Passes origins from the arguments of every operation to its results."""

    def __init__(self, record: Trace) -> None:
        super().__init__()
        self.of = WeakTensorKeyDictionary()
        self.record = record
        self.running: list[str] = []  # the modules that are in their forward, outermost first

    def gather(self, values: Any) -> frozenset[str]:
        return _union(self.found(values))

    def found(self, values: Any) -> list[frozenset[str]]:
        return [held for t in tensors_in(values) if (held := self.of.get(t)) is not None]

    def mark(self, values: Any, origins: frozenset[str]) -> None:
        for tensor in tensors_in(values):
            self.of[tensor] = origins

    def read(self, found: list[frozenset[str]], reader: str) -> list[str]:
        """Layers whose very outputs were found where ``reader`` reads them."""
        layers = [path for held in found if type(held) is _Output for path in held]
        for path in layers:
            self.record.readers.setdefault(path, set()).add(reader)
        return layers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        found = self.found((args, kwargs))
        self.read(found, self.running[-1] if self.running else str(func))
        origins = _union(found)
        result = func(*args, **kwargs)
        if origins:
            self.mark(result, origins)
            for tensor in _written(func, args, kwargs):
                # What is written to a view is read from its base: a buffer filled step by step.
                for held in (tensor, tensor._base):
                    if held is not None:
                        self.mark(held, self.gather(held) | origins)
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Arguments that an operation changes in place."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    given = kwargs | {a.name: value for a, value in zip(schema.arguments, args, strict=False)}
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(given.get(argument.name))


def trace(model: nn.Module, sample: Any, renews: Callable[[nn.Module], bool]) -> Trace:
    """Run ``model(sample)`` on a copy at rest and record what each leaf module sees.

    ``renews`` picks the weight layers and neurons, whose results start with new origins.
    ``sample`` is what the model takes: a tensor, a tuple of positional arguments, or a dict of
    keyword arguments.
    """
    # Clones, because a layer that works in place would change what the caller holds.
    sample = tree_map_only(Tensor, Tensor.clone, sample)
    args, kwargs = as_arguments(sample)
    record = Trace()
    origins = _Origins(record)
    record.integer_sample = all(
        not t.is_floating_point() or bool((t == t.round()).all()) for t in tensors_in(sample)
    )
    with quiet_copy(model) as copy:
        _watch(copy, renews, record, origins)
        try:
            with origins:
                origins.mark(sample, frozenset({INPUT}))
                result = copy(*args, **kwargs)
                record.returned = origins.gather(result)
                origins.read(origins.found(result), CALLER)
        except Exception as error:
            raise cannot_run(model, sample, error) from error
    return record


@contextmanager
def quiet_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A copy at rest in eval mode, without gradient and without hooks that report elsewhere.

    What it draws at random is put back, and the hosts' books forget it in the end.
    """
    copy = copy_at_rest(model).eval()
    _drop_hooks(copy)
    try:
        with torch.no_grad(), kept_generator():
            yield copy
    finally:
        for host in Hosts().all:
            host.leave(copy.modules())


def cannot_run(model: nn.Module, sample: Any, error: Exception, which: str = "") -> SampleError:
    """What to say of a sample that a model does not take."""
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(sample))
    if any(0 in tensor.shape for tensor in tensors_in(sample)):
        return SampleError(
            f"{which}sample of shape {shapes}: {type(model).__name__} cannot run on it "
            f"({type(error).__name__}: {error}). It holds no data: time steps, samples and every "
            "other dimension must be at least 1. Pass a sample with data."
        )
    labelled = isinstance(sample, tuple) and len(sample) == 2
    return SampleError(
        f"{which}sample of shape {shapes}: {type(model).__name__} cannot run on it "
        f"({type(error).__name__}: {error}). The sample must be what the model takes in one "
        "call: one step of a model that takes single steps, a sequence of one that takes "
        "sequences. Pass such a tensor, a tuple of arguments, or a dict of keyword arguments."
        + (" A tuple holds arguments: of (x, labels) pass x." if labelled else "")
    )


def as_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call."""
    if isinstance(sample, Tensor):
        return (sample,), {}
    holds_tensor = next(tensors_in(sample), None) is not None
    if isinstance(sample, tuple | list) and holds_tensor:
        return tuple(sample), {}
    if isinstance(sample, dict) and holds_tensor:
        return (), dict(sample)
    raise SampleError(
        f"sample = {type(sample).__name__} without a tensor: must be a tensor, or a tuple of "
        "positional arguments or a dict of keyword arguments that holds one. Pass what one call "
        "of the model takes."
    )


def _drop_hooks(model: nn.Module) -> None:
    """A copied hook still reports to the original's monitors, which must not see this run.

    Hooks by which a module of the model acts on another one are part of what the model computes.
    """
    modules = set(model.modules())
    for module in modules:
        held = [module.__dict__.get(table) for table in HOOK_TABLES]
        tables = [table for table in held if isinstance(table, dict)]
        # Some tables hold hooks, and some only flags for the same keys.
        acting = {key for table in tables for key in table if _acts(table[key], modules)}
        for table in tables:
            for key in set(table) - acting:
                del table[key]


def _acts(hook: Any, modules: set[nn.Module]) -> bool:
    owner = getattr(hook, "__self__", None)
    return getattr(type(owner), "acts_by_hooks", False) and owner in modules


def _watch(
    model: nn.Module, renews: Callable[[nn.Module], bool], record: Trace, origins: _Origins
) -> None:
    hosts = Hosts()
    for path, module in model.named_modules():
        # A block named after its norm holds weights as well, and is none.
        if is_norm(module) and not any(map(renews, module.modules())):
            record.norms.add(path)
        joins = path in record.norms or hosts.neuron_kind(module) is not None
        if isinstance(module, ChannelGate):
            record.gates.add(path)
        if renews(module) or joins or isinstance(module, ChannelGate) or not [*module.children()]:
            module.register_forward_pre_hook(_before(path, record, origins), with_kwargs=True)
            module.register_forward_hook(_after(path, renews(module), joins, record, origins))


def _before(path: str, record: Trace, origins: _Origins) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if path not in record.input_shapes:
            record.order.append(path)
            record.input_shapes[path] = _first_shape((args, kwargs))
        read = origins.gather((args, kwargs))
        if not isinstance(module, nn.Identity):  # what it returns is the same tensor
            layers = origins.read(origins.found((args, kwargs)), path)
            if path in record.norms:
                record.given.setdefault(path, []).append(layers[0] if len(layers) == 1 else None)
        origins.running.append(path)
        record.origins[path] = record.origins.get(path, frozenset()) | read
        record.calls.setdefault(path, []).append(Call(record.ticks, read))
        record.ticks += 1

    return hook


def _after(
    path: str, renews: bool, joins: bool, record: Trace, origins: _Origins
) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        record.output_shapes.setdefault(path, _first_shape(output))
        while origins.running.pop() != path:
            pass  # a module whose error was caught has not come back
        if renews:
            # States too: who reads a membrane from the neuron itself reads this neuron.
            given = {id(tensor) for tensor in tensors_in(args)}
            held = (t for t in _held_tensors(module) if not isinstance(t, nn.Parameter))
            states = [tensor for tensor in held if id(tensor) not in given]
            origins.mark(states, frozenset({path}))
            origins.mark(output, _Output({path}))
        elif joins:
            origins.mark(output, origins.gather(output) | {path})

    return hook


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among nested arguments or results."""
    # By hand where containers are plain: this runs for every operation.
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif values is not None and not isinstance(values, bool | int | float | str):
        yield from (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def untraced() -> AbstractContextManager[Any]:
    """What runs inside carries no origins on, which takes time for every operation."""
    return _disable_current_modes()


def _first_shape(values: Any) -> tuple[int, ...]:
    return next((tuple(tensor.shape) for tensor in tensors_in(values)), ())


@contextmanager
def kept_generator() -> Iterator[None]:
    """What is drawn at random inside is put back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield
