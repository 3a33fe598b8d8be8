"""Which neurons decide over which weight layer's channels, read from a dry run.

A channel gate closes output channels of a *synapse*, a weight layer, by what its *source* knows:
the neuron, run last, whose output the synapse reads. It may do so where all of them go to one
*target* neuron. Whatever stands in the way becomes a reason that the plan shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from .hosts import Hosts
from .layers import layer_kind
from .trace import INPUT, Trace


@dataclass(frozen=True)
class Pair:
    """A synapse, the neurons at its two sides, and where a gate would act.

    ``source`` is the neuron, run last, whose output reaches the synapse's input; ``target`` the one
    neuron that its output reaches; ``end`` the module after whose output the gate acts, that is the
    synapse's own norm if it has one, else the synapse. ``channel_dim`` is the axis of the output
    channels in what ``end`` returns, counted from the end; ``source_channels`` and ``channels``
    count the source's and the synapse's (0 where unknown). ``reason`` says why no gate can be
    here; None where one can.
    """

    synapse: str
    source: str | None
    target: str | None
    end: str | None
    channel_dim: int
    source_channels: int
    channels: int
    reason: str | None


def is_neuron(module: nn.Module, hosts: Hosts) -> bool:
    """Whether a module spikes, converted or not; also one that a conversion would refuse."""
    known = hosts.neuron_kind(module)
    return isinstance(module, QuantizedNeuron) or (known is not None and known[1].action != "keep")


def is_synapse(module: nn.Module, hosts: Hosts) -> bool:
    """Whether a module is a weight layer, converted or not; also one that would be refused."""
    return isinstance(module, QuantizedLayer) or layer_kind(module, hosts) is not None


def channel_axis(module: nn.Module) -> int | None:
    """Axis of a weight layer's channels, in and out, counted from the end; None for other kinds."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    return -1 if isinstance(module, nn.Linear) else None


def pair_synapses(model: nn.Module, trace: Trace, hosts: Hosts) -> dict[str, Pair]:
    """One :class:`Pair` for every weight layer, in traced order, then those never called.

    ``trace`` must come from :func:`~spquant_plugin.convert.trace.trace` of this very model, its
    origins renewed by what :func:`is_neuron` or :func:`is_synapse` pick, and by nothing else.

    >>> import torch
    >>> from spikingjelly.activation_based import layer, neuron
    >>> from spquant_plugin.convert.trace import trace
    >>> net = nn.Sequential(layer.Linear(2, 3), neuron.LIFNode(), layer.Linear(3, 4),
    ...                     neuron.LIFNode())
    >>> hosts = Hosts()
    >>> record = trace(net, torch.rand(1, 2), lambda m: is_neuron(m, hosts) or is_synapse(m, hosts))
    >>> pairs = pair_synapses(net, record, hosts)
    >>> pairs["0"].reason
    'no spiking neuron reaches its input: it reads the raw input'
    >>> pairs["2"].source, pairs["2"].target, pairs["2"].channels
    ('1', '3', 4)
    """
    network = _Network(model, trace, hosts)
    rank = {path: index for index, path in enumerate(trace.order)}
    paths = sorted(network.synapses, key=lambda path: rank.get(path, len(rank)))
    return {path: network.pair(path) for path in paths}


def space_reasons(model: nn.Module, trace: Trace, hosts: Hosts) -> dict[str, str | None]:
    """For every neuron None if its steps have space, ``[N, C, *space]``, else the reason.

    A neuron has space where each weight layer that it reads is a convolution, and its steps have
    that convolution's channels and number of dimensions. ``trace`` as for :func:`pair_synapses`.
    """
    network = _Network(model, trace, hosts)
    return {path: next(network.space_obstacles(path), None) for path in network.neurons}


class _Network:
    """Modules by the part they play, and who reads whom."""

    def __init__(self, model: nn.Module, trace: Trace, hosts: Hosts) -> None:
        self.trace = trace
        self.modules = dict(model.named_modules())
        self.neurons = [path for path, m in self.modules.items() if is_neuron(m, hosts)]
        self.synapses = [path for path, m in self.modules.items() if is_synapse(m, hosts)]
        self.renewing = {INPUT, *self.neurons, *self.synapses}
        # A norm inside another one is a part of it.
        self.norms = [path for path in trace.order if path in trace.norms]
        self.norms = [path for path in self.norms if _owner(path, self.norms) is None]
        places: dict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            places[id(module)].append(path)
        self.aliases = {paths[0]: paths[1:] for paths in places.values()}

    # Who is at the sides of a synapse.

    def pair(self, path: str) -> Pair:
        module = self.modules[path]
        source, targets, end = self._source(path), self._targets(path), self._end(path)
        shape = self._step_shape(source) if source is not None else ()
        return Pair(
            synapse=path,
            source=source,
            target=targets[0] if len(targets) == 1 else None,
            end=end,
            channel_dim=self._end_axis(path, end),
            source_channels=shape[1] if len(shape) > 1 else 0,
            channels=_channels(module),
            reason=next(self._obstacles(path, source, targets, end), None),
        )

    def _started(self, path: str) -> int:
        """When a module was called first."""
        return self.trace.calls[path][0].tick

    def _source(self, path: str) -> str | None:
        """The neuron, run last, in what the first call read.

        The first call alone, because what an explicit loop feeds back has not run by then.
        """
        calls = self.trace.calls.get(path)
        if calls is None:
            return None
        last_run = {
            neuron: max(call.tick for call in self.trace.calls[neuron] if call.tick < calls[0].tick)
            for neuron in calls[0].reads & set(self.neurons)
        }
        return max(last_run, key=lambda neuron: last_run[neuron], default=None)

    def _targets(self, path: str) -> list[str]:
        return self._readers(path, self.neurons)

    def _readers(self, path: str, among: list[str]) -> list[str]:
        """Modules that read what this one returns, whatever stands between that has no weights."""
        readers = [m for m in among if path in self.trace.origins.get(m, ())]
        return sorted(readers, key=self._started)

    def _own_norms(self, path: str) -> list[str]:
        """Norms between a synapse and its target that, in each call, read it alone."""
        heard = {norm for target in self._targets(path) for norm in self.trace.origins[target]}
        return [norm for norm in self.norms if norm in heard and all(self._alone(path, norm))]

    def _alone(self, path: str, norm: str) -> list[bool]:
        """For each call of a norm whether it reads this synapse alone."""
        return [call.reads & self.renewing == {path} for call in self.trace.calls[norm]]

    def _end(self, path: str) -> str | None:
        if path not in self.trace.calls:
            return None
        return max(self._own_norms(path), key=self._started, default=path)

    def _end_axis(self, path: str, end: str | None) -> int:
        """Axis of the channels in what ``end`` returns, counted from the end."""
        own = channel_axis(self.modules[path]) or -1
        if end is None or end == path:
            return own
        norm, shape = self.modules[end], self.trace.output_shapes[end]
        by_axis_one = 1 + time_axes(norm) - len(shape)
        if isinstance(norm, _NormBase | nn.GroupNorm):
            return by_axis_one
        # Layer norms and unknown ones may have their channels wherever the synapse has them.
        return own if _size(shape, own) == _channels(self.modules[path]) else by_axis_one

    # What stands in the way of a gate.

    def _obstacles(
        self, path: str, source: str | None, targets: list[str], end: str | None
    ) -> Iterator[str]:
        """Reasons against a channel gate, the most telling one first."""
        owner, module = _owner(path, self.neurons), self.modules[path]
        if owner is not None:
            yield f"a weight inside the neuron {owner or '(model)'}, as recurrent ones are"
        if channel_axis(module) is None:
            yield f"{type(module).__name__} is neither a convolution nor a linear layer"
        if end is None:
            yield "not called by the sample"
            return
        if source is None:
            yield f"no spiking neuron reaches its input: {self._what_it_reads(path)}"
        outer = [m for m in self.synapses if _owner(m, self.neurons) is None]
        readers = self._readers(path, outer)
        if readers:
            yield f"its output also reaches a weight layer without a neuron: {', '.join(readers)}"
        gates = self._readers(path, sorted(self.trace.gates))
        if gates:
            yield f"already gated by {', '.join(gates)}"
        if not targets:
            yield "no spiking neuron reads its output: read-out"
        if path in self.trace.returned:
            yield "its output also leaves the network"
        if len(targets) > 1:
            yield f"its output reaches several neurons: {', '.join(targets)}"
        yield from self._norm_obstacles(path, end)
        parts = {"it": path, "its source": source, "its target": (*targets, None)[0]}
        parts |= {"its norm": end} if end != path else {}
        known = {name: part for name, part in parts.items() if part is not None}
        yield from self._sharing_obstacles(known)
        if source is not None:
            yield from self._step_obstacles(path, source, end)
            yield from self._shape_obstacles(path, source, end)

    def _what_it_reads(self, path: str) -> str:
        reads = self.trace.calls[path][0].reads & self.renewing
        later = self.trace.origins[path] & set(self.neurons)
        read = "the raw input" if reads == {INPUT} else ", ".join(sorted(reads)) or "constants"
        feedback = f", and {', '.join(sorted(later))} only of the step before" if later else ""
        return f"it reads {read}{feedback}"

    def _norm_obstacles(self, path: str, end: str) -> Iterator[str]:
        for norm in self.norms:
            if norm != end and any(self._alone(path, norm)) and not all(self._alone(path, norm)):
                yield f"the norm {norm} reads it in some calls, and others in other calls"
        beside = [norm for norm in self._own_norms(path) if norm != end]
        beside = [norm for norm in beside if norm not in self.trace.origins[end]]
        if beside:
            yield f"several norms read it side by side: {', '.join((*beside, end))}"

    def _sharing_obstacles(self, parts: dict[str, str]) -> Iterator[str]:
        """One module at several places, or in several calls of one step, cannot be told apart."""
        for name, path in parts.items():
            if self.aliases[path]:
                yield f"shared: {name} stands at {', '.join((path, *self.aliases[path]))}"
        counts = {path: len(self.trace.calls[path]) for path in parts.values()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{path or '(model)'} {n}" for path, n in counts.items())
            yield f"called unequally often, so no call has a step of its own: {listed} times"

    def _step_obstacles(self, path: str, source: str, end: str) -> Iterator[str]:
        """The source's membrane must still be that of the step when the gate looks at it."""
        parts = (source, path, end)
        ticks = [[call.tick for call in self.trace.calls[part]] for part in parts]
        in_order = [tick for step in zip(*ticks, strict=False) for tick in step]
        if in_order != sorted(in_order):
            yield f"its source {source} does not take turns with it: it has run other steps by then"

    def _shape_obstacles(self, path: str, source: str, end: str) -> Iterator[str]:
        given, shape = self.trace.input_shapes[source], self.trace.output_shapes[end]
        step = self._step_shape(source)
        for name in set(self.synapses) & self.trace.origins[source]:
            module = self.modules[name]
            if isinstance(module, nn.Linear) and len(step) > 2 and step[1] != module.out_features:
                yield f"its source {source} reads {given}, with the channels of {name} not first"
        if len(self._step_shape(source)) < 2:
            yield f"its source {source} reads {given}, which has no axis of channels beside a batch"
        axis, channels = self._end_axis(path, end), _channels(self.modules[path])
        if _size(shape, axis) != channels:
            yield f"{end} returns {shape}, whose axis {axis} is not its {channels} channels"
        lead, held = given[: 1 + time_axes(self.modules[source])], shape[:axis]
        folded = len(held) == 1 and prod(held) == prod(lead)
        if not folded and (not held or held[: len(lead)] != lead):
            yield f"{end} returns {shape}, which has not the batch {lead} of its source {source}"

    def space_obstacles(self, path: str) -> Iterator[str]:
        """Reasons why a neuron's steps have no known space."""
        if path not in self.trace.calls:
            yield "not called by the sample"
            return
        layers = [m for m in self.synapses if m in self.trace.origins[path]]
        if not layers:
            yield "reads no weight layer, so what its axes mean is unknown"
        shape = self._step_shape(path)
        for name in layers:
            module = self.modules[name]
            if not isinstance(module, _ConvNd):
                yield f"reads {name} ({type(module).__name__}), a layer without space"
            elif len(shape) != 2 + len(module.kernel_size) or shape[1] != module.out_channels:
                wanted = f"[N, {module.out_channels}, {len(module.kernel_size)} axes of space]"
                yield f"reads {shape} in a step, where {name} gives {wanted}"

    def _step_shape(self, path: str) -> tuple[int, ...]:
        """Shape of one step of what a neuron reads: ``[N, C, ...]``."""
        return self.trace.input_shapes[path][time_axes(self.modules[path]) :]


def _owner(path: str, owners: list[str]) -> str | None:
    """The first of ``owners`` that holds this module."""
    return next((m for m in owners if m != path and (not m or path.startswith(f"{m}."))), None)


def time_axes(module: nn.Module) -> int:
    """1 for a module that takes whole sequences ``[T, N, ...]``, else 0."""
    return int(getattr(module, "step_mode", "s") == "m")


def _channels(module: nn.Module) -> int:
    if isinstance(module, _ConvNd):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else 0


def _size(shape: tuple[int, ...], axis: int) -> int | None:
    return shape[axis] if -len(shape) <= axis < 0 else None
