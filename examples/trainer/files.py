"""Network files: a trained network with all that is needed to build it again.

A file is a dictionary of plain values and tensors, read with ``torch.load(weights_only=True)``:

``format``
    1
``network``
    ``name, host, in_channels, size [height, width], num_classes, width`` for ``spq.models.create``
``config``
    ``SpQuantConfig.to_dict()`` of a quantised network, None of one in full precision
``data``
    ``name, steps, size, seed, options`` for ``spq.data.create``
``stage, epoch, accuracy``
    where the network was in its training, and its accuracy on the validation recordings
``state``
    the state dict
"""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import CheckpointError

from .running import first_call

FORMAT = 1
REMEDY = "Pass a <stage>-best.pt or <stage>-last.pt that train.py wrote."
PARTS: dict[str, tuple[type, ...]] = {
    "network": (dict,),
    "config": (dict, type(None)),
    "data": (dict,),
    "stage": (str,),
    "epoch": (int,),
    "accuracy": (float, int, type(None)),
    "state": (dict,),
}
NETWORK = ("name", "host", "in_channels", "size", "num_classes", "width")
DATA = ("name", "steps", "size", "seed", "options")


def save_network(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    network: Mapping[str, Any],
    config: spq.SpQuantConfig | None,
    data: Mapping[str, Any],
    stage: str,
    epoch: int,
    accuracy: float | None,
) -> None:
    """Write a network file. Whoever reads meanwhile sees the old one or the new one, whole."""
    held = {
        "format": FORMAT,
        "network": dict(network),
        "config": None if config is None else config.to_dict(),
        "data": dict(data),
        "stage": stage,
        "epoch": epoch,
        "accuracy": accuracy,
        "state": {key: value.detach().cpu() for key, value in state.items()},
    }
    write_whole(path, held)


def read_network(path: str | Path) -> dict[str, Any]:
    """A network file, checked. Raises ``CheckpointError`` for any other file."""
    held = read_tensors(path)
    if not isinstance(held, dict) or "format" not in held:
        raise CheckpointError(f"{path}: holds {described(held)}: must be a network file. {REMEDY}")
    if not isinstance(held["format"], int) or held["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {held['format']!r}: must be {FORMAT}. Read it with the version "
            "that wrote it."
        )
    for name, kinds in PARTS.items():
        if not isinstance(held.get(name), kinds):
            raise CheckpointError(
                f"{path}: {name!r} is {type(held.get(name)).__name__}: must be "
                f"{' or '.join(kind.__name__ for kind in kinds)}. {REMEDY}"
            )
    for name, wanted in (("network", NETWORK), ("data", DATA)):
        missing = [key for key in wanted if key not in held[name]]
        if missing:
            raise CheckpointError(
                f"{path}: {name!r} lacks {missing[0]!r}: must hold {', '.join(wanted)}. {REMEDY}"
            )
    return held


def rebuild(saved: Mapping[str, Any]) -> nn.Module:
    """The network of a file, on the CPU, at rest, in eval mode. No random numbers are drawn."""
    with torch.random.fork_rng(devices=[]):
        net = create(saved["network"])
        if saved["config"] is not None:
            config = spq.SpQuantConfig.from_dict(saved["config"])
            net = spq.convert(net, config, sample=sample_of(net, saved))
    try:
        net.load_state_dict(saved["state"])
    except RuntimeError as error:
        raise CheckpointError(
            f"the state of the network file does not fit the network that it names: {error} "
            f"{REMEDY}"
        ) from error
    return net.eval()


def create(network: Mapping[str, Any]) -> nn.Module:
    """The float network that a file names, with new weights."""
    size = network["size"]
    return spq.models.create(
        network["name"],
        host=network["host"],
        in_channels=network["in_channels"],
        size=tuple(size),
        num_classes=network["num_classes"],
        width=network["width"],
    )


def sample_of(net: nn.Module, saved: Mapping[str, Any]) -> Tensor:
    """One recording without events, as one call of the network takes it."""
    shape = (saved["network"]["in_channels"], *saved["network"]["size"])
    return first_call(net, torch.zeros(saved["data"]["steps"], 1, *shape))


def described(held: Any) -> str:
    """What a file holds that is not what it should be, in a few words."""
    if not isinstance(held, Mapping):
        return f"one {type(held).__name__}"
    return f"the keys {', '.join(map(str, list(held)[:3]))}" if held else "nothing"


def read_tensors(path: str | Path) -> Any:
    """What a file of ``torch.save`` holds, if that is tensors and plain values; no code is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file. {REMEDY}") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}): must be a whole file that "
            f"torch.save wrote, of tensors and plain values. {REMEDY}"
        ) from error


def write_whole(path: str | Path, held: Any) -> None:
    """``torch.save`` under another name first; so a stop at any moment leaves no half file."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as stream:
            torch.save(held, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # of a full disk torch makes a RuntimeError
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error}): the folder must be writable and have room. Free "
            "some, or choose another one with --out."
        ) from error
