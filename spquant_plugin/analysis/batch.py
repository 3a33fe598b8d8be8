"""How many samples a dry run saw, read from what its neurons keep."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..convert.hosts import Hosts
from .dry_run import DryRun, Held
from .modules import MEMBRANES, kind_of


def membrane_of(run: DryRun, path: str) -> Held | None:
    """What a module called itself its membrane."""
    states = run.calls[path].states
    return next((states[name] for name in MEMBRANES if name in states), None)


def layout_of(run: DryRun, path: str, module: nn.Module, kind: str) -> Held | None:
    """A tensor with an element for each neuron of the batch, ``[N, ...]``: the membrane.

    Neurons that keep none compute all steps at once, unless they say that they do one.
    """
    if kind not in ("neuron", "state") or path not in run.calls:
        return None
    held, output = membrane_of(run, path), run.calls[path].output
    if held is not None or kind == "state" or output is None:
        return held
    at_once = getattr(module, "step_mode", "m") == "m"
    return Held(output.shape[1:], output.bits) if at_once else output


def batch_size(run: DryRun) -> int:
    """Samples in the batch: the first dimension of every neuron's state, in both hosts.

    1 for a sample without a batch dimension: a weight layer shows that by what it read. Modules
    that the sample reaches are asked; all, where it is lost on its way to them (through numpy).
    """
    hosts, first = Hosts(), dict[str, int]()
    for path, module in run.model.named_modules():
        layout = layout_of(run, path, module, kind_of(module, hosts))
        if layout is not None and layout.shape:
            first[path] = layout.shape[0]
        if not isinstance(module, _ConvNd | nn.Linear) or path not in run.calls:
            continue
        read = run.calls[path].input_shape
        if path in run.fed and len(read) < module.weight.ndim:
            return 1
    fed = [size for path, size in first.items() if path in run.fed]
    return min(fed or first.values(), default=1)


def divisor(run: DryRun, path: str, module: nn.Module, kind: str) -> int:
    """What counts of a module are divided by: the samples, or the batches where it sees constants.

    A sample that is lost on its way to a module (through numpy) shows by the size of its batch.
    """
    if path in run.fed or path not in run.calls:
        return run.samples
    layout = layout_of(run, path, module, kind)
    outer = run.calls[path].input_shape[:2] if layout is None else layout.shape[:1]
    return run.samples if run.first_batch in outer else run.batches
