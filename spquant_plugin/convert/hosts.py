"""Which hosts are in use. A model can only hold modules of a host that was imported already."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import ConversionError
from ..modules.host import Host, NeuronKind


def loaded_hosts() -> list[Host]:
    """The hosts that this process has imported; importing us loads neither of them."""
    hosts: list[Host] = []
    if "spikingjelly.activation_based.base" in sys.modules:
        from ..spikingjelly.host import SpikingJellyHost

        hosts.append(SpikingJellyHost())
    if "snntorch._neurons" in sys.modules:
        from ..snntorch.host import SnnTorchHost

        hosts.append(SnnTorchHost())
    return hosts


class Hosts:
    """All loaded hosts behind one face."""

    def __init__(self) -> None:
        self.all = loaded_hosts() or [Host()]
        # From the class of a weight layer, or a norm, to its quantised class.
        self.layers = {kind: twin for host in self.all for kind, twin in host.layers.items()}
        self.norms = {kind: twin for host in self.all for kind, twin in host.norms.items()}

    def neuron_kind(self, module: nn.Module) -> tuple[Host, NeuronKind] | None:
        """The host that knows this stateful module, and what it says of it."""
        for host in self.all:
            kind = host.neuron_kind(module)
            if kind is not None:
                return host, kind
        return None


def require_model(model: object) -> nn.Module:
    """Refuse what is not a network."""
    if isinstance(model, nn.Module):
        return model
    name = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise ConversionError(
        f"model = {name}: must be a torch.nn.Module. "
        "Pass the network itself, not its class, its path or its state dict."
    )


def reset(model: nn.Module) -> None:
    """Bring every stateful module of either host to rest, converted or not, in this model only.

    The hosts' own functions do less: SpikingJelly's remembers the module list of an earlier call,
    snnTorch's sees top-level children and clears every instance in the process.

    >>> import torch
    >>> from spquant_plugin.spikingjelly import neuron
    >>> node = neuron.TernaryMembraneLIFNode()
    >>> _ = node(torch.ones(1, 2))
    >>> reset(node)
    >>> node.v
    0.0
    """
    hosts = Hosts().all
    for module in require_model(model).modules():
        for host in hosts:
            host.reset(module)
