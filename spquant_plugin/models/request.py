"""What a network is asked for, checked before anything is built."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from torch import nn

from ..errors import ModelError
from ..records import is_finite_number
from .registry import closest

MakeNeuron = Callable[[], nn.Module]
P = ParamSpec("P")
R = TypeVar("R")


def known_options_only(function: Callable[P, R]) -> Callable[P, R]:
    """Let an option that does not exist name the closest one that does."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for option in options:
            if option not in known:
                raise ModelError(
                    f"{function.__name__} received unknown option {option!r}: it takes "
                    f"{', '.join(known)}. Closest: {closest(option, known)}."
                )
        return function(*args, **options)

    return checked


@dataclass(frozen=True)
class Request:
    """The checked arguments of ``create``."""

    name: str
    in_channels: int
    height: int
    width: int
    num_classes: int
    neuron: MakeNeuron | None
    factor: float  # for every hidden channel count

    @classmethod
    def checked(
        cls,
        name: str,
        in_channels: int,
        size: int | tuple[int, int],
        num_classes: int,
        neuron: MakeNeuron | None,
        factor: float,
    ) -> Request:
        """Refuse what no network can take."""
        sides = size if isinstance(size, tuple | list) else (size, size)
        if len(sides) != 2 or not all(is_count(side) for side in sides):
            raise ModelError(
                f"create({name!r}, size={size!r}): must be a whole number above 0, or the pair "
                "(height, width) of two. For example size=48 or size=(48, 64)."
            )
        for option, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if not is_count(value):
                raise ModelError(
                    f"create({name!r}, {option}={value!r}): must be a whole number above 0. "
                    f"For example {option}=2."
                )
        if not is_finite_number(factor) or factor <= 0:
            raise ModelError(
                f"create({name!r}, width={factor!r}): must be a finite number above 0, by which "
                "every hidden channel count is multiplied. For example width=0.5."
            )
        height, width = map(int, sides)
        return cls(name, int(in_channels), height, width, int(num_classes), neuron, float(factor))

    def require_size(self, shrinks: int) -> None:
        """Refuse a size of which the network would leave nothing."""
        if min(self.height, self.width) < shrinks:
            raise ModelError(
                f"create({self.name!r}, size=({self.height}, {self.width})): {self.name} shrinks "
                f"height and width by {shrinks}, so both must be at least {shrinks}. Use a larger "
                "size or a network that shrinks less."
            )

    def channels(self, count: int) -> int:
        """A hidden channel count, times the width that was asked for."""
        return max(1, round(count * self.factor))


def is_count(value: object) -> bool:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and int(value) > 0  # type: ignore[call-overload]
