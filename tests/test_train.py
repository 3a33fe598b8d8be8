"""The training script: its stages, what it writes, and what it refuses before it starts."""

from __future__ import annotations

import json
import math
import random
import re
import resource
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data.generated_images import imagenet as write_imagenet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

import spquant_plugin as spq
from spquant_plugin.errors import CheckpointError, GateWarning, SpQuantError

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = (
    *("--model", "vgg5", "--width", "0.125", "--data", "motion", "--timesteps", "3"),
    *("--data-option", "count=32", "--data-option", "level=easy", "--batch", "16"),
    *("--epochs", "1", "--calibration-batches", "1"),
)
SIZE = [16, 16]
NETWORK = {"name": "vgg5", "host": "spikingjelly", "in_channels": 1, "size": SIZE}
NETWORK |= {"num_classes": 4, "width": 0.125}
DATA = {"name": "motion", "steps": 3, "size": None, "seed": 0, "options": {}}


@pytest.fixture(scope="module")
def examples():
    """The script's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        names = ("average", "checkpoint", "evaluation", "files", "meter", "options", "processes")
        names += (
            "checks",
            "metrics",
            "problems",
            "recipe",
            "running",
            "stages",
            "stepping",
            "tasks",
        )
        found = {name: import_module(f"trainer.{name}") for name in names}
        yield SimpleNamespace(train=import_module("train"), **found)


@pytest.fixture(scope="module")
def trained(examples, tmp_path_factory):
    """One run through all stages, and what it printed of each."""
    folder = tmp_path_factory.mktemp("trained")
    stages = ("--stages", "fp,quant,spquant,adaptive", "--log-every", "1", "--ema", "0.5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateWarning)  # four channels, two steps
        assert examples.train.main([*TINY, *stages, "--out", str(folder)]) == 0
    return folder


def processes_of(examples, others=(), rank=0):
    """One process, which hears of others what is given here, or else that they are as it is."""

    class Told(examples.processes.Processes):
        def agree(self, value):
            return [*others, value] if rank else [value, *others]

    return Told(rank, 0, 1, torch.device("cpu"))


def refused(examples, capsys, *options) -> str:
    assert examples.train.main([*TINY, *map(str, options)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("train.py: ")
    assert message.count("\n") == 1
    return message


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vg5"], r"create\('vg5'\).*'vgg5'"),
        (["--model", "resnet19", "--host", "snntorch"], "pass host='spikingjelly'"),
        (["--host", "snntorsh"], "host = 'snntorsh'.*'snntorch'"),
        (["--data", "motoin"], "--data motoin: must be one of .*Did you mean 'motion'"),
        (["--preset", "spqant_snn"], "--preset spqant_snn: .*Did you mean 'spquant_snn'"),
        (["--stages", "fp,qant"], "--stages qant: .*Did you mean 'quant'"),
        (["--stages", "quant,fp"], "--stages quant,fp: must be in the order fp,quant,spquant"),
        (["--loss", "tett"], "--loss tett: must be one of tet, mean. Did you mean 'tet'"),
        (["--optimizer", "adan"], "Did you mean 'adam'"),
        (["--amp", "half"], "--amp half: must be one of off, bf16, fp16"),
        (["--amp", "fp16", "--device", "cpu"], "--amp fp16: must run on a GPU.*bf16"),
        (["--epochs", "1,2"], "--epochs 1,2: .*one for each of the 3 stages"),
        (["--epochs", "x"], "argument --epochs: invalid list of whole numbers value: 'x'"),
        (["--batch", "10", "--accumulate", "4"], "multiple of 4, .*Nearest: 8 or 12"),
        (["--batch", "64"], "--batch 64: must be at most 32, the number of training"),
        (["--batch", "0"], "--batch 0: must be a whole number from 1 on"),
        (["--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--closed", "1"], "--closed 1.0: must be at least 0 and below 1"),
        (["--seed", "-1"], "--seed -1: must be 0 or above"),
        (["--size", "8,8,8"], "--size 8,8,8: must be one number above 0, or height,width"),
        (["--augment"], "--augment with --data motion: flipping .*dvs-cifar10"),
        (["--preset", "tawq", "--weight-bits", "4"], "its weights are ternary"),
        (["--weight-bits", "9"], r"quant_snn\(weight_bits=9\): must be a whole number from 2"),
        (["--preset", "md_snn", "--stages", "quant"], "must have a teacher"),
        (["--preset", "tawq", "--stages", "fp,spquant"], "--stages spquant with --preset tawq: mu"),
        (["--stages", "fp,spquant", "--max-steps", "1"], r"--stages spquant .*steps=1"),
        (["--data-option", "cuont=3"], "motion takes no such option.*Did you mean 'count'"),
        (["--data-option", "count"], "'count' must be KEY=VALUE"),
        (["--data", "cifar10", "--data-option", "count=3"], "cifar10 takes no such option"),
        (["--data-option", "seed=1"], "--data-option seed=1: must be given by .*Pass --seed inst"),
        (["--data-option", "steps=5"], "Pass --timesteps instead"),
        (["--data-option", "name=digits"], "Pass --data instead"),
        (["--data-option", "split=test"], "--data-option split=test: must not be given"),
        (["--data", "imagenet", "--data-option", "crop=random"], "crop=random: .*Pass --augment"),
        (["--colour"], "unrecognized arguments: --colour. Run with --help"),
        (["--init", "nowhere.pt"], "nowhere.pt: there is no such file"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(examples, capsys, tmp_path, options, message):
    out = tmp_path / "new"
    text = refused(examples, capsys, *options, "--out", out)
    assert re.search(message, text), text
    assert not out.exists()


def test_a_gpu_that_is_not_there_is_refused(examples, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = refused(examples, capsys, "--device", "cuda", "--out", tmp_path / "new")
    assert "--device cuda: torch must find a GPU" in text


def test_more_processes_than_gpus_are_refused(examples, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    text = refused(examples, capsys, "--out", tmp_path / "new")
    assert "4 processes on a machine of 2 GPUs: " in text
    assert "--nproc-per-node 2" in text


def test_tensorboard_that_is_not_installed_is_refused(examples, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.checks.find_spec", lambda name: None)
    text = refused(examples, capsys, "--tensorboard", "--out", tmp_path / "new")
    assert "python -m pip install tensorboard" in text


def test_a_folder_that_cannot_be_written_is_refused(examples, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    text = refused(examples, capsys, "--out", tmp_path / "file" / "run")
    assert "cannot be written" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_is_not_shared_is_refused(examples, tmp_path, monkeypatch, rank):
    monkeypatch.setattr(examples.checkpoint, "PATIENCE", 0)
    options = SimpleNamespace(out=tmp_path / "new", resume=True)
    with pytest.raises(SpQuantError, match="every process must see the same folder"):
        examples.checkpoint.look(options, processes_of(examples, [{"lr": 1}], rank))
    assert not options.out.exists()
    monkeypatch.setattr(examples.checkpoint, "look", lambda *_: False)
    with pytest.raises(SpQuantError, match="every process must see the same folder"):
        examples.checkpoint.begin(options, processes_of(examples, [False], rank))
    assert options.out.exists() == (rank == 0)


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(
    examples, capsys, trained, monkeypatch
):
    monkeypatch.setattr(examples.train, "load", None)  # it is said before the data are prepared
    stages = ("--stages", "fp,quant,spquant,adaptive", "--log-every", "1", "--ema", "0.5")
    text = refused(examples, capsys, *stages, "--out", trained)
    assert "holds a run already, which must not be overwritten. Pass --resume" in text
    text = refused(examples, capsys, *stages, "--lr", "0.5", "--out", trained, "--resume")
    assert "Changed: --lr 0.5 for 0.001." in text


def test_a_finished_run_prints_its_table_again(examples, capsys, trained):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    stages = ("--stages", "fp,quant,spquant,adaptive", "--log-every", "1", "--ema", "0.5")
    free = ("--workers", "1", "--save-every", "3", "--data-option", "cache=false")
    assert examples.train.main([*TINY, *stages, *free, "--out", str(trained), "--resume"]) == 0
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0].split()[::2] == ["stage", "validation", "test", "closed"]
    assert [line.split()[0] for line in table[1:]] == ["fp", "quant", "spquant", "adaptive"]
    assert before == {path: path.read_bytes() for path in trained.iterdir()}


# --- what it writes -----------------------------------------------------------------------------


def test_the_measurements_of_a_run(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    per_stage = ["step", "step", "train", "validation", "test"]
    assert [line["split"] for line in lines] == per_stage * 4
    assert [line["stage"] for line in lines[::5]] == ["fp", "quant", "spquant", "adaptive"]
    assert [line["lr"] for line in lines[:2]] == [1e-3, 5e-4]
    steps, train = lines[:2], lines[2]
    for name in ("loss", "accuracy"):
        assert train[name] == pytest.approx(sum(line[name] for line in steps) / 2)
    assert train["timing"].keys() == {"seconds", "frames_per_second"}
    assert not any("timing" in line for line in lines if line["split"] != "train")
    assert all((line["closed"] is None) == (line["stage"] in ("fp", "quant")) for line in lines)


def test_a_run_that_goes_on_cuts_what_it_repeats(examples, tmp_path):
    """Killed before its first checkpoint, then twice after one at step 2."""
    length = 0
    for step, written in ((0, (1, 2)), (0, (1, 2, 3)), (2, (3, 4)), (2, (3, 4, 5))):
        with examples.metrics.Metrics(
            tmp_path, writes=True, tensorboard=True, length=length if step else 0, step=step
        ) as metrics:
            assert metrics.length() == (length if step else 0)
            for number in written:
                metrics.write({"split": "step", "loss": number / 2, "step": number}, number)
                length = metrics.length() if number == 2 else length
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        (number, number / 2) for number in range(1, 6)
    ]


@pytest.mark.parametrize("stage", ["fp", "quant", "spquant", "adaptive"])
def test_a_network_file_gives_the_network_that_was_measured(examples, trained, stage):
    files = examples.files
    saved = files.read_network(trained / f"{stage}-best.pt")
    net = files.rebuild(saved)
    assert not net.training
    data = spq.data.create(
        saved["data"]["name"], "validation", steps=3, seed=0, **saved["data"]["options"]
    )
    frames, labels = next(iter(spq.data.loader(data, batch_size=32)))
    with torch.no_grad():
        answers = examples.running.Sequence(net)(frames).mean(0).argmax(1)
    assert (answers == labels).double().mean().item() == saved["accuracy"]
    config = None if saved["config"] is None else spq.SpQuantConfig.from_dict(saved["config"])
    assert (config is None) == (stage == "fp")
    if config is not None:
        assert (config.channel_gate is not None) == (stage in ("spquant", "adaptive"))
        assert (config.threshold is not None) == (stage == "adaptive")


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_all_that_training_can_do_at_once(examples, tmp_path, capsys, host):
    """Distillation in mixed precision, in parts, clipped, averaged, calibrated anew."""
    options = ("--preset", "md_snn", "--weight-bits", "2", "--host", host, "--amp", "bf16")
    options += ("--accumulate", "2", "--clip-gradient", "1", "--ema", "0.9", "--recalibrate")
    options += ("--max-steps", "2", "--tensorboard", "--optimizer", "adamw", "--workers", "1")
    options += ("--loss", "mean", "--weight-decay", "0.01", "--warmup", "1", "--deterministic")
    assert examples.train.main([*TINY, *options, "--out", str(tmp_path / "run")]) == 0
    source = "quant: starts from the network of fp, converted and calibrated"
    assert source in capsys.readouterr().out
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert not torch.are_deterministic_algorithms_enabled()
    saved = examples.files.read_network(tmp_path / "run" / "quant-best.pt")
    assert saved["config"]["membrane"]["bits"] == 2


@pytest.mark.parametrize("kind", ["network file", "state dict"])
def test_a_stage_starts_from_a_file(examples, tmp_path, capsys, trained, kind):
    path = trained / "fp-best.pt"
    if kind == "state dict":
        state = torch.load(path)["state"]
        path = tmp_path / "float.pt"
        torch.save(state, path)
    options = ("--stages", "quant", "--init", path, "--max-steps", 1, "--out", tmp_path / "run")
    assert examples.train.main([*TINY, *map(str, options)]) == 0
    assert "converted and calibrated" in capsys.readouterr().out


def test_a_quantised_file_gains_gates_and_keeps_the_rest(examples, tmp_path, capsys, trained):
    options = ("--stages", "spquant", "--init", trained / "quant-best.pt", "--epochs", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateWarning)
        arguments = [*TINY, *map(str, options), "--lr", "1e-12", "--out", str(tmp_path)]
        assert examples.train.main(arguments) == 0
    assert "the network of quant; new are 6 keys (conv2.channel_gate.weight" in (
        capsys.readouterr().out
    )
    before, after = (
        torch.load(path)["state"]
        for path in (trained / "quant-best.pt", tmp_path / "spquant-last.pt")
    )
    for key in before:
        if key.endswith((".weight", ".bias", "membrane_unit")):
            assert torch.allclose(before[key], after[key], atol=1e-6), key


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("quant-best.pt", ["--stages", "fp,quant"], "must be a network in full precision"),
        ("quant-best.pt", ["--preset", "md_snn", "--stages", "quant"], "the teacher of md_snn"),
        ("adaptive-best.pt", ["--stages", "quant"], "which holds .*every key must have a place"),
        ("fp-best.pt", ["--stages", "quant", "--width", "0.25"], "width 0.125 for 0.25"),
        ("checkpoint.pt", ["--stages", "quant"], "'network' is NoneType: must be dict"),
        ("metrics.jsonl", ["--stages", "quant"], "cannot be read"),
        ("fp-best.pt", ["--seed", "1"], "was trained with --seed 0, and this run has --seed 1"),
        ("renamed.pt", ["--stages", "quant"], "missing: conv1.weight; unexpected: conv1.wait"),
        ("tensor.pt", ["--stages", "quant"], r"tensor\.pt: holds one Tensor: must be a network"),
        (
            "nested.pt",
            ["--stages", "quant"],
            r"nested\.pt: state_dict\['model'\] = dict: every",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    examples, capsys, tmp_path, trained, file, options, message
):
    path = trained / file
    if not path.exists():
        state = torch.load(trained / "fp-best.pt")["state"]
        renamed = {key.replace("conv1.weight", "conv1.wait"): v for key, v in state.items()}
        held = {"renamed": renamed, "tensor": torch.zeros(2), "nested": {"model": state}}
        path = tmp_path / file
        torch.save(held[path.stem], path)
    text = refused(examples, capsys, *options, "--init", path, "--out", tmp_path / "new")
    assert re.search(message, text), text


def test_a_loss_that_is_not_finite_ends_the_run(examples, capsys, tmp_path):
    options = ("--stages", "fp", "--lr", "1e30", "--log-every", "1", "--out", tmp_path / "run")
    text = refused(examples, capsys, *options)
    assert re.search("the loss is (nan|inf): must be finite", text)


def test_a_damaged_run_is_refused(examples, capsys, tmp_path):
    (tmp_path / "options.json").write_text("{")
    text = refused(examples, capsys, "--out", tmp_path, "--resume")
    assert "must be the JSON that a run wrote" in text
    (tmp_path / "options.json").write_text("[]")
    assert "it holds one list" in refused(examples, capsys, "--out", tmp_path, "--resume")
    (tmp_path / "dir" / "options.json").mkdir(parents=True)
    text = refused(examples, capsys, "--out", tmp_path / "dir")
    assert "its options.json cannot be read" in text
    torch.save({"format": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"must be a checkpoint of train\.py"):
        examples.checkpoint.read(tmp_path / "checkpoint.pt")


# --- the data -----------------------------------------------------------------------------------


def test_the_training_images_of_imagenet_alone_are_cropped_at_random(examples, tmp_path):
    write_imagenet(tmp_path, per_class=5)
    arguments = ["--model", "vgg5", "--data", "imagenet", "--root", str(tmp_path), "--size", "16"]
    arguments += ["--augment", "--batch", "4", "--out", "unused", "--data-option", "cache=false"]
    options = examples.checks.check(examples.options.parse(arguments), 1)
    task = examples.tasks.load(options, processes_of(examples))
    assert [data.crop for data in task.splits.values()] == ["random", "center", "center"]
    assert task.record["options"] == {}
    for frames in (task.calibration, lambda: (f for f, _ in task.training(epoch=1))):
        first, again = (torch.cat(list(frames()), dim=1) for _ in range(2))
        assert torch.equal(first, again)
    assert not torch.equal(next(iter(task.training(0)))[0], next(iter(task.training(1)))[0])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ([0, 0, 1], "Process 0 found 3 train; process 1 found 2 train"),
        ([0, 1], "Process 0 found 2 train; process 1 found as many, but other ones"),
        ([0, 0], None),
    ],
)
def test_processes_must_find_the_same_recordings(examples, theirs, message):
    own, other = (TensorDataset(torch.tensor(labels)) for labels in ([0, 0], theirs))
    own.labels, other.labels = own.tensors[0], other.tensors[0]
    found = {"train": (len(other), examples.tasks.checksum(other))}
    check = partial(
        examples.tasks.check_same,
        SimpleNamespace(data="motion"),
        processes_of(examples, [found], rank=1),
        {"train": own},
    )
    if message is None:
        check()
    else:
        with pytest.raises(SpQuantError, match=message):
            check()


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_shares_than_those_of_the_file_are_refused(examples, name):
    shared = DATA | {"options": {name: 0.2, "cache": False}}
    check = partial(examples.stages.check_splits, Path("fp-best.pt"))
    check(shared, shared | {"options": {name: 0.2}})
    check(shared, DATA | {"name": "digits", "seed": 1})
    with pytest.raises(SpQuantError, match=f"{name}=0.2, and this run has no .*{name}"):
        check(shared, DATA)


# --- the parts ----------------------------------------------------------------------------------


def test_the_tet_loss_by_hand(examples):
    outputs = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two steps, one recording
    answers = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    held = ((1 + 1) / 2 + (1 + 0) / 2) / 2
    found = examples.recipe.tet_loss(outputs, torch.tensor([0]), beta=0.45)
    assert found.item() == pytest.approx(0.55 * answers + 0.45 * held)


@pytest.mark.parametrize(("model", "beta"), [("vgg9", 0.45), ("resnet19", 0.9)])
def test_the_regulariser_weighs_what_the_paper_says(examples, model, beta):
    check = import_module("trainer.checks").check
    options = check(
        examples.options.parse(["--model", model, "--data", "cifar10", "--out", "x"]), 1
    )
    assert (options.tet_beta, options.timesteps) == (beta, 4)


def test_an_average_follows_parameters_and_copies_statistics(examples):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[0].weight, 1.0)
    average = examples.average.Average(net, 0.9)
    nn.init.constant_(net[0].weight, 2.0)
    net[1].running_mean.fill_(5.0)
    average.update(net)
    assert average.net[0].weight.item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert average.net[1].running_mean.item() == 5.0
    assert not any(p.requires_grad for p in average.net.parameters())


def test_weight_decay_spares_thresholds_and_norms(examples):
    options = SimpleNamespace(optimizer="adamw", lr=1.0, weight_decay=0.1)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    pulled, spared = examples.recipe.optimizer_of(options, net).param_groups
    assert [p.shape for p in pulled["params"]] == [(2, 2)]
    assert len(spared["params"]) == 3
    assert spared["weight_decay"] == 0.0


def test_random_states_are_restored(examples):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    states = examples.checkpoint.random_states()
    first = draw()
    examples.checkpoint.restore_random(states)
    assert draw() == first
    examples.checkpoint.seed_all(0, 1)
    one = draw()
    examples.checkpoint.seed_all(0, 2)
    assert draw() != one
    examples.checkpoint.restore_random(states)


@pytest.mark.parametrize("averaged", [False, True])
def test_statistics_are_shared_once_per_network(examples, averaged):
    nets = [nn.BatchNorm1d(1), nn.BatchNorm1d(1)]
    sent = []
    stepper = SimpleNamespace(
        net=nets[0],
        judged=nets[averaged],
        processes=SimpleNamespace(share=lambda tensors: sent.extend(tensors)),
    )
    examples.stepping.Stepper.share_statistics(stepper)
    assert [id(tensor) for tensor in sent] == [
        id(buffer) for net in nets[: 1 + averaged] for buffer in net.buffers()
    ]


def test_a_repeated_image_stays_one_image(examples):
    frames = torch.rand(1, 2, 3, 4, 4).expand(5, 2, 3, 4, 4)
    assert examples.tasks.placed(frames, torch.device("cpu")).stride(0) == 0


def test_gates_that_were_closed_before_are_not_chosen_anew(examples):
    net = spq.models.create("vgg5", in_channels=1, size=16, num_classes=4, width=0.5)
    net = spq.convert(net, spq.presets.spquant_snn(), sample=torch.zeros(2, 1, 1, 16, 16))
    gates = [m for m in net.modules() if isinstance(m, spq.modules.ChannelGate)]
    for gate in gates:
        nn.init.constant_(gate.bias[::2], -9.0)
    masks = []
    schedule = examples.stepping.gate_schedule(net, 0.5, steps=3, closed_before=True)
    for _ in range(3):
        spq.reset(net)
        net(torch.ones(2, 2, 1, 16, 16)).sum().backward()
        masks.append([gate.open_mask.clone() for gate in gates])
        schedule.step()
    for mask in zip(*masks, strict=True):
        assert all(torch.equal(mask[0], later) for later in mask)
        assert mask[0][..., ::2].sum() == 0


def test_images_are_read_by_an_input_quantiser(examples):
    options = SimpleNamespace(
        preset="mint", stages=("fp", "quant", "adaptive"), weight_bits=3, data="cifar10"
    )
    config = examples.stages.config_of(options, "adaptive")
    assert (config.input, config.weights.bits) == (spq.UniformInput(8, 0.0, 1.0), 3)
    assert config.threshold == spq.LearnableThreshold()
    options.preset, options.timesteps, options.weight_bits = "tawq", 6, None
    assert examples.stages.config_of(options, "quant").weights.timesteps == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2: must be 1"),
        ({"state": None}, "'state' is NoneType: must be dict"),
        ({"network": {"name": "vgg5"}}, "'network' lacks 'host': must hold name, host"),
        ({"data": {}}, "'data' lacks 'name'"),
    ],
)
def test_a_network_file_is_checked(examples, tmp_path, change, message):
    net = examples.files.create(NETWORK)
    path = tmp_path / "net.pt"
    held = {"network": NETWORK, "config": None, "data": DATA}
    examples.files.save_network(path, net.state_dict(), **held, stage="fp", epoch=1, accuracy=None)
    saved = examples.files.read_network(path)
    torch.save(saved | change, path)
    with pytest.raises(CheckpointError, match=message):
        examples.files.read_network(path)
    saved["state"] = {"conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="does not fit the network that it names"):
        examples.files.rebuild(saved)


def test_half_a_file_is_refused_and_none_is_left(examples, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"net\.pt: cannot be read .*must be a whole file"):
        examples.files.read_network(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="must be a network file"):
        examples.files.read_network(path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        examples.files.write_whole(tmp_path / "missing" / "net.pt", {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as on a full disk
        with pytest.raises(CheckpointError, match="cannot be written"):
            examples.files.write_whole(tmp_path / "large.pt", torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
