"""How robust a trained network is to low-precision membranes: the publication's questions.

Trains a small spiking VGG on digits that an event camera saw, in full precision and quantised, and
measures: how silent the neurons stay that a bound would clip (Eqs. 5 and 6, Fig. 2), the accuracy
with clipped membranes (Table 1), ternary against binary membranes (Table 3), membranes of 1 to 8
bits without and with training (Figs. 4 and 5), shapes of the membrane's surrogate gradient
(Table 2), and the entropy of the quantised weights.

    python examples/clipping.py                                        # a few minutes
    python examples/clipping.py --figures .                            # and save the figures here
    python examples/clipping.py --show docs/results/clipping.jsonl     # reprint a stored table

Results are appended to ``--results`` as they come, and what is there is not run again.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import quickstart
import torch
from measurements import append, arguments, percent, read, stored
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import clipping, entropy

SWEEPS = {
    "bounds": "full precision, membranes clipped from below, no training (Table 1)",
    "membranes": "quantised network, another membrane, no training (Table 3)",
    "levels": "full-precision weights, other membranes, no training (Fig. 4)",
    "trained": "the same, each row trained further (Figs. 4 and 5)",
    "shapes": "quantised network, by shape of the membrane's surrogate, each trained (Table 2)",
}
BITS = (2, 3, 4, 8)


class Study:
    """All measurements of one seed."""

    def __init__(self, seed: int, epochs: int, tuning: int) -> None:
        self.seed, self.epochs, self.tuning = seed, epochs, tuning
        self.data = spq.data.DigitEvents("train", seed=seed)
        self.test = list(spq.data.loader(spq.data.DigitEvents("test", seed=seed), batch_size=128))

    def train(self, net: nn.Module, epochs: int, name: str) -> nn.Module:
        torch.manual_seed(self.seed)
        quickstart.train(net, self.data, epochs, f"{name}, seed {self.seed}", seed=self.seed)
        return net

    def run(self) -> dict[str, Any]:
        """The reports by name."""
        torch.manual_seed(self.seed)
        full = quickstart.network(in_channels=2, classes=10)
        self.train(full, self.epochs, "full precision")
        quantized = quickstart.convert(full, self.data)
        self.train(quantized, self.tuning, "quantised")
        return {
            "silence": clipping.measure_silence(full, self.test),
            "bounds": clipping.sweep_bounds(full, self.test),
            "membranes": clipping.compare_membranes(quantized, self.test),
            "levels": clipping.sweep_levels(full, self.test, BITS),
            "trained": clipping.sweep_levels(
                full, self.test, BITS, fine_tune=self.tune, progress=False
            ),
            "shapes": clipping.sweep_shapes(
                full, self.test, self.tune, config=spq.presets.quant_snn(), progress=False
            ),  # training shows a bar of its own
            "entropy": entropy.measure_entropy(quantized),
        }

    def tune(self, net: nn.Module) -> None:
        """Every row of a sweep is trained alike, after its batch norms know its currents."""
        spq.calibrate(net, [frames for frames, _ in spq.data.loader(self.data, batch_size=256)])
        self.train(net, self.tuning, "row")


def table(runs: list[dict[str, Any]]) -> str:
    """Means over seeds, section by section."""
    seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    epochs = f"{runs[0]['epochs']} epochs, rows that are trained {runs[0]['tuning']} more"
    parts = [f"Digits of an event camera, vgg5 at half width, {epochs}; {seeds}.", _silence(runs)]
    parts += [_sweep(runs, name, told) for name, told in SWEEPS.items()]
    return "\n\n".join([*parts, _entropy(runs)])


def _silence(runs: list[dict[str, Any]]) -> str:
    lines = [
        "full precision, neurons below a bound after the first step (Eqs. 5 and 6, Fig. 2)",
        f"{'layer':10}{'lowest':>8}{'bound':>7}{'below':>9}{'fire later':>12}"
        f"{'of those below':>16}{'woken':>9}",
    ]
    layers = [run["silence"]["layers"] for run in runs]
    for same in zip(*layers, strict=True):
        lowest = min(layer["lowest"] for layer in same)
        for regions in zip(*(layer["regions"] for layer in same), strict=True):
            cells = [
                _mean([region[name] for region in regions])
                for name in ("share", "rate", "rate_within", "woken")
            ]
            lines.append(
                f"{same[0]['path']:10}{lowest:>8.2f}{regions[0]['bound']:>7g}"
                f"{cells[0]:>9}{cells[1]:>12}{cells[2]:>16}{cells[3]:>9}"
            )
    return "\n".join(lines)


def _mean(shares: list[float | None]) -> str:
    """In percent, over the seeds that have it."""
    found = [share for share in shares if share is not None]
    return f"{100 * statistics.mean(found):.2f} %" if found else ""


def _sweep(runs: list[dict[str, Any]], name: str, told: str) -> str:
    has_memory = "membrane_bytes" in runs[0][name]["rows"][0]
    last = "membranes" if has_memory else "clipped"
    lines = [told, f"{'':12}{'accuracy (%)':>16}{'change':>9}{last:>12}"]
    rows = list(zip(*(run[name]["rows"] for run in runs), strict=True))
    first, _ = percent([row["accuracy"] for row in rows[0]])
    for place, same in enumerate(rows):
        accuracy, text = percent([row["accuracy"] for row in same])
        change = f"{accuracy - first:+.2f}" if place else ""
        if has_memory:
            label, end = same[0]["name"], f"{same[0]['membrane_bytes'] / 1000:.2f} kB"
        else:
            bound = same[0]["bound"]
            label = "no bound" if bound is None else f"{bound:g}"
            end = _mean([row["clipped"] for row in same]) if place else ""
        lines.append(f"{label:12}{text:>16}{change:>9}{end:>12}".rstrip())
    return "\n".join(lines)


def _entropy(runs: list[dict[str, Any]]) -> str:
    lines = [
        "quantised network, entropy of the weights in bits",
        f"{'layer':12}{'levels':>8}{'entropy':>10}{'at most':>10}{'-':>10}{'0':>10}{'+':>10}",
    ]
    found = [[*run["entropy"]["layers"], *run["entropy"]["totals"]] for run in runs]
    for same in zip(*found, strict=True):
        if same[0]["entropy"] is None:
            continue
        bits = statistics.mean(row["entropy"] for row in same)
        shares = [_mean([row[sign] for row in same]) for sign in ("negative", "zero", "positive")]
        lines.append(
            f"{same[0]['path']:12}{same[0]['levels']:>8}{bits:>10.4f}{same[0]['most']:>10.4f}"
            f"{shares[0]:>10}{shares[1]:>10}{shares[2]:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "clipping.jsonl", [0])
    parser.add_argument("--epochs", type=int, default=4, help="of the full-precision network")
    parser.add_argument("--tuning", type=int, default=2, help="epochs of the rows that are trained")
    parser.add_argument("--figures", type=Path, help="folder for the last seed's figures")
    options = parser.parse_args()
    if options.show:
        print(table(stored(options.show)))
        return
    for seed in options.seeds:
        key = {"seed": seed, "epochs": options.epochs, "tuning": options.tuning}
        if any(key.items() <= done.items() for done in read(options.results)):
            continue
        reports = Study(**key).run()
        append(options.results, key | {name: found.to_dict() for name, found in reports.items()})
        if options.figures:
            for name, found in reports.items():
                found.plot().savefig(options.figures / f"clipping_{name}.png", dpi=150)
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
