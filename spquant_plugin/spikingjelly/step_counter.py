"""A step counter that SpikingJelly resets with the network, in either step mode."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import base

from ..modules import step_counter


class StepCounter(step_counter.StepCounter, base.MemoryModule):
    """Counts the calls of a layer in step mode "s"; in mode "m" there is nothing to count.

    >>> from spikingjelly.activation_based import functional
    >>> counter = StepCounter()
    >>> counter.next(4), counter.next(4)
    (0, 1)
    >>> functional.reset_net(counter)
    >>> counter.next(4)
    0
    """

    def __init__(self) -> None:
        super().__init__()
        memory: Any = self  # whose functions are not annotated
        memory.register_memory("position", 0)

    @property
    def step(self) -> int:
        memory: Any = self
        return int(memory._memories["position"])

    @step.setter
    def step(self, value: int) -> None:
        memory: Any = self
        memory._memories["position"] = value

    @property
    def takes_sequences(self) -> bool:
        return self.step_mode == "m"

    def reset(self) -> None:
        memory: Any = super()
        memory.reset()
        self.held = None
