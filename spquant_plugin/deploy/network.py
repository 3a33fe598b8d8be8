"""The integer network: what runs in place of the trained one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..counts import Counts
from ..errors import DeployError
from ..functional.inputs import quantize_input
from .counting import count
from .engine.choice import make_engine
from .engine.record import Engine
from .graph import Graph, Output
from .kept import WeakGraph, narrow
from .readout import real
from .steps import distinct


@dataclass(frozen=True, eq=False)
class Run:
    """What a network gave for a sequence from rest.

    ``outputs`` are real numbers, as the trained model returns them; ``integers`` the whole numbers
    behind them, ``[T, N, ...]``. ``spikes`` and ``membranes`` (stored levels) hold every neuron
    layer by its path, ``[T, N, ...]``, where they were recorded.
    """

    outputs: tuple[Tensor, ...]
    integers: tuple[Tensor, ...]
    spikes: dict[str, Tensor] = field(default_factory=dict)
    membranes: dict[str, Tensor] = field(default_factory=dict)


class IntegerNetwork:
    """A network of whole numbers, equal to the model that it was lowered from.

    Call it with what the model takes, always from rest: a sequence ``[T, N, ...]`` (or, of a model
    that takes one input for all its steps, ``[N, ...]``). It returns what the model returns.
    :meth:`step` and :meth:`reset` stream instead: one step at a time, with states carried on. A
    network whose weights change from step to step runs the steps that it has weights for, at most.
    ``engine`` is ``"numba"``, ``"torch"``, or ``"auto"``, the first of the two that is there.
    """

    def __init__(self, graph: Graph, sample: Tensor, engine: str = "auto") -> None:
        self.sample = sample
        self.engine: Engine = make_engine(graph, engine)
        self._graph = WeakGraph()
        self._state: Any = None
        self._batch = self._steps = 0

    @property
    def sample(self) -> Tensor:
        """What files and exports are checked on: whole numbers ``[T, N, *shape]``, int32."""
        return self._sample.to(torch.int32)

    @sample.setter
    def sample(self, whole: Tensor) -> None:
        self._sample = narrow(whole)

    @property
    def graph(self) -> Graph:
        """The network as data.

        Weights that the engine holds packed are unpacked for whoever asks, and let go with them.
        """
        return self._graph.get() or self._graph.set(self.engine.whole_graph())

    def use(self, engine: str, **options: Any) -> IntegerNetwork:
        """Run on another engine from now on; a stream starts anew."""
        self.engine = make_engine(self.whole_graph(), engine, **options)
        self._graph = WeakGraph()
        self.reset()
        return self

    def strip(self) -> IntegerNetwork:
        """Keep only what running takes: let go of the sample and of the neurons' tables.

        Afterwards the network runs and streams, and can no longer be stored, exported, reported or
        given to another engine; load its file again for that.
        """
        strip = getattr(self.engine, "strip", None)
        if strip is None:
            raise DeployError(
                f"strip: engine {self.engine.name!r} runs on the graph itself: needs all of it. "
                'Use net.use("numba", memory="small") first.'
            )
        strip()
        self._graph, self.sample = WeakGraph(), self.sample[:0]
        return self

    def whole_graph(self) -> Graph:
        """The graph with all its numbers."""
        graphs = self.engine.graph.by_step
        if any(neuron.breaks.is_meta for graph in graphs for neuron in graph.neurons):
            raise DeployError(
                "this network was stripped of what running does not take: storing, exporting, "
                "reports and other engines need all of it. Load its file again."
            )
        return self.graph

    @property
    def held_bytes(self) -> int:
        """Bytes that the network holds: what its engine made, its graph and sample, its states."""
        nodes = distinct(self.engine.graph)
        tensors = [value for node in nodes for value in _tensors(vars(node).values())]
        whole = [tensor for tensor in (*tensors, self._sample) if not tensor.is_meta]
        own = sum(tensor.numel() * tensor.element_size() for tensor in whole)
        return own + getattr(self.engine, "packed_bytes", 0) + self.state_bytes

    # Whole sequences.

    def __call__(self, x: Tensor) -> Any:
        """What the model returns for ``x``, from rest."""
        outputs = self.run(x).outputs
        return outputs[0] if self.engine.graph.single else outputs

    def run(self, x: Tensor, record: bool = False) -> Run:
        """All outputs, and with ``record`` every spike and every stored membrane."""
        whole = self.integers(x)
        wanted: set[Any] = {_key(output) for output in self.engine.graph.outputs}
        if record:
            for neuron in self.engine.graph.neurons:
                wanted |= {neuron.name, (neuron.name, "membrane")}
        wanted |= {output.gate for output in self.engine.graph.outputs if output.gate}
        found = self.engine.run(whole, self.engine.rest(whole.shape[1]), wanted).values
        names = [neuron.name for neuron in self.engine.graph.neurons] if record else []
        return Run(
            tuple(self._read_out(i, found) for i in range(len(self.engine.graph.outputs))),
            tuple(found[_key(output)] for output in self.engine.graph.outputs),
            {name: found[name] for name in names},
            {name: found[name, "membrane"] for name in names},
        )

    # Streaming.

    def reset(self) -> None:
        """Bring all neurons to rest."""
        self._state, self._batch, self._steps = None, 0, 0

    def step(self, x: Tensor) -> Any:
        """One time step ``[N, ...]``; states go on from the step before.

        Returns the outputs of this step, before any reduction over time.
        """
        whole = self._whole(x, self._shape(x, lead=1)).unsqueeze(0)
        batch = whole.shape[1]
        if self._state is None:
            self._state, self._batch = self.engine.rest(batch), batch
        if batch != self._batch:
            raise DeployError(
                f"step: received {batch} samples, and the states are those of {self._batch}: must "
                "stay the same until reset()."
            )
        wanted = {_key(output) for output in self.engine.graph.outputs}
        wanted |= {output.gate for output in self.engine.graph.outputs if output.gate}
        found = self.engine.run(whole, self._state, wanted).values
        self._steps += 1
        outputs = _outputs(self.engine.graph, self._steps - 1)
        parts = tuple(_reals(output, found)[0] for output in outputs)
        return parts[0] if self.engine.graph.single else parts

    @property
    def state_bytes(self) -> int:
        """Bytes that the stream's states take now."""
        return 0 if self._state is None else self.engine.held_bytes(self._state)

    # Whole numbers in.

    def integers(self, x: Tensor) -> Tensor:
        """The input as whole numbers ``[T, N, *shape]``, refused where it is none."""
        if self.engine.graph.takes == "static":
            whole = self._whole(x, self._shape(x, lead=1))
            return whole.unsqueeze(0).expand(self.engine.graph.repeats, *whole.shape).contiguous()
        shape, steps = self._shape(x, lead=2), self.engine.graph.repeats
        if steps > 1 and len(x) != steps:
            raise DeployError(
                f"x has {len(x)} steps: must have {steps}, the number that is written into the "
                "model. Take the number of steps from the input there."
            )
        return self._whole(x, shape)

    def _shape(self, x: object, lead: int) -> tuple[int, ...]:
        want = self.engine.graph.input.shape
        words = "[T, N" if lead == 2 else "[N"
        if not isinstance(x, Tensor) or x.is_sparse or x.is_complex():
            raise DeployError(f"x = {_kind(x)}: must be a tensor {words}, ...], dense and real.")
        if tuple(x.shape[lead:]) != want or x.ndim < lead or 0 in x.shape[:lead]:
            listed = ", ".join(map(str, want))
            raise DeployError(
                f"x has shape {tuple(x.shape)}: must be {words}, {listed}] with at least one "
                f"{'step and ' if lead == 2 else ''}sample. This network was lowered for that size."
            )
        return want

    def _whole(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        node = self.engine.graph.input
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DeployError("x holds NaN or infinite values: must be finite. Clean the data.")
        if node.quantizer is not None and x.is_floating_point():
            x = quantize_input(x, *node.quantizer)
        if x.is_floating_point() and not torch.equal(x, x.round()):
            raise DeployError(
                "x holds fractions: an integer network without an input quantiser takes whole "
                "numbers. Convert with input=spq.UniformInput(...), or round x."
            )
        least, most = int(x.min()), int(x.max())
        if least < node.low or most > node.high:
            raise DeployError(
                f"x runs from {least} to {most}: accumulators are proven for {node.low} to "
                f"{node.high}. Clamp it, or lower the model with input_range=({least}, {most})."
            )
        return x.to(device="cpu", dtype=torch.int32)

    # For reports.

    def count_operations(self, whole: Tensor) -> Counts:
        """What :func:`~spquant_plugin.analyze` reports of whole numbers ``[T, N, *shape]``."""
        return count(self.whole_graph(), self.engine, whole)

    # Real numbers out.

    def _read_out(self, index: int, found: dict[Any, Tensor]) -> Tensor:
        graph = self.engine.graph
        output = graph.outputs[index]
        if graph.later:
            steps = range(len(found[_key(output)]))
            each = [{key: values[t : t + 1] for key, values in found.items()} for t in steps]
            parts = [_reals(_outputs(graph, t)[index], each[t]) for t in steps]
            values = torch.cat(parts)
        else:
            values = _reals(output, found)
        if output.over_time == "sum":
            return values.sum(0)
        if output.over_time == "mean":
            return values.mean(0)
        if output.over_time == "last":
            return values[-1]
        if output.over_time in ("running sum", "running mean"):
            total = values[0]
            for value in values[1:]:
                total = total + value
            return total / len(values) if output.over_time == "running mean" else total
        return values

    # For people.

    def __repr__(self) -> str:
        neurons = sum(torch.Size(neuron.shape).numel() for neuron in self.engine.graph.neurons)
        weights = sum(layer.weight.numel() for layer in self.engine.graph.layers)
        name = f"of {self.engine.graph.model}: " if self.engine.graph.model else ""
        return (
            f"IntegerNetwork({name}{len(self.engine.graph.layers)} weight layers with {weights:,} "
            f"weights, {len(self.engine.graph.neurons)} neuron layers with {neurons:,} neurons, "
            f"engine={self.engine.name!r})"
        )

    def save(self, path: Any) -> None:
        """Write the network to one file, see :func:`~spquant_plugin.load_integer`."""
        from .file import save_graph

        save_graph(self.whole_graph(), self.sample, path)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _kind(x: object) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"a {'sparse' if x.is_sparse else 'complex'} tensor"


def _outputs(graph: Graph, step: int) -> tuple[Output, ...]:
    """What is read out in a step."""
    return graph.by_step[step if graph.later else 0].outputs


def _key(output: Output) -> Any:
    return output.value if output.reads == "value" else (output.value, output.reads)


def _reals(output: Output, found: dict[Any, Tensor]) -> Tensor:
    """Real numbers ``[T, N, *shape]`` of an output, with the model's own arithmetic."""
    whole = found[_key(output)]
    dtype = torch.float64 if output.unit.dtype == torch.float64 else torch.float32
    values = real(whole.flatten(0, 1), output.unit, output.steps, dtype)
    if output.gate is not None:
        is_open = found[output.gate].flatten(0, 1).to(dtype)
        values = values * is_open.view(*is_open.shape, *[1] * (values.ndim - 2))
    return values.view(*whole.shape)
