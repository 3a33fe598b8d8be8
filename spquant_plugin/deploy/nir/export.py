"""Writes a network as a NIR graph, the exchange format of neuromorphic tools.

What NIR's equations can say stands in the nodes; the rest stands in their metadata, as JSON under
one key. Where the nodes alone would be another network, the export is refused.
"""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...convert.hosts import require_model
from ...convert.trace import quiet_copy
from ...errors import ExportError, ExportWarning, MissingHostError
from ...modules.gates import ChannelGate
from .edges import refusal
from .flow import follow
from .graph import Builder, Graph
from .layers import nodes_of
from .neurons import DT

KEY = "spquant_plugin"
FORMAT = 1
UPDATE = (
    "forward Euler with step dt, currents before membranes; spikes of a step reach every layer in "
    "the same step; membranes begin at v_reset, currents at 0"
)


def export_nir(
    model: nn.Module, path: str | Path, sample: Any = None, *, strict: bool = False
) -> Any:
    """Write ``model`` to ``path`` as a NIR graph, and return the graph (``nir.NIRGraph``).

    The model, of either host, converted or not, is neither run nor changed: a copy in eval mode
    runs ``sample`` once, from which nodes and edges are found. ``sample`` is what one call takes.
    It may be left out where the model is an ``nn.Sequential`` that begins with a linear layer.

    Weights are written as the layer computes with them, a batch norm right behind folded in. What
    NIR cannot say is written as JSON to the metadata of the nodes, key ``"spquant_plugin"``. A
    reader that ignores it keeps membranes in float and quantises no input; an
    :class:`~spquant_plugin.errors.ExportWarning` says so, or with ``strict=True`` an error. What
    would be another network altogether (soft and delayed resets, gates, max pools, norms that do
    not fold, ...) is an :class:`~spquant_plugin.errors.ExportError`, before anything is written.

    >>> import spquant_plugin as spq
    >>> from spquant_plugin.spikingjelly import neuron
    >>> net = nn.Sequential(nn.Linear(4, 2), neuron.TernaryMembraneIFNode(membrane=None))
    >>> net = spq.convert(net, spq.SpQuantConfig(weights=spq.UniformWeights(4)))
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     graph = export_nir(net, os.path.join(folder, "net.nir"))
    >>> {name: type(node).__name__ for name, node in graph.nodes.items()}
    {'input': 'Input', '0': 'Affine', '1': 'IF', 'output': 'Output'}
    """
    nir = _package()
    require_model(model)
    if sample is None:
        sample = _made_up(model)
    with quiet_copy(model) as copy:
        modules = dict(copy.named_modules())
        _refuse_gates(modules)
        kinds = nodes_of(copy)
        flow = follow(copy, {name: modules[name] for name in kinds}, sample)
        found = Builder(flow, modules, kinds).build()
    _tell(found.lost, strict)
    graph = _written_out(nir, found)
    nir.write(path, graph)
    return graph


def _package() -> Any:
    try:
        return import_module("nir")
    except ImportError as error:
        raise MissingHostError(
            "export_nir needs the package nir, which is not installed. "
            'Run: python -m pip install "spquant-plugin[nir]"'
        ) from error


def _made_up(model: nn.Module) -> torch.Tensor:
    """A silent sample for a chain whose first layer tells the input's shape."""
    first = next(iter(model), None) if isinstance(model, nn.Sequential) else None
    if not isinstance(first, nn.Linear):
        raise ExportError(
            f"export_nir(sample=None): {type(model).__name__} does not say the shape of its input, "
            "which the nodes of NIR hold. Pass sample=, what one call of the model takes."
        )
    steps = any(getattr(module, "step_mode", "s") == "m" for module in model.modules())
    weight: torch.Tensor = first.weight
    return weight.new_zeros((1,) * (1 + steps) + (first.in_features,))


def _refuse_gates(modules: dict[str, nn.Module]) -> None:
    for path, module in modules.items():
        if isinstance(module, ChannelGate):
            raise refusal(path, module)(
                "closes channels, decided in each step: NIR has no gates. Convert with "
                "channel_gate=None."
            )


def _tell(lost: list[str], strict: bool) -> None:
    """Say what a reader that knows NIR alone would run instead."""
    if not lost:
        return
    shown = "; ".join(lost)
    if strict:
        raise ExportError(
            f"export_nir(strict=True): NIR has no quantised membranes or inputs, so a plain reader "
            f"runs another network: {shown}. Convert without them, or use strict=False, which "
            "writes them to the metadata."
        )
    warnings.warn(
        f"a reader of this NIR file that ignores the metadata {KEY!r} runs another network: "
        f"{shown}. Read the metadata, or refuse such files by strict=True.",
        ExportWarning,
        stacklevel=3,
    )


def _written_out(nir: Any, found: Graph) -> Any:
    """The graph as the package's own records, which check that all shapes fit."""
    nodes = {"input": nir.Input(np.array(found.steps["input"]))}
    for name, part in found.parts.items():
        said = json.dumps({"path": found.paths.get(name), **part.said})
        nodes[name] = getattr(nir, part.kind)(**part.values, metadata={KEY: said})
    nodes["output"] = nir.Output(np.array(found.steps["output"]))
    about = {"format": FORMAT, "dt": DT, "update": UPDATE, "lost": found.lost}
    return nir.NIRGraph(nodes=nodes, edges=found.edges, metadata={KEY: json.dumps(about)})
