"""Which node of a network reads whose result, found by running a copy once.

A dry run of ``convert`` tells what reaches a module; an edge of NIR must say more: that nothing but
sums and reshapes happened on the way, and that the result is of the same time step. So here each
tensor carries the results whose sum it is, and what any other operation makes of them is remembered
as foreign, which is an error only where a node reads it or the model returns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ...convert.copying import _held_tensors
from ...convert.trace import _written, as_arguments, cannot_run, tensors_in
from ...errors import ExportError

INPUT = "(input)"
aten = torch.ops.aten
SAME_ORDER = {
    aten.view,
    aten._unsafe_view,
    aten._reshape_alias,
    aten.squeeze,
    aten.unsqueeze,
    aten.clone,
    aten.detach,
    aten.alias,
    aten._to_copy,
    aten.lift_fresh,
}
# What these make has the shape of a result and nothing else of it.
SHAPE_ONLY = {
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.empty_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
}


@dataclass(frozen=True)
class Item:
    """A result of one call of a node; with ``call`` None, of the first ``joined`` calls together.

    ``state`` marks what a neuron keeps, beside what it emits.
    """

    source: str
    call: int | None = None
    state: bool = False
    joined: int = 0


@dataclass(frozen=True)
class Foreign:
    """What an operation that NIR cannot say made of a result, and in which module."""

    operation: str
    where: str


# The results that add up to a tensor.
Value = tuple[Item, ...] | Foreign | None


@dataclass(frozen=True)
class Call:
    """What one call of a node read and gave."""

    reads: Value
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Flow:
    """All calls in order, what the model returned, and how many steps the input was cut into."""

    input_shape: tuple[int, ...]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    returned: list[Value] = field(default_factory=list)
    cut: int | None = None


def follow(model: nn.Module, nodes: Mapping[str, nn.Module], sample: Any) -> Flow:
    """Run ``model``, a copy at rest in eval mode, whose modules ``nodes`` become nodes."""
    sample = tree_map_only(Tensor, Tensor.clone, sample)
    args, kwargs = as_arguments(sample)
    inputs = list(tensors_in(sample))
    if len(inputs) != 1:
        raise ExportError(
            f"sample with {len(inputs)} tensors: a NIR graph of this package has one input. "
            "Export the part of the model that reads a single tensor."
        )
    run = _Run(Flow(tuple(inputs[0].shape)))
    run.mark(inputs[0], (Item(INPUT),))
    for path, module in model.named_modules():
        _watch(path, module, path in nodes, run)
    try:
        with run:
            result = model(*args, **kwargs)
    except ExportError:
        raise
    except Exception as error:
        raise cannot_run(model, sample, error) from error
    run.flow.returned = [run.of.get(tensor) for tensor in tensors_in(result)]
    return run.flow


class _Run(TorchDispatchMode):
    """Passes on what each tensor is the sum of, outside of nodes."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.of = WeakTensorKeyDictionary()
        self.stack: list[str] = []
        self.inside = 0

    def mark(self, tensor: Tensor, value: Value) -> None:
        self.of[tensor] = value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.inside:
            self._pass_on(func, args, kwargs, result)
        return result

    def _pass_on(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        read = [value for t in tensors_in((args, kwargs)) if (value := self.of.get(t)) is not None]
        if not read or func.overloadpacket in SHAPE_ONLY:
            return
        where = self.stack[-1]
        kind, foreign = func.overloadpacket, Foreign(str(func.overloadpacket), where)
        if isinstance(result, bool | int | float):
            raise ExportError(
                f"{where} asks for a value ({kind}) on which its way may depend: a "
                "NIR graph takes the same way for every input. Leave the question out of forward."
            )
        made = [*tensors_in(result)]
        values: list[Value] = [foreign] * len(made)
        if kind is aten.unbind or kind is aten.select:
            values = self._cut(kind, args, kwargs, len(made)) or values
        elif kind in (aten.stack, aten.cat):
            values = [self._joined(args, kwargs) or foreign]
        elif kind in (aten.add, aten.add_):
            values = [self._sum(args, kwargs) or foreign]
        elif kind in SAME_ORDER and _keeps(args[0], made[0]):
            values = [self.of.get(args[0])]
        for tensor, value in zip(made, values, strict=True):
            self.mark(tensor, value)
        for tensor in _written(func, args, kwargs):
            self._overwrite(tensor, values[0] if kind is aten.add_ else foreign, foreign)

    def _overwrite(self, tensor: Tensor, value: Value, foreign: Foreign) -> None:
        """What is written to a tensor is read from everything that shares its memory."""
        memory = tensor.untyped_storage()._cdata
        sharing = [held for held in self.of if held.untyped_storage()._cdata == memory]
        if tensor._base is not None:
            sharing.append(tensor._base)  # a buffer that is filled step by step
        for held in sharing:
            self.mark(held, value if held.numel() == tensor.numel() else foreign)
        self.mark(tensor, value)

    def _cut(self, kind: Any, args: Any, kwargs: Any, count: int) -> list[Value] | None:
        """Steps of the input, taken one by one along its first axis."""
        x = args[0]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if self.of.get(x) != (Item(INPUT),) or dim not in (0, -x.ndim):
            return None
        self.flow.cut = x.shape[0]
        if kind is aten.unbind:
            return [(Item(INPUT, step),) for step in range(count)]
        return [(Item(INPUT, args[2] % x.shape[0]),)]

    def _joined(self, args: Any, kwargs: Any) -> Value:
        """All calls of one node, put side by side in their order."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        parts = [self.of.get(tensor) for tensor in args[0]]
        first = parts[0]
        if dim != 0 or not isinstance(first, tuple) or len(first) != 1:
            return None
        item = first[0]
        wanted = [(Item(item.source, call, item.state),) for call in range(len(parts))]
        return (Item(item.source, None, item.state, len(parts)),) if parts == wanted else None

    def _sum(self, args: Any, kwargs: Any) -> Value:
        left, right = args[0], args[1]
        if (
            not isinstance(right, Tensor)
            or left.shape != right.shape
            or kwargs.get("alpha", 1) != 1
        ):
            return None
        first, second = self.of.get(left), self.of.get(right)
        for known in (first, second):
            if isinstance(known, Foreign):
                return known
        if not isinstance(first, tuple) or not isinstance(second, tuple):
            return None
        # One edge joins two nodes once, so nothing can be added to itself.
        return None if set(first) & set(second) else (*first, *second)


def _keeps(old: Any, new: Tensor) -> bool:
    """Whether a reshape or a copy holds the same numbers in the same order."""
    if not isinstance(old, Tensor) or old.numel() != new.numel():
        return False
    return new.dtype == old.dtype or new.dtype in (torch.float32, torch.float64)


def _watch(path: str, module: nn.Module, is_node: bool, run: _Run) -> None:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        run.stack.append(f"{path or '(model)'} ({type(module).__name__})")
        if is_node:
            if not run.inside:
                _begin(path, module, run, [*tensors_in((args, kwargs))])
            run.inside += 1

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        run.stack.pop()
        if is_node:
            run.inside -= 1
            if not run.inside:
                _end(path, module, run, [*tensors_in((args, kwargs))], [*tensors_in(output)])

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, with_kwargs=True)


def _begin(path: str, module: nn.Module, run: _Run, given: list[Tensor]) -> None:
    for state in given[1:]:
        held = run.of.get(state)
        own = isinstance(held, tuple) and all(item.state and item.source == path for item in held)
        at_rest = held is None and not bool(state.any())
        if not own and not at_rest:
            raise ExportError(
                f"{path} ({type(module).__name__}) is given {_named(held)} as a second argument: a "
                "node of NIR reads one signal and begins at rest. Give a neuron no state but its "
                "own."
            )


def _end(path: str, module: nn.Module, run: _Run, given: list[Tensor], made: list[Tensor]) -> None:
    calls = run.flow.calls.setdefault(path, [])
    x, y = given[0], made[0]
    calls.append(Call(run.of.get(x), tuple(x.shape), tuple(y.shape), x.dtype))
    call, known = len(calls) - 1, {id(tensor) for tensor in given}
    for tensor in (*made[1:], *_states(module)):
        if id(tensor) not in known:
            run.mark(tensor, (Item(path, call, state=True),))
    run.mark(y, (Item(path, call),))


def _states(module: nn.Module) -> Iterable[Tensor]:
    return (tensor for tensor in _held_tensors(module) if not isinstance(tensor, nn.Parameter))


def _named(value: Value) -> str:
    if isinstance(value, Foreign):
        return f"the result of {value.operation}"
    return " + ".join(sorted({item.source for item in value or ()})) or "a constant"
