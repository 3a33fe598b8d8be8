"""A dry run that remembers what each module gave, and what states it held.

It runs the copy at rest that :func:`~spquant_plugin.convert.trace.trace` makes, so the model's own
states, modes and hooks, and the random generator, stay as they are.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..convert.hosts import Hosts, reset
from ..convert.trace import INPUT, as_arguments, cannot_run, quiet_copy, tensors_in, trace
from ..errors import AnalysisError, SampleError, SpQuantError
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

    input_shape: tuple[int, ...] = ()
    output: Held | None = None
    states: dict[str, Held] = field(default_factory=dict)


@dataclass
class DryRun:
    """The copy that ran, and the calls by path (the first path of a shared module).

    ``samples`` and ``batches`` are all that were run, ``first_batch`` samples in the first.
    ``read`` holds for each module the paths of the weight layers and neurons that it read, ``fed``
    the paths that the sample reaches; others see constants, which have no batch.
    """

    model: nn.Module
    calls: dict[str, Calls] = field(default_factory=dict)
    read: dict[str, frozenset[str]] = field(default_factory=dict)
    fed: set[str] = field(default_factory=set)
    samples: int = 1
    first_batch: int = 1
    batches: int = 1


def dry_run(
    model: nn.Module, sample: Any, timesteps: int | None, watch: Callable[[nn.Module], None]
) -> DryRun:
    """Run ``model(sample)``, or with ``timesteps`` once for each step of the sample.

    ``watch`` is given the copy before it runs, to hang hooks of its own into it.
    """
    _check_timesteps(sample, timesteps)
    found: list[DryRun] = []
    # Named like the model: the error of a sample that does not fit names the class that ran.
    watched = type(type(model).__name__, (_Watched,), {})(model, timesteps, found, watch)
    hosts = Hosts()
    kinds = ("weights", "neuron", "state")
    record = trace(watched, sample, lambda module: kind_of(module, hosts) in kinds)
    run = found[0]
    run.read = {
        _inner(path): frozenset(_inner(source) for source in sources)
        for path, sources in record.origins.items()
    }
    run.fed = _fed_by_the_sample(run.read)
    return run


def run_further(
    first: DryRun,
    model: nn.Module,
    batches: Iterable[Any],
    timesteps: int | None,
    watch: Callable[[nn.Module], None],
) -> Generator[DryRun, None, None]:
    """Run the batches after the first, each from rest, and give what each showed.

    Another copy, because the first one traces where its tensors come from, which takes time.
    """
    batches = iter(batches)
    second = list(islice(batches, 1))
    if not second:
        return
    batches = chain(iter(second), batches)
    del second  # a batch is not held for longer than it runs
    with quiet_copy(model) as copy:
        run = DryRun(copy, read=first.read, fed=first.fed)
        _take_notes(run)
        watch(copy)
        for number, batch in enumerate(batches, 2):
            run.calls.clear()
            reset(copy)
            try:
                _check_timesteps(batch, timesteps)
                # Clones, because a layer that works in place would change what the caller holds.
                args, kwargs = as_arguments(tree_map_only(Tensor, Tensor.clone, batch))
            except (AnalysisError, SampleError) as error:
                raise type(error)(f"batch {number}, {error}") from None
            try:
                call_model(copy, timesteps, args, kwargs)
            except SpQuantError:
                raise  # it says itself what is wrong
            except Exception as error:
                raise cannot_run(model, batch, error, f"batch {number}, ") from error
            yield run


def _inner(path: str) -> str:
    """The trace saw the model as the child "model" of what called it."""
    return path.removeprefix("model").removeprefix(".")


def _fed_by_the_sample(read: dict[str, frozenset[str]]) -> set[str]:
    """Paths of the modules that the sample reaches, through whatever others."""
    fed, before = {INPUT}, 0
    while len(fed) > before:
        before = len(fed)
        fed |= {path for path, sources in read.items() if sources & fed}
    return fed


class _Watched(nn.Module):
    """Calls the model, in a loop over time where asked, with hooks that take notes."""

    def __init__(
        self,
        model: nn.Module,
        timesteps: int | None,
        found: list[DryRun],
        watch: Callable[[nn.Module], None],
    ) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        # Functions are not copied with the module, so the copy's notes arrive here.
        self.report = lambda run: found.append(run)
        self.watch = lambda model: watch(model)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        run = DryRun(self.model)
        _take_notes(run)
        self.report(run)
        self.watch(self.model)
        call_model(self.model, self.timesteps, args, kwargs)


def call_model(model: nn.Module, timesteps: int | None, args: Any, kwargs: Any) -> None:
    """Once, or in a loop over the first axis of what is given."""
    if timesteps is None:
        model(*args, **kwargs)
        return
    for step in range(timesteps):
        now_args, now_kwargs = tree_map_only(Tensor, itemgetter(step), (args, kwargs))
        model(*now_args, **now_kwargs)


def _take_notes(run: DryRun) -> None:
    hosts = Hosts()
    for path, module in run.model.named_modules():
        module.register_forward_hook(_note(run, path, hosts), with_kwargs=True)


def _note(run: DryRun, path: str, hosts: Hosts) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls = run.calls.setdefault(path, Calls())
        given, came = first_tensor((args, kwargs)), first_tensor(output)
        calls.input_shape = () if given is None else tuple(given.shape)
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


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor among nested arguments or results."""
    return next(tensors_in(values), None)


def _check_timesteps(sample: Any, timesteps: object) -> None:
    if timesteps is None:
        return
    whole = isinstance(timesteps, numbers.Integral) and not isinstance(timesteps, bool)
    if not whole or timesteps < 1:  # type: ignore[operator]
        raise AnalysisError(
            f"timesteps = {timesteps!r}: must be a whole number above 0, the length of the "
            "sample's first dimension. Leave it out for a model that takes a whole sequence."
        )
    for tensor in tensors_in(as_arguments(sample)):
        if tensor.shape[:1] != (timesteps,):
            raise AnalysisError(
                f"timesteps = {timesteps}: the sample holds a tensor of shape "
                f"{tuple(tensor.shape)}, and its first dimension must be the {timesteps} steps. "
                f"Pass [T, N, ...] with T = {timesteps}, or leave timesteps out."
            )
