"""Data sets that are read from disk: where their files must be, and what to do if they are not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Layout:
    """What someone needs to know to put a data set where it is found.

    ``name`` is the set's, ``size`` what it takes on disk, ``source`` where it comes from, ``tree``
    its folders below ``root``, one a line.
    """

    name: str
    size: str
    source: str
    tree: str


def require_folder(
    root: str | os.PathLike[str] | None,
    layout: Layout,
    needed: Iterable[str],
    inside: Iterable[str] = (),
) -> Path:
    """The folder that holds a data set: ``root``, or one of the folders ``inside`` of it.

    It must have a match for each glob pattern of ``needed``. Raises a :class:`DataError` that says
    where to put what, how large it is and where it comes from; nothing is ever downloaded.

    >>> layout = Layout("Pairs", "2 kB", "https://example.org", "left/*.bin\\nright/*.bin")
    >>> require_folder("/nowhere", layout, ["left/*.bin", "right/*.bin"])
    Traceback (most recent call last):
    spquant_plugin.errors.DataError: root = '/nowhere': no such folder. Pairs (2 kB) is read from...
    """
    if not isinstance(root, str | os.PathLike) or not str(root):
        raise DataError(f"root = {root!r}: must be the folder of {layout.name}. {_remedy(layout)}")
    base, needed = Path(root).expanduser(), tuple(needed)
    if not base.exists():
        raise DataError(f"root = {str(root)!r}: no such folder. {_remedy(layout)}")
    if not base.is_dir():
        raise DataError(f"root = {str(root)!r}: a file, not a folder. {_remedy(layout)}")
    for folder in (base, *(base / name for name in inside)):
        if all(_matches(folder, pattern) for pattern in needed):
            return folder
    missing = ", ".join(pattern for pattern in needed if not _matches(base, pattern))
    raise DataError(f"root = {str(root)!r}: the folder has no {missing}. {_remedy(layout)}")


def _matches(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _remedy(layout: Layout) -> str:
    lines = "\n".join(f"    root/{line}" for line in layout.tree.splitlines())
    return (
        f"{layout.name} ({layout.size}) is read from disk and never downloaded. Get it from "
        f"{layout.source}, unpack it and give the folder as root that looks like this:\n{lines}"
    )
