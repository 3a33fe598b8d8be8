"""A dry run that remembers what each module gave, and what states it held.

It runs the copy at rest that :func:`~spquant_plugin.convert.trace.trace` makes, so the model's own
states, modes and hooks, and the random generator, stay as they are.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from ..convert.hosts import Hosts
from ..convert.trace import INPUT, as_arguments, trace
from ..errors import AnalysisError
from .modules import kind_of


@dataclass(frozen=True)
class Held:
    """A tensor that was there: how large, and how many bits each element takes."""

    shape: tuple[int, ...]
    bits: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class Calls:
    """What all calls of one module showed; of several sizes the largest stays."""

    input_dimensions: int = 0
    output: Held | None = None
    states: dict[str, Held] = field(default_factory=dict)


@dataclass
class DryRun:
    """The copy that ran, and the calls by path (the first path of a shared module).

    ``fed`` holds the paths that the sample reaches; others see constants, which have no batch.
    """

    model: nn.Module
    calls: dict[str, Calls] = field(default_factory=dict)
    fed: set[str] = field(default_factory=set)


def dry_run(model: nn.Module, sample: Any, timesteps: int | None) -> DryRun:
    """Run ``model(sample)``, or with ``timesteps`` once for each step of the sample."""
    if timesteps is not None:
        _check_timesteps(sample, timesteps)
    found: list[DryRun] = []
    # Named like the model: the error of a sample that does not fit names the class that ran.
    watched = type(type(model).__name__, (_Watched,), {})(model, timesteps, found)
    hosts = Hosts()
    kinds = ("weights", "neuron", "state")
    record = trace(watched, sample, lambda module: kind_of(module, hosts) in kinds)
    run = found[0]
    run.fed = _fed_by_the_sample(record.origins)
    return run


def _fed_by_the_sample(origins: dict[str, frozenset[str]]) -> set[str]:
    """Paths of the modules that the sample reaches, through whatever others."""
    fed, before = {INPUT}, 0
    while len(fed) > before:
        before = len(fed)
        fed |= {path for path, sources in origins.items() if sources & fed}
    # The trace saw the model as the child "model" of what called it.
    return {path.removeprefix("model").removeprefix(".") for path in fed}


class _Watched(nn.Module):
    """Calls the model, in a loop over time where asked, with hooks that take notes."""

    def __init__(self, model: nn.Module, timesteps: int | None, found: list[DryRun]) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        # A function is not copied with the module, so the copy's notes arrive here.
        self.report = lambda run: found.append(run)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        run, hosts = DryRun(self.model), Hosts()
        for path, module in self.model.named_modules():
            module.register_forward_hook(_note(run, path, hosts), with_kwargs=True)
        self.report(run)
        if self.timesteps is None:
            self.model(*args, **kwargs)
            return
        for step in range(self.timesteps):
            now_args, now_kwargs = tree_map_only(Tensor, itemgetter(step), (args, kwargs))
            self.model(*now_args, **now_kwargs)


def _note(run: DryRun, path: str, hosts: Hosts) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls = run.calls.setdefault(path, Calls())
        given, came = _first((args, kwargs)), _first(output)
        calls.input_dimensions = 0 if given is None else given.ndim
        if came is not None:
            calls.output = _larger(calls.output, came)
        named: dict[str, list[Tensor]] = {}
        for host in hosts.all:
            for name, state in host.named_states(module):
                named.setdefault(name, []).append(state)
        for name, parts in named.items():
            calls.states[name] = _larger(calls.states.get(name), *parts)

    return hook


def _larger(known: Held | None, *parts: Tensor) -> Held:
    shape = tuple(parts[0].shape) if len(parts) == 1 else (len(parts), *parts[0].shape)
    now = Held(shape, 8 * parts[0].element_size())
    return now if known is None or now.elements > known.elements else known


def _first(values: Any) -> Tensor | None:
    return next((leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), None)


def _check_timesteps(sample: Any, timesteps: object) -> None:
    whole = isinstance(timesteps, numbers.Integral) and not isinstance(timesteps, bool)
    if not whole or timesteps < 1:  # type: ignore[operator]
        raise AnalysisError(
            f"timesteps = {timesteps!r}: must be a whole number above 0, the length of the "
            "sample's first dimension. Leave it out for a model that takes a whole sequence."
        )
    for tensor in tree_leaves(as_arguments(sample)):
        if isinstance(tensor, Tensor) and tensor.shape[:1] != (timesteps,):
            raise AnalysisError(
                f"timesteps = {timesteps}: the sample holds a tensor of shape "
                f"{tuple(tensor.shape)}, and its first dimension must be the {timesteps} steps. "
                f"Pass [T, N, ...] with T = {timesteps}, or leave timesteps out."
            )


def batch_size(run: DryRun, layouts: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Samples in the batch: the first dimension of every neuron's state, in both hosts.

    1 for a sample without a batch dimension: a weight layer shows that by what it read. Modules
    that the sample reaches are asked; all, where it is lost on its way to them (through numpy).
    """
    for path in run.fed & set(run.calls):
        module = run.model.get_submodule(path)
        read = run.calls[path].input_dimensions
        if isinstance(module, _ConvNd | nn.Linear) and read < module.weight.ndim:
            return 1
    first = {path: shape[0] for path, shape in layouts if shape}
    fed = [size for path, size in first.items() if path in run.fed]
    return min(fed or first.values(), default=1)
