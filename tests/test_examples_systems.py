"""The examples of TaWQ and of distillation: every row is trained, measured and drawn."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

import spquant_plugin as spq

EXAMPLES = Path(__file__).parents[1] / "examples"
OWN = ("tawq", "distill", "training", "measurements")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module
    for name in OWN:
        sys.modules.pop(name, None)


def few(task: str, seed: int):
    """A few recordings in place of a task."""
    made = [
        spq.data.Motion(split, level="easy", count=64, steps=4, seed=seed, cache=False)
        for split in ("train", "test")
    ]
    return tuple(made)


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_tawq_measures_and_draws_every_row(host, example, monkeypatch, tmp_path):
    script = example("tawq")
    monkeypatch.setattr(script, "data", few)
    found = script.measure(host, "motion", 0, 1, tmp_path / "codes.png")
    assert list(found["accuracy"]) == list(script.ROWS)
    assert all(0 <= share <= 1 for share in found["accuracy"].values())
    assert found["entropy"][script.FULL] is None
    assert found["entropy"][script.TAWQ] != found["fresh entropy"][script.TAWQ]  # it was trained
    assert {file.name for file in tmp_path.iterdir()} == {"codes.png", "codes_entropy.png"}
    key = {"host": host, "task": "motion", "seed": 0, "epochs": 1}
    text = script.table([{**key, **found}])
    assert [line[30:61].strip() for line in text.splitlines()[1:]] == list(script.ROWS)


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_distill_measures_and_draws_every_row(host, example, monkeypatch, tmp_path):
    script = example("distill")
    monkeypatch.setattr(script, "data", few)
    found = script.measure(host, "digits", 0, 1, tmp_path / "membranes.png")["accuracy"]
    rows = [f"{name}, {bits} bit" for bits in script.BITS for name in script.ROWS]
    assert list(found) == [script.FULL, *rows]
    assert (tmp_path / "membranes.png").stat().st_size > 10_000
    key = {"host": host, "task": "digits", "seed": 0, "epochs": 1}
    text = script.table([{**key, "accuracy": found}])
    assert len(text.splitlines()) == 1 + len(found)


def test_the_gain_is_that_of_pairs(example):
    script = example("distill")
    runs = [
        {"QAT, 2 bit": 0.90, "MD-SNN, 2 bit": 0.92},
        {"QAT, 2 bit": 0.80, "MD-SNN, 2 bit": 0.84},
    ]
    # Pairs of +2 and +4: mean 3, deviation sqrt 2, and 12.706 standard errors of 1.
    assert script.gain(runs, "MD-SNN", "2 bit") == "+3.00 ± 12.71"
    assert script.gain(runs[:1], "MD-SNN", "2 bit") == "+2.00"
