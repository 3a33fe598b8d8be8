"""The C export: the same spikes, membranes and outputs, in strict and portable C."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.c99 import size as c99_size
from spquant_plugin.deploy.c99.export import export_c, write_c
from spquant_plugin.errors import DeployError, ExportError

from . import graphs
from .c99_build import (
    ARM,
    CHECKED,
    FAST,
    STRICT,
    Builder,
    call,
    expected,
    export,
    need,
    told,
)
from .c99_graphs import NAMED, drawn

ROOT = Path(__file__).parents[2]
INPUTS = 100
# What the network itself is made of.
PURE = ("spq_network.h", "spq_network.c", "spq_kernels.h", "spq_kernels.c")


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> Builder:
    return Builder(tmp_path_factory.mktemp("built"))


def same(
    graph: g.Graph,
    builder: Builder,
    folder: Path,
    flags: list[str],
    *emulator: str,
    compiler: str = "gcc",
) -> None:
    """Every spike, state and output of the C program is the reference engine's."""
    x = graphs.random_input(graph, steps=4, batch=INPUTS, seed=8)
    exported = export(graph, folder)
    program = builder.build(exported, flags, compiler)
    found, right = told([*emulator, str(program)], exported, x), expected(graph, x)
    assert len(found) == len(right) > 0
    assert found == right


@pytest.mark.parametrize("name", NAMED)
def test_random_graphs_do_the_same_under_sanitizers_and_strict_warnings(name, builder, tmp_path):
    need("gcc")
    same(NAMED[name](), builder, tmp_path, CHECKED)


@pytest.mark.parametrize("name", ["everything", "line", "uneven", "drawn 3"])
def test_the_same_on_32_bit_arm(name, builder, tmp_path):
    need(ARM, "qemu-arm")
    same(NAMED[name](), builder, tmp_path, [*FAST, "-static"], "qemu-arm", compiler=ARM)


def test_the_same_when_chars_are_signed_otherwise_and_optimised(builder, tmp_path):
    need("gcc")
    same(graphs.everything(2), builder, tmp_path / "fast", [*STRICT, "-O3"])
    same(graphs.everything(2), builder, tmp_path / "char", [*FAST, "-funsigned-char"])


def test_clang_agrees(builder, tmp_path):
    need("clang")
    same(graphs.everything(), builder, tmp_path, FAST, compiler="clang")


def test_drawn_graphs_hold_what_they_are_for():
    """A generator that draws only easy networks would prove nothing."""
    kinds = {type(node) for seed in range(12) for node in drawn(seed).nodes}
    assert len(kinds) >= 11
    neurons = [neuron for seed in range(12) for neuron in drawn(seed).neurons]
    assert {n.pixels.score for n in neurons if n.pixels} == {"current", "prior"}
    assert any(n.gate for n in neurons)
    assert any(n.counts for n in neurons)
    assert {n.state_bits for n in neurons} >= {1, 2, 4, 8}


def quickstart() -> spq.IntegerNetwork:
    """The model of examples/quickstart.py, not trained."""
    torch.manual_seed(0)
    net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=10, width=0.5)
    frames = torch.randint(0, 4, (8, 8, 2, 16, 16)).float()
    quantized = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=frames[:, :1])
    quantized = spq.calibrate(quantized, [frames]).eval()
    return spq.to_integer(quantized, frames[:, :2], engine="torch")


def test_the_quickstart_model_fits_a_microcontroller_and_is_exact(builder, tmp_path):
    need("gcc")
    net = quickstart()
    size = export_c(net, tmp_path)
    assert size.code is not None
    assert size.flash < 256 * 1024
    assert size.ram < 64 * 1024
    graph = net.graph
    x = graphs.random_input(graph, steps=8, batch=INPUTS, seed=1).clamp(max=5)
    program = builder.build(tmp_path, FAST)
    found, right = told([str(program)], tmp_path, x), expected(graph, x)
    assert found == right
    spikes = right[: 16 * 16 * 16 // 8]
    assert 0 < sum(byte.bit_count() for byte in spikes) < 16 * 16 * 16


# --- the program that replays -------------------------------------------------------------------


def replay(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-C", str(folder), "test", "CFLAGS=-std=c99 -O1 -Werror"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_replay_compares_every_step(tmp_path):
    need("gcc", "make")
    graph = graphs.everything()
    write_c(graph, graphs.random_input(graph, steps=3, batch=2, rate=0.8), tmp_path, measure=False)
    done = replay(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "samples: 2, steps: 3, neuron layers: 7, differences: 0\n"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ("spq_sample_layers", "sample 0, step 0: spikes of neuron2 differ"),
        ("spq_sample_outputs", "sample 0, step 0: numbers of the output differ"),
    ],
)
def test_the_replay_names_what_differs(array, message, tmp_path):
    need("gcc", "make")
    graph = graphs.chain()
    write_c(graph, graphs.random_input(graph, steps=2, batch=1, rate=0.8), tmp_path, measure=False)
    file = tmp_path / "spq_sample.c"
    changed = re.sub(
        rf"(const uint32_t {array}\[\d+\] = {{\n    )\d+u", r"\g<1>7u", file.read_text()
    )
    assert changed != file.read_text()
    file.write_text(changed)
    done = replay(tmp_path)
    assert done.returncode != 0
    assert done.stdout.splitlines() == [
        message,
        "samples: 1, steps: 2, neuron layers: 2, differences: 1",
    ]


def test_the_replay_sees_another_weight(tmp_path):
    need("gcc", "make")
    graph = graphs.chain()
    write_c(graph, graphs.random_input(graph, steps=4, batch=4, rate=0.9), tmp_path, measure=False)
    file = tmp_path / "spq_network.c"
    first = re.search(r"const uint8_t weights_\w+\[\d+\] = {\n    (\d+),", file.read_text())
    begin, end = first.span(1)
    text = file.read_text()
    file.write_text(f"{text[:begin]}{(int(first[1]) + 128) % 256}{text[end:]}")
    done = replay(tmp_path)
    assert done.returncode != 0
    assert "of neuron2 differ" in done.stdout


# --- the sources --------------------------------------------------------------------------------


def test_two_exports_are_the_same_bytes(tmp_path):
    graph = graphs.everything()
    x = graphs.random_input(graph, steps=2, batch=1)
    for name in "ab":
        write_c(graph, x, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(
        [*PURE, "spq_sample.h", "spq_sample.c", "main.c", "Makefile", "SIZE.txt"]
    )
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["everything", "chain"])
def test_no_fractions_and_no_heap(name, tmp_path):
    export(NAMED[name](), tmp_path)
    for file in tmp_path.glob("*.[ch]"):
        text = file.read_text()
        assert not re.search(r"\b(float|double|malloc|calloc|realloc|free|alloca)\b", text), file
        included = set(re.findall(r"#include <(.*)>", text))
        allowed = {"stdint.h", "string.h"} | ({"stdio.h"} if file.name == "main.c" else set())
        assert included <= allowed


def test_objects_call_no_arithmetic_of_fractions_and_no_heap(tmp_path):
    """On a processor without a unit for them, fractions are calls into the compiler's library."""
    need(ARM, "nm")
    export(graphs.everything(), tmp_path)
    for name in ("spq_network", "spq_kernels"):
        source, built = tmp_path / f"{name}.c", tmp_path / f"{name}.o"
        call([ARM, *FAST, "-c", str(source), "-o", str(built)])
        wanted = set(re.findall(r" U (\w+)", call(["nm", str(built)]).decode()))
        assert {one for one in wanted if not one.startswith("spq_")} <= {
            "memset",
            "memcpy",
            "__aeabi_idiv",
            "__aeabi_uidiv",
        }


def test_the_header_serves_cpp(tmp_path):
    need("g++")
    exported = export(graphs.chain(), tmp_path)
    (tmp_path / "user.cpp").write_text('#include "spq_network.h"\nvoid f() { spq_reset(); }\n')
    call(["g++", "-Wall", "-Werror", "-c", str(exported / "user.cpp"), "-o", str(tmp_path / "o")])
    assert b"spq_reset" in call(["nm", str(tmp_path / "o")])
    assert b"_Z9spq_reset" not in call(["nm", str(tmp_path / "o")])


def test_inputs_out_of_range_count_as_the_nearest(builder, tmp_path):
    need("gcc")
    graph = graphs.everything()
    exported = export(graph, tmp_path)
    program = builder.build(exported, FAST)
    x = torch.randint(-128, 128, (2, 4, *graph.input.shape), dtype=torch.int32)
    assert told([str(program)], exported, x) == expected(graph, x.clamp(-3, 6))


def test_the_header_says_how_to_quantize_an_analogue_input(tmp_path):
    graph = graphs.chain()
    nodes = (replace(graph.nodes[0], quantizer=(8, 0.0, 1.0), high=255), *graph.nodes[1:])
    for takes, said in (("sequence", "8, 8]"), ("static", "same input in each of 4 steps")):
        changed = replace(graph, nodes=nodes, takes=takes, repeats=4)
        header = (export(changed, tmp_path) / "spq_network.h").read_text()
        assert "round(x * (255 / (1.0 - 0.0))), half to even" in header
        assert said in header
        assert "typedef uint8_t spq_input_t;" in header


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["everything", "chain"])
def test_the_size_report_agrees_with_the_tools(name, tmp_path):
    need("gcc", "nm", "size")
    graph = NAMED[name]()
    size = write_c(graph, graphs.random_input(graph, 2, 1), tmp_path)
    text = data = bss = 0
    symbols: dict[str, int] = {}
    for part in c99_size.OBJECTS:
        built = str(tmp_path / f"{part}.o")
        call([c99_size.compiler()[0], *c99_size.FLAGS, str(tmp_path / f"{part}.c"), "-o", built])
        line = call(["size", built]).decode().splitlines()[1].split()
        text, data, bss = text + int(line[0]), data + int(line[1]), bss + int(line[2])
        for row in call(["nm", "-S", built]).decode().splitlines():
            if len(columns := row.split()) == 4:
                symbols[columns[3]] = int(columns[1], 16)
    arrays = {name: count for name, count in symbols.items() if re.fullmatch(r"[a-z]+_\d+", name)}
    records = "convolution|whole|rows|pool|terms|sum|decision|neuron|importance"
    tables = {name: n for name, n in arrays.items() if not re.match(rf"({records})_\d+", name)}
    weights = {name: n for name, n in tables.items() if re.match("weights_|gate_", name)}
    if name == "chain":
        terms = {key: n for key, n in arrays.items() if key.startswith("terms_")}
        assert len(terms) == 1  # of the read-out: here nothing is summed
        tables |= terms
    assert size.weights == sum(weights.values())
    assert size.tables == sum(tables.values()) - size.weights
    assert size.states == symbols["spq_states"]
    rest = [symbols.get(pool, 0) for pool in ("spq_bytes", "spq_halves", "spq_words", "begun")]
    assert size.buffers == sum(rest)
    assert size.ram <= bss <= size.ram + 64  # alignment
    assert size.flash == text + data
    assert (tmp_path / "SIZE.txt").read_text() == f"{size}\n"
    assert size.input == g.size(graph.input.shape)
    assert size.output == 4 * sum(g.size(graph[output.value].shape) for output in graph.outputs)


def test_the_size_report_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    size = export_and_size(tmp_path)
    assert size.code is None
    assert "not measured  no compiler was found" in size.table()
    assert size.flash == size.weights + size.tables


def test_a_compiler_that_fails_measures_nothing(tmp_path, monkeypatch):
    need("false", "size")
    monkeypatch.setenv("CC", "false")
    assert export_and_size(tmp_path).code is None


def export_and_size(folder: Path) -> c99_size.CSize:
    graph = graphs.chain()
    return write_c(graph, graphs.random_input(graph, 1, 1), folder)


def test_the_cross_compiler_brings_its_own_size(monkeypatch):
    need(ARM)
    monkeypatch.setenv("CC", ARM)
    assert [Path(tool).name for tool in c99_size.compiler()] == [ARM, ARM.replace("gcc", "size")]


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_the_read_out_without_rounding(builder, tmp_path):
    need("gcc")
    graph = graphs.chain()
    output = graph.outputs[0]
    exported = export(graph, tmp_path)
    shift = int(re.search(r"SHIFT (\d+)", (exported / "spq_network.h").read_text())[1])
    (tmp_path / "try.c").write_text(
        '#include <stdio.h>\n#include "spq_network.h"\nint main(void)\n{\n'
        "    int32_t sums[5] = { 900, -1200, 7, 0, 1 };\n    int64_t scores[5];\n    int i;\n"
        "    spq_scores0(sums, 3, scores);\n"
        '    for (i = 0; i < 5; i++) {\n        printf("%lld ", (long long)scores[i]);\n    }\n'
        "    return 0;\n}\n"
    )
    files = [str(tmp_path / name) for name in ("try.c", "spq_network.c", "spq_kernels.c")]
    call(["gcc", *FAST, *files, "-o", str(tmp_path / "try")])
    found = [int(word) for word in call([str(tmp_path / "try")]).split()]
    (_, factor), (_, term) = output.steps
    sums = (900, -1200, 7, 0, 1)
    exact = [
        sums[c] * Fraction(output.unit[c].item()) * Fraction(factor[c].item())
        + 3 * Fraction(term[c].item())
        for c in range(5)
    ]
    assert [Fraction(number, 2**shift) for number in found] == exact


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (("norm", *[torch.ones(5)] * 4, 1e-5),)},
        {"gate": "input"},
        {"steps": (("multiply", torch.tensor([1e-30, 1.0, 1, 1, 1])),)},
        {"steps": (("multiply", torch.tensor(0.3)),), "unit": torch.ones(1)},
    ],
    ids=["norm", "gate", "more than 64 bits", "one factor keeps the order"],
)
def test_scores_are_left_out_where_they_would_not_be_exact_or_not_differ(change, tmp_path):
    graph = graphs.chain()
    changed = replace(graph, outputs=(replace(graph.outputs[0], **change),))
    assert "spq_scores" in (export(graph, tmp_path / "a") / "spq_network.h").read_text()
    assert "spq_scores" not in (export(changed, tmp_path / "b") / "spq_network.h").read_text()


# --- refusals -----------------------------------------------------------------------------------


def test_what_is_no_integer_network_is_refused(tmp_path):
    with pytest.raises(ExportError, match="received Linear: export_c writes an IntegerNetwork"):
        export_c(torch.nn.Linear(2, 2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ExportError, match="is a file: export_c writes a folder"):
        export(graphs.chain(), tmp_path / "x")


def test_folders_of_others_stay_as_they_are(tmp_path):
    (tmp_path / "main.c").write_text("mine")
    (tmp_path / "spq_network.h").write_text("mine too")
    with pytest.raises(ExportError, match=r"holds other files \(main.c, spq_network.h\)"):
        export(graphs.chain(), tmp_path)
    assert (tmp_path / "main.c").read_text() == "mine"


def test_an_earlier_export_is_written_over(tmp_path):
    export(graphs.everything(), tmp_path)
    export(graphs.chain(), tmp_path)
    export(graphs.chain(), tmp_path / "new" / "folder")
    for file in (tmp_path / "new" / "folder").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export(graphs.chain(), tmp_path / "x" / "y")


def test_a_sample_of_another_shape_is_refused(tmp_path):
    graph = graphs.chain()
    for shape in ((0,), (2, 1, 2, 8, 9)):
        with pytest.raises(ExportError, match=r"sample is \(.*\): must be \[T, N, 2, 8, 8\]"):
            write_c(graph, torch.zeros(shape, dtype=torch.int32), tmp_path)


def test_numbers_beyond_32_bits_are_refused(tmp_path):
    graph = graphs.chain()
    nodes = (graph.nodes[0], replace(graph.nodes[1], high=2**31 - 1), *graph.nodes[2:])
    with pytest.raises(ExportError, match=r"conv1 .* runs from .* to 2147483647: .* 32 bits"):
        export(replace(graph, nodes=nodes), tmp_path)


def test_three_axes_of_space_are_refused(tmp_path):
    b = graphs.Builder(0, (2, 4, 4, 4))
    b.pool(b.nodes[0])
    with pytest.raises(ExportError, match=r"\(SumPool\) has 3 axes of space: .* one or two"):
        export(b.graph(), tmp_path)


def test_unknown_operations_are_refused(tmp_path):
    class Novel(g.Node):
        pass

    b = graphs.Builder(0, (2, 4))
    b.add(Novel(name="new", inputs=("input",), shape=(2, 4), low=0, high=1))
    with pytest.raises(ExportError, match="new is a Novel: export_c writes only Add, Affine"):
        export(b.graph(), tmp_path)


def test_export_errors_are_value_errors():
    assert issubclass(ExportError, ValueError)
    assert issubclass(DeployError, ValueError)


# --- what has to be installed ---------------------------------------------------------------------


def test_the_wheel_holds_the_c_files():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"] == {"packages": ["spquant_plugin"]}
    assert "exclude" not in wheel
    held = {path.name for path in (ROOT / "spquant_plugin/deploy/c99/templates").iterdir()}
    assert held == {"spq_kernels.h", "spq_kernels.c", "main.c", "Makefile"}
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"*.c", "*.h", "Makefile", "c/"} & set(ignored)


def test_the_checks_install_the_cross_compiler():
    text = (ROOT / ".ci/run").read_text()
    assert "gcc-arm-linux-gnueabihf" in text
    assert "qemu-user" in text
