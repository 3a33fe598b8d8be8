"""A training that is killed twice and resumed comes to the same end, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"
# Stages of 6 and 24 steps; checkpoints of the second after 4, 6 (the epoch's end), 8, 12, 16, ...
OPTIONS = (
    *("--model", "vgg5", "--width", "0.125", "--data", "motion", "--timesteps", "3"),
    *("--data-option", "count=96", "--data-option", "level=easy", "--seed", "3"),
    *("--stages", "fp,spquant", "--epochs", "1,4", "--batch", "16", "--calibration-batches", "2"),
    *("--accumulate", "2", "--ema", "0.9", "--save-every", "4", "--log-every", "1"),
)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *OPTIONS, "--out", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SPQUANT_KERNELS": "eager"},
    )


def finish(run: subprocess.Popen[str]) -> str:
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0, printed
    return printed


def lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the measurements so far."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill(run: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """SIGKILL as soon as it is time; the run must not have ended before."""
    for _ in range(60_000):
        if when():
            break
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL


def reached(folder: Path, step: int) -> bool:
    return any(
        (line["stage"], line["split"]) == ("spquant", "step") and line["step"] >= step
        for line in lines(folder)
    )


class Killed:
    """One run that was left alone, and one that was killed twice."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.broken = folder / "whole", folder / "broken"
        finish(start(self.whole))
        path = self.broken / "checkpoint.pt"

        def saved_again() -> bool:
            """From step 4 on, a checkpoint has just been replaced."""
            if not reached(self.broken, 4):
                self.seen = path.stat().st_mtime_ns if path.exists() else 0
                return False
            return path.stat().st_mtime_ns != self.seen

        kill(start(self.broken), saved_again)
        self.first = torch.load(path, weights_only=True)
        kill(start(self.broken, "--resume"), lambda: reached(self.broken, 10))
        self.second = torch.load(path, weights_only=True)
        self.left = (self.broken / "metrics.jsonl").stat().st_size
        self.printed = finish(start(self.broken, "--resume", "--workers", "1"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return Killed(tmp_path_factory.mktemp("killed"))


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested containers, by its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from tensors(part, f"{path}/{number}")
    else:
        yield path, value


def test_it_was_killed_within_an_epoch_once_between_checkpoints(killed):
    assert killed.first["training"]["taken"] in (4, 6)
    assert killed.second["training"]["taken"] == 8
    assert killed.second["place"]["step"] == 2
    assert killed.left > killed.second["metrics"]  # lines that the resumed run writes anew
    assert "goes on after 8 steps" in killed.printed


def test_measurements_are_the_same_lines(killed):
    whole, broken = (
        [{k: v for k, v in line.items() if k != "timing"} for line in lines(folder)]
        for folder in (killed.whole, killed.broken)
    )
    assert whole == broken
    assert len(whole) == 6 + 24 + 2 * 5 + 2


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", *(f"{s}-{k}.pt" for s in ("fp", "spquant") for k in ("best", "last"))]
)
def test_every_tensor_is_the_same(killed, name):
    """Parameters, averages, the optimizer, gates, random generators of the last checkpoint."""
    whole, broken = (
        dict(tensors(torch.load(folder / name, weights_only=True)))
        for folder in (killed.whole, killed.broken)
    )
    # The clock's digits take more or fewer bytes.
    whole.pop("/metrics", None), broken.pop("/metrics", None)
    assert whole.keys() == broken.keys()
    for path, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, broken[path]), path
        else:
            assert value == broken[path], path
    if name == "checkpoint.pt":
        for part in ("net", "optimizer", "average", "gates"):
            assert any(path.startswith(f"/training/{part}") for path in whole)


def test_nothing_is_left_of_files_that_were_being_written(killed):
    assert sorted(path.name for path in killed.broken.iterdir()) == [
        *("checkpoint.pt", "fp-best.pt", "fp-last.pt", "metrics.jsonl", "options.json"),
        *("spquant-best.pt", "spquant-last.pt"),
    ]
