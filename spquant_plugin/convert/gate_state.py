"""Whether a stored schedule of gates fits the one that is to go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import GateError

NAME = "GateSchedule.load_state_dict"
SETTINGS = ("target", "steps", "warmup", "spread", "rate", "pace")
PARTS = ("settings", "taken", "importance", "closed", "gates")


def check_state(
    state: Any,
    settings: Mapping[str, float],
    gates: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
) -> None:
    """Refuse a state of other settings or another network, or one that is damaged.

    ``gates`` are the parameters of this network's gates by name, ``importance`` what is measured of
    each gate, by its path.
    """
    given = list(state) if isinstance(state, Mapping) else [type(state).__name__]
    missing = [name for name in PARTS if name not in given]
    if missing or not isinstance(state, Mapping):
        raise GateError(
            f"{NAME}: received {', '.join(map(str, given)) or 'nothing'}: must hold "
            f"{missing[0]!r} too. Pass what state_dict() returned."
        )
    for name in PARTS:
        if name != "taken" and not isinstance(state[name], Mapping):
            raise GateError(
                f"{NAME}: {name} = {state[name]!r}: must map names to values. Pass what "
                "state_dict() returned."
            )
    _check_settings(state["settings"], settings)
    _check_shapes("gates", state["gates"], gates)
    taken, last = state["taken"], int(settings["steps"])
    if type(taken) is not int or taken < 0:
        raise GateError(
            f"{NAME}: taken = {taken!r}: must be a whole number from 0 on (of {last} steps). Pass "
            "what state_dict() returned."
        )
    measured = taken and settings["warmup"]
    _check_shapes("importance", state["importance"], importance if measured else {})
    steered = taken > settings["warmup"]
    scalars = {path: bias.new_empty(()) for path, bias in importance.items()}
    _check_shapes("closed", state["closed"], scalars if steered else {})


def _check_settings(received: Mapping[str, float], settings: Mapping[str, float]) -> None:
    for name, value in settings.items():
        if received.get(name) != value:
            raise GateError(
                f"{NAME}: the state is of a schedule with {name}={received.get(name)!r}, and this "
                f"one has {name}={value!r}: must be the same. Make the schedule with the arguments "
                "that it had."
            )


def _check_shapes(part: str, received: Any, wanted: Mapping[str, Tensor]) -> None:
    found = {path: tuple(getattr(value, "shape", ("?",))) for path, value in received.items()}
    shapes = {path: tuple(value.shape) for path, value in wanted.items()}
    for path in {**shapes, **found}:
        if found.get(path) != shapes.get(path):
            raise GateError(
                f"{NAME}: {part} hold {_told(path, found)}: must hold {_told(path, shapes)}, as "
                "this network's do. Load the state of a schedule of this very network."
            )


def _told(path: str, shapes: Mapping[str, tuple[Any, ...]]) -> str:
    return f"{path} of shape {shapes[path]}" if path in shapes else f"no {path}"
