"""What the constants of a SpikingJelly neuron must be."""

from __future__ import annotations

import math

from ..errors import ConfigError


def number(owner: object, name: str, value: object) -> float:
    """A finite number, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"{type(owner).__name__}({name}={value!r}): must be a finite number. "
            "A threshold that learns is learnable_threshold=LearnableThreshold()."
        )
    return float(value)


def time_constant(owner: object, name: str, value: object) -> float:
    """A time constant above 1, or an error."""
    tau = number(owner, name, value)
    if tau <= 1:
        raise ConfigError(
            f"{type(owner).__name__}({name}={value!r}): must be above 1. "
            "An integrator without leak is TernaryMembraneIFNode."
        )
    return tau
