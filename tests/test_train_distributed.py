"""Two processes of torchrun train as one process with the same batch does, on both hosts.

Their sums differ in the last bits. Spikes that flip, and Adam, which divides by them, could make
much of that; the few steps here are far from it, while a part of the data seen twice or batch norms
of each process alone change most parameters by hundreds of times the tolerance.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
STAGES = ("fp", "quant", "spquant", "adaptive")
OPTIONS = (
    *("--model", "vgg5", "--width", "0.125", "--data", "motion", "--timesteps", "3"),
    *("--data-option", "count=64", "--data-option", "level=easy", "--data-option", "cache=false"),
    *("--stages", ",".join(STAGES), "--epochs", "1", "--max-steps", "3", "--batch", "16"),
    *("--eval-batches", "9", "--calibration-batches", "2", "--log-every", "1", "--save-every", "2"),
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(*options: str) -> subprocess.CompletedProcess[str]:
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port())
    return subprocess.run(
        [sys.executable, *launch, str(EXAMPLES / "train.py"), *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SPQUANT_KERNELS": "eager"},
    )


@pytest.fixture(scope="module", params=["spikingjelly", "snntorch"])
def folders(request, tmp_path_factory):
    """What one process wrote, and what two did."""
    one, two = (tmp_path_factory.mktemp(f"{request.param}{count}") for count in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        arguments = [*OPTIONS, "--host", request.param]
        assert import_module("train").main([*arguments, "--out", str(one)]) == 0
    ran = torchrun(*OPTIONS, "--host", request.param, "--sync-norm", "--out", str(two))
    assert ran.returncode == 0, ran.stderr
    return one, two, ran.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_and_statistics_are_those_of_one_process(folders, stage):
    one, two = (torch.load(folder / f"{stage}-last.pt")["state"] for folder in folders[:2])
    assert list(one) == list(two)
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-4, atol=1e-5), key


def test_measurements_are_those_of_one_process(folders):
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders[:2]
    )
    assert [line["split"] for line in one[:5]] == [*["step"] * 3, "train", "validation"]
    assert len(one) == len(two) == 6 * len(STAGES)
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=1e-4), (name, line, other)
            elif name != "timing":
                assert other[name] == value, (name, line, other)


def test_the_main_process_alone_prints(folders):
    printed = folders[2].splitlines()
    assert sum(line.startswith("stage ") for line in printed) == 1
    assert "2 x cpu" in printed[0]


def test_a_checkpoint_of_two_processes_goes_on_in_one(folders, tmp_path, monkeypatch, capsys):
    """As it goes: with another number of processes sums have other last bits."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train, checkpoint = import_module("train"), import_module("trainer.checkpoint")
    folder = Path(shutil.copytree(folders[1], tmp_path / "two"))
    held = checkpoint.read(folder / "checkpoint.pt")
    assert len(held["ranks"]) == 2
    # As it was when the last stage had ended its only epoch.
    held |= {"finished": False, "results": held["results"][:-1]}
    held["place"] = {"stage": len(STAGES) - 1, "epoch": 1, "step": 0, "best": [-1.0, -1.0]}
    checkpoint.save(folder / "checkpoint.pt", held)
    host = json.loads((folder / "options.json").read_text())["host"]
    arguments = [*OPTIONS, "--host", host, "--sync-norm", "--out", str(folder), "--resume"]
    assert train.main(arguments) == 0
    assert "the run had 2 processes and now has 1" in capsys.readouterr().out


def test_a_world_that_does_not_divide_the_batch_is_refused_once(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train = import_module("train")
    message = (
        "train.py: --batch 16 with 3 processes and --accumulate 1: must be a multiple of 3, an "
        "equal part for each. Nearest: 15 or 18.\n"
    )
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, printed in (("0", message), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert train.main([*OPTIONS, "--out", str(tmp_path / "new")]) == 2
        assert capsys.readouterr().err == printed
    assert not (tmp_path / "new").exists()
