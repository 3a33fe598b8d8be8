"""A rule as the constants that stand above ``membrane.cpp``."""

from __future__ import annotations

import torch

from .rule import GRADIENTS, RESETS, SHAPES, SLOPES, Rule
from .sharing import growth, window_fraction


def constants(rule: Rule, quantized: bool, dtype: torch.dtype) -> str:
    """The rule as C++ constants."""
    single = dtype == torch.float32
    factors, near = growth(rule, 4 if single else 8)
    fraction = window_fraction(rule.slope, rule.sharpness, 4 if single else 8)
    up, down = fraction or ((1.0,), (1.0,))
    length = max(len(up), len(down))
    up, down = ((*side, *[0.0] * (length - len(side))) for side in (up, down))
    cuts = rule.cuts
    lines = [
        f"using real = {'float' if single else 'double'};",
        f"#define bits {'int32_t' if single else 'int64_t'}",
        _enumerate("", RESETS),
        _enumerate("SLOPE_", SLOPES),
        _enumerate("GRADIENT_", GRADIENTS),
        _enumerate("", SHAPES),
        f"constexpr int RESET = {rule.reset.upper()}, SLOPE = SLOPE_{rule.slope.upper()};",
        f"constexpr int GRADIENT = GRADIENT_{rule.threshold_gradient.upper()};",
        f"constexpr int SHAPE = {rule.shape.upper()}, NEAR = {near};",
        f"constexpr bool STRICT = {_bool(rule.strict)}, DETACH = {_bool(rule.detach_reset)};",
        f"constexpr bool QUANTIZED = {_bool(quantized)};",
        f"constexpr int LOWEST = {rule.lowest}, HIGHEST = {rule.highest};",
        f"constexpr bool MIDDLE_CUTS = {_bool(not rule.cut_points)};",
        f"constexpr double TEMPERATURE = {rule.temperature!r}, SHARPNESS = {rule.sharpness!r};",
        f"constexpr double REST = {rule.rest!r};",
        _array("CUTS", cuts),
        _array("GROWTH", factors),
        f"constexpr int WINDOW_TERMS = {len(up) - 1 if fraction else 0};",
        _array("WINDOW_UP", tuple(up)),
        _array("WINDOW_DOWN", tuple(down)),
    ]
    return "\n".join(lines) + "\n"


def _enumerate(prefix: str, names: tuple[str, ...]) -> str:
    return f"enum {{ {', '.join(prefix + name.upper() for name in names)} }};"


def _array(name: str, values: tuple[float, ...]) -> str:
    return f"constexpr double {name}[] = {{{', '.join(repr(float(value)) for value in values)}}};"


def _bool(value: bool) -> str:
    return "true" if value else "false"
