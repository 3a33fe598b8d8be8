"""Planning gates: where the dry run lets one act, and the reason where it does not."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from ..config import SpQuantConfig
from ..errors import SampleError
from ..functional.gates import masked_count
from ..modules.gates import own_gate
from ..modules.host import Host
from ..modules.neuron import QuantizedNeuron
from .hosts import Hosts
from .pairing import Pair, pair_synapses, space_reasons, time_axes
from .plan import GateStep
from .selection import Selection
from .trace import Trace

SPATIAL, CHANNEL = "neurons with space to gate", "weight layers to gate between two neurons"


def check_sample(config: SpQuantConfig, selection: Selection, sample: Any) -> None:
    """Gates need a dry run: only it tells which neuron decides, and which layers have space."""
    asked = [
        name
        for name in ("spatial_gate", "channel_gate")
        if any(getattr(c, name) is not None for c in selection.configs)
    ]
    if asked and sample is None:
        raise SampleError(
            f"sample = None, and the configuration asks for {' and '.join(asked)}: gates need a "
            "dry run, which pairs layers with neurons. Pass sample=..., what one call of the model "
            f"takes, or set {' and '.join(f'{name}=None' for name in asked)}."
        )


class GatePlanner:
    """Says of each layer and neuron which gate it gets."""

    def __init__(
        self, model: nn.Module, selection: Selection, hosts: Hosts, trace: Trace | None
    ) -> None:
        self.selection, self.hosts, self.trace = selection, hosts, trace
        self.modules = dict(model.named_modules())
        self.pairs: dict[str, Pair] = {}
        self.space: dict[str, str | None] = {}
        if trace is not None:
            self.pairs = pair_synapses(model, trace, hosts)
            self.space = space_reasons(model, trace, hosts)

    # Spatial gates.

    def spatial(self, path: str, config: SpQuantConfig) -> tuple[SpQuantConfig, str]:
        """The configuration that a neuron can keep, and what to say of its gate."""
        gate = config.spatial_gate
        if gate is None or self.trace is None:
            return config, ""
        reason = self.space.get(path)
        if reason is None:
            shape = self.trace.input_shapes[path]
            pixels = prod(shape[2 + time_axes(self.modules[path]) :])
            count = masked_count(gate.sparsity, pixels)
            if count or not gate.sparsity:
                return config, f"masks {count} of {pixels} pixels"
            reason = f"{gate.sparsity:g} of {pixels} pixels is less than one"
        return replace(config, spatial_gate=None), f"no spatial gate: {reason}"

    # Channel gates.

    def channel(self, path: str, config: SpQuantConfig | None) -> tuple[GateStep | None, str]:
        """The gate that a weight layer gets, and what to say of it."""
        rule = None if config is None else config.channel_gate
        if rule is None:
            return None, ""
        pair = self.pairs[path]
        host, reason = self._source(pair, rule.source)
        if own_gate(self.modules[path]) is not None:
            reason = "already gated"
        if reason is not None or host is None:  # without a reason there is a host
            if reason != pair.reason:
                self.pairs[path] = replace(pair, reason=reason)
            return None, f"no channel gate: {reason}"
        return GateStep(path, host, rule, pair), f"channel gate, decided by {pair.source}"

    def _source(self, pair: Pair, kind: str) -> tuple[Host | None, str | None]:
        """The host of the source neuron, or why the source cannot decide."""
        if pair.reason is not None or pair.source is None:
            return None, pair.reason
        module = self.modules[pair.source]
        known = self.hosts.neuron_kind(module)
        host = known[0] if known is not None else Host()
        if kind == "input" or self._stores_levels(pair.source, module):
            return host, None
        return None, (
            f"its source {pair.source} keeps a float membrane, which has no levels to sum: "
            "set membrane= for it, or source='input'"
        )

    def _stores_levels(self, path: str, module: nn.Module) -> bool:
        if isinstance(module, QuantizedNeuron):
            return module.membrane is not None
        known, (config, _) = self.hosts.neuron_kind(module), self.selection.config_for(path)
        convertible = known is not None and known[1].action == "convert"
        return convertible and config is not None and config.membrane is not None

    def told(self, missing: list[str]) -> str:
        """The reasons why no gate could be, for an error that must give them."""
        channel = {path: pair.reason for path, pair in self.pairs.items() if CHANNEL in missing}
        spatial = {path: reason for path, reason in self.space.items() if SPATIAL in missing}
        reasons = [f"{path}: {reason}" for path, reason in (channel | spatial).items() if reason]
        return f" Reasons: {'; '.join(reasons)}." if reasons else ""

    def refuses(self, path: str, reason: str) -> bool:
        """Whether a gate that cannot be was asked for by an override of this very path."""
        return reason.startswith("no ") and self.selection.names_exactly(path)
