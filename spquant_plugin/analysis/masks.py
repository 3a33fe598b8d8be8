"""Which spatial gate masks the pixels that a layer computes: that of the one neuron behind it."""

from __future__ import annotations

from torch import nn

from ..convert.hosts import Hosts
from ..modules.gates import ChannelGate, SpatialGate, own_gate
from .dry_run import DryRun
from .modules import kind_of


def masks_behind(run: DryRun) -> dict[str, str]:
    """From the path of a weight layer to the path of the spatial gate behind it."""
    modules = dict(run.model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    found = {}
    for layer, neuron in _targets(run, modules, paths).items():
        gate = own_spatial_gate(modules[neuron])
        if gate is not None:
            found[layer] = paths[id(gate)]
    return found


def own_spatial_gate(module: nn.Module) -> SpatialGate | None:
    """The spatial gate that a neuron calls."""
    gate = module._modules.get("spatial_gate")
    return gate if isinstance(gate, SpatialGate) else None


def _targets(run: DryRun, modules: dict[str, nn.Module], paths: dict[int, str]) -> dict[str, str]:
    """For each weight layer the one neuron that reads its current, where nothing else does."""
    hosts = Hosts()
    kinds = {path: kind_of(module, hosts) for path, module in modules.items()}
    owners = {
        paths[id(gate)]: path
        for path, module in modules.items()
        if (gate := own_gate(module)) is not None
    }
    readers: dict[str, set[str]] = {}
    for path, sources in run.read.items():
        gates = isinstance(modules.get(path), ChannelGate)
        if gates or kinds.get(path) not in ("weights", "neuron", "state"):
            continue
        for source in sources:
            for layer in _behind(source, owners, modules, run):
                readers.setdefault(layer, set()).add(path)
    single = {layer: next(iter(found)) for layer, found in readers.items() if len(found) == 1}
    return {layer: reader for layer, reader in single.items() if kinds[reader] == "neuron"}


def _behind(
    source: str, owners: dict[str, str], modules: dict[str, nn.Module], run: DryRun
) -> frozenset[str]:
    """What a gate, which renews what a tensor carries, was given itself."""
    if source in owners:
        return frozenset({owners[source]})
    if isinstance(modules.get(source), ChannelGate):
        return run.read[source]
    return frozenset({source})
