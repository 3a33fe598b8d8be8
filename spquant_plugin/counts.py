"""What a network of whole numbers tells of itself: plain counts, which a report is made of.

``deploy`` fills them in and ``analysis`` reads them; neither knows the other. Counts are over all
samples and steps, and those of several batches add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor


@dataclass
class Count:
    """One layer, neuron, gate or join; ``path`` is the trained module's where there was one."""

    summed: ClassVar[tuple[str, ...]] = ()

    path: str
    type: str

    def add(self, other: Any) -> None:
        """Take in what another batch showed."""
        for name in self.summed:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class LayerCount(Count):
    """A weight layer. A pair is a weight and an input that meet.

    ``nonzero`` are those where neither is zero, ``effective`` what gates leave of them. Bits are
    proven: of what an input can be, and of what a sum can be. ``gate`` and ``mask`` are the paths
    of the gates that close its channels and its pixels. ``held_bytes`` are the weights as the
    engine holds them, None where it tells the total alone. Of weights that change from step to step
    ``zero_weights`` is the mean over the steps.
    """

    summed = ("rows", "inputs", "outputs", "dense", "nonzero", "effective")

    weights: int
    zero_weights: float
    weight_bits: int
    channels: int
    space: tuple[int, ...]
    kernel: int
    input_bits: int
    sum_bits: int
    gate: str = ""
    mask: str = ""
    note: str = ""
    held_bytes: float | None = None
    rows: int = 0
    inputs: int = 0
    outputs: int = 0
    dense: int = 0
    nonzero: int = 0
    effective: int = 0
    binary: bool = True  # whether all inputs were 0 and 1

    def add(self, other: Any) -> None:
        super().add(other)
        self.binary = self.binary and other.binary


@dataclass
class NeuronCount(Count):
    """A neuron layer, which looks up its outcome among ``outcomes``.

    ``levels`` holds for each step how many neurons stored each level from ``lowest`` on. Bytes are
    the tables', and what the engine holds of states and spikes for the first batch.
    """

    summed = ("updates", "spikes")

    neurons: int
    lowest: int
    highest: int
    remembers: bool
    outcomes: int
    table_bytes: int = 0
    held_bytes: float | None = None
    spike_bytes: float | None = None
    updates: int = 0
    spikes: int = 0
    levels: list[Tensor] = field(default_factory=list)

    def add(self, other: Any) -> None:
        super().add(other)
        for step, counts in enumerate(other.levels):
            if step < len(self.levels):
                self.levels[step] = self.levels[step] + counts
            else:
                self.levels.append(counts)


@dataclass
class GateCount(Count):
    """A gate: of channels, with weights, or of ``pixels``; and what deciding took."""

    summed = ("decided", "shut", "dense", "additions", "multiplications", "comparisons")

    pixels: bool
    weights: int = 0
    weight_bits: int = 0
    table_bytes: int = 0
    held_bytes: float | None = None
    decided: int = 0
    shut: int = 0
    dense: int = 0
    additions: int = 0
    multiplications: int = 0
    comparisons: int = 0


@dataclass
class JoinCount(Count):
    """A pool, a normalisation, or a sum of branches: ``kind`` is ``pool``, ``norm`` or ``add``.

    A product of spikes counts as ``add``: one addition, and no multiplication, for each.
    """

    summed = ("dense", "additions", "multiplications")

    kind: str
    table_bytes: int = 0
    dense: int = 0
    additions: int = 0
    multiplications: int = 0


@dataclass
class Counts:
    """A whole network, its parts by class and path in the order that they run.

    ``rest_bytes`` are states that belong to no neuron layer.
    Where an engine tells totals alone, ``weight_bytes`` and ``state_bytes`` are those.
    """

    engine: str
    samples: int
    first_batch: int
    steps: int
    parts: dict[tuple[type, str], Count]
    weight_bytes: float | None = None
    state_bytes: float | None = None
    rest_bytes: float = 0.0

    def add(self, other: Counts) -> None:
        """Take in another batch."""
        self.samples += other.samples
        for key, part in other.parts.items():
            self.parts[key].add(part)


@runtime_checkable
class CountsItself(Protocol):
    """A network that runs without modules, and so without hooks."""

    def integers(self, x: Tensor) -> Tensor:
        """The input as whole numbers ``[T, N, ...]``, refused where it is none."""

    def count_operations(self, whole: Tensor) -> Counts:
        """What it holds, and what it does on this batch, from rest."""
