"""What a network costs: memory, sparsity, operations and energy, as tables, records and plots."""

from . import agreement, clipping, entropy, hardware
from .comparison import Comparison, compare
from .energy import EnergyReport, EnergyRow, MemoryLevel
from .energy_tables import EnergyTable
from .measuring import analyze
from .memory import MemoryReport, MemoryRow
from .operations import OperationReport, OperationRow
from .report import Report
from .sparsity import SparsityReport, SparsityRow

__all__ = [
    "Comparison",
    "EnergyReport",
    "EnergyRow",
    "EnergyTable",
    "MemoryLevel",
    "MemoryReport",
    "MemoryRow",
    "OperationReport",
    "OperationRow",
    "Report",
    "SparsityReport",
    "SparsityRow",
    "agreement",
    "analyze",
    "clipping",
    "compare",
    "entropy",
    "hardware",
]
