"""Writing the plan: what a conversion will do, module by module, before anything is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..config import SpQuantConfig, _Weights
from ..errors import SelectionError, SpQuantError
from ..modules.host import Host
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from .gate_plan import CHANNEL, SPATIAL, GatePlanner, check_sample
from .hosts import Hosts
from .layers import layer_kind, not_finite
from .mint_plan import MintPlanner, unit_words
from .norm_plan import NORMS, NormPlanner
from .pairing import is_neuron, is_synapse
from .plan import ConversionPlan, LayerStep, NeuronStep, PlanRow
from .selection import Selection, asks_to_change, check_arguments
from .temporal_plan import TemporalPlanner
from .trace import INPUT, Trace, is_norm, trace


def plan(
    model: nn.Module,
    config: SpQuantConfig,
    sample: Any = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    on_unmatched: str = "error",
) -> ConversionPlan:
    """Dry run of :func:`~spquant_plugin.convert`: the table of what would happen, and why.

    With a ``sample`` the model runs once on a copy, which adds shapes, the true first and last
    layer, and the layers that read the raw input.

    >>> import spquant_plugin as spq
    >>> from torch import nn
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(2, 3), neuron.LIFNode(), layer.Linear(3, 2))
    >>> [(row.path, row.action, row.bits) for row in spq.plan(net, spq.presets.quant_snn())]
    [('0', 'quantize', '8'), ('1', 'convert', '2 (1.58)'), ('2', 'quantize', '8')]
    """
    check_arguments(model, config, on_unmatched)
    selection = Selection(model, config, include, exclude, on_unmatched)
    check_sample(config, selection, sample)
    return _Planner(model, config, sample, selection).build()


class _Planner:
    """Walks the modules once and writes a row, and where it applies a step, for each."""

    def __init__(
        self,
        model: nn.Module,
        config: SpQuantConfig,
        sample: Any,
        selection: Selection,
    ) -> None:
        self.model, self.config, self.selection = model, config, selection
        self.hosts = Hosts()
        self.plan = ConversionPlan()
        selection.check_shared(self._is_convertible)
        self.trace: Trace | None = None
        if sample is not None:
            self.trace = trace(model, sample, self._is_convertible)
        self.gates = GatePlanner(model, selection, self.hosts, self.trace)
        self.norms = NormPlanner(model, selection, self.hosts, self.trace)
        self.mint = MintPlanner(model, selection, self.hosts, self.trace)
        self.edges, self.readers = self._edges_and_readers()

    def _is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, QuantizedNeuron) or self.hosts.neuron_kind(module) is not None

    def _is_convertible(self, module: nn.Module) -> bool:
        return is_neuron(module, self.hosts) or is_synapse(module, self.hosts)

    def _edges_and_readers(self) -> tuple[set[str], set[str]]:
        """First and last weight layer, and the layers that the raw input reaches."""
        recurrent = {
            f"{path}.recurrent" if path else "recurrent"
            for path, module in self.selection.modules
            if hasattr(module, "recurrent") and self._is_neuron(module)
        }
        layers = [
            path
            for path, module in self.selection.modules
            if layer_kind(module, self.hosts)
            and self.selection.alias_of(path) is None
            and path not in recurrent
        ]
        if self.trace is not None:
            known = set(layers)
            layers = [path for path in self.trace.order if path in known]
            readers = {path for path in layers if self.trace.reads_input(path)}
        else:
            readers = set(layers[:1])
        return {*layers[:1], *layers[-1:]}, readers

    def build(self) -> ConversionPlan:
        skipped: dict[str, str] = {}
        for path, module in self.selection.modules:
            inside = next((p for p in skipped if path.startswith(p + ".")), None)
            if inside is not None:
                self._add_inner(path, module, inside, skipped[inside])
                continue
            part = self._add(path, module)
            if part:
                skipped[path] = part
        TemporalPlanner(self.model, self.hosts, self.trace).settle(self.plan)
        self.norms.settle(self.plan)
        self.mint.settle(self.plan)
        self._add_input_row()
        self.plan.pairs = self.gates.pairs
        self.plan.shows_pairs = any(c.channel_gate for c in self.selection.configs)
        self._check_asked()
        return self.plan

    # Rows.

    def _row(self, path: str, module: nn.Module, action: str, reason: str, bits: str = "") -> None:
        shape = self.trace.output_shapes.get(path) if self.trace else None
        row = PlanRow(path, type(module).__name__, action, reason, shape, bits)
        self.plan.rows.append(row)

    def _inside_neuron(self, path: str) -> bool:
        """A neuron's surrogate is part of its row."""
        if not path:
            return False
        return self._is_neuron(self.model.get_submodule(path.rpartition(".")[0]))

    def _add_input_row(self) -> None:
        steps = [step for step in self.plan.steps if isinstance(step, LayerStep) and step.input]
        if steps:
            reason = f"quantised where it is read: {', '.join(step.path for step in steps)}"
            bits = ", ".join(sorted({str(step.input.bits) for step in steps if step.input}))
            self.plan.rows.insert(0, PlanRow(INPUT, "", "quantize", reason, None, bits))
        elif self.trace is not None:
            reason = "used as it is"
            if not self.trace.integer_sample:
                reason += (
                    ": the sample is not integer, so an integer network cannot take it. "
                    "Set input=UniformInput(...) for that"
                )
            self.plan.rows.insert(0, PlanRow(INPUT, "", "keep", reason))

    def _add_inner(self, path: str, module: nn.Module, owner: str, part: str) -> None:
        """Modules inside one that is rebuilt, refused or already converted as a whole."""
        if module._parameters or module._buffers:
            self._row(path, module, "keep", f"part of {owner or 'the model'}, which is {part}")

    def _add(self, path: str, module: nn.Module) -> str | None:
        """Add the row of one module. Returns how its inner modules are settled, if they are."""
        first = self.selection.alias_of(path)
        if first is not None and not module._parameters and self._inside_neuron(path):
            return None  # one surrogate object may serve all neurons
        if first is not None:
            self._row(path, module, "shared", f"same module as {first or '(model)'}")
            return "shared"
        if isinstance(module, QuantizedNeuron | QuantizedLayer | QuantizedBatchNorm):
            self._add_converted(path, module)
            return "converted" if isinstance(module, QuantizedLayer) else None
        found = self.hosts.neuron_kind(module)
        if found is not None:
            return self._add_neuron(path, module, *found)
        kind = layer_kind(module, self.hosts)
        if kind is not None:
            return self._add_layer(path, module, kind.target, kind.refusal)
        self._add_other(path, module)
        return None

    def _add_converted(self, path: str, module: nn.Module) -> None:
        config, reason = self.selection.config_for(path)
        # A quantised layer can still get a gate: the next stage of its training.
        layer = isinstance(module, QuantizedLayer)
        gate, told = self.gates.channel(path, config) if layer else (None, "")
        if asks_to_change(config, module):
            self._row(path, module, "refuse", "already converted: convert the float model instead")
        elif self.gates.refuses(path, told):
            self._row(path, module, "refuse", f"{told}. Set channel_gate=None in its override")
        elif gate is not None:
            self.plan.gates.append(gate)
            self._row(path, module, "gate", f"already converted; {told}")
        else:
            why = f"already converted; {told}" if told else "already converted"
            self._row(path, module, "keep", reason or why)

    def _add_neuron(self, path: str, module: nn.Module, host: Host, kind: Any) -> str | None:
        config, reason = self.selection.config_for(path)
        if kind.action == "keep":
            self._row(path, module, "keep", kind.reason)
            return None
        config, gate = (None, "") if config is None else self.gates.spatial(path, config)
        if self.gates.refuses(path, gate):
            self._row(path, module, "refuse", f"{gate}. Set spatial_gate=None in its override")
            return None
        if config is None or not config.changes_neurons:
            why = reason or gate or "no membrane, surrogate or threshold asked"
            self._row(path, module, "keep", why)
            return None
        if kind.action == "refuse":
            self._row(path, module, "refuse", kind.reason)
            return "refused"
        shape = self.trace.input_shapes.get(path) if self.trace else None
        step = NeuronStep(path, host, config, host.channels(module, shape) if shape else None)
        try:
            twin = host.build_neuron(module, config, step.channels)
        except SpQuantError as error:
            self._row(path, module, "refuse", str(error))
            return None
        host.leave([twin])
        self.plan.steps.append(step)
        told = f"{kind.reason}; {gate}" if gate else kind.reason
        reason, bits = self._describe_neuron(path, told, twin, config)
        if config.membrane is not None and host.returns_membrane and self._is_output(path):
            levels = config.membrane.highest - config.membrane.lowest + 1
            reason += f"; last neuron: a loss that reads its membrane sees {levels} levels"
        self._row(path, module, "convert", reason, bits)
        return None

    def _is_output(self, path: str) -> bool:
        """Whether no other module reads what this one returns (explicit states it reads itself)."""
        if self.trace is None or path not in self.trace.input_shapes:
            return False
        inside = f"{path}." if path else ""
        return not any(
            path in sources
            for reader, sources in self.trace.origins.items()
            if reader != path and not reader.startswith(inside)
        )

    def _describe_neuron(
        self, path: str, reason: str, twin: Any, config: SpQuantConfig
    ) -> tuple[str, str]:
        parts, bits = [reason], "32"
        if config.membrane is not None:
            parts += unit_words(twin)
            bits = f"{config.membrane.stored_bits} ({config.membrane.information_bits:.3g})"
        if config.threshold is not None and config.threshold.per_channel:
            parts.append(f"one threshold for each of {twin.threshold_bounds[0].numel()} channels")
        if "syn" in getattr(twin, "states", ()):
            parts.append("syn stays float32")
        if self.trace is not None and path not in self.trace.input_shapes:
            parts.append("not called by the sample")
        warning = twin.self_firing()
        if warning is not None:
            self.plan.self_firing[path] = warning
            parts.append(str(warning))
        return "; ".join(parts), bits

    def _add_layer(
        self, path: str, module: nn.Module, target: type[QuantizedLayer] | None, refusal: str | None
    ) -> str | None:
        config, reason = self.selection.config_for(path)
        weights, given = self._weights_for(path, config)
        input = config.input if config is not None and path in self.readers else None
        gate, told = self.gates.channel(path, config)
        if self.gates.refuses(path, told):
            self._row(path, module, "refuse", f"{told}. Set channel_gate=None in its override")
            return "refused"
        if gate is not None:
            self.plan.gates.append(gate)
        given = f"{given}; {told}" if told else given
        if weights is None and input is None:
            self._row(path, module, "keep" if gate is None else "gate", reason or given)
            return "kept" if target is None else None
        refusal = refusal or not_finite(module)
        if target is None or refusal is not None:
            self._row(path, module, "refuse", refusal or "no quantised version")
            return "refused"
        self.plan.steps.append(LayerStep(path, target, weights, input))
        bits = "32" if weights is None else str(weights.stored_bits)
        if input is not None:
            given += f"; input {input.bits} bit"
        elif config is not None and config.input is not None and self._mixes_input(path, config):
            given += "; its input is not the raw input alone, so input= does nothing here"
        if self.trace is not None and path not in self.trace.order:
            given += "; not called by the sample"
        self._row(path, module, "quantize", given, bits)
        return None

    def _mixes_input(self, path: str, config: SpQuantConfig) -> bool:
        """Whether a request for a quantised input cannot be met at this layer."""
        reads = self.trace is not None and INPUT in self.trace.origins.get(path, ())
        return reads or config is not self.config

    def _weights_for(self, path: str, config: SpQuantConfig | None) -> tuple[_Weights | None, str]:
        if config is None or config.weights is None:
            return None, "no weights asked"
        if path not in self.edges or self.selection.names_exactly(path):
            return config.weights, type(config.weights).__name__
        if config.edge_weights is None:
            return None, "first or last layer, and edge_weights=None keeps it in float"
        name = type(config.edge_weights).__name__
        return config.edge_weights, f"first or last layer: edge_weights, {name}"

    def _add_other(self, path: str, module: nn.Module) -> None:
        own = [*module._parameters, *module._buffers]
        if not own and (list(module.children()) or not path or self._inside_neuron(path)):
            return
        config, reason = self.selection.config_for(path)
        if config is None and reason:
            self._row(path, module, "keep", reason)
        elif is_norm(module):
            self._row(path, module, "keep", "normalisation stays in float")
        elif own:
            self._row(path, module, "keep", f"own parameters stay in float: {', '.join(own)}")
        else:
            self._row(path, module, "keep", "no weights and no state")

    # The whole.

    def _check_asked(self) -> None:
        """Something was asked for: then something must have matched."""
        if self.selection.on_unmatched == "ignore" or self.plan.refused:
            return
        configs = self.selection.configs
        neurons = [step for step in self.plan.steps if isinstance(step, NeuronStep)]
        layers = [step for step in self.plan.steps if isinstance(step, LayerStep)]
        parts = {
            "neurons": (any(c.changes_neurons for c in configs), neurons),
            "weight layers": (any(c.weights for c in configs), layers),
            "weight layers that read the raw input": (
                any(c.input for c in configs),
                [step for step in layers if step.input],
            ),
            SPATIAL: (
                any(c.spatial_gate for c in configs),
                [step for step in neurons if step.config.spatial_gate],
            ),
            CHANNEL: (
                any(c.channel_gate for c in configs),
                self.plan.gates,
            ),
            NORMS: (any(c.norm for c in configs), self.plan.norms),
        }
        missing = [part for part, (asked, found) in parts.items() if asked and not found]
        if self.selection.is_limited and (self.plan.steps or self.plan.gates or self.plan.norms):
            return
        if missing:
            self.selection.complain(
                f"{type(self.model).__name__}: the configuration asks for {' and '.join(missing)}, "
                f"and none was matched among {len(self.selection.modules)} modules. A conversion "
                "must change something. Use a model of SpikingJelly or snnTorch, widen include, or "
                f"leave the field at None.{self.gates.told(missing)}{self.norms.told(missing)}",
                SelectionError,
            )
