"""How a model goes through time: a sequence in one call, one step, or one input again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ...convert.hosts import Hosts
from ...convert.pairing import is_neuron
from ...convert.trace import cannot_run, tensors_in
from ...errors import DeployError

APART = ("aten::select.int", "aten::unbind", "aten::split", "aten::unsafe")
REPEATED = ("aten::repeat", "aten::expand", "aten::stack", "aten::cat")


class _Picks(TorchDispatchMode):
    """How long the first axes are that a run makes or takes apart before it calls a neuron."""

    def __init__(self, calls: dict[str, int], x: Tensor) -> None:
        super().__init__()
        self.calls, self.samples = calls, x.shape[:1]
        self.sizes: set[int] = set()  # of what is taken apart
        self.repeats: set[int] = set()  # how often what follows from the input is shown
        self.follows = WeakTensorKeyDictionary({x: True})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not any(self.calls.values()):
            self._look(func.name(), args, result)
            if any(tensor in self.follows for tensor in tensors_in((args, kwargs))):
                self.follows.update(dict.fromkeys(tensors_in(result), True))
        return result

    def _look(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        first = next(tensors_in(args), None)
        if first is None or first.ndim == 0:
            return
        axis = args[1] if name == "aten::select.int" else 0
        if name.startswith(APART) and axis == 0 and first.ndim > 1:
            self.sizes.add(first.shape[0])
        if name.startswith(REPEATED) and first in self.follows:
            once = first.shape[1:] if first.ndim == result.ndim else first.shape
            new_axis = first.ndim < result.ndim or first.shape[0] == 1
            if new_axis and result.shape[1:] == once and once[:1] == self.samples:
                self.repeats.add(result.shape[0])


def count_steps(copy: nn.Module, model: nn.Module, x: Tensor) -> tuple[str, int]:
    """What the model takes in one call, and how many steps that are."""
    hosts, calls, lengths = Hosts(), {}, set[int]()
    for path, module in copy.named_modules():
        if is_neuron(module, hosts):
            calls[path] = 0
            module.register_forward_pre_hook(_counter(calls, lengths, path))
    if not calls:
        raise DeployError(
            f"{type(model).__name__}: holds no spiking neuron, so there is nothing to lower. Pass "
            "a model of SpikingJelly or snnTorch."
        )
    x = x.clone()
    picks = _Picks(calls, x)
    try:
        with picks:
            copy(x)
    except Exception as error:
        raise cannot_run(model, x, error) from error
    counts = {count for count in calls.values() if count}
    modes = {getattr(copy.get_submodule(path), "step_mode", "s") for path in calls if calls[path]}
    if len(counts) != 1 or (len(modes) > 1 and counts == {1}):
        listed = ", ".join(f"{path or '(model)'} {count}" for path, count in calls.items())
        raise DeployError(
            f"{type(model).__name__}: the sample calls its neurons {listed} times, in step modes "
            f"{sorted(modes)}: all must see the same steps. Call each once per step, in one mode."
        )
    steps = counts.pop()
    if modes == {"m"}:
        if steps > 1:
            raise DeployError(
                f"{type(model).__name__}: calls neurons in step mode 'm' {steps} times: must be "
                "once. Use one neuron for each place."
            )
        shown = lengths & picks.repeats if len(lengths) == 1 else set()
        return ("static", shown.pop()) if shown else ("sequence", x.shape[0])
    if steps in picks.repeats:
        return "static", steps
    apart = steps in picks.sizes and x.shape[0] == steps
    if apart:
        return "sequence", steps
    return ("static" if steps > 1 else "step"), steps


def _counter(calls: dict[str, int], lengths: set[int], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        calls[path] += 1
        lengths.update(tensor.shape[0] for tensor in [*tensors_in(args)][:1] if tensor.ndim)

    return hook


def is_multi_step(model: nn.Module) -> bool:
    """Whether all neurons of a model take whole sequences."""
    hosts = Hosts()
    neurons = [module for module in model.modules() if is_neuron(module, hosts)]
    return all(getattr(module, "step_mode", "s") == "m" for module in neurons)
