r"""The recurrence in plain torch, step by step: the reference of every other provider.

.. math::

    u_t &= r + \lambda (m_{t-1} - r) + \kappa x_t, \qquad s_t = 1[u_t \ge V] \\
    v_t &= (1 - s_t) u_t + s_t r \;\text{(hard)}, \quad u_t - V s_t \;\text{(soft)}, \qquad
    m_t = r + \delta\, Q((v_t - r)/\delta)

Late resets act on the next step's potential instead. Backward, with :math:`g_a = dL/da`,
:math:`f` the firing slope and :math:`q` the stacked one:

.. math::

    g_v &= g_m\, q((v - r)/\delta), \qquad g_s \leftarrow g_s + g_v\, \partial v/\partial s, \qquad
    g_u = g_v\, \partial v/\partial u + g_s f(u - V) \\
    g_x &= \kappa\, g_u, \qquad g_{m_{t-1}} = \lambda\, g_u, \qquad
    g_V = -\textstyle\sum g_s f(u - V) \cdot \text{window}

The backward pass keeps the input alone and goes through the steps again; or it keeps a code of 8 or
16 bits for each step's distance to the threshold, and needs nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import membrane as fm
from ..functional import surrogate as fs
from ..functional.membrane import state_dtype
from . import slopes
from .inputs import CELLS, CODES, Gradients, Inputs, Needs, Outputs, Wanted
from .rule import Rule


class _Step(NamedTuple):
    """One step as it went."""

    current: Tensor  # the input that is left by the mask
    before: Tensor  # membrane that the step began with
    fired: Tensor | None  # late reset that it began with
    potential: Tensor
    spike: Tensor
    membrane: Tensor


def forward(inputs: Inputs, rule: Rule, wanted: Wanted) -> tuple[Outputs, Tensor | None]:
    """Spikes, last membrane and what else is wanted; and the code for the backward pass."""
    steps = _run(inputs, rule)
    outputs = Outputs(
        torch.stack([step.spike for step in steps]).to(inputs.x.dtype),
        steps[-1].membrane.clone(),  # without a quantiser it may be the potential itself
        torch.stack([step.potential for step in steps]) if wanted.potentials else None,
        torch.stack([step.membrane for step in steps]) if wanted.membranes else None,
    )
    return outputs, _encode(steps, inputs, rule, wanted.code_bits) if wanted.code_bits else None


def _run(inputs: Inputs, rule: Rule) -> list[_Step]:
    x, threshold = inputs.x, inputs.threshold
    wide = state_dtype(x)
    membrane = inputs.state
    if membrane is None:
        membrane = torch.full_like(x[0], rule.rest, dtype=wide)
    lowest = _lowest_fired(inputs, rule)
    fired = None
    if rule.late:
        fired = _remembered(inputs.fired, membrane, lowest)
        # Without one nothing has fired; but dropping 0 times an infinite potential is not nothing.
        fired = torch.zeros_like(membrane) if fired is None else fired
    steps = []
    for t in range(x.shape[0]):
        current = _gated(x[t].to(wide), inputs.mask, t)
        potential = _charge(current, membrane, fired, inputs, rule)
        distance = potential - threshold
        spike = (
            slopes.smooth_spike(distance, rule) if rule.smooth else fs.fires(distance, rule.strict)
        )
        left = potential
        if rule.reset == "hard":
            left = fm.hard_reset(potential, spike, rule.rest)
        elif rule.reset == "soft":
            left = fm.soft_reset(potential, spike, threshold)
        stored = _store(left, inputs.unit, rule)
        steps.append(_Step(current, membrane, fired, potential, spike, stored))
        membrane = stored
        if rule.late:
            fired = _remembered(fs.fires(distance, rule.strict), stored, lowest)
    return steps


def _gated(current: Tensor, mask: Tensor | None, t: int) -> Tensor:
    if mask is None:
        return current
    return (_rows(current, mask) * mask[t].unsqueeze(1)).view(-1)


def _rows(flat: Tensor, mask: Tensor) -> Tensor:
    """One row for each value of the mask; of no rows, torch cannot tell how long they are."""
    rows = mask.shape[1]
    return flat.view(rows, -1 if rows else 0)


def _charge(
    current: Tensor, membrane: Tensor, fired: Tensor | None, inputs: Inputs, rule: Rule
) -> Tensor:
    held = membrane
    if rule.reset == "late_zero" and fired is not None:
        held = (1 - fired) * membrane
    gain = 1.0 if inputs.gain is None else inputs.gain
    potential = fm.charge(held, current, inputs.decay, gain, rule.rest)
    if fired is None or rule.reset == "late_zero":
        return potential
    if rule.reset == "late_subtract":
        return potential - fired * inputs.threshold
    return potential - fired * potential


def _store(potential: Tensor, unit: Tensor | None, rule: Rule) -> Tensor:
    if unit is None:
        return potential
    z = (potential - rule.rest if rule.rest else potential) / unit
    if rule.smooth:
        level = slopes.smooth_level(z, rule)
    else:
        level = fm.level_of(z, rule.lowest, rule.highest, rule.cut_points or None)
    return level * unit + rule.rest if rule.rest else level * unit


def _lowest_fired(inputs: Inputs, rule: Rule) -> Tensor | None:
    """What a neuron that fires stores at least: a state below it cannot have fired."""
    if not rule.late or inputs.unit is None:
        return None
    z = inputs.threshold / inputs.unit
    level = fm.level_of(z, rule.lowest, rule.highest, rule.cut_points or None)
    return level.clamp(min=1) * inputs.unit


def _remembered(fired: Tensor | None, stored: Tensor, lowest: Tensor | None) -> Tensor | None:
    """The late reset of those that fired, as far as what they store allows it."""
    return fired if fired is None or lowest is None else fired * (stored >= lowest)


# --- the code -----------------------------------------------------------------------------------


def _cells(unit: Tensor | None, bits: int) -> Tensor | float:
    """Cells of the code to one potential."""
    return CELLS[bits] if unit is None else CELLS[bits] / unit


def _encode(steps: list[_Step], inputs: Inputs, rule: Rule, bits: int) -> Tensor:
    """Cells of the distance to the threshold, with an edge on it: which side stays exact."""
    scale, top = _cells(inputs.unit, bits), 2 ** (bits - 1) - 1
    cells = []
    for step in steps:
        distance = (step.potential - inputs.threshold) * scale
        cell = distance.ceil() - 1 if rule.strict else distance.floor()
        cells.append(cell.clamp(-top - 1, top).to(getattr(torch, CODES[bits])))
    return torch.stack(cells)


def _decode(code: Tensor, inputs: Inputs, rule: Rule) -> list[_Step]:
    """The steps as far as the code tells: their potentials and spikes."""
    scale = _cells(inputs.unit, 8 * code.element_size())
    lowest = _lowest_fired(inputs, rule)
    begun = inputs.threshold.new_tensor(rule.rest) if inputs.state is None else inputs.state
    fired = _remembered(inputs.fired, begun, lowest) if rule.late else None
    steps = []
    for cell in code.to(inputs.threshold.dtype).unbind(0):
        potential = (cell + 0.5) / scale + inputs.threshold
        spike = fs.fires(cell)
        steps.append(_Step(cell, cell, fired, potential, spike, cell))
        if rule.late:
            fired = _remembered(spike, _store(potential, inputs.unit, rule), lowest)
    return steps


# --- backward -----------------------------------------------------------------------------------


def backward(
    inputs: Inputs, code: Tensor | None, rule: Rule, arriving: Outputs, needs: Needs
) -> Gradients:
    """Gradients of the inputs that need one."""
    steps = _run(inputs, rule) if code is None else _decode(code, inputs, rule)
    sums: dict[str, Tensor] = {}
    each: list[Tensor] = []
    masks: list[Tensor] = []
    carried = torch.zeros_like(steps[0].potential) if arriving.final is None else arriving.final
    for t in reversed(range(len(steps))):
        step = steps[t]
        if arriving.membranes is not None:
            carried = carried + arriving.membranes[t]
        grad, share = _through_step(step, carried, t, inputs, rule, arriving)
        if share is not None and needs.threshold:
            _add(sums, "threshold", -share)
        if rule.reset == "late_drop" and step.fired is not None:
            grad = grad * (1 - step.fired)
        if needs.gain:
            _add(sums, "gain", grad * step.current)
        held = 1.0 if rule.reset != "late_zero" or step.fired is None else 1 - step.fired
        if needs.decay:
            _add(sums, "decay", grad * (held * step.before - rule.rest))
        carried = grad * inputs.decay * held
        into = grad if inputs.gain is None else grad * inputs.gain
        if needs.mask and inputs.mask is not None:
            x = inputs.x[t].to(into.dtype)
            masks.append(_rows(into * x, inputs.mask).sum(1))
        each.append(_gated(into, inputs.mask, t))
    return Gradients(
        torch.stack(each[::-1]) if needs.x else None,
        carried if needs.state else None,
        mask=torch.stack(masks[::-1]) if masks else None,
        **{name: _total(sums[name], getattr(inputs, name)) for name in sums},
    )


def _through_step(
    step: _Step, carried: Tensor, t: int, inputs: Inputs, rule: Rule, arriving: Outputs
) -> tuple[Tensor, Tensor | None]:
    """Gradient of the potential, and the threshold's, without its sign."""
    u, s, threshold = step.potential, step.spike, inputs.threshold
    distance = u - threshold
    share: Tensor | None = None
    into_spike = 0.0 if arriving.spikes is None else arriving.spikes[t].to(u.dtype)
    if rule.reset == "hard":
        left = carried * _slope(fm.hard_reset(u, s, rule.rest), inputs.unit, rule)
        grad = left * (1 - s)
        into_spike = into_spike if rule.detach_reset else into_spike + left * (rule.rest - u)
    elif rule.reset == "soft":
        grad = carried * _slope(fm.soft_reset(u, s, threshold), inputs.unit, rule)
        into_spike = into_spike if rule.detach_reset else into_spike - grad * threshold
        share = grad * s if rule.threshold_gradient == "host" else None
    else:
        grad = carried * _slope(u, inputs.unit, rule)
    fire = slopes.firing_slope(distance, rule) * into_spike
    grad = grad + fire
    if arriving.potentials is not None:
        grad = grad + arriving.potentials[t]
    if rule.threshold_gradient != "none":
        fire = fire * slopes.threshold_share(distance, rule)
        share = fire if share is None else share + fire
        subtracts = rule.reset == "late_subtract" and rule.threshold_gradient == "host"
        if subtracts and step.fired is not None:
            share = share + grad * step.fired
    return grad, share


def _slope(potential: Tensor, unit: Tensor | None, rule: Rule) -> Tensor | float:
    if unit is None:
        return 1.0
    return slopes.quantizer_slope((potential - rule.rest) / unit, rule)


def _total(each: Tensor, constant: Tensor) -> Tensor:
    """A constant's gradient: one for each neuron, or the sum, whose terms may cancel."""
    if constant.ndim:
        return each
    return each.sum(dtype=torch.float64).to(each.dtype)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
