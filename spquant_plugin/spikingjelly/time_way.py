"""How a layer in a SpikingJelly network gets to know the time step: from what it stands in."""

from __future__ import annotations

from spikingjelly.activation_based import base, layer
from torch import nn

from ..modules.host import TimeWay
from .container import TemporalSeqToANNContainer

FOLDING = (layer.SeqToANNContainer, TemporalSeqToANNContainer)
STEPPING = (
    layer.MultiStepContainer,
    layer.TLastMultiStepContainer,
    layer.ElementWiseRecurrentContainer,
    layer.LinearRecurrentContainer,
)
CONTAINERS = (*FOLDING, *STEPPING, layer.StepModeContainer, layer.TLastSeqToANNContainer)


def time_way(model: nn.Module, path: str) -> TimeWay:
    """By the container around the layer; without one, by the step mode."""
    owners = path.split(".")[:-1] if path else []
    for depth in range(len(owners), -1, -1):
        owner = model.get_submodule(".".join(owners[:depth])) if path else None
        if type(owner) in FOLDING:
            return TimeWay("folded")
        if type(owner) in STEPPING:
            return TimeWay("counted")
        if isinstance(owner, CONTAINERS):
            kind = type(owner).__name__
            return TimeWay(
                "refuse",
                f"it stands in a {kind}, which does not tell it the time step. Use a "
                "SeqToANNContainer, or layers in step mode 'm' without a container",
            )
    if getattr(model.get_submodule(path), "step_mode", "s") == "m":
        return TimeWay("sequence")
    if any(map(_takes_sequences, model.modules())):
        reason = "it takes single steps or knows no time, in a network that takes sequences"
        return TimeWay("unknown", reason)
    return TimeWay("counted")


def _takes_sequences(module: nn.Module) -> bool:
    if isinstance(module, base.MultiStepModule):
        return True
    return isinstance(module, base.StepModule) and getattr(module, "step_mode", "s") == "m"
