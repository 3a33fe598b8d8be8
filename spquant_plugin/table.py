"""Plain text tables, never shortened."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, with a rule under the header.

    >>> print(render(("name", "bits"), [("conv", "2"), ("lif", "1.58")]))
    name  bits
    ----  ----
    conv  2
    lif   1.58
    """
    lines = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (lines[0], rule, *lines[1:])
    )


def no_such_row(path: str, paths: Sequence[str]) -> str:
    """Message for a row that a table does not have."""
    near = difflib.get_close_matches(path, paths, n=3, cutoff=0.3)
    listed = ", ".join(map(repr, near)) or "none"
    return f"{path!r} has no row here. Closest: {listed}. Print the table to see every path."
