"""Shared fixtures: reference numbers, default precision, a fixed seed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the cache of the person who runs it.

    Processes of one run share theirs, so that each kernel is built once; a build is atomic.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPQUANT_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_threads():
    """Nothing leaves torch with another number of threads, which all tests after it would have.

    Processes of one run would wait for each other's threads, ten times as long as they compute.
    """
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture
def float64():
    """Modules are built in double precision, so that constants are exact to its last digit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)


@pytest.fixture
def fresh_compiler():
    """What is compiled here says nothing of shapes elsewhere."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def golden(name: str) -> list[dict]:
    """Cases of one file of reference numbers."""
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def close(actual: torch.Tensor, expected: object) -> bool:
    """Agreement with a reference number: 1e-10 in double precision, 1e-6 relative in single."""
    want = torch.tensor(expected, dtype=torch.float64)
    tolerance = 1e-10 if actual.dtype == torch.float64 else 1e-6
    return bool(((actual.double() - want).abs() <= tolerance * (1 + want.abs())).all())
