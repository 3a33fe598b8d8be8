"""Building kernels, and what happens on a machine where that is not possible."""

from __future__ import annotations

import importlib
import os
import pkgutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from spquant_plugin import kernels
from spquant_plugin.errors import KernelWarning
from spquant_plugin.kernels import Rule, build, choice, membrane_sequence, use

# Rules that no other test builds, so that each test starts without a kernel.
RULES = [Rule(temperature=2.0 + k / 8) for k in (1, 2)]


def forget() -> None:
    """Drop everything that the package remembers of compilers and kernels."""
    for found in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{found.name}")
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has built nothing yet, with an empty cache."""
    monkeypatch.setenv("SPQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice._State, "broken", None)
    monkeypatch.setattr(choice._State, "name", None)
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield tmp_path
    forget()


def spikes(rule: Rule = RULES[0], seed: int = 0) -> list[torch.Tensor]:
    x = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    result = membrane_sequence(x, rule, threshold=1.0, decay=0.5)
    result.spikes.sum().backward()
    return [result.spikes.detach(), result.membrane.detach(), x.grad]


def stored() -> list[Path]:
    return sorted(build.cache_folder().glob("*"))


def falls_back(match: str) -> None:
    """One warning, and from then on the reference's results without another."""
    with use("eager"):
        want = spikes()
    with pytest.warns(KernelWarning, match=match) as caught:
        got = [spikes(), spikes(), spikes(RULES[1])][0]
    assert len([w for w in caught if w.category is KernelWarning]) == 1
    assert "use('eager')" in str(caught[0].message)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def script(folder: Path, text: str) -> Path:
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_kernels_are_kept_on_disk(fresh):
    want = spikes()
    (file,) = stored()  # and nothing half done beside it
    made = file.stat().st_mtime_ns
    forget()
    assert all(torch.equal(a, b) for a, b in zip(want, spikes(), strict=True))
    assert file.stat().st_mtime_ns == made
    spikes(RULES[1])
    assert len(stored()) == 2


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    falls_back(r"cannot be compiled: no C\+\+ compiler was found: set CXX")


def test_a_compiler_that_cannot_build(fresh, monkeypatch):
    broken = script(
        fresh, 'test "$1" = --version && echo mine && exit 0; echo "no such thing" >&2; exit 1'
    )
    monkeypatch.setenv("CXX", str(broken))
    falls_back(r"compiler cannot build the kernel: no such thing")
    assert stored() == []


def test_a_compiler_without_openmp_builds_plainly(fresh, monkeypatch):
    path, _ = build.compiler()
    forget()
    limited = script(fresh, f'case "$*" in *fopenmp*) exit 1;; esac; exec {path} "$@"')
    monkeypatch.setenv("CXX", str(limited))
    with use("eager"):
        want = spikes()
    got = spikes()
    assert len(stored()) == 1
    assert torch.equal(want[0], got[0])
    assert torch.equal(want[1], got[1])


def test_a_compiler_that_builds_rubbish(fresh, monkeypatch):
    rubbish = script(
        fresh,
        'test "$1" = --version && echo mine && exit 0\n'
        'while test "$1" != -o; do shift; done; echo rubbish > "$2"',
    )
    monkeypatch.setenv("CXX", str(rubbish))
    falls_back(r"cannot be compiled: .*cannot be loaded")


def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    (fresh / "file").write_text("in the way")
    monkeypatch.setenv("SPQUANT_CACHE", str(fresh / "file"))
    falls_back(r"cannot be stored in .*file")


def test_a_user_without_a_home(fresh, monkeypatch):
    """As in a container that runs under a number without an entry."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPQUANT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    falls_back(r"cannot be compiled: .*SPQUANT_CACHE")


def test_cache_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQUANT_CACHE", str(tmp_path))
    assert build.cache_folder().is_relative_to(tmp_path)
    monkeypatch.delenv("SPQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert build.cache_folder().is_relative_to(tmp_path / "user" / "spquant_plugin")


def test_choosing_eager_never_looks_for_a_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    with warnings.catch_warnings(), use("eager"):
        warnings.simplefilter("error")
        spikes()


PROGRAM = """
import sys, warnings, torch
from spquant_plugin.kernels import Rule, choice, membrane_sequence, use
told = []
warnings.showwarning = lambda message, *rest, **more: told.append(str(message))
warnings.simplefilter("always")
rule = Rule(temperature=float(sys.argv[1]))
x = torch.linspace(-3, 3, 40).view(4, 2, 5).requires_grad_()
results = []
for name in ("eager", "compiled"):
    with use(name):
        result = membrane_sequence(x, rule, threshold=1.0, decay=0.5)
        result.spikes.sum().backward()
    results.append(result.spikes)
assert torch.equal(*results)
assert len(told) <= 1, told
print("done", bool(choice._State.broken))
"""


def start(rule: Rule) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rule.temperature)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_at_once(fresh):
    """Each finds either nothing or a whole file."""
    both = [start(RULES[0]), start(RULES[0])]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert out.strip() == "done False", err
    (file,) = stored()  # and nothing half done beside it
    assert file.suffix == ".so"


def damage(share: float) -> None:
    """Cut the one stored kernel short, as power that fails or a disk that is full may do."""
    (file,) = stored()
    content = file.read_bytes()
    cut = file.with_suffix(".cut")
    cut.write_bytes(content[: int(share * len(content))])
    os.replace(cut, file)  # this process goes on with the whole file


def test_an_empty_file_in_the_cache(fresh):
    """Built again, or done without after a warning."""
    want = spikes()
    damage(0.0)
    forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = spikes()
    assert torch.equal(want[0], got[0])
    assert torch.equal(want[1], got[1])
    assert [w.category for w in caught] == [KernelWarning] * bool(choice._State.broken)


def test_half_a_file_in_the_cache(fresh):
    """The same, and never a crash: in a process of its own, since it may end by a signal."""
    spikes()
    damage(0.5)
    process = start(RULES[0])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, f"ended by signal {-process.returncode}; {err[-300:]}"
    assert out.startswith("done")
