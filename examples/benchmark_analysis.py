"""How long ``spq.analyze`` takes, beside one plain forward pass of the same network.

For each host a network in full precision, quantised, and with gates as well: VGG-9 on SpikingJelly,
a small convolutional network on snnTorch, both on 48 x 48 pixels, with a batch of two. Analysed are
one batch, and a loader of five, of which the time is given per batch; the first batch takes longer,
because it also traces which layer feeds which.

    python examples/benchmark_analysis.py                         # minutes; leave the machine alone
    python examples/benchmark_analysis.py --json analysis.jsonl   # and store the measurement
    python examples/benchmark_analysis.py --show docs/results/benchmark_analysis.jsonl

It prints a table of medians; all cases of a network take turns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from benchmarking import OTHER, OURS, Case, arguments, bars, finish, headline, in_turns, machine
from benchmarking import unsteady as unsteady_times
from matplotlib.figure import Figure
from torch import Tensor, nn

import spquant_plugin as spq

BATCHES = 5
NETWORKS = {"spikingjelly": "vgg9", "snntorch": "conv_net"}
CONFIGS = {
    "float": None,
    "quantised": spq.presets.quant_snn(weight_bits=2),
    "gated": spq.presets.spquant_snn(weight_bits=2),
}
FORWARD, ONE, FIVE = "forward", "analyze, 1 batch", f"analyze, {BATCHES} batches"


def build(host: str, config: spq.SpQuantConfig | None, batches: list[Tensor]) -> nn.Module:
    """A network whose neurons fire: its batch norms are measured on the data."""
    torch.manual_seed(0)
    first = batches[0]
    net = spq.models.create(
        NETWORKS[host], host=host, in_channels=2, size=first.shape[-1], num_classes=10
    )
    if config is not None:
        net = spq.convert(net, config, sample=first if host == "spikingjelly" else first[0])
    return spq.calibrate(net, batches[:1], forward=partial(run, host)).eval()


@torch.no_grad()
def forward(host: str, net: nn.Module, frames: Tensor) -> Any:
    """A plain forward pass from rest."""
    spq.reset(net)
    return run(host, net, frames)


def run(host: str, net: nn.Module, frames: Tensor) -> Any:
    """All steps: the network's own loop, or one around it."""
    if host == "spikingjelly":
        return net(frames)
    return torch.stack([net(frame) for frame in frames])


def cases(host: str, net: nn.Module, batches: list[Tensor]) -> dict[str, Case]:
    """What is timed."""
    steps = None if host == "spikingjelly" else len(batches[0])
    analyze = partial(spq.analyze, net, timesteps=steps, progress=False)
    return {
        FORWARD: Case(partial(forward, host, net, batches[0])),
        ONE: Case(partial(analyze, batches[0])),
        FIVE: Case(partial(analyze, batches)),
    }


def measure(repeats: int, quick: bool) -> dict[str, Any]:
    """Every host, number of steps and network."""
    size, lengths = (16, (2,)) if quick else (48, (4, 10))
    rows = []
    for host in NETWORKS:
        for steps in lengths:
            batches = [(torch.rand(steps, 2, 2, size, size) < 0.1).float() for _ in range(BATCHES)]
            for name, config in CONFIGS.items():
                label = f"{host}, T = {steps}, {name}"
                net = build(host, config, batches)
                took = in_turns(cases(host, net, batches), "cpu", repeats, label, warm_up=1)
                rows.append({"host": host, "steps": steps, "network": name, "times": took})
    return {
        "machine": machine("cpu"),
        "quick": quick,
        "repeats": repeats,
        "size": size,
        "rows": rows,
    }


def ratios(row: dict[str, Any]) -> tuple[float, float]:
    """Of one batch, and of each of five, to a forward pass."""
    plain = row["times"][FORWARD]["ms"]
    return row["times"][ONE]["ms"] / plain, row["times"][FIVE]["ms"] / BATCHES / plain


def title(row: dict[str, Any]) -> str:
    return f"{row['host']} {NETWORKS[row['host']]}, T = {row['steps']}, {row['network']}"


def table(results: list[dict[str, Any]]) -> str:
    """Milliseconds, and how many forward passes each is."""
    found = results[-1]
    size = found["size"]
    lines = [
        headline(f"spq.analyze beside a forward pass, {size} x {size}, batch 2", found),
        "",
        f"{'':44}{'forward':>10}{'analyze':>12}{'':>8}{f'each of {BATCHES} batches':>22}",
    ]
    for row in found["rows"]:
        plain, one, five = (row["times"][case]["ms"] for case in (FORWARD, ONE, FIVE))
        first, each = ratios(row)
        lines.append(
            f"{title(row):44}{plain:>7.1f} ms{one:>9.1f} ms{first:>7.2f}x"
            f"{five / BATCHES:>19.1f} ms{each:>7.2f}x"
        )
    lines += [
        "",
        "Times are of all steps and samples of a batch; analyze includes its own forward.",
    ]
    for row in found["rows"]:
        lines += [f"{title(row)}: {line}" for line in unsteady_times(row["times"])]
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> Figure:
    """How many forward passes one analysis takes, a panel for one batch and one for five."""
    drawn = Figure(figsize=(9, 4.5), layout="constrained")
    for number, panel in enumerate(drawn.subplots(1, 2, sharey=True)):
        values = {title(row): ratios(row)[number] for row in found["rows"]}
        colors = {title(row): OTHER if row["network"] == "float" else OURS for row in found["rows"]}
        notes = {name: f"{value:.2f}" for name, value in values.items()}
        bars(panel, values, colors, "forward passes per batch", notes)
        panel.set_title(ONE if number == 0 else FIVE)
    drawn.axes[0].invert_yaxis()  # both panels turned the axis that they share
    return drawn


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    if options.device != "cpu":
        raise SystemExit("--device: analysing is measured on a CPU only. Leave it out.")
    repeats = options.repeats or (2 if options.quick else 7)
    finish(options, lambda: measure(repeats, options.quick), table, figure)


if __name__ == "__main__":
    main()
