r"""Layers whose weight changes with the time step.

Such a layer must know the step of what it is given. It learns that in one of three ways: it is
given a whole sequence ``[T, N, ...]``; a container tells it how many steps are folded into the
batch (``given_steps``); or it is called once per step and counts (``counter``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConversionError, TimestepError
from .input_quantizer import InputQuantizer
from .step_counter import StepCounter
from .weight_quantizer import TemporalQuantizer

Operation = Callable[[Tensor, Tensor], Tensor]


class _Held(NamedTuple):
    """Weights of all steps, kept from the first step of a sequence to its last."""

    state: tuple[Any, ...]
    levels: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]


class TemporalLayer(nn.Module):
    """The part of a quantised layer that knows time. Without temporal weights it does nothing."""

    weight: Any
    bias: Any
    weight_quantizer: Any
    input_quantizer: InputQuantizer | None
    counter: StepCounter | None
    changes_with_time = False  # whether this kind of layer can have temporal weights
    given_steps: int | None = None
    path = ""  # in the converted model, for errors

    @property
    def is_temporal(self) -> bool:
        """Whether the weight changes with the time step."""
        return isinstance(self.weight_quantizer, TemporalQuantizer)

    @property
    def timesteps(self) -> int | None:
        """Number of steps for which there are weights; None as long as it is not known."""
        return self.weight_quantizer.timesteps if self.is_temporal else None

    @property
    def takes_sequences(self) -> bool:
        """Whether the first dimension of the input is time."""
        return self.counter is not None and self.counter.takes_sequences

    def build_counter(self) -> StepCounter | None:
        """The host's counter; None where only the conversion knows how the layer is called."""
        return None

    def prepare_for_time(self) -> None:
        """After the quantisers are there: install what temporal weights need."""
        if self.is_temporal and not self.changes_with_time:
            raise ConversionError(
                f"{type(self).__name__} received {self.weight_quantizer.rule}: weights that change "
                "with the time step exist for Linear, Conv1d, Conv2d and Conv3d. Choose another "
                "quantiser for this layer."
            )
        self.counter = self.build_counter() if self.is_temporal else None

    def step_weights(self, timesteps: int | None = None) -> tuple[Tensor, Tensor]:
        """Levels ``[T, *weight.shape]`` and scales ``[T, C_out]`` of all steps, differentiable."""
        levels, scale = self._each_step(self._agreed(timesteps))
        return torch.stack(levels), scale

    def _agreed(self, timesteps: int | None) -> int:
        """The number of steps to quantise for, where all that is known agrees."""
        if not self.is_temporal:
            raise ConversionError(
                f"{self._name()}: its weight is the same in every step. Use quantized_weight()."
            )
        known = self.timesteps
        if timesteps is None:
            if known is None:
                rule = type(self.weight_quantizer.rule).__name__
                raise TimestepError(
                    f"{self._name()}: the number of time steps is not known yet. Run the layer on "
                    f"a sequence once, or give timesteps= to {rule}."
                )
            return known
        if known is not None and timesteps != known:
            raise TimestepError(
                f"{self._name()}: received {timesteps} time steps, and its weights are for "
                f"{known}. Every sequence must have the same number of steps; train and convert "
                f"with timesteps={timesteps} for such sequences."
            )
        return timesteps

    def _each_step(self, timesteps: int) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.weight_quantizer.steps(self.weight, timesteps)

    def _name(self) -> str:
        kind = type(self).__name__
        return f"{self.path} ({kind})" if self.path else kind

    # Computing.

    def operation(self) -> tuple[Operation, int]:
        """What the layer does with an input and levels, and where its output has its channels."""
        raise NotImplementedError

    def forward_steps(self, x_seq: Tensor) -> Tensor:
        """A whole sequence ``[T, N, ...]``, with the weight of each step."""
        return self._run_steps(*self.operation(), x_seq)

    def run_in_time(self, operation: Operation, x: Tensor, channel_dim: int) -> Tensor:
        """Run what the layer was called with, as the surroundings say what that is."""
        if self.given_steps is not None:
            return self._run_folded(operation, channel_dim, x, self.given_steps)
        if self.takes_sequences:
            return self._run_steps(operation, channel_dim, x)
        if self.counter is None:
            raise TimestepError(
                f"{self._name()} received {tuple(x.shape)} and cannot tell which time step that "
                "is. Convert the model as a whole, so that its surroundings tell the layer, or "
                "call forward_steps(x_seq) with a sequence [T, N, ...]."
            )
        timesteps = self.timesteps
        if timesteps is None:
            raise TimestepError(
                f"{self._name()} is called step by step, and the number of steps is not known. "
                "Give TemporalTernaryWeights(timesteps=...)."
            )
        try:
            step = self.counter.next(timesteps)
        except TimestepError as error:
            raise TimestepError(f"{self._name()} {error}") from None
        levels, scale = self._step_of_sequence(step, timesteps)
        return self._compute(operation, channel_dim, x, levels, scale)

    def _run_folded(self, operation: Operation, channel_dim: int, x: Tensor, steps: int) -> Tensor:
        if x.shape[0] % steps:
            raise TimestepError(
                f"{self._name()} received {tuple(x.shape)} where {steps} time steps are folded "
                f"into the first dimension: it must be a multiple of {steps}. Keep samples whole "
                "between the container and the layer."
            )
        folded = x.unflatten(0, (steps, x.shape[0] // steps))
        return self._run_steps(operation, channel_dim, folded).flatten(0, 1)

    def _run_steps(self, operation: Operation, channel_dim: int, x_seq: Tensor) -> Tensor:
        levels, scale = self._each_step(self._agreed(x_seq.shape[0]))
        self.weight_quantizer.timesteps = x_seq.shape[0]

        def each(x_seq: Tensor, levels: tuple[Tensor, ...]) -> Tensor:
            steps = zip(x_seq.unbind(), levels, strict=True)
            return torch.stack([operation(x, step) for x, step in steps])

        return self._compute(each, channel_dim, x_seq, levels, scale)

    def _step_of_sequence(self, step: int, timesteps: int) -> tuple[Tensor, Tensor]:
        """Levels and scale of one step. All steps are quantised together, at the first."""
        counter, weight = self.counter, self.weight
        if counter is None or torch.compiler.is_compiling() or weight.is_inference():
            levels, scale = self._each_step(timesteps)
            return levels[step], scale[step]
        # Whatever could make the kept levels wrong, or of no use for a backward pass.
        state = (weight._version, weight.data_ptr(), weight.requires_grad, torch.is_grad_enabled())
        held = counter.held
        if step == 0 or held is None or held.state != state:
            levels, scale = self._each_step(timesteps)
            held = _Held(state, levels, scale.unbind())
            for tensor in (*levels, scale):
                if tensor.requires_grad:
                    tensor.register_hook(_forgetting(counter))
        counter.held = held if step + 1 < timesteps else None
        return held.levels[step], held.scales[step]

    def _compute(
        self,
        operation: Callable[[Tensor, Any], Tensor],
        channel_dim: int,
        x: Tensor,
        levels: Tensor | tuple[Tensor, ...],
        scale: Tensor,
    ) -> Tensor:
        """The sums of levels, then the scales, then the bias; of one step or of all.

        ``scale`` is ``[C]`` with one step's levels, ``[T, C]`` with those of all.
        """
        step = None
        if self.input_quantizer is not None:
            x, step = self.input_quantizer(x)
        factor: Tensor | None = scale if step is None else scale * step
        if is_float16(x):
            # Sums of whole numbers leave float16's range; there the scales go in first.
            levels = _scaled(levels, scale)
            x, factor = x if step is None else x * step, None
        y = operation(x, levels)
        dtype, trailing = y.dtype, (1,) * (-channel_dim - 1)
        if factor is not None:
            lead = factor.shape[:-1]
            between = (1,) * (y.ndim - len(lead) - 1 - len(trailing))
            y = y * factor.view(*lead, *between, -1, *trailing)
        if self.bias is not None:
            y = y + self.bias.view(-1, *trailing)
        return y.to(dtype)


def _scaled(levels: Tensor | tuple[Tensor, ...], scale: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Levels with their scales inside, which is not exact; of one step or of all."""
    if isinstance(levels, tuple):
        return tuple(map(_scaled, levels, scale.unbind()))  # type: ignore[arg-type]
    return (levels * scale.view(-1, *[1] * (levels.ndim - 1))).to(levels.dtype)


def _forgetting(counter: StepCounter) -> Callable[[Tensor], None]:
    """A backward pass frees the graph of what is held, so the next step must quantise anew."""
    reference = weakref.ref(counter)

    def forget(_: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive.held = None

    return forget


def is_float16(x: Tensor) -> bool:
    """Whether an operation on this input computes in float16."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type) == torch.float16
    return x.dtype == torch.float16
