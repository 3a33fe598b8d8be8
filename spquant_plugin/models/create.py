"""Build a network by its name."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from .registry import NETWORKS, find, networks_of
from .request import MakeNeuron, Request, known_options_only


@known_options_only
def create(
    name: str,
    *,
    host: str = "spikingjelly",
    in_channels: int,
    size: int | tuple[int, int],
    num_classes: int,
    neuron: MakeNeuron | None = None,
    width: float = 1.0,
) -> nn.Module:
    """Create a spiking network with new weights; ``torch.manual_seed`` makes it reproducible.

    A network of SpikingJelly is in multi-step mode: ``[T, N, C, H, W]`` to ``[T, N, classes]``.
    One of snnTorch takes a single time step, ``[N, C, H, W]`` to ``[N, classes]``: call
    ``spq.reset(net)`` before each sequence, then the network once per step.

    ``size`` is the height and width of the input, one number where they are equal. ``neuron`` is a
    class or another callable without arguments that returns a new neuron of the host; the default
    is the paper's (decay 0.5, threshold 1, hard reset to 0). ``width`` multiplies every hidden
    channel count.

    Raises ``ModelError`` for a name, host, option or size that does not exist or cannot be taken,
    and ``MissingHostError`` where the host is not installed.

    >>> from functools import partial
    >>> from spikingjelly.activation_based import neuron
    >>> slow = partial(neuron.ParametricLIFNode, init_tau=4.0, decay_input=False)
    >>> net = create("vgg9", in_channels=2, size=48, num_classes=10, neuron=slow, width=0.25)
    >>> net.conv1, net.neuron1.v_threshold
    (Conv2d(2, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False, step_mode=m), 1.0)
    """
    network = find(name, host)
    request = Request.checked(name, in_channels, size, num_classes, neuron, width)
    request.require_size(network.shrinks)
    import_module(f"..{host}", __package__)  # says what to install where the host is missing
    return import_module(f".{network.module}", __package__).build(request)


def list_models(host: str | None = None) -> list[str]:
    """Names that :func:`create` knows: those of one host, or of all hosts.

    >>> list_models("snntorch")
    ['conv_net', 'mlp', 'vgg11', 'vgg5', 'vgg7', 'vgg9']
    """
    hosts = NETWORKS.values() if host is None else [networks_of(host)]
    return sorted({name for networks in hosts for name in networks})
