"""What a network costs: memory, sparsity, operations and energy, as tables, records and plots."""

from . import agreement, clipping, codes, entropy, hardware
from .codes import plot_weight_patterns
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
    "codes",
    "compare",
    "entropy",
    "hardware",
    "plot_weight_patterns",
]
