"""The neurons of a network: made one by one by what the user gave, and each one checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import ModelError
from .request import MakeNeuron, Request


class Neurons:
    """Makes the neurons of one network.

    ``fault`` says of a neuron why this host's networks cannot use it, or nothing; ``example`` is
    an expression that gives a right one.
    """

    def __init__(
        self,
        request: Request,
        default: MakeNeuron,
        fault: Callable[[Any], str | None],
        example: str,
    ) -> None:
        self.make = default if request.neuron is None else request.neuron
        self.fault = fault
        self.where = f"create({request.name!r}, neuron={_describe(request.neuron)})"
        self.rule = (
            "must be a class or another callable without arguments that returns a new neuron at "
            f"each call. For example neuron={example}."
        )
        self.made: list[object] = []
        if isinstance(self.make, nn.Module) or not callable(self.make):
            raise ModelError(f"{self.where}: {self.rule}")
        self._require_no_arguments()

    def _require_no_arguments(self) -> None:
        try:
            inspect.signature(self.make).bind()
        except TypeError as error:
            raise ModelError(f"{self.where}: {error}, but it {self.rule}") from None
        except ValueError:  # written in C, without a signature: the call will tell
            return

    def __call__(self) -> nn.Module:
        neuron = self.make()
        fault = self.fault(neuron)
        if any(neuron is other for other in self.made):
            fault = f"returned the same {type(neuron).__name__} twice"
        if fault is not None:
            raise ModelError(f"{self.where} {fault}: it {self.rule}")
        self.made.append(neuron)
        return neuron


def _describe(given: object) -> str:
    if isinstance(given, nn.Module):
        return f"<an instance of {type(given).__name__}>"
    return given.__name__ if isinstance(given, type) else repr(given)
