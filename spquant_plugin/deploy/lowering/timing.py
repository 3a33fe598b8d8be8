"""How a model goes through time: a sequence in one call, one step, or one input again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...convert.hosts import Hosts
from ...convert.pairing import is_neuron
from ...convert.trace import cannot_run
from ...errors import DeployError


class _Picks(TorchDispatchMode):
    """How long the first axes are that a run takes apart before it calls its first neuron."""

    def __init__(self, calls: dict[str, int]) -> None:
        super().__init__()
        self.calls = calls
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        apart = name.startswith(("aten::select.int", "aten::unbind", "aten::split", "aten::unsafe"))
        first = args[0] if args else None
        axis = args[1] if name == "aten::select.int" else 0
        taken = apart and axis == 0 and isinstance(first, Tensor) and first.ndim > 1
        if isinstance(first, Tensor) and taken and not any(self.calls.values()):
            self.sizes.add(first.shape[0])
        return func(*args, **(kwargs or {}))


def count_steps(copy: nn.Module, model: nn.Module, x: Tensor) -> tuple[str, int]:
    """What the model takes in one call, and how many steps that are."""
    hosts, calls = Hosts(), {}
    for path, module in copy.named_modules():
        if is_neuron(module, hosts):
            calls[path] = 0
            module.register_forward_pre_hook(_counter(calls, path))
    if not calls:
        raise DeployError(
            f"{type(model).__name__}: holds no spiking neuron, so there is nothing to lower. Pass "
            "a model of SpikingJelly or snnTorch."
        )
    picks = _Picks(calls)
    try:
        with picks:
            copy(x.clone())
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
        return "sequence", x.shape[0]
    apart = steps in picks.sizes and x.shape[0] == steps
    if apart:
        return "sequence", steps
    return ("static" if steps > 1 else "step"), steps


def _counter(calls: dict[str, int], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        calls[path] += 1

    return hook


def is_multi_step(model: nn.Module) -> bool:
    """Whether all neurons of a model take whole sequences."""
    hosts = Hosts()
    neurons = [module for module in model.modules() if is_neuron(module, hosts)]
    return all(getattr(module, "step_mode", "s") == "m" for module in neurons)
