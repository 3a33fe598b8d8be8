"""Checkpoints: everything that a killed training needs to come to the same end."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spquant_plugin.errors import CheckpointError

from .files import read_tensors, write_whole
from .problems import OptionError
from .processes import Processes
from .tasks import STORING

FORMAT = 1
NAME = "checkpoint.pt"
OPTIONS = "options.json"
# Options that may differ when a run is resumed. They leave the results what they are, but for
# ``device``: sums on another one have other last digits.
FREE = ("out", "resume", "root", "workers", "save_every", "device", "tensorboard")
PATIENCE = 10.0  # seconds in which a new file in a shared folder shows up on other machines


def random_states() -> dict[str, Any]:
    """The random generators of this process, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_random(states: dict[str, Any]) -> None:
    """Undo :func:`random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))


def seed_all(seed: int, *stream: int) -> None:
    """Random numbers of their own for one purpose, as a stage, and one process."""
    drawn = np.random.SeedSequence(entropy=seed, spawn_key=stream).generate_state(3)
    torch.manual_seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    random.seed(int(drawn[2]))


def look(options: argparse.Namespace, processes: Processes) -> bool:
    """Whether ``--out`` holds a run to go on with. Nothing is written.

    Raises ``OptionError`` where it holds one that is not to be resumed, or one that was started
    with options that lead elsewhere, or not the same on all machines.
    """
    folder: Path = options.out
    found = _read_options(folder / OPTIONS)
    if any(theirs != found for theirs in processes.agree(found)):
        raise not_shared(folder)
    if found is None:
        return False
    if not options.resume:
        raise OptionError(
            f"--out {folder}: holds a run already, which must not be overwritten. Pass --resume to "
            "go on with it, or another folder."
        )
    record, old = leading(record_of(options)), leading(found)
    changed = [
        f"--{name.replace('_', '-')} {json.dumps(record.get(name))} for {json.dumps(value)}"
        for name, value in old.items()
        if record.get(name) != value
    ]
    if changed:
        raise OptionError(
            f"--resume in {folder}: the options must be those of the run, or it would lead "
            f"elsewhere. Changed: {'; '.join(changed)}. Pass the old ones, or another --out."
        )
    return True


def begin(options: argparse.Namespace, processes: Processes) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a new run, whose options are then stored.

    Raises ``OptionError`` as :func:`look` does, and where ``--out`` cannot be written, or not all
    processes see what is written there.
    """
    folder: Path = options.out
    if not look(options, processes):
        if processes.is_main:
            _start(folder, record_of(options))
        processes.wait()
        if not all(processes.agree(_appears(folder / OPTIONS))):
            raise not_shared(folder)
        return None
    for part in folder.glob("*.part") if processes.is_main else ():
        part.unlink(missing_ok=True)  # of a file that was being written when the run was killed
    path = folder / NAME
    return read(path) if path.exists() else None


def record_of(options: argparse.Namespace) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return json.loads(json.dumps(vars(options), default=str))


def leading(record: dict[str, Any]) -> dict[str, Any]:
    """Those options that the results follow from."""
    kept = {name: value for name, value in record.items() if name not in FREE}
    extra = {name: value for name, value in kept.get("data_option", []) if name not in STORING}
    return kept | {"data_option": extra}


def not_shared(folder: Path) -> OptionError:
    return OptionError(
        f"--out {folder}: every process must see the same folder, and not all do. Choose one that "
        "all machines share."
    )


def _appears(path: Path) -> bool:
    """Whether a file that was just written is seen from here; a network drive may take a moment."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _start(folder: Path, record: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{OPTIONS}.part"
        part.write_text(json.dumps(record, indent=2) + "\n")
        part.replace(folder / OPTIONS)
    except OSError as error:
        raise OptionError(
            f"--out {folder}: cannot be written ({error}): must be a folder. Choose another one."
        ) from error


def _read_options(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text())
        if not isinstance(held, dict):
            raise ValueError(f"it holds one {type(held).__name__}")
        return held
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OptionError(
            f"--out {path.parent}: its {path.name} cannot be read ({error}): must be the file that "
            "a run wrote. Make it readable, or choose another folder."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}): must be the JSON that a run wrote. Use another "
            "--out."
        ) from error


def save(path: Path, held: dict[str, Any]) -> None:
    """Write a checkpoint whole, or leave the old one."""
    write_whole(path, {"format": FORMAT, **held})


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, checked."""
    held = read_tensors(path)
    if not isinstance(held, dict) or held.get("format") != FORMAT or "place" not in held:
        raise CheckpointError(
            f"{path}: must be a checkpoint of train.py of format {FORMAT}. Remove it to start the "
            "run anew, or use another --out."
        )
    return held
