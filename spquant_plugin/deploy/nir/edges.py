"""From what was read at every call to edges, which say the same for every time step."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...errors import ExportError
from .flow import INPUT, Flow, Foreign, Item, Value

Refuse = Callable[[str], ExportError]


def refusal(path: str, module: nn.Module) -> Refuse:
    """Makes the errors of one module, which begin with its path and class."""
    return lambda text: ExportError(f"{path or '(model)'} ({type(module).__name__}) {text}")


def sources(flow: Flow, path: str, refuse: Refuse) -> tuple[str, ...]:
    """The nodes whose results a node adds up and reads, the same ones at every call."""
    calls = flow.calls[path]
    found = [_checked(flow, call.reads, number, path, refuse) for number, call in enumerate(calls)]
    if any(set(names) != set(found[0]) for names in found):
        each = "; ".join(dict.fromkeys(" + ".join(sorted(names)) for names in found))
        raise refuse(
            f"is called {len(calls)} times and reads {each} in turn: a node of NIR has one place "
            "in the network. Give each place a module of its own."
        )
    return found[0]


def _checked(flow: Flow, value: Value, number: int, path: str, refuse: Refuse) -> tuple[str, ...]:
    if isinstance(value, Foreign):
        raise refuse(f"reads the result of {foreign_text(value)}")
    if value is None:
        raise refuse(
            "reads a tensor that comes neither from the input nor from a node: NIR has no "
            "constants. Leave it out, or put it into a bias."
        )
    total = len(flow.calls[path])
    for item in value:
        if item.state:
            raise refuse(
                f"reads the membrane or another state of {item.source}: an edge of NIR carries "
                "spikes or currents only. Read the spikes."
            )
        emitted = flow.cut if item.source == INPUT else len(flow.calls[item.source])
        if not _in_step(item, emitted, number, total):
            raise refuse(
                f"is called {total} times, and at call {number + 1} reads another step or only a "
                f"part of {item.source}: each node of NIR runs once in every step and reads that "
                "step. Give each place a module of its own, and leave no step out."
            )
    return tuple(item.source for item in value)


def _in_step(item: Item, emitted: int | None, number: int, total: int) -> bool:
    """Whether call ``number`` of ``total`` reads the same step, or one call reads all steps."""
    if item.call is None:
        # The whole input may also stay the same in every step.
        return item.source == INPUT or (total == 1 and item.joined == emitted)
    return emitted == total and item.call == number


def foreign_text(value: Foreign) -> str:
    """Which operation stands in the way, where, and what to do."""
    name = value.operation
    if "max_pool" in name:
        remedy = "Use an average pool or a strided convolution instead, and train again."
    elif name in ("aten.mean", "aten.sum"):
        remedy = "Return every step and every number, and reduce them outside."
    elif name in ("aten.copy_", "aten.stack", "aten.cat"):
        remedy = "Collect all steps of one node in their order, by torch.stack."
    else:
        remedy = "Use modules that NIR knows, or leave it out of the exported part."
    return (
        f"{name}, called in {value.where}: between the nodes of NIR there "
        f"are only sums of different nodes and reshapes. {remedy}"
    )


def returned(flow: Flow) -> str:
    """The one node whose results, all of them, the model returns; neuron states do not count."""
    values = [value for value in flow.returned if not _only_states(value)]
    for value in values:
        if isinstance(value, Foreign):
            raise ExportError(f"the model returns the result of {foreign_text(value)}")
    items = [item for value in values if isinstance(value, tuple) for item in value]
    names = sorted({item.source for item in items})
    if None in values or len(names) != 1 or names == [INPUT] or len(items) != len(values):
        found = " and ".join(name for name in names) or "nothing that a node gives"
        raise ExportError(
            f"the model returns {found}: must be the results of one module, which are the output "
            "of a NIR graph. Return only those; a sum needs a layer behind it."
        )
    total = len(flow.calls[names[0]])
    whole = any(item.call is None and item.joined == total for item in items)
    if not whole and {item.call for item in items} != set(range(total)):
        raise ExportError(
            f"the model returns {names[0]} of some of its {total} steps: the output of a NIR graph "
            "is that of every step. Return all of them, by torch.stack."
        )
    return names[0]


def _only_states(value: Value) -> bool:
    return isinstance(value, tuple) and all(item.state for item in value)
