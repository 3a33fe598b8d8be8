"""What a module is to an analysis, and which of its tensors are weights, states or neither."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..convert.hosts import Hosts
from ..convert.layers import COMPUTES, layer_kind
from ..convert.trace import is_norm
from ..modules.gates import ChannelGate
from ..modules.input_quantizer import InputQuantizer
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from ..modules.step_counter import StepCounter
from ..modules.weight_quantizer import WeightQuantizer
from .temporal import is_temporal, scales_and_table_bits, temporal_bits

MEMBRANES = ("v", "mem")
# What a neuron emits; these are its spikes of the step before, kept for the recurrence.
SPIKES = ("spk",)
# Recomputed from the membrane in each step, or only a recording of it. ``fired`` is the second part
# of a stored membrane, see ``membrane_bits``.
DERIVED = ("reset", "fired", "v_seq")
# Read by training alone.
TRAINING_ONLY = ("num_batches_tracked",)


def kind_of(module: nn.Module, hosts: Hosts) -> str:
    """weights, neuron, state, norm or other."""
    if isinstance(module, StepCounter):
        return "other"  # a step of the program, which a network keeps nowhere
    if isinstance(module, QuantizedNeuron):
        return "neuron"
    if isinstance(module, QuantizedLayer | ChannelGate) or layer_kind(module, hosts) is not None:
        return "weights"
    known = hosts.neuron_kind(module)
    if known is not None:
        return "state" if known[1].action == "keep" else "neuron"
    return "norm" if is_norm(module) else "other"


def is_part(module: nn.Module) -> bool:
    """Whether a module is accounted for in its parent's row."""
    return isinstance(module, WeightQuantizer | InputQuantizer | StepCounter)


def weights_of(module: nn.Module) -> list[Tensor]:
    """The weights that a weight layer computes with, whether it holds or computes them."""
    for name in ("weight", "V"):
        weight = getattr(module, name, None)
        if isinstance(weight, Tensor):
            return [weight]
    # Recurrent and attention layers name theirs weight_ih_l0, in_proj_weight and the like.
    named = module._parameters.items()
    return [value for name, value in named if value is not None and "bias" not in name]


def held_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers, and those of its quantisers."""
    owners = [module, *(child for child in module.children() if is_part(child))]
    for owner in owners:
        for name, value in (*owner._parameters.items(), *owner._buffers.items()):
            if value is not None:
                yield name, value


def quantizer_of(module: nn.Module) -> WeightQuantizer | None:
    """What quantises the weight of a layer or of a channel gate."""
    if isinstance(module, ChannelGate | QuantizedLayer):
        return module.weight_quantizer
    return None


def scale_bits(module: nn.Module) -> int:
    """Bits of what turns a quantised layer's stored levels or codes into weights."""
    quantizer = quantizer_of(module)
    # A scale that is learned is a parameter, and counted as such.
    if quantizer is None or quantizer._parameters:
        return 0
    own: Any = module
    if is_temporal(module) and module.timesteps is not None:
        return scales_and_table_bits(module, module.timesteps)
    alpha = getattr(quantizer, "alpha", None)
    rows = own.rows(own.weight) if isinstance(module, QuantizedLayer) else own.weight
    count = alpha.numel() if isinstance(alpha, Tensor) else rows.shape[0]
    return 8 * own.weight.element_size() * count


def is_folded(module: nn.Module) -> bool:
    """Whether a norm's factors are inside its layer's weight, so that it computes nothing."""
    return isinstance(module, QuantizedBatchNorm) and module.rule.mode == "fold"


def folded_bias_bits(module: nn.Module) -> int:
    """Bits of a bias that a layer has of its folded norm alone."""
    if not isinstance(module, QuantizedLayer) or not module.folded_norm or module.bias is not None:
        return 0
    return int(8 * module.weight.element_size() * module.rows(module.weight).shape[0])


def weight_bits(module: nn.Module, weight: Tensor, mode: str) -> tuple[int, float, str]:
    """Stored bits of one weight: the quantiser's, or the float's own.

    With them the bits of information and a note, where the weights change with the time step.
    """
    quantizer = quantizer_of(module)
    if quantizer is None:
        return 8 * weight.element_size(), 0.0, ""
    if not is_temporal(module):
        return quantizer.stored_bits, 0.0, ""
    return temporal_bits(module, mode)


def computes_in_its_own_way(module: nn.Module, hosts: Hosts) -> bool:
    """Whether a weight layer overrides what the class that it is known by computes."""
    known = next((base for base in type(module).__mro__ if base in hosts.layers), None)
    if known is None or isinstance(module, QuantizedLayer):
        return False
    return any(
        name in module.__dict__
        or getattr(type(module), name, None) is not getattr(known, name, None)
        for name in COMPUTES
    )


def membrane_bits(module: nn.Module) -> tuple[int, float] | None:
    """Stored and information bits of one quantised membrane; None for a float one.

    A delayed reset also remembers whether the neuron fired. Only levels from the threshold's own
    upwards can have fired and only those up to it can be silent, so this adds a single value.
    """
    rule = module.membrane if isinstance(module, QuantizedNeuron) else None
    if rule is None:
        return None
    own: Any = module
    late = own.remembers
    if not late:
        return rule.stored_bits, rule.information_bits
    values = rule.highest - rule.lowest + 2
    return math.ceil(math.log2(values)), math.log2(values)
