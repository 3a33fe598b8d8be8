"""From a float model to a low-precision one: plan, convert, inspect, load, fold."""

from .apply import convert, convert_
from .calibrate import calibrate
from .checkpoint import LoadReport, load_float_state_dict
from .fold import fold
from .gate_schedule import GateSchedule
from .gating import gate_loss, gate_stats
from .hosts import reset
from .pairing import Pair
from .plan import ConversionPlan, PlanRow
from .planner import plan
from .status import Status, StatusRow, status

__all__ = [
    "ConversionPlan",
    "GateSchedule",
    "LoadReport",
    "Pair",
    "PlanRow",
    "Status",
    "StatusRow",
    "calibrate",
    "convert",
    "convert_",
    "fold",
    "gate_loss",
    "gate_stats",
    "load_float_state_dict",
    "plan",
    "reset",
    "status",
]
