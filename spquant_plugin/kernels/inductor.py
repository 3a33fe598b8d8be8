"""The recurrence compiled by torch for a GPU: one kernel for all steps, states in registers.

Unrolled over the steps, so it is compiled once for each number of them; the number of neurons is a
variable. Rounding is torch's own: nothing is contracted, and divisions are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import TritonMissing

from . import eager
from .build import NoCompiler
from .inputs import Gradients, Inputs, Needs, Outputs, Wanted
from .rule import Rule

OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,  # also switches the contraction of Triton off
    "eager_numerics.division_rounding": True,
    "cpp.enable_floating_point_contract_flag": "off",
}


def forward(inputs: Inputs, rule: Rule, wanted: Wanted) -> tuple[Outputs, Tensor | None]:
    """As :func:`eager.forward`, in one kernel."""
    kind = _kind(inputs, wanted)
    compiled = _compiled(eager.forward, rule, inputs.x.shape[0], kind)
    return compiled(_marked(inputs), rule, wanted)


def backward(
    inputs: Inputs, code: Tensor | None, rule: Rule, arriving: Outputs, needs: Needs
) -> Gradients:
    """As :func:`eager.backward`, in one kernel."""
    kind = _kind(inputs, code, arriving, needs)
    compiled = _compiled(eager.backward, rule, inputs.x.shape[0], kind)
    return compiled(_marked(inputs), _variable(code), rule, _marked(arriving), needs)


@cache
def _compiled(
    function: Callable[..., Any], rule: Rule, steps: int, kind: tuple[Any, ...]
) -> Callable[..., Any]:
    # A copy of the code for each: torch limits how often one piece of code is compiled, and layers
    # of one rule may differ in all that makes it compile anew.
    code = function.__code__.replace(co_name=f"{function.__name__}_{steps}_steps")
    own = FunctionType(code, function.__globals__, code.co_name)
    known = torch._inductor.config.get_config_copy()
    options = {name: value for name, value in OPTIONS.items() if name in known}
    compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)

    def run(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except (BackendCompilerFailed, TritonMissing) as error:
            raise NoCompiler(str(error).strip().splitlines()[0], gpu=True) from error

    return run


def _kind(*values: Any) -> tuple[Any, ...]:
    """All that compiled code depends on besides the values and the number of neurons."""
    flat: list[Any] = [torch.is_grad_enabled()]
    for value in values:
        flat.extend(value if isinstance(value, tuple) else (value,))
    return tuple(_look(value) if isinstance(value, Tensor) else value for value in flat)


def _look(tensor: Tensor) -> tuple[Any, ...]:
    last = min(tensor.shape[-1], 2) if tensor.ndim else 0  # up to 1, a size is no variable
    apart = tensor.is_contiguous() or tuple(stride > 0 for stride in tensor.stride())
    return tensor.dtype, tensor.device, tensor.ndim, last, apart, tensor.requires_grad


def _marked(tensors: Any) -> Any:
    return type(tensors)(*(_variable(tensor) for tensor in tensors))


def _variable(tensor: Tensor | None) -> Tensor | None:
    """Let the number of neurons vary without compiling anew."""
    if tensor is not None and tensor.ndim and tensor.shape[-1] > 1:
        torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 1)
    return tensor
