"""The recurrence as two operators of torch, so that all of its machinery sees one node each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import KernelError
from ..functional.membrane import state_dtype
from . import choice
from .inputs import CODES, Inputs, Needs, Outputs, Wanted
from .rule import Rule

NAMESPACE = "spquant_plugin"
RULE = (
    "str reset, bool detach_reset, bool strict, float rest, str slope, float sharpness, "
    "str threshold_gradient, int lowest, int highest, float[] cut_points, str shape, "
    "float temperature, bool smooth"
)
INPUTS = (
    "Tensor x, Tensor? state, Tensor? fired, Tensor threshold, Tensor decay, Tensor? gain, "
    "Tensor? unit, Tensor? mask"
)
_library = torch.library.Library(NAMESPACE, "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(
    f"membrane({INPUTS}, {RULE}, bool potentials, bool membranes, int code_bits) "
    "-> (Tensor spikes, Tensor final, Tensor potentials, Tensor membranes, Tensor code)",
    tags=_TAGS,
)
_library.define(
    f"membrane_backward({INPUTS}, Tensor? code, {RULE}, Tensor? grad_spikes, Tensor? grad_final, "
    "Tensor? grad_potentials, Tensor? grad_membranes, bool[] needs) -> Tensor[]",
    tags=_TAGS,
)
N_INPUTS, N_RULE = len(Inputs._fields), len(Rule._fields)


def _split(arguments: tuple[Any, ...]) -> tuple[Inputs, tuple[Any, ...]]:
    return Inputs(*arguments[:N_INPUTS]), arguments[N_INPUTS:]


def _rule(values: tuple[Any, ...]) -> Rule:
    rule = Rule(*values)
    return rule._replace(cut_points=tuple(rule.cut_points))


def _filled(tensors: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors only: an empty one stands for none."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, rest = _split(arguments)
    unit = inputs.unit
    # Where it can be looked at without waiting for a device.
    if unit is not None and unit.device.type == "cpu" and not 0 < float(unit) < math.inf:
        raise KernelError(
            f"unit={float(unit)!r}: must be a finite number above 0. Use None for a float membrane."
        )
    outputs, code = choice.forward(inputs, _rule(rest[:N_RULE]), Wanted(*rest[N_RULE:]))
    return _filled((*outputs, code), inputs.x)


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, rest = _split(arguments)
    x, wanted = inputs.x, Wanted(*rest[N_RULE:])
    wide = state_dtype(x)
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[1:], dtype=wide),
        x.new_empty(x.shape, dtype=wide) if wanted.potentials else x.new_empty(0),
        x.new_empty(x.shape, dtype=wide) if wanted.membranes else x.new_empty(0),
        x.new_empty(x.shape, dtype=getattr(torch, CODES[wanted.code_bits]))
        if wanted.code_bits
        else x.new_empty(0),
    )


def _backward(*arguments: Any) -> list[Tensor]:
    inputs, (code, *rest) = _split(arguments)
    rule = _rule(tuple(rest[:N_RULE]))
    *arriving, needs = rest[N_RULE:]
    wanted = Needs(*needs)
    gradients = choice.backward(inputs, code, rule, Outputs(*arriving), wanted)
    given = []
    for name, need in zip(Needs._fields, wanted, strict=True):
        value, gradient = getattr(inputs, name), getattr(gradients, name)
        if need:  # a rule may give a threshold no gradient
            given.append(torch.zeros_like(value) if gradient is None else gradient.to(value.dtype))
    return given


def _backward_fake(*arguments: Any) -> list[Tensor]:
    inputs, rest = _split(arguments)
    x, needs = inputs.x, Needs(*rest[-1])
    wide = state_dtype(x)
    state = x.new_empty(x.shape[1:], dtype=wide)
    shapes = (x, state, inputs.threshold, inputs.decay, inputs.gain, inputs.mask)
    return [
        torch.empty_like(like, memory_format=torch.contiguous_format)
        for like, need in zip(shapes, needs, strict=True)
        if need and like is not None
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, rest = _split(inputs)
    code = output[-1] if rest[-1] else None
    # With a code the input itself is not needed again; its shape and precision come from the code.
    x, *others = tensors
    ctx.save_for_backward(x if code is None else None, *others, code)
    ctx.rule, ctx.x_like = rest[:N_RULE], tensors.x.dtype
    ctx.wanted = Wanted(*rest[N_RULE:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *kept, code = ctx.saved_tensors
    inputs = Inputs(*kept)
    wanted = dict(zip(Inputs._fields, ctx.needs_input_grad, strict=False))
    needs = Needs(*(wanted[name] for name in Needs._fields))
    nothing: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    # What was not wanted is an empty tensor, whose gradient says nothing.
    given = (True, True, ctx.wanted.potentials, ctx.wanted.membranes)
    arriving = [grad if told else None for grad, told in zip(grads, given, strict=False)]
    if all(grad is None for grad in arriving) or not any(needs):
        return tuple(nothing)
    if code is not None:
        # Its values are never read; it says how the gradient is to look.
        inputs = inputs._replace(x=code.new_empty(1, dtype=ctx.x_like).expand(code.shape))
    flat = torch.ops.spquant_plugin.membrane_backward(
        *inputs, code, *ctx.rule, *arriving, list(needs)
    )
    gradients = iter(flat)
    for name, need in zip(Needs._fields, needs, strict=True):
        if need:
            nothing[Inputs._fields.index(name)] = next(gradients)
    return tuple(nothing)


_library.impl("membrane", _forward, "CompositeExplicitAutograd")
_library.impl("membrane_backward", _backward, "CompositeExplicitAutograd")


def _differentiate_twice(ctx: Any, *grads: Any) -> Any:
    raise KernelError(
        "the fused membrane recurrence was differentiated twice: only first derivatives exist, "
        "since surrogates stand for steps. Leave create_graph out, or run neurons step by step."
    )


torch.library.register_fake(f"{NAMESPACE}::membrane", _forward_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::membrane_backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    f"{NAMESPACE}::membrane", _differentiate, setup_context=_setup, lib=_library
)
torch.library.register_autograd(
    f"{NAMESPACE}::membrane_backward", _differentiate_twice, lib=_library
)
