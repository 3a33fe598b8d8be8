"""In which precision and modes a trained model runs when integers are compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import DeployError


@contextmanager
def plain_mode() -> Iterator[None]:
    """No gradient, no autocast, no inference mode, whatever surrounds the call.

    Autocast rounds; and inference mode does not show the operations that others are made of.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def precision_of(model: nn.Module) -> torch.dtype:
    """The one precision of a model's numbers: float32 or float64."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = {tensor.dtype: name for name, tensor in tensors if tensor.is_floating_point()}
    for dtype, name in found.items():
        if dtype not in (torch.float32, torch.float64):
            raise DeployError(
                f"{name} is {dtype}, which rounds sums of whole numbers: must be float32 or "
                "float64. Use model.float()."
            )
    return torch.float64 if torch.float64 in found else torch.float32
