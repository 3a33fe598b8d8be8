"""A network as a plain stack of layers whose paths can be read: conv1, norm1, neuron1, pool1."""

from __future__ import annotations

from collections import Counter, OrderedDict

from torch import nn


class Stack:
    """Collects layers in order and numbers each kind from 1.

    >>> Stack().add("fc", nn.Linear(2, 3)).add("fc", nn.Linear(3, 1)).network()
    Sequential(
      (fc1): Linear(in_features=2, out_features=3, bias=True)
      (fc2): Linear(in_features=3, out_features=1, bias=True)
    )
    """

    def __init__(self) -> None:
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, module: nn.Module) -> Stack:
        self.counts[kind] += 1
        self.layers[f"{kind}{self.counts[kind]}"] = module
        return self

    def network(self) -> nn.Sequential:
        return nn.Sequential(self.layers)
