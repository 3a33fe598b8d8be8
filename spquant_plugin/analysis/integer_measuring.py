"""Measure an integer network, which runs without modules and counts by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..convert.trace import as_arguments
from ..counts import Counts, CountsItself, NeuronCount
from ..errors import AnalysisError, SampleError, SpQuantError
from .energy_counting import count_energy
from .energy_tables import EnergyTable
from .integers import integer_memory, integer_operations, integer_sparsity
from .report import Report
from .silence import warn_of_silence


def refuse(net: CountsItself, *, training: object, agreement: str | Sequence[str]) -> None:
    """What needs modules and gradients."""
    if training:
        raise AnalysisError(
            f"training = {training!r}: {type(net).__name__} does not train, so nothing is saved "
            "for a backward pass. Pass the model that it was lowered from, or leave training out."
        )
    if agreement:
        raise AnalysisError(
            f"agreement = {agreement!r}: other tools count modules of PyTorch, and "
            f"{type(net).__name__} has none. Pass the model that it was lowered from, or leave "
            "agreement out."
        )


def measure_integers(
    net: CountsItself,
    batches: Iterator[Any],
    memory: str,
    timesteps: int | None,
    table: EnergyTable,
) -> Report:
    """Run every batch once, and report what the network counted."""
    counts = _count(net, next(batches), timesteps)
    for number, batch in enumerate(batches, 2):
        try:
            counts.add(_count(net, batch, timesteps))
        except SpQuantError as error:
            raise type(error)(f"batch {number}, {error}") from None
    if not any(part.spikes for part in counts.parts.values() if isinstance(part, NeuronCount)):
        warn_of_silence(net, counts.samples, stacklevel=4)
    operations, stored = integer_operations(counts), integer_memory(counts, "equation")
    return Report(
        type(net).__name__,
        stored if memory == "equation" else integer_memory(counts, memory),
        integer_sparsity(counts),
        operations,
        count_energy(operations, stored, table),
    )


def _count(net: CountsItself, batch: Any, timesteps: int | None) -> Counts:
    whole = net.integers(_only_tensor(batch))
    if timesteps is not None and (type(timesteps) is not int or timesteps != whole.shape[0]):
        raise AnalysisError(
            f"timesteps = {timesteps!r}: the integer network runs {whole.shape[0]} steps of this "
            "sample, always the whole sequence: must be the same. Leave timesteps out."
        )
    return net.count_operations(whole)


def _only_tensor(batch: Any) -> Tensor:
    args, kwargs = as_arguments(batch)
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return args[0]
    raise SampleError(
        f"sample_or_loader = {type(batch).__name__}: must be one tensor, or batches of one each: "
        "an integer network has one input. Pass it alone."
    )
