"""The benchmarks run from end to end, and what they print follows from what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
STEADY = {"low": 1.0, "high": 1.0}


@pytest.fixture
def example(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module
    for name in ("measurements", *(path.stem for path in EXAMPLES.glob("benchmark*.py"))):
        if name not in before:
            sys.modules.pop(name, None)


def run(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def measured(script: str, folder: Path, example: Any) -> dict:
    """Run a benchmark at tiny sizes; its table, its line of JSON and its figure must agree."""
    file, drawn = folder / "found.jsonl", folder / "found.png"
    first = run(script, "--quick", "--json", file, "--plot", drawn)
    assert first.returncode == 0, first.stderr
    assert drawn.read_bytes().startswith(b"\x89PNG")
    (line,) = file.read_text().splitlines()
    found = json.loads(line)
    assert found["quick"] is True
    assert "tiny sizes" in first.stdout
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["threads"] == 1
    assert found["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert first.stdout.strip() == example(script).table([found]).strip()
    return found


def test_the_neuron_benchmark_runs(tmp_path, example):
    found = measured("benchmark_neuron", tmp_path, example)
    rows = found["layer"]
    assert len(rows) == 8
    for row in rows.values():
        for mode in ("inference", "forward", "both"):
            assert 0 < row[mode]["low"] <= row[mode]["ms"] <= row[mode]["high"]
    # What the code of a distance takes instead of an input's four bytes; the rest is as large.
    full, half, quarter = (
        rows[f"ours, compiled{end}"]["kept"] for end in ("", ", 16 bit kept", ", 8 bit kept")
    )
    assert (full - half, full - quarter) == pytest.approx((2, 3))
    assert rows["ours, eager"]["kept"] == full
    assert found["floor"]["both_ms"] == pytest.approx(2.5 * found["floor"]["forward_ms"])
    assert list(found["ns_per_element"]["ours, compiled"]) == ["2", "4"]
    assert set(found["first_call"]) == {"ours, compiled, cold", "ours, compiled, warm"}
    assert list(found["snntorch"]) == ["2", "4"]
    assert all(len(rows) == 3 for rows in found["snntorch"].values())
    half, quarter = found["deviation"]["16"], found["deviation"]["8"]
    assert 0 < half["input"] < 1e-2 < quarter["input"] < 0.2


def test_the_training_benchmark_runs(tmp_path, example):
    found = measured("benchmark_training", tmp_path, example)
    rows, alone = found["step"], found["quantizers"]
    assert list(rows) == ["unconverted", "converted", "converted, float weights"]
    for row in rows.values():
        assert row["low"] <= row["ms"] <= row["high"]
        assert 0 < row["before"] <= row["peak"]
    # Quantised weights are kept beside the float ones.
    assert rows["converted"]["kept"] > rows["converted, float weights"]["kept"] > 0
    assert alone["share"] == pytest.approx(alone["ms"] / rows["converted"]["ms"])


@pytest.mark.parametrize("script", ["benchmark_neuron", "benchmark_training"])
def test_what_is_not_there_is_refused(script, example, monkeypatch, tmp_path):
    def main(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *options])
        example(script).main()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main("--quick", "--device", "cuda")
    with pytest.raises(SystemExit, match="there is no such file"):
        main("--show", str(tmp_path / "none.jsonl"))


def test_a_stored_measurement_is_shown_and_drawn_without_measuring(
    example, monkeypatch, capsys, tmp_path
):
    script, file = example("benchmarking"), tmp_path / "found.jsonl"
    file.write_text('{"number": 1}\n{"number": 2}\n')
    drawn = []

    class Drawing:
        def __init__(self, found: dict) -> None:
            self.found = found

        def savefig(self, path: Path, dpi: int) -> None:
            drawn.append((self.found["number"], path.name))

    options = script.arguments("").parse_args(["--show", str(file), "--plot", "found.png"])
    script.finish(options, lambda: pytest.fail("measured"), str, Drawing)
    assert capsys.readouterr().out == "[{'number': 1}, {'number': 2}]\n"
    assert drawn == [(2, "found.png")]


def test_a_host_that_does_not_compile_is_left_out(example, capsys):
    script = example("benchmark_neuron")

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel\nof this kind")

    x, gradient = script.inputs((2, 3), "cpu")
    assert not script.compiles(script.Variant(fail), x, gradient)
    assert capsys.readouterr().err.endswith("is left out: no kernel\n")
    assert script.compiles(script.Variant(lambda x: x * 2), x, gradient)
    rows = {script.COMPILED: {"both": {"ms": 1.0}}}
    notes = example("benchmark_neuron_tables")._layer_notes(rows, on_gpu=True)
    assert notes[-1] == "SpikingJelly LIF, torch.compile: left out, it did not compile here."


def test_cases_take_turns_and_what_prepares_them_is_not_timed(example):
    script, calls = example("benchmarking"), []

    def prepare() -> None:
        calls.append("prepared")
        time.sleep(0.2)

    cases = {
        "a": script.Case(lambda: calls.append("a"), prepare),
        "b": script.Case(lambda: calls.append("b")),
    }
    found = script.in_turns(cases, "cpu", 3, "turns", warm_up=1)
    assert [calls.count(name) for name in ("prepared", "a", "b")] == [4, 4, 4]
    assert all(calls[at - 1] == "prepared" for at, name in enumerate(calls) if name == "a")
    ran = [name for name in calls if name != "prepared"]
    assert all(set(ran[at : at + 2]) == {"a", "b"} for at in range(0, 8, 2))
    assert found["a"]["ms"] < 100


def test_the_garbage_collector_runs_again_after_a_case_that_fails(example):
    import gc

    script = example("benchmarking")

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        script.in_turns({"a": script.Case(fail)}, "cpu", 1, "fails")
    assert gc.isenabled()


def test_kept_bytes_count_shared_memory_once_and_parameters_not_at_all(example):
    kept_bytes = example("benchmarking").kept_bytes
    x = torch.ones(100, requires_grad=True)
    weight = torch.ones(100, requires_grad=True)
    # exp keeps its result; a product keeps both factors, of which one is that result.
    assert kept_bytes(lambda: x.exp()) == 400
    assert kept_bytes(lambda: x.exp() * weight) == 800
    assert kept_bytes(lambda: x.exp() * weight, [weight]) == 400
    assert kept_bytes(lambda: x.exp()[:50].exp()) == 600  # a view keeps what it looks at


def test_unsteady_times_are_named(example):
    unsteady = example("benchmarking").unsteady
    rows = {
        "good": {"ms": 10.0, "low": 9.0, "high": 11.4},
        "bad": {"ms": 10.0, "low": 9.0, "high": 11.6},
    }
    assert unsteady(rows) == ["UNSTEADY, quartiles more than 25 % apart: bad."]
    assert unsteady({"good": rows["good"]}) == []


def test_a_fresh_process_that_fails_ends_the_benchmark(example, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; print('noise'); print(sys.argv[1:]); sys.exit(len(sys.argv) - 2)"
    )
    with pytest.raises(SystemExit, match=r"script\.py 1 2 ended with 1"):
        example("benchmarking").fresh(str(script), 1, 2)
    script.write_text("import os; print('noise'); print(os.environ['KIND'])")
    found = example("benchmarking").fresh(str(script), environment={"KIND": '{"a": 1}'})
    assert found == {"a": 1}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak")
def test_a_peak_forgets_what_was_before_it(example):
    script = example("benchmark_training")
    size = 2**26
    held = bytearray(size) + b"."  # a peak of twice the size
    del held
    before = script.peak_begins("cpu")
    held = bytearray(size)
    assert 0.9 * size < script.peak("cpu") - before < 1.5 * size
    del held


def test_the_table_of_training_against_numbers_worked_out_by_hand(example):
    def row(ms: float, peak: float) -> dict:
        return {"ms": ms, "low": ms, "high": ms, "kept": 3e6, "before": 2e8, "peak": peak}

    found = {
        "quick": False,
        "repeats": 5,
        "machine": {"processor": "P", "device": "cpu", "cores": 4, "threads": 2, "torch": "2.6"},
        "steps": 4,
        "batch": 8,
        "size": 48,
        "step": {
            "unconverted": row(200.0, 6e8),
            "converted": row(150.0, 3e8),
            "converted, float weights": row(120.0, 4e8),
        },
        "quantizers": {"ms": 6.0, "share": 0.04, "difference_ms": 30.0, "difference_share": 0.2},
    }
    lines = example("benchmark_training").table([found]).splitlines()
    assert lines[0] == "VGG-9 training step, T=4, batch 8, 48 x 48"
    assert lines[1] == "P (cpu), 4 cores, 2 threads; torch 2.6"
    assert lines[2] == "Medians of 5 repetitions in turns."
    assert lines[5].split() == [
        "unconverted",
        "200.0",
        "1.00x",
        "3.0",
        "600.0",
        "1.00x",
        "400.0",
        "1.00x",
    ]
    assert lines[6].split() == [
        "converted",
        "150.0",
        "0.75x",
        "3.0",
        "300.0",
        "0.50x",
        "100.0",
        "0.25x",
    ]
    assert lines[-2].endswith("6.0 ms, 4.0% of the converted step;")
    assert lines[-1].endswith("30.0 ms, 20.0%.")


def test_the_tables_of_neurons_against_numbers_worked_out_by_hand(example):
    script = example("benchmark_neuron_tables")

    def row(*times: float, kept: float = 4.0) -> dict:
        spans = ({"ms": ms, "low": ms, "high": ms} for ms in times)
        return {**dict(zip(script.MODES, spans, strict=True)), "kept": kept}

    found = {
        "quick": False,
        "repeats": 5,
        "machine": {"processor": "P", "device": "cpu", "cores": 4, "threads": 2},
        "shape": [10, 8],
        "layer": {
            script.HOST: row(20.0, 30.0, 40.0, kept=12.0),
            script.HOST_COMPILED: row(1.0, 2.0, 4.0),
            script.COMPILED: row(4.0, 5.0, 10.0),
        },
        "floor": {
            "large_gb_s": 20.0,
            "layer_gb_s": 40.0,
            **{f"{mode}_ms": 1.0 for mode in script.MODES},
            **{f"{mode}_share": 0.25 for mode in script.MODES},
        },
        "ns_per_element": {script.HOST: {"2": 8.0, "4": 10.0}},
        "net": [25, 512],
        "snntorch": {
            "64": {
                script.UNCONVERTED: {"ms": 5.0, **STEADY},
                script.LOOP: {"ms": 10.0, **STEADY},
                script.RUN: {"ms": 2.0, **STEADY},
            },
        },
    }
    lines = script.layer_table(found).splitlines()
    assert lines[0] == "Neuron layer [10, 8]"
    ours = next(line for line in lines if line.startswith(script.COMPILED))
    assert ours.removeprefix(script.COMPILED).split() == [
        "4.00",
        "5.00x",
        "5.00",
        "6.00x",
        "10.00",
        "4.00x",
        "4.00",
    ]
    assert lines[-1] == (
        "ours, compiled: 2.50x the time of SpikingJelly LIF, torch.compile, forward + backward."
    )
    assert script.floor_table(found).splitlines()[-1].split()[-3:] == ["1.00", "10.00", "25%"]
    assert script.lengths_table(found).splitlines()[-1].split()[-3:] == ["8.00", "10.00", "25%"]
    rows = script.snntorch_table(found).splitlines()
    assert [line.split()[-1] for line in rows[2:5]] == ["2.0x", "1.0x", "5.0x"]
