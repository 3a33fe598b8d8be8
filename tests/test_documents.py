"""What the documents promise: code that runs, commands that are used, links that lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spquant_plugin as spq

ROOT = Path(__file__).parents[1]
INSTALL_AND_TEST = 'python -m pip install -e ".[test]" && python -m pytest'
INSTALL_AND_SHOW = 'python -m pip install -e ".[all]" && python examples/quickstart.py'


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_code_of_the_readme_runs_and_is_short():
    (code,) = blocks("README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    printed = run(code)
    assert "TernaryMembraneLIFNode" in printed
    # Ternary membranes: 32 bits become 2.
    assert re.search(r"membranes +ratio .*\n.*\n.* 1x .*\n.* 16x ", printed)


def test_the_first_table_of_the_readme_shows_the_memory_that_the_quickstart_reports(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    quickstart = importlib.import_module("quickstart")
    net = quickstart.network(in_channels=2, classes=10)
    sample = torch.full((8, 1, 2, 16, 16), 9.0)  # so that neurons fire
    quantized = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=sample)
    full, small = (spq.analyze(model, sample).memory.total_bytes for model in (net, quantized))
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "32 bit" in line]
    assert f"| {full / 1000:.1f} kB |" in rows[0]
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "1.58 bit" in line]
    assert len(rows) == 2
    for row in rows:
        assert f"| {small / 1000:.1f} kB, {full / small:.1f} times less |" in row


def test_the_recipe_of_contributing_runs():
    (code,) = blocks("CONTRIBUTING.md", "python")
    assert "SignWeights" in run(code)


def test_the_two_commands_are_printed_once_and_used_by_the_checks():
    commands = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    assert commands.count(INSTALL_AND_TEST) == 1
    assert commands.count(INSTALL_AND_SHOW) == 1
    pattern = re.search(r"grep -m1 -- '(.*)' README.md", (ROOT / ".ci/run").read_text()).group(1)
    found = [
        line for line in (ROOT / "README.md").read_text().splitlines() if re.search(pattern, line)
    ]
    assert found == [INSTALL_AND_TEST]
    # The other command is used in two parts: the gallery runs every quickstart as it stands.
    assert 'pip install --quiet -e ".[all]"' in (ROOT / ".ci/run").read_text()
    assert "quickstart" in (ROOT / "docs/conf.py").read_text()


def test_the_first_table_of_the_readme_shows_the_accuracy_that_was_measured():
    lines = (ROOT / "docs/results/accuracy.jsonl").read_text().splitlines()
    wanted = {"host": "spikingjelly", "task": "digits", "seed": 0}
    (run,) = [run for run in map(json.loads, lines) if wanted.items() <= run.items()]
    readme = (ROOT / "README.md").read_text()
    rows = ("FP: full precision", "Quant: converted", "Quant, learned threshold")
    for row, share in zip(rows, run["accuracy"].values(), strict=True):
        assert re.search(rf"^\| {row} \|.*\| {100 * share:.1f} % \|", readme, flags=re.MULTILINE)


PAGES = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.rst"))]
PAGES = [page for page in PAGES if not page.startswith("docs/gallery/")]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES])
def test_links_to_files_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:tests|docs|examples|spquant_plugin|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_version_is_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", spq.__version__)
