"""Which layers are compared, and whether two networks can be compared there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ..errors import DistillationError
from .networks import Potentials

STAGES, ALL = "stages", "all"


def check_layers(layers: object) -> str | tuple[str, ...]:
    """``"stages"``, ``"all"`` or paths."""
    if isinstance(layers, str) and layers in (STAGES, ALL):
        return layers
    paths = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else []
    if paths and all(isinstance(path, str) for path in paths):
        return tuple(dict.fromkeys(paths))
    raise DistillationError(
        f"DistillationLoss(layers={layers!r}): must be 'stages', 'all' or a list of paths with at "
        "least one. Pass paths as named_modules() prints them, or layers='stages'."
    )


def check_paths(
    layers: str | tuple[str, ...], teacher: Sequence[str], student: Sequence[str]
) -> list[str]:
    """Paths that both networks have, or an error that names those that only one of them has."""
    if isinstance(layers, tuple):
        for role, known in (("teacher", teacher), ("student", student)):
            unknown = [path for path in layers if path not in known]
            if unknown:
                close = difflib.get_close_matches(unknown[0], known, 3, 0.3)
                raise DistillationError(
                    f"layers: {unknown[0]!r} is no spiking neuron of the {role}: each path must be "
                    f"one of both networks. Closest are {', '.join(close) or 'none'}."
                )
        return list(layers)
    missing = [path for path in teacher if path not in student]
    extra = [path for path in student if path not in teacher]
    if missing or extra:
        parts = [
            f"{who} has {', '.join(path or '(model)' for path in paths)}"
            for who, paths in (("only the teacher", missing), ("only the student", extra))
            if paths
        ]
        raise DistillationError(
            f"teacher and student hold other neurons: {'; '.join(parts)}: with layers={layers!r} "
            "both must have the same. Pass layers=[...] with paths that both have."
        )
    if not student:
        raise DistillationError(
            "teacher and student hold no spiking neuron: there must be at least one whose "
            "potential is compared. Pass networks with neurons, or membrane_weight=0."
        )
    return list(student)


def choose(layers: str | tuple[str, ...], seen: Potentials) -> list[str]:
    """Paths to compare, in the order of the calls, of what the teacher's forward showed.

    A stage is all neurons whose steps have one spatial shape; without space, one number of
    features. The last of them ends it.
    """
    if layers != STAGES:
        missing = [path for path in layers if path not in seen] if layers != ALL else []
        if missing:
            raise DistillationError(
                f"layers: {missing[0]!r} was not called in the teacher's forward, so it has no "
                "potential: must be called. Leave it out of layers."
            )
        return list(seen)
    last: dict[tuple[int, ...], str] = {}
    for path, potentials in seen.items():
        channels, *space = potentials.shape[2:] or (1,)
        last[tuple(space) or (-channels,)] = path  # below 0, so that no space has this shape
    return [path for path in seen if path in last.values()]


def check_shapes(paths: list[str], teacher: Potentials, student: Potentials, mode: str) -> None:
    """Refuse potentials that cannot be subtracted, with the shapes of both."""
    for role, seen in (("teacher", teacher), ("student", student)):
        silent = [path for path in paths if path not in seen]
        if silent:
            raise DistillationError(
                f"{silent[0]} was not called in the {role}'s forward, so it has no potential: "
                "both networks must call it. Leave it out of layers."
            )
    wrong = []
    for path in paths:
        ours, theirs = tuple(student[path].shape), tuple(teacher[path].shape)
        # Time may differ; the rest too where only the channels' distributions are compared.
        same = ours[1:] == theirs[1:]
        if mode == "distribution":
            same = len(ours) > 2 and len(theirs) > 2 and ours[2] == theirs[2]
        if not same:
            wrong.append(f"{path} {theirs} and {ours}")
    if wrong:
        rule = "channels must agree" if mode == "distribution" else "only time may differ"
        raise DistillationError(
            "potentials [T, N, C, ...] of teacher and student have other shapes: "
            f"{'; '.join(wrong)}: {rule}. Pass both the same batch, and layers=[...] with paths "
            "whose shapes agree."
        )
