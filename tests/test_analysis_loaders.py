"""Batches, bars and refusals of ``analyze``; and that the model, and memory, stay as they were."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import sys
import weakref

import networks
import pytest
import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spquant_plugin as spq
from spquant_plugin.analysis import EnergyTable
from spquant_plugin.errors import AnalysisError, AnalysisWarning, MissingHostError, SampleError
from spquant_plugin.modules.gates import ChannelGate

T = 3
COUNTS = (
    *("dense", "nonzero", "effective", "acs", "macs", "comparisons", "inputs", "outputs"),
    *("eq30_ungated", "skipped"),
)


def spikes(*shape, rate=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def lively(net):
    """Large weights of both signs, and gates that differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.uniform_(-0.5, 1.0, generator=generator)
            if isinstance(module, ChannelGate):
                module.weight.normal_(generator=generator)
                module.bias.normal_(0.0, 0.2, generator=generator)
    return net


def spiking_jelly():
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        neuron.LIFNode(decay_input=False),
        layer.MaxPool2d(2),
        layer.Conv2d(4, 4, 3, padding=1, bias=False),
        neuron.LIFNode(decay_input=False, v_reset=None),
        layer.Flatten(),
        layer.Linear(4 * 9, 3, bias=False),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, "m")
    return lively(net)


def small():
    return lively(nn.Sequential(nn.Linear(4, 5), neuron.IFNode(), nn.Linear(5, 3)))


def bars(capsys):
    """What was written to the error stream; nothing may go to the other one."""
    written = capsys.readouterr()
    assert written.out == ""
    return written.err


# --- batches are means -------------------------------------------------------------------------

CONFIGS = {
    "float": None,
    "quantised": spq.presets.quant_snn(2),
    "gates, current": spq.presets.spquant_snn(2),
    "gates, prior": spq.presets.spquant_snn(2, spatial_gate=spq.SpatialGate(score="prior")),
}


def check_means(report, alone):
    """One report of all batches against those of every sample by itself; eight do not round."""
    for row in report.operations:
        for name in COUNTS:
            singles = [getattr(single.operations[row.path], name) for single in alone]
            assert getattr(row, name) == sum(singles) / len(alone), (row.path, name)
    for row in report.sparsity:
        for name in ("firing_rate", "channels_closed", "pixels_masked", "zero_weights"):
            singles = [getattr(single.sparsity[row.path], name) for single in alone]
            value = getattr(row, name)
            if value is None:
                assert singles == [None] * len(alone)
            else:
                assert value == pytest.approx(sum(singles) / len(alone), rel=1e-14)
        for step, shares in enumerate(row.level_shares):
            each = [single.sparsity[row.path].level_shares[step] for single in alone]
            means = [sum(column) / len(alone) for column in zip(*each, strict=True)]
            assert list(shares) == pytest.approx(means, rel=1e-14)
    for row in report.energy:
        for name in ("compute_pj", "weight_pj", "input_pj", "membrane_pj", "spike_pj"):
            mean = sum(getattr(single.energy[row.path], name) for single in alone) / len(alone)
            assert getattr(row, name) == pytest.approx(mean, rel=1e-14)
    for name, total in report.energy.models:
        mean = sum(single.energy.model(name) for single in alone) / len(alone)
        if name != "eq31":  # of gates the product of two shares
            assert total == pytest.approx(mean, rel=1e-14)
    for single in alone:
        assert single.memory == report.memory


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_of_any_size_are_the_mean_over_their_samples(name):
    net, x = spiking_jelly(), spikes(T, 8, 2, 6, 6)
    if CONFIGS[name] is not None:
        net = lively(spq.convert(net, CONFIGS[name], x))
    alone = [spq.analyze(net, x[:, i : i + 1]) for i in range(8)]
    report = spq.analyze(net, [x[:, :3], x[:, 3:4], x[:, 4:]], progress=False)
    check_means(report, alone)
    whole = spq.analyze(net, x)
    assert whole.operations == report.operations
    assert whole.sparsity == report.sparsity
    assert whole.energy == report.energy
    assert report.operations["3"].effective > 0 < report.operations["6"].effective
    if "gates" in name:
        assert report.operations["3"].skipped > 0
    if "prior" in name:
        assert report.operations["0"].skipped > 0
    functional.set_step_mode(net, "s")
    steps = spq.analyze(net, [x[:, :5], x[:, 5:]], timesteps=T, progress=False)
    assert steps.operations == report.operations


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_of_snntorch_are_the_mean_over_their_samples(name):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        snn.Leaky(0.5, init_hidden=True),
        nn.Conv2d(3, 3, 2),
        snn.Synaptic(0.5, 0.5, init_hidden=True),
    )
    net, x = lively(net), spikes(T, 8, 2, 5, 5)
    if CONFIGS[name] is not None:
        net = lively(spq.convert(net, CONFIGS[name], x[0]))
    options = {"timesteps": T, "progress": False}
    alone = [spq.analyze(net, x[:, i : i + 1], **options) for i in range(8)]
    report = spq.analyze(net, [x[:, :1], x[:, 1:6], x[:, 6:]], **options)
    check_means(report, alone)
    assert report.operations["2"].effective > 0


def test_batches_of_different_lengths_are_counted_as_long_as_they_are():
    net = spq.convert(spiking_jelly(), spq.presets.quant_snn(2), spikes(T, 1, 2, 6, 6))
    x = spikes(5, 3, 2, 6, 6)
    report = spq.analyze(net, [x[:2, :2], x[:, 2:]], progress=False)
    parts = [spq.analyze(net, part) for part in (x[:2, :2], x[:, 2:])]
    for row in report.operations:
        first, second = (part.operations[row.path].effective for part in parts)
        assert row.effective == pytest.approx((2 * first + second) / 3)
    shares = report.sparsity["1"].level_shares
    assert len(shares) == 5
    assert shares[2:] == parts[1].sparsity["1"].level_shares[2:]
    for one, two, both in zip(
        *(part.sparsity["1"].level_shares[1] for part in parts), shares[1], strict=True
    ):
        assert both == pytest.approx((2 * one + two) / 3)


# --- what counts as a loader -------------------------------------------------------------------


def test_every_kind_of_loader_gives_the_same():
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, gain=1):
            return {"spikes": (self.net(gain * x),)}

    net, x, y = Named(small()), spikes(6, 4), torch.arange(6)
    expected = spq.analyze(net, x)
    pairs = [(x[:4], y[:4]), (x[4:], y[4:])]
    loaders = [
        DataLoader(TensorDataset(x, y), batch_size=4),
        pairs,
        [list(pair) for pair in pairs],
        (pair for pair in pairs),
        iter([x[:1], x[1:]]),
        [{"x": x[:4]}, {"x": x[4:], "gain": 1}],
        [({"x": x[:4], "gain": 1}, y[:4]), ({"x": x[4:]}, y[4:])],
        [((x[:4], 1), y[:4]), ((x[4:], 1), y[4:])],
        DataLoader([{"x": row} for row in x], batch_size=5),
        dict(enumerate(pairs)).values(),
    ]
    for loader in loaders:
        report = spq.analyze(net, loader, progress=False)
        assert report.operations == expected.operations
        assert report.sparsity == expected.sparsity
        assert report.memory == expected.memory


def test_no_more_batches_are_taken_than_asked_for():
    net, taken = small(), []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield spikes(2, 4, seed=number)

    report = spq.analyze(net, endless(), max_batches=3, progress=False)
    assert taken == [0, 1, 2]
    x = torch.cat([spikes(2, 4, seed=number) for number in range(3)])
    assert report.operations == spq.analyze(net, x).operations
    assert spq.analyze(net, x, max_batches=1).operations == report.operations
    one = spq.analyze(net, [x[:2], x[2:]], max_batches=1)
    assert one.operations == spq.analyze(net, x[:2]).operations
    assert spq.analyze(net, [x], max_batches=9, progress=False).operations == report.operations


def test_training_and_agreement_read_the_first_batch(capsys):
    net, x = small(), spikes(6, 4)
    options = {"training": True, "agreement": ["neurobench"]}
    first = spq.analyze(net, x[:2], **options)
    both = spq.analyze(net, [x[:2], x[2:]], progress=False, **options)
    assert both.memory == first.memory
    assert both.agreement == first.agreement
    assert bars(capsys) == ""


@pytest.mark.parametrize("given", [[], (row for row in ()), DataLoader([])])
def test_a_loader_without_batches_is_refused(given, capsys):
    kind = type(given).__name__
    with pytest.raises(AnalysisError, match=rf"an empty {kind}: must give at least one batch\. P"):
        spq.analyze(small(), given)
    if hasattr(given, "__len__"):
        assert bars(capsys) == ""


@pytest.mark.parametrize("given", [None, 3, 2.5, b"x", "x", small(), torch.ones(2, 4).numpy()])
def test_what_is_no_sample_is_refused(given):
    with pytest.raises(AnalysisError, match=r"must be what one call of the model takes .*Pass"):
        spq.analyze(small(), given)


@pytest.mark.parametrize("given", [torch.ones(0, 4), [torch.ones(0, 4), torch.ones(2, 4)]])
def test_a_first_batch_without_samples_is_refused(given):
    with pytest.raises(AnalysisError, match=r"first batch of 0 samples: must hold .*leave the em"):
        spq.analyze(small(), given, progress=False)


def test_later_batches_without_samples_add_nothing():
    net, x = small(), spikes(3, 4)
    found = spq.analyze(net, [x, torch.ones(0, 4)], progress=False)
    assert found.operations == spq.analyze(net, x).operations


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "3"])
def test_a_limit_that_is_no_whole_number_is_refused(limit):
    with pytest.raises(
        AnalysisError, match=r"max_batches = .*whole number above 0, or None.*leave"
    ):
        spq.analyze(small(), [spikes(2, 4)], max_batches=limit)


def test_a_batch_that_does_not_fit_is_named_by_its_number():
    net, x = small(), spikes(2, 4)
    with pytest.raises(SampleError, match=r"^batch 2, sample of shape \(2, 5\): Sequential cannot"):
        spq.analyze(net, [x, torch.ones(2, 5), x], progress=False)
    with pytest.raises(SampleError, match=r"^batch 3, sample = str without a tensor"):
        spq.analyze(net, [x, x, "words"], progress=False)
    steps = torch.ones(T, 2, 4)
    with pytest.raises(AnalysisError, match=r"^batch 2, timesteps = 3: .*\(2, 2, 4\)"):
        spq.analyze(net, [steps, steps[:2]], timesteps=T, progress=False)


@pytest.mark.parametrize("timesteps", [0, -1, 2.0, True, "3", None])
def test_steps_that_do_not_fit_are_refused(timesteps):
    net, batches = networks.snn_torch(), [spikes(T, 2, 5)]
    if timesteps is None:
        with pytest.raises(AnalysisError, match=r"timesteps = 4: .*\(3, 2, 5\).*Pass \[T, N"):
            spq.analyze(net, batches, timesteps=4, progress=False)
        return
    with pytest.raises(AnalysisError, match=r"timesteps = .*whole number above 0.*Leave it out"):
        spq.analyze(net, batches, timesteps=timesteps, progress=False)


# --- the bar -----------------------------------------------------------------------------------


def test_a_bar_is_shown_for_several_batches_only(capsys):
    net, x = small(), spikes(6, 4)
    for given in (x, [x], DataLoader(TensorDataset(x), batch_size=6)):
        spq.analyze(net, given)
        assert bars(capsys) == ""
    spq.analyze(net, [x, x], max_batches=1)
    assert bars(capsys) == ""
    spq.analyze(net, [x, x])
    shown = bars(capsys)
    assert "analyze" in shown
    assert "2/2" in shown
    spq.analyze(net, iter([x, x, x]))
    assert "3batch" in bars(capsys)
    spq.analyze(net, iter([x, x, x]), max_batches=2)
    assert "2/2" in bars(capsys)
    spq.analyze(net, [x, x], progress=False)
    assert bars(capsys) == ""
    spq.analyze(net, [x], progress=True)
    assert "1/1" in bars(capsys)


def test_without_tqdm_there_is_no_bar_unless_it_is_asked_for(capsys, monkeypatch):
    net, x = small(), spikes(2, 4)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    spq.analyze(net, [x, x])
    assert bars(capsys) == ""
    with pytest.raises(MissingHostError, match=r"needs tqdm, which .* pip install tqdm"):
        spq.analyze(net, [x, x], progress=True)


# --- what stays as it was ----------------------------------------------------------------------


def test_no_batch_is_kept_and_nothing_grows():
    net = lively(spq.convert(spiking_jelly(), CONFIGS["gates, prior"], spikes(T, 1, 2, 6, 6)))
    seen, alive, sizes = [], [], []

    def stream():
        for number in range(12):
            alive.append(sum(reference() is not None for reference in seen))
            if number in (4, 11):
                gc.collect()
                held = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
                sizes.append(sum(tensor.numel() for tensor in held))
            batch = spikes(T, 4, 2, 6, 6, seed=number)
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    report = spq.analyze(net, stream(), progress=False)
    assert report.operations.skipped > 0
    # The first one is there for what reads it once more, and the one before for the loop.
    assert max(alive) <= 2
    assert 0 < sizes[1] <= sizes[0]  # less, where another test's leftovers went meanwhile
    del report
    gc.collect()
    assert not any(reference() is not None for reference in seen)


def test_the_host_s_books_do_not_grow():
    net = networks.snn_torch()
    known = list(map(id, SpikingNeuron.instances))
    for _ in range(3):
        spq.analyze(net, [spikes(T, 2, 5)] * 3, timesteps=T, training=True, progress=False)
        assert list(map(id, SpikingNeuron.instances)) == known
    with pytest.raises(SampleError):
        spq.analyze(net, [spikes(T, 2, 5), spikes(T, 2, 6)], timesteps=T, progress=False)
    assert list(map(id, SpikingNeuron.instances)) == known


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_not_touched(name, fails):
    net, x = spiking_jelly(), spikes(T, 4, 2, 6, 6)
    if CONFIGS[name] is not None:
        net = lively(spq.convert(net, CONFIGS[name], x))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[6].register_forward_hook(lambda *_: None)
    net(x).sum().backward()
    held = {
        path: (vars(module).copy(), len(module._forward_hooks), len(module._forward_pre_hooks))
        for path, module in net.named_modules()
    }
    states = {path: getattr(net.get_submodule(path), "v", None) for path in "147"}
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    before, given = copy.deepcopy(net.state_dict()), x.clone()
    generator = torch.get_rng_state()
    options = {"training": True, "agreement": ["neurobench"], "progress": False}

    def batches():
        loader = DataLoader(TensorDataset(x.transpose(0, 1)), batch_size=2, shuffle=True)
        for (part,) in loader:
            yield part.transpose(0, 1) * torch.rand(()).ceil(), 0
        if fails:
            yield torch.ones(1)

    if fails:
        with pytest.raises(SampleError) as caught:
            spq.analyze(net, batches(), **options)
        assert torch.equal(torch.get_rng_state(), generator)
        torch.rand(1)
        generator = torch.get_rng_state()
        del caught
        gc.collect()
    else:
        spq.analyze(net, batches(), **options)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, given)
    for path, module in net.named_modules():
        own, after, ahead = held[path]
        assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == (after, ahead)
        assert vars(module).keys() == own.keys()
        assert module.training == own["training"]
    assert all(net.get_submodule(path).v is v for path, v in states.items())
    assert not net[0].weight.requires_grad
    now = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, now, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_grad_modes_of_the_caller_change_nothing():
    net, x = small(), spikes(3, 4)
    expected = spq.analyze(net, x, training=True)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            assert spq.analyze(net, [x], training=True).to_dict() == expected.to_dict()
        assert spq.analyze(net.train(), x.clone().requires_grad_()).memory.layers[0].weights


# --- silence, and nothing that spikes ----------------------------------------------------------


def test_a_silent_network_is_a_warning_with_a_remedy():
    net = small()
    with pytest.warns(AnalysisWarning) as caught:
        report = spq.analyze(net, [torch.zeros(2, 4)] * 2, progress=False)
    (warning,) = caught
    assert warning.filename == __file__
    message = str(warning.message)
    assert message.startswith("Sequential: no neuron fired on 4 sample(s), so")
    assert message.endswith(
        "Pass real data, all time steps of it, and a trained network, or lower the thresholds."
    )
    assert report.sparsity.firing_rate == 0.0
    assert report.operations.effective == 0.0
    assert report.operations["1"].comparisons == 5
    # One spike of one neuron on one sample is enough.
    loud = torch.zeros(2, 4)
    loud[1] = 9.0
    spq.analyze(net, [torch.zeros(2, 4), loud], progress=False)


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_neurons_that_are_never_called_are_an_error(host):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.lif = neuron.LIFNode() if host == "spikingjelly" else snn.Leaky(0.5)

        def forward(self, x):
            return self.fc(x)

    with pytest.raises(AnalysisError, match=r"^Spare: no spiking neuron ran .*Pass a network with"):
        spq.analyze(Spare(), [torch.ones(2, 4)] * 2, progress=False)


# --- names and tables --------------------------------------------------------------------------

COSTS = {"INT8": 1.0, "INT32": 2.0, "FP16": 3.0, "FP32": 4.0}


@pytest.mark.parametrize(
    ("energy", "closest"),
    [("45", "45nm"), ("7 nm", "7nm"), ("7NM", None), (None, None), (3, None), (45, "45nm"),
     ("28nm", None), (["45nm"], "45nm")],
)  # fmt: skip
def test_an_unknown_table_is_refused(energy, closest):
    with pytest.raises(
        AnalysisError, match=r"must be one of '45nm', '7nm', or an .*EnergyTable"
    ) as caught:
        spq.analyze(small(), spikes(2, 4), energy=energy)
    message = str(caught.value)
    assert message.startswith(f"energy = {energy!r}: ")
    if closest is not None:
        assert message.endswith(f"Closest: {closest!r}.")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("name", 3, r"EnergyTable\(name=3\): must be a text"),
        ("add", None, r"EnergyTable\(add=None\): must be a dict with a cost in pJ"),
        ("multiply", [1, 2], r"EnergyTable\(multiply=\[1, 2\]\): must be a dict"),
        ("sram", 8, r"EnergyTable\(sram=8\): must be a dict"),
        ("sram", {}, r"EnergyTable\(sram=\{\}\): must have a size in bytes .*Add one"),
        ("add", {"INT8": 1}, r"EnergyTable\(add=.*an entry for each of INT8, INT32, FP16, FP32"),
        ("multiply", {**COSTS, 4: 1.0}, r"EnergyTable\(multiply=.*remove what is not among them"),
        ("add", {**COSTS, "FP16": -1}, r"EnergyTable\(add=\{'FP16': -1\}\): must be a finite cost"),
        ("add", {**COSTS, "FP16": math.nan}, "must be a finite cost in pJ, at least 0"),
        ("multiply", {**COSTS, "INT8": math.inf}, "must be a finite cost in pJ, at least 0"),
        ("multiply", {**COSTS, "INT8": "1"}, "must be a finite cost in pJ, at least 0"),
        ("multiply", {**COSTS, "INT8": True}, "must be a finite cost in pJ, at least 0"),
        ("sram", {0: 1.0}, "sizes of memories whole bytes above 0. Correct it"),
        ("sram", {8.0: 1.0}, "sizes of memories whole bytes above 0. Correct it"),
        ("sram", {"8": 1.0}, "sizes of memories whole bytes above 0. Correct it"),
        ("sram", {8: None}, "must be a finite cost in pJ"),
    ],
)
def test_a_table_that_is_not_complete_is_refused(field, value, found):
    fields = {"name": "own", "add": COSTS, "multiply": COSTS, "sram": {8: 1}, field: value}
    with pytest.raises(AnalysisError, match=found):
        EnergyTable(**fields)


@pytest.mark.parametrize("given", ["neurobnch", ["op_counter", "neurobnch"], None, 3, [[]], [None]])
def test_an_unknown_tool_is_refused(given):
    with pytest.raises(
        AnalysisError, match=r"agreement = .*must be among 'neurobench', 'op_counter'"
    ) as caught:
        spq.analyze(small(), spikes(2, 4), agreement=given)
    if "neurobnch" in str(given):
        assert str(caught.value).endswith("Closest: 'neurobench'.")


def test_wrong_names_are_refused_before_anything_runs():
    taken = []

    def batches():
        taken.append(1)
        yield spikes(2, 4)

    for wrong in ({"energy": "x"}, {"agreement": "x"}, {"memory": "x"}, {"max_batches": 0}):
        with pytest.raises(AnalysisError):
            spq.analyze(small(), batches(), **wrong)
    assert not taken


@pytest.mark.parametrize("shape", [(0, 2, 2, 8, 8), (4, 0, 2, 8, 8), (4, 2, 2, 0, 8)])
def test_zero_time_steps_samples_or_pixels_are_refused(shape):
    refusal = r"It holds no data: time steps, .* Pass a sample|a first batch of 0 samples: must"
    with pytest.raises((SampleError, AnalysisError), match=refusal):
        spq.analyze(networks.spiking_jelly("m"), torch.zeros(shape))


@pytest.mark.parametrize("steps", [None, 0])
def test_zero_time_steps_of_a_loop_are_refused(steps):
    with pytest.raises(
        (SampleError, AnalysisError), match=r"no spiking neuron ran|whole number|holds no data"
    ):
        spq.analyze(networks.Loop(), torch.zeros(0, 2, 5), timesteps=steps)
