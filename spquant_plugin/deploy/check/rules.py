"""How a broken rule of a graph is told, and the checks that all kinds of nodes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import DeployError

# Whole numbers lie between -LARGEST and LARGEST, so that their sign can be changed in 32 bits.
LARGEST = 2**31 - 1
# Elements of one value of one sample, or of one tensor: 1 GiB in 32 bits.
ELEMENTS = 2**28
NAME = 1000
REMEDY = " spq.to_integer makes graphs that keep every rule; change the one built by hand."


def shown(value: Any) -> str:
    """A received value, short enough for a message."""
    text = repr(value) if not isinstance(value, str) else repr(value[:NAME])
    return text if len(text) <= 80 else f"{text[:77]}..."


def must(holds: bool, where: str, received: Any, rule: str) -> None:
    """Raise unless a rule holds."""
    if not holds:
        raise DeployError(f"{where} = {shown(received)}: must be {rule}.{REMEDY}")


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether this is a plain integer in a range."""
    return type(value) is int and low <= value <= high


def whole(where: str, value: Any, low: int, high: int) -> None:
    """Check an integer."""
    must(is_whole(value, low, high), where, value, f"a whole number from {low} to {high}")


def numbers(where: str, value: Any, count: int, low: int) -> None:
    """Check a tuple of integers of at least ``low``."""
    fits = isinstance(value, tuple) and len(value) == count
    fits = fits and all(is_whole(number, low, LARGEST) for number in value)
    must(fits, where, value, f"{count} whole numbers of at least {low}")


def text(where: str, value: Any, *, empty: bool = False) -> None:
    """Check a name, or words for people."""
    fits = isinstance(value, str) and len(value) <= NAME and (empty or value != "")
    must(fits and value.isprintable(), where, value, f"printable text of at most {NAME} characters")


def whole_tensor(where: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Check type and shape of a tensor, not its numbers."""
    received = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
    must(received == (dtype, shape), where, received, f"a tensor of {dtype} of shape {shape}")
    must(value.device.type in ("cpu", "meta"), where, value.device, "on the CPU")
