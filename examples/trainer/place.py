"""Where a run is, and what each of its processes keeps to go on from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .checkpoint import random_states, restore_random
from .meter import Meter
from .processes import Processes


@dataclass
class Place:
    """The stage, the epoch in it and the step in that, all counted from 0."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    # Of the stage's best network so far: whether its gates close their share, and its accuracy.
    best: list[float] = field(default_factory=lambda: [-1.0, -1.0])


def own_state(meters: dict[str, Meter]) -> dict[str, Any]:
    """What differs between processes: random generators, and sums since the last lines."""
    return {
        "random": random_states(),
        "sums": {name: meter.sums.cpu() for name, meter in meters.items()},
    }


def restore(
    states: list[dict[str, Any]], meters: dict[str, Meter], processes: Processes
) -> str | None:
    """Undo :func:`own_state`, given all processes' states; what there is to say of it."""
    same = len(states) == processes.world
    if same:
        restore_random(states[processes.rank]["random"])
    own = states[processes.rank : processes.rank + 1] if same else states
    for name, meter in meters.items():
        if same or processes.is_main:
            for state in own:
                meter.sums += state["sums"][name].to(meter.sums.device)
    if same:
        return None
    return (
        f"the run had {len(states)} processes and now has {processes.world}: it goes on, but not "
        "to the same last digits"
    )
