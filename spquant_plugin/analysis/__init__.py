"""What a network costs: memory, sparsity and operations, as tables, records and plots."""

from .comparison import Comparison, compare
from .memory import MemoryReport, MemoryRow
from .operations import OperationReport, OperationRow
from .report import Report, analyze
from .sparsity import SparsityReport, SparsityRow

__all__ = [
    "Comparison",
    "MemoryReport",
    "MemoryRow",
    "OperationReport",
    "OperationRow",
    "Report",
    "SparsityReport",
    "SparsityRow",
    "analyze",
    "compare",
]
