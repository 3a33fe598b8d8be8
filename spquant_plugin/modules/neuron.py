"""What every neuron of either host adds: a quantised membrane and a threshold that may learn.

The mixin owns the membrane's unit, the threshold's bounds and the spatial gate, and tells channel
gates what it stored. The host's class says where its threshold is, how its potential decays and
where it rests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..config import LearnableThreshold, _Membrane, check_kind
from ..errors import ConversionError
from ..functional import membrane as fm
from ..functional.membrane import state_dtype
from ..functional.threshold import bounded_threshold, threshold_distance
from ..kernels import Rule, Sequence, membrane_sequence
from .device import device_of
from .mint import MintNeuron
from .outcome import Outcome
from .self_firing import SelfFiring
from .spatial_gate import SpatialGate, _SpatialGate


class QuantizedNeuron(MintNeuron):
    """Mixin: put before a host's neuron class, and call :meth:`install` to end ``__init__``."""

    threshold_name = "threshold"
    membrane: _Membrane | None
    learnable_threshold: LearnableThreshold | None
    threshold_bounds: Tensor
    initial_threshold: Any

    # What the host's class tells.

    @property
    def rest(self) -> float:
        """Potential that the neuron leaks and resets to."""
        return 0.0

    def largest_decay(self) -> float:
        """Largest share of the membrane that one step keeps."""
        raise NotImplementedError

    # The threshold.

    def _threshold(self) -> Tensor:
        value = getattr(self, self.threshold_name)
        return value if isinstance(value, Tensor) else torch.tensor(value)

    def smallest_threshold(self) -> float:
        """Smallest threshold of the layer, as a number."""
        return float(self._threshold().detach().double().min())

    def install(
        self,
        membrane: _Membrane | None,
        learnable_threshold: LearnableThreshold | None,
        channels: int | None = None,
        spatial_gate: _SpatialGate | None = None,
    ) -> None:
        """Add the unit, the gate and, where it learns, the threshold's parameter and bounds."""
        check_kind(self, "membrane", membrane, _Membrane)
        check_kind(self, "learnable_threshold", learnable_threshold, LearnableThreshold)
        if not isinstance(spatial_gate, SpatialGate):
            check_kind(self, "spatial_gate", spatial_gate, cfg.SpatialGate)
        if isinstance(spatial_gate, cfg.SpatialGate):
            spatial_gate = SpatialGate(spatial_gate.sparsity, spatial_gate.score)
        self.spatial_gate = spatial_gate
        self.membrane = membrane
        self.learnable_threshold = learnable_threshold
        self._add_unit()
        if learnable_threshold is not None:
            self._learn_threshold(learnable_threshold, channels)
        self.refit()

    def _add_unit(self) -> None:
        # Not by register_buffer, which refuses a name that the class reads as a property.
        self._buffers.pop("membrane_unit", None)
        self._parameters.pop("membrane_scale", None)
        unit = torch.zeros((), dtype=self._constant_dtype(), device=device_of(self))
        if self.follows_mint:
            self.add_scale(unit)
        else:
            self._buffers["membrane_unit"] = None if self.membrane is None else unit

    @property
    def membrane_unit(self) -> Tensor | None:
        """Size of one stored level; None for a float membrane."""
        if self.follows_mint:
            like = self.membrane_scale.detach()
            return self.unit_in_use(like.to(state_dtype(like))).detach()
        return self._buffers["membrane_unit"]

    def _constant_dtype(self) -> torch.dtype:
        """Precision of unit and bounds: the module's own, and at least the default one."""
        default = torch.get_default_dtype()
        for own in (*self._parameters.values(), *self._buffers.values()):
            if own is not None and own.is_floating_point():
                return torch.promote_types(own.dtype, default)
        return default

    def _learn_threshold(self, rule: LearnableThreshold, channels: int | None) -> None:
        value = self._threshold().detach().clone()
        value = value.to(torch.promote_types(value.dtype, torch.float16))
        if not bool((value > 0).all()):
            raise ConversionError(
                f"{type(self).__name__}: threshold {float(value.min()):g} cannot learn, because "
                "its bounds are multiples of it: it must be above 0. Use threshold=None."
            )
        if rule.per_channel:
            if channels is None:
                raise ConversionError(
                    f"{type(self).__name__}(learnable_threshold={rule}): one threshold per channel "
                    "needs the number of channels. Pass channels=..., or a sample to convert."
                )
            if value.numel() not in (1, channels):
                raise ConversionError(
                    f"{type(self).__name__}: the threshold has {value.numel()} values, "
                    f"the neuron {channels} channels: they must agree. Use per_channel=False."
                )
            value = value.flatten().expand(channels).clone()
        self.initial_threshold = value.tolist()
        old = getattr(self, self.threshold_name)
        if not isinstance(old, nn.Parameter) or old.shape != value.shape:
            if isinstance(old, Tensor):
                delattr(self, self.threshold_name)
            setattr(self, self.threshold_name, nn.Parameter(value))
        bounds = torch.zeros(2, *value.shape, dtype=self._constant_dtype(), device=value.device)
        self.register_buffer("threshold_bounds", bounds)

    @torch.no_grad()
    def restore_threshold(self) -> None:
        """Go back to the threshold that the float model had."""
        value = self._threshold()
        value.copy_(value.new_tensor(self.initial_threshold))

    @torch.no_grad()
    def refit(self) -> None:
        """Take unit and bounds from the present threshold, as after loading a float checkpoint."""
        threshold = self.smallest_threshold()
        self.check_mint()
        if self.follows_mint:
            self.fit_scale(threshold)
        elif self.membrane is not None:
            self.membrane_unit.copy_(torch.tensor(self._fresh_unit(self.membrane, threshold)))  # type: ignore[union-attr]
        if self.learnable_threshold is not None:
            low, high = self.learnable_threshold.bounds
            value = self._threshold().detach()
            lower = value * low
            for floor in (self._silent_threshold(value), self.lowest_threshold()):
                # A floor above the initial threshold cannot be kept, so it is none.
                lower = torch.where(value > floor, lower.clamp(min=floor), lower)
            self.threshold_bounds.copy_(torch.stack([lower, value * high]))

    def _fresh_unit(self, membrane: _Membrane, threshold: float) -> float:
        decay = self.largest_decay()
        if not math.isfinite(threshold) or not math.isfinite(decay):
            raise ConversionError(
                f"{type(self).__name__}: threshold {threshold:g} and decay {decay:g} must be "
                "finite. Repair the neuron's parameters."
            )
        if isinstance(membrane.unit, float):
            return membrane.unit
        if threshold <= self.rest:
            raise ConversionError(
                f"{type(self).__name__}: threshold {threshold:g} is not above the rest potential "
                f"{self.rest:g}, so it gives the membrane no unit. Set unit= to a number."
            )
        return fm.default_unit(threshold, self.rest, decay, membrane.default_unit_factor)

    def _silent_threshold(self, value: Tensor) -> float:
        """Lowest threshold under which a silent neuron stays silent, with one per cent to spare."""
        margin = 0.01 * (float(value.double().min()) - self.rest)
        if self.membrane is None:
            return self.rest + margin
        level, unit = self.silent_level(), float(self.membrane_unit)  # type: ignore[arg-type]
        return self.rest + self.largest_decay() * level * unit + margin

    def check(self) -> None:
        """Refuse constants under which the host's way of resetting cannot work."""

    def lowest_threshold(self) -> float:
        """Threshold below which the host's way of resetting would no longer work."""
        return -math.inf

    def threshold_value(self, like: Tensor) -> Tensor | float:
        """The threshold that forward uses: bounded, and shaped to meet ``[N, C, ...]``."""
        value = getattr(self, self.threshold_name)
        if isinstance(value, Tensor):
            value = value.to(dtype=like.dtype)
        if self.learnable_threshold is None:
            return value
        low, high = self.threshold_bounds.to(like.dtype).unbind(0)
        value = bounded_threshold(value, low, high)
        if self.learnable_threshold.per_channel:
            value = value.view(-1, *[1] * (like.ndim - 2))
        return value

    def distance(self, potential: Tensor, threshold: Tensor | float) -> Tensor:
        """``u - V``, with the threshold's own gradient path where it learns."""
        if self.learnable_threshold is None or not isinstance(threshold, Tensor):
            return potential - threshold
        return threshold_distance(potential, threshold, self.learnable_threshold.gradient)

    def reset_threshold(self, threshold: Tensor | float) -> Tensor | float:
        """The amount a soft reset subtracts: a learnable threshold learns from firing only."""
        if self.learnable_threshold is None or not isinstance(threshold, Tensor):
            return threshold
        return threshold.detach()

    # The membrane.

    def store(self, potential: Tensor) -> Tensor:
        """The membrane that is kept of a potential."""
        rule = self.membrane
        if rule is None:
            return potential
        return fm.quantize_membrane(
            potential,
            self.membrane_unit.to(potential.dtype),  # type: ignore[union-attr]
            self.rest,
            lowest=rule.lowest,
            highest=rule.highest,
            cut_points=rule.cut_points,
            shape=rule.shape,
            temperature=rule.temperature,
        )

    @torch.no_grad()
    def levels(self, potential: Tensor) -> Tensor:
        """``Q(u)`` in units; a float membrane's distance from rest."""
        rule = self.membrane
        if rule is None:
            return potential - self.rest
        unit = self.membrane_unit.to(potential.dtype)  # type: ignore[union-attr]
        z = (potential - self.rest) / unit
        return fm.level_of(z, rule.lowest, rule.highest, rule.cut_points)

    def membrane_of(self, levels: Tensor) -> Tensor:
        """The membrane that is stored as these levels."""
        offset = levels * self.membrane_unit.to(levels.dtype)  # type: ignore[union-attr]
        return offset + self.rest if self.rest else offset

    @torch.no_grad()
    def stored_levels(self, membrane: Tensor) -> Tensor:
        """The levels that a stored membrane holds; a float membrane's distance from rest.

        Not :meth:`levels` of it: a stored 0 lies on a boundary of the printed Eq. 7.
        """
        offset = membrane - self.rest
        if self.membrane is None:
            return offset
        return (offset / self.membrane_unit.to(membrane.dtype)).round()  # type: ignore[union-attr]

    # One step as a function of the state, for who has to know it value by value.

    spike_size = 1.0  # what a spike counts for in the next layer
    remembers = False  # whether a spike resets in the next step only

    def reset_words(self) -> str:
        """How this neuron resets, in words."""
        raise NotImplementedError

    def several_inputs(self) -> str | None:
        """What this neuron adds up besides its input and its membrane, or None."""
        return None

    def outcome(self, current: Tensor, levels: Tensor, fired: Tensor) -> Outcome:
        """One step from stored levels and remembered spikes; no gate, and no state of its own."""
        raise NotImplementedError

    # All steps at once.

    def recurrence(
        self, slope: tuple[str, float], reset: str, *, detach_reset: bool = False
    ) -> Rule:
        """What the fused recurrence fixes for this neuron."""
        rule, threshold = self.membrane, getattr(self, self.threshold_name)
        learns = isinstance(threshold, Tensor) and threshold.requires_grad
        gradient = "host" if learns else "none"
        if self.learnable_threshold is not None:
            gradient = self.learnable_threshold.gradient
        fixed = Rule(
            reset=reset,
            detach_reset=detach_reset,
            strict=not self.fires_on_threshold,
            rest=float(self.rest),
            slope=slope[0],
            sharpness=slope[1],
            threshold_gradient=gradient,
        )
        if rule is None:
            return fixed
        return fixed._replace(
            lowest=rule.lowest,
            highest=rule.highest,
            cut_points=rule.cut_points or (),
            shape=rule.shape,
            temperature=rule.temperature,
        )

    def run_fused(self, x_seq: Tensor, rule: Rule, **options: Any) -> Sequence:
        """All steps ``[T, N, ...]`` as one operation."""
        threshold = self.threshold_value(x_seq[0].to(state_dtype(x_seq)))
        return membrane_sequence(
            x_seq, rule, threshold=threshold, unit=self.membrane_unit, **options
        )

    def silent_level(self) -> int:
        """Highest level that a neuron below its threshold can store."""
        rule = self.membrane
        if rule is None:
            raise ConversionError(f"{type(self).__name__} keeps its membrane in float: no levels.")
        if self.follows_mint:
            return self.silent_mint_level(self.smallest_threshold())
        unit = float(self.membrane_unit)  # type: ignore[arg-type]
        return fm.self_firing_level(
            self.smallest_threshold(), unit, self.rest, rule.lowest, rule.highest, rule.cut_points
        )

    fires_on_threshold = True

    def self_firing(self) -> SelfFiring | None:
        """Whether a silent neuron would fire without input, and from which unit on."""
        if self.membrane is None:
            return None
        level, unit, decay = self.silent_level(), float(self.membrane_unit), self.largest_decay()  # type: ignore[arg-type]
        height = self.smallest_threshold() - self.rest
        reached = decay * level * unit
        if reached > height or (reached == height and self.fires_on_threshold):
            safe = height / (decay * level) if height > 0 else 0.0
            return SelfFiring(decay, unit, height, level, safe)
        return None

    def neuron_repr(self) -> str:
        """What the mixin adds to ``extra_repr``."""
        unit = None if self.membrane is None else round(float(self.membrane_unit), 6)  # type: ignore[arg-type]
        parts = [f"membrane={self.membrane}", f"membrane_unit={unit}"]
        if self.learnable_threshold is not None:
            parts.append(f"learnable_threshold={self.learnable_threshold}")
        return ", ".join(parts)
