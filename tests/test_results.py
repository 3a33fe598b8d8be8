"""Printed tables of measured results say what the stored measurements say."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

import spquant_plugin as spq

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield import_module
    for name in (
        *("accuracy", "training_choices", "quickstart", "measurements", "figures"),
        *("gates", "gate_figure", "gate_training", "clipping"),
        *("benchmark_neuron", "benchmark_neuron_tables", "benchmark_training", "benchmarking"),
        *("benchmark_deploy", "benchmark_temporal", "benchmark_loading"),
        *("tawq", "distill", "training"),
    ):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name",
    ["accuracy", "training_choices", "gates", "gate_training", "clipping", "tawq", "distill"],
)
def test_a_stored_table_is_what_its_script_prints_of_the_measurements(name, example):
    script, measured = example(name), example("measurements").stored(RESULTS / f"{name}.jsonl")
    assert script.table(measured).strip() == (RESULTS / f"{name}.txt").read_text().strip()


@pytest.mark.parametrize(
    "name",
    [
        *("benchmark_neuron", "benchmark_training", "benchmark_deploy", "benchmark_temporal"),
        "benchmark_loading",
    ],
)
def test_a_stored_benchmark_is_what_its_script_prints_of_the_measurement(name, example):
    measured = example("measurements").stored(RESULTS / f"{name}.jsonl")
    printed = example(name).table(measured)
    assert printed.strip() == (RESULTS / f"{name}.txt").read_text().strip()
    assert "QUICK" not in printed


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


def test_gates_were_measured_with_five_seeds_and_their_training_with_three_others():
    measured = [json.loads(line) for line in (RESULTS / "gates.jsonl").read_text().splitlines()]
    for task in ("digits", "motion"):
        runs = [run for run in measured if run["task"] == task]
        assert sorted(run["seed"] for run in runs) == [0, 1, 2, 3, 4]
        assert len({run["epochs"] for run in runs}) == 1
        assert len({tuple(run["rows"]) for run in runs}) == 1
    lines = (RESULTS / "gate_training.jsonl").read_text().splitlines()
    seeds: dict[str, list[int]] = {}
    for run in map(json.loads, lines):
        seeds.setdefault(run["choice"], []).append(run["seed"])
    assert all(sorted(found) == [5, 6, 7] for found in seeds.values())


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


def test_the_table_of_gates_against_numbers_worked_out_by_hand(example):
    def row(accuracy: float, accumulates: float, closed: float | None) -> dict:
        return {
            "accuracy": accuracy,
            "accumulates": accumulates,
            "total": accumulates + 250_000,
            "eq30_ratio": 2.0,
            "channels_closed": closed,
            "pixels_masked": closed and 0.35,
            "changing": closed and 0.4,
        }

    runs = [
        {
            "task": "digits",
            "seed": seed,
            "rows": {"FP": row(full, 4e6, None), "SpQuant 50 %": row(0.90, 1e6, 0.5)},
        }
        for seed, full in enumerate([0.90, 0.94])
    ]
    lines = example("gates").table(runs).splitlines()
    full = ["digits", "FP", "92.00", "±", "2.83", "+0.00", "4.000", "M", "1.0x", "0.250", "M"]
    assert lines[1].split() == [*full, "2.0x", "2"]
    gated = ["digits", "SpQuant", "50", "%", "90.00", "±", "0.00", "-2.00", "50.0%", "35.0%"]
    rest = ["40.0%", "1.000", "M", "4.0x", "0.250", "M", "2.0x", "2"]
    assert lines[2].split() == [*gated, *rest]


def test_the_gates_example_runs_and_draws(example, monkeypatch, tmp_path):
    script = example("gates")
    monkeypatch.setattr(script, "WIDTH", {"motion": 0.25})
    monkeypatch.setattr(script, "THIN", {"motion": dict.fromkeys(script.CLOSED, 0.2)})
    motion = partial(spq.data.Motion, level="easy", count=128, steps=2, cache=False)
    monkeypatch.setattr(script, "data", lambda task, seed: (motion("train"), motion("test")))
    rows = script.Rows("motion", 0, 5)
    net = rows.run()
    assert list(rows.found) == [
        "FP",
        "Quant",
        "Quant, thinner than SpQuant 50 %",
        "SpQuant 50 %",
        "Quant, thinner than SpQuant 77 %",
        "SpQuant 77 %",
    ]
    assert rows.found["SpQuant 77 %"]["channels_closed"] > 0.6
    frames, _ = next(iter(spq.data.loader(rows.test, batch_size=8)))
    example("gate_figure").gate_maps(net, frames).savefig(tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 1000


# Eight steps are too few to hold a share.
@pytest.mark.filterwarnings("ignore::spquant_plugin.errors.GateWarning")
def test_every_kind_of_gate_training_runs(example, monkeypatch):
    gates, script = example("gates"), example("gate_training")
    motion = partial(spq.data.Motion, level="easy", count=64, steps=2, cache=False)
    monkeypatch.setattr(gates, "data", lambda task, seed: (motion("train"), motion("test")))
    rows = gates.Rows("motion", 0, 4)
    full = rows.first_stage(0.25)
    found = [
        {
            "choice": name,
            "seed": 0,
            **script.measure(script.train(rows, full, name, **change), rows.test),
        }
        for name, change in script.CHOICES.items()
    ]
    changing = {run["choice"]: run["changing"] for run in found}
    assert changing["no channels closed"] is None
    assert changing["fixed mask: at random"] == 0
    assert changing["fixed mask: the most important"] == 0
    assert changing[script.RECIPE] > 0
    assert len(script.table(found).splitlines()) == 1 + len(script.CHOICES)


def test_the_table_of_gate_training_against_numbers_worked_out_by_hand(example):
    script = example("gate_training")
    runs = [
        {"choice": name, "seed": seed, "accuracy": accuracy, "closed": closed, "changing": closed}
        for name, closed, both in (
            (script.RECIPE, 0.5, (0.9, 0.94)),
            ("no channels closed", None, (1.0, 1.0)),
        )
        for seed, accuracy in enumerate(both)
    ]
    lines = script.table(runs).splitlines()
    assert lines[1].split()[-6:] == ["±", "2.83", "+0.00", "50.0%", "50.0%", "2"]
    assert lines[2].split()[-5:] == ["100.00", "±", "0.00", "+8.00", "2"]
