"""What a network keeps beside its engine, in as few bytes as that takes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .graph import Graph


class WeakGraph:
    """A graph for as long as somebody else holds it; a copy begins empty."""

    def __init__(self) -> None:
        self._held: weakref.ref[Graph] | None = None

    def get(self) -> Graph | None:
        return None if self._held is None else self._held()

    def set(self, graph: Graph) -> Graph:
        self._held = weakref.ref(graph)
        return graph

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakGraph, ()


def narrow(whole: Tensor) -> Tensor:
    """The same whole numbers, as bytes where that holds them.

    >>> narrow(torch.tensor([0, 1])).dtype, narrow(torch.tensor([-1, 1])).dtype
    (torch.uint8, torch.int64)
    """
    if whole.numel() and int(whole.min()) >= 0 and int(whole.max()) <= 255:
        return whole.to(torch.uint8)
    return whole
