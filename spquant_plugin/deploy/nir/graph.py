"""From what a run saw to the nodes and edges of a NIR graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from .edges import Refuse, refusal, returned, sources
from .flow import INPUT, Call, Flow
from .layers import check_norm, pool_part, weight_part
from .neurons import Part, neuron_part

OUTPUT = "(output)"
Step = tuple[int, ...]


@dataclass
class Graph:
    """Nodes by name, in the order of their first call, and edges between names.

    ``steps`` holds the shape of each result in one time step, without batch.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


class Builder:
    """Builds the graph of one run."""

    def __init__(self, flow: Flow, modules: dict[str, nn.Module], kinds: dict[str, str]) -> None:
        self.flow, self.modules, self.kinds = flow, modules, kinds
        self.reads = {path: sources(flow, path, self._refuse(path)) for path in flow.calls}
        self.returned = returned(flow)
        self.graph = Graph()
        self.names: dict[str, str] = {INPUT: "input", OUTPUT: "output"}
        self.steps: dict[str, Step] = {}  # of each node's result, by path
        self.flattened: dict[str, str] = {}  # names of inserted nodes
        self.total: int | None = None
        self.folded = self._folded()

    def _refuse(self, path: str) -> Refuse:
        return refusal(path, self.modules[path])

    def _folded(self) -> dict[str, str]:
        """Norms that become part of the layer before them, by that layer's path."""
        folded: dict[str, str] = {}
        for path in self.reads:
            if self.kinds[path] != "norm":
                continue
            refuse, read = self._refuse(path), self.reads[path]
            check_norm(self.modules[path], refuse)
            readers = [other for other, names in self.reads.items() if read[0] in names]
            alone = len(read) == 1 and len(readers) == 1 and self.returned != read[0]
            if not alone or self.kinds.get(read[0]) != "weights":
                raise refuse(
                    f"reads {' + '.join(read)} and does not fold: NIR has no norms, and a norm "
                    "becomes part of the convolution or linear layer right before it, which "
                    "nothing else reads. Put it right behind such a layer, or use export_c."
                )
            folded[read[0]] = path
        return folded

    def build(self) -> Graph:
        """The whole graph, its types consistent."""
        for path, calls in self.flow.calls.items():
            layer = self.reads[path][0]
            if self.kinds[path] == "norm":
                self.steps[path] = self.steps[layer]
                self.names[path] = self.names[layer]
            else:
                self._add(path, calls)
        self.graph.edges.append((self.names[self.returned], self.names[OUTPUT]))
        self.graph.steps = {
            "input": self.steps[INPUT],
            "output": self.steps[self.returned],
        }
        return self.graph

    def _add(self, path: str, calls: list[Call]) -> None:
        call, refuse = calls[0], self._refuse(path)
        seen = self._seen(path, call)
        self._check_batch(math.prod(call.in_shape) * len(calls), seen, refuse)
        if INPUT in self.reads[path] and INPUT not in self.steps:
            self.steps[INPUT] = self._input_step(call, seen)
        part = self._part(path, call, seen, refuse)
        self.steps[path] = self._made(path, call, seen)
        # First what stands before the node, so that nodes are in the order of the data.
        before = [self._outlet(source, path, seen) for source in self.reads[path]]
        name = self._enter(path, part)
        self.graph.edges += [(source, name) for source in before]

    # Shapes without time and batch.

    def _seen(self, path: str, call: Call) -> Step:
        """What a node reads in one step of one sample."""
        kind, module, shape = self.kinds[path], self.modules[path], call.in_shape
        known = [self.steps[name] for name in self.reads[path] if name in self.steps]
        if kind == "weights":
            return shape[1 - self._weight(path).ndim :]
        if kind == "pool":
            return shape[-3:]
        if known and shape == known[0]:
            return shape  # without a batch
        lead = 2 if getattr(module, "step_mode", "s") == "m" else 1
        if isinstance(module, nn.Flatten):
            if known and shape[len(shape) - len(known[0]) :] == known[0]:
                return known[0]
            start = module.start_dim
            lead = len(shape) + start if start < 0 else lead - 1 + start
        return shape[lead:]

    def _weight(self, path: str) -> Any:
        module: Any = self.modules[path]
        return module.weight

    def _made(self, path: str, call: Call, seen: Step) -> Step:
        """What a node gives in one step of one sample."""
        if self.kinds[path] == "neuron":
            return seen
        if self.kinds[path] == "pool":
            return call.out_shape[-3:]
        if self.kinds[path] == "flatten":
            return (math.prod(seen),)
        return call.out_shape[1 - self._weight(path).ndim :]

    def _input_step(self, call: Call, seen: Step) -> Step:
        """The model's input without time and batch: what its first reader takes is a step."""
        whole = self.flow.input_shape
        lead = math.prod(call.in_shape) // math.prod(seen) * (self.flow.cut or 1)
        front = len(whole) - len(seen)
        if front >= 0 and whole[front:] == seen and math.prod(whole[:front]) == lead:
            return seen
        # It was reshaped on the way.
        timed = self.flow.cut is not None or any(
            getattr(module, "step_mode", "s") == "m" for module in self.modules.values()
        )
        front = 2 if timed else 1
        while front < len(whole) and math.prod(whole[:front]) < lead:
            front += 1
        return whole[front:]

    def _check_batch(self, size: int, seen: Step, refuse: Refuse) -> None:
        """Each node sees as many steps and samples as any other."""
        count, rest = divmod(size, max(math.prod(seen), 1))
        self.total = count if self.total is None else self.total
        if rest or count != self.total:
            raise refuse(
                f"sees {count} signals of shape {seen} where another node sees {self.total}: a "
                "node of NIR sees one signal per step and sample. Use a layer for each place, or "
                "export the part where all agree."
            )

    # Nodes and edges.

    def _part(self, path: str, call: Call, seen: Step, refuse: Refuse) -> Part:
        kind, module = self.kinds[path], self.modules[path]
        if kind == "weights":
            norm_path = self.folded.get(path, "")
            norm = self.modules[norm_path] if norm_path else None
            return weight_part(module, norm, norm_path, seen, refuse)
        if kind == "neuron":
            return neuron_part(module, seen, call.dtype, refuse)
        if kind == "pool":
            return pool_part(module, seen, call.out_shape, refuse)
        if call.out_shape[-1:] != (math.prod(seen),):
            raise refuse(
                f"turns {seen} into {call.out_shape[1:]}: only flattening a whole step is "
                "exported. Use Flatten(start_dim=1)."
            )
        return flatten(seen)

    def _enter(self, path: str, part: Part) -> str:
        """Add the node of a module, whose name is the module's path wherever that can be."""
        name = self._named(path or type(self.modules[path]).__name__.lower())
        self.names[path] = name
        self.graph.parts[name] = part
        self.graph.paths[name] = path
        if part.lost:
            self.graph.lost.append(f"{path or '(model)'} {part.lost}")
        return name

    def _named(self, stem: str) -> str:
        """A name that no other node has once importers have replaced its dots."""
        taken = {name.replace(".", "_") for name in (*self.graph.parts, "input", "output")}
        name, number = stem, 1
        while name.replace(".", "_") in taken:
            name, number = f"{stem}_{number}", number + 1
        return name

    def _outlet(self, source: str, target: str, seen: Step) -> str:
        """The node that gives ``target`` the result of ``source`` in the shape it reads."""
        step = self.steps[source]
        if step == seen:
            return self.names[source]
        if seen != (math.prod(step),):
            raise self._refuse(target)(
                f"reads {seen} from {source}, which gives {step}: between nodes of NIR only "
                "flattening is known. Leave the reshape out."
            )
        return self._flattened(source, step)

    def _flattened(self, source: str, step: Step) -> str:
        """A node for a reshape that was no module; one serves all who read it."""
        if source not in self.flattened:
            name = self._named(f"{self.names[source]}_flatten")
            self.graph.parts[name] = flatten(step)
            self.graph.edges.append((self.names[source], name))
            self.flattened[source] = name
        return self.flattened[source]


def flatten(step: Step) -> Part:
    """A flatten of one whole step."""
    shape = {"input": np.array(step)}
    return Part("Flatten", {"input_type": shape, "start_dim": 0, "end_dim": -1}, {})
