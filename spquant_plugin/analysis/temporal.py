"""What is known of a layer whose weights change with the time step: its steps, codes and bits."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from torch import nn

from ..config import TemporalTernaryWeights
from ..errors import AnalysisError
from ..functional.temporal import code_bits, temporal_patterns
from ..modules.quantized_layer import QuantizedLayer


def is_temporal(module: nn.Module) -> TypeGuard[QuantizedLayer]:
    """Whether a layer has other weights in each time step."""
    return isinstance(module, QuantizedLayer) and module.is_temporal


def rule_of(layer: QuantizedLayer) -> TemporalTernaryWeights:
    """What was asked for."""
    quantizer: Any = layer.weight_quantizer
    rule: TemporalTernaryWeights = quantizer.rule
    return rule


def known_steps(path: str, layer: QuantizedLayer) -> int:
    """How many time steps the weights of a layer have; an error where nothing tells it yet."""
    if layer.timesteps is None:
        raise AnalysisError(
            f"{path or '(model)'} ({type(layer).__name__}): its weights change with the time step, "
            "and nothing has told it yet how many there are: the number of steps must be known. "
            "Run the model once, or convert it with TemporalTernaryWeights(timesteps=...)."
        )
    return layer.timesteps


def patterns_of(rule: TemporalTernaryWeights, timesteps: int) -> tuple[tuple[int, ...], ...]:
    """What weights of one sign are in each step, the silent pattern first.

    >>> patterns_of(TemporalTernaryWeights(), 4)
    ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1))
    """
    return temporal_patterns(timesteps, rule.bits).levels


def code_count(rule: TemporalTernaryWeights, timesteps: int) -> int:
    """How many values a weight's code can have: each pattern with either sign, and none.

    >>> code_count(TemporalTernaryWeights(), 4)
    9
    """
    return 2 * len(patterns_of(rule, timesteps)) - 1


def temporal_bits(layer: QuantizedLayer, mode: str) -> tuple[int, float, str]:
    """Stored bits and bits of information of one weight, and what they stand for."""
    rule, steps = rule_of(layer), layer.timesteps
    if steps is None:
        return rule.bits, 0.0, "its number of time steps is not known: bits of one step"
    code = code_bits(steps, rule.bits)
    if mode == "paper_tables":
        return rule.bits, 0.0, f"bits of one step, as TaWQ reports; a code for {steps} takes {code}"
    return code, math.log2(code_count(rule, steps)), f"one code for {steps} time steps"


def scales_and_table_bits(layer: QuantizedLayer, timesteps: int) -> int:
    """Bits of what turns a layer's codes into weights: its scales, and the table of patterns."""
    rule, rows = rule_of(layer), layer.rows(layer.weight).shape[0]
    scales = rows * (timesteps if rule.scale == "per_step" else 1)
    table = len(patterns_of(rule, timesteps)) * timesteps * rule.bits
    return int(8 * layer.weight.element_size() * scales + table)
