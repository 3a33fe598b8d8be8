"""What gates save and cost: full precision, Quant, thinner Quant and SpQuant, several seeds.

Every row of one seed is trained for the same number of epochs, in two stages: full precision, then
what the row is. A *thinner* network is a Quant network with fewer channels, so that it takes about
as many effective accumulates as the gated one: what gates have to beat.

    python examples/gates.py                                       # all of it: hours on two cores
    python examples/gates.py --task digits --seeds 0 --figure gates.png     # a part, with a figure
    python examples/gates.py --show gates.jsonl                    # reprint a stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import quickstart
import torch
from gate_figure import gate_maps
from measurements import append, arguments, percent, read, stored
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spquant_plugin as spq

WIDTH = {"digits": 2.0, "motion": 1.0}
STEPS = 4
SPLITS = ("train", "test")
VARIANTS = 6  # recordings of each digit
EPOCHS = {"digits": 1, "motion": 3}
RATE = {"digits": 1e-2, "motion": 4e-3}
CLOSED = {"SpQuant 50 %": 0.50, "SpQuant 77 %": 0.77}
# Widths at which a Quant network takes about as many accumulates as the gated one: compare the
# table's column of accumulates, and adjust them for other tasks, widths and epochs.
THIN = {
    "digits": {"SpQuant 50 %": 1.07, "SpQuant 77 %": 0.70},
    "motion": {"SpQuant 50 %": 0.48, "SpQuant 77 %": 0.30},
}


def data(task: str, seed: int) -> tuple[spq.data.FrameDataset, spq.data.FrameDataset]:
    """Training and test recordings."""
    if task == "digits":
        splits = (
            spq.data.DigitEvents(split, steps=STEPS, seed=seed, variants=VARIANTS)
            for split in SPLITS
        )
    else:
        motion = partial(spq.data.Motion, level="medium", count=2048, steps=STEPS, seed=seed)
        splits = (motion(split) for split in SPLITS)
    training, test = splits
    return training, test


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the output averaged over time."""
    return nn.functional.cross_entropy(outputs.mean(0), labels)


class Rows:
    """Trains the rows of one task and seed."""

    def __init__(self, task: str, seed: int, epochs: int) -> None:
        self.task, self.seed, self.epochs = task, seed, epochs
        self.training, self.test = data(task, seed)
        self.found: dict[str, dict[str, Any]] = {}

    def first_stage(self, width: float) -> nn.Module:
        """A trained full-precision network."""
        torch.manual_seed(self.seed)
        net = spq.models.create(
            "vgg5",
            in_channels=self.training.frames.shape[2],
            size=16,
            num_classes=len(self.training.classes),
            width=width,
        )
        self.fit(net, f"first stage, width {width:g}")
        return net

    def fit(self, net: nn.Module, name: str, closed: float | None = None) -> None:
        torch.manual_seed(self.seed)
        steps = self.epochs * (len(self.training) // 32)
        gates = spq.GateSchedule(net, target=closed, steps=steps) if closed else None
        quickstart.train(
            net,
            self.training,
            self.epochs,
            f"{self.task} {self.seed} {name}",
            lr=RATE[self.task],
            seed=self.seed,
            loss_of=mean_loss,
            after_step=gates.step if gates else lambda: None,
        )

    def add(self, name: str, net: nn.Module, closed: float | None = None) -> nn.Module:
        """Train a row's second stage and note what came of it."""
        self.fit(net, name, closed)
        frames, _ = next(iter(spq.data.loader(self.test, batch_size=256)))
        report = spq.analyze(net, frames).to_dict()
        self.found[name] = {
            "accuracy": quickstart.accuracy(net, self.test),
            "accumulates": report["operations"]["effective"],
            "total": report["operations"]["total"],
            "eq30_ratio": report["operations"]["eq30_ratio"],
            "channels_closed": report["sparsity"]["channels_closed"],
            "pixels_masked": report["sparsity"]["pixels_masked"],
            "changing": changing(net, frames) if closed else None,
        }
        return net

    def run(self) -> nn.Module:
        """All rows; the last gated network is returned."""
        full = self.first_stage(WIDTH[self.task])
        self.add("FP", copy.deepcopy(full))
        self.add("Quant", self.convert(full, spq.presets.quant_snn()))
        for name, closed in CLOSED.items():
            thin = self.first_stage(THIN[self.task][name])
            thin = self.convert(thin, spq.presets.quant_snn())
            self.add(f"Quant, thinner than {name}", thin)
            net = self.add(name, self.convert(full, spq.presets.spquant_snn()), closed)
        return net

    def convert(self, net: nn.Module, config: spq.SpQuantConfig) -> nn.Module:
        frames = [frames for frames, _ in spq.data.loader(self.training, batch_size=256)]
        return spq.calibrate(spq.convert(net, config, sample=frames[0][:, :1]), frames)


@torch.no_grad()
def changing(net: nn.Module, frames: Tensor) -> float:
    """Share of gated channels that are open for some recordings or steps, closed for others."""
    net.eval()(frames)
    functional.reset_net(net)
    masks = [gate.open_mask.flatten(0, 1) for _, gate in gates_of(net)]
    return float(torch.cat([mask.amin(0) != mask.amax(0) for mask in masks]).float().mean())


def gates_of(net: nn.Module) -> list[tuple[str, Any]]:
    return [(path, net.get_submodule(path)) for path in spq.gate_stats(net)]


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the mean difference to full precision."""
    lines = [
        f"{'task':8}{'network':32}{'accuracy (%)':>16}{'against FP':>12}{'closed':>8}{'masked':>8}"
        f"{'changing':>10}{'accumulates':>13}{'less':>7}{'gates':>8}{'Eq. 30':>8}{'seeds':>7}"
    ]
    for task in dict.fromkeys(r["task"] for r in results):
        runs = [r["rows"] for r in results if r["task"] == task]
        full, _ = percent([run["FP"]["accuracy"] for run in runs])
        dense = mean(runs, "FP", "accumulates")
        for name in runs[0]:
            accuracy, text = percent([run[name]["accuracy"] for run in runs])
            effective = mean(runs, name, "accumulates")
            lines.append(
                f"{task:8}{name:32}{text:>16}{accuracy - full:>+12.2f}"
                f"{share(runs, name, 'channels_closed'):>8}{share(runs, name, 'pixels_masked'):>8}"
                f"{share(runs, name, 'changing'):>10}{effective / 1e6:>11.3f} M"
                f"{dense / effective:>6.1f}x{(mean(runs, name, 'total') - effective) / 1e6:>6.3f} M"
                f"{mean(runs, name, 'eq30_ratio'):>7.1f}x{len(runs):>7}"
            )
    return "\n".join(lines)


def mean(runs: list[dict[str, Any]], name: str, part: str) -> float:
    return sum(run[name][part] for run in runs) / len(runs)


def share(runs: list[dict[str, Any]], name: str, part: str) -> str:
    return "" if runs[0][name][part] is None else f"{mean(runs, name, part):.1%}"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "gates.jsonl", [0, 1, 2, 3, 4])
    parser.add_argument("--task", choices=[*EPOCHS, "both"], default="both")
    parser.add_argument("--epochs", type=int, help="of each stage (default: 1, on motion 3)")
    parser.add_argument("--figure", type=Path, help="draw the last gated network's decisions")
    options = parser.parse_args()
    if options.show:
        print(table(stored(options.show)))
        return
    for seed in options.seeds:
        for task in EPOCHS if options.task == "both" else [options.task]:
            key = {"task": task, "seed": seed, "epochs": options.epochs or EPOCHS[task]}
            if any(key.items() <= done.items() for done in read(options.results)):
                continue
            rows = Rows(**key)
            net = rows.run()
            append(options.results, {**key, "rows": rows.found})
            if options.figure:
                frames, _ = next(iter(spq.data.loader(rows.test, batch_size=64)))
                gate_maps(net, frames).savefig(options.figure, dpi=150)
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
