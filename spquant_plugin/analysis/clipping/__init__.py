"""How robust a network is to low-precision membranes: clipping, fewer levels, surrogate shapes.

The questions of Section 4 of SpQuant-SNN, asked of your own network and data.
"""

from .bounds import BOUNDS, ClippingReport, ClippingRow, sweep_bounds
from .running import measure_accuracy
from .silence import measure_silence
from .silence_report import SilenceReport, SilenceRow, SilentRegion
from .sweeps import Sweep, SweepRow, compare_membranes, sweep, sweep_levels, sweep_shapes

__all__ = [
    "BOUNDS",
    "ClippingReport",
    "ClippingRow",
    "SilenceReport",
    "SilenceRow",
    "SilentRegion",
    "Sweep",
    "SweepRow",
    "compare_membranes",
    "measure_accuracy",
    "measure_silence",
    "sweep",
    "sweep_bounds",
    "sweep_levels",
    "sweep_shapes",
]
