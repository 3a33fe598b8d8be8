"""The values of a run that counts are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...functional.gates import kept_but
from ..engine.record import Engine
from ..engine.reference import OPERATIONS
from ..graph import Graph, Input, Neuron
from ..steps import variants


class Values:
    """Whole numbers ``[T, N, *shape]`` by name; stored levels by ``(name, "membrane")``.

    An engine runs once, for spikes and membranes; what stands between neurons is made from these
    where something asks.
    """

    def __init__(self, graph: Graph, engine: Engine, x: Tensor) -> None:
        self.graph, self.x = graph, x
        self.steps, self.batch = x.shape[:2]
        wanted: set[Any] = set()
        for neuron in graph.neurons:
            wanted |= {neuron.name, (neuron.name, "membrane")}
            if neuron.pixels is not None and neuron.pixels.score == "current":
                wanted |= set(neuron.inputs) - {graph.input.name}
        self.state = engine.rest(self.batch)
        self.found: dict[Any, Tensor] = dict(engine.run(x, self.state, wanted).values)

    def __getitem__(self, key: Any) -> Tensor:
        if key not in self.found:
            node = self.graph[key]
            if isinstance(node, Input):
                self.found[key] = self.x
            else:
                level = getattr(node, "reads", "value") == "membrane"
                keys: list[Any] = [
                    (name, "membrane") if level and i == 0 else name
                    for i, name in enumerate(node.inputs)
                ]
                given = [self[name].flatten(0, 1) for name in keys]
                result = self._computed(key, given)
                self.found[key] = result.view(self.steps, self.batch, *node.shape)
        return self.found[key]

    def _computed(self, name: str, given: list[Tensor]) -> Tensor:
        """What an operation gives in all steps, with the numbers of each."""
        nodes = self.by_step(name)
        if len(nodes) == 1:
            return OPERATIONS[type(nodes[0])](nodes[0], *given)
        rows = zip(*(part.split(self.batch) for part in given), strict=True)
        pairs = zip(nodes, rows, strict=True)
        return torch.cat([OPERATIONS[type(node)](node, *parts) for node, parts in pairs])

    def by_step(self, name: str) -> list[Any]:
        """The node in each step that ran, or alone where no step changes it."""
        return variants(self.graph, name)[: self.steps]

    def scores(self, node: Neuron) -> Tensor:
        """Levels by which a spatial gate ranked pixels: of all steps, or but for the first."""
        levels = self[node.name, "membrane"]
        if node.pixels is None or node.pixels.score == "prior":
            return levels[:-1]
        return torch.stack([self._potential(node, step) for step in range(self.steps)])

    def _potential(self, node: Neuron, step: int) -> Tensor:
        """Levels of the potentials of one step, which no engine keeps."""
        nodes = self.by_step(node.name)
        node = nodes[min(step, len(nodes) - 1)]
        before = torch.full((self.batch, *node.shape), node.rest)
        if step > 0:
            before = self[node.name, "membrane"][step - 1].long() - node.lowest
            if node.remembers:
                before = 2 * before + self[node.name][step - 1].long()
        behind = [1] * (len(node.shape) - 1)
        channel = torch.arange(node.shape[0]).view(-1, *behind).expand(before.shape)
        number = torch.zeros_like(before)
        if node.counts is not None:
            number = self[node.inputs[1]][step].long() - node.counts[0]
        signed = self[node.inputs[0]][step].long() * node.sign.long().view(-1, *behind)
        outcome = (signed.unsqueeze(-1) >= node.breaks[channel, before, number]).sum(-1)
        if node.gate is not None and node.closed is not None:
            decided = self[node.gate][step]
            closed = node.closed[channel, before, number].long()
            outcome = torch.where(decided.view(*decided.shape, *behind).bool(), outcome, closed)
        return node.outcomes[outcome][..., 2]

    def masked(self, node: Neuron) -> Tensor:
        """Pixels that a gate of the membranes before masked: ``[T * N, 1, *space]``."""
        shut = torch.zeros(self.steps, self.batch, 1, *node.shape[1:], dtype=torch.bool)
        if node.pixels is not None and self.steps > 1:
            levels = self.scores(node).flatten(0, 1)
            kept = kept_but(levels.to(torch.int32), node.pixels.masked)
            shut[1:] = ~kept.view(self.steps - 1, self.batch, *kept.shape[1:])
        return shut.flatten(0, 1)
