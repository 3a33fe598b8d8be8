"""The whole configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..records import Record, fail
from .firing import LearnableThreshold, Triangle
from .gates import ChannelGate, SpatialGate
from .membrane import _Membrane
from .norm import QuantizedNorm
from .weights import UniformInput, UniformWeights, _Weights

_FIELD_KINDS: dict[str, type] = {
    "membrane": _Membrane,
    "surrogate": Triangle,
    "threshold": LearnableThreshold,
    "weights": _Weights,
    "edge_weights": _Weights,
    "input": UniformInput,
    "spatial_gate": SpatialGate,
    "channel_gate": ChannelGate,
    "norm": QuantizedNorm,
}


@dataclass(frozen=True)
class SpQuantConfig(Record):
    """Everything that ``convert`` may change; a field left at None leaves that part alone.

    ``edge_weights`` serves the first and the last weight layer wherever ``weights`` is set; None
    keeps those two in float. ``overrides`` maps a selector (an exact path, ``"re:"`` and a regular
    expression, or a class name) to the configuration of what it selects, None for "leave alone".
    An override replaces the whole configuration: start from ``dataclasses.replace`` to keep parts.

    >>> import spquant_plugin as spq
    >>> config = SpQuantConfig(membrane=spq.TernaryMembrane(), weights=spq.PowerOfTwoWeights(2))
    >>> SpQuantConfig.from_dict(config.to_dict()) == config
    True
    """

    membrane: _Membrane | None = None
    surrogate: Triangle | None = None
    threshold: LearnableThreshold | None = None
    weights: _Weights | None = None
    edge_weights: _Weights | None = field(default_factory=lambda: UniformWeights(8))
    input: UniformInput | None = None
    spatial_gate: SpatialGate | None = None
    channel_gate: ChannelGate | None = None
    norm: QuantizedNorm | None = None
    overrides: Mapping[str, SpQuantConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in _FIELD_KINDS.items():
            check_kind(self, name, getattr(self, name), kind)
        self._check_overrides()

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise fail(self, "overrides", self.overrides, "must map selectors to configurations.")
        for selector, config in self.overrides.items():
            if not isinstance(selector, str) or not selector:
                raise fail(self, "overrides", selector, "must have non-empty strings as keys.")
            if config is not None and not isinstance(config, SpQuantConfig):
                rule = "must be a SpQuantConfig, or None to leave the module alone."
                raise fail(self, f"overrides[{selector!r}]", config, rule)
            if config is not None and config.overrides:
                rule = "must not hold overrides of its own. Put every selector at the top level."
                raise fail(self, f"overrides[{selector!r}]", config, rule)
        object.__setattr__(self, "overrides", dict(self.overrides))

    @property
    def changes_neurons(self) -> bool:
        """Whether this configuration rebuilds the neurons that it selects."""
        parts = (self.membrane, self.surrogate, self.threshold, self.spatial_gate)
        return any(part is not None for part in parts)

    @property
    def changes_layers(self) -> bool:
        """Whether this configuration quantises the layers that it selects."""
        return self.weights is not None or self.input is not None


def check_kind(owner: object, name: str, value: object, kind: type) -> None:
    """Refuse what is neither None nor a record of this kind."""
    if value is None or isinstance(value, kind):
        return
    listed = ", ".join(_kind_names(kind))
    call = f" Call it: {value.__name__}()." if isinstance(value, type) else ""
    raise fail(owner, name, value, f"must be None or one of {listed}.{call}")


def _kind_names(kind: type) -> list[str]:
    if not kind.__name__.startswith("_"):
        return [kind.__name__]
    return sorted(name for name, known in Record.known.items() if issubclass(known, kind))
