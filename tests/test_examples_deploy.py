"""The deployment example, on a network that was calibrated and not trained."""

from __future__ import annotations

import copy
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import spquant_plugin as spq

made: list = []  # converted once for both tests
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def deploy(monkeypatch):
    """The example as a module, with a network that takes no training."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # Under another name: the tests of this subject are a package called deploy.
    spec = spec_from_file_location("deploy_example", EXAMPLES / "deploy.py")
    deploy = module_from_spec(spec)
    spec.loader.exec_module(deploy)
    if not made:
        data = spq.data.DigitEvents("test", seed=0)
        net = deploy.network(in_channels=2, classes=10)
        made.extend([deploy.convert(net, data).eval(), data])
    monkeypatch.setattr(deploy, "trained", lambda epochs, seed: (copy.deepcopy(made[0]), made[1]))
    monkeypatch.setattr(deploy, "milliseconds", lambda call, times=1: (call(), 1.0)[1])
    yield deploy
    for name in ("quickstart", "figures"):
        sys.modules.pop(name, None)


def test_the_example_goes_all_the_way(deploy, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["deploy.py", "--out", str(tmp_path)])
    torch.manual_seed(0)
    deploy.main()
    told = capsys.readouterr().out
    assert "verification on 64 samples: equal" in told
    assert "loaded again it is the same: True" in told
    assert (tmp_path / "digits.spq").stat().st_size < 30_000
    assert (tmp_path / "c" / "spq_network.c").exists()
    if shutil.which("cc") and shutil.which("make"):
        assert "differences: 0" in told


def test_a_network_that_differs_stops_the_example(deploy, monkeypatch, tmp_path):
    verify = spq.verify

    def other(net, model, frames):
        proof = verify(net, model, frames)
        check = spq.deploy.LayerCheck("neuron1", 1, 1, None, 0.5)
        return spq.Verification((check,), proof.outputs, proof.samples)

    monkeypatch.setattr(spq, "verify", other)
    monkeypatch.setattr(sys, "argv", ["deploy.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="differs from the trained one"):
        deploy.main()
