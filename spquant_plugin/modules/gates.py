"""The channel gate as a module: it stands behind a weight layer, or acts on one by hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import config as cfg
from ..errors import GateError
from ..functional import gates as fg
from .neuron import QuantizedNeuron
from .spatial_gate import SpatialGate
from .weight_quantizer import build_weight_quantizer

__all__ = ["ChannelGate", "SpatialGate", "own_gate"]

WEIGHTS = cfg.UniformWeights(8)


class ChannelGate(nn.Module):
    """Closes output channels of a layer, decided in each step by the neurons before it.

    Call it behind the layer's normalisation. With ``source="membrane"`` it reads what ``neuron``,
    the one whose spikes the layer takes, stored in this very step; with ``source="input"`` it is
    called with the layer's input as well. ``channel_dim`` is the axis of the gated channels,
    counted from the end, where that is not the first after batch (and time): -3 behind a 2d
    convolution in a container that folds time into the batch.

    ``open_mask`` is the last call's mask ``[..., C]``.

    >>> from spquant_plugin.spikingjelly import neuron
    >>> lif = neuron.TernaryMembraneLIFNode()
    >>> conv, gate = nn.Conv2d(2, 4, 3, padding=1), ChannelGate(2, 4, neuron=lif)
    >>> spikes = lif(torch.rand(1, 2, 8, 8))
    >>> gate(conv(spikes)).shape, gate.open_mask.shape
    (torch.Size([1, 4, 8, 8]), torch.Size([1, 4]))
    """

    # A dry run leaves out the hooks of a model, which report to the outside; not those of a gate.
    acts_by_hooks = True
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        threshold: float = 0.47,
        score: str = "sigmoid",
        source: str = "membrane",
        *,
        neuron: nn.Module | None = None,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.rule = cfg.ChannelGate(threshold, score, source)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise GateError(
                    f"ChannelGate({name}={value!r}): must be a whole number above 0. Pass the "
                    "channels that the source has, and those of the gated layer's output."
                )
        if channel_dim is not None and (type(channel_dim) is not int or channel_dim >= 0):
            raise GateError(
                f"ChannelGate(channel_dim={channel_dim!r}): must be a whole number below 0, an "
                "axis counted from the end: -3 for [..., C, H, W]. Correct it or leave it out."
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.channel_dim = channel_dim
        # In a tuple: the neuron is a module of the network, not of the gate.
        self._neuron = () if neuron is None else (self._checked(neuron),)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.weight_quantizer = build_weight_quantizer(WEIGHTS, out_channels)
        self.open_mask: Tensor | None = None
        self._heard: tuple[Tensor, int] | None = None
        self._closed: Tensor | None = None
        self._calls: Tensor | None = None
        self.reset_parameters()

    def _checked(self, neuron: nn.Module) -> QuantizedNeuron:
        quantized = isinstance(neuron, QuantizedNeuron) and neuron.membrane is not None
        if isinstance(neuron, QuantizedNeuron) and (quantized or self.source == "input"):
            neuron.watched = True
            return neuron
        remedy = "use source='input'" if self.source == "membrane" else "leave neuron= out"
        raise GateError(
            f"ChannelGate(neuron={type(neuron).__name__}): must be a neuron of spquant_plugin with "
            f"a quantised membrane, whose levels are summed. Convert it, or {remedy}."
        )

    @property
    def neuron(self) -> QuantizedNeuron | None:
        """The source neuron, whose membrane decides."""
        return self._neuron[0] if self._neuron else None

    @property
    def source(self) -> str:
        """What decides: the source neuron's ``"membrane"``, or the layer's ``"input"``."""
        return self.rule.source

    @property
    def threshold_logit(self) -> float:
        """The sigmoid's argument at the threshold."""
        return fg.logit(self.rule.threshold)

    def reset_parameters(self) -> None:
        """Start open, by margins that differ, lest all channels close at the same moment.

        Under a softmax few channels can be open, at the start as later.
        """
        rule = self.neuron.membrane if self.neuron is not None else None
        top = 1 if rule is None or self.source == "input" else max(-rule.lowest, rule.highest)
        reach = 1 / (self.in_channels * top)
        nn.init.uniform_(self.weight, -reach, reach)
        nn.init.uniform_(self.bias, self.threshold_logit + 0.2, self.threshold_logit + 0.6)

    # The decision.

    def forward(self, current: Tensor, x: Tensor | None = None) -> Tensor:
        """The current, zero where a channel is closed."""
        sums, area = self._sums(x)
        if sums.shape[-1] != self.in_channels:
            raise GateError(
                f"ChannelGate({self.in_channels}, {self.out_channels}): its source has "
                f"{sums.shape[-1]} channels: must be {self.in_channels}. Correct in_channels."
            )
        mask = fg.open_channels(self.logits(sums, area), self.rule.threshold, self.rule.score)
        fitted = self._fitted(mask, current)
        self.open_mask = mask.detach()
        self._record(mask)
        return current * fitted.to(current.dtype)

    def logits(self, sums: Tensor, area: int) -> Tensor:
        """Scores ``[..., C_out]`` of whole numbers ``[..., C_in]`` summed over ``area`` pixels."""
        levels, scale = self.weight_quantizer(self.weight)
        return fg.channel_logits(sums, area, levels, scale.flatten(), self.bias)

    def _sums(self, x: Tensor | None) -> tuple[Tensor, int]:
        if self.source == "input":
            heard = self._heard if x is None else self._over_space(x)
            if heard is None:
                raise GateError(
                    "ChannelGate(source='input'): received no input: must be called with the "
                    "layer's input as well. Call gate(current, x)."
                )
            return heard
        neuron = self.neuron
        if neuron is None or neuron.level_sums is None:
            fault = "has no source neuron" if neuron is None else "ran before its source neuron"
            raise GateError(
                f"ChannelGate({self.in_channels}, {self.out_channels}) {fault}: must know the "
                "membrane of this step. Pass neuron=..., and call that neuron first."
            )
        return neuron.level_sums, neuron.level_area

    def _lead(self, x: Tensor, axis: int | None) -> int:
        """Number of leading axes, batch and perhaps time, that a mask has."""
        if self.neuron is not None and self.neuron.level_sums is not None:
            lead = self.neuron.level_sums.shape[:-1]
            return len(lead) if x.shape[: len(lead)] == lead else 1
        return self.lead_dims() if axis is None else x.ndim + axis

    def lead_dims(self) -> int:
        """Leading axes where no source neuron tells: one step has its batch alone."""
        return 1

    @torch.no_grad()
    def _over_space(self, x: Tensor, axis: int | None = None) -> tuple[Tensor, int]:
        """Sums over space of an input whose channels lie on ``axis``, and the number of pixels."""
        lead = self._lead(x, axis)
        pixels = x.movedim(lead if axis is None else axis, lead).unsqueeze(-1).flatten(lead + 1)
        # Half precision cannot hold the sum of many spikes.
        return pixels.sum(-1, dtype=torch.float64), pixels.shape[-1]

    def _fitted(self, mask: Tensor, current: Tensor) -> Tensor:
        """The mask in the current's layout; a current may have time and batch in one axis."""
        axis = mask.ndim - 1 if self.channel_dim is None else current.ndim + self.channel_dim
        lead, decided, channels = current.shape[:axis], mask.shape[:-1], mask.shape[-1]
        fits = 0 < axis < current.ndim and current.shape[axis] == self.out_channels
        behind = [1] * (current.ndim - axis - 1)
        if fits and len(lead) == 1 and lead.numel() == decided.numel():
            return mask.reshape(*lead, channels, *behind)
        between = [1] * (axis - len(decided))  # tokens, say, between batch and channels
        if fits and lead[: len(decided)] == decided:
            return mask.reshape(*decided, *between, channels, *behind)
        raise GateError(
            f"ChannelGate({self.in_channels}, {self.out_channels}): received a current of shape "
            f"{tuple(current.shape)} for a decision of shape {tuple(mask.shape)}: must have the "
            "same batch (and time) and the gated channels. Correct out_channels or channel_dim."
        )

    # What was closed.

    def _record(self, mask: Tensor) -> None:
        """Average over the steps from one start to the next, single ones or those of sequences."""
        closed = (1 - mask.mean()) * self._steps()
        goes_on = self.neuron is not None and not self.neuron.began and self._closed is not None
        self._closed = self._closed + closed if goes_on else closed  # type: ignore[operator]
        # A tensor: a compiled step would be compiled anew for every number.
        steps = torch.full_like(closed, self._steps())
        self._calls = self._calls + steps if goes_on else steps  # type: ignore[operator]

    def _steps(self) -> int:
        """Time steps that a decision covers; where no source neuron tells, nothing goes on."""
        sums = None if self.neuron is None else self.neuron.level_sums
        return sums.shape[0] if sums is not None and sums.ndim == 3 else 1

    def closed_fraction(self) -> Tensor | None:
        """Share of channels that the last forward closed, differentiable; None before any.

        Averaged over all steps, batch and channels. Where a sequence is a loop of single steps, it
        goes back to where ``neuron`` last started from a state that it had not left itself (reset,
        detached or handed in).
        """
        return None if self._closed is None else self._closed / self._calls  # type: ignore[operator]

    # Acting on a layer from the outside.

    def attach(self, layer: nn.Module, end: nn.Module, input_dim: int) -> None:
        """Gate what ``end``, ``layer`` or its normalisation, returns.

        ``input_dim`` is the axis of the channels in the layer's input, counted from the end.
        """
        self.input_dim = input_dim
        if self.source == "input":
            layer.register_forward_pre_hook(self.hear, with_kwargs=True)
        end.register_forward_hook(self.act)

    def hear(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in what the layer is given."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._heard = self._over_space(x, self.input_dim)

    def act(self, end: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Gate what the layer gives."""
        return self(output)

    def _replicate_for_data_parallel(self) -> Any:
        raise GateError(
            "ChannelGate: nn.DataParallel copies modules without their hooks' owners, so a gate "
            "would decide for another replica: must run in one. Use DistributedDataParallel."
        )

    def __getstate__(self) -> dict[str, Any]:
        # A graph can neither be copied nor stored.
        state = self.__dict__.copy()
        state["_closed"] = None if self._closed is None else self._closed.detach()
        return state

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels} -> {self.out_channels}, threshold={self.rule.threshold:g}, "
            f"score={self.rule.score!r}, source={self.source!r}"
        )


def own_gate(layer: nn.Module) -> ChannelGate | None:
    """The channel gate that conversion gave a layer."""
    gate = layer._modules.get("channel_gate")
    return gate if isinstance(gate, ChannelGate) else None
