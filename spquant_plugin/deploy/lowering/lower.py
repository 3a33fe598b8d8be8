"""``to_integer``: from a trained model to a network of whole numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...convert.hosts import require_model, reset
from ...convert.trace import as_arguments, cannot_run, quiet_copy, tensors_in
from ...errors import DeployError, SampleError, SpQuantError
from ...functional.inputs import input_range as range_of_input
from ...modules.quantized_layer import QuantizedLayer
from ..graph import Graph, Neuron, Node, Output
from ..hooks import refuse_hooks
from ..modes import plain_mode, precision_of
from ..network import IntegerNetwork
from ..steps import together
from ..verify import verify
from .calls import Refused
from .draft import EXACT, Draft
from .recording import Recorder
from .symbol import Symbol
from .temporal import check_called, most_steps
from .timing import count_steps, is_multi_step

CHECKED = 8  # samples on which the result is compared


def to_integer(
    model: nn.Module,
    sample: Tensor,
    *,
    input_range: tuple[int, int] | None = None,
    engine: str = "auto",
) -> IntegerNetwork:
    """Lower a converted model of either host to a network of whole numbers, equal spike for spike.

    ``sample`` is what one call of the model takes. A copy runs on it once, from rest and in eval
    mode; the model itself is not run, and is left at rest. ``input_range`` are the least and the
    largest whole number that the input can be where it is not quantised; by default 0 and 1 for a
    sample of spikes, else the smallest of 0 to 255, -128 to 127 and 16 bits that holds the sample.
    Accumulators are proven for that range.

    Whatever has no exact version on whole numbers raises
    :class:`~spquant_plugin.errors.DeployError`, which names the module and the remedy.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron, functional
    >>> model = torch.nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 2))
    >>> functional.set_step_mode(model, "m")
    >>> model = spq.convert(model, spq.presets.quant_snn()).eval()
    >>> x = torch.randint(0, 2, (4, 1, 6)).float()
    >>> net = spq.to_integer(model, x)
    >>> bool(torch.equal(net(x), model(x))), net.graph["0"].weight.dtype
    (True, torch.int8)
    """
    refuse_hooks(require_model(model))
    x = _only_tensor(sample)
    _check_range(input_range)
    try:
        with plain_mode(), quiet_copy(model) as copy:
            takes, steps = count_steps(copy, model, x)
            most = most_steps(copy)
        job = _Job(model, x, takes, steps, input_range, most)
        draft = Draft()
        graph = _lower(job, draft)
        loops = takes == "sequence" and not is_multi_step(model)
        if loops and not _goes_on(job, draft, graph):
            graph = replace(graph, repeats=steps)
        if most is not None:
            graph = _with_later(job, draft, graph)
    finally:
        reset(model)
    net = IntegerNetwork(graph, torch.zeros(0), engine)
    net.sample = _kept_sample(net, x, takes)
    _check_on_sample(graph, job)
    return net


@dataclass(frozen=True, eq=False)
class _Job:
    """What is lowered: a model that takes ``x`` in one call, and its number of steps; ``most`` is
    for how many there are weights, None where these are the same in all."""

    model: nn.Module
    x: Tensor
    takes: str
    steps: int
    input_range: tuple[int, int] | None
    most: int | None


def _check_on_sample(graph: Graph, job: _Job) -> None:
    """Run both: a model may do what no trace shows, with data of its own or behind torch's back."""
    x = job.x if graph.takes != "step" else torch.stack([job.x] * (job.most or 2))
    few = x[:CHECKED] if graph.takes == "static" else x[:, :CHECKED]
    found = verify(IntegerNetwork(graph, torch.zeros(0), "torch"), job.model, few).first
    if found is not None:
        raise DeployError(
            f"{found.path}: the lowered network differs from the model on the sample: "
            f"{found.first}. The model does something there that cannot be followed from operation "
            "to operation. Keep forward to layers, neurons and plain torch operations."
        )


def _check_range(given: object) -> None:
    whole = isinstance(given, tuple | list) and [type(end) for end in given] == [int, int]
    if given is not None and not whole:
        raise DeployError(
            f"input_range = {given!r}: must be two whole numbers (low, high). Leave it out to take "
            "it from the sample."
        )


def _lower(job: _Job, draft: Draft) -> Graph:
    draft.dtype = precision_of(job.model)
    with plain_mode(), quiet_copy(job.model) as copy:
        found = _record(copy, draft, job)
    return _graph(draft, found, type(job.model).__name__, job.takes, job.steps)


def _goes_on(job: _Job, before: Draft, graph: Graph) -> bool:
    """Whether a loop over time takes its number of steps from the input: one more is one more.

    Where there are no weights for one more, one less is one less.
    """
    draft, x = Draft(), job.x
    draft.tables = before.tables
    other = torch.cat([x, x[-1:]]) if job.steps != job.most else x[:-1]
    if not len(other):
        return False
    try:
        again = _lower(replace(job, x=other, steps=len(other)), draft)
    except (DeployError, SampleError):  # it cannot run on as many, or leaves some out
        return False
    if set(draft.calls.values()) != {len(other)}:
        return False
    times = [[output.over_time for output in found.outputs] for found in (graph, again)]
    names = [[node.name for node in found.nodes] for found in (graph, again)]
    return times[0] == times[1] and names[0] == names[1]


def _with_later(job: _Job, before: Draft, graph: Graph) -> Graph:
    """The graph of the first step with those of the others; tables that fit serve several."""
    graphs = [graph]
    for step in range(1, job.most or 1):
        draft = Draft(step)
        draft.tables = before.tables
        graphs.append(replace(_lower(job, draft), repeats=graph.repeats))
    return together(graphs)


def _only_tensor(sample: Any) -> Tensor:
    args, kwargs = as_arguments(sample)
    tensors = [*tensors_in((args, kwargs))]
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and len(tensors) == 1:
        if not args[0].numel():
            raise DeployError(
                f"sample of shape {tuple(args[0].shape)} holds no data: must have one value at "
                "least. Pass a sample with data."
            )
        return args[0]
    raise DeployError(
        f"sample = {type(sample).__name__} with {len(tensors)} tensors: must be one tensor. An "
        "integer network has one input; keep states inside the neurons."
    )


# --- the run ------------------------------------------------------------------------------------


def _record(copy: nn.Module, draft: Draft, job: _Job) -> Any:
    """What the model returned, as symbols."""
    x, takes, steps = job.x, job.takes, job.steps
    lead = 2 if takes == "sequence" else 1
    quantizer, low, high = _input(copy, x, job.input_range)
    node = draft.input(tuple(x.shape[lead:]), low, high, quantizer)
    recorder = Recorder(copy, draft, steps)
    recorder.steps_by_call = takes != "step" and not is_multi_step(copy)
    recorder.watch()
    given, once = tuple(x.shape[:lead]), takes == "static"
    draft.lead = (steps, *given) if once else given
    symbol = Symbol(node.name, node.shape, given, once=once, analogue=quantizer is not None)
    found = _call(copy, recorder, x, symbol)
    draft.calls = dict(recorder.calls)
    if takes != "step":
        check_called(copy, steps)
    if takes == "step" and job.most != 1:  # what a model remembers by itself shows in its next call
        again = _call(copy, recorder, x, symbol)
        if len(again) != len(found) or not all(map(Symbol.same, found, again)):
            raise DeployError(
                "the model does something else in its second step: all that lasts must be in its "
                "neurons. Loop over time inside forward, or keep no tensors of your own."
            )
    return found[0] if recorder.single else list(found)


def _call(copy: nn.Module, recorder: Recorder, x: Tensor, symbol: Symbol) -> list[Symbol]:
    x = x.clone()
    recorder.mark(x, symbol)
    try:
        with recorder:
            result = copy(x)
    except SpQuantError:
        raise
    except Exception as error:
        raise cannot_run(copy, x, error) from error
    recorder.single = isinstance(result, Tensor)
    parts = [result] if isinstance(result, Tensor) else result
    if not isinstance(parts, tuple | list) or not all(isinstance(part, Tensor) for part in parts):
        raise DeployError(
            f"the model returns {type(result).__name__}: must return a tensor or a plain tuple of "
            "tensors. Return what you read."
        )
    return [_known(recorder, part) for part in parts]


def _known(recorder: Recorder, result: Tensor) -> Symbol:
    known = recorder.of(result)
    if isinstance(known, Refused):
        raise DeployError(f"the model returns a value that cannot be lowered. {known.reason}")
    if known is None:
        raise DeployError("the model returns a constant: must return what follows from its input.")
    return known


def _input(
    copy: nn.Module, x: Tensor, given: tuple[int, int] | None
) -> tuple[tuple[int, float, float] | None, int, int]:
    """The input's quantiser, where layers have one, and the whole numbers that it can be."""
    rules = {
        layer.input_quantizer.rule
        for layer in copy.modules()
        if isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None
    }
    if len(rules) > 1:
        raise DeployError(
            f"layers quantise the input in {len(rules)} ways: must be one. Convert all with the "
            "same input=spq.UniformInput(...)."
        )
    if rules and given is not None:
        raise DeployError(
            f"input_range = {given}: the input is quantised, so its range is known. Leave it out."
        )
    if rules:
        rule = rules.pop()
        quantizer = rule.bits, rule.low, rule.high
        return (quantizer, *range_of_input(*quantizer))
    if not bool(x.isfinite().all()):
        raise DeployError("the sample holds NaN or infinite values: must be finite.")
    if not torch.equal(x, x.round()):
        raise DeployError(
            "the sample holds fractions, and no layer quantises its input: an integer network "
            "takes whole numbers. Convert with input=spq.UniformInput(...)."
        )
    least, most = int(x.min()), int(x.max())
    if given is not None:
        low, high = given
        if not -EXACT < low <= least <= most <= high < EXACT:
            raise DeployError(
                f"input_range = {given}: must hold the sample, which runs from {least} to {most}, "
                "and stay below 2**24 in magnitude. Correct it, or leave it out."
            )
        return None, low, high
    for low, high in ((0, 1), (0, 255), (-128, 127), (-(2**15), 2**15 - 1)):
        if low <= least and most <= high:
            return None, low, high
    raise DeployError(
        f"the sample runs from {least} to {most}: more than 16 bits. Scale it down, or convert "
        "with input=spq.UniformInput(...)."
    )


# --- the graph ----------------------------------------------------------------------------------


def _graph(draft: Draft, found: Any, model: str, takes: str, steps: int) -> Graph:
    single = isinstance(found, Symbol)
    symbols = [found] if single else found
    outputs = tuple(_output(draft, symbol, takes, steps) for symbol in symbols)
    needed = {name for output in outputs for name in (output.value, output.gate) if name}
    for node in reversed(draft.nodes.values()):
        if node.name in needed:
            needed |= set(node.inputs)
            if isinstance(node, Neuron) and node.gate:
                needed.add(node.gate)
    nodes: tuple[Node, ...] = tuple(n for n in draft.nodes.values() if n.name in needed)
    if not any(isinstance(node, Neuron) for node in nodes):
        raise DeployError(f"{model}: what it returns does not depend on any neuron: must do.")
    return Graph(nodes, outputs, takes, steps if takes == "static" else 1, single, model)


def _output(draft: Draft, x: Symbol, takes: str, steps: int) -> Output:
    draft.whole_only(x)
    if x.added is not None:
        raise DeployError(
            "the model returns the sum of a current and spikes: must return one of them. Read out "
            "behind a neuron or a weight layer."
        )
    over_time = x.over_time
    if over_time == "partial":
        if x.time != steps - 1:
            raise DeployError("the model returns a sum over some of the steps: must take all.")
        over_time = "running sum"
    elif x.once:
        over_time = "last"  # the same at every step
    elif x.time is not None:
        if x.time != steps - 1:
            raise DeployError(
                f"the model returns step {x.time + 1} of {steps} alone: must return the last step, "
                "all of them, or their sum or mean."
            )
        over_time = "last"
    return Output(
        x.node,
        x.reads,
        x.unit.to(draft.dtype).cpu(),
        tuple(tuple(_moved(value) for value in step) for step in x.steps),
        over_time,
        x.gate,
    )


def _moved(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _kept_sample(net: IntegerNetwork, x: Tensor, takes: str) -> Tensor:
    """Whole numbers ``[T, 1, *shape]`` of the first sample, which travel with the network."""
    first = x[:, :1] if takes == "sequence" else x[:1]
    whole = net.integers(first if takes != "step" else first.unsqueeze(0))
    return whole.contiguous()
