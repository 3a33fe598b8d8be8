"""What stops a training, as types a caller can catch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from spquant_plugin.errors import SpQuantError


class OptionError(SpQuantError, ValueError):
    """An option has a value outside its rule, or two do not go together."""


class TrainingError(SpQuantError, RuntimeError):
    """A training cannot go on."""


def one_of(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``; names the closest."""
    listed = list(choices)
    if value in listed:
        return
    near = difflib.get_close_matches(value.lower(), listed, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{option} {value}: must be one of {', '.join(listed)}.{hint}")
