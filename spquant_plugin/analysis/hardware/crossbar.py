r"""The accelerator: tiles of processing elements (PEs), each with a crossbar per kernel position.

With :math:`X` rows and columns, 8 of which share a converter, and :math:`k^2` kernel positions,

.. math::

    e &= \tfrac X8 \left(k^2 E_x + \tfrac X8 (2.03084 + 0.094245)\right) + \tfrac X8 (16 \cdot
         1.15 \cdot 10^{-6} + 0.2) + 157.12 + 4.64 + 5.096 + 397 \\
    a &= k^2 A_x + \tfrac X8 (693.633 + 45.9) \\
    a_{tile} &= \tfrac X8 13411.41498 + 484.643999 + 0.7391 \cdot 64 \cdot 128 + P a + 433660

are the pJ of one PE for one output pixel, the µm² of a PE and those of a tile of :math:`P` PEs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...records import Record, choice, fail, real, whole

# pJ per read of one crossbar's array, and µm² of it.
ARRAY_PJ = {"rram": 1.76423, "sram": 671.089}
ARRAY_UM2 = {"rram": 26.2144, "sram": 671.089}

# pJ for one output pixel: of each converter with its multiplexer, of the parts beside a column of
# converters (subtractor, buffer of partial sums), and of what a PE has once.
CONVERTER_PJ = 2.03084 + 0.094245
COLUMN_PJ = 16 * 1.15e-6 + 0.2
FETCH_PJ = 157.12 + 4.64 + 397  # H-tree, input memory, tile buffer
NEURON_PJ = 5.096

# µm², of the same parts.
CONVERTER_UM2 = 693.633 + 45.9
SUBTRACTOR_UM2 = 13411.41498
SUMS_UM2 = 484.643999
BIT_UM2 = 0.7391  # one bit of buffer or neuron memory
BUFFER_BITS = 64 * 128
HTREE_UM2 = 433660.0

CLOCKS = 26  # from one output of a layer to the next
NEURON_BITS = 22  # of the public tool, for whatever stores a neuron's sum
SHARING = 8  # columns that share a converter


@dataclass(frozen=True)
class Crossbar(Record):
    """An accelerator: the size of a crossbar, what its cells hold, and how PEs are grouped.

    ``cell_bits`` are the bits that one cell stores: a weight of ``b`` bits takes ``b / cell_bits``
    columns, rounded up. Resistive cells (``device="rram"``) may hold several; an ``"sram"`` cell
    holds one. ``neuron_bits`` is what a value takes that no neuron of the network stores, such as
    an input of the first layer; the public tool takes it for every neuron.

    >>> Crossbar().columns(32), Crossbar(cell_bits=4).columns(8)
    (32, 2)
    """

    size: int = 64
    device: str = "rram"
    cell_bits: int = field(default=1, kw_only=True)
    clock_mhz: float = field(default=250.0, kw_only=True)
    pes_per_tile: int = field(default=8, kw_only=True)
    neuron_bits: int = field(default=NEURON_BITS, kw_only=True)

    def __post_init__(self) -> None:
        whole(self, "size", SHARING, 4096)
        if self.size % SHARING:
            rule = f"must be a multiple of {SHARING}, because so many columns share a converter."
            raise fail(self, "size", self.size, f"{rule} Choose 64 or 128, for example.")
        choice(self, "device", tuple(ARRAY_PJ))
        whole(self, "cell_bits", 1, 8)
        if self.device == "sram" and self.cell_bits > 1:
            rule = "must be 1, because an SRAM cell stores one bit."
            raise fail(self, "cell_bits", self.cell_bits, f"{rule} Use device='rram', or 1.")
        real(self, "clock_mhz", positive=True)
        whole(self, "pes_per_tile", 1, 4096)
        whole(self, "neuron_bits", 1, 64)

    def columns(self, weight_bits: int) -> int:
        """Columns that one weight takes."""
        return math.ceil(weight_bits / self.cell_bits)

    def pes(self, inputs: int, outputs: int, groups: int = 1, columns: int = 1) -> int:
        """PEs of a layer. Groups are packed along the diagonal of a crossbar, as many as fit.

        >>> Crossbar().pes(128, 128, columns=2), Crossbar().pes(128, 128, groups=128)
        (8, 2)
        """
        rows, wide = inputs // groups, outputs // groups * columns
        if groups > 1 and max(rows, wide) <= self.size:
            # No two groups share a row or a column, so that each column sums its own group only.
            return math.ceil(groups / min(self.size // rows, self.size // wide))
        return groups * math.ceil(rows / self.size) * math.ceil(wide / self.size)

    def cycle_pj(self, positions: int, spike_rate: float = 1.0) -> float:
        """Energy of one PE for one output pixel; silent rows drive nothing into the arrays."""
        shared = self.size / SHARING
        array = positions * ARRAY_PJ[self.device] * spike_rate
        return shared * (array + shared * CONVERTER_PJ + COLUMN_PJ) + FETCH_PJ + NEURON_PJ

    def tile_um2(self, positions: int) -> float:
        """Area of a tile whose PEs have this many crossbars each."""
        shared = self.size / SHARING
        pe = positions * ARRAY_UM2[self.device] + shared * CONVERTER_UM2
        buffers = SUMS_UM2 + BIT_UM2 * BUFFER_BITS
        return shared * SUBTRACTOR_UM2 + buffers + self.pes_per_tile * pe + HTREE_UM2

    @property
    def output_ns(self) -> float:
        """Time from one output to the next."""
        return CLOCKS * 1000 / self.clock_mhz
