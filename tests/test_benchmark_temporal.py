"""The benchmark of weights that change with the time step: what it compares, and its table."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    yield import_module("benchmark_temporal")
    for name in ("benchmark_temporal", "benchmarking", "measurements"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kernel", [1, 3])
def test_all_ways_compute_the_same(script, kernel):
    x, weight = torch.rand(4, 2, 3, 5, 5), torch.randn(4, 6, 3, kernel, kernel)
    expected = script.each_step(x, weight)
    assert torch.allclose(script.grouped(x, weight), expected, atol=1e-5)
    assert torch.allclose(script.one_weight(x, weight[:1].expand_as(weight))[0], expected[0])
    if kernel == 1:
        assert torch.allclose(script.products(x, weight), expected, atol=1e-5)


def test_a_training_step_changes_the_weights(script):
    training = script.Training("vgg9", script.TEMPORAL, script.QUICK, "cpu")
    before = training.net.conv2.weight.detach().clone()
    training.step()
    assert training.net.conv2.is_temporal
    assert not torch.equal(training.net.conv2.weight, before)


def test_the_table_gives_ratios_and_says_what_was_unsteady(script):
    took = {"ms": 10.0, "low": 9.0, "high": 11.0}
    found = {
        "quick": False,
        "repeats": 3,
        "machine": {"processor": "none", "device": "cpu", "cores": 1, "threads": 1},
        "steps": 4,
        "batch": 8,
        "size": 32,
        "step": {"vgg9": {"float": took, "TaWQ": {"ms": 12.0, "low": 6.0, "high": 13.0}}},
        "ways": {"3x3": {"one call per step": took}},
    }
    printed = script.table([found])
    assert "1.20x" in printed
    assert "UNSTEADY" in printed
    assert "vgg9, TaWQ" in printed
    assert (
        len(script.figure({**found, "step": dict.fromkeys(("a", "b"), found["step"]["vgg9"])}).axes)
        == 2
    )
