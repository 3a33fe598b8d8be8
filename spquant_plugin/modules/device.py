"""Where a module lives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def device_of(module: nn.Module) -> Any:
    """Device of a module's first parameter or buffer, or None."""
    tensors: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    return next((tensor.device for tensor in tensors), None)
