"""NeuroBench's quantities by its own definitions, worked out from our report of the same copy."""

from __future__ import annotations

import math

import torch

from ...convert.hosts import Hosts
from .neurobench_adapter import NAME, Adapter, Seen, Tool
from .record import AgreementRow
from .subject import Subject


def rows_of(tool: Tool, subject: Subject) -> tuple[tuple[AgreementRow, ...], list[str]]:
    """All quantities that NeuroBench has and we have too, and what was left out of them."""
    adapter = Adapter(tool, subject)
    # Before the run: snnTorch keeps its membranes in buffers, which are empty at rest.
    rows = [*_memory(adapter), _connections(adapter)]
    seen = adapter.look()
    left_out = [path for path in subject.layers if path not in adapter.layers]
    rows += [_activations(adapter, seen), *_operations(adapter, seen)]
    unknown = [f"{path} ({type(subject.module(path)).__name__})" for path in left_out]
    note = f"{NAME} has no rule for {', '.join(unknown)}: not in the compared operations"
    return tuple(rows), [note] if unknown else []


def _memory(adapter: Adapter) -> list[AgreementRow]:
    memory = adapter.subject.report.memory
    footprint = adapter.count("Footprint", adapter.measure("Footprint"))
    parameters = adapter.count("ParameterCount", adapter.measure("ParameterCount"))
    left = _left_in_buffers(adapter.subject)
    behind = f"; {left:,} of them are states that an earlier run left in buffers" if left else ""
    return [
        AgreementRow(
            "footprint",
            int(memory.weight_bytes + memory.other_bytes) + left,
            footprint,
            "bytes of parameters and buffers before the run, as PyTorch holds them: folded "
            f"weights, though quantised, as floats{behind}",
        ),
        AgreementRow(
            "parameters",
            sum(row.parameters for row in memory),
            parameters,
            "all parameters, biases and norms included, each counted once",
        ),
    ]


def _left_in_buffers(subject: Subject) -> int:
    """Bytes of running states among the buffers: snnTorch's are as large as in the last run."""
    states = {
        id(state)
        for module in subject.net.modules()
        for host in Hosts().all
        for _, state in host.named_states(module)
    }
    held = (buffer for buffer in subject.net.buffers() if id(buffer) in states)
    return sum(buffer.numel() * buffer.element_size() for buffer in held)


def _connections(adapter: Adapter) -> AgreementRow:
    name, report = "connection sparsity", adapter.subject.report
    # It looks at modules without children only, and a gated layer holds its gate.
    layers = {p: layer for p, layer in adapter.plain_layers().items() if not [*layer.children()]}
    if not layers:
        return AgreementRow(name, why="it finds no linear or convolutional layer")
    value = adapter.number("ConnectionSparsity", adapter.measure("ConnectionSparsity"), 1)
    recurrent = [path for path in adapter.layers if path not in adapter.plain_layers()]
    if recurrent:
        return AgreementRow(name, None, value, why=f"it counts biases of {', '.join(recurrent)}")
    zeros = weights = 0
    for path, layer in layers.items():
        count, times = layer.weight.numel(), adapter.layers[path]
        zeros += round((report.sparsity[path].zero_weights or 0) * count) * times
        weights += count * times
    gated = [path for path in adapter.layers if path not in layers]
    without = f" without {', '.join(gated)}, which it skips for the gate inside" if gated else ""
    convention = (
        f"{zeros:,} zeros over {weights:,} weights of linear and convolutional layers{without}, no "
        f"biases; {NAME} rounds to 4 decimals, and so do we here"
    )
    return AgreementRow(name, round((torch.tensor(zeros) / weights).item(), 4), value, convention)


def _activations(adapter: Adapter, seen: Seen) -> AgreementRow:
    name, subject = "activation sparsity", adapter.subject
    called = {path: times for path, times in adapter.neurons.items() if seen.outputs[path]}
    differ = set(called) ^ set(subject.rates)
    differ |= {path for path, times in called.items() if times > 1}
    if differ:
        return AgreementRow(
            name, why=f"it does not count {', '.join(sorted(differ))} exactly once, as we do"
        )
    value = adapter.number("ActivationSparsity", seen.sparsity, 1)
    neurons = {path: subject.report.memory[path].neurons for path in subject.rates}
    per_neuron = {seen.outputs[path] / max(count, 1) for path, count in neurons.items()}
    if len(per_neuron) != 1:
        return AgreementRow(
            name, theirs=value, why="neuron layers are called a different number of times"
        )
    spikes = math.fsum(subject.rates[path] * count for path, count in neurons.items())
    convention = (
        "zeros over all outputs of all neuron layers, steps and samples: large layers weigh more, "
        "unlike in our mean of firing rates"
    )
    ours = 1 - spikes / sum(neurons.values())
    return AgreementRow(name, ours, value, convention, tolerance=1e-12)


def _operations(adapter: Adapter, seen: Seen) -> list[AgreementRow]:
    subject, counts = adapter.subject, seen.counts
    acs, macs = counts["Effective_ACs"], counts["Effective_MACs"]
    why = _not_counted_alike(adapter, seen)
    split = why or _not_told_apart_alike(adapter, seen)
    common = [row for path, row in subject.layers.items() if path in adapter.layers]

    def _row(
        name: str, convention: str, theirs: int, why: str, kinds: str, field: str = "nonzero"
    ) -> AgreementRow:
        if why:
            return AgreementRow(name, None, theirs, convention, why)
        found = [getattr(row, field) for row in common if row.kind in kinds.split()]
        ours = sum(round(count * seen.samples) for count in found)
        return AgreementRow(name, ours, theirs, convention)

    batch = (
        f"{len(common)} of {len(subject.layers)} layers, all steps of the batch of {seen.samples}"
    )
    every = f"every weight with every input, no zero padding, no biases, {batch}"
    nonzero = f"nonzero weight with nonzero input, before gates, {batch}"
    return [
        _row("dense operations", every, counts["Dense"], why, "AC MAC", "dense"),
        _row("effective operations", nonzero, acs + macs, why, "AC MAC"),
        _row("effective ACs", "those of layers that see only 0 and 1", acs, split, "AC"),
        _row("effective MACs", "those of all other layers", macs, split, "MAC"),
    ]


def _not_counted_alike(adapter: Adapter, seen: Seen) -> str:
    """Why the sums over layers are of different things; empty if they are not."""
    subject = adapter.subject
    if not any(path in subject.layers for path in adapter.layers):
        return "there is no layer that both count"
    twice = [path for path, times in adapter.layers.items() if times > 1]
    if twice:
        return f"{', '.join(twice)} stands at several places, and it counts all calls at each"
    more = [path for path in adapter.layers if path not in subject.layers and seen.calls[path]]
    if more:
        return f"it counts {', '.join(more)}, for which we have no rule"
    own = [path for path in adapter.layers if subject.in_its_own_way(path)]
    if own:
        return f"{', '.join(own)} computes in a way of its own"
    return ""


def _not_told_apart_alike(adapter: Adapter, seen: Seen) -> str:
    """Why additions and multiplications are told apart otherwise; empty if they are not."""
    for path, row in adapter.subject.layers.items():
        added = [binary for binary, signed in seen.calls.get(path, []) if signed]
        if row.kind == "MAC" and not all(added):
            return f"it adds the inputs -1 of {path}, where we multiply"
        if row.kind == "MAC" and added:
            return f"it tells calls apart, and {path} sees only 0 and 1 in some, not in all"
    return ""
