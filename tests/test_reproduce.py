"""Every command of the page of full-size runs starts, on generated files in the real formats.

Networks are narrow here; ``SPQUANT_FULL_SIZE=1`` takes them as the page has them, which is slow.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from data import generated_events, generated_images

import spquant_plugin as spq

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
BLOCKS = re.findall(r"```bash\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
TRAINING = [block for block in BLOCKS if "examples/train.py" in block]
EVALUATION = [block for block in BLOCKS if "examples/evaluate.py" in block]
# Overrides come last, where they win.
SHORT = (
    *("--max-steps", "2", "--eval-batches", "1", "--epochs", "1", "--batch", "2"),
    *("--calibration-batches", "1", "--workers", "0", "--device", "cpu"),
)
MAKERS = {
    "dvs-cifar10": generated_events.dvs_cifar10,
    "n-caltech101": generated_events.n_caltech101,
    "dvs-gesture": generated_events.dvs_gesture,
    "n-mnist": generated_events.n_mnist,
    "shd": generated_events.shd,
    "n-cars": generated_events.n_cars,
    "cifar10": generated_images.cifar10,
    "cifar100": generated_images.cifar100,
    "imagenet": generated_images.imagenet,
}


@pytest.fixture(scope="module")
def examples():
    """The scripts as modules."""
    sys.path.insert(0, str(ROOT / "examples"))
    yield import_module
    sys.path.remove(str(ROOT / "examples"))
    for name in [n for n in sys.modules if n in ("train", "evaluate") or n.startswith("trainer")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The folder of a data set, written when it is first asked for."""
    made: dict[str, Path] = {}

    def root(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            MAKERS[name](made[name], per_class=10)
        return made[name]

    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQUANT_CACHE", str(tmp_path / "cache"))


def options_of(command: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of a command, and those with a value by name."""
    words = shlex.split(command)
    arguments = words[next(i for i, word in enumerate(words) if word.startswith("examples/")) + 1 :]
    pairs = pairwise(arguments)
    return arguments, {name: value for name, value in pairs if name.startswith("--")}


def name_of(command: str) -> str:
    return Path(options_of(command)[1]["--out"]).name


# Two steps are too few for gates to hold a share.
@pytest.mark.filterwarnings("ignore::spquant_plugin.errors.GateWarning")
@pytest.mark.parametrize("command", TRAINING, ids=name_of)
def test_a_command_of_the_page_trains_two_steps_of_each_stage(command, examples, roots, tmp_path):
    arguments, options = options_of(command)
    out = tmp_path / "run"
    changed = [*SHORT, "--root", str(roots(options["--data"])), "--out", str(out)]
    if not os.environ.get("SPQUANT_FULL_SIZE"):
        changed += ["--width", "0.125"]
    assert examples("train").main([*arguments, *changed]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tested = [line["stage"] for line in lines if line["split"] == "test"]
    default = (
        "fp,quant,spquant"
        if options.get("--preset", "spquant_snn") == "spquant_snn"
        else "fp,quant"
    )
    assert tested == options.get("--stages", default).split(",")
    for stage in tested:
        assert (out / f"{stage}-best.pt").exists()


def test_every_data_set_that_is_no_part_of_the_package_has_a_command():
    used = {options_of(command)[1]["--data"] for command in TRAINING}
    assert used == set(MAKERS)
    assert used < set(spq.data.list_datasets())


@pytest.mark.parametrize("command", EVALUATION, ids=lambda command: command.split()[-2])
def test_an_evaluation_of_the_page_runs_on_such_a_network(
    command, examples, roots, tmp_path, capsys
):
    arguments, options = options_of(command)
    data = Path(options["--root"]).name
    training = next(block for block in TRAINING if f"--out runs/{data}\n" in block + "\n")
    out = tmp_path / data
    changed = ["--stages", "fp,quant", "--width", "0.125", "--root", str(roots(data))]
    words = [*options_of(training)[0], *SHORT, *changed, "--out", str(out)]
    assert examples("train").main(words) == 0
    words = [str(out / Path(arguments[0]).name), *arguments[1:], "--root", str(roots(data))]
    capsys.readouterr()
    assert examples("evaluate").main(words) in (0, None)
    assert "accuracy" in capsys.readouterr().out
