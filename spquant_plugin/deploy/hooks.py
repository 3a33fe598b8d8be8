"""Hooks of the user, which may change values that nobody could follow."""

from __future__ import annotations

from torch import nn

from ..convert.trace import _acts
from ..errors import DeployError


def refuse_hooks(model: nn.Module) -> None:
    """Refuse a model whose modules hold forward hooks, but for those of its own gates.

    A copy runs without them, because they report to the outside; but they may also change what a
    module reads or returns, and only running them would tell.
    """
    modules = set(model.modules())
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not _acts(hook, modules):
                name = getattr(hook, "__qualname__", type(hook).__name__)
                raise DeployError(
                    f"{path or '(model)'} ({type(module).__name__}): holds the forward hook "
                    f"{name}, which may change values: must hold none. Remove it (a monitor: "
                    "remove its hooks), and put it back afterwards."
                )
