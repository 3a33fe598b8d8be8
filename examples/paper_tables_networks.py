"""The networks of the paper's tables, each measured once by ``spq.analyze``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

import spquant_plugin as spq
from spquant_plugin.analysis import MemoryRow

MB = 1e6


def quantised(bits: int) -> spq.SpQuantConfig:
    """Quant-SNN as the tables count it: ternary membranes, first and last layer like the others."""
    weights = spq.presets.quant_snn(bits).weights
    return spq.presets.quant_snn(bits, edge_weights=weights)


def mint(bits: int) -> spq.SpQuantConfig:
    """The storage of MINT: weights and membranes of equally many bits."""
    weights = spq.UniformWeights(bits)
    return spq.SpQuantConfig(
        membrane=spq.UniformMembrane(bits), weights=weights, edge_weights=weights
    )


@dataclass(frozen=True)
class Case:
    """A network, its input, and what of it the paper leaves out of its counts."""

    network: str
    channels: int
    size: tuple[int, int]  # height, width
    outputs: int
    config: Callable[[], spq.SpQuantConfig] | None = None
    width: float = 1.0
    neurons_not_counted: tuple[str, ...] = ()  # paths
    only_convolutions: bool = False

    @property
    def input_text(self) -> str:
        height, width = self.size
        return f"{self.channels}×{height}×{width}"


_VGG9 = Case("vgg9", 2, (48, 48), 10)
_RESNET19 = Case(
    "resnet19", 3, (32, 32), 10, neurons_not_counted=("neuron2",), only_convolutions=True
)
_RESNET34 = Case(
    "resnet34", 3, (224, 224), 1000, neurons_not_counted=("neuron1",), only_convolutions=True
)
_SPIKFORMER = Case("spikformer_4_256", 3, (32, 32), 10)
_YOLO = Case("custom_yolo_v2", 2, (240, 304), 576, neurons_not_counted=("neuron17",))


CASES: dict[str, Case] = {
    "VGG-9": _VGG9,
    "VGG-9, 2 bit": replace(_VGG9, config=lambda: quantised(2)),
    "VGG-9, N-Caltech": replace(_VGG9, size=(48, 64), outputs=101),
    "VGG-9 as Table 6 prints it": replace(_VGG9, network="vgg11"),
    "VGG-7": Case("vgg7", 3, (48, 48), 10),
    "MobileNet-Light": Case("mobilenet_light", 3, (48, 48), 10, neurons_not_counted=("neuron12",)),
    "ResNet-19": _RESNET19,
    "ResNet-19, 4 bit": replace(_RESNET19, config=lambda: quantised(4)),
    "MINT 8 bit": replace(_RESNET19, config=lambda: mint(8)),
    "MINT 4 bit": replace(_RESNET19, config=lambda: mint(4)),
    "MINT 2 bit": replace(_RESNET19, config=lambda: mint(2)),
    "ResNet-26": replace(_RESNET19, network="resnet26"),
    "ResNet-34": _RESNET34,
    "ResNet-34, 8 bit": replace(_RESNET34, config=lambda: quantised(8)),
    "Spikformer-4-256": _SPIKFORMER,
    "Spikformer-4-256, 8 bit": replace(_SPIKFORMER, config=lambda: quantised(8)),
    "Spikformer-4-384": replace(_SPIKFORMER, width=1.5),
    "Custom YOLO-v2": _YOLO,
    "Custom YOLO-v2, 4 bit": replace(_YOLO, config=lambda: quantised(4)),
}


@dataclass(frozen=True)
class Counted:
    """Sums over the rows of one report, in MB where nothing else is said."""

    case: Case
    report: spq.Report

    @property
    def conv_weights(self) -> int:
        return sum(row.weights for row in self.report.layers if "Conv" in row.type)

    @property
    def all_weights(self) -> int:
        return sum(row.weights for row in self.report.layers)

    @property
    def parameters(self) -> int:
        """Weights, biases and what norms learn."""
        return sum(row.parameters for row in self.report.layers)

    @property
    def neurons(self) -> int:
        """Those that the paper counts."""
        return sum(row.neurons for row in self._neuron_rows())

    @property
    def other_neurons(self) -> int:
        return sum(row.neurons for row in self.report.layers) - self.neurons

    @property
    def weight_mb(self) -> float:
        """At stored bits, of the layers that the paper counts."""
        rows = self.report.layers
        if self.case.only_convolutions:
            rows = tuple(row for row in rows if "Conv" in row.type)
        return sum(row.weight_bytes for row in rows) / MB

    @property
    def parameter_mb(self) -> float:
        """All parameters as 32-bit floats."""
        return 4 * self.parameters / MB

    @property
    def membrane_mb(self) -> float:
        """At stored bits: a ternary membrane takes 2."""
        return sum(row.membrane_bytes for row in self._neuron_rows()) / MB

    @property
    def information_mb(self) -> float:
        """Membranes at the bits of information: 1.58 of a ternary one."""
        return sum(row.neurons * row.information_bits for row in self._neuron_rows()) / 8 / MB

    @property
    def spike_mb(self) -> float:
        """The third term as the tables count it: 8 or 32 bits of each neuron."""
        return sum(row.spike_bytes for row in self._neuron_rows()) / MB

    @property
    def total_mb(self) -> float:
        return self.weight_mb + self.membrane_mb + self.spike_mb

    @property
    def equation_mb(self) -> float:
        """Eq. 28 as it is printed: membranes at their bits of information, spikes of 1 bit."""
        return self.weight_mb + self.information_mb + self.neurons / 8 / MB

    def _neuron_rows(self) -> list[MemoryRow]:
        left_out = self.case.neurons_not_counted
        rows = {row.path: row for row in self.report.layers}
        for path in left_out:
            if path not in rows or not rows[path].neurons:
                raise KeyError(f"{self.case.network} has no neurons at {path!r} to leave out")
        return [row for row in self.report.layers if row.neurons and row.path not in left_out]


def count(case: Case) -> Counted:
    """Make the network, convert it where that is asked, and measure it on one frame.

    What is read from the report depends neither on the weights nor on the frame.
    """
    torch.manual_seed(0)
    net = spq.models.create(
        case.network,
        in_channels=case.channels,
        size=case.size,
        num_classes=case.outputs,
        width=case.width,
    )
    if case.config is not None:
        net = spq.convert(net, case.config())
    # So bright that no network stays silent, of which the report would warn.
    frame = torch.full((1, 1, case.channels, *case.size), 100.0)
    return Counted(case, spq.analyze(net, frame, memory="paper_tables"))


def count_all(names: Iterable[str] = tuple(CASES)) -> Mapping[str, Counted]:
    """All networks by their names, with a bar."""
    bar = tqdm(list(names), desc="networks", file=sys.stderr)
    return {name: count(CASES[name]) for name in bar}
