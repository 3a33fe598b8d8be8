"""What a neuron's potential was before it fired, for who wants to look while a network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# Takes potentials, and whether they are those of all steps ``[T, N, ...]`` or of one ``[N, ...]``.
Keep = Callable[[Tensor, bool], None]
Undo = Callable[[], None]


def watch_quantized(neuron: nn.Module, keep: Keep) -> Undo:
    """Hand on the potentials that a neuron of this package computes, gradient included.

    All its forwards end in one of two methods, one step or all of them, which are watched.
    """
    own: Any = neuron
    decide, run_fused = own._decide, own.run_fused

    def one_step(*args: Any, **kwargs: Any) -> Any:
        result = decide(*args, **kwargs)
        keep(result[0], False)
        return result

    def all_steps(*args: Any, **kwargs: Any) -> Any:
        result = run_fused(*args, **{**kwargs, "potentials": True})
        keep(result.potentials, True)
        return result

    return replace_methods(neuron, _decide=one_step, run_fused=all_steps)


def replace_methods(module: nn.Module, **methods: Callable[..., Any]) -> Undo:
    """Have this one module use other methods until the function that comes back is called."""
    # Not by setattr: what was there may itself stand for the class's method.
    held = vars(module)
    before = {name: held[name] for name in methods if name in held}
    held.update(methods)

    def undo() -> None:
        for name in methods:
            held.pop(name, None)
        held.update(before)

    return undo
