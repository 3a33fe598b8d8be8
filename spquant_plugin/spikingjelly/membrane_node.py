"""What every SpikingJelly neuron with a quantised membrane does, whatever its decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from ..functional import membrane as fm
from ..functional.membrane import state_dtype
from ..kernels import Sequence
from ..modules.neuron import QuantizedNeuron
from ..modules.outcome import Outcome
from .constants import number
from .surrogate import fused_slope

Tensors = tuple[Tensor, ...]
States = tuple[object, ...]


class _QuantizedMembraneNode(QuantizedNeuron, BaseNode):
    """Charge, fire, reset, quantise: everything but the decay, which each subclass gives."""

    threshold_name = "v_threshold"
    v_threshold: Any  # a number, or a parameter where it learns
    v_reset: float | None
    v: Any  # the host's memory: a number at rest
    _memories: dict[str, Any]
    register_memory: Callable[[str, object], None]
    surrogate_function: Callable[[Tensor], Tensor]

    def __init__(
        self,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: nn.Module | None,
        detach_reset: bool,
        step_mode: str,
        store_v_seq: bool,
    ) -> None:
        # The host's own default is one object that all neurons share; ours is a fresh one.
        super().__init__(
            v_threshold=number(self, "v_threshold", v_threshold),
            v_reset=None if v_reset is None else number(self, "v_reset", v_reset),
            surrogate_function=surrogate_function or surrogate.Sigmoid(),
            detach_reset=bool(detach_reset),
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )

    def install(self, *options: Any) -> None:
        super().install(*options)
        if self.spatial_gate is not None and self.spatial_gate.score == "prior":
            self.register_memory("begun", False)

    def dynamics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Decay of the membrane and gain of the input."""
        raise NotImplementedError

    @property
    def rest(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    def input_gain(self) -> float:
        _, gain = self.dynamics(torch.zeros((), dtype=torch.float64))
        return float(torch.as_tensor(gain).detach())

    def mint_obstacle(self) -> str | None:
        decay = self.largest_decay()
        if decay != 0.5:
            return f"it keeps {decay:g} of its membrane in each step"
        if hasattr(self, "w"):
            return "it learns its decay"
        return None if self.v_reset == 0 else f"its reset is {self.reset_words()}"

    def largest_decay(self) -> float:
        decay, _ = self.dynamics(torch.zeros((), dtype=torch.float64))
        return float(torch.as_tensor(decay).detach())

    def _advance(
        self,
        current: Tensor,
        membrane: Tensor,
        threshold: Tensor | float,
        dynamics: tuple[Tensor | float, Tensor | float],
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        potential, spikes, stored = self._decide(current, membrane, threshold, dynamics)
        kept = self.kept_pixels(potential, membrane, first)
        if kept is None:
            return spikes, stored
        return spikes.where(kept, 0.0), stored.where(kept, self.rest)

    def _decide(
        self,
        current: Tensor,
        membrane: Tensor,
        threshold: Tensor | float,
        dynamics: tuple[Tensor | float, Tensor | float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Charge, fire, reset, store: the potential, the spikes, and the stored membrane."""
        if self.follows_mint:
            levels, unit = self.mint_charge(current, membrane)
            potential = levels * unit
        else:
            potential = fm.charge(membrane, current, *dynamics, self.rest)
        spikes = self.surrogate_function(self.distance(potential, threshold))
        acting = spikes.detach() if self.detach_reset else spikes
        if self.follows_mint:
            return potential, spikes, self.mint_store(levels, acting, unit)
        if self.v_reset is None:
            left = fm.soft_reset(potential, acting, self.reset_threshold(threshold))
        else:
            left = fm.hard_reset(potential, acting, self.rest)
        return potential, spikes, self.store(left)

    def reset_words(self) -> str:
        return "soft" if self.v_reset is None else f"hard, to {self.v_reset:g}"

    @torch.no_grad()
    def outcome(self, current: Tensor, levels: Tensor, fired: Tensor) -> Outcome:
        threshold, dynamics = self.threshold_value(current), self.dynamics(current)
        potential, spikes, stored = self._decide(
            current, self.membrane_of(levels), threshold, dynamics
        )
        return Outcome(spikes, self.stored_levels(stored), spikes > 0, self.levels(potential))

    def single_step_functional_forward(
        self, inputs: Tensors, states: States, **kwargs: object
    ) -> tuple[Tensors, States]:
        x, membrane = inputs[0], states[0]
        began = not self._is_own(membrane)
        current = x.to(state_dtype(x))
        threshold = self.threshold_value(current)
        spikes, membrane = self._advance(
            current,
            membrane,  # type: ignore[arg-type]
            threshold,
            self.dynamics(current),
            self._is_first(states),
        )
        if self.watched:
            self._leave(membrane)
            self._tell([membrane], sequence=False, began=began)
        return (spikes.to(x.dtype),), self._after(membrane)

    def multi_step_functional_forward(
        self, inputs: Tensors, states: States, **kwargs: object
    ) -> tuple[Tensors, States]:
        spikes, membrane, _ = self._sequence(inputs[0], states)
        return (spikes,), self._after(membrane)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.store_v_seq:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        # The host would record step by step.
        states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        spikes, membrane, self.v_seq = self._sequence(x_seq, states)
        self._memories.update(zip(self._memories, self._after(membrane), strict=True))
        return spikes

    def _sequence(self, x_seq: Tensor, states: States) -> tuple[Tensor, Tensor, Tensor | None]:
        """Spikes of all steps, the last membrane, and where something reads them all of them."""
        stored: Tensor | None
        reads = bool(self.watched or self.store_v_seq)
        slope = fused_slope(self.surrogate_function)
        if slope is None or self.follows_mint:
            spikes, membrane, stored = self._step_by_step(x_seq, states)
        elif self.spatial_gate is not None:
            spikes, membrane, stored = self._masked(x_seq, states, slope)
        else:
            # At rest there is no state that would have to be kept for the backward pass.
            at_rest = not isinstance(states[0], Tensor) and states[0] == self.rest
            start = None if at_rest else self._start(x_seq, states[0])
            spikes, membrane, _, stored = self._fused(x_seq, start, slope, membranes=reads)
        if self.watched:
            self._tell(list(stored.unbind(0)), sequence=True, began=True)  # type: ignore[union-attr]
        return spikes, membrane, stored if reads else None

    def _fused(
        self, x_seq: Tensor, membrane: object, slope: tuple[str, float], **options: bool
    ) -> Sequence:
        reset = "soft" if self.v_reset is None else "hard"
        rule = self.recurrence(slope, reset, detach_reset=bool(self.detach_reset))
        decay, gain = self.dynamics(torch.empty(0, dtype=state_dtype(x_seq), device=x_seq.device))
        return self.run_fused(x_seq, rule, decay=decay, gain=gain, state=membrane, **options)

    def _start(self, x_seq: Tensor, state: object) -> Tensor:
        """The membrane to begin with, where that is still a number."""
        if isinstance(state, Tensor):
            return state
        return x_seq.new_full(x_seq.shape[1:], float(state), dtype=state_dtype(x_seq))  # type: ignore[arg-type]

    def _masked(
        self, x_seq: Tensor, states: States, slope: tuple[str, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One fused step after the other: which pixels take part depends on the step before."""
        membrane: Any = self._start(x_seq, states[0])
        first = self._is_first(states)
        train, stored = [], []
        for t in range(x_seq.shape[0]):
            step = self._fused(x_seq[t : t + 1], membrane, slope, potentials=True)
            kept: Any = self.kept_pixels(step.potentials[0], membrane, first)  # type: ignore[index]
            membrane, first = step.membrane.where(kept, self.rest), False
            train.append(step.spikes[0].where(kept, 0.0))
            stored.append(membrane)
        return torch.stack(train), membrane, torch.stack(stored)

    def _step_by_step(self, x_seq: Tensor, states: States) -> tuple[Tensor, Tensor, Tensor]:
        """The way of a surrogate or membrane that the fused recurrence does not know."""
        membrane: Any = self._start(x_seq, states[0])
        first = self._is_first(states)
        currents = x_seq.to(state_dtype(x_seq))
        # Threshold and decay are the same at every step: one node each in the graph.
        threshold, dynamics = self.threshold_value(currents[0]), self.dynamics(currents)
        train, stored = [], []
        for current in currents.unbind(0):
            spikes, membrane = self._advance(current, membrane, threshold, dynamics, first)
            first = False
            train.append(spikes)
            stored.append(membrane)
        return torch.stack(train).to(x_seq.dtype), membrane, torch.stack(stored)

    def reset(self) -> None:
        super().reset()
        self.level_sums = None

    # A gate that ranks by the step before has to know whether there was one.

    def _is_first(self, states: States) -> bool:
        return len(states) > 1 and not states[1]

    def _after(self, membrane: Tensor) -> States:
        return (membrane, True) if "begun" in self._memories else (membrane,)

    def materialize_states(self, inputs: Tensors, states: States, step_mode: str) -> States:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        dtype, v = state_dtype(x), states[0]
        if isinstance(v, Tensor) and v.shape == x.shape:
            return (v.to(device=x.device, dtype=dtype), *states[1:])
        # A state of another shape starts anew, as in the host.
        start = self.rest if isinstance(v, Tensor) else float(v)  # type: ignore[arg-type]
        if step_mode == "m":
            return (start, False) if len(states) > 1 else (start,)  # no tensor for a number
        fresh = torch.full(x.shape, start, dtype=dtype, device=x.device)
        return (fresh, False) if len(states) > 1 else (fresh,)

    def extra_repr(self) -> str:
        value = self.v_threshold
        if isinstance(value, Tensor):
            value = value.tolist() if value.ndim == 0 else f"{value.numel()} channels"
        return (
            f"v_threshold={value}, v_reset={self.v_reset}, detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode}, {self.neuron_repr()}"
        )
