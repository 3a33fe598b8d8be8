"""The layers of a network: sizes from a dry run, bits as ``spq.analyze`` counts them."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...convert.hosts import Hosts, require_model
from ...errors import AnalysisError
from ...modules.gates import ChannelGate, own_gate
from ...modules.quantized_layer import QuantizedLayer
from ...records import is_finite_number
from ..batch import batch_size
from ..counting import count_memory
from ..dry_run import DryRun, dry_run, first_tensor
from ..measuring import analyze
from ..memory import MemoryReport
from ..modules import computes_in_its_own_way, kind_of
from ..report import Report
from ..temporal import is_temporal, known_steps, rule_of
from .layer import Layer
from .report import HardwareRow

Factors = bool | Mapping[str, float]
NOT_BINARY = "reads other values than 0 and 1: taken as one read each, as the public tool does"


def read_layers(
    model: nn.Module, sample: Any, timesteps: int | None, spike_rates: Factors, gates: Factors
) -> tuple[list[Layer | HardwareRow], int]:
    """Layers in the order of their first call, reasons for what is none, and the time steps."""
    paths = [path for path, _ in require_model(model).named_modules()]
    for name, factors in (("spike_rates", spike_rates), ("gates", gates)):
        _check_factors(name, factors, paths)
    seen = _Seen()
    run = dry_run(model, sample, timesteps, seen.watch)
    if gates is True:
        gates = _open_shares(analyze(model, sample, timesteps=timesteps))
    memory = count_memory(run, "equation")
    reader = _Reader(run, memory, seen, timesteps, spike_rates, gates or {})
    return reader.items(), reader.steps


def _open_shares(report: Report) -> dict[str, float]:
    """For each layer the share of its accumulates that gates left."""
    rows = (row for row in report.operations if row.nonzero)
    return {row.path: row.effective / row.nonzero for row in rows}


def _check_factors(name: str, factors: object, paths: list[str]) -> None:
    if isinstance(factors, bool):
        return
    if not isinstance(factors, Mapping):
        raise AnalysisError(
            f"{name} = {factors!r}: must be True, False or a dictionary from paths to shares. "
            "Pass True to measure them on the sample."
        )
    for path, share in factors.items():
        if path not in paths:
            near = difflib.get_close_matches(str(path), paths, n=3, cutoff=0.3)
            listed = ", ".join(map(repr, near)) or "none"
            raise AnalysisError(
                f"{name}[{path!r}]: the model has no module of this path: each must be one of its "
                f"layers. Closest: {listed}."
            )
        if not is_finite_number(share) or not 0 <= share <= 1:
            raise AnalysisError(
                f"{name}[{path!r}] = {share!r}: must be a share from 0 to 1. Divide percents by "
                "100."
            )


@dataclass
class _LayerSeen:
    """One layer over all calls: its sizes (the largest), positions, and nonzero inputs."""

    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    positions: int = 0
    inputs: int = 0
    nonzero: int = 0
    binary: bool = True


class _Seen:
    """What hooks on layers and neurons count in a dry run."""

    def __init__(self) -> None:
        self.layers: dict[str, _LayerSeen] = {}
        self.steps: Counter[str] = Counter()  # of each neuron

    def watch(self, model: nn.Module) -> None:
        hosts = Hosts()
        for path, module in model.named_modules():
            hook: Callable[..., None] | None = None
            if _is_mappable(module):
                hook = partial(self._layer, path)
            elif kind_of(module, hosts) == "neuron":
                hook = partial(self._neuron, path)
            if hook is not None:
                # Before a gate's hook, which changes what the layer gave.
                module.register_forward_hook(hook, with_kwargs=True, prepend=True)

    def _layer(self, path: str, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = first_tensor((args, kwargs))
        if x is None:
            return
        seen, axes = self.layers.setdefault(path, _LayerSeen()), layer.weight.ndim - 2
        if isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None:
            x, _ = layer.input_quantizer(x)
        in_size, out_size = (
            tuple(x.shape[x.ndim - axes :]),
            tuple(output.shape[output.ndim - axes :]),
        )
        if math.prod(out_size) >= math.prod(seen.out_size) or not seen.positions:
            seen.in_size, seen.out_size = in_size, out_size
        channels = layer.out_channels if axes else layer.out_features
        seen.positions += output.numel() // channels
        seen.inputs += x.numel()
        seen.nonzero += int(x.count_nonzero())
        seen.binary = seen.binary and bool(((x == 0) | (x == 1)).all())

    def _neuron(self, path: str, neuron: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = first_tensor((args, kwargs))
        at_once = x is not None and getattr(neuron, "step_mode", "s") == "m"
        self.steps[path] += x.shape[0] if x is not None and at_once else 1


def _is_mappable(module: nn.Module) -> bool:
    convolves = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return convolves or isinstance(module, nn.Linear)


class _Reader:
    """Turns what a run showed into layers."""

    def __init__(
        self,
        run: DryRun,
        memory: MemoryReport,
        seen: _Seen,
        timesteps: int | None,
        spike_rates: Factors,
        gates: Mapping[str, float],
    ) -> None:
        self.run, self.memory, self.seen = run, memory, seen
        self.spike_rates, self.gates = spike_rates, gates
        self.batch, self.hosts = batch_size(run), Hosts()
        self.modules = dict(run.model.named_modules())
        self.kinds = {path: kind_of(module, self.hosts) for path, module in self.modules.items()}
        self.bits = {
            row.path: row.membrane_bits + row.state_bits
            for row in memory.layers
            if row.kind == "neuron" and row.neurons
        }
        self.feeds = self._feeds()
        self.steps = timesteps or self._time()

    def items(self) -> list[Layer | HardwareRow]:
        order = {path: place for place, path in enumerate(self.run.calls)}
        weights = [path for path, kind in self.kinds.items() if kind == "weights"]
        weights.sort(key=lambda path: order.get(path, len(order)))
        return [self._item(path, self.modules[path]) for path in weights]

    def _time(self) -> int:
        """Steps that most neurons take; without neurons, that most convolutions do."""
        counts = Counter(self.seen.steps.values()) or Counter(
            round(self._applied(path, seen) / math.prod(seen.out_size))
            for path, seen in self.seen.layers.items()
            if seen.out_size
        )
        most = max(counts.values(), default=1)
        return max((steps for steps, count in counts.items() if count == most), default=1)

    def _applied(self, path: str, seen: _LayerSeen) -> float:
        """Positions at which a layer was computed for one sample, over all steps."""
        return seen.positions / (self.batch if path in self.run.fed else 1)

    # Layers.

    def _item(self, path: str, module: nn.Module) -> Layer | HardwareRow:
        row = HardwareRow(path, type(module).__name__)
        seen = self.seen.layers.get(path)
        if isinstance(module, ChannelGate):
            return HardwareRow(path, row.type, note="a gate: the model has no unit that decides")
        if seen is None:
            return HardwareRow(path, row.type, note=self._why_not(path, module))
        applied, common = self._applied(path, seen), self._common(path, module, seen)
        if isinstance(module, nn.Linear):
            tokens = applied / self.steps
            # A sequence of tokens is computed in each step, time folded into them is not known.
            whole = tokens >= 1 and tokens == int(tokens)
            tokens, steps = (int(tokens), self.steps) if whole else (1, applied)
            common = {**common, "steps": float(steps)}
            return Layer.linear(path, module.in_features, module.out_features, tokens, **common)
        own: Any = module
        return Layer(
            path,
            own.in_channels,
            own.out_channels,
            seen.in_size,
            seen.out_size,
            tuple(own.kernel_size),
            groups=own.groups,
            steps=applied / math.prod(seen.out_size),
            **common,
        )

    def _why_not(self, path: str, module: nn.Module) -> str:
        ends = (path[:end] for end, letter in enumerate(path) if letter == ".")
        outer = next((p for p in ends if self.kinds.get(p) == "weights"), None)
        if outer is not None:
            return f"part of {outer}, which is not mapped as a whole"
        if not _is_mappable(module):
            return "no convolution or linear layer: the equations have no mapping for it"
        return "not called by the sample"

    def _common(self, path: str, module: nn.Module, seen: _LayerSeen) -> dict[str, Any]:
        notes = [] if seen.binary else [NOT_BINARY]
        if computes_in_its_own_way(module, self.hosts):
            notes.append("computes in a way of its own, mapped as a plain layer")
        bits, matrices = self.memory[path].weight_bits, 1
        if is_temporal(module):
            bits, matrices = rule_of(module).bits, known_steps(path, module)
            notes.append(f"{matrices} matrices, one for each time step, which drives its own only")
        return {
            "type": type(module).__name__,
            "weight_bits": bits,
            "matrices": matrices,
            "membrane_bits": self._membrane_bits(path),
            "input_bits": self._input_bits(path),
            "spike_rate": self._spike_rate(path, seen),
            "gate_factor": float(self.gates.get(path, 1.0)),
            "note": "; ".join(notes),
        }

    def _spike_rate(self, path: str, seen: _LayerSeen) -> float:
        if isinstance(self.spike_rates, Mapping):
            return float(self.spike_rates.get(path, 1.0))
        return seen.nonzero / seen.inputs if self.spike_rates and seen.inputs else 1.0

    # Neurons around a layer.

    def _feeds(self) -> dict[str, set[str]]:
        """For each layer the neurons that read what it gives, through norms, pools and gates."""
        owners = {id(gate): path for path, m in self.modules.items() if (gate := own_gate(m))}
        feeds: dict[str, set[str]] = {}
        for neuron in self.bits:
            for source in self.run.read.get(neuron, ()):
                gate = self.modules.get(source)
                if isinstance(gate, ChannelGate):
                    behind = {owners[id(gate)]} if id(gate) in owners else self.run.read[source]
                else:
                    behind = {source}
                for layer in behind:
                    feeds.setdefault(layer, set()).add(neuron)
        return feeds

    def _membrane_bits(self, path: str) -> int | None:
        """Of the neurons that it feeds; None without any, as for logits."""
        found = [self.bits[neuron] for neuron in self.feeds.get(path, ())]
        return max(found, default=0) or None

    def _input_bits(self, path: str) -> int | None:
        """Of the neurons that it reads; None where anything else is among them."""
        sources = {s for s in self.run.read.get(path, ()) if self.kinds.get(s) != "norm"}
        if not sources or not all(self.bits.get(source) for source in sources):
            return None
        return max(self.bits[source] for source in sources)
