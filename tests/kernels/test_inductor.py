"""The provider for GPUs, here compiled for this processor, where it must give the same."""

from __future__ import annotations

import itertools

import pytest
import torch

from spquant_plugin.kernels import Rule, eager, inductor
from spquant_plugin.kernels.inputs import Inputs, Needs, Outputs, Wanted


def compilations() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_it_equals_eager_and_takes_other_sizes():
    torch.compiler.reset()
    rule = Rule(threshold_gradient="gpw", reset="soft")
    scalar = torch.tensor(0.9)
    counts = []
    for neurons in (40, 75):
        inputs = Inputs(
            torch.randn(3, neurons), None, None, scalar, scalar * 0.6, None, scalar * 0.7, None
        )
        got, _ = inductor.forward(inputs, rule, Wanted(membranes=True))
        want, _ = eager.forward(inputs, rule, Wanted(membranes=True))
        assert torch.equal(got.spikes, want.spikes)
        assert torch.equal(got.final, want.final)
        assert torch.equal(got.membranes, want.membranes)
        arriving = Outputs(torch.randn(3, neurons), None, None, torch.randn(3, neurons))
        needs = Needs(threshold=True)
        back = inductor.backward(inputs, None, rule, arriving, needs)
        slow = eager.backward(inputs, None, rule, arriving, needs)
        assert torch.allclose(back.x, slow.x, rtol=1e-6, atol=1e-6)
        assert torch.allclose(back.threshold, slow.threshold, rtol=1e-5)
        counts.append(compilations())
    assert counts[0] >= 2
    assert counts[1] == counts[0]


def test_any_number_of_kinds_of_calls(monkeypatch):
    """Layers of one rule may differ in all that a call may leave out; torch's limit is eight."""
    torch.compiler.reset()
    compile_with = torch.compile

    def quickly(function, *, options, **given):
        return compile_with(function, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", quickly)
    inductor._compiled.cache_clear()
    x, scalar = torch.randn(2, 8), torch.tensor(0.9)
    try:
        for state, each, gain, unit in itertools.product((False, True), repeat=4):
            inputs = Inputs(
                x,
                torch.zeros(8) if state else None,
                None,
                torch.full((8,), 0.9) if each else scalar,
                scalar,
                scalar if gain else None,
                scalar if unit else None,
                None,
            )
            got, _ = inductor.forward(inputs, Rule(), Wanted())
            want, _ = eager.forward(inputs, Rule(), Wanted())
            assert torch.equal(got.spikes, want.spikes)
    finally:
        inductor._compiled.cache_clear()
