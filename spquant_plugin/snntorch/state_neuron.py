"""What every snnTorch neuron with a quantised membrane does, whatever its charge."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..config import LearnableThreshold, TernaryMembrane, _Membrane
from ..errors import ConversionError
from ..functional import membrane as fm
from ..functional.membrane import state_dtype
from ..kernels import Rule
from ..modules.neuron import QuantizedNeuron
from ..modules.outcome import Outcome
from ..modules.spatial_gate import _SpatialGate
from .fused import advance


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
        if self.membrane is None or not self.remembers:
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

    def mint_obstacle(self) -> str | None:
        if not self.zero_keeps_input:
            return "it is no Leaky, and what it adds or drops is no whole number of units"
        decay = self.decay().detach()
        if not bool((decay == 0.5).all()):
            kept = float(decay.flatten()[int((decay - 0.5).abs().argmax())])
            return f"it keeps {kept:g} of its membrane in each step"
        if isinstance(self.beta, nn.Parameter):
            return "it learns its decay (learn_beta=True)"
        if self.inhibition:
            return "its neurons compete (inhibition=True)"
        kind = self.reset_mechanism
        return None if kind == "zero" else f"its reset is reset_mechanism={kind!r}"

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
        if not self.remembers:
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
        if self.membrane is None or not self.remembers:
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
        before = self.mem
        potential, spikes, compared, stored = self._decide(*currents)
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

    def _decide(self, *currents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The potential, spikes, the comparison behind them, and the stored membrane."""
        threshold = self.threshold_value(currents[0])
        if self.follows_mint:
            return self._decide_mint(currents[0], threshold)
        potential = self._charged(currents, self._late_reset(threshold), threshold)
        spikes, compared = self._fire(potential, threshold)
        stored = self.store(self._early_reset(potential, spikes, threshold))
        return potential, spikes, compared, stored

    def _decide_mint(
        self, current: Tensor, threshold: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `_decide`. The membrane is stored after reset and leak, whenever the host resets."""
        levels, unit = self.mint_charge(current, self.mem)
        potential = levels * unit
        spikes, compared = self._fire(potential, threshold)
        # A late reset is the host's, which passes no gradient.
        acting = spikes.detach() if self.reset_delay else spikes
        return potential, spikes, compared, self.mint_store(levels, acting, unit)

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether a spike resets in the next step only."""
        late = bool(self.reset_delay) and self.reset_mechanism != "none"
        return late and not self.follows_mint

    @property
    def spike_size(self) -> float:  # type: ignore[override]
        """What a spike counts for in the next layer."""
        return float(self.graded_spikes_factor)

    def reset_words(self) -> str:
        return f"{self.reset_mechanism}, {'one step late' if self.remembers else 'at once'}"

    def several_inputs(self) -> str | None:
        if self.inhibition:
            return "inhibition lets the neurons of a layer compete"
        others = [name for name in self.states if name != "mem"]
        return f"it also keeps {' and '.join(others)}" if others else None

    @torch.no_grad()
    def outcome(self, current: Tensor, levels: Tensor, fired: Tensor) -> Outcome:
        # Its own states are what its methods read.
        self.mem, self.fired = self.membrane_of(levels), fired
        potential, spikes, compared, stored = self._decide(current)
        levels, scores = self.stored_levels(stored), self.levels(potential)
        return Outcome(spikes, levels, compared, scores)

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
