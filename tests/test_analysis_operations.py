"""Operation counts against slow loops: every layer, both hosts, gates, and what is not counted."""

from __future__ import annotations

import json
from itertools import product

import networks
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.analysis import OperationReport, OperationRow
from spquant_plugin.modules.gates import ChannelGate, SpatialGate
from spquant_plugin.spikingjelly import layer as our_layer
from spquant_plugin.spikingjelly import neuron as our_neuron

# Untrained networks on made-up samples: many of them stay silent, which is another test's matter.
pytestmark = pytest.mark.filterwarnings("ignore::spquant_plugin.errors.AnalysisWarning")


def spikes(*shape, rate=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def thin_out(module, seed=0):
    """Set about half of the weights to zero."""
    with torch.no_grad():
        module.weight *= spikes(*module.weight.shape, rate=0.5, seed=seed)
    return module


# --- the slow loops: one multiplication at a time ---------------------------------------------


def taps(conv, size):
    """Every (output position, kernel position, input position) that lies inside the input."""
    dims = range(len(size))
    kernel = conv.kernel_size
    if conv.padding == "same":
        left = [conv.dilation[d] * (kernel[d] - 1) // 2 for d in dims]
        out = list(size)
    else:
        left = conv.padding
        out = [
            (size[d] + 2 * left[d] - conv.dilation[d] * (kernel[d] - 1) - 1) // conv.stride[d] + 1
            for d in dims
        ]
    for place in product(*map(range, out)):
        for tap in product(*map(range, kernel)):
            spot = [place[d] * conv.stride[d] - left[d] + tap[d] * conv.dilation[d] for d in dims]
            if conv.padding_mode == "circular":
                spot = [spot[d] % size[d] for d in dims]
            if all(0 <= spot[d] < size[d] for d in dims):
                yield place, tap, tuple(spot)


def transposed_taps(conv, size):
    dims = range(len(size))
    out = [
        (size[d] - 1) * conv.stride[d]
        - 2 * conv.padding[d]
        + conv.dilation[d] * (conv.kernel_size[d] - 1)
        + conv.output_padding[d]
        + 1
        for d in dims
    ]
    for spot in product(*map(range, size)):
        for tap in product(*map(range, conv.kernel_size)):
            place = [
                spot[d] * conv.stride[d] - conv.padding[d] + tap[d] * conv.dilation[d] for d in dims
            ]
            if all(0 <= place[d] < out[d] for d in dims):
                yield tuple(place), tap, spot


def by_loop(module, x, weight, opened=None, kept=None):
    """Dense and effective accumulates of one batch ``[N, C, ...]``, counted one by one."""
    if isinstance(module, nn.Linear):
        dense = effective = 0
        for sample in range(x.shape[0]):
            for o, i in product(*map(range, weight.shape)):
                dense += 1
                is_open = opened is None or opened[sample, o] != 0
                effective += bool(weight[o, i] != 0 and x[sample, i] != 0 and is_open)
        return dense, effective
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    found = list((transposed_taps if transposed else taps)(module, x.shape[2:]))
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    dense = effective = 0
    for sample, group, o, i in product(
        range(x.shape[0]), range(module.groups), range(outs), range(ins)
    ):
        channel, source = group * outs + o, group * ins + i
        for place, tap, spot in found:
            w = weight[(source, o, *tap)] if transposed else weight[(channel, i, *tap)]
            is_open = opened is None or opened[sample, channel] != 0
            is_kept = kept is None or kept[(sample, 0, *place)] != 0
            dense += 1
            effective += bool(w != 0 and x[(sample, source, *spot)] != 0 and is_open and is_kept)
    return dense, effective


LAYERS = {
    "conv1d": (nn.Conv1d(2, 3, 3, padding=1), (7,)),
    "conv1d strided": (nn.Conv1d(2, 3, 4, stride=3, padding=2), (8,)),
    "conv2d": (nn.Conv2d(2, 3, 3), (5, 4)),
    "conv2d padded": (nn.Conv2d(2, 3, 3, padding=(1, 2)), (4, 5)),
    "conv2d strided": (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1), (5, 5)),
    "conv2d dilated": (nn.Conv2d(2, 2, 3, dilation=2, padding=2), (5, 5)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4)),
    "conv2d depthwise": (nn.Conv2d(3, 3, 3, groups=3, padding=1), (4, 4)),
    "conv2d same": (nn.Conv2d(1, 2, (3, 5), dilation=(2, 1), padding="same"), (4, 5)),
    "conv2d circular": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (4, 4)),
    "conv3d": (nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (3, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(2, 3, 3, stride=2), (4,)),
    "transposed 2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (3, 3),
    ),
    "transposed dilated": (nn.ConvTranspose2d(2, 2, 2, dilation=2, padding=1), (3, 4)),
    "transposed 3d": (nn.ConvTranspose3d(1, 2, 2, stride=2), (2, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_counts_as_its_loop(name):
    module, space = LAYERS[name]
    thin_out(module)
    x = spikes(3, module.in_channels, *space)
    row = spq.analyze(nn.Sequential(module, neuron.IFNode()), x).operations["0"]
    dense, effective = by_loop(module, x, module.weight)
    assert (3 * row.dense, 3 * row.effective) == (dense, effective)
    assert (row.kind, row.nonzero, row.skipped) == ("AC", row.effective, 0)
    assert (row.acs, row.macs, row.comparisons) == (row.effective, 0, 0)


def test_a_linear_layer_counts_as_its_loop():
    module, x = thin_out(nn.Linear(7, 5)), spikes(3, 7)
    row = spq.analyze(nn.Sequential(module, neuron.IFNode()), x).operations["0"]
    assert (3 * row.dense, 3 * row.effective) == by_loop(module, x, module.weight)


def test_an_output_size_that_is_asked_for_is_kept_to():
    class Upsamples(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.lif = nn.ConvTranspose1d(1, 1, 3, 2, padding=1), neuron.IFNode()

        def forward(self, x):
            return self.lif(self.up(x, output_size=[6]))  # 5 without

    x = torch.ones(1, 1, 3)
    assert spq.analyze(Upsamples(), x).operations["up"].dense == 3 * 3 - 1


@pytest.mark.parametrize(
    "weights",
    [spq.TernaryWeights(), spq.PowerOfTwoWeights(2), spq.UniformWeights(3)],
)
def test_a_quantised_layer_counts_the_weights_it_computes_with(weights):
    config = spq.SpQuantConfig(weights=weights, edge_weights=weights)
    net = spq.convert(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), neuron.IFNode()), config)
    x = spikes(2, 2, 5, 5)
    weight = net[0].effective_weight()
    row = spq.analyze(net, x).operations["0"]
    assert bool((weight == 0).any())
    assert 2 * row.effective == by_loop(net[0], x, weight)[1] < by_loop(net[0], x, net[0].weight)[1]


def test_sums_above_what_float32_holds_are_exact():
    net = nn.Sequential(nn.Linear(4097, 4097, bias=False), neuron.IFNode())
    nn.init.ones_(net[0].weight)
    row = spq.analyze(net, torch.ones(1, 4097)).operations["0"]
    assert row.dense == row.effective == 4097**2  # odd, and above 2**24


def test_autocast_does_not_round_the_counts():
    net, x = nn.Sequential(nn.Linear(999, 3), neuron.IFNode()), torch.ones(1, 999)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert spq.analyze(net, x).operations.effective == 3 * 999


# --- accumulates or multiply-accumulates ------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"), [(0.0, "AC"), (1.0, "AC"), (0.5, "MAC"), (2.0, "MAC"), (-1.0, "MAC")]
)
def test_inputs_of_0_and_1_are_added_and_all_others_multiplied(value, kind):
    net, x = nn.Sequential(nn.Linear(3, 4), neuron.IFNode()), torch.ones(2, 3)
    x[1, 1] = value
    operations = spq.analyze(net, x).operations
    assert operations["0"].kind == kind
    assert operations.effective == 4 * (6 - (value == 0)) / 2
    expected = (operations.effective, 0) if kind == "AC" else (0, operations.effective)
    assert (operations.effective_acs, operations.effective_macs) == expected
    dense = (operations.dense, 0) if kind == "AC" else (0, operations.dense)
    assert (operations.dense_acs, operations.dense_macs) == dense


def test_one_analogue_step_makes_a_layer_multiply():
    x = torch.ones(3, 1, 5)
    x[1] = 0.25
    assert spq.analyze(networks.snn_torch(), x, timesteps=3).operations["0"].kind == "MAC"


def test_an_input_quantiser_makes_zeros_that_are_not_counted():
    config = spq.SpQuantConfig(weights=spq.UniformWeights(4), input=spq.UniformInput(2))
    net = spq.convert(nn.Sequential(nn.Linear(4, 3), neuron.IFNode()), config, torch.rand(1, 4))
    nn.init.ones_(net[0].weight)
    row = spq.analyze(net, torch.tensor([[0.0, 0.1, 0.4, 1.0]])).operations["0"]
    assert (row.kind, row.effective) == ("MAC", 2 * 3)  # levels 0, 0, 1, 3


# --- time, batch and hosts --------------------------------------------------------------------


def recorded(net, x, run=None):
    """Inputs of every weight layer while the network itself runs."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda m, args, out, path=path: seen.setdefault(path, []).append(args[0].clone())
        )
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    net.eval()
    with torch.no_grad():
        (run or net)(x)
    for handle in handles:
        handle.remove()
    spq.reset(net)
    return seen


def check_layers(net, operations, seen, batch, lead):
    for path, calls in seen.items():
        module = net.get_submodule(path)
        weight = module.effective_weight() if hasattr(module, "effective_weight") else module.weight
        flat = [call.flatten(0, lead - 1) for call in calls]
        counts = [by_loop(module, call, weight) for call in flat]
        dense, effective = (sum(numbers) for numbers in zip(*counts, strict=True))
        assert operations[path].dense == pytest.approx(dense / batch, abs=1e-9)
        assert operations[path].effective == pytest.approx(effective / batch, abs=1e-9)


@pytest.mark.parametrize("converted", [False, True])
def test_spikingjelly_counts_all_steps_in_both_modes(converted):
    net, x = networks.spiking_jelly("m"), spikes(3, 2, 2, 8, 8)
    with torch.no_grad():
        net[0].weight += 0.3
    if converted:
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=2), x)
    whole = spq.analyze(net, x)
    check_layers(net, whole.operations, recorded(net, x), batch=2, lead=2)
    assert whole.operations["8"].effective > 0
    functional.set_step_mode(net, "s")
    steps = spq.analyze(net, x, timesteps=3)
    assert steps.operations == whole.operations
    assert steps.sparsity == whole.sparsity


@pytest.mark.parametrize("converted", [False, True])
def test_snntorch_counts_all_steps_of_either_idiom(converted):
    x = spikes(4, 3, 5)
    for net, timesteps in ((networks.snn_torch(), 4), (networks.Loop(), None)):
        if converted:
            sample = x[0] if timesteps else x
            net = spq.convert(net, spq.presets.quant_snn(weight_bits=4), sample)

        def run(x, net=net, timesteps=timesteps):
            return [net(step) for step in x] if timesteps else net(x)

        operations = spq.analyze(net, x, timesteps=timesteps).operations
        check_layers(net, operations, recorded(net, x, run), batch=3, lead=1)
        assert operations.layers[-1].effective > 0


@pytest.mark.parametrize("gated", [False, True])
def test_a_batch_counts_as_the_mean_of_its_samples(gated):
    net, x = networks.spiking_jelly("m"), spikes(3, 4, 2, 8, 8)
    if gated:
        net = random_gates(spq.convert(net, spq.presets.spquant_snn(), x))
    batch = spq.analyze(net, x).to_dict()
    alone = [spq.analyze(net, x[:, i : i + 1]).to_dict() for i in range(4)]
    for name in ("dense", "effective", "skipped", "gates", "total", "eq30_ungated"):
        mean = sum(report["operations"][name] for report in alone) / 4
        assert batch["operations"][name] == pytest.approx(mean)
    for name in ("firing_rate", "channels_closed", "pixels_masked"):
        if batch["sparsity"][name] is not None:
            mean = sum(report["sparsity"][name] for report in alone) / 4
            assert batch["sparsity"][name] == pytest.approx(mean)


def test_what_sees_constants_only_is_not_divided_by_the_batch():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), neuron.LIFNode()
            self.constant, self.mix = nn.Parameter(torch.ones(3)), nn.Linear(3, 8)

        def forward(self, x):
            return self.lif(self.fc(x) + self.mix(self.constant))

    operations = spq.analyze(Adds(), torch.ones(5, 4)).operations
    assert (operations["fc"].dense, operations["mix"].dense) == (32, 24)


# --- channel gates ----------------------------------------------------------------------------


def random_gates(net):
    """Channel gates that open some channels here and others there."""
    for path, module in net.named_modules():
        if isinstance(module, ChannelGate):
            generator = torch.Generator().manual_seed(len(path))
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight += 0.1
    return net


def masks_of(net, x, run=None):
    """What every gate decides while the network itself runs: masks call by call."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(path, module, out):
        mask = module.open_mask if isinstance(module, ChannelGate) else out
        seen.setdefault(path, []).append(mask.clone().float())

    handles = [
        module.register_forward_hook(lambda m, args, out, path=path: note(path, m, out))
        for path, module in net.named_modules()
        if isinstance(module, ChannelGate | SpatialGate)
    ]
    net.eval()
    with torch.no_grad():
        (run or net)(x)
    for handle in handles:
        handle.remove()
    spq.reset(net)
    return seen


@pytest.mark.parametrize("source", ["membrane", "input"])
@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_closed_channels_are_not_accumulated(step_mode, source):
    x = spikes(3, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(spatial_gate=None, channel_gate=spq.ChannelGate(source=source))
    net = random_gates(spq.convert(networks.spiking_jelly("m"), config, x))
    masks = masks_of(net, x)["4.channel_gate"][0]  # [T, N, C]
    seen = recorded(net, x)["4"][0]
    functional.set_step_mode(net, step_mode)
    operations = spq.analyze(net, x, timesteps=3 if step_mode == "s" else None).operations
    weight = net[4].effective_weight()
    assert 0 < masks.mean() < 1
    opened = by_loop(net[4], seen.flatten(0, 1), weight, masks.flatten(0, 1))[1]
    nonzero = by_loop(net[4], seen.flatten(0, 1), weight)[1]
    row = operations["4"]
    assert (2 * row.effective, 2 * row.nonzero) == (opened, nonzero)
    assert row.skipped == (nonzero - opened) / 2 > 0
    assert operations.skipped == row.skipped
    assert row.note == ""


def test_gates_of_a_snntorch_loop_are_counted_step_by_step():
    x = spikes(5, 3, 5)
    config = spq.presets.spquant_snn(spatial_gate=None)
    net = random_gates(spq.convert(networks.snn_torch(), config, x[0]))
    run = lambda x: [net(step) for step in x]  # noqa: E731
    masks, seen = masks_of(net, x, run)["2.channel_gate"], recorded(net, x, run)["2"]
    row = spq.analyze(net, x, timesteps=5).operations["2"]
    counts = [
        by_loop(net[2], step, net[2].effective_weight(), mask)[1]
        for step, mask in zip(seen, masks, strict=True)
    ]
    assert 3 * row.effective == pytest.approx(sum(counts))
    assert row.skipped > 0


def test_a_gate_in_a_step_container_fits_its_layer():
    """The layer sees time and batch as one axis, the gate sees two."""
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)),
        neuron.LIFNode(step_mode="m"),
        layer.SeqToANNContainer(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neuron.LIFNode(step_mode="m"),
    )
    x = spikes(3, 2, 2, 4, 4, rate=0.8)
    net = random_gates(spq.convert(net, spq.presets.spquant_snn(spatial_gate=None), x))
    (path,) = [path for path, m in net.named_modules() if isinstance(m, ChannelGate)]
    (mask,), conv = masks_of(net, x)[path], net.get_submodule(path.removesuffix(".channel_gate"))
    seen = recorded(net, x)["2.0"][0]
    opened = by_loop(conv, seen, conv.effective_weight(), mask.flatten(0, -2))[1]
    assert 2 * spq.analyze(net, x).operations["2.0"].effective == opened


def test_a_gate_written_by_hand_is_counted_and_credits_no_layer():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = our_neuron.TernaryMembraneLIFNode(step_mode="m")
            self.fc = layer.Linear(4, 6, step_mode="m")
            self.gate = our_layer.ChannelGate(4, 6, neuron=self.lif)
            self.gate.step_mode = "m"
            self.out = our_neuron.TernaryMembraneLIFNode(step_mode="m")

        def forward(self, x):
            return self.out(self.gate(self.fc(self.lif(x))))

    net, x = Gated(), torch.rand(3, 2, 4) * 4
    nn.init.constant_(net.gate.bias, -9.0)  # every channel closed
    report = spq.analyze(net, x)
    assert report.sparsity["gate"].channels_closed == 1.0
    assert report.operations["fc"].skipped == 0 < report.operations["fc"].effective
    assert report.operations["gate"].kind == "gate"
    assert report.operations["fc"].eq30_ratio == 1.0


def test_a_gate_that_never_decides_leaves_its_layer_open_and_says_so():
    net, x = networks.spiking_jelly("m"), spikes(3, 2, 2, 8, 8)
    net = spq.convert(net, spq.presets.spquant_snn(spatial_gate=None), x)
    for module in net.modules():
        module._forward_hooks.clear()
    operations = spq.analyze(net, x).operations
    assert operations["4"].skipped == 0
    assert operations["4"].note == "its gate did not decide on every call: open there"
    assert operations["4.channel_gate"].note == "not called by the sample"


# --- spatial gates ----------------------------------------------------------------------------


def spatial(score, net=None, x=None):
    gate = spq.SpatialGate(sparsity=0.4, score=score)
    config = spq.presets.spquant_snn(channel_gate=None, spatial_gate=gate)
    return random_gates(spq.convert(net or networks.spiking_jelly("m"), config, x))


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("channels", [False, True])
def test_pixels_that_are_masked_beforehand_are_not_accumulated(step_mode, channels):
    x = spikes(3, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(
        spatial_gate=spq.SpatialGate(sparsity=0.4, score="prior"),
        **({} if channels else {"channel_gate": None}),
    )
    net = random_gates(spq.convert(networks.spiking_jelly("m"), config, x))
    masks, seen = masks_of(net, x), recorded(net, x)
    functional.set_step_mode(net, step_mode)
    operations = spq.analyze(net, x, timesteps=3 if step_mode == "s" else None).operations
    for path, target in (("0", "2"), ("4", "6")):
        kept = torch.cat(masks[f"{target}.spatial_gate"])
        opened = masks.get(f"{path}.channel_gate", [None])[0]
        opened = None if opened is None else opened.flatten(0, 1)
        conv, given = net.get_submodule(path), seen[path][0].flatten(0, 1)
        _, effective = by_loop(conv, given, conv.effective_weight(), opened, kept)
        assert 2 * operations[path].effective == effective
        assert operations[path].skipped > 0
    assert not masks["2.spatial_gate"][1].all()
    assert masks["2.spatial_gate"][0].all(), "nothing is known before the first step"


def test_pixels_that_are_ranked_after_the_layer_are_accumulated_all_the_same():
    x = spikes(3, 2, 2, 8, 8)
    operations = spq.analyze(spatial("current", x=x), x).operations
    assert operations["0"].skipped == operations["4"].skipped == 0
    assert operations["0"].note == operations["4"].note == ""
    assert operations["0"].eq30_ratio > 1


def test_no_pixel_is_spared_where_pooling_lies_between():
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3, padding=1), layer.AvgPool2d(2), neuron.LIFNode(), layer.Flatten()
    )
    functional.set_step_mode(net, "m")
    x = spikes(3, 2, 2, 8, 8)
    row = spq.analyze(spatial("prior", net, x), x).operations["0"]
    assert row.skipped == 0
    assert row.note == "its pixels are not those that its neuron masks: all are computed"


def test_no_pixel_is_spared_whose_current_goes_elsewhere_too():
    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer.Conv2d(2, 3, 3, padding=1, step_mode="m")
            self.lif, self.other = (neuron.LIFNode(step_mode="m") for _ in range(2))

        def forward(self, x):
            current = self.conv(x)
            return self.lif(current) + self.other(2 * current)

    x = spikes(3, 2, 2, 4, 4)
    row = spq.analyze(spatial("prior", Forks(), x), x).operations["conv"]
    assert (row.skipped, row.eq30_ratio) == (0, 1.0)


# --- what gates cost --------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_a_channel_gate_costs_its_sums_products_and_comparisons(source):
    x = spikes(3, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(spatial_gate=None, channel_gate=spq.ChannelGate(source=source))
    net = random_gates(spq.convert(networks.spiking_jelly("m"), config, x))
    if source == "membrane":
        net[2].store_v_seq = True
        net.eval()
        with torch.no_grad():
            net(x)
        read = net[2].v_seq  # rest is 0
        spq.reset(net)
        net[2].store_v_seq = False
    else:
        read = recorded(net, x)["4"][0]
    operations = spq.analyze(net, x).operations
    row = operations["4.channel_gate"]
    steps, ins, outs = 3, 4, 6
    assert row.macs == steps * ins * outs
    assert row.comparisons == steps * outs
    assert row.acs == int(read.count_nonzero()) / 2 > 0
    assert row.effective == row.acs + row.macs + row.comparisons
    assert row.dense == read.numel() / 2 + row.macs + row.comparisons
    assert operations.gates == row.effective
    assert operations.total == operations.effective + operations.neurons + operations.gates
    assert operations.total == operations.acs + operations.macs + operations.comparisons


@pytest.mark.parametrize("levels", [None, (-3, 1)])
def test_a_spatial_gate_costs_its_squares_and_its_ranking(levels):
    membrane = spq.TernaryMembrane() if levels is None else spq.UniformMembrane(levels=levels)
    node = our_neuron.TernaryMembraneLIFNode(
        membrane=membrane, step_mode="m", spatial_gate=spq.SpatialGate(0.5)
    )
    given = []
    node.spatial_gate.register_forward_hook(lambda m, args, out: given.append(args[0]))
    x = torch.full((2, 3, 4, 5, 5), -9.0)
    x[:, :, 0] = 0.0
    node(x)
    spq.reset(node)
    row = spq.analyze(node, x).operations["spatial_gate"]
    nonzero = sum(int(one.count_nonzero()) for one in given) / 3
    assert nonzero == 2 * 3 * 25
    assert (row.acs, row.macs) == ((nonzero, 0) if levels is None else (0, nonzero))
    assert row.comparisons == 2 * 25 * 5  # ceil(log2 25) = 5
    assert row.dense == 2 * 4 * 25 + row.comparisons


def test_a_gate_that_ranks_nothing_costs_nothing():
    node = our_neuron.TernaryMembraneLIFNode(spatial_gate=spq.SpatialGate(0.5, score="prior"))
    row = spq.analyze(node, torch.ones(1, 2, 3, 3)).operations["spatial_gate"]
    assert (row.kind, row.effective, row.dense) == ("gate", 0, 0)


def test_a_softmax_is_named_as_not_counted():
    x = spikes(3, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(channel_gate=spq.ChannelGate(score="softmax"))
    operations = spq.analyze(spq.convert(networks.spiking_jelly("m"), config, x), x).operations
    assert operations["4.channel_gate"].note == "its softmax is not counted"


# --- Eq. 30 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["current", "prior"])
def test_equation_30_by_hand(score):
    x = spikes(5, 2, 2, 8, 8)
    config = spq.presets.spquant_snn(spatial_gate=spq.SpatialGate(sparsity=0.35, score=score))
    net = random_gates(spq.convert(networks.spiking_jelly("m"), config, x))
    report = spq.analyze(net, x)
    closed = report.sparsity["4.channel_gate"].channels_closed
    masked = {path: report.sparsity[f"{path}.spatial_gate"].pixels_masked for path in "26"}
    if score == "current":
        assert masked == {"2": 22 / 64, "6": 5 / 16}
    rows = report.operations
    assert rows["0"].eq30_ungated == 2 * 4 * 64 * 9 + 5 * 4 * 64
    assert rows["0"].eq30 == pytest.approx(2 * 4 * 64 * 9 + 5 * 4 * 64 * (1 - masked["2"]))
    assert rows["4"].eq30_ungated == 2 * 6 * 16 * 9 + 5 * 6 * 16
    c = 6 * (1 - closed)
    assert rows["4"].eq30 == pytest.approx(2 * c * 16 * 9 + 5 * c * 16 * (1 - masked["6"]))
    assert rows["8"].eq30 == rows["8"].eq30_ungated == 2 * 3 + 5 * 3
    assert rows.eq30_ratio == rows.eq30_ungated / rows.eq30 > 1


def test_with_every_channel_closed_equation_30_has_no_ratio():
    row = OperationRow("conv", "Conv2d", "AC", eq30=0.0, eq30_ungated=8.0)
    assert row.eq30_ratio is None
    assert OperationReport((row,)).eq30_ratio is None


# --- what is not counted, and says so ---------------------------------------------------------


def test_layers_without_a_rule_say_so():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(5, 4), nn.Linear(4, 4)
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
            self.spare, self.lif = nn.Linear(4, 4), neuron.IFNode()

        def forward(self, words):
            x = self.embed(words)
            return self.lif(self.fc(self.mix(x, x, x)[0]))

    operations = spq.analyze(Mixed(), torch.zeros(2, 3, dtype=torch.long)).operations
    notes = {row.path: row.note for row in operations}
    assert notes == {
        "embed": "not counted: no rule for Embedding",
        "fc": "",
        "mix": "not counted: no rule for MultiheadAttention",
        "mix.out_proj": "computed inside mix, which is not counted",
        "spare": "not called by the sample",
        "lif": "",
    }
    assert operations.dense == operations["fc"].dense == 3 * 16


def test_a_layer_of_its_own_way_is_counted_as_plain_and_says_so():
    class Standardized(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight - self.weight.mean())

    net = nn.Sequential(Standardized(4, 3), neuron.IFNode())
    row = spq.analyze(net, torch.ones(1, 4)).operations["0"]
    assert (row.effective, row.note) == (
        12,
        "computes in a way of its own, counted as a plain layer",
    )


def test_recurrent_weights_are_counted_in_each_step():
    lif = snn.RLeaky(beta=0.5, all_to_all=False, V=torch.tensor([1.0, 0.0, 1.0]), init_hidden=True)
    net = nn.Sequential(nn.Linear(3, 3, bias=False), lif)
    nn.init.eye_(net[0].weight)
    x = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).view(2, 1, 3)
    operations = spq.analyze(net, x, timesteps=2).operations
    row = operations["1.recurrent"]
    assert (row.dense, row.effective, row.kind) == (6, 1, "AC")
    full = nn.Sequential(nn.Linear(3, 4), snn.RLeaky(beta=0.5, linear_features=4, init_hidden=True))
    assert spq.analyze(full, x, timesteps=2).operations["1.recurrent"].dense == 2 * 16


# --- what comes back --------------------------------------------------------------------------


def test_the_dictionary_holds_totals_rows_and_the_convention():
    x = spikes(3, 2, 2, 8, 8)
    net = random_gates(spq.convert(networks.spiking_jelly("m"), spq.presets.spquant_snn(), x))
    report = spq.analyze(net, x)
    found = report.to_dict()["operations"]
    layers = [row for row in found["layers"] if row["kind"] not in ("gate", "neuron")]
    for name in ("dense", "effective", "skipped"):
        assert found[name] == sum(row[name] for row in layers) > 0
    for name in ("acs", "macs", "comparisons", "eq30", "eq30_ungated"):
        assert found[name] == sum(row[name] for row in found["layers"]) > 0
    assert found["total"] == found["effective"] + found["neurons"] + found["gates"]
    assert "zero padding is never counted" in found["convention"]
    assert json.loads(report.to_json())["operations"] == found
    for row in report.operations:
        assert row.effective == row.acs + row.macs + row.comparisons
        assert row.effective <= row.nonzero <= row.dense


def test_the_table_prints_its_convention():
    text = spq.analyze(networks.spiking_jelly(), spikes(3, 2, 2, 8, 8)).table()
    assert "operations per sample" in text
    assert "Eq. 30 as printed: 2 C (1 - S_c) W H k^2 + T B C (1 - S_c) W H (1 - S_p)" in text
    assert "effective: nonzero weight x nonzero input x open output channel" in text


def test_a_row_is_found_by_its_path_and_a_wrong_one_names_the_closest():
    operations = spq.analyze(networks.Loop(), spikes(2, 3, 5)).operations
    assert operations["fc1"].dense == 2 * 30
    assert len(operations) == len(list(operations)) == 4
    with pytest.raises(KeyError, match="'fc1'"):
        operations["fc11"]


def test_a_comparison_shows_accumulates_with_and_without_what_neurons_and_gates_take():
    x = spikes(3, 2, 2, 8, 8)
    net = networks.spiking_jelly("m")
    gated = random_gates(spq.convert(net, spq.presets.spquant_snn(), x))
    first, second = spq.analyze(net, x), spq.analyze(gated, x)
    comparison = spq.compare(first, second, names=["float", "gated"])
    row = comparison.to_dict()["rows"][1]["operations"]
    assert row["effective"] == second.operations.effective
    assert row["ratios"]["effective"] == first.operations.effective / row["effective"]
    assert row["ratios"]["total"] == first.operations.total / second.operations.total
    header = comparison.table().splitlines()[0].split()
    assert header[-6:] == ["accumulates", "ratio", "operations", "ratio", "energy", "ratio"]
    assert comparison.to_markdown().count("\n| ") == 3


def test_plots_show_dense_and_effective_operations():
    x = spikes(3, 2, 2, 8, 8)
    first = spq.analyze(networks.spiking_jelly(), x)
    axes = first.plot().axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "4", "8"]
    dense, effective = axes.containers
    assert dense[1].get_width() == pytest.approx(first.operations["4"].dense / 1e3)
    assert effective[1].get_width() == pytest.approx(first.operations["4"].effective / 1e3)
    assert axes.get_xlabel() == "operations per sample (k)"
    texts = [text.get_text() for text in spq.compare(first, first).plot().axes[1].texts]
    assert len(texts) == 2
    lif = spq.analyze(nn.Sequential(neuron.IFNode()), torch.ones(1, 3))
    assert len(lif.plot().axes) == 2  # no layer, so no operations beside the neurons'


def test_the_model_is_left_as_it_was():
    x = spikes(3, 2, 2, 8, 8)
    net = random_gates(spq.convert(networks.spiking_jelly("m"), spq.presets.spquant_snn(), x))
    hooks = [len(module._forward_hooks) for module in net.modules()]
    gate = net[4].channel_gate
    spq.analyze(net, x)
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert gate.open_mask is None
    assert "_tell" not in vars(net[2])
