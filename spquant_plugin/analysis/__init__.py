"""What a network costs: memory per module, as tables, records and plots."""

from .comparison import Comparison, compare
from .memory import MemoryReport, MemoryRow
from .report import Report, analyze

__all__ = ["Comparison", "MemoryReport", "MemoryRow", "Report", "analyze", "compare"]
