"""NeuroBench looks at a folded copy; what it swallows or makes up becomes an error.

NeuroBench's own managers catch whatever a metric raises, print a line and go on with 0.0 or None.
So the metrics are called here one by one, and each number is checked before it is compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...errors import AnalysisError
from .subject import Subject, alone, load_module, refuse_computed_weights

NAME = "NeuroBench"
METRICS = ("Footprint", "ParameterCount", "ConnectionSparsity")
RUN_METRICS = ("ActivationSparsity", "SynapticOperations")


@dataclass(frozen=True)
class Tool:
    """NeuroBench's own classes."""

    version: str
    model: Any
    metrics: dict[str, Any]
    stateless: tuple[type[nn.Module], ...]


def load() -> Tool:
    """Import NeuroBench, which the package itself does not need."""
    static, workload, models, blocks, version = (
        load_module(f"neurobench.{name}", NAME, "neurobench")
        for name in ("metrics.static", "metrics.workload", "models", "blocks.layer", "version")
    )
    metrics = {name: getattr(static, name) for name in METRICS}
    metrics |= {name: getattr(workload, name) for name in RUN_METRICS}
    return Tool(version.__version__, models.NeuroBenchModel, metrics, blocks.STATELESS_LAYERS)


class _Held(nn.Module):
    """Holds the network as a child: NeuroBench looks at children, and a layer may stand alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Adapter:
    """One network under NeuroBench's hooks."""

    def __init__(self, tool: Tool, subject: Subject) -> None:
        self.tool, self.subject = tool, subject
        held = _Held(subject.net)
        methods = {"__call__": lambda model, batch: subject.run(), "__net__": lambda model: held}
        self.model = type(subject.name, (tool.model,), methods)()
        # Exactly our neurons: none of a class that it does not know, no ReLU beside them.
        kinds = [type(subject.module(path)) for path in subject.rates]
        self.model.activation_modules = list(dict.fromkeys(kinds))
        self.layers = self._by_path(self.model.connection_layers())
        self.neurons = self._by_path([found["layer"] for found in self.model.activation_layers()])
        refuse_computed_weights(subject, self.plain_layers(), f"{NAME} {tool.version}")

    def _by_path(self, modules: list[nn.Module]) -> Counter[str]:
        """How often NeuroBench found each module."""
        return Counter(self.subject.paths[id(module)] for module in modules)

    def plain_layers(self) -> dict[str, Any]:
        """What it found of linear and convolutional layers."""
        found = {path: self.subject.module(path) for path in self.layers}
        return {
            path: layer for path, layer in found.items() if isinstance(layer, self.tool.stateless)
        }

    def measure(self, name: str, *given: Any) -> Any:
        """One metric of NeuroBench; what it raises is raised."""
        try:
            return self.tool.metrics[name]()(self.model, *given)
        except Exception as error:
            raise AnalysisError(
                f"{name} of {NAME} {self.tool.version} failed on {self.subject.name} "
                f"({type(error).__name__}: {error}). It would print this and go on with 0.0 or "
                "None. It counts linear and convolutional layers that are called with one "
                "positional tensor: leave out or rewrite what else is there."
            ) from error

    def number(self, name: str, value: Any, highest: float = math.inf) -> float:
        """A value that can be a count or a share, or an error."""
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if real and math.isfinite(value) and 0 <= value <= highest:
            return value
        rule = "a number from 0 to 1" if highest == 1 else "a finite number that is not negative"
        raise AnalysisError(
            f"{name} of {NAME} {self.tool.version} gives {value!r} for {self.subject.name}: must "
            f"be {rule}. Its count is wrong, and nothing is compared. Look for layers whose weight "
            "is computed or whose forward is their own."
        )

    def count(self, name: str, value: Any) -> int:
        """A whole number."""
        number = self.number(name, value)
        if number != int(number):
            raise AnalysisError(
                f"{name} of {NAME} {self.tool.version} gives {value!r} for {self.subject.name}: "
                "must be a whole number. Its count is wrong, and nothing is compared."
            )
        return int(number)

    def look(self) -> Seen:
        """Run the network under NeuroBench's hooks, and take its numbers of the run."""
        model = self.model
        model.register_hooks()
        for hook in model.activation_hooks:
            hook.activation_outputs = _Copies()
        for hook in model.connection_hooks:
            hook.inputs = _Copies()
        try:
            samples = model(None)
            calls = self._calls()
            outputs = {
                self.subject.paths[id(hook.layer)]: sum(map(torch.numel, hook.activation_outputs))
                for hook in model.activation_hooks
            }
            sparsity = self.measure("ActivationSparsity", None, None)
            self._count_in_double()
            # It divides by the size of the batch; of several batches it sums up first.
            data = (torch.empty(samples),)
            with torch.backends.cudnn.flags(enabled=False):  # no transform that rounds
                operations = self.measure("SynapticOperations", None, data)
        finally:
            for hook in (*model.activation_hooks, *model.connection_hooks):
                hook.close()
            model.activation_hooks.clear()
            model.connection_hooks.clear()
        counts = {
            key: self.count(key, round(self.number(key, value) * samples, 6))
            for key, value in operations.items()
        }
        return Seen(samples, calls, outputs, sparsity, counts)

    def _calls(self) -> dict[str, list[tuple[bool, bool]]]:
        """For each layer and call with any input: only 0 and 1, and only -1, 0 and 1."""
        found: dict[str, list[tuple[bool, bool]]] = {}
        for hook in self.model.connection_hooks:
            calls = found.setdefault(self.subject.paths[id(hook.layer)], [])
            for args in hook.inputs:
                x = args[0] if args else None
                if isinstance(x, Tensor) and bool(x.any()):
                    unit = (x == 0) | (x == 1)
                    calls.append((bool(unit.all()), bool((unit | (x == -1)).all())))
        return found

    def _count_in_double(self) -> None:
        """Its sums are of the layer's own type, and float32 is not exact above 2^24.

        A gate's hook on the layer would change the counts too, and has no place in them.
        """
        for hook in self.model.connection_hooks:
            layer: Any = hook.layer
            own = self.subject.in_its_own_way(self.subject.paths[id(layer)])
            if own or not isinstance(layer, self.tool.stateless):
                continue
            hook.close()
            hook.layer = alone(layer, torch.float64)
            hook.inputs = _doubled(hook.inputs)
            hook.register_hook()


class _Copies(list[Any]):
    """Keeps tensors as they are now: what comes after may change them in place."""

    def append(self, given: Any) -> None:
        super().append(tree_map_only(Tensor, Tensor.clone, given))


def _doubled(inputs: list[Any]) -> Iterator[tuple[Any, ...]]:
    for args in inputs:
        yield tuple(x.double() if isinstance(x, Tensor) else x for x in args)


@dataclass(frozen=True)
class Seen:
    """NeuroBench's numbers of one run: counts of the whole batch, and what its hooks saw."""

    samples: int
    calls: dict[str, list[tuple[bool, bool]]]
    outputs: dict[str, int]
    sparsity: Any
    counts: dict[str, int]
