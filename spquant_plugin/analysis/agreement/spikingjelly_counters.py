"""SpikingJelly's counters of operations look at the layers of a folded copy, call by call.

They count operations of the tensor library, whichever module those belong to. So each layer runs
again, alone and without its bias, on every input that it has in the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...errors import AnalysisError
from ..operations import OperationRow
from ..pairs import CONVOLUTIONS, TRANSPOSED
from .record import AgreementRow
from .subject import Subject, alone, load_module, refuse_computed_weights

NAME = "SpikingJelly op_counter"


@dataclass(frozen=True)
class Tool:
    """SpikingJelly's own classes."""

    version: str
    mode: Any
    synops: Any
    flops: Any


def load() -> Tool:
    """Import SpikingJelly's counters, whichever host the model is of."""
    found = load_module("spikingjelly.activation_based.op_counter", NAME, "spikingjelly")
    counters = (found.DispatchCounterMode, found.SynOpCounter, found.FlopCounter)
    return Tool(version("spikingjelly"), *counters)


@dataclass
class _Counted:
    """What the counters say of one layer, over all its calls."""

    synops: int = 0
    nonzero: int = 0  # with weights of 1 where the layer's are not 0
    dense: int = 0  # with a spike at each input
    flops: int = 0
    unknown: set[str] = field(default_factory=set)  # what a call was made of, without any rule


@dataclass(frozen=True)
class _Quantity:
    """A definition of theirs: where it fits, and what it is in our rows and in their counts."""

    name: str
    convention: str
    refuses: Callable[[OperationRow, Any], str]
    ours: Callable[[OperationRow], float]
    theirs: Callable[[_Counted], int]


def _no_spikes(row: OperationRow, layer: Any) -> str:
    return "" if row.kind == "AC" else "inputs other than 0 and 1, which are no spikes"


def _no_synapse_each(row: OperationRow, layer: Any) -> str:
    zeros = bool((layer.weight == 0).any())
    return _no_spikes(row, layer) or ("zero weights, which it counts" if zeros else "")


def _fits(row: OperationRow, layer: Any) -> str:
    return ""


def _pads(row: OperationRow, layer: Any) -> str:
    if isinstance(layer, TRANSPOSED):
        return "an output that is cropped, of which it counts all" if any(layer.padding) else ""
    if not isinstance(layer, CONVOLUTIONS) or layer.padding_mode != "zeros":
        return ""
    padded = any(layer._reversed_padding_repeated_twice)
    return "zero padding, which it counts" if padded else ""


QUANTITIES = (
    _Quantity(
        "synaptic operations",
        "SynOpCounter: each spike with every weight behind it, no zero padding",
        _no_synapse_each,
        lambda row: row.nonzero,
        lambda counted: counted.synops,
    ),
    _Quantity(
        "effective operations",
        "SynOpCounter with 1 for each nonzero weight, whose zeros it then leaves out",
        _no_spikes,
        lambda row: row.nonzero,
        lambda counted: counted.nonzero,
    ),
    _Quantity(
        "dense operations",
        "SynOpCounter with a spike at each input: every weight with every input, no zero padding",
        _fits,
        lambda row: row.dense,
        lambda counted: counted.dense,
    ),
    _Quantity(
        "flops",
        "FlopCounter: a multiplication and an addition for every weight and every input",
        _pads,
        lambda row: 2 * row.dense,
        lambda counted: counted.flops,
    ),
)


def rows_of(tool: Tool, subject: Subject) -> tuple[tuple[AgreementRow, ...], list[str]]:
    """All quantities, and which layers are not in them."""
    layers, unfit = _comparable(subject)
    refuse_computed_weights(subject, layers, f"{NAME} {tool.version}")
    counts = {path: _Counted() for path in layers}
    hooks = [
        layer.register_forward_pre_hook(partial(_again, tool, counts[path]), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        samples = subject.run()
    finally:
        for hook in hooks:
            hook.remove()
    for path, counted in counts.items():
        _check(tool, path, counted)
        if counted.unknown:
            unfit[path] = f"operations without a rule: {', '.join(sorted(counted.unknown))}"
    fits = {path: counted for path, counted in counts.items() if path not in unfit}
    rows, notes = [], []
    for quantity in QUANTITIES:
        row, reasons = _compare(quantity, subject, fits, unfit, samples)
        rows.append(row)
        if reasons and not row.why:
            notes.append(f"{quantity.name} without {reasons}")
    return tuple(rows), notes


def _comparable(subject: Subject) -> tuple[dict[str, Any], dict[str, str]]:
    """Layers that are what their class says, and why the others are not compared."""
    layers, unfit = {}, {}
    for path in subject.layers:
        layer = subject.module(path)
        if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            unfit[path] = "no matrix product and no convolution, which it counts alone"
        elif subject.in_its_own_way(path):
            unfit[path] = "a forward of its own"
        else:
            layers[path] = layer
    return layers, unfit


def _again(tool: Tool, counted: _Counted, layer: nn.Module, args: Any, kwargs: Any) -> None:
    """One call of a layer, under the counters."""
    as_it_is, ones, halves = alone(layer), alone(layer), alone(layer)
    ones.weight.copy_(ones.weight.ne(0))
    halves.weight.fill_(0.5)  # weights of 1 alone would be taken for spikes too
    every_input = tree_map_only(Tensor, torch.ones_like, (args, kwargs))
    synops, flops, nonzero, dense = tool.synops(), tool.flops(), tool.synops(), tool.synops()
    with torch.backends.cudnn.flags(enabled=False):  # no transform that rounds
        with tool.mode([synops, flops]) as mode:
            as_it_is(*args, **kwargs)
        with tool.mode([nonzero]):
            ones(*args, **kwargs)
        with tool.mode([dense]):
            halves(*every_input[0], **every_input[1])
    if not synops.records["Global"]:
        counted.unknown |= set(mode.get_unsupported(synops))
    counted.synops += synops.get_total()
    counted.nonzero += nonzero.get_total()
    counted.dense += dense.get_total()
    counted.flops += flops.get_total()


def _check(tool: Tool, path: str, counted: _Counted) -> None:
    for value in (counted.synops, counted.nonzero, counted.dense, counted.flops):
        if value < 0:
            raise AnalysisError(
                f"{path}: {NAME} {tool.version} counts {value} operations: must not be negative. "
                "Its count is wrong, and nothing is compared."
            )


def _compare(
    quantity: _Quantity,
    subject: Subject,
    counts: dict[str, _Counted],
    unfit: dict[str, str],
    samples: int,
) -> tuple[AgreementRow, str]:
    """Sums over the layers that the definition fits, and why the others are left out."""
    reasons, ours, theirs = dict(unfit), 0, 0
    for path, counted in counts.items():
        row = subject.layers[path]
        reason = quantity.refuses(row, subject.module(path))
        if reason:
            reasons[path] = reason
            continue
        ours += round(quantity.ours(row) * samples)
        theirs += quantity.theirs(counted)
    left_out = _by_reason(reasons)
    if len(reasons) == len(subject.layers):
        return AgreementRow(quantity.name, why=left_out or "there is no weight layer"), left_out
    of = f"{len(subject.layers) - len(reasons)} of {len(subject.layers)} layers"
    convention = f"{quantity.convention}; {of}, all steps of the batch of {samples}"
    return AgreementRow(quantity.name, ours, theirs, convention), left_out


def _by_reason(reasons: dict[str, str]) -> str:
    """Each reason once, with all layers that it holds for."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return "; ".join(f"{', '.join(found)} ({reason})" for reason, found in paths.items())
