"""What training keeps for the backward pass, measured on one training forward of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_map_only

from ..convert.trace import as_arguments, cannot_run, quiet_copy
from ..errors import SpQuantError
from .dry_run import call_model
from .memory import MemoryReport


def saved_for_backward(model: nn.Module, sample: Any, timesteps: int | None) -> dict[str, int]:
    """Bytes that the graph of one forward in training mode holds, by the module that saved them.

    Parameters and buffers are there anyway and do not count; memory that several operations save
    counts once, at the first. Between two modules it counts at the one around them. Weights that
    are quantised in the forward pass do count, once for the batch: for more samples there is less
    of them for each.
    """
    # Within a caller's inference mode nothing would be saved.
    with torch.inference_mode(False), quiet_copy(model) as copy:
        args, kwargs = as_arguments(tree_map_only(Tensor, Tensor.clone, sample))
        ledger = _Ledger(copy.train())
        try:
            with (
                ledger.listening(),
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(ledger.save, ledger.load),
            ):
                call_model(copy, timesteps, args, kwargs)
        except SpQuantError:
            raise  # it says itself what is wrong
        except Exception as error:
            raise cannot_run(model, sample, error, "training forward: ") from error
        return ledger.saved


class _Ledger:
    """Who is running, and what was saved meanwhile."""

    def __init__(self, model: nn.Module) -> None:
        self.saved: dict[str, int] = {}
        self.running = [""]
        held = (*model.parameters(), *model.buffers())
        # By the address of their memory, which views share. What is saved stays alive in ``kept``,
        # so that no address is used twice.
        self.known = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.kept: list[torch.UntypedStorage] = []
        self.paths = {id(module): path for path, module in model.named_modules()}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of every call. A module with hooks of its own may compute in another way."""
        handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(self.paths.get(id(module), self.running[-1]))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def save(self, tensor: Tensor) -> Tensor:
        """What autograd calls with all that it saves."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.kept.append(storage)
            path = self.running[-1]
            self.saved[path] = self.saved.get(path, 0) + storage.nbytes()
        return tensor

    @staticmethod
    def load(tensor: Tensor) -> Tensor:
        """What autograd would read it back with."""
        return tensor


def with_training(held: MemoryReport, saved: dict[str, int], batch: int) -> MemoryReport:
    """Enter what each module saved into its row, or into that of the module around it."""
    rows = {row.path: 0 for row in held}
    for path, size in saved.items():
        outer = path
        while outer not in rows and outer:
            outer = outer.rpartition(".")[0]
        if outer in rows:
            rows[outer] += size
    layers = tuple(replace(row, saved_bytes=rows[row.path] / batch) for row in held)
    return replace(held, layers=layers, training_bytes=sum(saved.values()) / batch)
