"""Data sets by their names, for scripts that take the name from outside."""

from __future__ import annotations

import difflib
import inspect
import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ..errors import DataError
from .checks import one_of


@dataclass(frozen=True)
class Entry:
    """Where a data set is defined, what its name settles, and whether it is read from a folder."""

    module: str
    name: str
    settled: dict[str, Any] = field(default_factory=dict)
    on_disk: bool = True


SETS = {
    "digits": Entry("digits", "DigitEvents", on_disk=False),
    "motion": Entry("motion", "Motion", on_disk=False),
    "motion-hard": Entry("motion", "Motion", {"level": "hard"}, on_disk=False),
    "dvs-cifar10": Entry("neuromorphic_images", "DVSCIFAR10"),
    "n-caltech101": Entry("neuromorphic_images", "NCaltech101"),
    "dvs-gesture": Entry("dvs_gesture", "DVSGesture"),
    "n-mnist": Entry("neuromorphic_images", "NMNIST"),
    "shd": Entry("shd", "SHD"),
    "n-cars": Entry("ncars", "NCars"),
    "cifar10": Entry("images", "CIFAR10"),
    "cifar100": Entry("images", "CIFAR100"),
    "imagenet": Entry("imagenet", "ImageNet"),
}


def list_datasets() -> list[str]:
    """Names that :func:`create` knows.

    >>> list_datasets()[:3]
    ['cifar10', 'cifar100', 'digits']
    """
    return sorted(SETS)


def create(
    name: str,
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    steps: int,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A data set by its name; ``list_datasets()`` gives all names.

    ``root`` is the folder of a set that is read from disk; "digits" and the textures of "motion"
    take none. ``size`` None is the set's own. ``options`` go to the set, such as ``binary`` for
    events or ``validation`` for sets on disk.

    Raises :class:`~spquant_plugin.errors.DataError` for a name or an option that does not exist,
    with the closest that does, and where ``root`` is missing or too much.

    >>> create("motion-hard", "test", steps=4, count=32, cache=False)
    Motion(32 recordings, 4 steps of 1x16x16, 16 classes)
    """
    one_of("name", name, list_datasets())
    entry = SETS[name]
    made = getattr(import_module(f".{entry.module}", __package__), entry.name)
    arguments = {"steps": steps, "seed": seed, **entry.settled, **options}
    _check_options(name, entry, made, options)
    if size is not None:
        arguments["size"] = _side(size) if not entry.on_disk else size
    if entry.on_disk:
        return made(root, split, **arguments)
    if root is not None:
        raise DataError(
            f"create({name!r}, root={str(root)!r}): this data set comes with the package and is "
            "read from no folder. Leave root out, or pass cache= a folder to keep it there."
        )
    return made(split, **arguments)


def _check_options(name: str, entry: Entry, made: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(made).parameters
    taken = sorted(
        set(parameters) - {"root", "split", "steps", "size", "seed"} - set(entry.settled)
    )
    for option in options:
        if option in entry.settled:
            raise DataError(
                f"create({name!r}, {option}={options[option]!r}): the name settles {option} = "
                f"{entry.settled[option]!r}. Leave it out, or take another name."
            )
        if option not in taken:
            near = difflib.get_close_matches(option, taken, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"create({name!r}, {option}={options[option]!r}): {name} takes no such option. It "
                f"takes {', '.join(taken)}.{hint}"
            )


def _side(size: object) -> object:
    """One number for a square given as a pair, as the sets that come with the package take it."""
    if isinstance(size, tuple | list) and len(size) == 2:
        if size[0] != size[1]:
            raise DataError(
                f"size = {size!r}: this data set has square frames only. Give one whole number."
            )
        return size[0]
    return size
