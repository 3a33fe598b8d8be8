"""Printed tables of measured results say what the stored measurements say."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield import_module
    for name in ("accuracy", "training_choices", "quickstart", "measurements", "figures"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["accuracy", "training_choices"])
def test_a_stored_table_is_what_its_script_prints_of_the_measurements(name, example):
    script = example(name)
    measured = script.read(RESULTS / f"{name}.jsonl")
    assert script.table(measured).strip() == (RESULTS / f"{name}.txt").read_text().strip()


def test_every_row_has_five_seeds_and_equal_epochs():
    measured = [json.loads(line) for line in (RESULTS / "accuracy.jsonl").read_text().splitlines()]
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in measured:
        groups.setdefault((run["host"], run["task"]), []).append(run)
    hosts, tasks = ("spikingjelly", "snntorch"), ("digits", "motion")
    assert {(host, task) for host in hosts for task in tasks} <= set(groups)
    for (_, task), runs in groups.items():
        if task in tasks:
            assert sorted(run["seed"] for run in runs) == [0, 1, 2, 3, 4]
        assert len({run["epochs"] for run in runs}) == 1


def test_the_table_of_means_and_deviations_against_numbers_worked_out_by_hand(example):
    runs = [
        {
            "host": "h",
            "task": "t",
            "epochs": 1,
            "seed": seed,
            "accuracy": {"FP": full, "Quant": quant},
        }
        for seed, (full, quant) in enumerate([(0.90, 0.88), (0.94, 0.94)])
    ]
    lines = example("accuracy").table(runs).splitlines()
    # Deviations with n - 1: sqrt(2) * 2 points and sqrt(2) * 3 points.
    assert lines[1].split() == ["h", "t", "FP", "92.00", "±", "2.83", "+0.00", "2"]
    assert lines[2].split() == ["h", "t", "Quant", "91.00", "±", "4.24", "-1.00", "2"]
