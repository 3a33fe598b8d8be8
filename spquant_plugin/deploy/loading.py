"""``load_integer``: a network from its file."""

from __future__ import annotations

import os

from .file import load_graph
from .network import IntegerNetwork


def load_integer(
    path: str | os.PathLike[str], *, engine: str = "auto", replay: bool = False
) -> IntegerNetwork:
    """Load what :meth:`IntegerNetwork.save` wrote. Neither host is needed.

    The file is checked before anything is allocated: one bit that differs is a
    :class:`~spquant_plugin.errors.FormatError`. ``replay`` also runs the stored sample and compares
    the spikes with those that the file remembers.

    >>> import tempfile, torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> model = torch.nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 2))
    >>> net = spq.to_integer(spq.convert(model, spq.presets.quant_snn()), torch.ones(1, 6))
    >>> x = torch.randint(0, 2, (10, 1, 6))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net.save(f"{folder}/net.spq")
    ...     again = load_integer(f"{folder}/net.spq")
    >>> torch.equal(again(x), net(x))
    True
    """
    graph, sample = load_graph(path, replay=replay)
    return IntegerNetwork(graph, sample, engine)
