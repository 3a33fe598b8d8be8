"""Another membrane for the neurons of a network that was converted already."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import nn

from ...config import MintMembrane, SpQuantConfig, _Membrane
from ...errors import AnalysisError, ConversionError, SelfFiringWarning
from ...modules.neuron import QuantizedNeuron


@torch.no_grad()
def with_membrane(copy: nn.Module, config: SpQuantConfig) -> nn.Module:
    """The copy, whose quantised neurons now store by the membrane of ``config``.

    The unit is the one that the neuron had, scaled where the new levels divide the same range into
    more or fewer. Nothing else of a converted network can change without training it anew.
    """
    rule = config.membrane
    if rule is None or config != SpQuantConfig(membrane=rule, edge_weights=config.edge_weights):
        raise AnalysisError(
            f"config = {config}: the network was converted already, so only its membranes can "
            "change. Pass spq.SpQuantConfig(membrane=...), or the float network."
        )
    changed = 0
    for path, neuron in copy.named_modules():
        if isinstance(neuron, QuantizedNeuron) and neuron.membrane is not None:
            _change(path, neuron, neuron.membrane, rule)
            changed += 1
    if not changed:
        raise AnalysisError(
            f"{type(copy).__name__}: was converted with float membranes, so there is none to "
            "change: at least one must be quantised. Pass the float network."
        )
    return copy


def _change(path: str, neuron: QuantizedNeuron, old: _Membrane, new: _Membrane) -> None:
    for rule in (old, new):
        if isinstance(rule, MintMembrane):
            raise AnalysisError(
                f"{path or '(model)'} stores {old} and is to store {new}: MINT's membrane follows "
                "a learned scale, so it can neither be changed nor take another's place. Pass the "
                "float network."
            )
    unit = neuron.membrane_unit
    if unit is None:
        return
    if isinstance(new.unit, float):
        unit.fill_(new.unit)
    else:
        unit.mul_(new.default_unit_factor / old.default_unit_factor)
    neuron.membrane = dataclasses.replace(new)
    try:
        neuron.check()
    except ConversionError as error:
        raise ConversionError(f"{path or '(model)'}: {error}") from error
    warning = neuron.self_firing()
    if warning is not None:
        warnings.warn(f"{path or '(model)'}: {warning}", SelfFiringWarning, stacklevel=5)
