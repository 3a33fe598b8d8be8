"""What every provider of the recurrence takes and gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Tensors of a call: time in rows, neurons in columns.

    ``x [T, M]`` may be of half precision; all others have the state's precision. ``state`` and
    ``fired`` ``[M]`` are where the sequence starts (None: at rest, nothing fired). ``threshold``,
    ``decay`` and ``gain`` hold one number or ``M``; without ``gain`` it is 1. ``unit`` is None for
    a float membrane. ``mask [T, R]`` multiplies the input; each value covers ``M / R`` neurons.
    """

    x: Tensor
    state: Tensor | None
    fired: Tensor | None
    threshold: Tensor
    decay: Tensor
    gain: Tensor | None
    unit: Tensor | None
    mask: Tensor | None


class Wanted(NamedTuple):
    """What a forward pass returns besides spikes and the last membrane.

    ``code_bits`` is 8 or 16 where each step's distance to the threshold is kept in so many bits for
    the backward pass, else 0.
    """

    potentials: bool = False
    membranes: bool = False
    code_bits: int = 0


class Outputs(NamedTuple):
    """What a forward pass returns; also the gradients that a backward pass receives for it."""

    spikes: Tensor | None
    final: Tensor | None
    potentials: Tensor | None = None
    membranes: Tensor | None = None


class Gradients(NamedTuple):
    """Gradients of a backward pass, in the shapes of :class:`Inputs`."""

    x: Tensor | None = None
    state: Tensor | None = None
    threshold: Tensor | None = None
    decay: Tensor | None = None
    gain: Tensor | None = None
    mask: Tensor | None = None


class Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool = True
    state: bool = False
    threshold: bool = False
    decay: bool = False
    gain: bool = False
    mask: bool = False


CELLS = {8: 2.0**4, 16: 2.0**11}  # to one unit of the membrane
CODES = {8: "int8", 16: "int16"}
