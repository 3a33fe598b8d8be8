"""From a float model to a low-precision one: plan, convert, inspect, load, fold."""

from .apply import convert, convert_
from .calibrate import calibrate
from .checkpoint import LoadReport, load_float_state_dict
from .fold import fold
from .hosts import reset
from .plan import ConversionPlan, PlanRow
from .planner import plan
from .status import Status, StatusRow, status

__all__ = [
    "ConversionPlan",
    "LoadReport",
    "PlanRow",
    "Status",
    "StatusRow",
    "calibrate",
    "convert",
    "convert_",
    "fold",
    "load_float_state_dict",
    "plan",
    "reset",
    "status",
]
