"""What quantisation costs: full precision against Quant, both hosts, two tasks, several seeds.

Every row of one seed starts from the same full-precision network and is then trained for the same
number of epochs with the same recipe, that of the quickstarts; the full-precision row goes on in
float. On motion a network without memory (decay 0) is trained for as long: it shows that the task
needs one.

    python examples/accuracy.py                                  # all of it: an hour on two cores
    python examples/accuracy.py --host snntorch --task motion    # a part
    python examples/accuracy.py --task motion-hard --seeds 0     # a task that is not at its ceiling
    python examples/accuracy.py --show docs/results/accuracy.jsonl   # reprint a stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import copy
from functools import partial
from types import ModuleType
from typing import Any

import torch
from measurements import append, arguments, percent, read, stored
from torch import nn

import spquant_plugin as spq

FULL, QUANT, LEARNED, FORGETFUL = "FP", "Quant", "Quant, learned threshold", "FP, no memory"
EPOCHS = {"digits": 6, "motion": 3, "motion-hard": 6}


def recipe(host: str) -> ModuleType:
    """Network, training and test of one host, as its quickstart has them."""
    if host == "spikingjelly":
        import quickstart

        return quickstart
    import quickstart_snntorch

    return quickstart_snntorch


def data(task: str, seed: int) -> tuple[spq.data.FrameDataset, spq.data.FrameDataset]:
    """Training and test recordings."""
    if task == "digits":
        return spq.data.DigitEvents("train", seed=seed), spq.data.DigitEvents("test", seed=seed)
    level, count = ("hard", 4096) if task == "motion-hard" else ("medium", 2048)
    return (
        spq.data.Motion("train", level=level, count=count, seed=seed),
        spq.data.Motion("test", level=level, count=2048, seed=seed),
    )


def forgetful(host: str) -> Any:
    """The networks' own neuron with decay 0, so that nothing of the past remains."""
    if host == "spikingjelly":
        from spikingjelly.activation_based import neuron, surrogate

        # The host wants tau > 1; what remains of the membrane is below float32's last bit.
        return partial(
            neuron.LIFNode,
            tau=1 + 1e-9,
            decay_input=False,
            surrogate_function=surrogate.ATan(),
        )
    import snntorch

    return partial(snntorch.Leaky, beta=0.0, init_hidden=True, reset_mechanism="zero")


def train_rows(host: str, task: str, seed: int, epochs: int) -> dict[str, float]:
    """Test accuracy of every row, for one seed."""
    quickstart = recipe(host)
    training, test = data(task, seed)
    channels, classes = training.frames.shape[2], len(training.classes)

    def fit(net: nn.Module, name: str, epochs: int = epochs) -> float:
        torch.manual_seed(seed)
        quickstart.train(net, training, epochs, f"{host} {task} {seed} {name}", seed=seed)
        return quickstart.accuracy(net, test)

    torch.manual_seed(seed)
    net = quickstart.network(channels, classes)
    fit(net, "first stage")
    rows = {
        FULL: copy.deepcopy(net),
        QUANT: quickstart.convert(net, training, adaptive=False),
        LEARNED: quickstart.convert(net, training, adaptive=True),
    }
    found = {name: fit(row, name) for name, row in rows.items()}
    if task == "motion":
        torch.manual_seed(seed)
        without = quickstart.network(channels, classes, neuron=forgetful(host))
        found[FORGETFUL] = fit(without, FORGETFUL, 2 * epochs)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the mean difference to full precision."""
    lines = [
        f"{'host':14}{'task':13}{'network':26}{'accuracy (%)':>16}{'against FP':>12}{'seeds':>7}"
    ]
    for host, task, epochs in sorted({(r["host"], r["task"], r["epochs"]) for r in results}):
        wanted = {"host": host, "task": task, "epochs": epochs}
        runs = [r["accuracy"] for r in results if wanted.items() <= r.items()]
        full, _ = percent([run[FULL] for run in runs])
        for name in runs[0]:
            mean, text = percent([run[name] for run in runs])
            lines.append(
                f"{host:14}{task:13}{name:26}{text:>16}{mean - full:>+12.2f}{len(runs):>7}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "accuracy.jsonl", [0, 1, 2, 3, 4])
    parser.add_argument("--host", choices=["spikingjelly", "snntorch", "both"], default="both")
    parser.add_argument("--task", choices=[*EPOCHS, "both"], default="both")
    parser.add_argument("--epochs", type=int, help="of each stage (default: 6, on motion 3)")
    options = parser.parse_args()
    if options.show:
        print(table(stored(options.show)))
        return
    hosts = ["spikingjelly", "snntorch"] if options.host == "both" else [options.host]
    tasks = ["digits", "motion"] if options.task == "both" else [options.task]
    for seed in options.seeds:
        for host in hosts:
            for task in tasks:
                key = {
                    "host": host,
                    "task": task,
                    "seed": seed,
                    "epochs": options.epochs or EPOCHS[task],
                }
                if any(key.items() <= done.items() for done in read(options.results)):
                    continue
                accuracy = train_rows(host, task, seed, key["epochs"])
                append(options.results, {**key, "accuracy": accuracy})
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
