"""Early looks at the options, before anything is loaded or built."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import torch

import spquant_plugin as spq
from spquant_plugin.models.registry import find

from .problems import OptionError, one_of
from .tasks import AUGMENTATIONS, IMAGES

# What data sets are asked for by options of the script's own.
OWN = {"name": "--data", "root": "--root", "seed": "--seed", "size": "--size"}
OWN |= {"steps": "--timesteps"}
STAGES = ("fp", "quant", "spquant", "adaptive")
PRESETS: dict[str, tuple[str, ...]] = {
    "quant_snn": ("fp", "quant"),
    "spquant_snn": ("fp", "quant", "spquant"),
    "tawq": ("fp", "quant"),
    "mint": ("fp", "quant"),
    "md_snn": ("fp", "quant"),
}


def check(options: argparse.Namespace, world: int) -> argparse.Namespace:
    """The options with every default filled in. Raises ``OptionError`` for what cannot work."""
    find(options.model, options.host)  # says what is like it
    one_of("--data", options.data, spq.data.list_datasets())
    one_of("--preset", options.preset, PRESETS)
    if options.timesteps is None:
        options.timesteps = 4 if options.data in IMAGES else 10
    options.stages = options.stages or PRESETS[options.preset]
    _stages(options)
    _epochs(options)
    _numbers(options)
    _batch(options.batch, options.accumulate, world)
    _computing(options)
    _data_options(options)
    if options.augment and options.data not in AUGMENTATIONS:
        raise OptionError(
            f"--augment with --data {options.data}: flipping a recording could change its class: "
            f"must be data of {', '.join(AUGMENTATIONS)}. Leave --augment out."
        )
    if options.tensorboard and find_spec("tensorboard") is None:
        raise OptionError(
            "--tensorboard: the package tensorboard must be installed, and is not. "
            "Run: python -m pip install tensorboard"
        )
    return options


def _stages(options: argparse.Namespace) -> None:
    for stage in options.stages:
        one_of("--stages", stage, STAGES)
    if list(options.stages) != sorted(set(options.stages), key=STAGES.index):
        raise OptionError(
            f"--stages {','.join(options.stages)}: must be in the order {','.join(STAGES)}, each "
            "at most once. Reorder them."
        )
    if options.preset == "tawq" and options.weight_bits is not None:
        raise OptionError(
            f"--weight-bits {options.weight_bits} with --preset tawq: its weights are ternary, so "
            "there must be none. Leave it out."
        )
    if options.preset == "md_snn" and options.stages[0] != "fp" and options.init is None:
        raise OptionError(
            f"--preset md_snn with --stages {','.join(options.stages)}: must have a teacher in "
            "full precision. Add the stage fp, or pass --init with its network."
        )


def _epochs(options: argparse.Namespace) -> None:
    count = len(options.stages)
    if len(options.epochs) == 1:
        options.epochs = options.epochs * count
    if len(options.epochs) != count or min(options.epochs) < 1:
        raise OptionError(
            f"--epochs {','.join(map(str, options.epochs))}: must be one number above 0, or one "
            f"for each of the {count} stages ({','.join(options.stages)}). Correct it."
        )


def _numbers(options: argparse.Namespace) -> None:
    if options.tet_beta is None:
        options.tet_beta = 0.9 if options.model.startswith("resnet") else 0.45
    whole = ("batch", "accumulate", "log_every", "save_every", "calibration_batches", "timesteps")
    for name in (*whole, "max_steps", "eval_batches"):
        value = getattr(options, name)
        _rule(name, value, value is None or value >= 1, "a whole number from 1 on")
    for name in ("seed", "workers", "warmup", "weight_decay"):
        value = getattr(options, name)
        _rule(name, value, 0 <= value < 2**63, "0 or above")
    for name in ("tet_beta", "label_smoothing", "ema", "closed"):
        value = getattr(options, name)
        _rule(name, value, value is None or 0 <= value < 1, "at least 0 and below 1")
    for name in ("lr", "clip_gradient", "width"):
        value = getattr(options, name)
        _rule(name, value, value is None or 0 < value < float("inf"), "a number above 0")
    if options.size is not None:
        good = len(options.size) in (1, 2) and min(options.size) > 0
        _rule("size", ",".join(map(str, options.size)), good, "one number above 0, or height,width")
    if options.max_steps is not None and options.eval_batches is None:
        options.eval_batches = 2


def _rule(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        option = "--" + name.replace("_", "-")
        raise OptionError(f"{option} {value}: must be {rule}. Correct it.")


def _batch(batch: int, accumulate: int, world: int) -> None:
    parts = world * accumulate
    if batch % parts == 0:
        return
    near = [size for size in (batch // parts * parts, (batch // parts + 1) * parts) if size]
    raise OptionError(
        f"--batch {batch} with {world} processes and --accumulate {accumulate}: must be a multiple "
        f"of {parts}, an equal part for each. Nearest: {' or '.join(map(str, near))}."
    )


def _data_options(options: argparse.Namespace) -> None:
    for key, value in options.data_option:
        given = f"--data-option {key}={value}"
        if key in OWN:
            raise OptionError(
                f"{given}: must be given by the option of its own. Pass {OWN[key]} instead."
            )
        if key == "split":
            raise OptionError(f"{given}: must not be given: all splits are used. Leave it out.")
        if (options.data, key, value) == ("imagenet", "crop", "random"):
            raise OptionError(
                f"{given}: must be for training alone, and this would crop what is evaluated at "
                "random too. Pass --augment, which crops and mirrors training images."
            )


def _computing(options: argparse.Namespace) -> None:
    one_of("--loss", options.loss, ("tet", "mean"))
    one_of("--optimizer", options.optimizer, ("adam", "adamw"))
    one_of("--amp", options.amp, ("off", "bf16", "fp16"))
    one_of("--device", options.device, ("auto", "cpu", "cuda"))
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        raise OptionError("--device cuda: torch must find a GPU, and finds none. Use --device cpu.")
    if options.amp == "fp16" and (options.device == "cpu" or not cuda):
        raise OptionError(
            "--amp fp16: must run on a GPU, where gradients are scaled; here it would run on the "
            "CPU. Use --amp bf16 or off."
        )
