"""The file of an integer network: what comes back, how large it is, and what is refused."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from spquant_plugin import errors
from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.engine.reference import ReferenceEngine
from spquant_plugin.deploy.file.store import load_graph, save_graph

from .format_editing import edit, numbers, put_together, same, sealed, take_apart
from .graphs import Builder, chain, everything, line, random_input

GRAPHS = {"chain": chain, "everything": everything, "line": line}


def run(graph: g.Graph, x: torch.Tensor) -> dict:
    engine = ReferenceEngine(graph)
    keys = {node.name for node in graph.nodes}
    keys |= {(neuron.name, "membrane") for neuron in graph.neurons}
    return engine.run(x, engine.rest(x.shape[1]), keys).values


@pytest.fixture
def saved(tmp_path):
    """A small network in a file."""
    graph = chain(1, size=4, width=3)
    sample = random_input(graph, 3, 2)
    path = tmp_path / "net.safetensors"
    save_graph(graph, sample, path)
    return graph, sample, path


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_comes_back_equal_in_every_field_and_in_all_it_computes(kind, seed, tmp_path):
    graph = GRAPHS[kind](seed)
    sample = random_input(graph, 3, 2, seed)
    save_graph(graph, sample, tmp_path / "net")
    loaded, again = load_graph(tmp_path / "net", replay=seed == 0)
    assert same(loaded, graph)
    assert same(again, sample)
    x = random_input(graph, 4, 2, seed + 100)
    before, after = run(graph, x), run(loaded, x)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_few_graphs_have_comes_back(tmp_path):
    b = Builder(3, (2, 4, 4), low=0, high=255)
    b.nodes[0] = replace(b.nodes[0], quantizer=(8, 0.0, 0.1))
    neuron = b.neuron(b.convolution(b.nodes[0], 3))
    wide = torch.tensor([-(2**31), 0, 5, 7, 2**31 - 1], dtype=torch.int32)
    b.nodes[-1] = neuron = replace(neuron, breaks=wide.expand(3, 3, 1, 5), semantics={})
    gate = b.decision(neuron, 3)
    numbers = torch.tensor([0.1, 3.0, -2.0])
    norm = (numbers, numbers.abs(), None, numbers, 1e-5)
    steps = [("multiply", numbers.to(kind)) for kind in (torch.bfloat16, torch.float16)]
    steps += [("add", torch.tensor(0.3, dtype=torch.float64)), ("norm", *norm)]
    out = g.Output(neuron.name, "membrane", 2.0 ** torch.tensor([-3.0, 4.0, 0.0]).double(),
                   tuple(steps), "mean", gate.name)  # fmt: skip
    graph = b.graph(out, takes="static", repeats=7, single=False, model="Net «ü»")
    sample = random_input(graph, 2, 1)
    save_graph(graph, sample, tmp_path / "net")
    assert same(load_graph(tmp_path / "net", replay=True), (graph, sample))


def test_a_file_is_read_by_its_description_alone(tmp_path):
    graph = everything(2)
    sample = random_input(graph, 3, 2)
    save_graph(graph, sample, tmp_path / "net")
    parts = take_apart((tmp_path / "net").read_bytes())
    assert parts.metadata["format"] == "spquant integer network"
    for node, described in zip(graph.nodes, parts.network["graph"]["nodes"], strict=True):
        assert described["kind"] == node.kind
        for name, field in described.items():
            if isinstance(field, dict) and "packing" in field:
                expected = getattr(node, name).flatten().tolist()
                assert numbers(parts, f"{node.name}.{name}", field) == expected
    assert numbers(parts, "sample", parts.network["sample"]) == sample.flatten().tolist()


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_answers_are_hashed_sample_by_sample_and_step_by_step(kind, tmp_path):
    graph = GRAPHS[kind](5)
    sample = random_input(graph, 3, 2)
    save_graph(graph, sample, tmp_path / "net")
    values = run(graph, sample)
    spikes, readout = b"", b""
    for n in range(2):
        for t in range(3):
            for neuron in graph.neurons:
                spikes += bytes(values[neuron.name][t, n].flatten().tolist())
            for out in graph.outputs:
                key = out.value if out.reads == "value" else (out.value, out.reads)
                for number in values[key][t, n].flatten().tolist():
                    readout += number.to_bytes(4, "little", signed=True)
    assert sum(spikes) > 0
    stored = take_apart((tmp_path / "net").read_bytes()).network["reference"]
    assert stored == {
        "spikes": hashlib.sha256(spikes).hexdigest(),
        "readout": hashlib.sha256(readout).hexdigest(),
    }


def test_the_same_graph_gives_the_same_bytes(saved, tmp_path):
    path = saved[2]
    loaded, again = load_graph(path)
    save_graph(loaded, again.clone(), tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == path.read_bytes()


def test_safetensors_reads_it(saved):
    from safetensors import safe_open

    graph, _, path = saved
    with safe_open(path, "pt") as file:
        assert file.metadata()["version"] == "1"
        names = set(file.keys())
        weight = file.get_tensor("conv1.weight")
        unit = file.get_tensor("graph.outputs.0.unit")
    assert {"conv3.weight", "fc7.weight", "sample", "checksum"} <= names
    assert torch.equal(weight.view(graph["conv1"].weight.shape), graph["conv1"].weight)
    assert torch.equal(unit, graph.outputs[0].unit)


def vgg9(width: int = 32, size: int = 16, classes: int = 10) -> tuple[g.Graph, int]:
    """Nine layers as VGG-9 has them, narrower, and the bytes of the float model's state dict."""
    b = Builder(0, (2, size, size))
    x, numbers = b.nodes[0], 0
    for times in (1, 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool"):
        if times == "pool":
            x = b.pool(x)
            continue
        channels = times * width
        numbers += channels * x.shape[0] * 9 + 4 * channels  # with a norm's four tensors
        x = b.neuron(b.convolution(x, channels, top=127 if times == 1 else 1))
    x = b.flatten(x)
    b.dense(x, classes, top=127)
    return b.graph(), 4 * (numbers + classes * x.shape[0] + classes)


def test_a_network_of_ternary_weights_takes_a_fifteenth_of_its_float_state(tmp_path):
    graph, floats = vgg9()
    save_graph(graph, random_input(graph, 4, 1), tmp_path / "net")
    assert 15 * os.path.getsize(tmp_path / "net") <= floats


def test_packing_takes_the_fewest_bytes(tmp_path):
    for top, packing in ((0, "1 bit"), (1, "trits"), (2, "4 bit"), (7, "4 bit"), (99, "int8")):
        b = Builder(top, (2, 5, 5))
        b.convolution(b.nodes[0], 40, top=top)
        graph = b.graph()
        save_graph(graph, random_input(graph, 1, 1), tmp_path / "net")
        described = take_apart((tmp_path / "net").read_bytes()).network["graph"]["nodes"][1]
        assert described["weight"]["packing"] == packing


# --- replay -------------------------------------------------------------------------------------


def test_replay_tells_another_network_in_a_repaired_file(saved):
    _, _, path = saved

    def turn(parts):
        values = parts.tensors["neuron4.sign"][2]
        values[:] = bytes([0]) * len(values)  # every sign is -1

    edit(path, turn)
    graph, _ = load_graph(path)
    assert bool((graph["neuron4"].sign == -1).all())
    with pytest.raises(errors.FormatError, match=r"the (spikes|readout) of the stored sample have"):
        load_graph(path, replay=True)


# --- paths --------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    graph, sample, path = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(errors.FileError, match="No space left"):
        save_graph(graph, sample[:1], path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_paths_that_hold_no_network(saved, tmp_path):
    graph, sample, path = saved
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong, words in (
        (tmp_path / "none", "cannot be read (No such file"),
        (tmp_path, "is no file"),
        (pipe, "is no file"),
        (path / "below", "cannot be read (Not a directory"),
        ("", "must be the path of a file"),
        ("a\0b", "must be the path of a file"),
        (None, "must be the path of a file"),
        (b"net", "must be the path of a file"),
    ):
        with pytest.raises(errors.FileError, match=re.escape(words)) as caught:
            load_graph(wrong)
        assert isinstance(caught.value, OSError)
    for wrong in (tmp_path / "none" / "net", tmp_path):
        with pytest.raises(errors.FileError, match="cannot be written"):
            save_graph(graph, sample, wrong)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(saved):
    path = saved[2]
    path.chmod(0)
    with pytest.raises(errors.FileError, match="Permission denied"):
        load_graph(path)


def test_a_folder_that_may_not_be_written(saved, monkeypatch):
    graph, sample, path = saved

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(errors.FileError, match="cannot be written \\(Permission denied"):
        save_graph(graph, sample, path)


# --- what is refused when it is saved -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.float(), "must be a tensor of torch.int32"),
        (lambda x: x[:, :, :1], "must be a tensor of torch.int32"),
        (lambda x: x[:0], "one step of one sample at least"),
        (lambda x: x + 1, "the input's range"),
        (lambda x: None, "a tensor [T, N, *shape]"),
    ],
)
def test_a_sample_that_is_none(saved, change, words):
    graph, sample, path = saved
    with pytest.raises(errors.DeployError, match=re.escape(words)):
        save_graph(graph, change(sample), path)


def test_a_broken_graph_is_not_saved(saved, tmp_path):
    graph, sample, _ = saved
    broken = replace(graph, nodes=(*graph.nodes, graph.nodes[-1]))
    with pytest.raises(errors.DeployError, match="used once"):
        save_graph(broken, sample, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- what is refused when it is loaded ----------------------------------------------------------


def refuses(path, content, words):
    path.write_bytes(content)
    with pytest.raises(errors.FormatError, match=re.escape(words)) as caught:
        load_graph(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    assert "Get the file again" in str(caught.value)
    assert "by hand" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_files_that_are_something_else(saved):
    _, _, path = saved
    content = path.read_bytes()
    refuses(path, b"", "0 bytes: a file of a network holds more")
    refuses(path, content[:39], "39 bytes: a file of a network holds more")
    refuses(path, b"PK\3\4" + bytes(100), "must fit the file")
    refuses(path, content[:-1], "was cut off")
    refuses(path, content + b"\0", "something was added")
    refuses(
        path, content[:-1] + bytes([content[-1] ^ 1]), "the checksum is not that of the content"
    )
    refuses(path, sealed(b"\xff" * 50, b""), "is not ASCII")
    refuses(path, sealed(b"[]", b""), "must be a JSON object")
    refuses(path, sealed(b"{}", b""), "has no __metadata__")
    refuses(path, sealed(b'{"__metadata__":{"a":1}}', b""), "has no __metadata__ of text")
    refuses(path, sealed(b'{"__metadata__":{}}', b""), "32 bytes of data")
    refuses(path, sealed(b'{"a":1,"a":2}', b""), "a key stands twice")
    refuses(path, sealed(b'{"a":NaN}', b""), "NaN is no number")
    refuses(path, sealed(b'{"a":' + b"9" * 5000 + b"}", b""), "is no JSON")
    refuses(path, sealed(b"[" * 100_000, b""), "17 levels")
    refuses(path, sealed(b"[" + b"{}," * 100_000, b""), "200001 marks")
    # Quotes that never end must not be read again and again.
    refuses(path, sealed(b'"' + b'\\"' * 500_000, b""), "is no JSON")
    other = b'{"x":{"dtype":"U8","shape":[32],"data_offsets":[0,32]},"__metadata__":{}}'
    refuses(path, sealed(other, b""), "checksum: must be the last tensor")


def test_a_larger_file_or_header_than_is_read(saved, monkeypatch):
    from spquant_plugin.deploy.file import container as format_container

    graph, sample, path = saved
    content = path.read_bytes()
    refuses(path, content[:6] + b"\x7f" + content[7:], "a header of 3574")
    monkeypatch.setattr(format_container, "LARGEST_FILE", 1000)
    refuses(path, content, "at most 1000 are read")
    with pytest.raises(errors.FormatError, match="Save a smaller network"):
        save_graph(graph, sample, path)


def test_a_file_that_grows_while_it_is_read(saved, monkeypatch):
    path = saved[2]
    before = os.stat(path)
    path.write_bytes(path.read_bytes() + b"more")
    monkeypatch.setattr(os, "fstat", lambda _: before)
    with pytest.raises(errors.FormatError, match="it changed while it was read"):
        load_graph(path)


def test_a_checkout_that_is_not_installed_saves_too(saved, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    graph, sample, path = saved
    save_graph(graph, sample, path)
    assert take_apart(path.read_bytes()).metadata["producer"] == "spquant_plugin unknown"
    load_graph(path)


HEADERS = [
    ({"dtype": "F8"}, "dtype 'F8': must be one of"),
    ({"dtype": 3}, "dtype 3: must be one of"),
    ({"shape": "12"}, "shape must be at most 8"),
    ({"shape": [1] * 9}, "shape must be at most 8"),
    ({"shape": [0]}, "shape must be at most 8"),
    ({"shape": [True]}, "shape must be at most 8"),
    ({"shape": [2**33, 2**33]}, "shape must be at most 8"),
    ({"shape": [2**30] * 8}, "takes"),
    ({"data_offsets": [0]}, "must be two whole numbers"),
    ({"data_offsets": [-1, 2]}, "must be two whole numbers"),
    ({"data_offsets": [0.0, 2]}, "must be two whole numbers"),
    ({"more": 1}, "must have exactly the keys"),
]


@pytest.mark.parametrize(("change", "words"), HEADERS)
def test_headers_that_say_something_wrong(saved, change, words):
    parts = take_apart(saved[2].read_bytes())

    def changed(header):
        header["sample"].update(change)
        return header

    refuses(saved[2], put_together(parts, changed), words)


def test_tensors_that_overlap_or_leave_gaps(saved):
    parts = take_apart(saved[2].read_bytes())
    for shift in (-1, 1, 10_000):

        def moved(header, shift=shift):
            offsets = header["neuron2.sign"]["data_offsets"]
            header["neuron2.sign"]["data_offsets"] = [x + shift for x in offsets]
            return header

        refuses(saved[2], put_together(parts, moved), "behind the tensor before it")


@pytest.mark.parametrize(
    ("version", "producer"), [("3", "spquant_plugin 9.1"), ("0", "old"), ("", "x"), ("1.0", "x")]
)
def test_another_version_says_what_to_do(saved, version, producer):
    def change(parts):
        parts.metadata.update(version=version, producer=producer, extra="what version 3 knows")

    edit(saved[2], change)
    with pytest.raises(errors.FormatError) as caught:
        load_graph(saved[2])
    message = str(caught.value)
    assert f"version {version!r} of the format, written by {producer!r}" in message
    assert "versions 1 and 2 are read here. Update spquant_plugin to read a newer one" in message


def node(parts, name):
    return next(node for node in parts.network["graph"]["nodes"] if node["name"] == name)


def retyped(parts):
    parts.tensors["neuron2.outcomes"][:2] = ["I8", [len(parts.tensors["neuron2.outcomes"][2])]]


EDITS = [
    (
        lambda p: p.metadata.update(format="gguf"),
        "format 'gguf': must be 'spquant integer network'",
    ),
    (lambda p: p.metadata.pop("format"), "format None: must be"),
    (lambda p: p.metadata.update(more="x"), "__metadata__: 'more' is not known"),
    (lambda p: p.metadata.pop("producer"), "__metadata__: 'producer' is missing"),
    (lambda p: p.network.pop("rules"), "network: 'rules' is missing"),
    (lambda p: p.network["rules"].update(ties="A sum must exceed a break."), "rules: are not"),
    (lambda p: p.network["widths"]["state"].update(neuron2=4), "widths: are not those"),
    (lambda p: p.network["reference"].update(spikes="0" * 63 + "G"), "64 hexadecimal digits"),
    (lambda p: p.network["reference"].update(readout=None), "64 hexadecimal digits"),
    (lambda p: p.network.update(graph=[]), "graph = []: must be a JSON object"),
    (lambda p: p.network["graph"].update(nodes={}), "graph.nodes = {}: must be a list"),
    (
        lambda p: p.network["graph"]["nodes"].insert(0, 3),
        "graph.nodes.0 = 3: must be a JSON object",
    ),
    (lambda p: node(p, "conv1").update(kind="Conv"), "must be one of Input, Convolution"),
    (lambda p: node(p, "conv1").update(kind=[]), "must be one of Input, Convolution"),
    (lambda p: node(p, "conv1").pop("stride"), "conv1: 'stride' is missing"),
    (lambda p: node(p, "conv1").update(bias=0), "conv1: 'bias' is not known"),
    (lambda p: node(p, "conv1").update(low=1.5), "conv1.low = 1.5: must be int"),
    (lambda p: node(p, "conv1").update(low=True), "conv1.low = True: must be int"),
    (lambda p: node(p, "neuron2").update(remembers=0), "neuron2.remembers = 0: must be bool"),
    (lambda p: node(p, "neuron2").update(semantics={"a": 1}), "must be a JSON object of text"),
    (lambda p: node(p, "neuron2").update(gate=7), "neuron2.gate = 7: must be str"),
    (lambda p: node(p, "conv1")["weight"].update(packing="zip"), "a packing of whole numbers"),
    (lambda p: node(p, "conv1")["weight"].update(packing=[]), "a packing of whole numbers"),
    (
        lambda p: node(p, "conv1")["weight"].update(lowest=1),
        "conv1.weight.lowest = 1: must be -1 of",
    ),
    (lambda p: node(p, "conv1")["weight"].update(shape=3), "a list of at most 8 numbers"),
    (lambda p: node(p, "conv1")["weight"].update(shape=[-1]), "whole numbers of at least 1"),
    (lambda p: node(p, "conv1")["weight"].update(shape=[2**31 - 1] * 8), "is I8 of shape"),
    (lambda p: node(p, "conv3")["weight"].update(shape=[9, 3, 3, 3]), "trits of shape"),
    (lambda p: node(p, "conv1").update(name="x"), "'x.weight': no tensor of this name"),
    (lambda p: p.tensors.update(more=["U8", [1], b"1"]), "'more': a tensor that the network does"),
    (retyped, "'neuron2.outcomes': is I8 of shape"),
    (
        lambda p: p.tensors["conv3.weight"][2].__setitem__(0, 243),
        "'conv3.weight': holds a byte of 243",
    ),
    (lambda p: p.tensors["conv3.weight"][2].__setitem__(-1, 200), "digits behind the last number"),
    (lambda p: p.tensors["sample"][2].__setitem__(-1, 255), "must be from 0 to 1"),
    (lambda p: p.network["sample"].update(lowest=-(2**40)), "must fit torch.int32"),
    (lambda p: p.network["sample"].update(shape=[3, 2, 32]), "a tensor of torch.int32 of shape"),
    (lambda p: p.network["graph"].update(repeats=10**9), "repeats = 1000000000: must be"),
    (
        lambda p: p.network["graph"]["outputs"][0].update(steps=[["multiply", True]]),
        "must be str or",
    ),
    (lambda p: p.network["graph"]["outputs"][0]["unit"].update(packing="int8"), "one of float16"),
]


@pytest.mark.parametrize(("change", "words"), EDITS, ids=[words for _, words in EDITS])
def test_files_that_break_a_rule_under_a_repaired_checksum(saved, change, words):
    parts = take_apart(saved[2].read_bytes())
    if "0 to 1" in words:  # 2 bits where 1 was
        parts.network["sample"]["packing"] = "2 bit"
        parts.tensors["sample"] = ["U8", [48], bytearray(48)]
    change(parts)
    refuses(saved[2], put_together(parts), words)


def test_bits_behind_the_last_number(tmp_path):
    graph = Builder(0, (3,))
    graph.dense(graph.nodes[0], 2)
    save_graph(graph.graph(), random_input(graph.graph(), 1, 1), tmp_path / "net")
    parts = take_apart((tmp_path / "net").read_bytes())
    parts.tensors["sample"][2][-1] |= 8
    refuses(tmp_path / "net", put_together(parts), "holds bits behind the last number")
