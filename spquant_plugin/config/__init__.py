"""What is asked for: frozen, validated records that ``convert`` reads.

A record refuses a bad value when it is made, so that no later step needs to check again.
"""

from .firing import LearnableThreshold, Triangle
from .gates import ChannelGate, SpatialGate
from .membrane import (
    SHAPES,
    BinaryMembrane,
    MintMembrane,
    TernaryMembrane,
    UniformMembrane,
    _Membrane,
)
from .norm import QuantizedNorm
from .weights import (
    AdditivePowerOfTwoWeights,
    MintWeights,
    PowerOfTwoWeights,
    TemporalTernaryWeights,
    TernaryWeights,
    UniformInput,
    UniformWeights,
    _Weights,
)
from .whole import SpQuantConfig, check_kind

__all__ = [
    "SHAPES",
    "AdditivePowerOfTwoWeights",
    "BinaryMembrane",
    "ChannelGate",
    "LearnableThreshold",
    "MintMembrane",
    "MintWeights",
    "PowerOfTwoWeights",
    "QuantizedNorm",
    "SpQuantConfig",
    "SpatialGate",
    "TemporalTernaryWeights",
    "TernaryMembrane",
    "TernaryWeights",
    "Triangle",
    "UniformInput",
    "UniformMembrane",
    "UniformWeights",
    "_Membrane",
    "_Weights",
    "check_kind",
]
