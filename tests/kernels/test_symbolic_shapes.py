"""Layouts are found alike whether sizes and strides are numbers or a compiler's symbols."""

from __future__ import annotations

import itertools

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor

import spquant_plugin as spq
from spquant_plugin.kernels.sequence import _by_stride


def sorted_axes(x: Tensor) -> list[int]:
    """The same order by Python's own stable sort."""
    steps = [step if size > 1 else 0 for step, size in zip(x.stride(), x.shape, strict=True)]
    return sorted(range(1, x.ndim), key=lambda axis: -steps[axis])


@pytest.mark.parametrize(
    "shape", [(3, 4), (3, 4, 5), (3, 1, 5, 6, 7), (3, 4, 1, 1, 7), (3, 4, 5, 1, 1), (2, 4, 4, 4, 4)]
)
def test_axes_are_in_the_order_of_their_strides(shape):
    for order in itertools.permutations(range(len(shape))):
        back = [order.index(axis) for axis in range(len(shape))]
        x = torch.empty([shape[axis] for axis in order]).permute(back)
        repeated = x[:, :1].expand(shape)
        assert x.shape == repeated.shape == shape
        assert _by_stride(x) == sorted_axes(x)
        assert _by_stride(repeated) == sorted_axes(repeated)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_network_takes_pictures_of_other_sizes(dynamic):
    torch.compiler.reset()
    parts = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.IFNode()
    model = torch.nn.Sequential(*parts, layer.Conv2d(4, 3, 3), neuron.LIFNode(v_threshold=0.2))
    torch.nn.init.uniform_(model[3].weight, -0.1, 0.3)
    functional.set_step_mode(model, "m")
    model = spq.convert(model, spq.presets.quant_snn()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
    for shape in ((4, 3, 2, 8, 8), (4, 3, 2, 10, 12), (5, 1, 2, 9, 9)):
        x = torch.rand(shape) * 4
        spikes = []
        for network in (model, compiled):
            spq.reset(model)
            with torch.no_grad():
                spikes.append(network(x))
        assert 0 < float(spikes[0].mean()) < 1
        assert torch.equal(*spikes)
