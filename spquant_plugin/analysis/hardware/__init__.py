"""What a network would cost on an accelerator of crossbars: energy, latency and area.

The public analytical model of SpikeSim, extended to bit widths, spike rates, gates, linear layers
and kernels of any size. ``compat=True`` gives what the public tool gives. Nothing in it was
measured on silicon: it ranks networks on one kind of chip.
"""

from .comparison import HardwareComparison, compare
from .crossbar import Crossbar
from .estimate import estimate, estimate_layers
from .layer import Layer
from .report import HardwareReport, HardwareRow

__all__ = [
    "Crossbar",
    "HardwareComparison",
    "HardwareReport",
    "HardwareRow",
    "Layer",
    "compare",
    "estimate",
    "estimate_layers",
]
