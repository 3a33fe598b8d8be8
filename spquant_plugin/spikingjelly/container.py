"""The host's container of stateless layers, for layers whose weight changes with the time step."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import Tensor

from ..modules.quantized_layer import QuantizedLayer, shallow

__all__ = ["TemporalSeqToANNContainer"]


class TemporalSeqToANNContainer(layer.SeqToANNContainer):
    """A ``SeqToANNContainer`` that tells the layers in it how many steps it folds into the batch.

    >>> import torch, spquant_plugin as spq
    >>> from torch import nn
    >>> from spquant_plugin.modules.layers import QuantizedLinear
    >>> inner = QuantizedLinear(3, 2, weights=spq.TemporalTernaryWeights())
    >>> net = TemporalSeqToANNContainer(inner, nn.BatchNorm1d(2))
    >>> net(torch.rand(4, 5, 3)).shape, inner.timesteps
    (torch.Size([4, 5, 2]), 4)
    """

    @classmethod
    def from_host(cls, container: layer.SeqToANNContainer) -> TemporalSeqToANNContainer:
        """Twin of a container: it has the same children under the same keys, and its hooks."""
        twin = cls.__new__(cls)
        twin.__dict__.update({name: shallow(value) for name, value in container.__dict__.items()})
        return twin

    def forward(self, x_seq: Tensor) -> Tensor:
        layers = [m for m in self.modules() if isinstance(m, QuantizedLayer) and m.is_temporal]
        try:
            for module in layers:
                module.given_steps = x_seq.shape[0]
            return super().forward(x_seq)
        finally:
            for module in layers:
                module.given_steps = None
