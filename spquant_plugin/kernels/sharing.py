"""Constants by which all sigmoids of a backward step share one exponential.

The bumps of a stack lie one apart, so that their exponentials differ by constant factors. The
window of the threshold matters only where the firing triangle is not zero; on so short a range a
fraction of two polynomials is its sigmoid to the last digit.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from .rule import Rule

REACH = {4: 18.0, 8: 38.0}  # a bump further off, times the temperature, is zero to rounding
LARGEST = {4: 1e30, 8: 1e150}  # its square may overflow, but nothing else
TOLERANCE = {4: 1e-8, 8: 4e-16}
MOST_TERMS = 12


class Growth(NamedTuple):
    """Factors of the stack's one exponential, and how many bumps to each side of the nearest.

    ``near`` is 0 where the factors are those of all bumps, counted from the middle of the stack.
    """

    factors: tuple[float, ...]
    near: int


def growth(rule: Rule, element_size: int) -> Growth:
    """Factors for a sigmoid stack in single (4 bytes) or double precision (8)."""
    count, temperature = rule.highest - rule.lowest, rule.temperature
    if count * temperature / 2 <= 40:
        shifts = [k + 0.5 - count / 2 for k in range(count)]
        return Growth(tuple(math.exp(temperature * shift) for shift in shifts), 0)
    near = math.ceil(REACH[element_size] / temperature + 1)
    exponents = [temperature * (k - near) for k in range(2 * near + 1)]
    largest = math.log(LARGEST[element_size])
    return Growth(tuple(math.exp(min(exponent, largest)) for exponent in exponents), near)


class Fraction(NamedTuple):
    """``tanh(y) = y * up(y**2) / down(y**2)``, coefficients from the lowest power on."""

    up: tuple[float, ...]
    down: tuple[float, ...]


def find_window_fraction(slope: str, sharpness: float, element_size: int) -> Fraction | None:
    r"""The window's sigmoid where the triangle is not zero, for 4 or 8 bytes of precision.

    :math:`\sigma(d) = 1/2 + \tanh(d/2)/2`, and the fraction is that of
    ``tanh``: a convergent of Lambert's continued fraction. None where the surrogate reaches too
    far.

    >>> find_window_fraction("triangle", 1.0, 4)
    Fraction(up=(945.0, 105.0, 1.0), down=(945.0, 420.0, 15.0))
    """
    if slope not in ("triangle", "window"):
        return None
    edge = sharpness / 2
    older, old = ([0.0], [1.0]), ([1.0], [1.0])  # numerators over y, and denominators
    for term in range(2, MOST_TERMS + 1):
        step = 2.0 * term - 1
        new = tuple(_next(step, newer, elder) for newer, elder in zip(old, older, strict=True))
        older, old = old, new  # type: ignore[assignment]
        fraction = Fraction(tuple(old[0]), tuple(old[1]))
        value = edge * _at(fraction.up, edge**2) / _at(fraction.down, edge**2)
        if abs(value - math.tanh(edge)) <= TOLERANCE[element_size] and term > 2:
            return fraction
    return None


window_fraction = cache(find_window_fraction)


def _next(step: float, newer: list[float], elder: list[float]) -> list[float]:
    """``step * newer + y**2 * elder`` of two polynomials in ``y**2``."""
    size = max(len(newer), len(elder) + 1)
    padded = newer + [0.0] * (size - len(newer))
    shifted = [0.0, *elder] + [0.0] * (size - len(elder) - 1)
    return [step * a + b for a, b in zip(padded, shifted, strict=True)]


def _at(coefficients: tuple[float, ...], square: float) -> float:
    total = 0.0
    for coefficient in reversed(coefficients):
        total = total * square + coefficient
    return total
