"""The integer network as data: a list of operations on whole numbers, in the order they run.

Every node gives one value per sample and time step, an array of whole numbers with the channels
first. ``low`` and ``high`` are proven bounds of it: of a layer's sums they follow from the weights
and from what its input can be, so that nobody has to trust an accumulator's width.

Nothing here computes; engines, files and exports read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = tuple[int, ...]
WHOLE = "(model)"  # the name of a model that is one layer or neuron itself
STATES = 32  # of one neuron at most: 16 levels, and whether it fired


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """What every operation has: a unique name (the module's path where there is one), the names of
    the values it reads, the shape ``[C, *space]`` of what it gives, and proven bounds of that."""

    name: str
    inputs: tuple[str, ...]
    shape: Shape
    low: int
    high: int

    @property
    def binary(self) -> bool:
        """Whether the value is spikes, 0 or 1."""
        return self.low >= 0 and self.high <= 1

    @property
    def kind(self) -> str:
        """Name of the operation."""
        return type(self).__name__


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """What enters. ``quantizer`` is ``(bits, low, high)`` of an analogue input, else None."""

    quantizer: tuple[int, float, float] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Sums(Node):
    """Sums of weighted inputs; ``weight`` is int8 with the output channels first.

    ``bits`` are those that the quantiser's levels take when stored, at most 8.
    """

    weight: Tensor
    bits: int = 8

    def bounds(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Least and largest sum of each filter (int64) whose inputs lie in ``low`` to ``high``.

        Padding adds zeros, so zero counts as an input.
        """
        low, high = min(low, 0), max(high, 0)
        rows = self.weight.flatten(1).to(torch.int64)
        up, down = rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1)
        return up * low + down * high, up * high + down * low

    def accumulator_bits(self, low: int, high: int) -> Tensor:
        """Bits that each filter's sum is proven to need, 16 or 32; also on the way to it."""
        least, most = self.bounds(low, high)
        small = (least >= -(2**15)) & (most < 2**15)
        return torch.where(small, 16, 32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(_Sums):
    """``weight [O, I / groups, *kernel]`` over one or two axes of space, zeros around."""

    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(_Sums):
    """``weight [O, I]`` on a flat value ``[I]``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SumPool(Node):
    """Sums over windows, zeros around: an average pool without its division."""

    kernel: Shape
    stride: Shape
    padding: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest number of each window; of spikes their OR. Padding never wins."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The same numbers, in the same order, in another shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """Inputs one behind the other along the channels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """Sum of all inputs, each times its ``factors`` (int32, one number or one per channel)."""

    factors: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Node):
    """``multiplier * x + offset`` per channel (int32): a normalisation by dyadic numbers."""

    multiplier: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Node):
    """Both of two values of 0 and 1: 1 where both are, else 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelDecision(Node):
    """Which of ``shape[0]`` channels are open, 1 or 0: ``weight @ sums >= threshold``.

    The sums are over space: of the levels that the neuron ``inputs[0]`` stored in this step, where
    ``reads`` is ``"membrane"``, or of that value itself, where it is ``"value"``. ``weight`` is
    int8 ``[O, I]``, ``threshold`` int64 ``[O]``. ``bits`` are those of a stored weight.
    """

    reads: str
    weight: Tensor
    threshold: Tensor
    bits: int = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Mask(Node):
    """``inputs[0]`` where its channel is open by ``inputs[1]``, a decision, else 0."""


@dataclass(frozen=True)
class PixelMask:
    """A spatial gate: in each step the ``masked`` pixels of least importance are left out.

    Importance is the sum over channels of squared levels: ``"current"`` of the potential's level
    in this step, ``"prior"`` of the levels stored by the step before; then the first step masks
    nothing. Of equally important pixels those of lowest index go first. A masked neuron emits
    nothing and goes to rest.
    """

    score: str
    masked: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Neuron(Node):
    """Spikes. All arithmetic of charge, threshold, reset and storing is in a table of comparisons.

    ``inputs`` are the sum; then, where ``counts`` is not None, whole numbers in that range
    that are added to the current (spikes of a residual branch). ``gate`` names a channel decision.

    A neuron's state ``s`` is the index of its stored level, ``level - lowest``; where it
    ``remembers`` a spike until the next step, twice that plus 1 if it fired. In channel ``c``, with
    the sum ``a``, the added number ``n`` and ``a' = sign[c] * a``, it takes the outcome

        j = number of k with  a' >= breaks[c, s, n - counts.low, k]

    or ``closed[c, s, n - counts.low]`` where the gate closed its channel. Row ``j`` of ``outcomes``
    is ``(spike, next state, level of the potential)``, the last for ``pixels``.
    """

    lowest: int
    highest: int
    remembers: bool
    sign: Tensor  # int8 [C]
    breaks: Tensor  # int32 [C, states, numbers, K], ascending along K
    outcomes: Tensor  # int16 [K + 1, 3]
    counts: tuple[int, int] | None = None
    gate: str | None = None
    closed: Tensor | None = None  # uint8 [C, states, numbers]
    pixels: PixelMask | None = None
    semantics: dict[str, str] = field(default_factory=dict)  # reset, order, ties: for people

    @property
    def states(self) -> int:
        """How many states one neuron can be in."""
        return (self.highest - self.lowest + 1) * (2 if self.remembers else 1)

    @property
    def rest(self) -> int:
        """State at rest: level 0, not fired."""
        return -self.lowest * (2 if self.remembers else 1)

    @property
    def state_bits(self) -> int:
        """Bits of one packed state: 1, 2, 4 or 8."""
        return next(bits for bits in (1, 2, 4, 8) if self.states <= 2**bits)

    def level_of(self, states: Tensor) -> Tensor:
        """Stored levels (int16) of states."""
        index = states.to(torch.int16)
        return (index >> 1 if self.remembers else index) + self.lowest


@dataclass(frozen=True, eq=False)
class Output:
    """What is read out: a value or, of a neuron, its stored level, and how it becomes real numbers.

    The whole numbers times ``unit`` (powers of two, one or one per channel), then ``steps`` one
    after the other, each in the model's precision: ``("multiply", factor)``, ``("add", term)``,
    or ``("norm", mean, variance, weight, bias, epsilon)``. ``over_time`` is None (a value for every
    step), ``"sum"``, ``"mean"``, ``"last"``, or ``"running sum"`` and ``"running mean"``, which add
    one step after the other: of float values that is another rounding.
    """

    value: str
    reads: str = "value"  # or "membrane"
    unit: Tensor = field(default_factory=lambda: torch.ones(1))
    steps: tuple[tuple[object, ...], ...] = ()
    over_time: str | None = None
    gate: str | None = None  # a channel decision behind the steps


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order they run, and what is read out.

    ``takes`` is what the model took in one call: ``"sequence"``, ``"step"``, or ``"static"``, one
    input for all of ``repeats`` steps. A sequence of ``repeats`` above 1 has exactly that many
    steps. ``single`` says that it returned one tensor, no tuple.

    ``later`` is empty where every step does the same. Else ``nodes`` and ``outputs`` are those of
    the first step, and ``later`` holds a graph for each further one: the same nodes, with the same
    bounds and states, but weights, tables and factors of their own. What does not change is the
    very same node in all of them. Such a network runs as many steps as it has graphs, at most.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    takes: str = "sequence"
    repeats: int = 1
    single: bool = True
    model: str = ""
    later: tuple[Graph, ...] = ()

    def __getitem__(self, name: str) -> Node:
        return self._named[name]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_named", {node.name: node for node in self.nodes})

    _named: dict[str, Node] = field(default_factory=dict, init=False, repr=False)

    @property
    def by_step(self) -> tuple[Graph, ...]:
        """The graph of each step; of one that is the same in all steps, itself alone."""
        return (self, *self.later)

    @property
    def input(self) -> Input:
        """The one node that nothing feeds."""
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """All neuron layers."""
        return tuple(node for node in self.nodes if isinstance(node, Neuron))

    @property
    def layers(self) -> tuple[_Sums, ...]:
        """All weight layers."""
        return tuple(node for node in self.nodes if isinstance(node, _Sums))

    def readers(self, name: str) -> Iterator[Node]:
        """Nodes that read a value, or the membranes behind it."""
        for node in self.nodes:
            if name in node.inputs or (isinstance(node, Neuron) and node.gate == name):
                yield node


def size(shape: Shape) -> int:
    """Number of elements.

    >>> size((2, 3))
    6
    """
    return math.prod(shape)
