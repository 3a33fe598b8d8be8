"""Neurons of a trained model, as tables."""

from __future__ import annotations

from typing import Any

import torch

from ...convert.trace import quiet_copy
from ...errors import DeployError
from ...functional.gates import masked_count
from ...modules.neuron import QuantizedNeuron
from ..bounds import Bounds
from ..graph import Neuron, PixelMask, size
from ..steps import same
from .draft import Draft
from .symbol import Symbol, is_power_of_two
from .tables import Probe, tabulate


def lower_neuron(draft: Draft, path: str, neuron: Any, x: Symbol) -> Symbol:
    """Spikes of a neuron; its whole dynamics become comparisons."""
    _check(neuron, x)
    first = draft.currents.setdefault(path, x)
    if first is not x and not first.same(x, but_time=True):
        raise DeployError(
            "it is called on different values, in one step or from step to step: one neuron must "
            "stand at one place, behind the same layers and factors. Use a neuron of its own for "
            "each place."
        )
    key = ("neuron", path)
    known = draft.known.get(key)
    node = draft.nodes[known] if known else draft.add(key, _tabulated(draft, path, neuron, x))
    unit = torch.ones(1, dtype=torch.float64)
    spikes = Symbol(node.name, x.shape, x.lead, unit, time=x.time)
    if neuron.spike_size == 1:
        return spikes
    if neuron.spike_size > 0 and is_power_of_two(neuron.spike_size):
        return spikes.but(unit=unit * neuron.spike_size)
    factor = torch.tensor(neuron.spike_size, dtype=torch.float64)
    return spikes.but(steps=(("multiply", factor),))


def membrane_symbol(neuron: Any, spikes: Symbol) -> Symbol:
    """The stored membrane, as the model hands it out."""
    steps: list[Any] = [("multiply", neuron.membrane_unit.detach())]
    if neuron.rest:
        steps.append(("add", neuron.membrane_unit.new_tensor(neuron.rest)))
    unit = torch.ones(1, dtype=torch.float64)
    return spikes.but(unit=unit, steps=tuple(steps), reads="membrane")


def _check(neuron: Any, x: Symbol) -> None:
    if not isinstance(neuron, QuantizedNeuron) or neuron.membrane is None:
        raise DeployError(
            "its membrane is float: an integer network stores levels. Convert it with "
            "membrane=spq.TernaryMembrane() or another one."
        )
    several = neuron.several_inputs()
    if several is not None:
        raise DeployError(
            f"{several}: its decision must follow from one sum and its membrane. Use Leaky or "
            "Lapicque without inhibition."
        )
    if x.analogue:
        raise DeployError(
            "it reads the analogue input, which only layers quantise: must read a layer's current."
        )
    if x.over_time is not None or x.reads != "value":
        raise DeployError("it reads a sum over time or a membrane: must read a layer's current.")


def _tabulated(draft: Draft, path: str, neuron: Any, x: Symbol) -> Neuron:
    """The node, which a second look at the same model does not tabulate anew."""
    bounds = draft.bounds(draft.nodes[x.node])
    known = draft.tables.get(path)
    if known is not None and known[0].same(x, but_time=True) and same(known[1], bounds):
        return known[2]
    node = _node(draft, path, neuron, x, bounds)
    draft.tables[path] = x, bounds, node
    return node


def _node(draft: Draft, path: str, neuron: Any, x: Symbol, bounds: Bounds) -> Neuron:
    numbers = (0, 0)
    if x.added is not None:
        numbers = draft.nodes[x.added.node].low, draft.nodes[x.added.node].high
    pixels = _pixels(neuron, x.shape)
    tensors = [*neuron.parameters(), *neuron.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    dtype = torch.promote_types(floats[0].dtype, torch.float32)
    scored = pixels is not None and pixels.score == "current"
    least, most = (bound.expand(x.shape[0]).contiguous() for bound in bounds)
    with quiet_copy(neuron) as copy:
        _check_constants(copy, x, dtype, floats[0].device)
        copy.spatial_gate, copy.watched = None, False  # type: ignore[assignment]
        probe = Probe(copy, x, numbers, scored, dtype, floats[0].device)
        table = tabulate(probe, least, most, x.gate is not None)
    rule = neuron.membrane
    return Neuron(
        name=path,
        inputs=(x.node,) if x.added is None else (x.node, x.added.node),
        shape=x.shape,
        low=0,
        high=1,
        lowest=rule.lowest,
        highest=rule.highest,
        remembers=neuron.remembers,
        sign=table.sign,
        breaks=table.breaks,
        outcomes=table.outcomes,
        counts=None if x.added is None else numbers,
        gate=x.gate,
        closed=table.closed,
        pixels=pixels,
        semantics=_semantics(neuron),
    )


def _check_constants(neuron: Any, x: Symbol, dtype: torch.dtype, device: torch.device) -> None:
    """Decay and threshold may differ between channels, but not between pixels."""
    fault = DeployError(
        "its decay or threshold differs from pixel to pixel: must be one number, or one for each "
        "channel. Share it over space."
    )
    zeros = torch.zeros(1, *x.shape[:1], *[1] * (len(x.shape) - 1), dtype=dtype, device=device)
    try:
        result = neuron.outcome(zeros, zeros, zeros.bool())
    except RuntimeError as error:
        raise fault from error
    if result.spikes.shape != zeros.shape or result.levels.shape != zeros.shape:
        raise fault


def _pixels(neuron: Any, shape: tuple[int, ...]) -> PixelMask | None:
    gate = neuron.spatial_gate
    if gate is None:
        return None
    return PixelMask(gate.score, masked_count(gate.sparsity, size(shape[1:])))


def _semantics(neuron: Any) -> dict[str, str]:
    """What the table came from, for people who read the file."""
    order = "charge, fire, reset, store"
    if neuron.remembers:
        order = "reset of the step before, charge, fire, store"
    if neuron.follows_mint:
        order = "charge, fire, reset, leak, store"
    return {
        "neuron": type(neuron).__name__,
        "reset": neuron.reset_words(),
        "fires": "at the threshold" if neuron.fires_on_threshold else "above the threshold",
        "ties": "the lower level",
        "order": order,
        "membrane": repr(neuron.membrane),
        "unit": repr(float(neuron.membrane_unit)),
    }
