"""Ask another tool: fold a copy, let the tool count, and set its numbers beside ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from .record import Agreement


def neurobench(model: nn.Module, sample: Any, *, timesteps: int | None = None) -> Agreement:
    """Compare with NeuroBench: footprint, parameters, sparsities and synaptic operations.

    ``sample`` is what one call of the model takes, or with ``timesteps=T`` a sample ``[T, N, ...]``
    of which each call takes one step, as for :func:`spquant_plugin.analyze`. The model itself is
    neither run nor changed.

    Raises :class:`~spquant_plugin.errors.AnalysisError` where NeuroBench fails or returns what no
    count can be, and :class:`~spquant_plugin.errors.MissingHostError` where it is not installed.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 8), neuron.IFNode())
    >>> _ = torch.nn.init.constant_(net[0].weight, 0.75)
    >>> agreement = neurobench(net, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    >>> agreement.agrees, int(agreement["effective operations"].theirs)
    (True, 16)
    """
    from .neurobench_adapter import NAME, load
    from .neurobench_rows import rows_of
    from .subject import folded

    tool = load()
    with folded(model, sample, timesteps) as subject:
        rows, notes = rows_of(tool, subject)
        return Agreement(NAME, tool.version, subject.name, rows, (*notes, *subject.notes()))


def op_counter(model: nn.Module, sample: Any, *, timesteps: int | None = None) -> Agreement:
    """Compare with the operation counters of SpikingJelly, for models of either host.

    ``sample`` and ``timesteps`` are those of :func:`neurobench`. Its counters see each weight layer
    with the inputs that it has in the folded copy.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 8), neuron.IFNode())
    >>> _ = torch.nn.init.constant_(net[0].weight, 0.75)
    >>> agreement = op_counter(net, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    >>> agreement.agrees, int(agreement["dense operations"].theirs)
    (True, 32)
    """
    from .spikingjelly_counters import NAME, load, rows_of
    from .subject import folded

    tool = load()
    with folded(model, sample, timesteps) as subject:
        rows, notes = rows_of(tool, subject)
        return Agreement(NAME, tool.version, subject.name, rows, (*notes, *subject.notes()))
