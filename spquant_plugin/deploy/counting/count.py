"""What an integer network does on a batch, and what it holds: counts for a report.

An accumulate counts where a nonzero weight meets a nonzero input and no gate closes its output,
whether the engine that runs skips it or not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...counts import Count, Counts, GateCount, JoinCount, LayerCount, NeuronCount
from ..engine.record import Engine
from ..graph import (
    WHOLE,
    Add,
    Affine,
    ChannelDecision,
    Convolution,
    Dense,
    Graph,
    Neuron,
    Node,
    Product,
    SumPool,
    size,
)
from ..steps import variants
from .pairs import Pairs
from .values import Values

TWICE = re.compile(r"#\d+$")  # the mark of a module's further call
PARTS = (" (high)", " (low)")  # of a layer whose weights are wider than int8
SPLIT = "weights wider than 8 bits run as two layers: what both accumulate"
GATE, MASK = "channel_gate", "spatial_gate"


@torch.no_grad()
def count(graph: Graph, engine: Engine, x: Tensor) -> Counts:
    """Run ``x [T, N, *shape]`` from rest, and count."""
    counter = _Counter(graph, Values(graph, engine, x), engine)
    parts: dict[tuple[type, str], Count] = {}
    for part in counter.parts():
        known = parts.setdefault((type(part), part.path), part)
        if known is not part:
            _further(known, part)
    return counter.whole(parts)


def _further(known: Count, part: Count) -> None:
    """A further call of one module, for which the graph holds the weight again."""
    known.add(part)
    if isinstance(known, LayerCount) and isinstance(part, LayerCount):
        known.sum_bits = max(known.sum_bits, part.sum_bits)
        known.input_bits = max(known.input_bits, part.input_bits)
        if known.held_bytes is not None and part.held_bytes is not None:
            known.held_bytes += part.held_bytes


def _code_note(steps: int) -> str:
    return f"one code for {steps} time steps" if steps > 1 else ""


class _Counter:
    """Goes through the nodes in their order."""

    def __init__(self, graph: Graph, values: Values, engine: Engine) -> None:
        self.graph, self.values, self.engine = graph, values, engine
        self.steps, self.batch = values.steps, values.batch
        self.layers: dict[tuple[str, str], list[Any]] = {}  # nodes of one call of one module
        for node in graph.layers:
            self.layers.setdefault((self.path(node), node.inputs[0]), []).append(node)
        self.calls: dict[str, int] = {}
        self.gates: dict[str, list[ChannelDecision]] = {}
        self.whole_weights = getattr(engine, "weight_bytes", None)
        for gate in graph.nodes:
            if isinstance(gate, ChannelDecision):
                self.gates.setdefault(self.path(gate), []).append(gate)
        self.masks = self._masks()

    def path(self, node: Node) -> str:
        """The trained module's: further calls of it, and parts of its weight, go by its name."""
        name = TWICE.sub("", node.name)
        name = next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
        return "" if name == WHOLE else name

    def parts(self) -> Iterator[Count]:
        """Every layer, neuron, gate and join."""
        done: set[tuple[str, str]] = set()
        for node in self.graph.nodes:
            if isinstance(node, Convolution | Dense):
                key = self.path(node), node.inputs[0]
                if key not in done:
                    done.add(key)
                    yield self._layer(*key)
            elif isinstance(node, Neuron):
                yield self._neuron(node)
                if node.pixels is not None:
                    yield self._mask(node)
            elif isinstance(node, ChannelDecision):
                yield self._gate(node)
            elif isinstance(node, SumPool | Affine | Add | Product):
                yield from self._join(node)

    def whole(self, parts: dict[tuple[type, str], Count]) -> Counts:
        """All of it, with what belongs to no part."""
        state = self.values.state
        named = sum(state[neuron.name].nbytes for neuron in self.graph.neurons)
        return Counts(
            engine=str(getattr(self.engine, "name", type(self.engine).__name__)),
            samples=self.batch,
            first_batch=self.batch,
            steps=self.steps,
            parts=parts,
            weight_bytes=self.whole_weights,
            rest_bytes=self.engine.held_bytes(state) - named,
        )

    # Layers.

    def _layer(self, path: str, source: str) -> LayerCount:
        """One call of one module, whose weight may be in two parts."""
        nodes = self.layers[path, source]
        given, summed = self.graph[source], self._sum_of(nodes)
        x = self.values[source].flatten(0, 1)
        ones = x.ne(0)
        gate = self._gate_of(path)
        mask = self.masks.get(path)
        found = LayerCount(
            path=path,
            type=nodes[0].kind,
            weights=nodes[0].weight.numel(),
            zero_weights=self._zeros(nodes),
            weight_bits=nodes[0].bits,
            channels=nodes[0].shape[0],
            space=nodes[0].shape[1:],
            kernel=math.prod(nodes[0].weight.shape[2:]) if nodes[0].weight.ndim > 2 else 1,
            input_bits=1 if given.binary else signed_bits(given) - (given.low >= 0),
            sum_bits=signed_bits(summed),
            gate=self.path(gate) if gate is not None else "",
            mask=_inside(self.path(mask), MASK) if mask is not None else "",
            note=SPLIT if len(nodes) > 1 else _code_note(len(self._variants(nodes[0]))),
            held_bytes=None
            if self.whole_weights is not None
            else sum(one.weight.nbytes for node in nodes for one in self._variants(node)),
            rows=x.shape[0],
            inputs=x.numel(),
            outputs=x.shape[0] * size(nodes[0].shape),
            binary=torch.equal(ones.to(x.dtype), x),
        )
        for node in nodes:
            each = self.values.by_step(node.name)
            for step, one in enumerate(each):
                # All steps at once, or the rows of the one step that has these weights.
                rows = slice(None) if len(each) == 1 else self.rows_of(step)
                pairs = Pairs(one, given)
                found.dense += pairs.dense() * len(ones[rows])
                nonzero, effective = self._pairs(pairs, ones[rows], gate, mask, rows)
                found.nonzero += nonzero
                found.effective += effective
        return found

    def rows_of(self, step: int) -> slice:
        """The rows of a step, where steps and samples share an axis."""
        return slice(step * self.batch, (step + 1) * self.batch)

    def _variants(self, node: Node) -> list[Any]:
        """The node in each step, or alone where no step changes it."""
        return variants(self.graph, node.name)

    def _zeros(self, nodes: list[Any]) -> float:
        """Weights that are 0 in all their parts, in the mean of all steps."""
        steps = zip(*(self._variants(node) for node in nodes), strict=True)
        parts = [torch.stack([one.weight for one in step]) for step in steps]
        return sum(int(part.eq(0).all(0).sum()) for part in parts) / len(parts)

    def _pairs(
        self,
        pairs: Pairs,
        ones: Tensor,
        gate: ChannelDecision | None,
        mask: Neuron | None,
        rows: slice,
    ) -> tuple[int, int]:
        """Pairs of nonzeros in some rows, and those that gates leave."""
        prior = mask is not None and mask.pixels is not None and mask.pixels.score == "prior"
        if not prior or mask is None or mask.shape[1:] != pairs.node.shape[1:]:
            if gate is None:
                return (total := pairs.all(ones)), total
            by_channel = pairs.by_channel(ones)
            is_open = self.values[gate.name].flatten(0, 1)[rows]
            return int(by_channel.sum()), int((by_channel * is_open).sum())
        by_place = pairs.by_place(ones, channels=gate is not None)
        nonzero = int(by_place.sum(dtype=torch.float64))
        if gate is not None:
            is_open = self.values[gate.name].flatten(0, 1)[rows]
            by_place = by_place * is_open.view(*is_open.shape, *[1] * (by_place.ndim - 2))
        kept = by_place * ~self.values.masked(mask)[rows]
        return nonzero, int(kept.sum(dtype=torch.float64))

    def _sum_of(self, nodes: list[Any]) -> Node:
        """What holds the layer's sums: itself, or the node that adds its parts."""
        return nodes[0] if len(nodes) == 1 else next(self.graph.readers(nodes[0].name))

    def _gate_of(self, path: str) -> ChannelDecision | None:
        """The gate that conversion gave a layer, for this call of it."""
        gates = self.gates.get(_inside(path, GATE), [])
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        return gates[min(call, len(gates) - 1)] if gates else None

    def _masks(self) -> dict[str, Neuron]:
        """For each layer the masking neuron that alone reads its sums, through pools and joins."""
        found = {}
        targets: dict[str, set[str]] = {}
        for (path, _), nodes in self.layers.items():
            for node in nodes:
                targets.setdefault(path, set()).update(self._targets(node.name))
        for path, names in targets.items():
            only = self.graph[next(iter(names))] if len(names) == 1 else None
            if isinstance(only, Neuron) and only.pixels is not None:
                found[path] = only
        return found

    def _targets(self, name: str) -> set[str]:
        reached: set[str] = set()
        for reader in self.graph.readers(name):
            if isinstance(reader, Neuron | Convolution | Dense):
                reached.add(reader.name)
            elif not isinstance(reader, ChannelDecision):
                reached |= self._targets(reader.name)
        return reached

    # Neurons and gates.

    def _neuron(self, node: Neuron) -> NeuronCount:
        spikes, levels = self.values[node.name], self.values[node.name, "membrane"]
        bins = node.highest - node.lowest + 1
        by_step = [
            torch.bincount((step - node.lowest).flatten(), minlength=bins) for step in levels
        ]
        each = self._variants(node)
        tables = [
            table for one in each for table in (one.sign, one.breaks, one.outcomes, one.closed)
        ]
        spike_bytes = getattr(self.engine, "spike_bytes", None)
        return NeuronCount(
            path=self.path(node),
            type=node.kind,
            neurons=size(node.shape),
            lowest=node.lowest,
            highest=node.highest,
            remembers=node.remembers,
            outcomes=len(node.outcomes),
            table_bytes=sum(table.nbytes for table in tables if table is not None),
            held_bytes=self.values.state[node.name].nbytes,
            spike_bytes=None if spike_bytes is None else spike_bytes(node, self.steps, self.batch),
            updates=spikes.numel(),
            spikes=int(spikes.count_nonzero()),
            levels=by_step,
        )

    def _gate(self, node: ChannelDecision) -> GateCount:
        source: Any = node.inputs[0]
        read = self.values[(source, "membrane") if node.reads == "membrane" else source]
        decided = self.values[node.name]
        products = decided.numel() * node.weight.shape[1]
        return GateCount(
            path=self.path(node),
            type=node.kind,
            pixels=False,
            weights=node.weight.numel(),
            weight_bits=node.bits,
            table_bytes=node.threshold.nbytes,
            held_bytes=node.weight.nbytes,
            decided=decided.numel(),
            shut=int((decided == 0).sum()),
            dense=read.numel() + products + decided.numel(),
            additions=int(read.count_nonzero()),
            multiplications=products,
            comparisons=decided.numel(),
        )

    def _mask(self, node: Neuron) -> GateCount:
        """Squares, their sums, and a ranking; of levels -1, 0 and 1 the square takes no product."""
        pixels, scores = size(node.shape[1:]), self.values.scores(node)
        masked = 0 if node.pixels is None else node.pixels.masked
        ranking = pixels * math.ceil(math.log2(pixels)) * self.batch
        found = GateCount(
            path=_inside(self.path(node), MASK),
            type="PixelMask",
            pixels=True,
            decided=self.steps * self.batch * pixels,
            shut=len(scores) * self.batch * masked,
            dense=scores.numel() + len(scores) * ranking,
            comparisons=len(scores) * ranking,
        )
        for step in scores:
            if bool((step.abs() > 1).any()):
                found.multiplications += int(step.count_nonzero())
            else:
                found.additions += int(step.count_nonzero())
        return found

    # What stands between them.

    def _join(self, node: Any) -> Iterator[JoinCount]:
        rows = self.steps * self.batch
        elements = rows * size(node.shape)
        if isinstance(node, SumPool):
            pairs = Pairs(node, self.graph[node.inputs[0]])
            ones = self.values[node.inputs[0]].flatten(0, 1).ne(0)
            dense = pairs.dense() * rows
            yield JoinCount(node.name, node.kind, "pool", 0, dense, pairs.all(ones))
        elif isinstance(node, Product):
            yield JoinCount(node.name, node.kind, "add", 0, elements, elements)
        elif isinstance(node, Affine):
            tables = node.multiplier.nbytes + node.offset.nbytes
            signs = bool((node.multiplier.abs() == 1).all())
            work = (elements, 0) if signs else (0, elements)
            yield JoinCount(node.name, node.kind, "norm", tables, elements, *work)
        elif any(self.path(self.graph[name]) == self.path(node) for name in node.inputs):
            return  # the two parts of a layer
        else:
            tables = sum(factor.nbytes for factor in node.factors)
            products = sum(bool((factor.abs() != 1).any()) for factor in node.factors)
            sums = max(len(node.inputs) - 1 - products, 0)
            dense = elements * (sums + products)
            yield JoinCount(
                node.name, node.kind, "add", tables, dense, elements * sums, elements * products
            )


def signed_bits(node: Node) -> int:
    """Bits of a number with a sign that hold all that a value can be.

    >>> from spquant_plugin.deploy.graph import Input
    >>> def bits(low, high):
    ...     return signed_bits(Input(name="x", inputs=(), shape=(1,), low=low, high=high))
    >>> bits(-128, 127), bits(-129, 0), bits(0, 1)
    (8, 9, 2)
    """
    return max((-node.low - 1).bit_length(), node.high.bit_length()) + 1


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
