"""What an addition, a multiplication and an access to memory cost, by technology.

45 nm: Horowitz, "Computing's energy problem" (ISSCC 2014). 7 nm, and both side by side: Jouppi et
al., "Ten lessons from three generations shaped Google's TPUv4i" (ISCA 2021), Table 2. Memory is
on-chip SRAM of three sizes, read or written by 64 bits.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import AnalysisError

TYPES = ("INT8", "INT32", "FP16", "FP32")
ACCESS_BITS = 64


@dataclass(frozen=True)
class EnergyTable:
    """Energies in pJ: ``add`` and ``multiply`` by operand type, ``sram`` by size in bytes.

    ``sram`` is the cost of one access of 64 bits to a memory of up to that size; larger contents
    count as many memories of the largest size.

    >>> table = table_of("45nm")
    >>> table.add["FP32"], table.multiply["INT8"], table.access(20_000), table.access(5_000_000)
    (0.9, 0.2, 20, 100)
    """

    name: str
    add: Mapping[str, float] = field(hash=False)
    multiply: Mapping[str, float] = field(hash=False)
    sram: Mapping[int, float] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise AnalysisError(
                f"EnergyTable(name={self.name!r}): must be a text, for the report. Pass one."
            )
        for part in ("add", "multiply", "sram"):
            given = getattr(self, part)
            if not isinstance(given, Mapping):
                raise AnalysisError(
                    f"EnergyTable({part}={given!r}): must be a dict with a cost in pJ for each "
                    "entry. Pass one."
                )
            if part != "sram" and set(given) != set(TYPES):
                raise AnalysisError(
                    f"EnergyTable({part}={dict(given)!r}): must have an entry for each of "
                    f"{', '.join(TYPES)}. Add what is missing, remove what is not among them."
                )
        if not self.sram:
            raise AnalysisError(
                "EnergyTable(sram={}): must have a size in bytes with its cost. Add one."
            )
        for part in ("add", "multiply", "sram"):
            for key, cost in getattr(self, part).items():
                number = isinstance(cost, int | float) and not isinstance(cost, bool)
                fits = number and math.isfinite(cost) and cost >= 0
                if not fits or (part == "sram" and (type(key) is not int or key < 1)):
                    raise AnalysisError(
                        f"EnergyTable({part}={{{key!r}: {cost!r}}}): must be a finite cost in pJ, "
                        "at least 0, and sizes of memories whole bytes above 0. Correct it."
                    )

    def level(self, size: float) -> int:
        """The smallest memory, by its bytes, that holds ``size`` bytes; else the largest."""
        fitting = [held for held in self.sram if size <= held]
        return min(fitting) if fitting else max(self.sram)

    def access(self, size: float) -> float:
        """Cost of 64 bits from the smallest memory that holds ``size`` bytes."""
        return self.sram[self.level(size)]

    def traffic(self, bits: float, size: float) -> float:
        """Cost in pJ of moving so many bits in or out of a memory that holds ``size`` bytes."""
        return bits / ACCESS_BITS * self.access(size)


TABLES = {
    table.name: table
    for table in (
        EnergyTable(
            "45nm",
            add={"INT8": 0.03, "INT32": 0.1, "FP16": 0.4, "FP32": 0.9},
            multiply={"INT8": 0.2, "INT32": 3.1, "FP16": 1.1, "FP32": 3.7},
            sram={8 * 2**10: 10, 32 * 2**10: 20, 2**20: 100},
        ),
        EnergyTable(
            "7nm",
            add={"INT8": 0.007, "INT32": 0.03, "FP16": 0.16, "FP32": 0.38},
            multiply={"INT8": 0.07, "INT32": 1.48, "FP16": 0.34, "FP32": 1.31},
            sram={8 * 2**10: 7.5, 32 * 2**10: 8.5, 2**20: 14},
        ),
    )
}


def table_of(energy: str | EnergyTable) -> EnergyTable:
    """A table by its name, or one of the caller's own."""
    if isinstance(energy, EnergyTable):
        return energy
    if isinstance(energy, str) and energy in TABLES:
        return TABLES[energy]
    near = difflib.get_close_matches(str(energy), TABLES, n=1, cutoff=0.3)
    hint = f" Closest: {near[0]!r}." if near else ""
    raise AnalysisError(
        f"energy = {energy!r}: must be one of {', '.join(map(repr, TABLES))}, or an "
        f"spquant_plugin.analysis.EnergyTable.{hint}"
    )
