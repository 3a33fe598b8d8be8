"""Measure a network: ``analyze``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..convert.hosts import require_model
from ..convert.trace import kept_generator
from ..counts import CountsItself
from ..errors import AnalysisError
from .agreement.compare import neurobench, op_counter
from .agreement.record import Agreement
from .batch import batch_size
from .counting import count_memory
from .dry_run import DryRun, dry_run, run_further
from .energy_counting import count_energy
from .energy_tables import EnergyTable, table_of
from .integer_measuring import measure_integers, refuse
from .masks import masks_behind
from .memory import MODES
from .operation_counting import count_operations
from .report import Report
from .samples import batches_of
from .silence import warn_of_silence
from .sparsity_counting import count_sparsity
from .tally import Tallies
from .training_memory import saved_for_backward, with_training
from .watching import watch

TOOLS = {"neurobench": neurobench, "op_counter": op_counter}


def analyze(
    model: nn.Module | CountsItself,
    sample_or_loader: Any,
    *,
    memory: str = "equation",
    timesteps: int | None = None,
    energy: str | EnergyTable = "45nm",
    training: bool = False,
    agreement: str | Sequence[str] = (),
    max_batches: int | None = None,
    progress: bool | None = None,
) -> Report:
    """Measure what a float or a converted network holds and computes for one sample.

    ``sample_or_loader`` is what one call of the model takes (a tensor, a tuple of positional
    arguments, a dict of keyword arguments), or an iterable of batches ``x`` or ``(x, y)``, all of
    them or the first ``max_batches``. A copy runs on each batch from rest, in eval mode without
    gradient; the model itself is not run. For a model that takes one time step, give batches as
    ``[T, N, ...]`` and ``timesteps=T``: the copy is then called once per step. ``progress`` shows a
    bar; by default where there are several batches and tqdm is installed. Operations are divided by
    the number of samples; pass real data, and all its steps. Memory has the first batch's sizes.

    ``memory`` is ``"equation"`` (stored bits, spikes 1 bit), ``"paper_tables"`` (spikes 8 bits in a
    quantised network, 32 in a float one) or ``"measured"`` (bytes that are really held). ``energy``
    is ``"45nm"``, ``"7nm"`` or an :class:`~spquant_plugin.analysis.EnergyTable`. ``training=True``
    also measures what a training forward of the first batch saves for the backward pass.
    ``agreement`` names tools that count the first batch too: ``"neurobench"``, ``"op_counter"``.

    An :class:`~spquant_plugin.IntegerNetwork` is run itself, from rest, on what it takes: always a
    whole sequence, or one input where it repeats that. It has no training and no other tools.

    Raises :class:`~spquant_plugin.errors.AnalysisError` where no neuron ran; warns if none fired.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    >>> _ = torch.nn.init.ones_(net[0].weight)
    >>> report = spq.analyze(net, torch.ones(1, 4))
    >>> report.memory.weight_bytes, report.operations.effective, report.energy["0"].compute_pj
    (128.0, 32.0, 28.8)
    """
    if isinstance(model, nn.Module) or not isinstance(model, CountsItself):
        require_model(model)
    else:
        refuse(model, training=training, agreement=agreement)
    _check_mode(memory)
    table, tools = table_of(energy), _tools(agreement)
    batches = batches_of(sample_or_loader, max_batches, progress)
    with kept_generator():  # which a loader that shuffles draws from
        if not isinstance(model, nn.Module):
            return measure_integers(model, batches, memory, timesteps, table)
        return _measure_model(model, batches, memory, timesteps, table, training, tools)


def _measure_model(
    model: nn.Module,
    batches: Iterator[Any],
    memory: str,
    timesteps: int | None,
    table: EnergyTable,
    training: bool,
    tools: list[Callable[..., Agreement]],
) -> Report:
    first = next(batches)
    if training or tools:  # read again at the end, when a loader may have reused its memory
        first = tree_map_only(Tensor, Tensor.clone, first)
    run, tallies = _run(model, first, batches, timesteps)
    held = count_memory(run, memory)
    stored = held if memory == "equation" else count_memory(run, "equation")
    if training:
        held = with_training(held, saved_for_backward(model, first, timesteps), run.first_batch)
    operations = count_operations(run, tallies)
    return Report(
        type(model).__name__,
        held,
        count_sparsity(run, tallies),
        operations,
        count_energy(operations, stored, table),
        tuple(tool(model, first, timesteps=timesteps) for tool in tools),
    )


def _check_mode(memory: object) -> None:
    if isinstance(memory, str) and memory in MODES:
        return
    near = difflib.get_close_matches(str(memory), MODES, n=1, cutoff=0.3)
    hint = f" Closest: {near[0]!r}." if near else ""
    listed = ", ".join(map(repr, MODES))
    raise AnalysisError(f"memory = {memory!r}: must be one of {listed}.{hint}")


def _tools(names: str | Sequence[str]) -> list[Callable[..., Agreement]]:
    several = isinstance(names, Sequence) and not isinstance(names, str)
    named: list[Any] = list(names) if several else [names]
    for name in named:
        if not isinstance(name, str) or name not in TOOLS:
            near = difflib.get_close_matches(str(name), TOOLS, n=1, cutoff=0.3)
            hint = f" Closest: {near[0]!r}." if near else ""
            listed = ", ".join(map(repr, TOOLS))
            raise AnalysisError(f"agreement = {name!r}: must be among {listed}.{hint}")
    return [TOOLS[name] for name in named]


def _run(
    model: nn.Module, first: Any, batches: Iterator[Any], timesteps: int | None
) -> tuple[DryRun, Tallies]:
    """Run all batches; what they showed is added up, and their tensors are dropped."""
    tallies = Tallies()
    counts = partial(watch, tallies=tallies)
    run = dry_run(model, first, timesteps, counts)
    run.samples = run.first_batch = batch_size(run)
    if not run.samples:
        raise AnalysisError(
            "sample_or_loader = a first batch of 0 samples: must hold at least one. Pass data, or "
            "leave the empty batch out."
        )
    masks = masks_behind(run)
    tallies.settle(masks)
    # Closed even on an error, because it holds the random generator's state.
    with closing(run_further(run, model, batches, timesteps, counts)) as runs:
        for further in runs:
            run.samples += batch_size(further)
            run.batches += 1
            tallies.settle(masks)
    _check_spikes(model, run, tallies)
    return run, tallies


def _check_spikes(model: nn.Module, run: DryRun, tallies: Tallies) -> None:
    """Without spiking neurons there is nothing to report; without spikes little."""
    if not any(tally.outputs for tally in tallies.neurons.values()):
        raise AnalysisError(
            f"{type(model).__name__}: no spiking neuron ran on the sample: a report needs at least "
            "one. Pass a network with neurons of SpikingJelly or snnTorch that it calls."
        )
    if not any(tally.spikes for tally in tallies.neurons.values()):
        warn_of_silence(model, run.samples, stacklevel=6)
