"""Who computes: by name, by environment, for a while."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.errors import KernelError
from spquant_plugin.kernels import Rule, choice, eager, membrane_sequence, native, use


@pytest.fixture(autouse=True)
def _choice_of_the_process(monkeypatch):
    """Each test starts as a process does, and leaves the choice as it found it."""
    monkeypatch.setattr(choice._State, "name", None)
    monkeypatch.setattr(choice._State, "saved_bits", 32)
    monkeypatch.delenv(choice.VARIABLE, raising=False)


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Names of the providers that ran, forward and backward."""
    names: list[str] = []

    def watch(module: ModuleType, function: str) -> None:
        run = getattr(module, function)

        def told(*args):
            names.append(module.__name__.split(".")[-1])
            return run(*args)

        monkeypatch.setattr(module, function, told)

    for module in (eager, native):
        watch(module, "forward")
        watch(module, "backward")
    return names


def step(x: torch.Tensor | None = None, **rule) -> torch.Tensor:
    x = torch.full((2, 1, 3), 0.7) if x is None else x
    return membrane_sequence(x, Rule(**rule), threshold=1.0, decay=0.5).spikes


def test_auto_is_where_it_starts():
    assert spq.kernels.provider() == "auto"


@pytest.mark.parametrize("name", ["eager", "compiled", "auto"])
def test_the_name_decides_who_runs(name, ran):
    with use(name):
        step(torch.ones(2, 1, 3, requires_grad=True)).sum().backward()
    assert ran == ["eager" if name == "eager" else "native"] * 2


def test_a_choice_stays(ran):
    use("eager")
    step()
    assert spq.kernels.provider() == "eager"
    use("compiled")
    step()
    assert ran == ["eager", "native"]


def test_nesting_restores_each_level():
    use("compiled", saved_bits=16)
    with use("eager"):
        assert (spq.kernels.provider(), choice.saved_bits()) == ("eager", 32)
        with use("auto", saved_bits=8):
            assert (spq.kernels.provider(), choice.saved_bits()) == ("auto", 8)
        assert (spq.kernels.provider(), choice.saved_bits()) == ("eager", 32)
    assert (spq.kernels.provider(), choice.saved_bits()) == ("compiled", 16)


def test_an_error_restores_too():
    with pytest.raises(ZeroDivisionError), use("eager", saved_bits=8):
        1 / 0
    assert (spq.kernels.provider(), choice.saved_bits()) == ("auto", 32)


def test_backward_runs_by_the_choice_of_its_own_time(ran):
    """Whoever ran forward, the other can go back: both keep the same."""
    for bits in (32, 16):
        grads = []
        for first, second in (("eager", "compiled"), ("compiled", "eager"), ("eager", "eager")):
            x = torch.linspace(-2, 2, 30).view(5, 2, 3).requires_grad_()
            with use(first, saved_bits=bits):
                spikes = step(x)
            with use(second):
                (spikes * x.detach()).sum().backward()
            grads.append(x.grad)
        for grad in grads[:2]:
            assert torch.allclose(grad, grads[2], rtol=1e-5, atol=1e-6)
    assert ran[:4] == ["eager", "native", "native", "eager"]


def test_the_environment_decides_until_a_call_does(monkeypatch, ran):
    monkeypatch.setenv("SPQUANT_KERNELS", "eager")
    assert spq.kernels.provider() == "eager"
    step()
    with use("compiled"):
        assert spq.kernels.provider() == "compiled"
        step()
    assert spq.kernels.provider() == "eager"
    monkeypatch.setenv("SPQUANT_KERNELS", "")  # as good as none
    assert spq.kernels.provider() == "auto"
    assert ran == ["eager", "native"]


def test_a_bad_environment_names_itself(monkeypatch):
    monkeypatch.setenv("SPQUANT_KERNELS", "fast")
    with pytest.raises(KernelError, match=r"SPQUANT_KERNELS: received 'fast'.*eager, compiled"):
        step()
    with use("eager"):  # a call decides over it
        assert step().sum() == 3


@pytest.mark.parametrize("name", ["fast", "", None, "Eager", ["eager"]])
def test_names_that_are_none(name):
    with pytest.raises(KernelError, match=r"use: received .*must be one of eager, compiled, auto"):
        use(name)
    assert spq.kernels.provider() == "auto"


@pytest.mark.parametrize("bits", [0, 4, 24, 64, "8", None])
def test_bits_that_are_none(bits):
    with pytest.raises(KernelError, match=r"use\(saved_bits=.*\): must be 32, 16 or 8"):
        use("eager", saved_bits=bits)
    assert choice.saved_bits() == 32
    assert spq.kernels.provider() == "auto"


def test_smooth_and_empty_runs_are_eager(ran):
    with use("compiled"):
        step(smooth=True)
        step(torch.zeros(2, 0, 3))
    assert ran == ["eager", "eager"]
