r"""All steps of one neuron as one operation, which leaves it as a loop over its steps would.

An immediate reset acts on the potential that fired, a late one on the next step's; which neurons
reset late in the first step follows from the state that the neuron is in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..functional.membrane import state_dtype
from ..kernels import Rule, membrane_sequence
from .surrogate import Triangle, fused_slope

if TYPE_CHECKING:
    from .state_neuron import _QuantizedStateNeuron

CONSTANTS = ("beta", "alpha", "R", "C", "time_step", "graded_spikes_factor")
# A current that nothing resets: the membrane of a neuron that never acts.
CURRENT = Rule(reset="none")


def fused_rule(neuron: _QuantizedStateNeuron, x_seq: Tensor) -> Rule | None:
    """How the fused recurrence runs this neuron, or None where it has to go step by step."""
    slope = fused_slope(neuron.spike_grad)
    if slope is None or neuron.inhibition or neuron.follows_mint or x_seq.ndim < 2:
        return None
    like = torch.empty_like(x_seq[0], dtype=state_dtype(x_seq))
    constants = [getattr(neuron, name, None) for name in CONSTANTS]
    if not all(_fits(value, like) for value in (*constants, neuron.threshold_value(like))):
        return None
    reset = reset_kind(neuron)
    at_once = reset in ("hard", "soft")
    if at_once and like.dtype != torch.float32 and not isinstance(neuron.spike_grad, Triangle):
        return None  # the host's surrogates round what passes through a spike to single precision
    return neuron.recurrence(slope, reset)


def reset_kind(neuron: _QuantizedStateNeuron) -> str:
    """The recurrence's name for the way in which a neuron resets."""
    if neuron.reset_mechanism == "none":
        return "none"
    subtracts = neuron.reset_mechanism == "subtract"
    if not neuron.reset_delay:
        return "soft" if subtracts else "hard"
    if subtracts:
        return "late_subtract"
    return "late_zero" if neuron.zero_keeps_input else "late_drop"


def _fits(value: object, step: Tensor) -> bool:
    """Whether a constant changes neither the shape nor the precision of a step's state."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    ends = zip(reversed(value.shape), reversed(step.shape), strict=False)
    within = value.ndim <= step.ndim and all(a in (1, b) for a, b in ends)
    return within and torch.promote_types(value.dtype, step.dtype) == step.dtype


def synaptic_currents(currents: Tensor, start: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Synaptic currents of all steps, and the last by itself.

    >>> synaptic_currents(torch.tensor([[1.0], [1.0]]), torch.zeros(1), torch.tensor(0.5))
    (tensor([[1.0000],
            [1.5000]]), tensor([1.5000]))
    """
    run = membrane_sequence(
        currents, CURRENT, threshold=1.0, decay=decay, unit=None, state=start, membranes=True
    )
    return run.membranes, run.membrane  # type: ignore[return-value]


def advance(
    neuron: _QuantizedStateNeuron, currents: Tensor, rule: Rule
) -> tuple[Tensor, Tensor | None]:
    """Spikes of all steps, and where something reads them the membranes, of a neuron that began."""
    began = neuron.began
    run = _masked if neuron.spatial_gate is not None else _unmasked
    spikes, stored = run(neuron, currents, rule)
    if neuron.watched or neuron.spatial_gate is not None:
        neuron._leave(neuron.mem)
        neuron.began = began and currents.shape[0] == 1
    if neuron.watched:
        neuron._tell(list(stored.unbind(0)), sequence=True, began=began)  # type: ignore[union-attr]
    if not isinstance(neuron.spike_grad, Triangle):
        spikes = spikes.float()  # as the host's surrogates give them
    return spikes * neuron.graded_spikes_factor, stored


def _unmasked(
    neuron: _QuantizedStateNeuron, currents: Tensor, rule: Rule
) -> tuple[Tensor, Tensor | None]:
    reads = neuron.output or neuron.watched
    run = neuron.run_fused(
        currents,
        rule,
        decay=neuron.decay(),
        state=neuron.mem,
        fired=neuron._late_reset(neuron.threshold_value(currents[0])),
        membranes=reads,
    )
    neuron.mem, neuron.fired = run.membrane, run.spikes[-1].detach() > 0
    return run.spikes, run.membranes


def _masked(neuron: _QuantizedStateNeuron, currents: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """One fused step after the other: which pixels take part depends on the step before."""
    train, stored = [], []
    for t in range(currents.shape[0]):
        current, before = currents[t : t + 1], neuron.mem
        run = neuron.run_fused(
            current,
            rule,
            decay=neuron.decay(),
            state=before,
            fired=neuron._late_reset(neuron.threshold_value(current[0])),
            potentials=True,
        )
        kept: Any = neuron.kept_pixels(run.potentials[0], before, neuron._is_first(before))  # type: ignore[index]
        spikes = run.spikes[0] * kept
        neuron.mem = run.membrane.where(kept, 0.0)
        neuron.fired, neuron.began = spikes.detach() > 0, False
        train.append(spikes)
        stored.append(neuron.mem)
    return torch.stack(train), torch.stack(stored)
