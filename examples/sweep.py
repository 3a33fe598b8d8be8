"""Presets x seeds on the data that comes with the package: accuracy, memory and operations.

Every row of one seed is trained for the same number of epochs, in two stages with one recipe: full
precision, then what the row is (the full-precision row goes on in float). The *thinner* network is
a quantised one with fewer channels, so that it takes about as many effective accumulates as the
gated ones: what gates have to beat. Both hosts train the same architecture.

    python examples/sweep.py                                  # all of it: hours on two cores
    python examples/sweep.py --host snntorch --task motion --seeds 0      # a part
    python examples/sweep.py --page docs/results.md           # write table, figure and page anew
    python examples/sweep.py --show docs/results/sweep.jsonl  # print the stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measurements import append, arguments, percent, read, stored
from torch import Tensor, nn
from torch.nn import functional as F
from training import HOSTS, SIZE, STEPS, accuracy, convert, run, takes_sequences, train

import spquant_plugin as spq

FULL, THINNER = "FP", "Quant 2 bit, thinner"
SPQUANT, ADAPTIVE = "SpQuant", "Adaptive-SpQuant"
CONFIGS: dict[str, spq.SpQuantConfig | None] = {
    FULL: None,
    "Quant 8 bit": spq.presets.quant_snn(8),
    "Quant 4 bit": spq.presets.quant_snn(4),
    "Quant 2 bit": spq.presets.quant_snn(2),
    "Quant 2 bit, learned threshold": spq.presets.quant_snn(2, adaptive=True),
    "Quant 2 bit, binary membrane": spq.presets.quant_snn(2, membrane=spq.BinaryMembrane()),
    SPQUANT: spq.presets.spquant_snn(2),
    ADAPTIVE: spq.presets.spquant_snn(2, adaptive=True),
    THINNER: spq.presets.quant_snn(2),
}
CLOSED = 0.5  # share of the channels that gates close
EPOCHS = {"digits": 1, "motion": 3}
VARIANTS = 4  # recordings of each digit
RATE = {"digits": 1e-2, "motion": 4e-3}
WIDTH = {"digits": 0.5, "motion": 1.0}
# Widths at which the thinner network takes about as many accumulates as the gated one.
THIN = {"digits": 0.27, "motion": 0.48}


def data(task: str, seed: int) -> tuple[spq.data.FrameDataset, spq.data.FrameDataset]:
    """Training and test recordings of STEPS frames."""
    make: Callable[[str], spq.data.FrameDataset] = partial(
        spq.data.Motion, level="medium", count=2048, steps=STEPS, seed=seed
    )
    if task == "digits":
        make = partial(spq.data.DigitEvents, steps=STEPS, seed=seed, variants=VARIANTS)
    return make("train"), make("test")


class Rows:
    """Trains and measures the rows of one host, task and seed."""

    def __init__(self, host: str, task: str, seed: int, epochs: int) -> None:
        self.host, self.task, self.seed, self.epochs = host, task, seed, epochs
        self.training, self.test = data(task, seed)

    def run(self) -> dict[str, dict[str, Any]]:
        """What was measured of every row."""
        wide = self.first_stage(WIDTH[self.task])
        thin = self.first_stage(THIN[self.task])
        found = {}
        for name, config in CONFIGS.items():
            start = thin if name == THINNER else wide
            net = copy.deepcopy(start) if config is None else convert(start, config, self.training)
            self.fit(net, name, gated=config is not None and config.channel_gate is not None)
            found[name] = self.measure(net)
        return found

    def first_stage(self, width: float) -> nn.Module:
        """A trained full-precision network."""
        torch.manual_seed(self.seed)
        net = spq.models.create(
            "vgg5",
            host=self.host,
            in_channels=self.training.frames.shape[2],
            size=SIZE,
            num_classes=len(self.training.classes),
            width=width,
        )
        self.fit(net, f"first stage, width {width:g}")
        return net

    def fit(self, net: nn.Module, name: str, gated: bool = False) -> None:
        steps = self.epochs * (len(self.training) // 32)
        gates = spq.GateSchedule(net, target=CLOSED, steps=steps) if gated else None

        def loss(frames: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(run(net, frames).mean(0), labels)

        train(
            net,
            self.training,
            self.epochs,
            f"{self.host} {self.task} {self.seed} {name}",
            loss_of=loss,
            after_step=gates.step if gates else lambda: None,
            lr=RATE[self.task],
            weight_decay=0.0,
            seed=self.seed,
        )

    def measure(self, net: nn.Module) -> dict[str, Any]:
        """Accuracy on all test recordings, memory and operations of one, as a mean over 256."""
        frames, _ = next(iter(spq.data.loader(self.test, batch_size=256)))
        steps = None if takes_sequences(net) else STEPS
        report = spq.analyze(net, frames, timesteps=steps).to_dict()
        return {
            "accuracy": accuracy(net, self.test),
            "memory": report["memory"]["total_bytes"],
            "accumulates": report["operations"]["effective"],
            "gates": report["operations"]["gates"],
            "operations": report["operations"]["total"],
            "energy": report["energy"]["total_pj"],
            "firing_rate": report["sparsity"]["firing_rate"],
            "channels_closed": report["sparsity"]["channels_closed"],
            "pixels_masked": report["sparsity"]["pixels_masked"],
        }


def groups(results: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of all seeds, by task and host; all of one task must have one budget."""
    keys = sorted({(found["task"], found["host"]) for found in results})
    for task in {task for task, _ in keys}:
        budgets = {found["epochs"] for found in results if found["task"] == task}
        if len(budgets) > 1:
            listed = ", ".join(map(str, sorted(budgets)))
            raise SystemExit(f"{task}: results of {listed} epochs. Give each a file of its own.")
    return {
        (task, host): [
            found["rows"] for found in results if (found["task"], found["host"]) == (task, host)
        ]
        for task, host in keys
    }


def mean(runs: list[dict[str, Any]], name: str, part: str) -> float:
    return sum(run[name][part] for run in runs) / len(runs)


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds; ratios are those of the means."""
    lines = [
        f"{'task':8}{'host':14}{'network':31}{'accuracy (%)':>15}{'against FP':>12}{'memory':>11}"
        f"{'less':>7}{'accumulates':>13}{'less':>7}{'gates':>9}{'closed':>8}{'seeds':>7}"
    ]
    for (task, host), runs in groups(results).items():
        full, _ = percent([run[FULL]["accuracy"] for run in runs])
        for name in runs[0]:
            accuracy, text = percent([run[name]["accuracy"] for run in runs])
            held, added = (mean(runs, name, part) for part in ("memory", "accumulates"))
            closed = runs[0][name]["channels_closed"]
            memory = f"{held / 1e3:.1f} kB"
            share = "" if closed is None else f"{mean(runs, name, 'channels_closed'):.1%}"
            lines.append(
                f"{task:8}{host:14}{name:31}{text:>15}{accuracy - full:>+12.2f}{memory:>11}"
                f"{mean(runs, FULL, 'memory') / held:>6.1f}x{added / 1e6:>11.3f} M"
                f"{mean(runs, FULL, 'accumulates') / added:>6.1f}x"
                f"{mean(runs, name, 'gates') / 1e6:>7.3f} M{share:>8}{len(runs):>7}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "sweep.jsonl", [0, 1, 2, 3, 4])
    parser.add_argument("--host", choices=[*HOSTS, "both"], default="both")
    parser.add_argument("--task", choices=[*EPOCHS, "both"], default="both")
    parser.add_argument("--epochs", type=int, help="of each stage (default: digits 1, motion 3)")
    parser.add_argument(
        "--page", type=Path, help="write the page of the stored results, no training"
    )
    options = parser.parse_args()
    if options.page:
        import sweep_page  # draws; a sweep alone needs no matplotlib

        sweep_page.write(stored(options.page.parent / "results" / "sweep.jsonl"), options.page)
        return
    if options.show:
        print(table(stored(options.show)))
        return
    hosts = HOSTS if options.host == "both" else [options.host]
    tasks = EPOCHS if options.task == "both" else [options.task]
    for seed, task, host in product(options.seeds, tasks, hosts):
        epochs = options.epochs or EPOCHS[task]
        key = {"host": host, "task": task, "seed": seed, "epochs": epochs}
        if any(key.items() <= found.items() for found in read(options.results)):
            continue
        append(options.results, {**key, "rows": Rows(**key).run()})
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
