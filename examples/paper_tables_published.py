"""Ratios of the paper's totals, counts that are known by hand, and its accuracy and energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paper_tables_networks import Counted

from spquant_plugin.analysis.energy_tables import TABLES, TYPES


@dataclass(frozen=True)
class Ratio:
    """How many times less memory: printed, from the printed totals, and from ours."""

    name: str
    printed: str
    full: float
    small: float
    ours: float

    @property
    def recomputed(self) -> float:
        return self.full / self.small

    @property
    def agrees(self) -> bool:
        """Less than one unit of the last printed digit apart, as it may be cut or rounded."""
        digits = len(self.printed.partition(".")[2])
        return abs(self.recomputed - float(self.printed)) < 0.1**digits

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.printed}×",
            f"{self.full:.2f} / {self.small:.2f}",
            f"{self.recomputed:.3f}×",
            "reproduced" if self.agrees else "does not follow",
            f"{self.ours:.2f}×",
        )


# The ratios of the text, and the totals of Tables 7 to 9 that they come from.
RATIOS = {
    "VGG-9": ("13", 48.58, 3.75, "VGG-9, 2 bit"),
    "ResNet-19": ("8.13", 60.94, 7.49, "ResNet-19, 4 bit"),
    "ResNet-34": ("4.58", 109.25, 23.83, "ResNet-34, 8 bit"),
    "Custom YOLO-v2": ("7.07", 223.20, 31.57, "Custom YOLO-v2, 4 bit"),
}


def ratios(nets: Mapping[str, Counted]) -> list[Ratio]:
    """Each printed ratio; ours is that of our totals, the same layers counted in both."""
    return [
        Ratio(name, printed, full, small, nets[name].total_mb / nets[quantised].total_mb)
        for name, (printed, full, small, quantised) in RATIOS.items()
    ]


@dataclass(frozen=True)
class Check:
    """A count that follows by hand from the printed widths, and what the report says."""

    network: str
    figure: str
    by_hand: int
    counted: int

    @property
    def agrees(self) -> bool:
        return self.counted == self.by_hand

    def cells(self) -> tuple[str, ...]:
        difference = self.counted - self.by_hand
        verdict = "equal" if self.agrees else "differs"
        counts = (
            f"{self.by_hand:,}",
            f"{self.counted:,}",
            f"{difference:+,}" if difference else "0",
        )
        return (self.network, self.figure, *counts, verdict)


FIGURES = {
    "conv_weights": "weights of convolutions",
    "all_weights": "weights",
    "parameters": "parameters",
    "neurons": "neurons",
}
BY_HAND = {
    "VGG-9": {"neurons": 921_600},
    "VGG-9, N-Caltech": {"neurons": 1_228_800},
    "VGG-7": {"conv_weights": 1_171_296, "neurons": 276_480},
    "MobileNet-Light": {"conv_weights": 68_096, "neurons": 903_168},
    "ResNet-19": {"conv_weights": 12_486_336, "neurons": 1_376_256},
    "ResNet-34": {"conv_weights": 21_267_648, "parameters": 21_797_672, "neurons": 2_759_680},
    "Custom YOLO-v2": {"all_weights": 21_146_176, "neurons": 6_435_840},
}


def checks(nets: Mapping[str, Counted]) -> list[Check]:
    """Every count that is known by hand."""
    return [
        Check(name, FIGURES[figure], count, getattr(nets[name], figure))
        for name, known in BY_HAND.items()
        for figure, count in known.items()
    ]


@dataclass(frozen=True)
class Energy:
    """A row of Table 10, in µJ: printed, and what Eq. 31 gives with the gates of the same row."""

    name: str
    net: Counted
    steps: int
    printed: float
    reduction: float  # of the FLOPs of Eq. 30, as Tables 7 to 9 print it

    @property
    def convolutions(self) -> float:
        """Multiplications of Eq. 31: output channels × height × width × kernel."""
        return sum(row.eq30_convolution for row in self.net.report.operations) / 2

    @property
    def updates(self) -> float:
        """Membrane additions of Eq. 31: steps × channels × height × width; one step was counted."""
        return self.steps * (self.net.report.operations.eq30 - 2 * self.convolutions)

    @property
    def open_channels(self) -> float:
        """The share that is open where Eq. 30 shrinks as printed, the masked pixels given."""
        full = 2 * self.convolutions + self.updates
        gated = 2 * self.convolutions + self.updates * (1 - MASKED_PIXELS)
        return full / self.reduction / gated

    def ours(self, technology: str, numbers: str) -> float:
        """Eq. 31 with every operation of one type."""
        table = TABLES[technology]
        adds = self.convolutions + self.updates * (1 - MASKED_PIXELS)
        picojoules = table.multiply[numbers] * self.convolutions + table.add[numbers] * adds
        return picojoules * self.open_channels / 1e6

    def cells(self) -> tuple[str, ...]:
        return (
            f"{self.name}, T={self.steps}",
            f"{self.printed:.2f}",
            f"{self.reduction}×",
            f"{1 - self.open_channels:.1%}",
            *(f"{self.ours('7nm', numbers):.2f}" for numbers in TYPES),
        )


MASKED_PIXELS = 0.35
# Table 10: time steps, µJ in total, and the reduction of FLOPs in Tables 7 to 9.
ENERGY = {
    "VGG-9, 2 bit": ("VGG-9, DVS-CIFAR10", 10, 0.45, 5.0),
    "ResNet-19, 4 bit": ("ResNet-19, CIFAR-10", 4, 1.62, 5.1),
    "ResNet-34, 8 bit": ("ResNet-34, ImageNet-1k", 4, 8.16, 4.0),
    "Custom YOLO-v2, 4 bit": ("Custom YOLO-v2, Gen1", 1, 6.99, 4.7),
}


def energies(nets: Mapping[str, Counted]) -> list[Energy]:
    """All rows of Table 10."""
    return [
        Energy(name, nets[net], steps, printed, reduction)
        for net, (name, steps, printed, reduction) in ENERGY.items()
    ]


# Tables 7 to 9: data and network, accuracy of FP, Quant and SpQuant, FLOPs reduction of SpQuant.
ACCURACY = (
    ("DVS-CIFAR10, VGG-9, 2-bit weights, T=10", 78.45, 77.94, 76.80, "5.0×"),
    ("N-Caltech101, VGG-9, 2-bit weights, T=10", 80.45, 79.45, 78.65, "4.8×"),
    ("CIFAR-10, ResNet-19, 4-bit weights, T=2", 94.56, 94.11, 93.09, "5.1×"),
    ("CIFAR-100, ResNet-19, 4-bit weights, T=2", 72.78, 71.87, 70.87, "4.7×"),
    ("ImageNet-100, ResNet-34, 8-bit weights, T=2", 74.76, 74.42, 73.40, "4×"),
    ("ImageNet-1k, ResNet-34, 8-bit weights, T=4", 68.46, 67.82, 67.12, "4×"),
)
DETECTION = ("Gen1, Custom YOLO-v2, 4-bit weights (mAP)", 0.240, 0.198, 0.176, "4.7×")


def accuracy_cells() -> list[tuple[str, ...]]:
    """As published; in brackets the difference from the full precision of the same line."""
    lines = [(*row, 2) for row in ACCURACY] + [(*DETECTION, 3)]
    return [
        (
            name,
            f"{full:.{digits}f}",
            *(f"{value:.{digits}f} ({value - full:+.{digits}f})" for value in (quant, gated)),
            less,
        )
        for name, full, quant, gated, less, digits in lines
    ]
