"""What the paper prints, row by row, beside what is counted in the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paper_tables_networks import Counted

PART, TOTAL = 0.01, 0.02  # MB: printed values are cut or rounded, and a total is a sum of three
CONVS = "convolutions and 1×1 shortcuts, without FC and normalisation"
NEURONS = "all neurons"
NO_FC = "all neurons but the 256 behind FC256"
NO_STEM = "all neurons but those of the stem"


@dataclass(frozen=True)
class Row:
    """A printed figure in MB, ours, and which rows of the report were summed or why they differ."""

    place: str
    name: str
    printed: float
    ours: float
    bound: float
    text: str

    @property
    def deviation(self) -> float:
        return self.ours - self.printed

    @property
    def agrees(self) -> bool:
        return abs(self.deviation) <= self.bound

    @property
    def verdict(self) -> str:
        return "reproduced" if self.agrees else "does not follow"

    def cells(self) -> tuple[str, ...]:
        figures = (f"{self.printed:.2f}", f"{self.ours:.3f}", f"{self.deviation:+.3f}")
        return (f"{self.name} ({self.place})", *figures, self.verdict, self.text)


def rows_that_follow(nets: Mapping[str, Counted]) -> list[Row]:
    """Figures that must come out of the networks."""
    vgg, residual, deep = nets["VGG-9"], nets["ResNet-19"], nets["ResNet-34"]
    deep_total = deep.parameter_mb + deep.membrane_mb + deep.spike_mb
    return [
        Row("Table 7", "VGG-9 membranes, 32 bit", 3.68, vgg.membrane_mb, PART, NEURONS),
        Row(
            "Table 7",
            "VGG-9 membranes, stored in 2 bit",
            0.23,
            nets["VGG-9, 2 bit"].membrane_mb,
            PART,
            NEURONS,
        ),
        Row("Table 8", "ResNet-19 weights, 32 bit", 49.94, residual.weight_mb, PART, CONVS),
        Row("Table 8", "ResNet-19 membranes, 32 bit", 5.5, residual.membrane_mb, PART, NO_FC),
        Row(
            "Table 8",
            "ResNet-19 total, 32 bit",
            60.94,
            residual.total_mb,
            TOTAL,
            "the two above and as much again as the membranes",
        ),
        *_mint(nets),
        Row(
            "Table 8",
            "ResNet-34 weights, 32 bit",
            87.19,
            deep.parameter_mb,
            PART,
            "all parameters, FC-1000 and normalisation among them",
        ),
        Row(
            "Table 8",
            "ResNet-34 weights, 8 bit",
            21.27,
            nets["ResNet-34, 8 bit"].weight_mb,
            PART,
            CONVS,
        ),
        Row("Table 8", "ResNet-34 membranes, 32 bit", 11.03, deep.membrane_mb, PART, NO_STEM),
        Row(
            "Table 8",
            "ResNet-34 total, 32 bit",
            109.25,
            deep_total,
            TOTAL,
            "all parameters, and the membranes twice",
        ),
    ]


def _mint(nets: Mapping[str, Counted]) -> list[Row]:
    printed = {8: (12.48, 1.37, 15.22), 4: (6.24, 0.69, 8.30), 2: (3.12, 0.35, 4.84)}
    rows = []
    for bits, (weights, membranes, total) in printed.items():
        net, name = nets[f"MINT {bits} bit"], f"MINT ResNet-19, {bits} bit"
        spikes = f"the two above and {net.spike_mb:.3f} for spikes of 8 bit"
        rows += [
            Row("Table 8", f"{name}, weights", weights, net.weight_mb, PART, CONVS),
            Row("Table 8", f"{name}, membranes", membranes, net.membrane_mb, PART, NO_FC),
            Row("Table 8", f"{name}, total", total, net.total_mb, TOTAL, spikes),
        ]
    return rows


def rows_that_differ(nets: Mapping[str, Counted]) -> list[Row]:
    """Figures that follow from nothing that is printed; ours stand beside them."""
    return [*_vgg9(nets), *_resnets(nets), *_spikformer(nets), *_yolo(nets)]


def _vgg9(nets: Mapping[str, Counted]) -> list[Row]:
    full, small, wide = (nets[name] for name in ("VGG-9", "VGG-9, 2 bit", "VGG-9, N-Caltech"))
    printed_stack = nets["VGG-9 as Table 6 prints it"].weight_mb
    membranes = f"{wide.neurons:,} neurons at 48×64; printed is the figure of 48×48"
    return [
        Row(
            "Table 7",
            "VGG-9 weights, 32 bit",
            41.12,
            full.weight_mb,
            PART,
            "8 convolutions and FC, as the authors run it; the stack that Table 6 prints under "
            f"this name has {printed_stack:.2f}",
        ),
        Row(
            "Table 7",
            "VGG-9 weights, 2 bit",
            2.57,
            small.weight_mb,
            PART,
            "printed is a sixteenth of 41.12",
        ),
        Row("Table 7", "VGG-9 membranes, N-Caltech", 3.68, wide.membrane_mb, PART, membranes),
        Row(
            "Table 7",
            "VGG-9 total, 32 bit",
            48.58,
            full.total_mb,
            TOTAL,
            "the printed parts give 41.12 + 2 · 3.68 = 48.48",
        ),
        Row(
            "Table 7",
            "VGG-9 total, quantised",
            3.75,
            small.total_mb,
            TOTAL,
            f"the printed parts give 2.57 + 0.23 + {small.spike_mb:.2f} = "
            f"{2.57 + 0.23 + small.spike_mb:.2f} with spikes of 8 bit; ours is "
            f"{small.equation_mb:.2f} by Eq. 28",
        ),
    ]


def _resnets(nets: Mapping[str, Counted]) -> list[Row]:
    printed = {
        "ResNet-19, 4 bit": ("ResNet-19", 6.24, 0.25, 7.49),
        "ResNet-34, 8 bit": ("ResNet-34", 21.27, 0.51, 23.83),
    }
    rows = []
    for key, (name, weights, membranes, total) in printed.items():
        net = nets[key]
        implied = membranes * 8 / 2 * 1e6
        rows += [
            Row(
                "Table 8",
                f"{name} membranes, ternary",
                membranes,
                net.membrane_mb,
                PART,
                f"2 bit stored; {net.information_mb:.3f} at 1.58 bit. Printed are the 2 bits "
                f"of some {implied:,.0f} neurons; there are {net.neurons:,}",
            ),
            Row(
                "Table 8",
                f"{name} total, quantised",
                total,
                net.total_mb,
                TOTAL,
                f"{net.total_mb - net.membrane_mb + net.information_mb:.2f} with membranes of "
                f"1.58 bit, {net.equation_mb:.2f} by Eq. 28. The printed parts give "
                f"{weights:.2f} + 5 · {membranes:.2f} = {weights + 5 * membranes:.2f}, as spikes "
                "of 8 bit take four times what membranes of 2 bit do",
            ),
        ]
    return rows


def _spikformer(nets: Mapping[str, Counted]) -> list[Row]:
    full, small = nets["Spikformer-4-256"], nets["Spikformer-4-256, 8 bit"]
    larger = nets["Spikformer-4-384"]
    return [
        Row(
            "Table 8",
            "Spikformer-4-256 weights, 32 bit",
            38.20,
            full.weight_mb,
            PART,
            f"{full.all_weights:,} weights; {larger.weight_mb:.2f} with an embedding of 384",
        ),
        Row(
            "Table 8",
            "Spikformer-4-256 weights, 8 bit",
            9.62,
            small.weight_mb,
            PART,
            "printed is near a quarter of 38.20; "
            f"{larger.weight_mb / 4:.2f} with an embedding of 384",
        ),
        Row(
            "Table 8",
            "Spikformer-4-256 membranes, ternary",
            0.25,
            small.membrane_mb,
            PART,
            f"{small.neurons:,} neurons at 32×32 and patches of 4×4; "
            f"{small.information_mb:.3f} at 1.58 bit",
        ),
        Row(
            "Table 8",
            "Spikformer-4-256 total, quantised",
            15.26,
            small.total_mb,
            TOTAL,
            f"{small.equation_mb:.2f} by Eq. 28; the printed parts leave "
            f"{15.26 - 9.62 - 0.25:.2f} for the spikes",
        ),
    ]


def _yolo(nets: Mapping[str, Counted]) -> list[Row]:
    full, small = nets["Custom YOLO-v2"], nets["Custom YOLO-v2, 4 bit"]
    counted = f"{full.all_weights:,} weights, {full.neurons:,} neurons at 240×304"
    return [
        Row(
            "Table 9",
            "Custom YOLO-v2 total, 32 bit",
            223.20,
            full.total_mb,
            TOTAL,
            f"{counted}; the authors' code is another stack, of 25,890,547 weights, at 223×287",
        ),
        Row(
            "Table 9",
            "Custom YOLO-v2 total, quantised",
            31.57,
            small.total_mb,
            TOTAL,
            f"all weights in 4 bit; {small.equation_mb:.2f} by Eq. 28",
        ),
    ]
