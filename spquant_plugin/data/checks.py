"""Checks of what a caller asks of a data set."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable

from ..errors import DataError


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``; names the closest."""
    listed = list(choices)
    if isinstance(value, str) and value in listed:
        return
    near = difflib.get_close_matches(str(value), listed, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{name} = {value!r}: must be one of {', '.join(map(repr, listed))}.{hint}")


def whole_number(name: str, value: object, low: int, high: int) -> None:
    """Raise unless ``value`` is a whole number from ``low`` to ``high``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:  # type: ignore[operator]
        raise DataError(f"{name} = {value!r}: must be a whole number from {low} to {high}.")
