"""What a network must answer to its stored sample, as checksums that anyone can make again.

For each sample, for each of its steps, one after the other:

- ``spikes``: of each neuron layer in the order of the nodes, one byte per neuron, 1 if it fired,
  else 0, channels first;
- ``readout``: of each output in their order, the whole numbers that it reads, each as 4 bytes,
  little-endian, channels first.

A device that runs sample after sample and step after step can hash while it runs.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ...errors import FormatError
from ..check.rules import must, whole_tensor
from ..engine.choice import make_engine
from ..graph import Graph


def reference(graph: Graph, sample: Tensor) -> dict[str, str]:
    """SHA-256 of all spikes and of all that is read out, on whole numbers ``[T, N, *shape]``."""
    engine = make_engine(graph, "torch")
    spikes, readout = hashlib.sha256(), hashlib.sha256()
    read = [(output.value, output.reads) for output in graph.outputs]
    keys: set[Any] = {neuron.name for neuron in graph.neurons}
    keys |= {value if reads == "value" else (value, reads) for value, reads in read}
    for one in sample.split(1, dim=1):
        record = engine.run(one, engine.rest(1), keys)
        fired = [record.values[neuron.name].to(torch.uint8).numpy() for neuron in graph.neurons]
        values = [record.wanted(*output).to(torch.int32).numpy().astype("<i4") for output in read]
        for step in range(one.shape[0]):
            for layer in fired:
                spikes.update(layer[step].tobytes())
            for value in values:
                readout.update(value[step].tobytes())
    return {"spikes": spikes.hexdigest(), "readout": readout.hexdigest()}


def replay(graph: Graph, sample: Tensor, stored: dict[str, str]) -> None:
    """Run the sample again and compare."""
    for name, digest in reference(graph, sample).items():
        if digest != stored[name]:
            raise FormatError(
                f"the {name} of the stored sample have SHA-256 {digest[:16]}..., the file says "
                f"{stored[name][:16]}...: the network is another one than was saved, or this "
                "machine computes something else."
            )


def check_sample(graph: Graph, sample: Tensor) -> None:
    """Check type, shape and range of a sample."""
    fits = isinstance(sample, Tensor) and sample.ndim >= 2
    must(fits, "sample", sample, "a tensor [T, N, *shape]")
    whole_tensor("sample", sample, torch.int32, (*sample.shape[:2], *graph.input.shape))
    must(sample.numel() > 0, "sample", tuple(sample.shape), "one step of one sample at least")


def check_sample_range(graph: Graph, sample: Tensor) -> None:
    """Check the numbers of a sample."""
    low, high = int(sample.min()), int(sample.max())
    fits = graph.input.low <= low and high <= graph.input.high
    rule = f"from {graph.input.low} to {graph.input.high}, the input's range"
    must(fits, "sample", (low, high), rule)
