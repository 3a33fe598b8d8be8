"""The full report of a trained network, the benchmark of analyses, and the page about energy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PARTS = (
    "Accuracy",
    "FP against Quant against SpQuant, 45nm",
    "FP against Quant against SpQuant, 7nm",
    "Independent agreement",
    "FP, layer by layer",
    "Quant, layer by layer",
    "SpQuant, layer by layer",
    "Hardware",
    "Entropy of the weights",
    "Silence of clipped neurons",
)
NAMES = ["FP", "Quant", "SpQuant"]


class Written:
    """What one run printed and wrote."""

    def __init__(self, host: str, folder: Path) -> None:
        options = ("--host", host, "--task", "motion", "--epochs", "1", "--limit", "64")
        ran = subprocess.run(
            [sys.executable, EXAMPLES / "report.py", *options, "--output", folder],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            # Eager, since building kernels takes longer than all of it does without.
            env={**os.environ, "OMP_NUM_THREADS": "1", "SPQUANT_KERNELS": "eager"},
        )
        assert ran.returncode == 0, ran.stderr
        self.host, self.folder, self.printed = host, folder, ran.stdout
        self.markdown = (folder / "report.md").read_text(encoding="utf-8")
        self.numbers = json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module", params=["spikingjelly", "snntorch"])
def written(request, tmp_path_factory):
    return Written(request.param, tmp_path_factory.mktemp(request.param))


def test_the_markdown_names_each_part_in_its_order(written):
    headings = re.findall(r"^## (.*)$", written.markdown, flags=re.MULTILINE)
    assert headings == list(PARTS)
    assert written.markdown.startswith(f"# What a recording costs: {written.host}, motion\n")
    for part in ("memory", "sparsity", "operations", "energy"):
        assert len(re.findall(rf"^\*\*{part}", written.markdown, flags=re.MULTILINE)) == 3


def test_the_comparisons_have_a_row_for_each_network(written):
    networks = written.numbers["networks"]
    assert list(networks) == list(written.numbers["accuracy"]) == NAMES
    totals = {}
    for table in ("45nm", "7nm"):
        rows = written.numbers[f"comparison_{table}"]["rows"]
        assert [row["name"] for row in rows] == NAMES
        assert all(row["energy"]["table"] == table for row in rows)
        totals[table] = [row["energy"]["total_pj"] for row in rows]
        assert rows[1]["operations"]["effective"] == networks["Quant"]["operations"]["effective"]
        assert rows[0]["membrane_bytes"] == 16 * rows[1]["membrane_bytes"]
    assert all(new < old for old, new in zip(*totals.values(), strict=True))
    for name in NAMES:
        assert len(re.findall(rf"^\| {name} \| equation \|", written.markdown, re.MULTILINE)) == 2
        assert len(re.findall(rf"^{name} +equation ", written.printed, re.MULTILINE)) == 2


def test_other_tools_agree_and_their_verdicts_are_in_the_markdown(written):
    tools = written.numbers["networks"]["Quant"]["agreement"]
    assert [tool["tool"] for tool in tools] == ["NeuroBench", "SpikingJelly op_counter"]
    for tool in tools:
        assert tool["agrees"] is True
        assert " agrees: yes" in tool["verdict"]
        assert f"- {tool['verdict']}\n" in written.markdown
        assert tool["verdict"] in written.printed
    assert not written.numbers["networks"]["FP"]["agreement"]


def test_each_measurement_is_there(written):
    networks, hardware = written.numbers["networks"], written.numbers["hardware"]["rows"]
    assert networks["SpQuant"]["memory"]["training_bytes"] > 0
    assert networks["FP"]["memory"]["training_bytes"] is None
    assert (
        networks["SpQuant"]["operations"]["gates"] > 0 == networks["Quant"]["operations"]["gates"]
    )
    assert hardware[1]["ratios"]["energy_pj"] > 1
    assert [row["name"] for row in hardware] == NAMES[:2]
    neurons = [row["path"] for row in written.numbers["silence"]["layers"]]
    assert neurons[:2] == ["neuron1", "neuron2"]
    assert {"conv1", "fc1"} <= {row["path"] for row in written.numbers["entropy"]["layers"]}


def test_the_figures_of_the_markdown_are_there_and_not_empty(written):
    from matplotlib.image import imread

    shown = re.findall(r"!\[.+\]\((.*)\)", written.markdown)
    assert sorted(shown) == sorted(file.name for file in written.folder.glob("*.png"))
    assert len(shown) == 2 + 2 * 3 + 2 + 2
    for name in shown:
        picture = imread(written.folder / name)
        assert min(picture.shape[:2]) > 300
        # Not white paper: some of it is coloured, and not all of it.
        coloured = (picture[..., :3].max(2) - picture[..., :3].min(2) > 0.1).mean()
        assert 0.01 < coloured < 0.9, name


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module("report")
    sys.modules.pop("report", None)


def test_too_few_recordings_are_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "--limit", "63"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--limit 63: must be at least 64, two training batches" in capsys.readouterr().err


@pytest.fixture
def benchmark_script(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module("benchmark_analysis")
    for name in ("benchmark_analysis", "benchmarking", "measurements"):
        if name not in before:
            sys.modules.pop(name, None)


def test_what_is_timed_is_one_forward_pass_and_analyses_of_one_and_five_batches(benchmark_script):
    import torch

    batches = [torch.rand(2, 2, 2, 16, 16).round() for _ in range(benchmark_script.BATCHES)]
    for host, kind in (("spikingjelly", "LIFNode"), ("snntorch", "Leaky")):
        net = benchmark_script.build(host, benchmark_script.CONFIGS["quantised"], batches)
        assert any(
            type(module).__name__ == f"Ternary{'Membrane' * (host == 'spikingjelly')}{kind}"
            for module in net.modules()
        )
        found = {
            name: case.run() for name, case in benchmark_script.cases(host, net, batches).items()
        }
        assert found[benchmark_script.FORWARD].shape == (2, 2, 10)
        assert found[benchmark_script.ONE].sparsity.firing_rate > 0
        five = found[benchmark_script.FIVE].operations
        assert five.dense == found[benchmark_script.ONE].operations.dense
        assert five.effective != found[benchmark_script.ONE].operations.effective


def test_the_table_of_analyses_against_numbers_worked_out_by_hand(benchmark_script):
    times = {benchmark_script.FORWARD: 100.0, benchmark_script.ONE: 250.0}
    times = {name: {"ms": ms, "low": ms, "high": ms} for name, ms in times.items()}
    times[benchmark_script.FIVE] = {"ms": 600.0, "low": 500.0, "high": 651.0}
    row = {"host": "spikingjelly", "steps": 4, "network": "float", "times": times}
    machine = {"processor": "P", "device": "cpu", "cores": 2, "threads": 2, "torch": "2.6"}
    found = {"machine": machine, "quick": False, "repeats": 7, "size": 48, "rows": [row]}
    lines = benchmark_script.table([found]).splitlines()
    assert lines[0] == "spq.analyze beside a forward pass, 48 x 48, batch 2"
    name, figures = lines[5].split("float")
    assert name == "spikingjelly vgg9, T = 4, "
    assert figures.split() == ["100.0", "ms", "250.0", "ms", "2.50x", "120.0", "ms", "1.20x"]
    assert "UNSTEADY" in lines[-1]
    assert lines[-1].endswith("analyze, 5 batches.")


def test_the_stored_measurement_is_what_the_script_prints_of_it(benchmark_script):
    stored = EXAMPLES.parent / "docs" / "results" / "benchmark_analysis"
    measured = [json.loads(line) for line in stored.with_suffix(".jsonl").read_text().splitlines()]
    assert (
        benchmark_script.table(measured).strip() == stored.with_suffix(".txt").read_text().strip()
    )
    assert not measured[-1]["quick"]


def test_the_page_about_energy_prints_the_tables_that_are_used():
    from spquant_plugin.analysis.energy_tables import TABLES, TYPES

    page = (EXAMPLES.parent / "docs" / "how-to" / "measure-energy.rst").read_text()
    number = r"\n     - ([\d.]+)"
    for kind in TYPES:
        printed = re.search(rf"   \* - {kind}{4 * number}\n", page).groups()
        used = [cost for t in TABLES.values() for cost in (t.add[kind], t.multiply[kind])]
        assert [float(cost) for cost in printed] == used
    for size, name in zip(TABLES["45nm"].sram, ("8 KiB", "32 KiB", "1 MiB"), strict=True):
        printed = re.search(rf"   \* - SRAM up to {name}{2 * number}\n", page).groups()
        assert [float(cost) for cost in printed] == [t.sram[size] for t in TABLES.values()]
        assert size == int(name.split()[0]) * {"KiB": 2**10, "MiB": 2**20}[name.split()[1]]
