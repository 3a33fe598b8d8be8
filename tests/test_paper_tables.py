"""The page of the paper's tables: every row is counted in a network, within its bounds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper-tables.rst"
SCRIPTS = ("paper_tables", "paper_tables_networks", "paper_tables_rows", "paper_tables_published")


@pytest.fixture(scope="module")
def scripts():
    """The script's files, by the ends of their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield {
            name.removeprefix("paper_tables").strip("_"): import_module(name) for name in SCRIPTS
        }
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def nets(scripts):
    """All networks, counted once."""
    return scripts["networks"].count_all()


# Row of paper-tables.md: printed, counted, and how far they may be apart.
FOLLOWING = {
    "VGG-9 membranes, 32 bit": (3.68, 3.6864, 0.01),
    "VGG-9 membranes, stored in 2 bit": (0.23, 0.2304, 0.01),
    "ResNet-19 weights, 32 bit": (49.94, 49.945344, 0.01),
    "ResNet-19 membranes, 32 bit": (5.5, 5.505024, 0.01),
    "ResNet-19 total, 32 bit": (60.94, 60.955392, 0.02),
    "MINT ResNet-19, 8 bit, weights": (12.48, 12.486336, 0.01),
    "MINT ResNet-19, 8 bit, membranes": (1.37, 1.376256, 0.01),
    "MINT ResNet-19, 8 bit, total": (15.22, 15.238848, 0.02),
    "MINT ResNet-19, 4 bit, weights": (6.24, 6.243168, 0.01),
    "MINT ResNet-19, 4 bit, membranes": (0.69, 0.688128, 0.01),
    "MINT ResNet-19, 4 bit, total": (8.30, 8.307552, 0.02),
    "MINT ResNet-19, 2 bit, weights": (3.12, 3.121584, 0.01),
    "MINT ResNet-19, 2 bit, membranes": (0.35, 0.344064, 0.01),
    "MINT ResNet-19, 2 bit, total": (4.84, 4.841904, 0.02),
    "ResNet-34 weights, 32 bit": (87.19, 87.190688, 0.01),
    "ResNet-34 weights, 8 bit": (21.27, 21.267648, 0.01),
    "ResNet-34 membranes, 32 bit": (11.03, 11.03872, 0.01),
    "ResNet-34 total, 32 bit": (109.25, 109.268128, 0.02),
}


def test_every_row_that_follows_is_counted_within_its_bounds(scripts, nets):
    rows = {row.name: row for row in scripts["rows"].rows_that_follow(nets)}
    assert set(rows) == set(FOLLOWING)
    for name, (printed, counted, bound) in FOLLOWING.items():
        row = rows[name]
        assert (row.printed, row.bound) == (printed, bound), name
        assert row.ours == pytest.approx(counted, abs=1e-9), name
        assert abs(row.ours - row.printed) <= bound, name
        assert row.cells()[4] == "reproduced", name


def test_rows_that_do_not_follow_say_so_and_are_not_tuned(scripts, nets):
    rows = {row.name: row for row in scripts["rows"].rows_that_differ(nets)}
    assert {row.verdict for row in rows.values()} == {"does not follow"}
    counted = {
        "VGG-9 weights, 32 bit": (41.12, 9_263_232 * 32),
        "VGG-9 weights, 2 bit": (2.57, 9_263_232 * 2),
        "VGG-9 membranes, N-Caltech": (3.68, 1_228_800 * 32),
        "VGG-9 total, 32 bit": (48.58, (9_263_232 + 2 * 921_600) * 32),
        "VGG-9 total, quantised": (3.75, 9_263_232 * 2 + 921_600 * (2 + 8)),
        "ResNet-19 membranes, ternary": (0.25, 1_376_256 * 2),
        "ResNet-19 total, quantised": (7.49, 12_486_336 * 4 + 1_376_256 * (2 + 8)),
        "ResNet-34 membranes, ternary": (0.51, 2_759_680 * 2),
        "ResNet-34 total, quantised": (23.83, 21_267_648 * 8 + 2_759_680 * (2 + 8)),
        "Spikformer-4-256 weights, 32 bit": (38.20, 4_126_048 * 32),
        "Spikformer-4-256 weights, 8 bit": (9.62, 4_126_048 * 8),
        "Spikformer-4-256 membranes, ternary": (0.25, 819_200 * 2),
        "Spikformer-4-256 total, quantised": (15.26, 4_126_048 * 8 + 819_200 * (2 + 8)),
        "Custom YOLO-v2 total, 32 bit": (223.20, (21_146_176 + 2 * 6_435_840) * 32),
        "Custom YOLO-v2 total, quantised": (31.57, 21_146_176 * 4 + 6_435_840 * (2 + 8)),
    }
    assert set(rows) == set(counted)
    for name, (printed, bits) in counted.items():
        assert rows[name].printed == printed
        assert rows[name].ours == pytest.approx(bits / 8e6, abs=1e-9), name


def test_what_is_said_of_rows_that_do_not_follow_is_counted_too(scripts, nets):
    said = {row.name: row.text for row in scripts["rows"].rows_that_differ(nets)}
    assert "has 56.11" in said["VGG-9 weights, 32 bit"]
    assert "0.92 = 3.72 with spikes of 8 bit" in said["VGG-9 total, quantised"]
    assert "7.89 with membranes of 1.58 bit, 6.69 by Eq. 28" in said["ResNet-19 total, quantised"]
    assert "22.16 by Eq. 28" in said["ResNet-34 total, quantised"]
    assert "37.12 with an embedding of 384" in said["Spikformer-4-256 weights, 32 bit"]
    assert "21,146,176 weights, 6,435,840 neurons" in said["Custom YOLO-v2 total, 32 bit"]


def test_counts_are_those_that_follow_by_hand(scripts, nets):
    checks = scripts["published"].checks(nets)
    assert len(checks) == 13
    for check in checks:
        assert check.counted == check.by_hand, (check.network, check.figure)
        assert check.cells()[-2:] == ("0", "equal")


def test_ratios_come_from_the_printed_totals(scripts, nets):
    found = {ratio.name: ratio for ratio in scripts["published"].ratios(nets)}
    recomputed = {name: round(ratio.recomputed, 3) for name, ratio in found.items()}
    assert recomputed == {
        "VGG-9": 12.955,
        "ResNet-19": 8.136,
        "ResNet-34": 4.585,
        "Custom YOLO-v2": 7.07,
    }
    assert all(ratio.agrees for ratio in found.values())
    vgg = (9_263_232 + 2 * 921_600) * 32 / (9_263_232 * 2 + 921_600 * 10)
    assert found["VGG-9"].ours == pytest.approx(vgg)


def test_energy_follows_eq31_with_the_gates_of_its_row(scripts, nets):
    found = {energy.name: energy for energy in scripts["published"].energies(nets)}
    vgg = found["VGG-9, DVS-CIFAR10"]
    convolutions, updates = 9 * 921_600 + 10, 10 * (921_600 + 10)
    assert (vgg.convolutions, vgg.updates) == (convolutions, updates)
    share = (2 * convolutions + updates) / 5 / (2 * convolutions + 0.65 * updates)
    assert vgg.open_channels == pytest.approx(share)
    picojoules = (0.07 + 0.007) * convolutions * share + 0.007 * updates * share * 0.65
    assert vgg.ours("7nm", "INT8") == pytest.approx(picojoules / 1e6)
    resnet = found["ResNet-19, CIFAR-10"]
    shortcuts = 128 * 32**2 + 256 * 16**2 + 512 * 8**2
    others = 9 * 1_376_256 + shortcuts + 256 + 10
    assert resnet.convolutions == others
    assert resnet.cells()[:4] == ("ResNet-19, CIFAR-10, T=4", "1.62", "5.1×", "78.9%")


def test_no_published_energies_give_a_figure_of_table_10(scripts, nets):
    energies = scripts["published"].energies(nets)
    assert [energy.printed for energy in energies] == [0.45, 1.62, 8.16, 6.99]
    for energy in energies:
        for technology in ("45nm", "7nm"):
            for numbers in ("INT8", "INT32", "FP16", "FP32"):
                ours = energy.ours(technology, numbers)
                assert abs(ours - energy.printed) > 0.02, (energy.name, technology, numbers)


def test_a_row_outside_its_bounds_is_no_reproduction(scripts):
    row = scripts["rows"].Row("Table 7", "some", 3.68, 3.6899, 0.01, "")
    assert row.verdict == "reproduced"
    assert replace(row, ours=3.6901).verdict == "does not follow"
    assert replace(row, ours=3.6699).verdict == "does not follow"
    ratio = scripts["published"].Ratio("some", "8.13", 60.94, 7.49, 7.65)
    assert ratio.cells()[4] == "reproduced"
    assert replace(ratio, small=7.51).cells()[4] == "does not follow"
    check = scripts["published"].Check("some", "weights", 1000, 1001)
    assert check.cells()[-2:] == ("+1", "differs")


def test_neurons_that_a_network_does_not_have_cannot_be_left_out(scripts, nets):
    net = nets["VGG-7"]
    wrong = replace(net, case=replace(net.case, neurons_not_counted=("neuron9",)))
    with pytest.raises(KeyError, match="vgg7 has no neurons at 'neuron9'"):
        wrong.neurons


def test_published_accuracy_is_quoted_and_only_differences_are_added(scripts):
    cells = {line[0].split(",")[0]: line[1:] for line in scripts["published"].accuracy_cells()}
    assert cells["DVS-CIFAR10"] == ("78.45", "77.94 (-0.51)", "76.80 (-1.65)", "5.0×")
    assert cells["CIFAR-10"] == ("94.56", "94.11 (-0.45)", "93.09 (-1.47)", "5.1×")
    assert cells["Gen1"] == ("0.240", "0.198 (-0.042)", "0.176 (-0.064)", "4.7×")
    assert len(cells) == 7


def test_the_page_is_what_the_script_writes(scripts, nets):
    assert scripts[""].page(nets) == PAGE.read_text(encoding="utf-8")
    assert f"\n   {scripts[''].COMMAND}\n" in PAGE.read_text(encoding="utf-8")


def test_the_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.rst").read_text(encoding="utf-8").splitlines()
    assert "   paper-tables" in index


def test_the_script_prints_every_table(scripts, nets):
    printed = scripts[""].tables(nets)
    for heading in ("Networks", "Ratios", "Energy", "Published accuracy"):
        assert f"\n{heading}\n" in f"\n{printed}\n"
    assert printed.count("reproduced") == len(FOLLOWING) + 4
    assert ":doc:" not in printed


def test_the_command_writes_the_page(scripts, nets, tmp_path, monkeypatch, capsys):
    script, target = scripts[""], tmp_path / "page.rst"
    monkeypatch.setattr(script, "count_all", lambda: nets)
    script.main(["--write", str(target)])
    assert target.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""
    script.main([])
    assert capsys.readouterr().out == script.tables(nets) + "\n"


def test_the_script_says_what_it_takes():
    command = [sys.executable, "-W", "error", "examples/paper_tables.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--write FILE" in done.stdout
