"""Measure a network: ``analyze`` and the report it gives."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..convert.hosts import require_model
from ..errors import AnalysisError
from .counting import count_memory
from .dry_run import dry_run
from .memory import MODES, MemoryReport, MemoryRow
from .operation_counting import count_operations
from .operations import OperationReport
from .plots import plot_report
from .sparsity import SparsityReport
from .sparsity_counting import count_sparsity
from .tally import Tallies


@dataclass(frozen=True)
class Report:
    """What a network costs. ``print(report)`` shows every row, paths never shortened."""

    model: str
    memory: MemoryReport
    sparsity: SparsityReport = field(default_factory=SparsityReport)
    operations: OperationReport = field(default_factory=OperationReport)

    @property
    def layers(self) -> tuple[MemoryRow, ...]:
        """A row of memory for every module with weights or state."""
        return self.memory.layers

    def table(self) -> str:
        """All rows, the sums, and what they mean, as text."""
        parts = (self.memory, self.sparsity, self.operations)
        return f"{self.model}, " + "\n\n".join(part.table() for part in parts)

    __str__ = table

    def __repr__(self) -> str:
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON can hold them."""
        return {
            "model": self.model,
            "memory": self.memory.to_dict(),
            "sparsity": self.sparsity.to_dict(),
            "operations": self.operations.to_dict(),
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        parts = (self.memory, self.sparsity, self.operations)
        return "\n\n".join([f"### {self.model}", *(part.to_markdown() for part in parts)]) + "\n"

    def plot(self) -> Any:
        """A matplotlib figure: memory and operations, a bar for each module."""
        return plot_report(self.model, self.memory, self.operations)


def analyze(
    model: nn.Module,
    sample_or_loader: Any,
    *,
    memory: str = "equation",
    timesteps: int | None = None,
) -> Report:
    """Measure what a float or a converted network holds and computes for one sample.

    ``sample_or_loader`` is what one call of the model takes (a tensor, a tuple of positional
    arguments, a dict of keyword arguments), or an iterable of batches ``x`` or ``(x, y)``, of which
    the first is used. A copy at rest runs on it once, in eval mode without gradient; the model
    itself is not run. For a model that takes one time step, give the sample as ``[T, N, ...]``
    and ``timesteps=T``: the copy is then called once per step.

    Sparsity and operations are counted on this very data, all samples of the batch, and operations
    divided by it; so pass real data, and all time steps.

    ``memory`` is ``"equation"`` (stored bits, spikes 1 bit), ``"paper_tables"`` (spikes 8 bits in a
    quantised network, 32 in a float one) or ``"measured"`` (bytes that PyTorch holds).

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    >>> report = spq.analyze(net, torch.zeros(1, 4))
    >>> report.memory.weight_bytes, report.memory.membrane_bytes, report.memory.spike_bytes
    (128.0, 32.0, 1.0)
    >>> spq.analyze(net, torch.ones(1, 4)).operations.effective
    32.0
    """
    require_model(model)
    if not isinstance(memory, str) or memory not in MODES:
        near = difflib.get_close_matches(str(memory), MODES, n=1, cutoff=0.3)
        hint = f" Closest: {near[0]!r}." if near else ""
        listed = ", ".join(map(repr, MODES))
        raise AnalysisError(f"memory = {memory!r}: must be one of {listed}.{hint}")
    tallies = Tallies()
    run = dry_run(model, _first_sample(sample_or_loader), timesteps, tallies.watch)
    return Report(
        type(model).__name__,
        count_memory(run, memory),
        count_sparsity(run, tallies),
        count_operations(run, tallies),
    )


def _first_sample(given: Any) -> Any:
    """What the model takes, from a sample or from the first batch of a loader."""
    if isinstance(given, Tensor | tuple | dict):
        return given
    is_array = type(given).__module__ == "numpy"
    if not isinstance(given, Iterable) or isinstance(given, str | nn.Module) or is_array:
        raise AnalysisError(
            f"sample_or_loader = {type(given).__name__}: must be what one call of the model takes "
            "(a tensor, a tuple, a dict), or an iterable of batches. Pass such a sample, with "
            "torch.from_numpy for an array, or a data loader."
        )
    batch = next(iter(given), None)
    if batch is None:
        raise AnalysisError(
            f"sample_or_loader = an empty {type(given).__name__}: must give at least one batch. "
            "Pass a loader that holds data."
        )
    return batch[0] if isinstance(batch, tuple | list) and batch else batch
