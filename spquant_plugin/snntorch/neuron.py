r"""snnTorch neurons with a quantised membrane and, on request, a learnable threshold.

They subclass the host's neurons and keep their signatures, their state-dict keys and their way of
resetting. With ``reset_delay=True`` (the host's default) a neuron resets one step late. The state
that it carries is then the quantised potential *before* the reset, from which a later step could
not tell whether the neuron fired; so the comparison is remembered beside it, one bit per neuron:

.. math::

    m_t = \delta\, Q(u_t / \delta), \qquad s_t = 1[u_t > V], \qquad
    u_{t+1} = \lambda m_t + x - V s_t \;\text{(subtract)}

Leaky's ``zero`` forgets the membrane, :math:`\lambda (1 - s_t) m_t + x`; the ``zero`` of the other
neurons drops the whole step, :math:`(1 - s_t)(\lambda m_t + x)`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor

from ..config import LearnableThreshold, TernaryMembrane, _Membrane
from ..errors import ConversionError
from ..functional import membrane as fm
from ..functional.membrane import state_dtype
from ..kernels import Rule
from ..modules.neuron import QuantizedNeuron
from ..modules.spatial_gate import _SpatialGate
from .fused import advance, synaptic_currents

__all__ = [
    "TernaryLapicque",
    "TernaryLeaky",
    "TernaryRLeaky",
    "TernaryRSynaptic",
    "TernarySynaptic",
]


class _QuantizedStateNeuron(QuantizedNeuron):
    """Reset, fire and quantise, whatever the charge; put before a host's neuron class."""

    threshold_name = "threshold"
    fires_on_threshold = False
    zero_keeps_input = False  # only Leaky's reset to zero keeps the step's input
    states: tuple[str, ...] = ("mem",)

    # The host's attributes.
    spike_grad: Callable[[Tensor], Tensor]
    recurrent: Callable[[Tensor], Tensor]
    fired: Tensor
    mem: Tensor
    beta: Tensor
    graded_spikes_factor: Tensor
    init_hidden: bool
    inhibition: bool
    output: bool
    reset_delay: bool = True  # Lapicque has no such option and resets late
    reset_mechanism: str

    def __init__(
        self,
        *args: Any,
        membrane: _Membrane | None = TernaryMembrane(),  # noqa: B008 (frozen)
        learnable_threshold: LearnableThreshold | None = None,
        channels: int | None = None,
        spatial_gate: _SpatialGate | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if self.state_quant:
            raise ConversionError(
                f"{type(self).__name__}(state_quant={self.state_quant!r}): the membrane would be "
                "quantised twice. Set state_quant=False and choose membrane=... instead."
            )
        self.register_buffer("fired", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.install(membrane, learnable_threshold, channels, spatial_gate)
        self.check()

    def __init_subclass__(cls) -> None:
        # Shows the host's own arguments, which __init__ only passes on.
        host = next(base for base in cls.__mro__ if base.__module__.startswith("snntorch."))
        ours = inspect.signature(_QuantizedStateNeuron.__init__).parameters.values()
        added = [parameter for parameter in ours if parameter.kind is parameter.KEYWORD_ONLY]
        taken = [*inspect.signature(host).parameters.values(), *added]
        cls.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]

    def check(self) -> None:
        """Refuse a unit under which a neuron that fired would not be seen to have fired."""
        if self.membrane is None or not self.reset_delay or self.reset_mechanism == "none":
            return
        level = self.silent_level()
        if level <= 0:
            raise ConversionError(
                f"{type(self).__name__}: a neuron at its threshold {self.smallest_threshold():g} "
                f"stores level {level} of unit {float(self.membrane_unit):g}: a delayed reset "  # type: ignore[arg-type]
                "needs a level above 0 there. Use a smaller unit or reset_delay=False."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The host resets what its class-level list holds; copies and loaded neurons enter it here.
        super().__setstate__(state)
        SpikingNeuron.instances.append(self)

    def decay(self) -> Tensor:
        """Share of the membrane that one step keeps."""
        return self.beta.clamp(0, 1)

    def largest_decay(self) -> float:
        return float(self.decay().detach().double().max())

    # One step.

    def _restore(self, input_: Tensor, given: dict[str, Tensor | None]) -> Tensor:
        """Take the states that were handed in, start those that do not fit, return the input."""
        if self.init_hidden and any(state is not None for state in given.values()):
            names = " or ".join(f"`{name}`" for name in given)
            raise TypeError(f"{names} should not be passed as an argument while `init_hidden=True`")
        current = input_.to(state_dtype(input_))
        held = given["mem"] if given["mem"] is not None else self.mem
        self.began = held.shape != current.shape or not self._is_own(held)
        if self.fired.shape == self.mem.shape:
            # What fired stored a level above 0: a membrane that the host has cleared since did not.
            self.fired = self.fired & (self.mem > 0)
        for name in self.states:
            state = given.get(name)
            state = getattr(self, name) if state is None else state
            if state.shape != current.shape:
                state = torch.zeros_like(current)
            setattr(self, name, state.to(device=current.device, dtype=current.dtype))
        if self.fired.shape != current.shape or self.fired.device != current.device:
            self.fired = torch.zeros_like(current, dtype=torch.bool)
        return current

    def _late_reset(self, threshold: Tensor | float) -> Tensor | None:
        """Neurons that fired in the step before and now reset; None where nothing resets late."""
        if not self.reset_delay or self.reset_mechanism == "none":
            return None
        held = self.mem.detach()
        if self.membrane is None:
            return (held - threshold > 0).to(held.dtype).detach()
        # A state from elsewhere (fresh zeros, say) cannot have fired: what fires stores at least
        # the threshold's own level.
        return (self.fired & (held >= self._threshold_level(threshold))).to(held.dtype)

    @torch.no_grad()
    def _threshold_level(self, threshold: Tensor | float) -> Tensor:
        unit = self.membrane_unit.to(self.mem.dtype)  # type: ignore[union-attr]
        value = threshold if isinstance(threshold, Tensor) else unit.new_tensor(threshold)
        rule = self.membrane
        level = fm.level_of(value / unit, rule.lowest, rule.highest, rule.cut_points)  # type: ignore[union-attr]
        # A learned threshold may reach the boundary below level 1, where ties would say 0.
        return level.clamp(min=1) * unit

    def lowest_threshold(self) -> float:
        if self.membrane is None or not self.reset_delay or self.reset_mechanism == "none":
            return -math.inf
        # What fires must store level 1 or more, and both boundary rules put level 1 above 1/2.
        return 0.5 * float(self.membrane_unit)  # type: ignore[arg-type]

    def _charged(
        self, currents: tuple[Tensor, ...], reset: Tensor | None, threshold: Tensor | float
    ) -> Tensor:
        """Potential before firing, after the reset of the step before."""
        if reset is not None and self.reset_mechanism == "zero" and self.zero_keeps_input:
            return self._potential((1 - reset) * self.mem, *currents)
        potential = self._potential(self.mem, *currents)
        if reset is None:
            return potential
        if self.reset_mechanism == "subtract":
            return potential - reset * self.reset_threshold(threshold)
        return potential - reset * potential

    def _potential(self, membrane: Tensor, current: Tensor, *more: Tensor) -> Tensor:
        """Charge, adding one current after the other as the host does: rounding depends on it."""
        potential = fm.charge(membrane, current, self.decay())
        for extra in more:
            potential = potential + extra
        return potential

    def _fire(self, potential: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
        """Spikes as the host gives them, and the plain comparison behind them."""
        distance = self.distance(potential, threshold)
        spikes = self.spike_grad(distance)
        compared = distance.detach() > 0
        if not self.inhibition:
            return spikes, compared
        winner = distance.argmax(1, keepdim=True)
        return spikes * torch.zeros_like(spikes).scatter_(1, winner, 1), compared

    def _step(self, *currents: Tensor) -> Tensor:
        """Reset late, charge, fire, reset at once, store, mask."""
        threshold, before = self.threshold_value(currents[0]), self.mem
        potential = self._charged(currents, self._late_reset(threshold), threshold)
        spikes, compared = self._fire(potential, threshold)
        stored = self.store(self._early_reset(potential, spikes, threshold))
        kept = self.kept_pixels(potential, before, self._is_first(before))
        if kept is not None:
            spikes, stored, compared = spikes * kept, stored.where(kept, 0.0), compared & kept
        self.mem, self.fired = stored, compared
        if self.watched or self.spatial_gate is not None:
            self._leave(self.mem)
        if self.watched:
            self._tell([self.mem], sequence=False, began=self.began)
        # As in the host, a single winner is not graded.
        return spikes if self.inhibition else spikes * self.graded_spikes_factor

    def _is_first(self, before: Tensor) -> Tensor | bool:
        """Whether there was no step before: a state from elsewhere, and at rest.

        The host clears states without telling the neuron; but it clears them by new tensors.
        """
        return ~before.any() if self.began else False

    def _early_reset(self, potential: Tensor, spikes: Tensor, threshold: Tensor | float) -> Tensor:
        if self.reset_delay or self.reset_mechanism == "none":
            return potential
        if self.reset_mechanism == "subtract":
            return fm.soft_reset(potential, spikes, self.reset_threshold(threshold))
        return fm.hard_reset(potential, spikes)

    def _result(self, spikes: Tensor, *states: Tensor | None) -> Any:
        return spikes if self.init_hidden and not self.output else (spikes, *states)

    # All steps at once.

    def run_sequence(self, x_seq: Tensor, rule: Rule) -> Any:
        """What a loop over ``x_seq [T, ...]`` returns, stacked; ``rule`` is its ``fused_rule``."""
        return self._result(*advance(self, self._driven(self._begin(x_seq)), rule))

    def _begin(self, x_seq: Tensor) -> Tensor:
        """Restore the states for the first step, and return the input of all steps."""
        return x_seq.to(self._restore(x_seq[0], {"mem": None}).dtype)

    def _driven(self, current: Tensor) -> Tensor:
        """What an input adds to the membrane."""
        return current

    def reset_mem(self) -> Any:
        """Clear the states, and with them what a delayed reset remembers."""
        self.fired = torch.zeros_like(self.fired)
        self.level_sums = None
        return super().reset_mem()  # type: ignore[misc]

    def extra_repr(self) -> str:
        return (
            f"reset_mechanism={self.reset_mechanism!r}, reset_delay={self.reset_delay}, "
            f"init_hidden={self.init_hidden}, {self.neuron_repr()}"
        )


class TernaryLeaky(_QuantizedStateNeuron, snn.Leaky):
    """``snntorch.Leaky`` with a quantised membrane.

    >>> import torch
    >>> lif = TernaryLeaky(beta=0.5, reset_mechanism="zero")
    >>> mem = lif.init_leaky()
    >>> spk, mem = lif(torch.tensor([[1.2, 0.7, 0.2]]), mem)
    >>> spk, mem
    (tensor([[1., 0., 0.]]), tensor([[1., 1., 0.]]))
    """

    zero_keeps_input = True

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"mem": mem})
        return self._result(self._step(current), self.mem)


class TernaryLapicque(_QuantizedStateNeuron, snn.Lapicque):
    r"""``snntorch.Lapicque`` with a quantised membrane: :math:`\lambda = 1 - dt/RC`."""

    R: Tensor
    C: Tensor
    time_step: Tensor

    def decay(self) -> Tensor:
        return 1 - self.time_step / (self.R * self.C)

    def _driven(self, current: Tensor) -> Tensor:
        # In the host's order of operations: rounding depends on it.
        return current * self.R * (1 / (self.R * self.C)) * self.time_step

    def _potential(self, membrane: Tensor, current: Tensor, *more: Tensor) -> Tensor:
        return self._driven(current) + self.decay() * membrane

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"mem": mem})
        return self._result(self._step(current), self.mem)


class TernarySynaptic(_QuantizedStateNeuron, snn.Synaptic):
    """``snntorch.Synaptic`` with a quantised membrane. Its ``syn`` stays in float."""

    states = ("syn", "mem")
    alpha: Tensor
    syn: Tensor

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"syn": syn, "mem": mem})
        self.syn = self.alpha.clamp(0, 1) * self.syn + current
        return self._result(self._step(self.syn), self.syn, self.mem)

    def run_sequence(self, x_seq: Tensor, rule: Rule) -> Any:
        currents = self._begin(x_seq)
        currents, self.syn = synaptic_currents(currents, self.syn, self.alpha.clamp(0, 1))
        spikes, membranes = advance(self, currents, rule)
        return self._result(spikes, currents, membranes)


class TernaryRLeaky(_QuantizedStateNeuron, snn.RLeaky):
    """``snntorch.RLeaky`` with a quantised membrane; its spikes come back through ``recurrent``."""

    states = ("spk", "mem")
    spk: Tensor

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"spk": spk, "mem": mem})
        self.spk = self._step(current, self.recurrent(self.spk.to(input_.dtype)))
        return self._result(self.spk, self.mem)


class TernaryRSynaptic(_QuantizedStateNeuron, snn.RSynaptic):
    """``snntorch.RSynaptic`` with a quantised membrane. Its ``syn`` stays in float."""

    states = ("spk", "syn", "mem")
    alpha: Tensor
    spk: Tensor
    syn: Tensor

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        current = self._restore(input_, {"spk": spk, "syn": syn, "mem": mem})
        feedback = self.recurrent(self.spk.to(input_.dtype))
        self.syn = self.alpha.clamp(0, 1) * self.syn + current + feedback
        self.spk = self._step(self.syn)
        return self._result(self.spk, self.syn, self.mem)
