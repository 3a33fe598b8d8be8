"""Measure a trained network: as it is, and with one thing changed at a time, without training.

    python examples/evaluate.py runs/digits/quant-best.pt
    python examples/evaluate.py runs/dvs/spquant-best.pt --root ~/data --membrane binary \\
        --no-spatial-gates --no-channel-gates --clip -0.5 --integer --json measured.json

Every switch is a row of its own; where there are several, one more row has all of them.
``docs/how-to/evaluate.rst`` says what each means.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from evaluate_row import HEADER, Row
from evaluate_switches import MEMBRANES, Change, changed, changes, check, is_gated
from torch import Tensor, nn
from tqdm import tqdm
from trainer.files import read_network, rebuild
from trainer.options import Parser
from trainer.problems import OptionError, one_of
from trainer.running import Sequence, first_call, takes_sequences
from trainer.tasks import placed

import spquant_plugin as spq
from spquant_plugin.analysis import clipping
from spquant_plugin.analysis.clipping.bounds import check_bounds
from spquant_plugin.errors import AnalysisWarning, SpQuantError
from spquant_plugin.table import render

AS_TRAINED = "as it was trained"


def parse(argv: Several[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="evaluate.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", type=Path, help="a <stage>-best.pt or -last.pt of train.py")
    parser.add_argument("--root", help="the folder that holds the data")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--clip", type=float, nargs="+", default=[], metavar="BOUND")
    parser.add_argument("--membrane", help=" or ".join(MEMBRANES))
    parser.add_argument("--no-spatial-gates", action="store_true")
    parser.add_argument("--no-channel-gates", action="store_true")
    parser.add_argument("--calibrate", type=int, metavar="N", help="on N batches of training data")
    parser.add_argument("--integer", action="store_true", help="its integer network, verified")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> None:
    """What can be said before anything is read."""
    one_of("--split", options.split, ("train", "validation", "test"))
    one_of("--device", options.device, ("auto", "cpu", "cuda"))
    if options.membrane is not None:
        one_of("--membrane", options.membrane, MEMBRANES)
    for name, least in (("batch", 1), ("workers", 0), ("calibrate", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise OptionError(f"--{name} {value}: must be a whole number from {least} on.")
    if options.clip:
        check_bounds(options.clip)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: torch must find a GPU, and finds none. Use --device cpu.")
    if options.json is not None and not options.json.parent.is_dir():
        raise OptionError(
            f"--json {options.json}: the folder {options.json.parent} must exist. Make it first."
        )
    if options.json is not None and options.json.is_dir():
        raise OptionError(
            f"--json {options.json}: is a folder: must be a file to write. Add a name to it."
        )


class Evaluation:
    """One file on one split: everything is built and checked before the first row is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.saved = options, read_network(options.network)
        cuda = options.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.net = rebuild(self.saved)
        self.changes = changes(
            options.membrane,
            no_spatial_gates=options.no_spatial_gates,
            no_channel_gates=options.no_channel_gates,
            calibrate=options.calibrate,
        )
        check(self.saved, self.net, self.changes)
        self.clipped = self._to_clip()
        if options.integer and self.saved["config"] is None:
            raise OptionError(
                f"--integer: the network is of stage {self.saved['stage']}, in full precision: "
                "must be quantised. Pass the file of a later stage."
            )
        self.batches = self._loader(options.split)
        self.first: Tensor = next(iter(self.batches))[0]
        self.rows: list[Row] = []

    def _to_clip(self) -> tuple[str, nn.Module] | None:
        """The network whose membranes are clipped: without the gates that are switched off."""
        if not self.options.clip:
            return None
        change = self.changes[-1].gates_only if self.changes else Change(AS_TRAINED)
        net = changed(self.saved, change, ())
        if is_gated(net):
            raise OptionError(
                "--clip with a gated network: gates read what neurons store, so there must be "
                "none. Add --no-spatial-gates and --no-channel-gates, as far as it has them: the "
                "network is then clipped without its gates."
            )
        return "without gates, " if is_gated(self.net) else "", net

    def _loader(self, split: str, **options: Any) -> Any:
        recipe, network = self.saved["data"], self.saved["network"]
        size = recipe["size"]
        data = spq.data.create(
            recipe["name"],
            split,
            root=self.options.root,
            steps=recipe["steps"],
            size=tuple(size) if isinstance(size, list) else size,
            seed=recipe["seed"],
            **recipe["options"],
        )
        found = (*data.sample_shape[1:], len(data.classes))
        wanted = (network["in_channels"], *network["size"], network["num_classes"])
        if tuple(found) != tuple(wanted) or not len(data):
            raise OptionError(
                f"{recipe['name']}, {split}: {len(data)} recordings with (channels, height, width, "
                f"classes) {found}: must be at least one, with {wanted}, as the network was made "
                "for. Pass the --root that it was trained on."
            )
        batch, workers = self.options.batch, self.options.workers
        return spq.data.loader(data, batch, num_workers=workers, **options)

    def run(self) -> list[Row]:
        """All rows, the network as it was trained first."""
        exact = self._integer() if self.options.integer else None
        self.rows.append(self._measured(AS_TRAINED, self.net))
        for change in self.changes:
            net = changed(self.saved, change, self._training(), self.device).cpu()
            self.rows.append(self._measured(change.name, net))
        if self.clipped is not None:
            self.rows += self._bounds(*self.clipped)
        if exact is not None:
            self.rows.append(exact())
        return self.rows

    def _training(self) -> Any:
        """Frames to calibrate on, the same for every row."""
        if self.options.calibrate is None:
            return
        batches = self._loader("train", shuffle=True, seed=self.saved["data"]["seed"])
        for frames, _ in islice(batches, self.options.calibrate):
            yield placed(frames, self.device)

    def _measured(self, name: str, net: nn.Module) -> Row:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AnalysisWarning)  # a silent network shows in its row
            report = spq.analyze(net, self.first, timesteps=self._timesteps(net))
        run = Sequence(net.to(self.device)).eval()
        closed: list[float] = []

        def answer(frames: Tensor) -> Tensor:
            outputs = run(placed(frames, self.device)).cpu()
            shares = list(spq.gate_stats(net).values())
            if shares:
                closed.extend([sum(shares) / len(shares)] * frames.shape[1])
            return outputs

        accuracy = self._accuracy(name, answer)
        spq.reset(net)
        net.cpu()
        return Row(
            name,
            accuracy,
            report.sparsity.firing_rate,
            sum(closed) / len(closed) if closed else None,
            report.memory.membrane_bytes,
            report.memory.total_bytes,
        )

    @torch.no_grad()
    def _accuracy(self, name: str, answer: Callable[[Tensor], Tensor]) -> float:
        """Share of recordings whose label has the largest output, averaged over time."""
        right = total = 0
        for frames, labels in tqdm(self.batches, desc=name, unit="batch"):
            right += int((answer(frames).mean(0).argmax(1) == labels).sum())
            total += len(labels)
        return right / total

    def _timesteps(self, net: nn.Module) -> int | None:
        return None if takes_sequences(net) else self.first.shape[0]

    def _bounds(self, told: str, net: nn.Module) -> list[Row]:
        report = clipping.sweep_bounds(
            net.to(self.device),
            self.batches,
            self.options.clip,
            timesteps=self._timesteps(net),
            progress=True,
        )
        name = f"{told}membranes clipped at"
        return [
            Row(f"{name} {row.bound:g}", row.accuracy, clipped=row.clipped)
            for row in report.rows
            if row.bound is not None
        ]

    def _integer(self) -> Callable[[], Row]:
        """Lowered and compared first, because that may be refused; its accuracy is for later."""
        limits = None
        if spq.SpQuantConfig.from_dict(self.saved["config"]).input is None:
            bar = tqdm(self.batches, desc="range of the input", unit="batch")
            ends = torch.tensor([torch.stack(frames.aminmax()).tolist() for frames, _ in bar])
            limits = (min(0, int(ends.min())), max(1, int(ends.max())))
        net = spq.to_integer(self.net, first_call(self.net, self.first), input_range=limits)
        proof = spq.verify(net, self.net, self.first)
        if not proof.exact:
            print(proof.table())
        measure = partial(self._accuracy, "integer network", net)
        return lambda: Row("integer network", measure(), exact=proof.exact)

    def table(self) -> str:
        """What was measured, of which network and on what."""
        saved, first = self.saved, self.rows[0]
        head = (
            f"{self.options.network}: {saved['network']['name']} of {saved['network']['host']}, "
            f"stage {saved['stage']}, epoch {saved['epoch']}\n"
            f"{saved['data']['name']}, {self.options.split}: {len(self.batches.dataset)} recordings"
        )
        return f"{head}\n\n{render(HEADER, [row.cells(first) for row in self.rows])}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        kept = {name: value for name, value in self.saved.items() if name != "state"}
        return {
            "file": str(self.options.network),
            **kept,
            "split": self.options.split,
            "recordings": len(self.batches.dataset),
            "rows": [asdict(row) for row in self.rows],
        }


def main(argv: Several[str] | None = None) -> int:
    """Exit status: 0, 1 where the integer network differs, 2 after a line that says why not."""
    try:
        options = parse(argv)
        check_options(options)
        evaluation = Evaluation(options)
        rows = evaluation.run()
    except SpQuantError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    print(evaluation.table())
    if options.json is not None:
        options.json.write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n")
    return int(any(row.exact is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
