"""Quantised layers, norms and gates for snnTorch models, which hold torch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modules.gates import ChannelGate, SpatialGate
from ..modules.layers import (
    TORCH_LAYERS,
    QuantizedBatchNorm1d,
    QuantizedBatchNorm2d,
    QuantizedBatchNorm3d,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
)
from ..modules.quantized_layer import QuantizedLayer

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
    "QuantizedOneToOne",
    "SpatialGate",
]

LAYERS = TORCH_LAYERS


class QuantizedOneToOne(QuantizedLayer):
    """The one-to-one recurrent weight ``V`` of RLeaky and RSynaptic, under one common scale."""

    V: Tensor
    bias = None

    @property
    def weight(self) -> Tensor:
        return self.V

    def rows(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def unrows(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.V.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(torch.mul, x, -1)
