"""``to_integer``: from a trained model to a network of whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..convert.hosts import Hosts, require_model, reset
from ..convert.pairing import is_neuron
from ..convert.trace import as_arguments, cannot_run, quiet_copy, tensors_in
from ..errors import DeployError
from ..functional.inputs import input_range as range_of_input
from ..modules.quantized_layer import QuantizedLayer
from .calls import Refused
from .draft import Draft
from .graph import Graph, Neuron, Node, Output
from .network import IntegerNetwork
from .recording import Recorder
from .symbol import Symbol


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
    require_model(model)
    x = _only_tensor(sample)
    try:
        with quiet_copy(model) as copy:
            takes, steps = _count_steps(copy, model, x)
        with quiet_copy(model) as copy:
            draft = Draft()
            found = _record(copy, draft, x, takes, steps, input_range)
        graph = _graph(draft, found, type(model).__name__, takes, steps)
    finally:
        reset(model)
    net = IntegerNetwork(graph, torch.zeros(0), engine)
    net.sample = _kept_sample(net, x, takes)
    return net


def _only_tensor(sample: Any) -> Tensor:
    args, kwargs = as_arguments(sample)
    tensors = [*tensors_in((args, kwargs))]
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and len(tensors) == 1:
        return args[0]
    raise DeployError(
        f"sample = {type(sample).__name__} with {len(tensors)} tensors: must be one tensor. An "
        "integer network has one input; keep states inside the neurons."
    )


# --- how the model goes through time ------------------------------------------------------------


class _Picks(TorchDispatchMode):
    """How long the first axes are that a run takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        apart = name.startswith(("aten::select.int", "aten::unbind", "aten::split", "aten::unsafe"))
        first = args[0] if args else None
        axis = args[1] if name == "aten::select.int" else 0
        if apart and isinstance(first, Tensor) and axis == 0 and first.ndim > 1:
            self.sizes.add(first.shape[0])
        return func(*args, **(kwargs or {}))


def _count_steps(copy: nn.Module, model: nn.Module, x: Tensor) -> tuple[str, int]:
    """What the model takes in one call, and how many steps that are."""
    hosts, calls = Hosts(), {}
    for path, module in copy.named_modules():
        if is_neuron(module, hosts):
            calls[path] = 0
            module.register_forward_pre_hook(_counter(calls, path))
    if not calls:
        raise DeployError(
            f"{type(model).__name__}: holds no spiking neuron, so there is nothing to lower. Pass "
            "a model of SpikingJelly or snnTorch."
        )
    picks = _Picks()
    try:
        with picks:
            copy(x.clone())
    except Exception as error:
        raise cannot_run(model, x, error) from error
    counts = {count for count in calls.values() if count}
    modes = {getattr(copy.get_submodule(path), "step_mode", "s") for path in calls if calls[path]}
    if len(counts) != 1 or (len(modes) > 1 and counts == {1}):
        listed = ", ".join(f"{path or '(model)'} {count}" for path, count in calls.items())
        raise DeployError(
            f"{type(model).__name__}: the sample calls its neurons {listed} times, in step modes "
            f"{sorted(modes)}: all must see the same steps. Call each once per step, in one mode."
        )
    steps = counts.pop()
    if modes == {"m"}:
        if steps > 1:
            raise DeployError(
                f"{type(model).__name__}: calls neurons in step mode 'm' {steps} times: must be "
                "once. Use one neuron for each place."
            )
        return "sequence", x.shape[0]
    if steps == 1:
        return "step", 1
    return ("sequence" if steps in picks.sizes and x.shape[0] == steps else "static"), steps


def _counter(calls: dict[str, int], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        calls[path] += 1

    return hook


# --- the run ------------------------------------------------------------------------------------


def _record(
    copy: nn.Module,
    draft: Draft,
    x: Tensor,
    takes: str,
    steps: int,
    input_range: tuple[int, int] | None,
) -> Any:
    """What the model returned, as symbols."""
    lead = 2 if takes == "sequence" else 1
    quantizer, low, high = _input(copy, x, input_range)
    node = draft.input(tuple(x.shape[lead:]), low, high, quantizer)
    recorder = Recorder(copy, draft, steps)
    recorder.steps_by_call = takes != "step" and not (takes == "sequence" and _is_multi(copy))
    recorder.watch()
    x = x.clone()
    recorder.mark(x, Symbol(node.name, node.shape, tuple(x.shape[:lead])))
    with recorder:
        result = copy(x)
    if isinstance(result, Tensor):
        return _known(recorder, result)
    return [_known(recorder, part) for part in tensors_in(result)]


def _is_multi(copy: nn.Module) -> bool:
    hosts = Hosts()
    neurons = [module for module in copy.modules() if is_neuron(module, hosts)]
    return all(getattr(module, "step_mode", "s") == "m" for module in neurons)


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
    if rules:
        rule = rules.pop()
        quantizer = rule.bits, rule.low, rule.high
        return (quantizer, *range_of_input(*quantizer))
    if not torch.equal(x, x.round()):
        raise DeployError(
            "the sample holds fractions, and no layer quantises its input: an integer network "
            "takes whole numbers. Convert with input=spq.UniformInput(...)."
        )
    least, most = int(x.min()), int(x.max())
    if given is not None:
        low, high = given
        if not low <= least <= most <= high:
            raise DeployError(
                f"input_range = {given}: must hold the sample, which runs from {least} to {most}."
            )
        return None, int(low), int(high)
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
    if x.added is not None:
        raise DeployError(
            "the model returns the sum of a current and spikes: must return one of them. Read out "
            "behind a neuron or a weight layer."
        )
    over_time = x.over_time
    if over_time == "partial":
        if x.time != steps - 1:
            raise DeployError("the model returns a sum over some of the steps: must take all.")
        over_time = "sum"
    elif x.time is not None:
        if x.time != steps - 1:
            raise DeployError(
                f"the model returns step {x.time + 1} of {steps} alone: must return the last step, "
                "all of them, or their sum or mean."
            )
        over_time = "last"
    floats = [value for step in x.steps for value in step if isinstance(value, Tensor)]
    dtype = floats[0].dtype if floats else torch.float32
    return Output(
        x.node,
        x.reads,
        x.unit.to(dtype).cpu(),
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
