"""Low-precision spiking networks for SpikingJelly and snnTorch.

``convert(model, config)`` gives an existing model ternary membranes, power-of-two weights and
learnable thresholds. Importing this package loads torch and neither host.
"""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType

from . import distill, errors, functional, kernels, presets
from .analysis import Report, analyze, compare
from .config import (
    AdditivePowerOfTwoWeights,
    BinaryMembrane,
    ChannelGate,
    LearnableThreshold,
    MintMembrane,
    MintWeights,
    PowerOfTwoWeights,
    QuantizedNorm,
    SpatialGate,
    SpQuantConfig,
    TemporalTernaryWeights,
    TernaryMembrane,
    TernaryWeights,
    Triangle,
    UniformInput,
    UniformMembrane,
    UniformWeights,
)
from .convert import (
    ConversionPlan,
    GateSchedule,
    LoadReport,
    Status,
    calibrate,
    convert,
    convert_,
    fold,
    gate_loss,
    gate_stats,
    load_float_state_dict,
    plan,
    reset,
    status,
)
from .deploy import IntegerNetwork, Verification, export_c, load_integer, to_integer, verify
from .deploy.nir import export_nir
from .errors import SpQuantError, SpQuantWarning
from .modules.synchronized import synchronize_norms_

__version__ = "0.1.0"

__all__ = [
    "AdditivePowerOfTwoWeights",
    "BinaryMembrane",
    "ChannelGate",
    "ConversionPlan",
    "GateSchedule",
    "IntegerNetwork",
    "LearnableThreshold",
    "LoadReport",
    "MintMembrane",
    "MintWeights",
    "PowerOfTwoWeights",
    "QuantizedNorm",
    "Report",
    "SpQuantConfig",
    "SpQuantError",
    "SpQuantWarning",
    "SpatialGate",
    "Status",
    "TemporalTernaryWeights",
    "TernaryMembrane",
    "TernaryWeights",
    "Triangle",
    "UniformInput",
    "UniformMembrane",
    "UniformWeights",
    "Verification",
    "__version__",
    "analyze",
    "calibrate",
    "compare",
    "convert",
    "convert_",
    "distill",
    "errors",
    "export_c",
    "export_nir",
    "fold",
    "functional",
    "gate_loss",
    "gate_stats",
    "kernels",
    "load_float_state_dict",
    "load_integer",
    "plan",
    "presets",
    "reset",
    "status",
    "synchronize_norms_",
    "to_integer",
    "verify",
]


_ON_FIRST_USE = ("spikingjelly", "snntorch", "models", "data")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})


def __getattr__(name: str) -> _ModuleType:
    """Load on first use what needs more than torch: the hosts, the networks, the data."""
    if name in _ON_FIRST_USE:
        return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
