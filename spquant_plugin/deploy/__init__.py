"""Integer-only networks: lowered from trained ones, proven equal, run, stored and exported."""

from .c99 import CSize, export_c
from .graph import Graph
from .loading import load_integer
from .lowering import to_integer
from .network import IntegerNetwork, Run
from .verify import LayerCheck, Mismatch, Verification, verify

__all__ = [
    "CSize",
    "Graph",
    "IntegerNetwork",
    "LayerCheck",
    "Mismatch",
    "Run",
    "Verification",
    "export_c",
    "load_integer",
    "to_integer",
    "verify",
]
