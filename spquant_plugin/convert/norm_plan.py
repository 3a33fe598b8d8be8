"""Planning norms: which one layer a batch norm follows, and the reason where it stays in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import nn
from torch.nn.utils import parametrize

from ..config import QuantizedNorm, TemporalTernaryWeights, _Weights
from ..modules.gates import ChannelGate
from ..modules.layers import TORCH_NORMS
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from .hosts import Hosts
from .layers import not_finite
from .pairing import _channels, _size, channel_axis
from .plan import ConversionPlan, LayerStep, NormStep
from .selection import Selection
from .trace import CALLER, Trace, is_norm

NORMS = "batch norms behind quantised layers"
SUPPORTED = ", ".join(kind.__name__ for kind in TORCH_NORMS)


class NormPlanner:
    """Says of each norm whether it can take over the scale and bias of a layer.

    That needs a norm which is given nothing but the very output of one quantised layer, and a layer
    whose output nothing else reads: it returns raw sums from then on.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, hosts: Hosts, trace: Trace | None
    ) -> None:
        self.selection, self.hosts, self.trace = selection, hosts, trace
        self.modules = dict(model.named_modules())
        self.reasons: dict[str, str] = {}

    def settle(self, plan: ConversionPlan) -> None:
        """Fill in the rows of norms for which the configuration asks.

        After all other rows, because what becomes of a norm depends on its layer.
        """
        layers = [step for step in plan.steps if isinstance(step, LayerStep)]
        for index, row in enumerate(plan.rows):
            module = self.modules.get(row.path) if row.action == "keep" else None
            if module is None or not is_norm(module) or isinstance(module, QuantizedBatchNorm):
                continue
            config, _ = self.selection.config_for(row.path)
            if config is None or config.norm is None:
                continue
            step, reason = self._step(row.path, config.norm, layers)
            row = replace(row, reason=reason)
            if step is not None:
                plan.norms.append(step)
                bits = "" if config.norm.bits is None else str(config.norm.bits)
                row = replace(row, action="quantize", bits=bits)
            elif self.selection.names_exactly(row.path):
                row = replace(row, action="refuse", reason=f"{reason}. Set norm=None for it")
            plan.rows[index] = row

    def _step(
        self, path: str, rule: QuantizedNorm, quantized: Iterable[LayerStep]
    ) -> tuple[NormStep | None, str]:
        """What a norm becomes, or why it stays in float; ``quantized`` are the layers that will."""
        norm = self.modules[path]
        target = self._target(norm)
        reason = next(self._own_obstacles(path, norm, target), None)
        layer = None
        if reason is None:
            layer, reason = self._layer(path)
        if reason is None and layer is not None:
            weights = {step.path: step.weights for step in quantized}
            reason = next(self._layer_obstacles(path, layer, weights), None)
        if reason is None and layer is not None and target is not None:
            told = "folded into" if rule.mode == "fold" else f"{rule.mode}, with the scale of"
            return NormStep(path, target, rule, layer), f"{told} {layer}"
        self.reasons[path] = reason or ""
        return None, f"normalisation stays in float: {reason}"

    def told(self, missing: list[str]) -> str:
        """The reasons why no norm could be, for an error that must give them."""
        reasons = [f"{path}: {reason}" for path, reason in self.reasons.items() if NORMS in missing]
        return f" Reasons: {'; '.join(reasons)}." if reasons else ""

    def _target(self, norm: nn.Module) -> type[QuantizedBatchNorm] | None:
        """Along the class hierarchy, but for a subclass that computes in its own way."""
        for base in type(norm).__mro__:
            if base in self.hosts.norms:
                # Of a synchronised norm, the class that it computes as.
                plain = getattr(norm, "plain_class", None) or type(norm)
                same = plain.forward is base.forward and "forward" not in norm.__dict__
                return self.hosts.norms[base] if same else None
        return None

    def _own_obstacles(
        self, path: str, norm: nn.Module, target: type[QuantizedBatchNorm] | None
    ) -> Iterator[str]:
        if target is None:
            yield f"{type(norm).__name__} is none of {SUPPORTED}, or computes in its own way"
            return
        if parametrize.is_parametrized(norm):
            yield "it is parametrized"
        if getattr(norm, "running_mean", None) is None:
            yield "it keeps no running statistics (track_running_stats=False), so no fixed factors"
        fault = not_finite(norm)
        if fault is not None:
            yield fault
        places = [p for p, m in self.selection.modules if m is norm]
        if len(places) > 1:
            yield f"shared: it stands at {', '.join(places)}"

    def _layer(self, path: str) -> tuple[str | None, str | None]:
        """The one layer whose output a norm is given, or why there is none."""
        if self.trace is None:
            return None, "only a dry run tells which layer it follows: pass sample=..."
        given = self.trace.given.get(path)
        if given is None:
            return None, "not called by the sample"
        layers = sorted({layer for layer in given if layer is not None})
        if len(layers) > 1:
            return None, f"it follows several layers: {', '.join(layers)}"
        if not layers or None in given:
            return None, "what it is given is not the output of one layer as it is"
        return layers[0], None

    def _layer_obstacles(
        self, path: str, layer: str, quantized: dict[str, _Weights | None]
    ) -> Iterator[str]:
        trace, module = self.trace, self.modules[layer]
        if trace is None:
            return
        weights = quantized.get(layer)
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
            weights = module.weight_quantizer.rule
        if weights is None:
            yield f"{layer} is no layer with quantised weights, whose sums are whole numbers"
        if isinstance(weights, TemporalTernaryWeights):
            yield f"the weights of {layer} change with the time step, so that no one factor fits"
        places = [p for p, m in self.selection.modules if m is module]
        if len(places) > 1:
            yield f"shared: {layer} stands at {', '.join(places)}"
        others = sorted(trace.readers[layer] - {path})
        if others:
            names = ["the caller of the model" if o == CALLER else o for o in others]
            yield f"the output of {layer} is also read by {', '.join(names)}"
        counts = len(trace.calls[layer]), len(trace.calls[path])
        if counts[0] != counts[1]:
            yield f"{layer} is called {counts[0]} times, and it {counts[1]} times"
        hooks = module._forward_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), ChannelGate) for hook in hooks):
            yield f"a channel gate acts between {layer} and it"
        yield from self._axis_obstacles(path, layer)

    def _axis_obstacles(self, path: str, layer: str) -> Iterator[str]:
        norm, module = self.modules[path], self.modules[layer]
        shape = self.trace.output_shapes[layer] if self.trace is not None else ()
        axis = 1 + int(getattr(norm, "step_mode", "s") == "m") - len(shape)
        channels = _channels(module)
        if channel_axis(module) != axis or _size(shape, axis) != channels:
            yield f"its channels are not those of {layer}, which returns {shape}"
