"""A dry run: in which order modules are called, with which shapes, and what they read.

Runs a copy in eval mode without gradient and restores the random generator. Each tensor carries its
*origins*, the model's input to begin with, renewed by each weight layer and neuron; so one can
tell which layers read the raw input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import SampleError
from ..modules.host import HOOK_TABLES
from .copying import copy_at_rest
from .hosts import Hosts

INPUT = "(input)"


@dataclass
class Trace:
    """What a dry run saw. Paths are those of ``named_modules()``."""

    order: list[str] = field(default_factory=list)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    integer_sample: bool = True

    def reads_input(self, path: str) -> bool:
        """Whether nothing but raw input, changed by no weight or neuron, reaches this module."""
        return self.origins.get(path) == frozenset({INPUT})


class _Origins(TorchDispatchMode):
    """Passes origins from the arguments of every operation to its results."""

    def __init__(self) -> None:
        super().__init__()
        self.of = WeakTensorKeyDictionary()

    def gather(self, values: Any) -> frozenset[str]:
        found = [self.of[t] for t in _tensors(values) if t in self.of]
        return frozenset().union(*found)

    def mark(self, values: Any, origins: frozenset[str]) -> None:
        for tensor in _tensors(values):
            self.of[tensor] = origins

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        origins = self.gather((args, kwargs))
        result = func(*args, **kwargs)
        if origins:
            self.mark(result, origins)
        return result


def trace(model: nn.Module, sample: Any, renews: Callable[[nn.Module], bool]) -> Trace:
    """Run ``model(sample)`` on a copy at rest and record what each leaf module sees.

    ``renews`` picks the weight layers and neurons, whose results start with new origins.
    ``sample`` is what the model takes: a tensor, a tuple of positional arguments, or a dict of
    keyword arguments.
    """
    # Clones, because a layer that works in place would change what the caller holds.
    sample = tree_map_only(Tensor, Tensor.clone, sample)
    args, kwargs = as_arguments(sample)
    record, origins = Trace(), _Origins()
    record.integer_sample = all(
        not t.is_floating_point() or bool((t == t.round()).all()) for t in _tensors(sample)
    )
    copy = copy_at_rest(model).eval()
    _drop_hooks(copy)
    _watch(copy, renews, record, origins)
    try:
        with torch.no_grad(), _kept_generator(), origins:
            origins.mark(sample, frozenset({INPUT}))
            copy(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(sample))
        raise SampleError(
            f"sample of shape {shapes}: {type(model).__name__} cannot run on it "
            f"({type(error).__name__}: {error}). The sample must be what the model takes in one "
            "call: one step of a model that takes single steps, a sequence of one that takes "
            "sequences. Pass such a tensor, a tuple of arguments, or a dict of keyword arguments."
        ) from error
    finally:
        for host in Hosts().all:
            host.leave(copy.modules())
    return record


def as_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call."""
    if isinstance(sample, Tensor):
        return (sample,), {}
    holds_tensor = next(_tensors(sample), None) is not None
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
    """A copied hook still reports to the original's monitors, which must not see this run."""
    for module in model.modules():
        for table in HOOK_TABLES:
            held = module.__dict__.get(table)
            if isinstance(held, dict):
                held.clear()


def _watch(
    model: nn.Module, renews: Callable[[nn.Module], bool], record: Trace, origins: _Origins
) -> None:
    for path, module in model.named_modules():
        if renews(module) or not list(module.children()):
            module.register_forward_pre_hook(_before(path, record, origins), with_kwargs=True)
            module.register_forward_hook(_after(path, renews(module), record, origins))


def _before(path: str, record: Trace, origins: _Origins) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if path not in record.input_shapes:
            record.order.append(path)
            record.input_shapes[path] = _first_shape((args, kwargs))
        read = origins.gather((args, kwargs))
        record.origins[path] = record.origins.get(path, frozenset()) | read

    return hook


def _after(path: str, renews: bool, record: Trace, origins: _Origins) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        record.output_shapes.setdefault(path, _first_shape(output))
        if renews:
            origins.mark(output, frozenset({path}))

    return hook


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _first_shape(values: Any) -> tuple[int, ...]:
    return next((tuple(tensor.shape) for tensor in _tensors(values)), ())


@contextmanager
def _kept_generator() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield
