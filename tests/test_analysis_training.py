"""What training saves for the backward pass: by autograd's own hooks, and by hand."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.errors import SampleError

pytestmark = pytest.mark.filterwarnings("ignore::spquant_plugin.errors.AnalysisWarning")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


def saved_by_autograd(net, x, run=None):
    """Bytes of all memory that the graph of one training forward holds, parameters apart."""
    net, x = copy.deepcopy(net).train(), x.clone()
    held = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        (run or (lambda net, x: net(x)))(net, x)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in held)


def stepwise(net, x):
    for step in x:
        net(step)


def memory_of(net, x, **options):
    return spq.analyze(net, x, training=True, **options).memory


# --- by hand -----------------------------------------------------------------------------------


def test_a_linear_layer_keeps_its_input_alone():
    """One neuron that needs no graph: the layer's input is all that its gradient asks for."""
    net = nn.Sequential(nn.Linear(7, 5), nn.Identity(), neuron.IFNode())
    net[2].requires_grad_(False)
    memory = memory_of(net, torch.rand(3, 7))
    assert memory["0"].saved_bytes == 4 * 7
    assert memory.training_bytes == memory["0"].saved_bytes + memory["2"].saved_bytes


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_converted_layer_keeps_its_input_and_one_float_per_neuron_and_step(steps):
    """The fused membrane keeps its currents; weights are quantised anew, which takes no sample."""
    net = nn.Sequential(layer.Linear(7, 5, bias=False), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    net = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    memory = memory_of(net, torch.rand(steps, 3, 7))
    assert memory["0"].saved_bytes == 4 * steps * 7
    assert memory["1"].saved_bytes == pytest.approx(4 * steps * 5, abs=16)


def test_a_norm_keeps_its_input_and_its_statistics():
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3, padding=1, bias=False), layer.BatchNorm2d(3), neuron.IFNode()
    )
    functional.set_step_mode(net, "m")
    memory = memory_of(net, torch.rand(4, 3, 2, 5, 5))
    assert memory["0"].saved_bytes == 4 * 4 * 2 * 25
    statistics = 4 * (3 + 3)  # mean and deviation of the batch, not of a sample
    assert memory["1"].saved_bytes == pytest.approx(4 * 4 * 3 * 25 + statistics / 3)
    assert memory["2"].saved_bytes > 0


# --- by autograd's own hooks -------------------------------------------------------------------


def jelly(quantised=False):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.LIFNode(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(4 * 9, 3),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, "m")
    return (
        spq.convert(net, spq.presets.quant_snn(2), torch.rand(1, 2, 2, 6, 6)) if quantised else net
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantised", [False, True])
def test_a_network_keeps_what_autograd_keeps(quantised, device):
    net, x = jelly(quantised).to(device), torch.rand(4, 3, 2, 6, 6, device=device)
    memory = memory_of(net, x)
    assert 3 * memory.training_bytes == pytest.approx(saved_by_autograd(net, x))
    rows = sum(row.saved_bytes for row in memory)
    assert rows <= memory.training_bytes
    assert memory["0"].saved_bytes >= 4 * 4 * 2 * 36


@pytest.mark.parametrize("quantised", [False, True])
def test_a_snntorch_loop_keeps_what_autograd_keeps(quantised):
    net = nn.Sequential(
        nn.Linear(6, 5), snn.Leaky(0.5, init_hidden=True), nn.Linear(5, 2),
        snn.Synaptic(0.5, 0.5, init_hidden=True),
    )  # fmt: skip
    x = torch.rand(4, 3, 6)
    if quantised:
        net = spq.convert(net, spq.presets.quant_snn(2), x[0])
    memory = memory_of(net, x, timesteps=4)
    assert 3 * memory.training_bytes == pytest.approx(saved_by_autograd(net, x, stepwise))
    assert memory["1"].saved_bytes > 0 < memory["3"].saved_bytes


def test_a_loop_within_the_model_and_one_around_it_keep_the_same():
    class Loop(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.stack([self.net(step) for step in x])

    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.5, init_hidden=True))
    x = torch.rand(4, 3, 6)
    outside = memory_of(net, x, timesteps=4)
    inside = memory_of(Loop(net), x)
    assert inside.training_bytes == outside.training_bytes
    assert inside["net.1"].saved_bytes == outside["1"].saved_bytes


def test_a_sequence_that_runs_layer_by_layer_is_not_measured_as_a_loop():
    """Hooks on modules would make it one, which keeps several times as much."""

    class Run(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return spq.snntorch.run(self.net, x)

    net = nn.Sequential(
        nn.Linear(6, 50), snn.Leaky(0.5, init_hidden=True), nn.Linear(50, 40),
        snn.Leaky(0.5, init_hidden=True),
    )  # fmt: skip
    x = torch.rand(8, 3, 6)
    net = spq.convert(net, spq.presets.quant_snn(2), x[0])
    memory = memory_of(Run(net), x)
    assert 3 * memory.training_bytes == pytest.approx(saved_by_autograd(Run(net), x))
    assert memory.training_bytes < memory_of(net, x, timesteps=8).training_bytes / 3
    assert memory["net.2"].saved_bytes >= 4 * 8 * 50


# --- per sample, and by steps ------------------------------------------------------------------


@pytest.mark.parametrize("quantised", [False, True])
def test_it_is_that_of_one_sample_whatever_the_batch(quantised):
    net, constants = jelly(quantised), []
    del net[1]  # a norm keeps the statistics of the batch beside
    for batch in (1, 2, 8):
        x = torch.rand(4, batch, 2, 6, 6)
        constants.append((batch, batch * memory_of(net, x).training_bytes))
    # What does not grow with the batch (scales, thresholds) is shared by its samples.
    (_, one), (_, two), (_, eight) = constants
    each = two - one
    assert eight - two == pytest.approx(6 * each)
    beside = one - each
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert 0 <= beside <= (64 if not quantised else 3 * weights)
    loaded = spq.analyze(net, [x[:, :2], x], training=True, progress=False).memory
    assert loaded.training_bytes == memory_of(net, x[:, :2]).training_bytes


@pytest.mark.parametrize("quantised", [False, True])
def test_it_grows_with_the_steps(quantised):
    net = jelly(quantised)
    found = [memory_of(net, torch.rand(steps, 3, 2, 6, 6)).training_bytes for steps in (4, 8, 12)]
    assert found[1] - found[0] == pytest.approx(found[2] - found[1], rel=0.01)
    assert found[2] > 2.5 * found[0] - 1000


def test_a_ternary_membrane_keeps_less_than_a_float_one():
    net, x = nn.Sequential(layer.Linear(9, 64), neuron.LIFNode()), torch.rand(8, 3, 9)
    functional.set_step_mode(net, "m")
    ternary = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    assert memory_of(ternary, x)["1"].saved_bytes < memory_of(net, x)["1"].saved_bytes / 2


def test_parameters_and_buffers_are_there_anyway():
    net = nn.Sequential(nn.Linear(500, 400), neuron.IFNode(), nn.Linear(400, 300), neuron.IFNode())
    memory = memory_of(net, torch.rand(1, 500))
    assert memory.training_bytes < 4 * 20 * 500 < 4 * 500 * 400
    shared = nn.Linear(20, 20, bias=False)
    twice = nn.Sequential(shared, neuron.IFNode(), shared)
    # Called twice, it keeps two inputs, and its weight is still no part of it.
    assert memory_of(twice, torch.rand(2, 20))["0"].saved_bytes == 2 * 4 * 20


def test_what_several_operations_save_counts_once_and_functions_count_around_themselves():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.one, self.two = nn.Linear(6, 5), nn.Linear(6, 5)
            self.lif = neuron.IFNode()

        def forward(self, x):
            gained = x * self.scale
            return self.lif(self.one(gained) + self.two(gained))

    memory = memory_of(Block(), torch.rand(3, 6))
    assert memory[""].saved_bytes == 4 * 6  # x, for the gradient of the scale
    assert memory["one"].saved_bytes == 4 * 6
    assert memory["two"].saved_bytes == 0
    assert 3 * memory.training_bytes == pytest.approx(saved_by_autograd(Block(), torch.rand(3, 6)))


def test_frozen_layers_keep_nothing():
    net = nn.Sequential(nn.Linear(6, 5), neuron.IFNode(), nn.Linear(5, 4), neuron.IFNode())
    net[0].requires_grad_(False)
    memory = memory_of(net, torch.rand(3, 6))
    assert memory["0"].saved_bytes == memory["1"].saved_bytes == 0
    assert memory["2"].saved_bytes == 4 * 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_is_measured_whatever_the_caller_switched_off(mode):
    net, x = jelly(), torch.rand(4, 3, 2, 6, 6)
    expected = memory_of(net, x).training_bytes
    with mode():
        assert memory_of(net, x).training_bytes == expected
        assert memory_of(net, x.clone()).training_bytes == expected > 0


# --- the model, refusals, and what comes back --------------------------------------------------


def test_the_model_its_norms_and_the_generator_are_untouched():
    net = nn.Sequential(*jelly(), nn.Dropout(0.5))
    net.eval()
    net[1].train()
    x = torch.rand(4, 3, 2, 6, 6)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    given, generator = x.clone(), torch.get_rng_state()
    spq.analyze(net, x, training=True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert int(net[1].num_batches_tracked) == 0
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, given)
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net[2].v == 0.0


def test_a_norm_that_cannot_train_on_the_batch_is_an_error_that_says_so():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), neuron.IFNode())
    x = torch.rand(1, 2, 3, 3)
    with pytest.raises(
        SampleError, match=r"^training forward: sample of shape \(1, 2, 3, 3\): Sequential cannot "
        r"run on it \(ValueError: Expected more than 1 value per channel when training"
    ):  # fmt: skip
        spq.analyze(net, x, training=True)
    # It listens to all modules there are, and no longer.
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert spq.analyze(net, x).memory.training_bytes is None
    assert spq.analyze(net, x.expand(2, -1, -1, -1), training=True).memory.training_bytes > 0


@pytest.mark.parametrize("mode", ["equation", "paper_tables", "measured"])
def test_the_table_has_a_column_and_no_total_has_it(mode):
    net, x = jelly(), torch.rand(4, 3, 2, 6, 6)
    plain, trained = (spq.analyze(net, x, memory=mode, training=flag) for flag in (False, True))
    assert trained.memory.total_bytes == plain.memory.total_bytes
    assert plain.memory.training_bytes is None
    assert "saved" not in plain.memory.table()
    assert not any(row.saved_bytes for row in plain.memory)
    header = trained.memory.table().splitlines()[2].split()
    assert header[-2:] == ["saved", "note"]
    assert (
        f"saved for backward {1e-3 * trained.memory.training_bytes:.4g} kB per sample, in no "
        in (trained.table())
    )
    found = trained.to_dict()["memory"]
    assert found["training_bytes"] == trained.memory.training_bytes
    assert sum(row["saved_bytes"] for row in found["layers"]) <= found["training_bytes"]
    markdown = [line for line in trained.memory.to_markdown().splitlines() if line[:1] == "|"]
    assert len({line.count("|") for line in markdown}) == 1
