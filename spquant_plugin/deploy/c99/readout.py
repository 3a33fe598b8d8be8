"""Outputs as whole numbers of one scale, so that a device can compare classes without fractions.

A read-out multiplies by a factor per channel and adds a term. Floats are whole numbers times powers
of two, so the same arithmetic without any rounding is ``(numbers * M + steps * B) / 2**F``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from ..graph import Graph, Output
from ..steps import same

LARGEST = 2**63 - 1


@dataclass(frozen=True)
class FixedPoint:
    """``M`` and ``B`` per channel, ``F``, and for how many steps 64 bits suffice.

    Where a read-out :func:`changes`, the numbers of one step stand behind those of the other.
    """

    multipliers: list[int]
    terms: list[int]
    shift: int
    most_steps: int


def changes(graph: Graph, index: int) -> bool:
    """Whether an output becomes real numbers in another way from step to step."""
    outputs = [one.outputs[index] for one in graph.by_step]
    return any(
        not same((one.unit, one.steps), (outputs[0].unit, outputs[0].steps)) for one in outputs
    )


def fixed_point(graph: Graph, index: int) -> FixedPoint | None:
    """The read-out in whole numbers; None where it divides, is gated, or needs more bits, and where
    it only multiplies by one number, which changes no order."""
    node = graph[graph.outputs[index].value]
    channels = node.shape[0]
    outputs = [one.outputs[index] for one in graph.by_step]
    outputs = outputs if changes(graph, index) else outputs[:1]
    factors: list[Fraction] = []
    terms: list[Fraction] = []
    for output in outputs:
        if output.gate is not None or any(kind == "norm" for kind, *_ in output.steps):
            return None
        factors += (found := _exact(output, channels))[0]
        terms += found[1]
    if len(set(factors)) == 1 and factors[0] > 0 and not any(terms):
        return None
    shift = max(number.denominator.bit_length() - 1 for number in (*factors, *terms))
    scaled = [int(number * 2**shift) for number in (*factors, *terms)]
    low, high = (node.low, node.high) if outputs[0].reads == "value" else (-(2**8), 2**8)
    reach = max(abs(low), abs(high), 1)
    most = max(abs(m) * reach + abs(b) for m, b in _pairs(scaled, len(factors)))
    steps = min(LARGEST // max(1, most), (2**31 - 1) // reach)
    if steps < len(outputs) or max(map(abs, scaled)) > LARGEST:
        return None
    return FixedPoint(scaled[: len(factors)], scaled[len(factors) :], shift, steps)


def _exact(output: Output, channels: int) -> tuple[list[Fraction], list[Fraction]]:
    """Factor and term of each channel, without any rounding."""
    factors = _per_channel(output.unit, channels)
    terms = [Fraction(0)] * channels
    for kind, *values in output.steps:
        given = _per_channel(values[0], channels)
        if kind == "multiply":
            factors = [old * new for old, new in zip(factors, given, strict=True)]
            terms = [old * new for old, new in zip(terms, given, strict=True)]
        else:
            terms = [old + new for old, new in zip(terms, given, strict=True)]
    return factors, terms


def _pairs(scaled: list[int], count: int) -> list[tuple[int, int]]:
    return list(zip(scaled[:count], scaled[count:], strict=True))


def _per_channel(values: Any, channels: int) -> list[Fraction]:
    listed = values.flatten().tolist() if isinstance(values, Tensor) else [values]
    return [Fraction(number) for number in listed * (channels if len(listed) == 1 else 1)]
