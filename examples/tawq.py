"""What weights that change with the time step gain: float, TaWQ and static ternary weights.

Every row of one seed starts from the same random weights and is trained from scratch for the same
number of epochs with the same recipe. First layer, read-out, norms and membranes stay in float, as
in the paper; so the rows differ in the weights of the layers between alone.

    python examples/tawq.py                                   # all of it: half an hour on two cores
    python examples/tawq.py --task digits --seeds 0 --figure tawq.png     # a part, with a figure
    python examples/tawq.py --show docs/results/tawq.jsonl    # reprint a stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from measurements import percent, stored
from torch import nn
from training import (
    STEPS,
    accuracy,
    convert,
    data,
    measure_all,
    network,
    options_of,
    train,
)

import spquant_plugin as spq

FULL = "float"
TAWQ = "TaWQ"
ROWS: dict[str, spq.SpQuantConfig | None] = {
    FULL: None,
    TAWQ: spq.presets.tawq(STEPS),
    "TaWQ, one scale for all steps": spq.presets.tawq(
        STEPS, weights=spq.TemporalTernaryWeights(timesteps=STEPS, scale="shared")
    ),
    "mTaWQ, 3 bit": spq.presets.tawq(STEPS, weights=spq.TemporalTernaryWeights(3, timesteps=STEPS)),
    "static ternary": spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=None),
}
EPOCHS = {"digits": 16, "motion": 6}


def bits_used(net: nn.Module) -> float | None:
    """Entropy of the quantised weights in bits, those of all layers pooled over all steps."""
    if not any(hasattr(module, "weight_quantizer") for module in net.modules()):
        return None
    return spq.analysis.entropy.measure_entropy(net).totals[0].entropy


def measure(host: str, task: str, seed: int, epochs: int, figure: Path | None) -> dict[str, Any]:
    """Test accuracy of every row, and the entropy of its weights before and after training."""
    training, test = data(task, seed)
    torch.manual_seed(seed)
    fresh = network(host, training.frames.shape[2], len(training.classes))
    nets: dict[str, nn.Module] = {}
    found: dict[str, Any] = {"accuracy": {}, "fresh entropy": {}, "entropy": {}}
    for name, config in ROWS.items():
        net = copy.deepcopy(fresh) if config is None else convert(fresh, config, training)
        found["fresh entropy"][name] = bits_used(net)
        train(net, training, epochs, f"{host} {task} {seed} {name}", seed=seed)
        found["accuracy"][name] = accuracy(net, test)
        found["entropy"][name] = bits_used(net)
        nets[name] = net
    if figure is not None:
        draw(nets, figure)
    return found


def draw(nets: dict[str, nn.Module], file: Path) -> None:
    """Which codes the trained weights have, and how evenly they use their levels."""
    codes = spq.analysis.plot_weight_patterns(nets[TAWQ])
    codes.savefig(file, dpi=150)
    bars = file.with_stem(f"{file.stem}_entropy")
    spq.analysis.entropy.measure_entropy(nets[TAWQ]).plot().savefig(bars, dpi=150)
    print(f"Figures: {file}, {bars}.")


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, the difference to float, and the weights' entropy."""
    lines = [
        f"{'host':14}{'task':8}{'epochs':>6}  {'weights':31}{'accuracy (%)':>15}"
        f"{'against float':>15}{'entropy, fresh':>16}{'trained':>9}{'seeds':>7}"
    ]
    for host, task, epochs in sorted({(r["host"], r["task"], r["epochs"]) for r in results}):
        wanted = {"host": host, "task": task, "epochs": epochs}
        runs = [r for r in results if wanted.items() <= r.items()]
        full, _ = percent([run["accuracy"][FULL] for run in runs])
        for name in runs[0]["accuracy"]:
            mean, text = percent([run["accuracy"][name] for run in runs])
            bits = [_mean_bits([run[part][name] for run in runs]) for part in ENTROPIES]
            lines.append(
                f"{host:14}{task:8}{epochs:>6}  {name:31}{text:>15}{mean - full:>+15.2f}"
                f"{bits[0]:>16}{bits[1]:>9}{len(runs):>7}"
            )
    return "\n".join(lines)


ENTROPIES = ("fresh entropy", "entropy")


def _mean_bits(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def main() -> None:
    options = options_of(__doc__.splitlines()[0], "tawq.jsonl", EPOCHS)
    if options.show:
        print(table(stored(options.show)))
    else:
        print(table(measure_all(options, EPOCHS, measure)))


if __name__ == "__main__":
    main()
