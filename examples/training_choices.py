"""What matters when a converted model is trained: the quickstart's recipe, one change at a time.

Digit events, SpikingJelly. Every row starts from the same full-precision network of its seed and is
trained for as many epochs as the recipe, unless its name says otherwise.

    python examples/training_choices.py                # 3 seeds, half an hour on one core
    python examples/training_choices.py --show docs/results/training_choices.jsonl
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import quickstart
import torch
from measurements import append, arguments, not_measured, percent, read, stored
from torch import Tensor, nn

import spquant_plugin as spq

EPOCHS = 6
RECIPE = "the recipe"


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.mean(0), labels)


CHOICES: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "learned threshold": {"adaptive": True},
    "no calibration": {"calibrate": False},
    "loss of the mean output, no TET": {"loss_of": mean_loss},
    "learning rate / 4": {"lr": 1e-3},
    "learning rate x 4": {"lr": 1.6e-2},
    "half the epochs after conversion": {"epochs": EPOCHS // 2},
    "from scratch, all epochs converted": {"scratch": True, "epochs": 2 * EPOCHS},
    "the host's firing surrogate (ATan)": {"surrogate": None},
    "2-bit weights, float membranes": {"membrane": None},
    "ternary membranes, float weights": {"weights": None},
}


def run(
    net: nn.Module,
    training: spq.data.FrameDataset,
    seed: int,
    name: str,
    *,
    calibrate: bool = True,
    scratch: bool = False,
    lr: float = 4e-3,
    epochs: int = EPOCHS,
    loss_of: Callable[[Tensor, Tensor], Tensor] = quickstart.tet_loss,
    **fields: Any,
) -> nn.Module:
    """Convert and train with one thing changed."""
    torch.manual_seed(seed)
    start = quickstart.network(in_channels=2, classes=10) if scratch else net
    if calibrate:
        row = quickstart.convert(start, training, **fields)
    else:
        config = spq.presets.quant_snn(weight_bits=2, **fields)
        row = spq.convert(start, config, sample=training[0][0].unsqueeze(1))
    quickstart.train(row, training, epochs, f"{seed} {name}", lr=lr, seed=seed, loss_of=loss_of)
    return row


def full_precision(training: spq.data.FrameDataset, seed: int) -> nn.Module:
    """The network that every row of a seed starts from."""
    torch.manual_seed(seed)
    net = quickstart.network(in_channels=2, classes=10)
    torch.manual_seed(seed)
    quickstart.train(net, training, EPOCHS, f"{seed} full precision", seed=seed)
    return net


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the mean difference to the recipe."""
    lines = [f"{'change':38}{'accuracy (%)':>16}{'difference':>12}{'seeds':>7}"]
    found = {name: [r["accuracy"] for r in results if r["choice"] == name] for name in CHOICES}
    for name, values in found.items():
        if values:
            mean, text = percent(values)
            difference = mean - percent(found[RECIPE])[0]
            lines.append(f"{name:38}{text:>16}{difference:>+12.2f}{len(values):>7}")
    return "\n".join(lines)


def main() -> None:
    options = arguments(__doc__.splitlines()[0], "training_choices.jsonl", [0, 1, 2]).parse_args()
    if options.show:
        print(table(stored(options.show)))
        return
    for seed in options.seeds:
        training = spq.data.DigitEvents("train", seed=seed)
        test = spq.data.DigitEvents("test", seed=seed)
        left = not_measured(options.results, seed, CHOICES)
        net = full_precision(training, seed) if left else None
        for name, change in left.items():
            row = run(net, training, seed, name, **change)
            result = {"choice": name, "seed": seed, "accuracy": quickstart.accuracy(row, test)}
            append(options.results, result)
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
