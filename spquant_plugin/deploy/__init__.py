"""Integer-only networks: lowered from trained ones, proven equal, run, stored and exported."""

from .graph import Graph
from .lower import to_integer
from .network import IntegerNetwork, Run
from .verify import LayerCheck, Mismatch, Verification, verify

__all__ = [
    "Graph",
    "IntegerNetwork",
    "LayerCheck",
    "Mismatch",
    "Run",
    "Verification",
    "to_integer",
    "verify",
]
