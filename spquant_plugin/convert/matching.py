"""Selectors: which modules a string means.

An exact path (a container's path covers what it holds) goes before ``re:`` and a regular
expression, which is matched from the start of the path; that goes before the name of a class or of
one of its base classes. Of two selectors of one kind the closer one wins: the longer path, the
first expression, the nearer base class.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..errors import SelectionError


@dataclass(frozen=True, order=True)
class Rank:
    """How closely a selector fits; the smallest is the closest."""

    kind: int
    distance: int


def rank(selector: str, path: str, module: nn.Module) -> Rank | None:
    """How closely the selector fits this module; None where it does not."""
    if selector == path:
        return Rank(0, 0)
    if path.startswith(selector + "."):
        return Rank(0, path.count(".") - selector.count("."))
    if selector.startswith("re:"):
        return Rank(1, 0) if _expression(selector).match(path) else None
    names = [base.__name__ for base in type(module).__mro__]
    return Rank(2, names.index(selector)) if selector in names else None


def _expression(selector: str) -> re.Pattern[str]:
    try:
        return re.compile(selector[3:])
    except re.error as error:
        raise SelectionError(
            f"selector {selector!r} is not a regular expression ({error}): what follows 're:' "
            "must be one. Correct it, or give an exact path."
        ) from None


def closest(selectors: Iterable[str], path: str, module: nn.Module) -> str | None:
    """The selector that fits this module best."""
    found = [(fit, s) for s in selectors if (fit := rank(s, path, module)) is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def as_selectors(given: str | Iterable[str] | None, name: str) -> tuple[str, ...] | None:
    """One selector or several, as a tuple."""
    if given is None:
        return None
    selectors = (given,) if isinstance(given, str) else tuple(given)
    for selector in selectors:
        if not isinstance(selector, str) or not selector:
            raise SelectionError(
                f"{name} received {selector!r}: a selector must be a non-empty string, that is an "
                "exact path, 're:' and a regular expression, or a class name."
            )
    return selectors


def unmatched(selectors: Iterable[str], modules: list[tuple[str, nn.Module]]) -> list[str]:
    """Selectors that fit no module."""
    return [s for s in selectors if not any(rank(s, path, module) for path, module in modules)]


def explain_unmatched(selector: str, origin: str, modules: Iterable[tuple[str, nn.Module]]) -> str:
    """Message that names the closest paths and classes."""
    names: dict[str, None] = {}
    for path, module in modules:
        if path:
            names[path] = None
        names[type(module).__name__] = None
    near = difflib.get_close_matches(selector.removeprefix("re:"), names, n=3, cutoff=0.3)
    listed = ", ".join(repr(name) for name in near) or "none"
    return (
        f"{origin}: selector {selector!r} matches no module. Each selector must match one. "
        f"Closest: {listed}. See the paths with spq.plan(model, config) or model.named_modules()."
    )
