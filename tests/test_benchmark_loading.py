"""The benchmark of loading: what it loads, what it trains, and its table."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    yield import_module("benchmark_loading")
    for name in ("benchmark_loading", "benchmarking", "measurements"):
        sys.modules.pop(name, None)


def test_every_loader_goes_round_with_whole_batches(script, tmp_path):
    sizes = script.QUICK
    sets = script.data_sets(tmp_path, sizes)
    assert len(sets) == 5
    for name, data in sets.items():
        loading = script.Loading(data, sizes.batch)
        epoch = len(data) // sizes.batch
        for _ in range(epoch + 1):  # one batch more than an epoch has
            loading.step()
        frames, labels = next(loading.batches)
        assert frames.shape[:2] == (sizes.steps, sizes.batch)
        side = 224 if "JPEG" in name else sizes.size
        assert frames.shape[3:] == (side, side)
        assert len(labels) == sizes.batch
    events = sets["N-Cars, 16 x 16"]
    assert events[0][0].sum() == sizes.events  # none was lost


@pytest.mark.parametrize("kind", ["VGG-9 training, float", "VGG-9 training, converted"])
def test_a_training_step_changes_the_weights(script, kind):
    training = script.Training(kind, script.QUICK)
    before = training.net.conv2.weight.detach().clone()
    training.step()
    assert not torch.equal(training.net.conv2.weight, before)
    assert hasattr(training.net.conv2, "weight_quantizer") == kind.endswith("converted")


def test_the_table_compares_with_the_faster_training(script):
    def took(ms: float) -> dict[str, float]:
        return {"ms": ms, "low": ms, "high": ms}

    found = {
        "quick": False,
        "repeats": 3,
        "machine": {"processor": "none", "device": "cpu", "cores": 1, "threads": 1},
        "steps": 10,
        "batch": 4,
        "size": 48,
        "rows": {
            "some loader": took(2.0),
            script.FLOAT: took(500.0),
            script.CONVERTED: took(400.0),
        },
    }
    row = next(line for line in script.table([found]).splitlines() if "some loader" in line)
    # 4 recordings in 2 ms are 2,000 a second; the faster training takes 10.
    assert row.split() == ["some", "loader", "2.00", "2000.0", "20000", "200.0x"]
    assert len(script.figure(found).axes) == 1
