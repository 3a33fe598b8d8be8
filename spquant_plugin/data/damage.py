"""Recordings that cannot be read: left out, counted and named, never in silence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..errors import DataWarning

NAMED = 3


def warn_of(
    name: str,
    damaged: Sequence[tuple[str, str]],
    total: int,
    *,
    items: str = "recordings",
    stacklevel: int = 4,
) -> None:
    """Say how many of ``total`` were left out, which the first ones are, and why.

    ``damaged`` holds pairs of path and reason; nothing is said where it is empty. ``stacklevel`` is
    that of :func:`warnings.warn`: 4 is who calls a constructor whose method calls this function.
    """
    if not damaged:
        return
    first = "; ".join(f"{path}: {reason}" for path, reason in damaged[:NAMED])
    more = "; ..." if len(damaged) > NAMED else ""
    verb = "is" if len(damaged) == 1 else "are"
    past = "was" if len(damaged) == 1 else "were"
    warnings.warn(
        f"{name}: {len(damaged):,} of {total:,} {items} {verb} damaged and {past} left out: "
        f"{first}{more}. See data.damaged for all of them. Get these files anew to have them back.",
        DataWarning,
        stacklevel=stacklevel,
    )
