"""What membrane-aware distillation gains: a student of few bits with and without its teacher.

Every row of one seed starts from the same trained full-precision network, which is the teacher too,
and is trained for the same number of epochs, half of the teacher's. *QAT* trains the quantised
network on the labels alone; *MD-SNN* also on the teacher's outputs and membrane potentials
(:class:`spquant_plugin.distill.DistillationLoss`), *outputs alone* on its outputs. At the end the
batch norms of all quantised rows are measured anew on the training recordings.

    python examples/distill.py                                    # all of it: an hour on two cores
    python examples/distill.py --task digits --seeds 0 --figure membranes.png    # a part, drawn
    python examples/distill.py --show docs/results/distill.jsonl  # reprint a stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import copy
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from measurements import percent, stored
from torch import Tensor, nn
from torch.nn import functional as F
from training import (
    accuracy,
    convert,
    data,
    measure_all,
    network,
    options_of,
    run,
    train,
)

import spquant_plugin as spq

FULL = "float"
BITS = (4, 2)
ROWS: dict[str, dict[str, float]] = {
    "QAT": {},
    "outputs alone": {"membrane_weight": 0.0},
    "MD-SNN": {"membrane_weight": 1.0},
}
EPOCHS = {"digits": 6, "motion-hard": 3}
RATE = 4e-3
# Of Student's distribution, two-sided 95 %, by the number of seeds.
T_VALUES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}


def labels_alone(net: nn.Module) -> Any:
    """Cross entropy of the outputs averaged over time: what the distillation loss adds to."""

    def loss(frames: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(run(net, frames).mean(0), labels)

    return loss


def measure(host: str, task: str, seed: int, epochs: int, figure: Path | None) -> dict[str, Any]:
    """Test accuracy of every row."""
    training, test = data(task, seed)
    torch.manual_seed(seed)
    teacher = network(host, training.frames.shape[2], len(training.classes))

    frames = [frames for frames, _ in spq.data.loader(training, batch_size=256)]

    def fit(net: nn.Module, name: str, loss: Any, epochs: int = epochs) -> float:
        named = f"{host} {task} {seed} {name}"
        train(net, training, epochs, named, loss_of=loss, lr=RATE, weight_decay=0.0, seed=seed)
        if name not in ("teacher", FULL):
            spq.calibrate(net, frames, forward=run)
        return accuracy(net, test)

    fit(teacher, "teacher", labels_alone(teacher), 2 * epochs)
    longer = copy.deepcopy(teacher)
    found = {FULL: fit(longer, FULL, labels_alone(longer))}
    for bits in BITS:
        fresh = convert(teacher, spq.presets.md_snn(bits), training)
        for name, weights in ROWS.items():
            student = copy.deepcopy(fresh)
            loss = labels_alone(student)
            if weights:
                loss = spq.distill.DistillationLoss(teacher, student, forward=run, **weights)
            found[f"{name}, {bits} bit"] = fit(student, f"{name}, {bits} bit", loss)
    if figure is not None:
        first, _ = next(iter(spq.data.loader(test, batch_size=64)))
        drawn = spq.distill.plot_membranes(teacher, student, first, forward=run)
        drawn.savefig(figure, dpi=150)
        print(f"Figure: {figure}.")
    return {"accuracy": found}


def gain(runs: list[dict[str, float]], row: str, bits: str) -> str:
    """What a row adds to QAT of as many bits: mean and 95 % interval over paired seeds."""
    pairs = [100 * (run[f"{row}, {bits}"] - run[f"QAT, {bits}"]) for run in runs]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return f"{mean:+.2f}"
    reach = T_VALUES[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean:+.2f} ± {reach:.2f}"


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and what distillation adds, seed by seed."""
    lines = [
        f"{'host':14}{'task':13}{'epochs':>6}  {'network':22}{'accuracy (%)':>15}"
        f"{'against float':>15}{'against QAT, 95 %':>19}{'seeds':>7}"
    ]
    for host, task, epochs in sorted({(r["host"], r["task"], r["epochs"]) for r in results}):
        wanted = {"host": host, "task": task, "epochs": epochs}
        runs = [r["accuracy"] for r in results if wanted.items() <= r.items()]
        full, _ = percent([found[FULL] for found in runs])
        for name in runs[0]:
            mean, text = percent([found[name] for found in runs])
            row, _, bits = name.partition(", ")
            added = gain(runs, row, bits) if row in ROWS and row != "QAT" else ""
            lines.append(
                f"{host:14}{task:13}{epochs:>6}  {name:22}{text:>15}"
                f"{mean - full:>+15.2f}{added:>19}{len(runs):>7}"
            )
    return "\n".join(lines)


def main() -> None:
    options = options_of(__doc__.splitlines()[0], "distill.jsonl", EPOCHS)
    if options.show:
        print(table(stored(options.show)))
    else:
        print(table(measure_all(options, EPOCHS, measure)))


if __name__ == "__main__":
    main()
