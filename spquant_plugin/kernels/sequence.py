"""The recurrence for tensors as neurons have them, ``[T, N, C, ...]`` in any memory layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import KernelError
from ..functional.membrane import state_dtype
from . import operators  # noqa: F401 (registers the operators)
from .choice import saved_bits
from .inputs import Inputs
from .rule import Rule, check_rule


class Sequence(NamedTuple):
    """Spikes ``[T, ...]`` and last membrane ``[...]``, and what else was asked for."""

    spikes: Tensor
    membrane: Tensor
    potentials: Tensor | None = None
    membranes: Tensor | None = None


def membrane_sequence(
    x: Tensor,
    rule: Rule,
    *,
    threshold: Tensor | float,
    decay: Tensor | float,
    gain: Tensor | float = 1.0,
    unit: Tensor | float | None = 1.0,
    state: Tensor | None = None,
    fired: Tensor | None = None,
    mask: Tensor | None = None,
    potentials: bool = False,
    membranes: bool = False,
) -> Sequence:
    """Run a layer of neurons over all steps of ``x [T, N, ...]`` as one operation.

    ``threshold``, ``decay`` and ``gain`` are numbers or tensors that broadcast with one step
    ``[N, ...]``; ``unit`` is one number, None for a float membrane. ``state`` and, for late
    resets, ``fired`` ``[N, ...]`` continue a sequence; without them it starts at rest. ``mask
    [T, N, C]`` multiplies the input of whole channels. The state has at least single precision,
    spikes that of ``x``. ``potentials`` (before firing) and ``membranes`` (after each step) are
    returned on request. Everything returned carries its gradient, to all tensors but ``unit`` and
    ``fired``.

    >>> x = torch.tensor([[0.7], [0.7], [0.2]])
    >>> run = membrane_sequence(x, Rule(), threshold=1.0, decay=0.5, membranes=True)
    >>> run.spikes.flatten(), run.membranes.flatten()
    (tensor([0., 1., 0.]), tensor([1., 0., 0.]))
    """
    _check(x, rule, mask)
    _check_unit(unit)
    layout = _Layout(x, keeps_channels=mask is not None)
    inputs = Inputs(
        x.permute(0, *layout.order).reshape(x.shape[0], -1),
        layout.state("state", state),
        layout.state("fired", fired) if rule.late else None,
        layout.constant("threshold", threshold),
        layout.constant("decay", decay),
        None if _is_one(gain) else layout.constant("gain", gain),
        None if unit is None else layout.constant("unit", unit),
        None if mask is None else mask.to(layout.dtype).reshape(x.shape[0], -1),
    )
    if inputs.unit is not None and inputs.unit.ndim:
        raise KernelError("unit: received one for each neuron, must be one number for the layer.")
    bits = _code_bits(inputs)
    results = torch.ops.spquant_plugin.membrane(*inputs, *rule, potentials, membranes, bits)
    return Sequence(
        layout.restored(results[0], 1),
        _owned(layout.restored(results[1], 0)),
        layout.restored(results[2], 1) if potentials else None,
        layout.restored(results[3], 1) if membranes else None,
    )


class _Layout:
    """How one step ``[N, C, ...]`` lies in memory, so that flattening copies nothing."""

    def __init__(self, x: Tensor, *, keeps_channels: bool) -> None:
        self.shape, self.device = x.shape[1:], x.device
        self.dtype = state_dtype(x)
        # A mask covers whole channels, whose pixels must then be neighbours.
        axes = list(range(1, x.ndim)) if keeps_channels else _by_stride(x)
        self.order = axes
        self.within = [axis - 1 for axis in axes]  # the same axes without time
        self.back = sorted(range(len(axes)), key=axes.__getitem__)

    def state(self, name: str, value: Tensor | None) -> Tensor | None:
        """One value for each neuron, flat."""
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise KernelError(
                f"{name}={value!r}: must be a tensor like one step of the input, "
                f"{tuple(self.shape)}. Use torch.full, or leave it out to start at rest."
            )
        if value.shape != self.shape or value.device != self.device:
            raise KernelError(
                f"{name} of shape {tuple(value.shape)} on {value.device}: must be like one step of "
                f"the input, {tuple(self.shape)} on {self.device}. Start without it, or move it."
            )
        return value.to(self.dtype).permute(self.within).reshape(-1)

    def constant(self, name: str, value: Tensor | float) -> Tensor:
        """A constant of the layer: one number, or one for each neuron, flat."""
        if not isinstance(value, Tensor | float | int):
            raise KernelError(f"{name}={value!r}: must be a number or a tensor. Pass one of them.")
        if not isinstance(value, Tensor):
            return torch.full((), value, dtype=self.dtype, device=self.device)
        if value.device != self.device:
            raise KernelError(
                f"{name} is on {value.device}, the input on {self.device}: must be on one device. "
                "Move the neuron or its input."
            )
        value = value.to(self.dtype)
        if value.numel() == 1:
            return value.reshape(())
        if not _broadcasts(value.shape, self.shape):
            raise KernelError(
                f"{name} of shape {tuple(value.shape)}: must broadcast with one step of the input, "
                f"{tuple(self.shape)}. Use one number, or [C, 1, ...] for one per channel."
            )
        return value.expand(self.shape).permute(self.within).reshape(-1)

    def restored(self, flat: Tensor, lead: int) -> Tensor:
        """Undo the flattening, behind ``lead`` axes that stay."""
        shaped = flat.view(*flat.shape[:lead], *(self.shape[axis] for axis in self.within))
        return shaped.permute(*range(lead), *(axis + lead for axis in self.back))


def _by_stride(x: Tensor) -> list[int]:
    """Axes behind time, those first whose elements lie farthest apart; of equals the first.

    Strides are compared in pairs: where a compiler traces them as symbols, sort() cannot.
    """
    steps = [step if size > 1 else 0 for step, size in zip(x.stride(), x.shape, strict=True)]
    order: list[int] = []
    for axis in range(1, x.ndim):
        place = len(order)
        while place > 0 and steps[order[place - 1]] < steps[axis]:
            place -= 1
        order.insert(place, axis)
    return order


def _is_one(gain: Tensor | float) -> bool:
    return not isinstance(gain, Tensor) and gain == 1


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    ends = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a in (1, b) for a, b in ends)


def _owned(state: Tensor) -> Tensor:
    """A state that is no view: hosts detach what they carry in place, which views refuse."""
    if state.is_contiguous():
        return torch.ops.aten._unsafe_view(state, state.shape)
    return state.clone()


def _check(x: Tensor, rule: Rule, mask: Tensor | None) -> None:
    check_rule(rule)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise KernelError(f"the input is {kind}: must be a floating-point tensor. Convert it.")
    if x.ndim < 2 or x.shape[0] == 0:
        raise KernelError(
            f"the input has shape {tuple(x.shape)}: must be [T, N, ...] with at least one time "
            "step. Put time first."
        )
    if mask is not None and (mask.shape != x.shape[:3] or mask.device != x.device or x.ndim < 3):
        raise KernelError(
            f"mask of shape {tuple(mask.shape)} on {mask.device}: must be [T, N, C] of the input, "
            f"{tuple(x.shape[:3])} on {x.device}."
        )


def _check_unit(unit: Tensor | float | None) -> None:
    # A tensor's value is not looked at: on another device that would wait for it.
    if unit is not None and not isinstance(unit, Tensor) and not 0 < unit < math.inf:
        raise KernelError(
            f"unit={unit!r}: must be a finite number above 0. Use None for a float membrane."
        )


def _code_bits(inputs: Inputs) -> int:
    """Bits of the code that is kept for the backward pass; 0 where the input itself is kept."""
    bits = saved_bits()
    learning = (inputs.decay, inputs.gain, inputs.mask)
    exact = any(tensor is not None and tensor.requires_grad for tensor in learning)
    needed = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in inputs
    )
    # A gradient of the decay, the gain or the mask needs what the code has forgotten.
    return bits if bits < 32 and needed and not exact else 0
