"""Weight entropy against slow counts: every quantiser, pooled sums, known distributions."""

from __future__ import annotations

import copy
import json
import math
import sys

import networks
import pytest
import torch
from torch import nn

import spquant_plugin as spq
from spquant_plugin.analysis import entropy
from spquant_plugin.config import _Weights
from spquant_plugin.errors import AnalysisError, ConversionError, MissingHostError
from spquant_plugin.modules.gates import ChannelGate
from spquant_plugin.modules.weight_quantizer import QUANTIZERS, WeightQuantizer

RULES = {
    spq.PowerOfTwoWeights(2): 3,
    spq.PowerOfTwoWeights(4, per_channel=False): 15,
    spq.AdditivePowerOfTwoWeights(5): 31,
    spq.AdditivePowerOfTwoWeights(8, per_channel=False): 255,
    spq.UniformWeights(2): 3,
    spq.UniformWeights(4, scale="sawb"): 15,
    spq.UniformWeights(8): 255,
    spq.TernaryWeights(): 3,
}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Both ways give the same bits, and these tests meet many rules once only."""
    with spq.kernels.use("eager"):
        yield


def quantized(layer, rule):
    return spq.convert(layer, spq.SpQuantConfig(weights=rule, edge_weights=rule))


def slow_entropy(values):
    """Bits, by counting one value after the other."""
    counts = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    total = len(values)
    return -sum(n / total * math.log(n / total, 2) for n in counts.values())


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(40, 6), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)],
    ids=lambda layer: type(layer).__name__,
)
def test_counts_are_those_of_the_levels_one_by_one(layer, rule):
    nn.init.normal_(layer.weight)
    net = quantized(layer, rule)
    row = entropy.measure_entropy(net)[""]
    levels, scale = net.weight_quantizer.eval()(net.rows(net.weight))
    alpha = getattr(net.weight_quantizer, "alpha", None)
    found = {}
    for channel, values in enumerate(levels.detach().double().flatten(1).tolist()):
        size = 1.0 if scale is not None else float(alpha[channel % len(alpha)])
        for value in values:
            level = value / size + 0.0
            found[level] = found.get(level, 0) + 1
    assert row.counts == dict(sorted(found.items()))
    assert row.levels == RULES[rule]
    assert row.most == pytest.approx(math.log(row.levels, 2))
    flat = [level for level, count in found.items() for _ in range(count)]
    assert row.weights == len(flat) == layer.weight.numel()
    assert row.entropy == pytest.approx(slow_entropy(flat))
    assert row.used == pytest.approx(row.entropy / row.most)
    weights = net.effective_weight().detach().flatten().tolist()
    assert row.negative == sum(w < 0 for w in weights) / len(weights)
    assert row.zero == sum(w == 0 for w in weights) / len(weights)
    assert row.positive == sum(w > 0 for w in weights) / len(weights)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_no_weights_take_more_levels_than_there_are(rule):
    """Weights of every size reach all levels of a grid, and none beyond them."""
    layer = nn.Linear(40_000, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 40_000))
    net = quantized(layer, rule)
    if hasattr(net.weight_quantizer, "alpha"):
        net.weight_quantizer.alpha.fill_(0.25)  # sums of powers of two reach beyond it
    row = entropy.measure_entropy(net)[""]
    assert len(row.counts) == row.levels
    assert row.entropy <= row.most


def test_gaussian_weights_use_the_ternary_levels_as_their_threshold_says():
    layer = nn.Linear(200_000, 2)
    nn.init.normal_(layer.weight)
    row = entropy.measure_entropy(quantized(layer, spq.TernaryWeights()))[""]
    # Zero up to 5 % of the largest weight of a channel; a normal distribution beyond it.
    zero = 0.0
    for channel in layer.weight.detach().double():
        threshold = 0.05 * float(channel.abs().max())
        zero += math.erf(threshold / math.sqrt(2)) / 2
    outside = (1 - zero) / 2
    expected = -zero * math.log2(zero) - 2 * outside * math.log2(outside)
    assert row.zero == pytest.approx(zero, abs=0.004)
    assert row.negative == pytest.approx(outside, abs=0.004)
    assert row.entropy == pytest.approx(expected, abs=0.004)
    assert row.most == pytest.approx(1.584962500721156)


def test_extremes_are_no_information_and_all_of_it():
    layer = nn.Linear(6, 1)
    nn.init.zeros_(layer.weight)
    row = entropy.measure_entropy(quantized(layer, spq.TernaryWeights()))[""]
    assert (row.counts, row.entropy, row.used, row.zero) == ({0.0: 6}, 0.0, 0.0, 1.0)
    assert math.copysign(1, row.entropy) == 1
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1, 0, 1, -1, 0]]))
    row = entropy.measure_entropy(quantized(layer, spq.TernaryWeights()))[""]
    assert row.used == pytest.approx(1.0)


def test_sums_pool_the_levels_of_equal_quantisers_and_float_layers_have_a_note():
    net = nn.Sequential(*[nn.Linear(12, 12) for _ in range(4)])
    for layer in net:
        nn.init.normal_(layer.weight)
    net = spq.convert(net, spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=None))
    report = entropy.measure_entropy(net)
    assert [row.path for row in report] == ["0", "1", "2", "3"]
    assert [row.note for row in report] == [
        "in float: not quantised",
        "",
        "",
        "in float: not quantised",
    ]
    assert (report["0"].entropy, report["0"].most, report["0"].used, report["0"].zero) == (
        None,
    ) * 4
    assert report["0"].weights == 144
    both = [v for k in (1, 2) for v in net[k].quantized_weight()[0].flatten().tolist()]
    assert report.total(3).entropy == pytest.approx(slow_entropy(both))
    assert report.total(3).weights == len(both)
    assert [row.levels for row in report.totals] == [3]
    with pytest.raises(KeyError, match=r"255: no layer has so many levels. There are: 3\."):
        report.total(255)


def test_gates_have_rows_and_a_shared_weight_counts_once_in_the_sums():
    x = torch.rand(4, 2, 2, 8, 8).round()
    net = spq.convert(networks.spiking_jelly("m"), spq.presets.spquant_snn(), x)
    report = entropy.measure_entropy(net)
    (gate,) = (path for path, module in net.named_modules() if isinstance(module, ChannelGate))
    assert report[gate].type == "ChannelGate"
    assert {row.levels for row in report} == {3, 255}
    layers = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    layers[1].weight = layers[0].weight
    shared = entropy.measure_entropy(quantized(layers, spq.TernaryWeights()))
    assert [row.weights for row in shared] == [25, 25]
    assert shared.total(3).weights == 25


def test_a_quantiser_of_ones_own_is_measured_by_its_bits():
    class SignWeights(_Weights):
        bits = 1

    class SignQuantizer(WeightQuantizer):
        def forward(self, rows):
            return torch.where(rows < 0, -1.0, 1.0), torch.ones(rows.shape[0], 1)

    QUANTIZERS[SignWeights] = SignQuantizer
    try:
        row = entropy.measure_entropy(quantized(nn.Linear(50, 2), SignWeights()))[""]
    finally:
        del QUANTIZERS[SignWeights]
    assert (row.levels, row.most, row.zero) == (2, 1.0, 0.0)
    assert set(row.counts) == {-1.0, 1.0}


def test_levels_of_several_time_steps_are_pooled():
    class OneForEachStep(WeightQuantizer):
        """Levels ``[T, channels, ...]``."""

        def forward(self, rows):
            return torch.stack([rows.sign(), rows.sign() * 0]), torch.ones(rows.shape[0], 1)

    rows = torch.tensor([[0.5, -0.5]])
    counts = entropy.count_levels(OneForEachStep(spq.TernaryWeights(), 1), rows)
    assert counts == {-1.0: 1, 0.0: 2, 1.0: 1}


def test_the_model_stays_as_it_was_in_training_too():
    layer = nn.Linear(64, 4)
    net = quantized(layer, spq.PowerOfTwoWeights(2)).train()
    with torch.no_grad():
        net.weight.mul_(8)  # the next step of training would move the scale
    kept, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    entropy.measure_entropy(net)
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert net.training
    assert net.weight_quantizer.training
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_network_on_a_gpu_has_the_same_counts():
    net = quantized(nn.Linear(64, 4), spq.PowerOfTwoWeights(3))
    assert entropy.measure_entropy(net.cuda()) == entropy.measure_entropy(net.cpu())


def small():
    net = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(2, 1), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 1.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, 0.0]]))
    rule = spq.TernaryWeights()
    return spq.convert(
        net, spq.SpQuantConfig(weights=rule, edge_weights=rule, overrides={"2": None})
    )


def test_the_report_as_text_and_record():
    report = entropy.measure_entropy(small())
    lines = str(report).splitlines()
    assert lines[0] == "Sequential, entropy of the quantised weights in bits per weight"
    assert " ".join(lines[4].split()) == (
        "0 QuantizedLinear 4 1.5000 1.5850 94.6 % 25.0 % 25.0 % 50.0 %"
    )
    assert lines[6].split() == ["2", "Linear", "1", "in", "float:", "not", "quantised"]
    assert lines[7].split()[:6] == ["all", "of", "3", "levels", "6", "1.4591"]
    assert "| 0 | QuantizedLinear | 4 |" in report.to_markdown()
    assert json.loads(report.to_json()) == report.to_dict()
    record = report.to_dict()["layers"][0]
    assert record["counts"] == {"-1": 1, "0": 1, "1": 2}
    assert (record["entropy"], record["positive"]) == (1.5, 0.5)


def test_what_is_refused_and_why():
    with pytest.raises(AnalysisError, match="Sequential: none of its 2 weight layers is quantised"):
        entropy.measure_entropy(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ConversionError, match=r"model = int: must be a torch.nn.Module"):
        entropy.measure_entropy(3)
    with pytest.raises(KeyError, match="'1x' has no row here"):
        entropy.measure_entropy(small())["1x"]


def test_the_plot_has_three_bars_for_each_quantised_layer_and_sum(monkeypatch):
    report = entropy.measure_entropy(small())
    figure = report.plot()
    signs, bits = figure.axes
    rows = [report["0"], report["1"], report.total(3)]
    for bars, name in zip(signs.containers, ("negative", "zero", "positive"), strict=True):
        widths = [bar.get_width() for bar in bars]
        assert widths == pytest.approx([100 * getattr(row, name) for row in rows])
    assert signs.lines[0].get_xdata()[0] == pytest.approx(100 / 3)
    assert [bar.get_width() for bar in bits.patches] == [row.entropy for row in rows]
    assert [line.get_xdata()[0] for line in bits.lines] == [row.most for row in rows]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingHostError, match=r"plot\(\) needs matplotlib"):
        report.plot()
