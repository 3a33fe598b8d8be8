"""Which networks there are, by host. It knows no host, so that asking for names loads none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ModelError


@dataclass(frozen=True)
class Network:
    """Where a network is built, and the factor by which it shrinks height and width."""

    module: str
    shrinks: int


NETWORKS: dict[str, dict[str, Network]] = {
    "spikingjelly": {
        "conv_net": Network("spikingjelly_sequential", shrinks=4),
        "custom_yolo_v2": Network("spikingjelly_yolo", shrinks=64),
        "mlp": Network("spikingjelly_sequential", shrinks=1),
        "mobilenet_light": Network("spikingjelly_mobilenet", shrinks=8),
        "resnet19": Network("spikingjelly_resnet", shrinks=4),
        "resnet26": Network("spikingjelly_resnet", shrinks=4),
        "resnet34": Network("spikingjelly_resnet", shrinks=32),
        "spikformer_4_256": Network("spikingjelly_spikformer", shrinks=4),
        "vgg11": Network("spikingjelly_sequential", shrinks=16),
        "vgg5": Network("spikingjelly_sequential", shrinks=4),
        "vgg7": Network("spikingjelly_sequential", shrinks=16),
        "vgg9": Network("spikingjelly_sequential", shrinks=16),
    },
    "snntorch": {
        "conv_net": Network("snntorch_nets", shrinks=4),
        "mlp": Network("snntorch_nets", shrinks=1),
        "vgg11": Network("snntorch_nets", shrinks=16),
        "vgg5": Network("snntorch_nets", shrinks=4),
        "vgg7": Network("snntorch_nets", shrinks=16),
        "vgg9": Network("snntorch_nets", shrinks=16),
    },
}


def closest(given: object, names: Iterable[str]) -> str:
    """The names most like what was given, all of them where none is like it."""
    names = sorted(names)
    told = "" if given is None else str(given).lower()
    near = difflib.get_close_matches(told, names, n=3, cutoff=0.5) or names
    return ", ".join(repr(name) for name in near)


def networks_of(host: object) -> dict[str, Network]:
    """The networks of one host."""
    if isinstance(host, str) and host in NETWORKS:
        return NETWORKS[host]
    raise ModelError(
        f"host = {host!r}: must be one of {', '.join(map(repr, NETWORKS))}. "
        f"Closest: {closest(host, NETWORKS)}."
    )


def find(name: object, host: object) -> Network:
    """The network of this name; the error says where else it is, or what is like it."""
    networks = networks_of(host)
    if isinstance(name, str) and name in networks:
        return networks[name]
    others = [other for other, found in NETWORKS.items() if str(name) in found]
    remedy = f"Closest: {closest(name, networks)}. spq.models.list_models({host!r}) lists all."
    if others:
        remedy = f"It is a network of {others[0]}: pass host={others[0]!r}."
    raise ModelError(f"create({name!r}): must be the name of a network of {host}. {remedy}")
