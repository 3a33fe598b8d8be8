"""Reports on weights that change with the time step, against slow counts step by step."""

from __future__ import annotations

import json
import math

import networks
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.analysis import codes, entropy, hardware
from spquant_plugin.errors import AnalysisError, ConfigError

T = 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with spq.kernels.use("eager"):  # both ways give the same, and nothing is compiled here
        yield


def slow_levels(weight, timesteps, bits=2):
    """Levels ``[T, *weight.shape]`` by the recursion, one weight after the other."""
    wide = weight.detach().double()
    drive = (wide - wide.mean()) / wide.std()
    top, found = 2 ** (bits - 1) - 1, torch.zeros(timesteps, weight.numel())
    for place, current in enumerate(drive.flatten().tolist()):
        potential = 0.0
        for step in range(timesteps):
            potential += (current - potential) / 2
            level = max(0, min(top, math.ceil(abs(potential) / 0.25) - 1))
            found[step, place] = math.copysign(level, potential) if level else 0.0
            potential = 0.0 if level else potential
    return found.unflatten(1, weight.shape)


def slow_pairs(module, x_seq, levels):
    """Pairs of nonzeros of ``[T, N, ...]``: one dense layer of zeros and ones for each step."""
    pairs = 0
    for x, weight in zip(x_seq, levels, strict=True):
        ones, taps = x.ne(0).double(), weight.ne(0).double()
        if isinstance(module, nn.Linear):
            pairs += int(F.linear(ones, taps).sum())
        else:
            own = (module.stride, module.padding, module.dilation, module.groups)
            pairs += int(F.conv2d(ones, taps, None, *own).sum())
    return pairs


def spikes(*shape):
    return (torch.rand(*shape) < 0.5).float()


def temporal(timesteps=T, bits=2, **fields):
    weights = spq.TemporalTernaryWeights(bits, timesteps=timesteps)
    defaults = {"weights": weights, "edge_weights": weights}
    return spq.SpQuantConfig(**{**defaults, **fields})


def jelly():
    """Two convolutions, one of them in groups and strided, and a linear layer."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        neuron.IFNode(v_threshold=0.3),
        layer.Conv2d(4, 6, 3, stride=2, groups=2),
        neuron.IFNode(v_threshold=0.3),
        layer.Flatten(),
        layer.Linear(6 * 3 * 3, 5),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, "m")
    return net


class Contained(nn.Module):
    """Torch's own layers inside a container, which sees all steps folded into the batch."""

    def __init__(self):
        super().__init__()
        self.stem = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        self.lif = neuron.IFNode(step_mode="m", v_threshold=0.3)
        self.head = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
        self.out = neuron.IFNode(step_mode="m")

    def forward(self, x):
        return self.out(self.head(self.lif(self.stem(x))))


def inputs_of(net, run):
    """The inputs ``[T, N, ...]`` of every weight layer, over all its calls."""
    seen, handles = {}, []
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, path=path: seen.setdefault(path, []).append(args[0].clone())
                )
            )
    with torch.no_grad():
        run(net.eval())
    for handle in handles:
        handle.remove()
    spq.reset(net)
    found = {}
    for path, calls in seen.items():
        joined = torch.cat(calls) if len(calls) == 1 else torch.stack(calls)
        per_step = net.get_submodule(path).weight.ndim + 1
        found[path] = joined.unflatten(0, (T, -1)) if joined.ndim < max(per_step, 3) else joined
    return found


def check_counts(net, run, report, batch, bits=2):
    inputs = inputs_of(net, run)
    assert inputs
    for path, x_seq in inputs.items():
        module, row = net.get_submodule(path), report.operations[path]
        levels = slow_levels(module.weight, T, bits)
        assert row.effective == pytest.approx(slow_pairs(module, x_seq, levels) / batch)
        assert row.nonzero == row.effective < row.dense
        zeros = float((levels == 0).double().mean())
        assert report.sparsity[path].zero_weights == pytest.approx(zeros)


# --- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_step_counts_the_nonzero_weights_of_its_own_in_both_step_modes(bits):
    x = spikes(T, 2, 2, 8, 8)
    net = spq.convert(jelly(), temporal(bits=bits), x)
    whole = spq.analyze(net, x)
    check_counts(net, lambda net: net(x), whole, 2, bits)
    assert all(row.kind == "AC" for row in whole.operations if row.path in "025")
    functional.set_step_mode(net, "s")
    steps = spq.analyze(net, x, timesteps=T)
    assert steps.operations == whole.operations
    assert steps.sparsity == whole.sparsity


def test_layers_in_a_container_count_step_by_step():
    x = spikes(T, 3, 2, 8, 8)
    net = spq.convert(Contained(), temporal(), x)
    check_counts(net, lambda net: net(x), spq.analyze(net, x), 3)


def test_snntorch_counts_step_by_step_in_either_idiom():
    x = spikes(T, 3, 5)
    net = spq.convert(networks.snn_torch(), temporal(), x[0])
    report = spq.analyze(net, x, timesteps=T)
    check_counts(net, lambda net: [net(step) for step in x], report, 3)
    loop = spq.convert(networks.Loop(), temporal(), x)
    check_counts(loop, lambda net: net(x), spq.analyze(loop, x), 3)


def test_further_batches_start_from_the_first_step():
    x = spikes(T, 6, 5)
    net = spq.convert(networks.Loop(), temporal(), x)
    batches = [part.contiguous() for part in x.split(2, 1)]
    assert spq.analyze(net, batches, progress=False).operations == spq.analyze(net, x).operations


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_closed_channels_are_taken_off_step_by_step(step_mode):
    x = spikes(T, 2, 2, 8, 8)
    config = temporal(membrane=spq.TernaryMembrane(), channel_gate=spq.ChannelGate())
    net = spq.convert(jelly(), config, x)
    gate = net.get_submodule("2.channel_gate")
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.copy_(torch.tensor([5.0, -5.0, 5.0, -5.0, -5.0, 5.0]))  # half of the channels
    functional.set_step_mode(net, step_mode)
    report = spq.analyze(net, x, timesteps=T if step_mode == "s" else None)
    functional.set_step_mode(net, "m")
    inputs = inputs_of(net, lambda net: net(x))["2"]
    levels = slow_levels(net[2].weight, T)
    row = report.operations["2"]
    assert row.nonzero == pytest.approx(slow_pairs(net[2], inputs, levels) / 2)
    levels[:, [1, 3, 4]] = 0.0
    assert row.effective == pytest.approx(slow_pairs(net[2], inputs, levels) / 2)


def test_an_analysis_leaves_a_model_in_the_step_that_it_is_in():
    x = spikes(T, 2, 5)
    net = spq.convert(networks.snn_torch(), temporal(), x[0]).eval()
    wanted = [net(step) for step in x]
    spq.reset(net)
    got = [net(x[0]), net(x[1])]
    spq.analyze(net, x, timesteps=T)
    got += [net(x[2]), net(x[3])]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one[0], other[0])


# --- memory and energy ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["per_step", "shared"])
@pytest.mark.parametrize(
    ("bits", "timesteps", "values"), [(2, 4, 9), (2, 2, 5), (3, 4, 13), (4, 1, 15)]
)
def test_a_weight_takes_the_bits_of_one_code(bits, timesteps, values, scale):
    x = spikes(timesteps, 1, 2, 8, 8)
    weights = spq.TemporalTernaryWeights(bits, timesteps=timesteps, scale=scale)
    net = spq.convert(jelly(), spq.SpQuantConfig(weights=weights, edge_weights=weights), x)
    row = spq.analyze(net, x).memory["2"]
    stored = math.ceil(math.log2(values))
    assert row.weights == 6 * 2 * 9
    assert row.weight_bits == stored
    assert row.weight_information_bits == pytest.approx(math.log2(values))
    assert row.weight_bytes == row.weights * stored / 8
    assert row.note == f"one code for {timesteps} time steps"
    # Six biases, the scales, and the patterns of one sign.
    scales = 6 * (timesteps if scale == "per_step" else 1)
    patterns = (values + 1) // 2 * timesteps * bits
    assert row.other_bytes == 4 * (6 + scales) + patterns / 8


def test_the_three_ways_to_count_memory():
    x = spikes(T, 1, 2, 8, 8)
    net = spq.convert(jelly(), temporal(), x)
    found = {
        mode: spq.analyze(net, x, memory=mode).memory["0"]
        for mode in ("equation", "paper_tables", "measured")
    }
    assert [row.weight_bits for row in found.values()] == [4, 2, 32]
    assert [row.weight_bytes for row in found.values()] == [72 * 4 / 8, 72 * 2 / 8, 72 * 4]
    assert "as TaWQ reports; a code for 4 takes 4" in found["paper_tables"].note
    assert "4 (3.17)" in spq.analyze(net, x).memory.table()


def test_energy_reads_a_code_for_each_accumulate():
    x = spikes(T, 1, 2, 8, 8)
    report = spq.analyze(spq.convert(jelly(), temporal(), x), x)
    row, energy = report.operations["2"], report.energy["2"]
    assert energy.weight_pj == pytest.approx(row.effective * 4 / 64 * 10)  # the memory of 8 KB
    assert energy.compute_pj == pytest.approx(row.effective * 0.03)


def test_the_counter_of_steps_is_no_part_of_a_report():
    x = spikes(T, 1, 5)
    net = spq.convert(networks.snn_torch(), temporal(), x[0])
    report = spq.analyze(net, x, timesteps=T)
    assert [row.path for row in report.memory] == list("012345")
    measured = spq.analyze(net, x, timesteps=T, memory="measured").memory
    assert measured["0"].other_bytes == 4 * 7  # its bias


class WithSpare(nn.Module):
    """Holds a layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.used, self.spare, self.lif = (layer.Linear(4, 4), layer.Linear(4, 4), neuron.IFNode())
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.lif(self.used(x))


def test_a_layer_that_never_ran_says_what_is_not_known():
    net = spq.convert(WithSpare(), temporal(timesteps=None))
    nn.init.ones_(net.used.weight)
    report = spq.analyze(net, torch.ones(T, 1, 4))
    row = report.memory["spare"]
    assert row.weight_bits == 2
    unknown = "its number of time steps is not known: bits of one step"
    assert row.note == f"{unknown}; not called by the sample"
    assert [row.path for row in report.sparsity] == ["used", "lif"]


def test_float_temporal_and_static_weights_stand_side_by_side():
    x, net = spikes(T, 1, 2, 8, 8), jelly()
    ternary = spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights())
    models = (net, spq.convert(net, temporal(), x), spq.convert(net, ternary, x))
    both = spq.compare(*(spq.analyze(model, x) for model in models), names=["a", "b", "c"])
    assert [both.ratio(index, "weight") for index in range(3)] == [1.0, 8.0, 16.0]
    assert "b      equation" in both.table()
    both.plot()


@pytest.mark.parametrize("tool", ["op_counter", "neurobench"])
def test_other_tools_are_refused_since_they_know_one_weight_only(tool):
    x = spikes(T, 1, 2, 8, 8)
    net = spq.convert(jelly(), temporal(), x)
    pytest.importorskip("neurobench")
    with pytest.raises(AnalysisError, match=r"^0 \(QuantizedConv2d\).*Leave agreement out, or"):
        spq.analyze(net, x, agreement=tool)


# --- entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_entropy_pools_the_levels_of_all_steps(bits):
    net = spq.convert(jelly(), temporal(bits=bits))
    report = entropy.measure_entropy(net)
    pooled = []
    for path in ("0", "2", "5"):
        levels = slow_levels(net.get_submodule(path).weight, T, bits).flatten().tolist()
        assert report[path].counts == {level: levels.count(level) for level in sorted(set(levels))}
        assert (report[path].levels, report[path].steps) == (2**bits - 1, T)
        pooled += levels
    total = report.total(2**bits - 1)
    shares = [pooled.count(level) / len(pooled) for level in set(pooled)]
    assert total.entropy == pytest.approx(-sum(share * math.log2(share) for share in shares))
    assert (total.weights, sum(total.counts.values())) == (len(pooled) // T, len(pooled))
    assert "over 4 time steps" in report.table()


def test_fresh_weights_use_their_levels_evenly():
    """Gaussian weights reach 1.583 bits over four steps, torch's uniform ones less."""
    net = nn.Sequential(layer.Linear(400, 300, step_mode="m"))
    uniform = entropy.measure_entropy(spq.convert(net, temporal())).total(3).entropy
    nn.init.normal_(net[0].weight)
    gaussian = entropy.measure_entropy(spq.convert(net, temporal())).total(3).entropy
    assert gaussian == pytest.approx(1.583, abs=1e-3)
    assert uniform == pytest.approx(1.549, abs=2e-3)


@pytest.mark.parametrize("measure", [entropy.measure_entropy, codes.measure_codes])
def test_without_a_number_of_steps_there_is_nothing_to_count(measure):
    net = spq.convert(jelly(), temporal(timesteps=None))
    with pytest.raises(AnalysisError, match=r"^0 \(QuantizedConv2d\).*Run the model once, or"):
        measure(net)
    net(spikes(T, 1, 2, 8, 8))
    assert measure(net)["0"].entropy > 1


# --- codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3])
def test_codes_tell_the_pattern_of_every_weight(bits):
    net = spq.convert(jelly(), temporal(bits=bits))
    report = codes.measure_codes(net)
    assert [row.path for row in report] == ["0", "2", "5"]
    row, levels = report["5"], slow_levels(net[5].weight, T, bits)
    seen = {}
    for steps in levels.flatten(1).T.int().tolist():
        sign = "-" if min(steps) < 0 else "+" if max(steps) > 0 else ""
        name = sign + "".join(str(abs(level)) for level in steps)
        seen[name] = seen.get(name, 0) + 1
    found = {name: share for name, share in row.shares.items() if share}
    assert found == {name: count / row.weights for name, count in seen.items()}
    assert len(row.shares) == {2: 9, 3: 13}[bits]
    assert list(row.shares)[-1] == "+" + str(2 ** (bits - 1) - 1) * T
    for step, shares in enumerate(row.level_shares):
        counts = [int((levels[step] == level).sum()) for level in row.levels]
        assert shares == pytest.approx([count / row.weights for count in counts])
    assert sum(row.pattern_shares.values()) == pytest.approx(1)
    assert row.entropy <= row.most == math.log2(len(row.shares))


def test_codes_as_text_and_as_plain_values():
    report = codes.measure_codes(spq.convert(jelly(), temporal()))
    assert "1111 " in report.table()
    assert "| 5 | QuantizedLinear | 270 |" in report.to_markdown()
    plain = json.loads(report.to_json())
    assert plain["layers"][0]["shares"] == report["0"].shares
    assert sum(plain["layers"][0]["counts"].values()) == 72


def test_the_figure_shows_every_code_and_every_step():
    net = spq.convert(jelly(), temporal())
    left, right = spq.analysis.plot_weight_patterns(net).axes
    row = codes.measure_codes(net)["0"]
    widths = [bar.patches[0].get_width() for bar in left.containers[:9]]
    assert widths == pytest.approx([100 * share for share in row.shares.values()])
    assert len(right.containers) == 3 * T * 3
    parts = [bar.patches[0].get_width() for bar in right.containers[:3]]
    assert parts == pytest.approx([100 * share for share in row.level_shares[0]])
    assert left.get_yticklabels()[0].get_text() == "0\n4 steps"


def test_without_temporal_weights_there_are_no_codes():
    with pytest.raises(AnalysisError, match=r"^Sequential: no layer has weights that change"):
        codes.measure_codes(spq.convert(jelly(), spq.presets.quant_snn()))


# --- hardware -------------------------------------------------------------------------------------


def test_a_crossbar_holds_a_matrix_for_each_step_and_drives_one():
    x, net = spikes(T, 1, 2, 8, 8), jelly()
    ternary = spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights())
    moving, still = (
        hardware.estimate(spq.convert(net, config, x), x) for config in (temporal(), ternary)
    )
    for path in ("0", "2", "5"):
        own, other = moving[path], still[path]
        assert (own.matrices, own.weight_bits, own.columns) == (T, 2, 2)
        assert own.pes == T * other.pes
        assert own.energy_pj == other.energy_pj
        assert own.latency_ns == other.latency_ns
        assert own.note == "4 matrices, one for each time step, which drives its own only"
    assert "take a matrix for each step" in moving.table()
    assert "take a matrix for each step" not in still.table()
    compat = hardware.estimate(spq.convert(net, temporal(), x), x, compat=True)
    assert compat.energy_pj == hardware.estimate(net, x, compat=True).energy_pj
    assert (
        compat["0"].note
        == "its weights change with the time step; the public tool knows one matrix"
    )


def test_a_layer_holds_at_least_one_matrix():
    with pytest.raises(ConfigError, match="matrices"):
        hardware.Layer("conv", 2, 4, 8, 8, matrices=0)


# --- MINT, and norms that fold away ---------------------------------------------------------------


def normed():
    """Convolution, norm and neuron twice; the first layer is an edge."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.LIFNode(decay_input=False),
        layer.Conv2d(4, 6, 3),
        layer.BatchNorm2d(6),
        neuron.LIFNode(decay_input=False),
        layer.Flatten(),
        layer.Linear(6 * 6 * 6, 3),
        neuron.LIFNode(decay_input=False),
    )
    functional.set_step_mode(net, "m")
    return networks.lively(net)


def test_mint_has_one_scale_for_a_layer_and_the_membrane_behind_it():
    x = spikes(T, 2, 2, 8, 8)
    net = spq.convert(normed(), spq.presets.mint(4), x)
    report = spq.analyze(net, x)
    memory = {row.path: row for row in report.memory}
    assert (memory["3"].weight_bits, memory["5"].membrane_bits) == (4, 4)
    assert memory["5"].information_bits == pytest.approx(math.log2(15))
    assert memory["3"].other_bytes == 4 * (6 + 1)  # biases, and the one scale
    assert memory["5"].other_bytes == 0
    assert memory["2"].other_bytes == 4  # behind an edge: a scale of its own
    row = report.operations["5"]
    neurons = 6 * 6 * 6
    assert (row.acs, row.macs, row.comparisons) == (T * neurons, 0, 3 * T * neurons)
    found = entropy.measure_entropy(net)["3"]
    levels = net[3].quantized_weight()[0].int().flatten().tolist()
    assert found.counts == {level: levels.count(level) for level in sorted(set(levels))}
    assert found.levels == 15
    assert len(report.sparsity["5"].levels) == 15


def test_a_folded_norm_leaves_a_bias_and_nothing_else():
    x = spikes(T, 1, 2, 8, 8)
    folded, kept = (
        spq.convert(normed(), spq.presets.md_snn(4, norm=spq.QuantizedNorm(mode)), x)
        for mode in ("fold", "shift")
    )
    with torch.no_grad():
        folded[4].weight.mul_(torch.linspace(-1, 2, 6))  # so that folding moves weights
    report, other = (spq.analyze(net, x) for net in (folded, kept))
    assert (report.memory["4"].other_bytes, report.memory["4"].note) == (0, "folded into its layer")
    assert report.memory["0"].other_bytes == 4 * (4 + 4)  # scales, and the norm's bias
    assert report.memory["3"].other_bytes == other.memory["3"].other_bytes  # it had a bias before
    assert other.memory["4"].other_bytes == 4 * 4 * 6
    measured = spq.analyze(folded, x, memory="measured").memory
    assert measured["4"].other_bytes == 4 * 4 * 6 + 8
    found = entropy.measure_entropy(folded)["3"]
    levels = folded[3].quantized_weight()[0].int().flatten().tolist()
    assert found.counts == {level: levels.count(level) for level in sorted(set(levels))}
    zeros = levels.count(0) / len(levels)
    assert report.sparsity["3"].zero_weights == pytest.approx(zeros)


# --- integer networks -----------------------------------------------------------------------------


def test_an_integer_network_counts_as_the_model_that_it_was_lowered_from():
    x = spikes(T, 2, 2, 8, 8)
    net = spq.convert(jelly(), temporal(membrane=spq.TernaryMembrane()), x).eval()
    whole = spq.to_integer(net, x, engine="torch")
    trained, lowered = spq.analyze(net, x), spq.analyze(whole, x)
    for path in ("0", "2", "5"):
        for name in ("dense", "nonzero", "effective", "acs", "inputs", "outputs", "weights"):
            ours, theirs = (getattr(r.operations[path], name) for r in (trained, lowered))
            assert ours == theirs > 0, (path, name)
        ours, theirs = trained.memory[path], lowered.memory[path]
        assert (ours.weight_bits, ours.weight_bytes) == (theirs.weight_bits, theirs.weight_bytes)
        assert ours.note == theirs.note == "one code for 4 time steps"
        zeros = trained.sparsity[path].zero_weights
        assert lowered.sparsity[path].zero_weights == pytest.approx(zeros)
    for path in ("1", "3", "6"):
        assert trained.sparsity[path].firing_rate == lowered.sparsity[path].firing_rate > 0
        assert trained.sparsity[path].level_shares == lowered.sparsity[path].level_shares
    held = spq.analyze(whole, x, memory="measured").memory["0"]
    assert held.weight_bytes == T * 72  # a byte for each step
