"""Memory reports: counts by hand, both hosts, every mode, refusals, and what is left alone."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import networks
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, prune

import spquant_plugin as spq
from spquant_plugin.analysis import MemoryReport, MemoryRow
from spquant_plugin.errors import AnalysisError, ConversionError, MissingHostError, SampleError

# Untrained networks on made-up samples: many of them stay silent, which is another test's matter.
pytestmark = pytest.mark.filterwarnings("ignore::spquant_plugin.errors.AnalysisWarning")
EVENTS = torch.ones(4, 3, 2, 8, 8)  # [T, N, C, H, W]


def by_hand(net: nn.Sequential, step: torch.Tensor) -> tuple[int, int]:
    """Weights and neurons of a chain, counted one by one from a single sample of one step."""
    weights = neurons = 0
    functional.set_step_mode(net, "s")
    x = step[:1]
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            for _ in module.weight.flatten():
                weights += 1
        x = module(x)
        if isinstance(module, neuron.BaseNode):
            for _ in x.flatten():
                neurons += 1
    functional.reset_net(net)
    return weights, neurons


class _Uses(nn.Module):
    def __init__(self, used, spare):
        super().__init__()
        self.used, self.spare = used, spare

    def forward(self, x):
        return self.used(x)


# --- the equation -------------------------------------------------------------------------------


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_float_network_counts_as_by_hand(step_mode, batch):
    weights, neurons = by_hand(networks.spiking_jelly(), EVENTS[0])
    sample = EVENTS[:, :batch] if step_mode == "m" else EVENTS[0, :batch]
    memory = spq.analyze(networks.spiking_jelly(step_mode), sample).memory
    assert memory.weight_bytes == 4 * weights
    assert memory.membrane_bytes == 4 * neurons
    assert memory.spike_bytes == neurons / 8
    assert memory.total_bytes == 4 * weights + 4 * neurons + neurons / 8


def test_a_converted_network_counts_stored_bits_layer_by_layer():
    net = spq.convert(networks.spiking_jelly(), spq.presets.quant_snn(weight_bits=2), EVENTS)
    memory = spq.analyze(net, EVENTS).memory
    assert [memory[path].weight_bits for path in "048"] == [8, 2, 8]
    assert [memory[path].weight_bytes for path in "048"] == [72, 216 * 2 / 8, 288]
    assert [memory[path].membrane_bits for path in "26"] == [2, 2]
    assert memory["2"].information_bits == pytest.approx(1.58496, abs=1e-5)
    assert memory.membrane_bytes == (256 + 96) * 2 / 8
    assert memory["4"].other_bytes == 4 * (6 + 6), "bias and one alpha for each of 6 channels"
    assert memory["8"].other_bytes == 4 * (3 + 3), "bias and one scale for each of 3 channels"


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        (spq.PowerOfTwoWeights(3), 3),
        (spq.AdditivePowerOfTwoWeights(6), 6),
        (spq.UniformWeights(4), 4),
        (spq.TernaryWeights(), 2),
    ],
)
def test_every_quantiser_tells_its_own_bits(weights, bits):
    config = spq.SpQuantConfig(weights=weights, edge_weights=weights)
    memory = spq.analyze(spq.convert(networks.spiking_jelly(), config), EVENTS).memory
    assert memory.weight_bytes == (72 + 216 + 288) * bits / 8
    assert memory.membrane_bytes == 4 * (256 + 96)


def test_what_the_equation_has_no_term_for_is_shown_beside_the_total():
    memory = spq.analyze(networks.spiking_jelly(), EVENTS).memory
    assert memory["1"].kind == "norm"
    assert memory["1"].other_bytes == 4 * 4 * 4, "weight, bias, mean and variance of 4 channels"
    assert memory["4"].other_bytes == 4 * 6
    assert memory.other_bytes == 64 + 24 + 96 + 12
    sums = memory.weight_bytes + memory.membrane_bytes + memory.spike_bytes
    assert memory.total_bytes == sums
    assert memory["4"].parameters == 216 + 6
    parameters = sum(p.numel() for p in networks.spiking_jelly().parameters())
    assert sum(row.parameters for row in memory) == parameters


def test_half_precision_takes_16_bits():
    net = nn.Sequential(layer.Linear(4, 8, bias=False), neuron.LIFNode()).half()
    memory = spq.analyze(net, torch.ones(1, 4).half()).memory
    assert (memory.weight_bytes, memory.membrane_bytes) == (2 * 32, 2 * 8)


@pytest.mark.parametrize(
    ("membrane", "mechanism", "delay", "bits"),
    [
        (spq.TernaryMembrane(), "subtract", True, 2),  # -1, 0, 1 and 1 fired
        (spq.TernaryMembrane(), "zero", False, 2),
        (spq.BinaryMembrane(), "subtract", True, 2),
        (spq.BinaryMembrane(), "none", True, 1),
        (spq.UniformMembrane(4), "subtract", True, 5),
        (spq.UniformMembrane(4), "subtract", False, 4),
        (spq.UniformMembrane(levels=(-3, 1)), "zero", True, 3),
    ],
)
def test_a_delayed_reset_also_stores_whether_the_neuron_fired(membrane, mechanism, delay, bits):
    net = nn.Sequential(
        nn.Linear(3, 8),
        snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=mechanism, reset_delay=delay),
    )
    net = spq.convert(net, spq.SpQuantConfig(membrane=membrane))
    row = spq.analyze(net, torch.ones(2, 3)).memory["1"]
    assert row.membrane_bits == bits
    assert row.membrane_bytes == 8 * bits / 8


def test_the_pairs_of_level_and_spike_that_occur_fit_the_bits_counted():
    """Drive a neuron through everything it can do and count the states it was in."""
    net = nn.Sequential(nn.Identity(), snn.Leaky(beta=0.5, init_hidden=True))
    net = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    seen = set()
    for _ in range(200):
        net(4 * torch.randn(64, 8))
        levels = (net[1].mem / net[1].membrane_unit).flatten().tolist()
        seen |= set(zip(levels, net[1].fired.flatten().tolist(), strict=True))
    row = spq.analyze(net, torch.ones(1, 8)).memory["1"]
    assert len(seen) == 4 == 2**row.membrane_bits
    assert row.information_bits == 2.0


def test_syn_stays_float_and_is_counted():
    net = nn.Sequential(nn.Linear(3, 8), snn.Synaptic(0.9, 0.8, init_hidden=True))
    plain = spq.analyze(net, torch.ones(2, 3)).memory["1"]
    assert (plain.membrane_bits, plain.state_bits, plain.membrane_bytes) == (32, 32, 64)
    assert plain.note == "also keeps syn"
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    ternary = spq.analyze(spq.convert(net, config), torch.ones(2, 3)).memory["1"]
    assert ternary.membrane_bytes == 8 * (2 + 32) / 8


@pytest.mark.parametrize("all_to_all", [True, False])
def test_recurrent_weights_are_weights_and_counted_once(all_to_all):
    options = {"linear_features": 8} if all_to_all else {"V": torch.ones(8)}
    lif = snn.RLeaky(beta=0.5, all_to_all=all_to_all, init_hidden=True, **options)
    net = nn.Sequential(nn.Linear(3, 8, bias=False), lif)
    memory = spq.analyze(net, torch.ones(2, 3)).memory
    count = 64 if all_to_all else 8
    assert (memory["1.recurrent"].kind, memory["1.recurrent"].weights) == ("weights", count)
    assert memory.weight_bytes == 4 * (24 + count)
    held = (lif.beta, lif.threshold, lif.graded_spikes_factor, lif.reset_mechanism_val)
    assert memory["1"].other_bytes == sum(t.numel() * t.element_size() for t in held)
    assert sum(row.parameters for row in memory) == sum(p.numel() for p in net.parameters())
    measured = spq.analyze(net, torch.ones(2, 3), memory="measured").memory
    assert measured.weight_bytes == 4 * (24 + count)


# --- the other modes ----------------------------------------------------------------------------


def test_paper_tables_take_32_bits_per_spike_in_float_and_8_in_quantised_networks():
    net = networks.spiking_jelly()
    plain = spq.analyze(net, EVENTS, memory="paper_tables").memory
    assert plain.spike_bytes == plain.membrane_bytes == 4 * 352
    for config in (
        spq.SpQuantConfig(membrane=spq.TernaryMembrane()),
        spq.SpQuantConfig(weights=spq.TernaryWeights()),
    ):
        report = spq.analyze(spq.convert(net, config), EVENTS, memory="paper_tables")
        assert report.memory.spike_bytes == 352


def test_measured_adds_up_to_what_the_network_holds():
    net = spq.convert(networks.spiking_jelly(), spq.presets.quant_snn(weight_bits=2), EVENTS)
    memory = spq.analyze(net, EVENTS, memory="measured").memory
    tensors = [*net.parameters(), *net.buffers()]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert memory.weight_bytes + memory.other_bytes == held
    assert memory.membrane_bytes == 4 * 352
    assert memory.spike_bytes == 4 * 352 * 4, "four steps of float32 spikes"
    assert memory.total_bytes == held + 4 * 352 + 4 * 352 * 4
    assert "training form" in memory.notes[0]
    assert "training form" in str(spq.analyze(net, EVENTS, memory="measured"))
    assert not spq.analyze(networks.spiking_jelly(), EVENTS, memory="measured").memory.notes


def test_measured_counts_every_state_of_snntorch():
    net = nn.Sequential(nn.Linear(5, 7), snn.Leaky(beta=0.5, init_hidden=True))
    plain = spq.analyze(net, torch.ones(3, 5), memory="measured").memory
    assert plain.membrane_bytes == 7 * (4 + 4), "mem and the last reset signal"
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
    ternary = spq.analyze(spq.convert(net, config), torch.ones(3, 5), memory="measured").memory
    assert ternary.membrane_bytes == 7 * (4 + 1), "mem and a bool"


def test_a_recording_of_the_membrane_is_measured_and_no_part_of_the_equation():
    net = nn.Sequential(layer.Linear(4, 8), neuron.LIFNode(step_mode="m", store_v_seq=True))
    x = torch.ones(5, 2, 4)
    assert spq.analyze(net, x).memory.membrane_bytes == 4 * 8
    assert spq.analyze(net, x, memory="measured").memory.membrane_bytes == 4 * 8 * (1 + 5)


# --- shapes and samples -------------------------------------------------------------------------


def test_a_model_of_one_step_is_called_once_per_step_of_the_sample():
    net = networks.snn_torch()
    x = torch.ones(6, 3, 5)
    report = spq.analyze(net, x, timesteps=6)
    assert report.memory == spq.analyze(net, x[0]).memory
    assert report.operations.dense == 6 * spq.analyze(net, x[0]).operations.dense
    assert [row.neurons for row in report.layers if row.kind == "neuron"] == [7, 7, 2]
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    spq.analyze(net, x, timesteps=6)
    assert not calls, "hooks report the model's own runs only"


def test_the_loop_really_runs_every_step():
    class Counts(nn.Module):
        steps: list[float] = []  # noqa: RUF012 (shared with the copy on purpose)

        def forward(self, x, scale):
            self.steps.append(float(x.sum() * scale.sum()))
            self.lif(x)

    model = Counts()
    model.lif = neuron.IFNode()
    sample = (torch.arange(3.0).view(3, 1), torch.full((3, 1), 2.0))
    spq.analyze(model, sample, timesteps=3)
    assert Counts.steps == [0.0, 2.0, 4.0]


def test_a_loop_inside_forward_needs_no_timesteps():
    memory = spq.analyze(networks.Loop(), torch.ones(6, 3, 5)).memory
    assert [memory[path].neurons for path in ("lif1", "lif2")] == [6, 2]


def test_a_sample_without_batch_counts_the_same():
    net = networks.snn_torch()
    assert spq.analyze(net, torch.ones(5)).to_dict() == spq.analyze(net, torch.ones(4, 5)).to_dict()
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), snn.Leaky(beta=0.5, init_hidden=True))
    assert spq.analyze(conv, torch.ones(2, 8, 8)).memory["1"].neurons == 4 * 6 * 6
    assert spq.analyze(conv, torch.ones(3, 2, 8, 8)).memory["1"].neurons == 4 * 6 * 6


def test_neurons_after_a_step_container_and_with_folded_heads_are_divided_by_the_batch():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
            self.lif = neuron.LIFNode(step_mode="m")
            self.heads = neuron.IFNode(step_mode="m")

        def forward(self, x):
            x = self.lif(self.conv(x)).flatten(3)  # [T, N, C, L]
            return self.heads(x.reshape(x.shape[0], -1, 2, x.shape[-1]))  # [T, N * 2, ...]

    for batch in (1, 3):
        memory = spq.analyze(Folded(), EVENTS[:, :batch]).memory
        assert memory["lif"].neurons == memory["heads"].neurons == 4 * 6 * 6


@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        parametrizations.spectral_norm,
        lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    ],
)
def test_what_a_weight_is_computed_from_is_counted_only_where_bytes_are_measured(compute):
    net = nn.Sequential(compute(nn.Linear(4, 8)), neuron.IFNode())
    memory = spq.analyze(net, torch.ones(2, 4)).memory
    assert (memory.weight_bytes, memory.other_bytes) == (4 * 32, 4 * 8)  # the bias is other
    held = sum(4 * t.numel() for t in (*net.parameters(), *net.buffers()))
    measured = spq.analyze(net, torch.ones(2, 4), memory="measured").memory
    # A pruned weight is held beside its source and mask, but is no parameter any more.
    pruned = 4 * 32 if "weight_orig" in dict(net[0].named_parameters()) else 0
    assert measured.weight_bytes + measured.other_bytes == held + pruned


def test_what_sees_no_sample_has_no_batch():
    class Gated(nn.Module):
        """A neuron and a linear layer fed by parameters, beside one that reads the sample."""

        def __init__(self):
            super().__init__()
            self.current, self.lif = nn.Linear(4, 8), neuron.LIFNode()
            self.constant, self.gate = nn.Parameter(torch.ones(1, 8)), neuron.LIFNode()
            self.bias, self.mix = nn.Parameter(torch.ones(8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.lif(self.current(x) * self.mix(self.bias)) * self.gate(self.constant)

    for batch in (1, 6):
        memory = spq.analyze(Gated(), torch.rand(batch, 4)).memory
        assert (memory["lif"].neurons, memory["gate"].neurons) == (8, 8)


def test_a_sample_that_goes_through_numpy_keeps_its_batch():
    class ThroughNumpy(nn.Module):
        def __init__(self):
            super().__init__()
            self.current, self.lif = nn.Linear(4, 8), neuron.LIFNode()

        def forward(self, x):
            return self.lif(torch.from_numpy(self.current(x).numpy().copy()))

    for batch in (1, 3):
        memory = spq.analyze(ThroughNumpy(), torch.rand(batch, 4)).memory
        assert memory["lif"].neurons == 8


def test_one_neuron_per_sample_without_a_dimension_of_its_own():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.current, self.lif = nn.Linear(4, 1), neuron.LIFNode()

        def forward(self, x):
            return self.lif(self.current(x).squeeze(1))

    assert spq.analyze(Single(), torch.rand(5, 4)).memory["lif"].neurons == 1


def test_states_that_no_batch_explains_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = neuron.IFNode(), neuron.IFNode()

        def forward(self, x):
            return self.one(x), self.two(x.sum() * torch.ones(5, 3))

    with pytest.raises(AnalysisError, match=r"two \(IFNode\).*\(5, 3\).*batch of 2.*one sample"):
        spq.analyze(Odd(), torch.ones(2, 3))
    assert spq.analyze(Odd(), torch.ones(1, 3)).memory["two"].neurons == 15


def test_every_batch_of_a_loader_counts_whatever_its_form():
    net = nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    x, y = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) * 9, torch.zeros(6)
    expected = spq.analyze(net, x).to_dict()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for given in (loader, [(x, y)], [x], iter([(x, y)]), (x,), {"input": x}):
        assert spq.analyze(net, given).to_dict() == expected


# --- every module has a row ---------------------------------------------------------------------


def test_what_is_never_called_has_a_row_and_a_reason():
    spare = nn.ModuleDict({"conv": layer.Conv2d(1, 2, 3), "lif": neuron.LIFNode()})
    model = _Uses(networks.spiking_jelly(), spare)
    memory = spq.analyze(model, EVENTS).memory
    assert memory["spare.conv"].note == "not called by the sample"
    assert memory["spare.conv"].weight_bytes == 4 * 18, "held although it is not called"
    assert memory["spare.lif"].neurons == 0
    assert "not called by the sample" in memory["spare.lif"].note


def test_shared_modules_and_tied_weights_are_counted_once():
    linear, lif = layer.Linear(4, 4, bias=False), neuron.LIFNode()
    net = nn.Sequential(linear, lif, linear, lif, layer.Linear(4, 4, bias=False))
    net[4].weight = linear.weight
    memory = spq.analyze(net, torch.ones(2, 4)).memory
    assert memory.weight_bytes == 4 * 16
    assert memory.membrane_bytes == 4 * 4, "one module keeps one state, however often called"
    assert [memory[path].kind for path in "0123"] == ["weights", "neuron", "shared", "shared"]
    assert memory["2"].note == "the same module as 0, counted there"
    assert memory["4"].note == "the same weight as 0, counted there"
    assert memory.total_bytes == 64 + 16 + 0.5


def test_every_module_with_weights_or_state_appears():
    model = nn.Sequential(
        layer.Linear(5, 8),
        neuron.PSN(T=4),
        layer.SynapseFilter(),
        layer.Linear(8, 4),
        layer.Dropout(),
        neuron.IzhikevichNode(),
        nn.LayerNorm(4),
        neuron.NonSpikingLIFNode(),
    )
    functional.set_step_mode(model, "m")
    memory = spq.analyze(model, torch.ones(4, 3, 5)).memory
    assert [row.path for row in memory] == list("01234567")
    assert (memory["1"].neurons, memory["1"].membrane_bytes) == (8, 0)
    assert memory["1"].note == "keeps no membrane"
    assert (memory["2"].kind, memory["2"].membrane_bytes) == ("state", 4 * 8)
    assert memory["4"].note == "holds no state at inference"
    assert (memory["5"].membrane_bytes, memory["5"].note) == (4 * (4 + 4), "also keeps w")
    assert (memory["7"].neurons, memory["7"].membrane_bytes) == (0, 16)
    assert memory["7"].note == "keeps v, emits no spikes"


def test_attention_embeddings_and_computed_weights_are_counted():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.mix = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
            self.out = parametrizations.weight_norm(nn.Linear(4, 2, bias=False))
            self.lif = neuron.IFNode()
            self.place = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            x = self.words(x) + self.place
            return self.lif(self.out(self.mix(x, x, x, need_weights=False)[0]))

    words = torch.zeros(2, 3, dtype=torch.long)
    memory = spq.analyze(Mixed(), words).memory
    counts = {row.path: row.weights for row in memory if row.weights}
    assert counts == {"words": 40, "mix": 48, "mix.out_proj": 16, "out": 8}
    assert not any("not called" in row.note for row in memory)
    assert memory[""].other_bytes == 4 * 4
    measured = spq.analyze(Mixed(), words, memory="measured").memory
    held = 4 * sum(p.numel() for p in Mixed().parameters())
    assert measured.weight_bytes + measured.other_bytes == held


# --- the model is left alone --------------------------------------------------------------------


@pytest.mark.parametrize("converted", [False, True])
def test_state_mode_weights_and_generator_are_untouched(converted):
    net = networks.spiking_jelly()
    if converted:
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=2), EVENTS)
    net.train()
    net[3].eval()
    net(EVENTS)  # a running state with a graph
    v, modes = net[2].v, [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    sample, generator = EVENTS.clone(), torch.get_rng_state()
    for mode in ("equation", "measured"):
        spq.analyze(net, sample, memory=mode)
    assert net[2].v is v
    assert v.grad_fn is not None
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(sample, EVENTS)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in net.modules())


def test_snntorch_states_and_its_list_of_neurons_are_untouched():
    from snntorch._neurons.neurons import SpikingNeuron

    net = networks.snn_torch()
    net(torch.ones(3, 5))
    mem, known = net[1].mem, list(SpikingNeuron.instances)
    spq.analyze(net, torch.ones(4, 2, 5), timesteps=4)
    assert net[1].mem is mem
    assert [id(module) for module in SpikingNeuron.instances] == [id(module) for module in known]


# --- what comes back ----------------------------------------------------------------------------


def test_the_dictionary_holds_the_contract_and_survives_json():
    report = spq.analyze(networks.spiking_jelly(), EVENTS)
    memory = report.to_dict()["memory"]
    for name in ("weight_bytes", "membrane_bytes", "spike_bytes", "other_bytes", "total_bytes"):
        assert memory[name] == getattr(report.memory, name)
        assert isinstance(memory[name], int | float)
    assert memory["mode"] == "equation"
    assert [row["path"] for row in memory["layers"]] == [row.path for row in report.layers]
    assert json.loads(report.to_json()) == report.to_dict()
    assert "\n" in report.to_json(indent=2)


def test_the_table_says_mode_unit_and_what_the_total_is():
    net = spq.convert(networks.spiking_jelly(), spq.presets.quant_snn(weight_bits=2), EVENTS)
    report = spq.analyze(_Uses(net, nn.Identity()), EVENTS)
    text = report.table()
    assert str(report) == repr(report) == text
    assert text.startswith("_Uses, memory per sample, mode 'equation': spikes take 1 bit")
    assert "2 (1.58)" in text
    assert "total 546 B = weights + membranes + spikes; other (biases, norms" in text
    assert "256 B, is not in it" in text
    line = next(line for line in text.splitlines() if line.startswith("used.4"))
    assert line.split() == ["used.4", "weights", "216", "2", "54", "B", "48", "B"]


def test_long_paths_are_never_shortened():
    name = "a_rather_long_name_" * 10
    net = nn.Sequential(neuron.IFNode())
    net.add_module(name, layer.Linear(3, 3))
    assert name in spq.analyze(net, torch.ones(1, 3)).table()


def test_markdown_has_a_row_for_each_row():
    report = spq.analyze(networks.spiking_jelly(), EVENTS)
    for part in (report.memory, report.sparsity, report.operations):
        assert part.to_markdown() in report.to_markdown()
        lines = [line for line in part.to_markdown().splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(part) + 1
        assert len({line.count("|") for line in lines}) == 1
    assert report.to_markdown().startswith("### Sequential\n")


def test_a_row_is_found_by_its_path_and_a_wrong_one_names_the_closest():
    memory = spq.analyze(networks.Loop(), torch.ones(2, 3, 5)).memory
    assert memory["fc1"].weights == 30
    assert len(memory) == len(list(memory)) == 4
    with pytest.raises(KeyError, match="'fc1'"):
        memory["fc11"]


def test_reports_are_built_from_records():
    row = MemoryRow("fc", "Linear", "weights", weights=4, weight_bits=8, weight_bytes=4.0)
    report = spq.Report("Net", MemoryReport("equation", (row,)))
    assert report.to_dict()["memory"]["total_bytes"] == 4.0


# --- comparing ----------------------------------------------------------------------------------


def _pair():
    net = networks.spiking_jelly()
    ternary = spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    return spq.analyze(net, EVENTS), spq.analyze(ternary, EVENTS)


def test_a_comparison_gives_ratios_against_the_first():
    first, second = _pair()
    comparison = spq.compare(first, second, names=["float", "ternary"])
    rows = comparison.to_dict()["rows"]
    assert [row["name"] for row in rows] == ["float", "ternary"]
    assert set(rows[0]["ratios"].values()) == {1.0}
    assert rows[1]["ratios"]["membrane"] == 16.0
    assert rows[1]["ratios"]["total"] == first.memory.total_bytes / second.memory.total_bytes
    assert json.loads(comparison.to_json()) == comparison.to_dict()
    assert str(comparison) == repr(comparison) == comparison.table()
    assert "16x" in comparison.table()
    assert "2x is half of float" in comparison.table()
    assert comparison.to_markdown().count("\n| ") == 3


def test_names_default_to_classes_numbered_where_they_repeat():
    first, second = _pair()
    loop = spq.analyze(networks.Loop(), torch.ones(2, 3, 5))
    assert spq.compare(first, second, loop).names == ("Sequential 1", "Sequential 2", "Loop")


def test_a_ratio_against_nothing_is_none_and_modes_may_be_mixed():
    net = nn.Sequential(nn.Linear(3, 3), neuron.IFNode())
    lif = nn.Sequential(neuron.IFNode())
    comparison = spq.compare(
        spq.analyze(net, torch.ones(1, 3)), spq.analyze(lif, torch.ones(1, 3), memory="measured")
    )
    ratios = comparison.to_dict()["rows"][1]["ratios"]
    assert ratios["weight"] is None
    assert "measured" in comparison.table()
    assert "and other where measured" in comparison.table()
    measured = spq.analyze(net, torch.ones(1, 3), memory="measured")
    assert "spikes + other" in spq.compare(measured).table()


# --- plots --------------------------------------------------------------------------------------


def _overlaps(figure) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def test_a_report_plots_one_stacked_bar_per_module_without_overlap():
    blocks = [part for _ in range(10) for part in (layer.Linear(64, 64), neuron.IFNode())]
    report = spq.analyze(nn.Sequential(*blocks), torch.ones(1, 64))
    figure = report.plot()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(map(str, range(20)))
    weights, membranes, spikes = axes.containers
    assert weights[0].get_width() == pytest.approx(64 * 64 * 4 / 1e3)
    assert membranes[1].get_width() == pytest.approx(64 * 4 / 1e3)
    assert spikes[1].get_x() == pytest.approx(64 * 4 / 1e3)
    assert axes.get_xlabel() == "memory (kB)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    operations = ["dense", "effective", "compute", "memory traffic"]
    assert legend == ["weights", "membranes", "spikes", *operations]
    assert not _overlaps(figure)
    assert "equation" in axes.get_title()


def test_a_comparison_plots_one_bar_per_model_with_its_total():
    comparison = spq.compare(*_pair(), names=["float", "ternary"])
    axes = comparison.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["float", "ternary"]
    assert [text.get_text() for text in axes.texts] == ["3.756 kB", "2.436 kB"]
    measured = spq.analyze(networks.spiking_jelly(), EVENTS, memory="measured")
    figure = spq.compare(measured).plot()
    assert [text.get_text() for text in figure.legends[0].get_texts()][3] == "other"


def test_plotting_leaves_pyplot_alone_and_says_what_to_install(monkeypatch):
    report = spq.analyze(networks.Loop(), torch.ones(2, 3, 5))
    if "matplotlib.pyplot" in sys.modules:
        from matplotlib import pyplot

        before = pyplot.get_fignums()
        report.plot()
        assert pyplot.get_fignums() == before
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingHostError, match=r"needs matplotlib.*spquant-plugin\[plots\]"):
        report.plot()


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mesured", "eq", None, 3])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(AnalysisError, match="must be one of 'equation', 'paper_tables'") as caught:
        spq.analyze(networks.Loop(), torch.ones(2, 3, 5), memory=mode)
    assert isinstance(caught.value, ValueError)
    if mode == "mesured":
        assert "Closest: 'measured'" in str(caught.value)


class _Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.spare = nn.Linear(4, 4), neuron.IFNode()

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), nn.Linear(4, 2), _Spare()]
)
def test_a_network_without_spiking_neurons_is_refused(net):
    with pytest.raises(AnalysisError, match=r"no spiking neuron ran .* with neurons"):
        spq.analyze(net, torch.ones(2, 4))


def test_no_model_no_sample_and_an_empty_loader_are_refused():
    net = networks.snn_torch()
    with pytest.raises(ConversionError, match=r"must be a torch\.nn\.Module"):
        spq.analyze("net", torch.ones(1))
    for given in (None, 3, "words", net[0]):
        with pytest.raises(AnalysisError, match=r"sample_or_loader = .*iterable of batches"):
            spq.analyze(net, given)
    with pytest.raises(AnalysisError, match="an empty list: must give at least one batch"):
        spq.analyze(net, [])
    with pytest.raises(SampleError, match="without a tensor"):
        spq.analyze(net, ["a"])


def test_a_sample_that_does_not_run_names_the_model_class():
    with pytest.raises(SampleError, match=r"shape \(2, 9\): Sequential cannot run on it"):
        spq.analyze(networks.snn_torch(), torch.ones(2, 9))


@pytest.mark.parametrize("timesteps", [0, -1, 2.0, True, "4"])
def test_timesteps_must_be_a_whole_number(timesteps):
    with pytest.raises(AnalysisError, match="must be a whole number above 0"):
        spq.analyze(networks.snn_torch(), torch.ones(4, 2, 5), timesteps=timesteps)


@pytest.mark.parametrize("sample", [torch.ones(4, 2, 5), torch.tensor(1.0)])
def test_timesteps_must_be_the_first_dimension_of_the_sample(sample):
    with pytest.raises(AnalysisError, match="first dimension must be the 6 steps"):
        spq.analyze(networks.snn_torch(), sample, timesteps=6)


def test_comparing_what_is_no_report_is_refused():
    first, second = _pair()
    with pytest.raises(AnalysisError, match="received no report"):
        spq.compare()
    with pytest.raises(AnalysisError, match="argument 2 is Sequential: each must be a Report"):
        spq.compare(first, networks.snn_torch())
    with pytest.raises(AnalysisError, match="1 names for 2 reports"):
        spq.compare(first, second, names=["one"])
    with pytest.raises(AnalysisError, match="str for 2 reports"):
        spq.compare(first, second, names="ab")
    with pytest.raises(AnalysisError, match="int for 2 reports"):
        spq.compare(first, second, names=2)


def test_names_may_come_from_any_iterable():
    first, second = _pair()
    assert spq.compare(first, second, names=(n for n in "ab")).names == ("a", "b")


# --- the printed rows ---------------------------------------------------------------------------

MB = 1e6


def _network(name, channels, size, classes):
    return spq.models.create(name, in_channels=channels, size=size, num_classes=classes)


def _of(report, *, bytes_of="weight_bytes", convs=True, without=()):
    """Sum over the rows that a printed number counts."""
    return sum(
        getattr(row, bytes_of)
        for row in report.layers
        if row.path not in without and (not convs or "Conv" in row.type or row.kind == "neuron")
    )


def test_vgg9_membranes_are_the_printed_ones():
    net = _network("vgg9", 2, 48, 10)
    x = torch.zeros(1, 1, 2, 48, 48)
    assert spq.analyze(net, x).memory.membrane_bytes == pytest.approx(3.6864 * MB)
    ternary = spq.convert(net, spq.presets.quant_snn(weight_bits=2))
    memory = spq.analyze(ternary, x).memory
    assert memory.membrane_bytes == pytest.approx(0.2304 * MB)
    wide = _network("vgg9", 2, (48, 64), 101)
    memory = spq.analyze(wide, torch.zeros(1, 1, 2, 48, 64)).memory
    assert sum(row.neurons for row in memory) == 1_228_800


def test_resnet19_has_the_printed_weights_membranes_and_totals():
    net, x = _network("resnet19", 3, 32, 10), torch.zeros(1, 1, 3, 32, 32)
    report = spq.analyze(net, x, memory="paper_tables")
    head = [row.path for row in report.layers if row.kind == "neuron"][-1:]  # FC256's neurons
    convs = _of(report) / MB
    membranes = _of(report, bytes_of="membrane_bytes", without=head) / MB
    spikes = _of(report, bytes_of="spike_bytes", without=head) / MB
    assert convs == pytest.approx(49.94, abs=0.01)
    assert membranes == pytest.approx(5.5, abs=0.01)
    assert convs + membranes + spikes == pytest.approx(60.94, abs=0.02)


@pytest.mark.parametrize(
    ("bits", "weights", "total"), [(8, 12.48, 15.22), (4, 6.24, 8.30), (2, 3.12, 4.84)]
)
def test_resnet19_quantised_has_the_printed_weights_and_totals(bits, weights, total):
    rule = spq.UniformWeights(bits)
    config = spq.SpQuantConfig(membrane=spq.UniformMembrane(bits), weights=rule, edge_weights=rule)
    net = spq.convert(_network("resnet19", 3, 32, 10), config)
    report = spq.analyze(net, torch.zeros(1, 1, 3, 32, 32), memory="paper_tables")
    head = [row.path for row in report.layers if row.kind == "neuron"][-1:]
    convs = _of(report) / MB
    others = [
        _of(report, bytes_of=part, without=head) / MB for part in ("membrane_bytes", "spike_bytes")
    ]
    assert convs == pytest.approx(weights, abs=0.01)
    assert others[1] == pytest.approx(1.376, abs=0.001)
    assert convs + sum(others) == pytest.approx(total, abs=0.02)


def test_resnet34_has_the_printed_weights_and_membranes():
    net, x = _network("resnet34", 3, 224, 1000), torch.zeros(1, 1, 3, 224, 224)
    report = spq.analyze(net, x)
    assert sum(row.parameters for row in report.layers) * 4 / MB == pytest.approx(87.19, abs=0.01)
    stem = [row.path for row in report.layers if row.kind == "neuron"][:1]
    membranes = _of(report, bytes_of="membrane_bytes", without=stem) / MB
    assert membranes == pytest.approx(11.03, abs=0.01)
    rule = spq.UniformWeights(8)
    quantized = spq.convert(net, spq.SpQuantConfig(weights=rule, edge_weights=rule))
    assert _of(spq.analyze(quantized, x)) / MB == pytest.approx(21.27, abs=0.01)


def test_a_ratio_of_what_is_not_there_names_the_closest():
    comparison = spq.compare(*_pair())
    with pytest.raises(KeyError, match=r"'wieghts' has no row here. Closest: 'weight'"):
        comparison.ratio(1, "wieghts")
    with pytest.raises(KeyError, match=r"'efective' has no row here. Closest: 'effective'"):
        comparison.operation_ratio(1, "efective")
    with pytest.raises(KeyError, match=r"'eq3' has no row here. Closest: 'eq31'"):
        comparison.energy_ratio(1, "eq3")


def test_a_batch_with_labels_given_as_a_sample_says_what_to_pass():
    net = nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    with pytest.raises(SampleError, match=r"of \(x, labels\) pass x"):
        spq.analyze(net, (torch.ones(2, 4), torch.zeros(2)))
