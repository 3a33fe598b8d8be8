"""Quantised versions of torch's own layers and norms, and how one finds its quantised class."""

from __future__ import annotations

from torch import nn

from .quantized_layer import (
    ConvMixin,
    ConvTransposeMixin,
    LinearMixin,
    QuantizedLayer,
)
from .quantized_norm import QuantizedBatchNorm


class QuantizedConv1d(ConvMixin, nn.Conv1d):
    """:class:`torch.nn.Conv1d` on quantised weights."""


class QuantizedConv2d(ConvMixin, nn.Conv2d):
    """:class:`torch.nn.Conv2d` on quantised weights.

    >>> import torch, spquant_plugin as spq
    >>> layer = QuantizedConv2d(1, 4, 3, weights=spq.PowerOfTwoWeights(2))
    >>> layer(torch.zeros(1, 1, 5, 5)).shape
    torch.Size([1, 4, 3, 3])
    >>> bool((layer.effective_weight().abs().log2() % 1 == 0).any())
    True
    """


class QuantizedConv3d(ConvMixin, nn.Conv3d):
    """:class:`torch.nn.Conv3d` on quantised weights."""


class QuantizedConvTranspose1d(ConvTransposeMixin, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` on quantised weights."""


class QuantizedConvTranspose2d(ConvTransposeMixin, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on quantised weights."""


class QuantizedConvTranspose3d(ConvTransposeMixin, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` on quantised weights."""


class QuantizedLinear(LinearMixin, nn.Linear):
    """:class:`torch.nn.Linear` on quantised weights."""


class QuantizedBatchNorm1d(QuantizedBatchNorm, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` in a quantised form, by default with dyadic factors."""


class QuantizedBatchNorm2d(QuantizedBatchNorm, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` in a quantised form, by default with dyadic factors.

    >>> import torch, spquant_plugin as spq
    >>> conv = QuantizedConv2d(1, 4, 3, weights=spq.UniformWeights(4))
    >>> norm = QuantizedBatchNorm2d(4, layer=conv, norm=spq.QuantizedNorm(bits=4)).eval()
    >>> output = norm(conv(torch.ones(1, 1, 3, 3)))
    >>> whole = output * 2**norm.dyadic().shift
    >>> bool((whole == whole.round()).all())
    True
    """


class QuantizedBatchNorm3d(QuantizedBatchNorm, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` in a quantised form, by default with dyadic factors."""


TORCH_LAYERS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
    nn.Linear: QuantizedLinear,
}

TORCH_NORMS: dict[type[nn.Module], type[QuantizedBatchNorm]] = {
    nn.BatchNorm1d: QuantizedBatchNorm1d,
    nn.BatchNorm2d: QuantizedBatchNorm2d,
    nn.BatchNorm3d: QuantizedBatchNorm3d,
}
