"""SpikingJelly layers on quantised weights, in both step modes, their norms, and gates.

Torch's own layers, as they stand inside ``SeqToANNContainer``, have their twins in
``spquant_plugin.modules.layers``.
"""

from __future__ import annotations

from spikingjelly.activation_based import base, functional, layer
from torch import Tensor, nn

from ..modules import gates
from ..modules.gates import SpatialGate
from ..modules.layers import TORCH_LAYERS, TORCH_NORMS
from ..modules.quantized_layer import (
    ConvMixin,
    ConvTransposeMixin,
    LinearMixin,
    QuantizedLayer,
)
from ..modules.quantized_norm import QuantizedBatchNorm
from .step_counter import StepCounter

__all__ = [
    "ChannelGate",
    "QuantizedBatchNorm1d",
    "QuantizedBatchNorm2d",
    "QuantizedBatchNorm3d",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedConvTranspose1d",
    "QuantizedConvTranspose2d",
    "QuantizedConvTranspose3d",
    "QuantizedLinear",
    "SpatialGate",
]


class ChannelGate(gates.ChannelGate, base.StepModule):
    """A channel gate for both step modes: currents ``[T, N, C, ...]`` in mode "m".

    >>> import torch
    >>> from spquant_plugin.spikingjelly import neuron
    >>> lif = neuron.TernaryMembraneLIFNode(step_mode="m")
    >>> conv, gate = QuantizedConv2d(2, 4, 3, step_mode="m"), ChannelGate(2, 4, neuron=lif)
    >>> gated = gate(conv(lif(torch.rand(5, 1, 2, 8, 8))))
    >>> gated.shape, gate.open_mask.shape
    (torch.Size([5, 1, 4, 6, 6]), torch.Size([5, 1, 4]))
    """

    _step_mode = "s"

    def lead_dims(self) -> int:
        return 2 if self.step_mode == "m" else 1


class _Stepped(QuantizedLayer):
    """The step mode says whether a layer is given one step or all."""

    step_mode: str

    @property
    def takes_sequences(self) -> bool:
        return self.step_mode == "m"

    def build_counter(self) -> StepCounter:
        return StepCounter()


class _StepConv(_Stepped, ConvMixin):
    def forward(self, x: Tensor) -> Tensor:
        # A sequence of fewer dimensions is an error that the host's own layer words.
        if self.is_temporal and self.takes_sequences and x.ndim == self.weight.ndim + 1:
            return self.forward_steps(x)
        return super().forward(x)


class QuantizedConv1d(_StepConv, layer.Conv1d):
    """SpikingJelly's ``Conv1d`` on quantised weights."""


class QuantizedConv2d(_StepConv, layer.Conv2d):
    """SpikingJelly's ``Conv2d`` on quantised weights.

    >>> import torch, spquant_plugin as spq
    >>> conv = QuantizedConv2d(2, 4, 3, step_mode="m", weights=spq.PowerOfTwoWeights(2))
    >>> conv(torch.zeros(5, 1, 2, 8, 8)).shape
    torch.Size([5, 1, 4, 6, 6])
    """


class QuantizedConv3d(_StepConv, layer.Conv3d):
    """SpikingJelly's ``Conv3d`` on quantised weights."""


class _StepTransposed(ConvTransposeMixin):
    step_mode: str

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if self.step_mode == "s":
            return self.convolve_transposed(x)
        if x.ndim != self.weight.ndim + 1:
            raise ValueError(
                f"expected x with shape [T, N, C, ...] of {self.weight.ndim + 1} dimensions in "
                f"step mode 'm', but got {tuple(x.shape)}. Add what is missing, or use mode 's'."
            )
        return functional.seq_to_ann_forward(x, (self.convolve_transposed,))


class QuantizedConvTranspose1d(_StepTransposed, layer.ConvTranspose1d):
    """SpikingJelly's ``ConvTranspose1d`` on quantised weights."""


class QuantizedConvTranspose2d(_StepTransposed, layer.ConvTranspose2d):
    """SpikingJelly's ``ConvTranspose2d`` on quantised weights."""


class QuantizedConvTranspose3d(_StepTransposed, layer.ConvTranspose3d):
    """SpikingJelly's ``ConvTranspose3d`` on quantised weights."""


class QuantizedLinear(_Stepped, LinearMixin, layer.Linear):
    """SpikingJelly's ``Linear`` on quantised weights."""


class QuantizedBatchNorm1d(QuantizedBatchNorm, layer.BatchNorm1d):
    """SpikingJelly's ``BatchNorm1d`` in a quantised form, by default with dyadic factors."""


class QuantizedBatchNorm2d(QuantizedBatchNorm, layer.BatchNorm2d):
    """SpikingJelly's ``BatchNorm2d`` in a quantised form, by default with dyadic factors.

    >>> import torch, spquant_plugin as spq
    >>> conv = QuantizedConv2d(2, 4, 3, step_mode="m", weights=spq.PowerOfTwoWeights(2))
    >>> norm = QuantizedBatchNorm2d(4, step_mode="m", layer=conv)
    >>> norm(conv(torch.zeros(5, 1, 2, 8, 8))).shape
    torch.Size([5, 1, 4, 6, 6])
    """


class QuantizedBatchNorm3d(QuantizedBatchNorm, layer.BatchNorm3d):
    """SpikingJelly's ``BatchNorm3d`` in a quantised form, by default with dyadic factors."""


LAYERS: dict[type[nn.Module], type[QuantizedLayer]] = {
    layer.Conv1d: QuantizedConv1d,
    layer.Conv2d: QuantizedConv2d,
    layer.Conv3d: QuantizedConv3d,
    layer.ConvTranspose1d: QuantizedConvTranspose1d,
    layer.ConvTranspose2d: QuantizedConvTranspose2d,
    layer.ConvTranspose3d: QuantizedConvTranspose3d,
    layer.Linear: QuantizedLinear,
    **TORCH_LAYERS,
}

NORMS: dict[type[nn.Module], type[QuantizedBatchNorm]] = {
    layer.BatchNorm1d: QuantizedBatchNorm1d,
    layer.BatchNorm2d: QuantizedBatchNorm2d,
    layer.BatchNorm3d: QuantizedBatchNorm3d,
    **TORCH_NORMS,
}
