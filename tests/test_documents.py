"""What the documents promise: code that runs, commands that are used, links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "torch.Size([4, 1, 10])" in printed


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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:tests|docs|examples|spquant_plugin|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_version_is_the_same_everywhere():
    import spquant_plugin

    assert re.fullmatch(r"\d+\.\d+\.\d+", spquant_plugin.__version__)
