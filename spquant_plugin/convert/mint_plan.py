"""Planning MINT: which neuron shares the scale of the layer in front, and why another does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..config import MintMembrane, MintWeights, SpQuantConfig, _Weights
from ..errors import SampleError
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from .hosts import Hosts
from .pairing import is_neuron, is_synapse
from .plan import ConversionPlan, LayerStep, NeuronStep
from .selection import Selection
from .trace import INPUT, Trace


def unit_words(twin: Any) -> list[str]:
    """What a row says of a membrane's unit; of MINT's the last word comes when layers are known."""
    return [] if twin.follows_mint else [f"unit {float(twin.membrane_unit):.4g}"]


class MintPlanner:
    """Says of each neuron with MINT's membrane whose scale it follows.

    It shares that of the one layer whose output it reads, if that has MINT's weights of as many
    bits and nothing between them but what is folded into the layer. Any other neuron has a scale of
    its own, to whose unit currents are rounded.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, hosts: Hosts, trace: Trace | None
    ) -> None:
        self.trace = trace
        self.modules = dict(model.named_modules())
        self.synapses = {path for path, m in self.modules.items() if is_synapse(m, hosts)}
        self.neurons = {path for path, m in self.modules.items() if is_neuron(m, hosts)}
        membranes = [isinstance(c.membrane, MintMembrane) for c in selection.configs]
        weights = [isinstance(c.weights, MintWeights) for c in selection.configs]
        if trace is None and any(membranes) and any(weights):
            raise SampleError(
                "sample = None, and the configuration asks for MintMembrane and MintWeights: a "
                "scale is shared by a layer and the neuron behind it, which only a dry run tells. "
                "Pass sample=..., what one call of the model takes."
            )

    def settle(self, plan: ConversionPlan) -> None:
        """Pair neurons with layers, after all other rows and norms are known."""
        steps = {step.path: step for step in plan.steps if isinstance(step, NeuronStep)}
        for index, row in enumerate(plan.rows):
            step = steps.get(row.path)
            if step is None or not isinstance(step.config.membrane, MintMembrane):
                continue
            layer, reason = self._layer(plan, row.path, step.config)
            if layer is not None:
                plan.scales[row.path] = layer
            told = f"a scale of its own: {reason}" if layer is None else f"the scale of {layer}"
            plan.rows[index] = replace(row, reason=f"{row.reason}; {told}")

    def _layer(
        self, plan: ConversionPlan, path: str, config: SpQuantConfig
    ) -> tuple[str | None, str]:
        """The layer whose scale a neuron shares, or why it shares none."""
        if self.trace is None:
            return None, "only a dry run tells which layer it follows"
        if path not in self.trace.origins:
            return None, "not called by the sample"
        inside = f"{path}." if path else ""
        reads = {
            origin
            for origin in self.trace.origins[path] & {INPUT, *self.neurons, *self.synapses}
            if origin != path and not (inside and origin.startswith(inside))
        }
        if len(reads) != 1 or not reads & self.synapses:
            return None, f"it reads {', '.join(sorted(reads)) or 'constants'}"
        (layer,) = reads
        weights, bits = self._weights(plan, layer), config.membrane.bits  # type: ignore[union-attr]
        if not isinstance(weights, MintWeights):
            kind = "float weights" if weights is None else type(weights).__name__
            return None, f"{layer} has {kind}"
        if weights.bits != bits:
            return None, f"{layer} has {weights.bits} bits and its membrane {bits}"
        between = self._norm(plan, path, layer)
        if between is not None:
            return None, f"the norm {between} between {layer} and it is not folded"
        return layer, ""

    def _weights(self, plan: ConversionPlan, layer: str) -> _Weights | None:
        """The weights that a layer has or will have."""
        for step in plan.steps:
            if isinstance(step, LayerStep) and step.path == layer:
                return step.weights
        module = self.modules[layer]
        quantizer = module.weight_quantizer if isinstance(module, QuantizedLayer) else None
        return None if quantizer is None else quantizer.rule

    def _norm(self, plan: ConversionPlan, path: str, layer: str) -> str | None:
        """A norm between a layer and a neuron that is not folded into the layer."""
        if self.trace is None:
            return None
        folded = {step.path for step in plan.norms if step.rule.mode == "fold"}
        for norm in sorted(self.trace.norms & self.trace.origins[path]):
            module = self.modules[norm]
            own = isinstance(module, QuantizedBatchNorm) and module.rule.mode == "fold"
            if layer in self.trace.origins[norm] and norm not in folded and not own:
                return norm
        return None
