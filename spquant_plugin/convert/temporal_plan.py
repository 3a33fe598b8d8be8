"""Planning weights that change with the time step: how each layer gets to know its step."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..config import TemporalTernaryWeights
from ..functional.temporal import code_bits
from ..modules.host import Host, TimeWay
from .hosts import Hosts
from .pairing import is_neuron
from .plan import ConversionPlan, LayerStep
from .trace import Trace

GIVE = "Give TemporalTernaryWeights(timesteps=...)"


class TemporalPlanner:
    """Settles the rows of layers with temporal weights, after all rows are written.

    A layer that took several steps for one would use the first step's weights for all of them; so
    whatever does not tell time for certain is refused.
    """

    def __init__(self, model: nn.Module, hosts: Hosts, trace: Trace | None) -> None:
        self.model, self.hosts, self.trace = model, hosts, trace

    def settle(self, plan: ConversionPlan) -> None:
        """Fill in steps, bits and number of steps, or the reason of a refusal."""
        rules = {s.path: s for s in plan.steps if isinstance(s, LayerStep)}
        for index, row in enumerate(plan.rows):
            step = rules.get(row.path)
            if step is None or not isinstance(step.weights, TemporalTernaryWeights):
                continue
            timesteps, refusal = self._timesteps(step, step.weights)
            if refusal is not None:
                plan.steps.remove(step)
                plan.rows[index] = replace(row, action="refuse", reason=refusal, bits="")
                continue
            rule = replace(step.weights, timesteps=timesteps)
            plan.steps[plan.steps.index(step)] = replace(step, weights=rule)
            told = f"{row.reason}; {_words(rule)}"
            bits = f"{rule.bits} per step"
            if rule.timesteps is not None:
                bits = str(code_bits(rule.timesteps, rule.bits))
            plan.rows[index] = replace(row, reason=told, bits=bits)

    def _host(self) -> tuple[Host | None, str | None]:
        """The framework whose modules tell time in this model."""
        found = [h for h in self.hosts.all if any(map(h.tells_time, self.model.modules()))]
        if len(found) == 1:
            return found[0], None
        if found:
            return None, "the model mixes modules of both frameworks, which count time differently"
        return None, "no neuron of a framework tells it the time step"

    def _timesteps(
        self, step: LayerStep, rule: TemporalTernaryWeights
    ) -> tuple[int | None, str | None]:
        """Number of steps as far as it is known, or why the layer cannot be converted."""
        if not step.target.changes_with_time:
            kinds = "Linear, Conv1d, Conv2d and Conv3d"
            return None, f"weights that change with the time step exist for {kinds} only"
        host, refusal = self._host()
        if host is None:
            return None, refusal
        way = host.time_way(self.model, step.path)
        if way.kind == "refuse":
            return None, way.reason
        calls = self._calls(step.path)
        if not calls:
            return self._untraced(way, rule)
        if way.kind == "counted":
            return self._counted(rule, calls)
        return self._sequence(step.path, way, rule)

    def _untraced(
        self, way: TimeWay, rule: TemporalTernaryWeights
    ) -> tuple[int | None, str | None]:
        if way.kind == "unknown":
            return None, f"{way.reason}: only a dry run tells what it is given. Pass sample=..."
        if way.kind == "counted" and rule.timesteps is None:
            return None, f"it is called step by step, and nothing tells how many there are. {GIVE}"
        return rule.timesteps, None

    def _counted(self, rule: TemporalTernaryWeights, calls: int) -> tuple[int | None, str | None]:
        """A layer that is called once per step: by a loop in the model, or by the caller's."""
        length, known = self._length(), rule.timesteps
        if length is not None and calls != length:
            return None, (
                f"it is called {calls} times for {length} time steps, so that one call holds "
                "several steps or the like. Use a layer of the framework in step mode 'm', or put "
                "it into a SeqToANNContainer"
            )
        if calls == 1 and length is None:
            if known is None:
                return None, f"the sample is one time step of it, and how many follow? {GIVE}"
            return known, None
        if known is not None and calls != known:
            return None, (
                f"the sample calls it {calls} times, and timesteps={known}: it must be called once "
                f"per time step. Give timesteps={calls}, or a layer of its own to each call"
            )
        return known if known is not None else calls, None

    def _sequence(
        self, path: str, way: TimeWay, rule: TemporalTernaryWeights
    ) -> tuple[int | None, str | None]:
        """A layer that is given all steps at once, or all folded into the batch."""
        length, shape = self._length(), self.trace.input_shapes[path] if self.trace else ()
        if way.kind == "sequence":
            length = shape[0] if length is None else length
        if length is None:
            return rule.timesteps, None
        if rule.timesteps not in (None, length):
            given = f"the sample has {length} time steps, and timesteps={rule.timesteps}"
            return None, f"{given}. Pass a sample of as many steps, or give timesteps={length}"
        whole = not shape[0] % length if way.kind == "folded" else shape[0] == length
        if way.kind == "unknown":
            layer = self.model.get_submodule(path)
            whole = isinstance(layer, nn.Linear) and shape[:2] == self._lead() and len(shape) > 2
        if not whole:
            return None, (
                f"it is given {shape} where the sequence has {length} time steps: steps and "
                "samples are folded together, and it cannot tell them apart. Give it [T, N, ...]: "
                "use a layer of the framework in step mode 'm', or put it into a SeqToANNContainer"
            )
        return length, None

    def _calls(self, path: str) -> int:
        """Calls by the sample; of a neuron's inner layer those of the neuron, which may repeat."""
        if self.trace is None:
            return 0
        owner = path.rpartition(".")[0]
        inside = path and is_neuron(self.model.get_submodule(owner), self.hosts)
        return len(self.trace.calls.get(owner if inside else path, ()))

    def _length(self) -> int | None:
        lead = self._lead()
        return lead[0] if lead else None

    def _lead(self) -> tuple[int, ...] | None:
        """Steps and samples of the sequences in this model; None where it takes single steps."""
        if self.trace is None:
            return None
        found = {
            shape[:2]
            for path, shape in self.trace.input_shapes.items()
            if len(shape) > 1
            and is_neuron(self.model.get_submodule(path), self.hosts)
            and getattr(self.model.get_submodule(path), "step_mode", "s") == "m"
        }
        return found.pop() if len(found) == 1 else None


def _words(rule: TemporalTernaryWeights) -> str:
    scale = "one scale per step" if rule.scale == "per_step" else "one scale for all steps"
    steps = "as many steps as the first input has"
    if rule.timesteps is not None:
        steps = f"{rule.timesteps} time steps"
    return f"{rule.bits} bit, {steps}, {scale}"
