"""A full report of a trained network: full precision, Quant and SpQuant, measured on test data.

Trains a small network of either host on digits that an event camera saw, or on moving textures,
converts it to ternary membranes and 2-bit weights (Quant) and to the same with gates (SpQuant), and
trains all three for the same number of epochs. Then it measures, over the whole test set: memory
(of SpQuant what training saves as well), sparsity, operations and energy at 45 nm and 7 nm; whether
NeuroBench and SpikingJelly's counters agree; an accelerator of crossbars; the entropy of the
weights; and how silent the neurons stay that a bound would clip.

    python examples/report.py                                    # two minutes on two cores
    python examples/report.py --host snntorch --output report_snntorch
    python examples/report.py --task motion --epochs 1 --limit 64    # tiny: only to see it run

It prints the comparison and the verdicts of the other tools, and writes ``report.md`` with every
table, ``report.json`` with every number, and the figures as PNG.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Subset

import spquant_plugin as spq
from spquant_plugin.analysis import clipping, entropy, hardware

HOSTS = {"spikingjelly": "quickstart", "snntorch": "quickstart_snntorch"}
TASKS = {"digits": (2, 10), "motion": (1, 4)}  # channels and classes
STEPS, CLOSED = 4, 0.5
BATCH = 32  # of the quickstarts' training
TABLES = ("45nm", "7nm")
BOUNDS = (-0.5, -1, -2)


class Networks:
    """The three networks of one host, trained alike, and the test data."""

    def __init__(
        self, host: str, task: str, epochs: int, limit: int | None = None, seed: int = 0
    ) -> None:
        self.script = import_module(HOSTS[host])  # the host's quickstart
        # Its snnTorch network takes one step per call, its SpikingJelly network all of them.
        self.timesteps = STEPS if host == "snntorch" else None
        self.epochs, self.seed = epochs, seed
        splits = ("train", "test")
        self.training, self.test = (recordings(task, split, limit, seed) for split in splits)
        torch.manual_seed(seed)
        channels, classes = TASKS[task]
        first = self.script.network(in_channels=channels, classes=classes)
        self.train(first, "first stage")
        self.nets = {
            "FP": copy.deepcopy(first),
            "Quant": self.convert(first, spq.presets.quant_snn(weight_bits=2)),
            "SpQuant": self.convert(first, spq.presets.spquant_snn(weight_bits=2)),
        }
        for name, net in self.nets.items():
            with closing_gates(net, self.epochs * (len(self.training) // BATCH)):
                self.train(net, name)
        self.accuracy = {name: self.script.accuracy(net, self.test) for name, net in self}

    def __iter__(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(self.nets.items())

    def train(self, net: nn.Module, name: str) -> None:
        torch.manual_seed(self.seed)
        self.script.train(net, self.training, self.epochs, name, seed=self.seed)

    def convert(self, net: nn.Module, config: spq.SpQuantConfig) -> nn.Module:
        """A low-precision copy whose batch norms know the quantised currents."""
        frames = [frames for frames, _ in spq.data.loader(self.training, batch_size=256)]
        sample = frames[0][:, :1] if self.timesteps is None else frames[0][0, :1]
        run = getattr(self.script, "run", None)  # the loop over time, where there is one
        return spq.calibrate(spq.convert(net, config, sample=sample), frames, forward=run)

    def batches(self) -> Any:
        """The test set; a loader gives ``(frames, labels)``, of which frames are read."""
        return spq.data.loader(self.test, batch_size=64)

    def sample(self) -> Tensor:
        """A first batch ``[T, N, C, H, W]``, for what takes no loader."""
        frames, _ = next(iter(self.batches()))
        return frames


def recordings(task: str, split: str, limit: int | None, seed: int) -> Any:
    """Recordings of one split, at most ``limit`` of them."""
    if task == "motion":
        return spq.data.Motion(split, level="easy", count=limit or 1024, steps=STEPS, seed=seed)
    data = spq.data.DigitEvents(split, steps=STEPS, seed=seed)
    return data if limit is None else Subset(data, range(min(limit, len(data))))


@contextmanager
def closing_gates(net: nn.Module, steps: int) -> Iterator[None]:
    """Move the gates, where there are any, after each step of whatever optimizer trains them."""
    if not spq.gate_stats(net):
        yield
        return
    gates = spq.GateSchedule(net, target=CLOSED, steps=steps)
    hook = register_optimizer_step_post_hook(lambda *_: gates.step())
    try:
        yield
    finally:
        hook.remove()


class Document:
    """The report as it grows: Markdown, numbers, and figures in a folder."""

    def __init__(self, folder: Path, title: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.text = folder, [f"# {title}"]
        self.numbers: dict[str, Any] = {}

    def add(self, title: str, *paragraphs: str) -> None:
        self.text += [f"## {title}", *(paragraph.strip() for paragraph in paragraphs)]

    def draw(self, figure: Any, name: str, caption: str) -> None:
        figure.savefig(self.folder / f"{name}.png", dpi=150)
        self.text.append(f"![{caption}]({name}.png)")

    def save(self) -> None:
        (self.folder / "report.md").write_text("\n\n".join(self.text) + "\n", encoding="utf-8")
        (self.folder / "report.json").write_text(json.dumps(self.numbers, indent=1))


def analyze(networks: Networks, table: str) -> dict[str, spq.Report]:
    """A report of each network over the whole test set."""
    tools = ["neurobench", "op_counter"] if table == TABLES[0] else []
    found = {}
    for name, net in networks:
        print(f"{name}, {table}", flush=True)
        found[name] = spq.analyze(
            net,
            networks.batches(),
            timesteps=networks.timesteps,
            energy=table,
            training=name == "SpQuant",
            agreement=tools if name == "Quant" else [],
            progress=True,
        )
    return found


def compare(document: Document, networks: Networks) -> dict[str, spq.Report]:
    """Accuracy, and what the networks cost, side by side."""
    lines = [f"| {name} | {share:.1%} |" for name, share in networks.accuracy.items()]
    document.add("Accuracy", "\n".join(["| network | test accuracy |", "| --- | ---: |", *lines]))
    document.numbers["accuracy"] = networks.accuracy
    reports = {table: analyze(networks, table) for table in TABLES}
    for table, found in reports.items():
        comparison = spq.compare(*found.values(), names=list(found))
        document.add(f"FP against Quant against SpQuant, {table}", comparison.to_markdown())
        document.draw(comparison.plot(), f"comparison_{table}", f"memory, operations, {table}")
        document.numbers[f"comparison_{table}"] = comparison.to_dict()
        print(f"\n{comparison}\n")
    return reports[TABLES[0]]


def agree(document: Document, report: spq.Report) -> None:
    """What other tools say of the quantised network."""
    verdicts = [tool.verdict for tool in report.agreement]
    listed = "\n".join(f"- {verdict}" for verdict in verdicts)
    document.add("Independent agreement", listed, "Their tables are in the part of Quant.")
    print("\n".join(verdicts))


def each_network(document: Document, reports: dict[str, spq.Report]) -> None:
    """Every table of every network, layer by layer."""
    for name, report in reports.items():
        document.add(f"{name}, layer by layer", report.to_markdown())
        document.draw(report.plot(), f"report_{name}", f"{name}: memory, operations, energy")
        document.draw(report.sparsity.plot(), f"sparsity_{name}", f"{name}: sparsity")
    document.numbers["networks"] = {name: report.to_dict() for name, report in reports.items()}


def on_hardware(document: Document, networks: Networks) -> None:
    """Crossbars: float against quantised, at the spike rates of one batch."""
    estimates = {
        name: hardware.estimate(
            networks.nets[name], networks.sample(), timesteps=networks.timesteps, spike_rates=True
        )
        for name in ("FP", "Quant")
    }
    comparison = hardware.compare(*estimates.values(), names=list(estimates))
    document.add("Hardware", comparison.to_markdown(), estimates["Quant"].to_markdown())
    document.draw(comparison.plot(), "hardware", "crossbars, float against quantised")
    document.draw(estimates["Quant"].plot(), "hardware_Quant", "crossbars, layer by layer")
    document.numbers["hardware"] = comparison.to_dict()


def robustness(document: Document, networks: Networks) -> None:
    """How evenly weights use their levels, and how silent clipped neurons would stay."""
    levels = entropy.measure_entropy(networks.nets["Quant"])
    document.add("Entropy of the weights", levels.to_markdown())
    document.draw(levels.plot(), "entropy", "entropy of the weights of Quant")
    silence = clipping.measure_silence(
        networks.nets["FP"], networks.batches(), BOUNDS, timesteps=networks.timesteps
    )
    document.add("Silence of clipped neurons", silence.to_markdown())
    document.draw(silence.plot(), "silence", "neurons below a bound that fire later")
    document.numbers |= {"entropy": levels.to_dict(), "silence": silence.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", choices=[*HOSTS], default="spikingjelly")
    parser.add_argument("--task", choices=[*TASKS], default="digits")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder (report)")
    parser.add_argument("--epochs", type=int, default=2, help="of each of the two stages (2)")
    parser.add_argument("--limit", type=int, help="recordings for training and test (all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.limit is not None and options.limit < 2 * BATCH:
        parser.error(f"--limit {options.limit}: must be at least {2 * BATCH}, two training batches")
    begin = time.perf_counter()
    networks = Networks(options.host, options.task, options.epochs, options.limit, options.seed)
    document = Document(options.output, f"What a recording costs: {options.host}, {options.task}")
    chosen = ("host", "task", "epochs", "seed")
    document.numbers |= {name: getattr(options, name) for name in chosen}
    document.text.append(
        f"{len(networks.test)} test recordings of {STEPS} steps; each network was trained for "
        f"{options.epochs} + {options.epochs} epochs on {len(networks.training)} others."
    )
    reports = compare(document, networks)
    agree(document, reports["Quant"])
    each_network(document, reports)
    on_hardware(document, networks)
    robustness(document, networks)
    document.save()
    print(f"\nWritten to {options.output}: report.md, report.json and the figures.", end=" ")
    print(f"{time.perf_counter() - begin:.0f} s in all.")


if __name__ == "__main__":
    main()
