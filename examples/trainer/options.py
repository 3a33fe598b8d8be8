"""The command line of ``train.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .problems import OptionError


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, as all errors here do."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}. Run with --help for all options.")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options as they were given; :func:`trainer.checks.check` looks at their values."""
    parser = Parser(
        prog="train.py",
        description="Train a network in full precision, quantised, gated and with learned "
        "thresholds, on one processor or on many.",
        allow_abbrev=False,
    )
    _what(parser.add_argument_group("what is trained"))
    _recipe(parser.add_argument_group("the recipe"))
    _machine(parser.add_argument_group("how it is computed"))
    _files(parser.add_argument_group("files"))
    return parser.parse_args(argv)


def _what(group: Any) -> None:
    group.add_argument("--model", required=True, help="a name of spq.models.list_models()")
    group.add_argument("--host", default="spikingjelly", help="spikingjelly (default) or snntorch")
    group.add_argument("--width", type=float, default=1.0, help="times every hidden channel count")
    group.add_argument("--data", required=True, help="a name of spq.data.list_datasets()")
    group.add_argument("--root", help="the folder that holds the data")
    group.add_argument(
        "--timesteps", type=int, help="frames of a recording; default 10, for images 4"
    )
    group.add_argument("--size", type=numbers(int), help="of a frame: 48, or 48,64")
    group.add_argument(
        "--data-option", type=setting, action="append", default=[], metavar="KEY=VALUE"
    )
    group.add_argument("--preset", default="spquant_snn", help="default: spquant_snn")
    group.add_argument("--weight-bits", type=int, help="default: the preset's")
    group.add_argument("--stages", type=words, help="default: the preset's, as fp,quant,spquant")
    group.add_argument("--closed", type=float, default=0.5, help="share of channels to close")
    group.add_argument("--init", type=Path, help="start from this file, for example instead of fp")


def _recipe(group: Any) -> None:
    group.add_argument("--epochs", type=numbers(int), default=(100,), help="100, or one per stage")
    group.add_argument("--batch", type=int, default=64, help="recordings a step, in all processes")
    group.add_argument("--loss", default="tet", help="tet (default) or mean")
    group.add_argument(
        "--tet-beta", type=float, help="weight of TET's regulariser; default 0.45, of ResNets 0.9"
    )
    group.add_argument("--label-smoothing", type=float, default=0.0)
    group.add_argument("--optimizer", default="adam", help="adam (default) or adamw")
    group.add_argument("--lr", type=float, default=1e-3, help="falls to 0 along a cosine")
    group.add_argument("--warmup", type=float, default=0.0, help="epochs in which lr rises first")
    group.add_argument("--weight-decay", type=float, default=0.0, help="of weights alone")
    group.add_argument("--clip-gradient", type=float, help="longest gradient, as a norm")
    group.add_argument("--ema", type=float, help="also average the parameters, for example 0.999")
    group.add_argument("--augment", action="store_true", help="shift, crop, flip what trains")
    group.add_argument(
        "--calibration-batches", type=int, default=16, help="for batch norms after conversion"
    )
    group.add_argument(
        "--recalibrate", action="store_true", help="measure batch norms before each evaluation too"
    )
    group.add_argument("--seed", type=int, default=0)


def _machine(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    group.add_argument("--amp", default="off", help="mixed precision: off (default), bf16 or fp16")
    group.add_argument("--accumulate", type=int, default=1, help="parts to compute a batch in")
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument("--sync-norm", action="store_true", help="batch norms over all processes")
    group.add_argument("--workers", type=int, default=0, help="processes that load data, of each")
    group.add_argument("--deterministic", action="store_true", help="repeatable sums on GPUs")
    group.add_argument("--max-steps", type=int, help="end each stage here, to try a command")
    group.add_argument(
        "--eval-batches", type=int, help="evaluate on as many; default all, with --max-steps 2"
    )


def _files(group: Any) -> None:
    group.add_argument("--out", type=Path, required=True, help="the folder to write")
    group.add_argument("--resume", action="store_true", help="go on with the run in --out")
    group.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    group.add_argument("--log-every", type=int, default=50, help="steps between lines of metrics")
    group.add_argument("--tensorboard", action="store_true")


def words(text: str) -> tuple[str, ...]:
    """``fp,quant`` as a tuple."""
    return tuple(word.strip() for word in text.split(","))


def numbers(kind: type) -> Any:
    """A parser of ``100,50`` as a tuple of numbers."""

    def parsed(text: str) -> tuple[Any, ...]:
        return tuple(kind(word) for word in text.split(","))

    parsed.__name__ = "list of whole numbers"  # argparse names it in its message
    return parsed


def setting(text: str) -> tuple[str, Any]:
    """``level=hard`` or ``count=64``: a number, true or false where it is one, else a word."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE, for example count=64")
    try:
        return key.replace("-", "_"), json.loads(value)
    except ValueError:
        return key.replace("-", "_"), value
