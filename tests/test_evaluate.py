"""The script that measures a trained network: every row against a loop of its own."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.analysis import clipping
from spquant_plugin.errors import CheckpointError

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULES = ("evaluate", "evaluate_row", "evaluate_switches")
STEPS = 4
OPTIONS = {"level": "easy", "count": 64, "cache": False}
GATED = dataclasses.replace(
    spq.presets.spquant_snn(weight_bits=4), overrides={"neuron4": spq.presets.spquant_snn(4)}
)
CONFIGS = {
    "fp": ("spikingjelly", None),
    "quant": ("spikingjelly", spq.presets.quant_snn(weight_bits=4)),
    "spquant": ("spikingjelly", GATED),
    "snntorch": ("snntorch", spq.presets.quant_snn(weight_bits=4)),
    "weights": ("spikingjelly", spq.SpQuantConfig(weights=spq.PowerOfTwoWeights(2))),
    "mlp": ("spikingjelly", spq.presets.quant_snn(weight_bits=4)),
}


def imported(name: str):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def evaluate():
    yield imported("evaluate")
    for name in list(sys.modules):
        if name in MODULES or name.partition(".")[0] == "trainer":
            del sys.modules[name]


@pytest.fixture(scope="module")
def files(evaluate, tmp_path_factory) -> dict[str, Path]:
    """Trained networks, as train.py writes them."""
    folder = tmp_path_factory.mktemp("runs")
    return {stage: train(stage, folder / f"{stage}-best.pt") for stage in CONFIGS}


def frames_of(split: str) -> tuple[Tensor, Tensor]:
    """A whole split: frames ``[T, N, ...]`` and labels."""
    data = spq.data.Motion(split, steps=STEPS, **OPTIONS)
    return data.frames.float().transpose(0, 1), data.labels


def outputs(net: nn.Module, frames: Tensor) -> Tensor:
    spq.reset(net)
    if any(getattr(module, "step_mode", "s") == "m" for module in net.modules()):
        return net(frames)
    return torch.stack([net(frame) for frame in frames])


def train(stage: str, path: Path) -> Path:
    torch.manual_seed(0)
    host, config = CONFIGS[stage]
    name = "mlp" if stage == "mlp" else "vgg5" if host == "spikingjelly" else "conv_net"
    network = {"name": name, "in_channels": 1, "num_classes": 4, "width": 0.125, "host": host}
    net = spq.models.create(size=16, **network)
    frames, labels = frames_of("train")
    if config is not None:
        net = spq.convert(net, config, sample=frames[:, :1] if host[1] == "p" else frames[0, :1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    gates = spq.GateSchedule(net, 0.3, steps=99, warmup=2) if stage == "spquant" else None
    for _ in range(0 if stage in ("weights", "mlp") else 15):
        loss = nn.functional.cross_entropy(outputs(net, frames).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if gates is not None:
            gates.step()
    if stage != "mlp":
        spq.calibrate(net, [frames], forward=outputs)
    imported("trainer.files").save_network(
        path,
        net.state_dict(),
        network={**network, "size": [16, 16]},
        config=config,
        data={"name": "motion", "steps": STEPS, "size": None, "seed": 0, "options": OPTIONS},
        stage=stage,
        epoch=12,
        accuracy=0.5,
    )
    return path


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    frames, labels = frames_of("test")
    return float((outputs(net.eval(), frames).mean(0).argmax(1) == labels).float().mean())


def rebuilt(path: Path) -> nn.Module:
    files = imported("trainer.files")
    return files.rebuild(files.read_network(path))


def measured(evaluate, capsys, tmp_path, *argv: object) -> dict[str, dict]:
    """Rows by name, as the JSON file has them."""
    file = tmp_path / "measured.json"
    status = evaluate.main([*map(str, argv), "--json", str(file), "--batch", "24"])
    told = capsys.readouterr()
    assert status == 0, told.err
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    for name, row in rows.items():
        assert f"{name}" in told.out
        assert f"{100 * row['accuracy']:.2f} %" in told.out
    return rows


@pytest.mark.parametrize("stage", ["fp", "quant", "spquant", "snntorch"])
def test_the_network_as_it_is_has_the_accuracy_of_a_plain_loop(
    evaluate, files, capsys, tmp_path, stage
):
    rows = measured(evaluate, capsys, tmp_path, files[stage])
    row, net = rows["as it was trained"], rebuilt(files[stage])
    assert list(rows) == ["as it was trained"]
    assert row["accuracy"] == pytest.approx(accuracy(net))
    assert row["accuracy"] > 0.3  # it has learned something: a quarter is chance
    assert 0 < row["firing_rate"] < 1
    frames, _ = frames_of("test")
    timesteps = STEPS if stage == "snntorch" else None
    report = spq.analyze(net, frames[:, :24], timesteps=timesteps)
    assert row["membrane_bytes"] == report.memory.membrane_bytes
    assert row["total_bytes"] == report.memory.total_bytes
    with torch.no_grad():
        outputs(net, frames)
    closed = list(spq.gate_stats(net).values())
    if closed:
        assert row["channels_closed"] == pytest.approx(sum(closed) / len(closed))
        assert row["channels_closed"] > 0.1
    else:
        assert row["channels_closed"] is None


def test_every_switch_changes_what_it_says_and_one_row_has_all(evaluate, files, capsys, tmp_path):
    switches = ("--membrane", "binary", "--no-spatial-gates", "--no-channel-gates")
    rows = measured(evaluate, capsys, tmp_path, files["spquant"], *switches, "--calibrate", 2)
    names = ["binary membranes", "no spatial gates", "no channel gates", "calibrated on 2 batches"]
    assert list(rows) == ["as it was trained", *names, "all of these"]

    opened = rebuilt(files["spquant"])  # gates that never close anything
    for gate in opened.modules():
        if isinstance(gate, spq.modules.ChannelGate):
            nn.init.constant_(gate.bias, 1e3)
    assert rows["no channel gates"]["accuracy"] == pytest.approx(accuracy(opened))
    assert rows["no channel gates"]["channels_closed"] is None
    unmasked = rebuilt(files["spquant"])
    for gate in unmasked.modules():
        if isinstance(gate, spq.modules.SpatialGate):
            gate.rule = dataclasses.replace(gate.rule, sparsity=1e-6)
    assert rows["no spatial gates"]["accuracy"] == pytest.approx(accuracy(unmasked))

    calibrated = rebuilt(files["spquant"])
    data = spq.data.Motion("train", steps=STEPS, **OPTIONS)
    batches = list(spq.data.loader(data, 24, shuffle=True, seed=0))
    spq.calibrate(calibrated, [frames for frames, _ in batches[:2]])
    assert rows["calibrated on 2 batches"]["accuracy"] == pytest.approx(accuracy(calibrated))
    assert rows["all of these"]["channels_closed"] is None
    assert rows["binary membranes"]["membrane_bytes"] < rows["as it was trained"]["membrane_bytes"]


def test_switched_off_gates_are_gone_and_nothing_else(evaluate, files):
    switches, saved = imported("evaluate_switches"), evaluate.read_network(files["spquant"])
    whole = rebuilt(files["spquant"])
    for off, kept in (("channel_gates", "spatial"), ("spatial_gates", "channel")):
        net = switches.changed(saved, switches.Change("", **{off: False}), ())
        has = {
            "channel": any(isinstance(m, spq.modules.ChannelGate) for m in net.modules()),
            "spatial": any(isinstance(m, spq.modules.SpatialGate) for m in net.modules()),
        }
        assert has == {kind: kind == kept for kind in has}
        left, state = net.state_dict(), whole.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in left.items())
        gone = {key for key in state if ".channel_gate." in key} if kept == "spatial" else set()
        assert set(state) - set(left) == gone
        assert gone or kept == "channel"


def test_a_state_with_a_key_too_many_is_refused(evaluate, files):
    switches, saved = imported("evaluate_switches"), evaluate.read_network(files["spquant"])
    saved["state"]["conv1.gate"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "conv1.gate"'):
        switches.changed(saved, switches.Change("", channel_gates=False), ())


def test_a_change_is_made_on_the_device_that_calibrates(evaluate, files):
    switches = imported("evaluate_switches")
    saved = imported("trainer.files").read_network(files["spquant"])
    net = switches.changed(saved, switches.Change("none"), (), torch.device("meta"))
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}


def test_binary_membranes_store_nothing_below_zero(evaluate, files):
    switches, saved = imported("evaluate_switches"), evaluate.read_network(files["spquant"])
    net = switches.changed(saved, switches.Change("", membrane="binary"), ())
    frames, _ = frames_of("test")
    rows = spq.analyze(net, frames[:, :24]).sparsity.layers
    assert {row.levels for row in rows if row.levels} == {(0, 1)}


def test_clipped_rows_are_those_of_the_network_without_gates(evaluate, files, capsys, tmp_path):
    off = ("--no-spatial-gates", "--no-channel-gates")
    rows = measured(evaluate, capsys, tmp_path, files["spquant"], *off, "--clip", -0.5, -1.5)
    switches, saved = imported("evaluate_switches"), evaluate.read_network(files["spquant"])
    change = switches.Change("", spatial_gates=False, channel_gates=False)
    net, data = switches.changed(saved, change, ()), spq.data.Motion("test", steps=STEPS, **OPTIONS)
    report = clipping.sweep_bounds(net, spq.data.loader(data, 64), [-0.5, -1.5], progress=False)
    for bound in (-0.5, -1.5):
        row = rows[f"without gates, membranes clipped at {bound:g}"]
        assert row["accuracy"] == pytest.approx(report[bound].accuracy)
        assert row["clipped"] == pytest.approx(report[bound].clipped)
    assert report[-0.5].clipped > 0


@pytest.mark.parametrize("stage", ["fp", "snntorch"])
def test_networks_without_gates_are_clipped_as_they_are(evaluate, files, capsys, tmp_path, stage):
    rows = measured(evaluate, capsys, tmp_path, files[stage], "--clip", -0.25)
    assert rows["membranes clipped at -0.25"]["clipped"] > 0


@pytest.fixture
def uncompiled(monkeypatch):
    """Integer networks that run at once; the compiled ones give the same and take long to build."""
    monkeypatch.setattr(spq, "to_integer", partial(spq.to_integer, engine="torch"))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("stage", ["spquant", "snntorch"])
def test_the_integer_network_is_equal_and_as_accurate(evaluate, files, capsys, tmp_path, stage):
    rows = measured(evaluate, capsys, tmp_path, files[stage], "--integer", "--device", "cpu")
    assert rows["integer network"]["exact"] is True
    assert rows["integer network"]["accuracy"] == rows["as it was trained"]["accuracy"]


@pytest.mark.usefixtures("uncompiled")
def test_an_integer_network_that_differs_is_told_by_the_status(
    evaluate, files, monkeypatch, capsys
):
    verify = spq.verify

    def other(net, model, frames):
        check = spq.deploy.LayerCheck("neuron1", 1, 1, None, 0.5)
        return spq.Verification((check,), verify(net, model, frames).outputs, 1)

    monkeypatch.setattr(spq, "verify", other)
    assert evaluate.main([str(files["quant"]), "--integer"]) == 1
    assert "integer network, NOT equal to the model" in capsys.readouterr().out


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("fp", ["--membrane", "binary"], "the network is of stage fp, in full precision: must"),
        ("fp", ["--integer"], "--integer: the network is of stage fp, in full precision"),
        ("weights", ["--membrane", "binary"], "the network stores its membranes in float: must"),
        ("quant", ["--membrane", "ternary"], "the network stores ternary membranes already"),
        ("quant", ["--membrane", "binarry"], "one of binary, ternary. Did you mean 'binary'?"),
        ("quant", ["--no-spatial-gates"], "stage quant and has no spatial gates: must have some"),
        ("fp", ["--no-channel-gates"], "stage fp and has no channel gates: must have some"),
        ("spquant", ["--clip", "-1"], "--clip with a gated network: gates read what neurons store"),
        ("spquant", ["--clip", "-1", "--no-channel-gates"], "there must be none. Add --no-spatial"),
        ("quant", ["--clip", "1"], "bounds hold 1.0: each must be a finite number below 0"),
        ("mlp", ["--calibrate", "1"], "--calibrate: mlp has no batch norm: must have statistics"),
        ("quant", ["--calibrate", "0"], "--calibrate 0: must be a whole number from 1 on"),
        ("quant", ["--batch", "0"], "--batch 0: must be a whole number from 1 on"),
        ("quant", ["--split", "tests"], "--split tests: must be one of train, validation, test."),
        ("quant", ["--device", "tpu"], "--device tpu: must be one of auto, cpu, cuda"),
        ("quant", ["--root", "/tmp"], "comes with the package and is read from no folder"),
        ("quant", ["--json", "/nowhere/at/all.json"], "the folder /nowhere/at must exist. Make it"),
        ("quant", ["--json", "."], "--json .: is a folder: must be a file to write"),
        ("quant", ["--clib", "-1"], "unrecognized arguments: --clib -1. Run with --help"),
    ],
)
def test_what_cannot_be_measured_is_one_line(evaluate, files, capsys, stage, argv, message):
    assert evaluate.main([str(files[stage]), *argv]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("evaluate.py: ")
    assert message in told.err
    assert not told.out


def test_a_missing_or_foreign_file_is_one_line(evaluate, tmp_path, capsys):
    assert evaluate.main([str(tmp_path / "quant-best.pt")]) == 2
    assert "quant-best.pt: there is no such file" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("hello")
    assert evaluate.main([str(tmp_path / "text.pt")]) == 2
    assert "text.pt: cannot be read" in capsys.readouterr().err
    for held, told in (
        (torch.zeros(2), "one Tensor"),
        (3, "one int"),
        ([1], "one list"),
        ({}, "nothing"),
        ({"a": 1}, "the keys a"),
        ({"format": torch.zeros(2)}, "is of format tensor"),
    ):
        torch.save(held, tmp_path / "other.pt")
        assert evaluate.main([str(tmp_path / "other.pt")]) == 2
        assert re.search(f"other.pt: .*{told}", capsys.readouterr().err)


def test_data_of_another_size_are_refused(evaluate, files, tmp_path, capsys):
    held = torch.load(files["quant"], weights_only=True)
    held["data"]["size"] = 20
    torch.save(held, tmp_path / "other.pt")
    assert evaluate.main([str(tmp_path / "other.pt")]) == 2
    told = capsys.readouterr().err
    assert "64 recordings with (channels, height, width, classes) (1, 20, 20, 4)" in told
    assert "must be at least one, with (1, 16, 16, 4), as the network was made for" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_line(evaluate, files, capsys):
    assert evaluate.main([str(files["quant"]), "--device", "cuda"]) == 2
    assert "--device cuda: torch must find a GPU, and finds none" in capsys.readouterr().err
