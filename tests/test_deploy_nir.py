"""NIR files: read back by a literal interpreter and by the hosts' own importers, and refusals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import pairwise

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch.import_nir import import_from_nir as import_snn_torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.nir_exchange.from_nir import import_from_nir
from torch import Tensor, nn
from torch.nn import functional as F

import spquant_plugin as spq
from spquant_plugin.deploy.nir.export import KEY
from spquant_plugin.deploy.nir.neurons import DT, in_seconds
from spquant_plugin.errors import ExportError, ExportWarning, MissingHostError, SampleError

POWERS = spq.PowerOfTwoWeights(4)
WEIGHTS = spq.SpQuantConfig(weights=POWERS, edge_weights=POWERS)


@pytest.fixture(autouse=True)
def _eager():
    """Nothing to compile: these networks run a few steps."""
    with spq.kernels.use("eager"):
        yield


# A slow reader: NIR's equations by forward Euler, node by node, in double precision.


def said(node: nir.NIRNode) -> dict:
    return json.loads(node.metadata[KEY])


def quantised(v: Tensor, rule: dict, rest: float) -> Tensor:
    cuts = rule["cut_points"]
    if cuts is None:
        cuts = [level + 0.5 for level in range(rule["lowest"], rule["highest"])]
    z = (v - rest) / rule["unit"]
    return rest + rule["unit"] * (rule["lowest"] + sum((z > cut).double() for cut in cuts))


def fire(node: nir.NIRNode, v: Tensor, full: bool) -> tuple[Tensor, Tensor]:
    about = said(node)
    threshold, reset = torch.tensor(node.v_threshold), torch.tensor(node.v_reset)
    spikes = v > threshold
    if full:
        own = torch.tensor(about["threshold"], dtype=torch.float64)
        own = own.view(-1, *[1] * (threshold.ndim - 1)) if own.numel() > 1 else own
        spikes = v >= own if about["fires"] == "u >= threshold" else v > own
    rule = about["membrane"] if full else None
    if rule is not None and rule["quantised"] == "before the reset":
        v = quantised(v, rule, about["rest"])
    v = torch.where(spikes, reset, v)
    if rule is not None and rule["quantised"] == "after the reset":
        v = quantised(v, rule, about["rest"])
    return spikes.double(), v


def charged(node: nir.NIRNode, x: Tensor, state: dict) -> Tensor:
    v = state.get("v", torch.tensor(node.v_reset).expand(x.shape))
    if isinstance(node, nir.IF):
        return v + DT * torch.tensor(node.r) * x
    leak, r = torch.tensor(node.v_leak), torch.tensor(node.r)
    if isinstance(node, nir.CubaLIF):
        current = state.get("i", torch.zeros_like(x))
        change = torch.tensor(node.w_in) * x - current
        x = state["i"] = current + DT / torch.tensor(node.tau_syn) * change
        return v + DT / torch.tensor(node.tau_mem) * (leak - v + r * x)
    return v + DT / torch.tensor(node.tau) * (leak - v + r * x)


def result(node: nir.NIRNode, x: Tensor, state: dict, full: bool) -> Tensor:
    if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
        spikes, state["v"] = fire(node, charged(node, x, state), full)
        return spikes
    if isinstance(node, nir.AvgPool2d):
        return F.avg_pool2d(x, tuple(node.kernel_size), tuple(node.stride))
    if isinstance(node, nir.Flatten):
        return x.flatten(1)
    rule = said(node)["input"] if full else None
    if rule is not None:
        whole = (x / rule["step"] + 0.5).floor()
        x = rule["step"] * whole.clamp(rule["low"] / rule["step"], rule["high"] / rule["step"])
    weight = torch.tensor(node.weight).double()
    bias = torch.tensor(node.bias).double() if hasattr(node, "bias") else None
    if isinstance(node, nir.Linear | nir.Affine):
        return F.linear(x, weight, bias)
    convolve = F.conv1d if isinstance(node, nir.Conv1d) else F.conv2d
    named = ("stride", "padding", "dilation")
    options = {name: np.array(getattr(node, name)).tolist() for name in named}
    return convolve(x, weight, bias, groups=int(node.groups), **options)


def read_and_run(path: object, x_seq: Tensor, *, full: bool) -> Tensor:
    """Spikes of all steps; ``full`` reads the metadata as well."""
    graph = nir.read(path)
    states: dict[str, dict] = {name: {} for name in graph.nodes}
    out = []
    for x in x_seq.double():
        results = {"input": x}
        while "output" not in results:
            for name, node in graph.nodes.items():
                read = [source for source, target in graph.edges if target == name]
                if name not in results and all(source in results for source in read):
                    total = sum(results[source] for source in read)
                    last = isinstance(node, nir.Output)
                    results[name] = total if last else result(node, total, states[name], full)
        out.append(results["output"])
    return torch.stack(out).float()


# Networks whose numbers are sums of few powers of two, so that every way of adding is exact.


@torch.no_grad()
def plain_numbers(net: nn.Module, lowest: float = -0.4) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, lowest, 1.0)
            if module.bias is not None:
                module.bias.copy_((module.bias * 8).round() / 8)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eps = 2.0**-10
            module.running_var.fill_(1 - 2.0**-10)
            count = module.num_features
            module.running_mean.copy_(torch.randint(0, 9, (count,)) / 8)
            module.weight.copy_(2.0 ** -torch.randint(0, 3, (count,)).float())
            module.bias.copy_(torch.randint(-4, 5, (count,)) / 8)
    return net


def jelly(mode: str = "m", *, last: nn.Module | None = None) -> nn.Sequential:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.LIFNode(decay_input=False),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, stride=2),
        neuron.LIFNode(tau=4.0, v_reset=-0.5, v_threshold=0.25),
        layer.Dropout(0.5),
        layer.Flatten(),
        layer.Linear(24, 5),
        layer.BatchNorm1d(5),
        last or neuron.IFNode(),
    )
    functional.set_step_mode(net, mode)
    return plain_numbers(net).eval()


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def all_steps(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Spikes of a model that takes single steps."""
    spq.reset(net)
    with torch.no_grad():
        made = [net(x) for x in x_seq]
    return torch.stack([y[0] if isinstance(y, tuple) else y for y in made])


def lively(spikes: Tensor) -> bool:
    return bool(0.02 < spikes.mean() < 0.98)


def export(net: nn.Module, path: object, *sample: Tensor, **options: object) -> nir.NIRGraph:
    """Export without the warning on what a plain reader does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        return spq.export_nir(net, path, *sample, **options)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_spiking_jelly_reads_the_same_network(tmp_path, mode):
    x_seq = events(8, 3, 2, 8, 8)
    sample = x_seq if mode == "m" else x_seq[0]
    net = spq.convert(jelly(mode), WEIGHTS, sample)
    spq.export_nir(net, tmp_path / "net.nir", sample)
    with torch.no_grad():
        want = net(x_seq) if mode == "m" else all_steps(net, x_seq)
        got, _ = import_from_nir(tmp_path / "net.nir", step_mode="m")(x_seq)
    assert lively(want)
    assert torch.equal(got, want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


def test_types_names_and_edges_are_those_of_the_model(tmp_path):
    net = spq.convert(jelly(), WEIGHTS, events(2, 1, 2, 8, 8))
    graph = spq.export_nir(net, tmp_path / "net.nir", events(2, 1, 2, 8, 8))
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds == {
        "input": "Input",
        "0": "Conv2d",
        "2": "LIF",
        "3": "AvgPool2d",
        "4": "Conv2d",
        "5": "LIF",
        "7": "Flatten",
        "8": "Affine",
        "10": "IF",
        "output": "Output",
    }
    names = list(kinds)
    assert graph.edges == list(pairwise(names))
    read = nir.read(tmp_path / "net.nir")
    assert {name: node.metadata for name, node in read.nodes.items()} == {
        name: node.metadata for name, node in graph.nodes.items()
    }
    assert read.input_type["input"].tolist() == [2, 8, 8]
    assert json.loads(read.metadata[KEY])["format"] == 1


def test_equations_of_every_neuron(tmp_path):
    """Constants by hand: tau and R as SpikingJelly's own exporter writes them."""
    net = jelly(last=neuron.ParametricLIFNode(init_tau=4.0, decay_input=False))
    graph = spq.export_nir(net, tmp_path / "net.nir", events(2, 1, 2, 8, 8))
    first, second, third = graph.nodes["2"], graph.nodes["5"], graph.nodes["10"]
    assert first.tau.shape == (4, 8, 8)
    assert set(first.tau.flat) == {2 * DT}
    assert set(first.r.flat) == {2.0}
    assert (set(second.tau.flat), set(second.r.flat)) == ({4 * DT}, {1.0})
    assert set(second.v_leak.flat) == set(second.v_reset.flat) == {-0.5}
    assert set(third.r.flat) == {4.0}
    assert said(third)["class"] == "ParametricLIFNode"
    assert said(third)["threshold"] == [1.0]


@pytest.mark.parametrize("tau", [1.1, 2.0, 3.0, 7.0, 10.0, 100.7])
def test_a_time_constant_comes_back_to_the_last_bit(tau):
    assert in_seconds(tau) / DT == tau


def test_a_host_that_fires_on_the_threshold_does_so_by_nirs_comparison(tmp_path):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), neuron.IFNode())
    nn.init.constant_(net[0].weight, 0.5)
    graph = spq.export_nir(net, tmp_path / "net.nir")
    assert graph.nodes["1"].v_threshold.item() == np.nextafter(np.float32(1), np.float32(0))
    x_seq = torch.ones(4, 1, 1)
    want = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert torch.equal(all_steps(net, x_seq).flatten(), want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False).flatten(), want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=True).flatten(), want)


def stateful(cell: Callable[..., nn.Module]) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(5, 7), cell(), nn.Linear(7, 4), cell(output=True))
    return plain_numbers(net).eval()


CELLS = {
    "leaky": lambda **o: snn.Leaky(
        0.5, init_hidden=True, reset_mechanism="zero", reset_delay=False, **o
    ),
    "leaky, late": lambda **o: snn.Leaky(0.75, init_hidden=True, reset_mechanism="zero", **o),
    "synaptic": lambda **o: snn.Synaptic(
        0.5, 0.75, init_hidden=True, reset_mechanism="zero", reset_delay=False, **o
    ),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_snn_torch_reads_the_same_network(tmp_path, cell):
    x_seq = torch.randint(-8, 9, (8, 3, 5)) / 4
    net = spq.convert(stateful(cell), WEIGHTS, x_seq[0])
    spq.export_nir(net, tmp_path / "net.nir")
    want = all_steps(net, x_seq)
    assert lively(want)
    other, state, got = import_snn_torch(nir.read(tmp_path / "net.nir")), None, []
    with torch.no_grad():
        for x in x_seq:
            spikes, state = other(x, state)
            got.append(spikes)
    assert torch.equal(torch.stack(got), want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


def test_a_leaky_that_forgets_nothing_is_an_integrator(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), snn.Leaky(1.0, init_hidden=True, reset_mechanism="zero"))
    graph = spq.export_nir(plain_numbers(net), tmp_path / "net.nir")
    assert type(graph.nodes["1"]) is nir.IF
    x_seq = torch.randint(0, 9, (6, 2, 3)) / 8
    want = all_steps(net, x_seq)
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


# What stands in the metadata is enough to run the converted network.

MEMBRANES = [
    spq.TernaryMembrane(),
    spq.TernaryMembrane(boundaries="eq7"),
    spq.BinaryMembrane(unit=0.5),
    spq.UniformMembrane(4),
]


def with_membrane(membrane: object, **options: object) -> spq.SpQuantConfig:
    return spq.SpQuantConfig(membrane=membrane, weights=POWERS, edge_weights=POWERS, **options)


@pytest.mark.filterwarnings("ignore::spquant_plugin.errors.SelfFiringWarning")
@pytest.mark.parametrize("membrane", MEMBRANES, ids=repr)
def test_the_metadata_hold_the_whole_neuron(tmp_path, membrane):
    x_seq = 3 * events(8, 3, 2, 8, 8)
    net = spq.convert(jelly(), with_membrane(membrane), x_seq)
    export(net, tmp_path / "net.nir", x_seq)
    with torch.no_grad():
        want = net(x_seq)
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=True), want)
    assert not torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


@pytest.mark.parametrize("cell", CELLS)
def test_the_metadata_hold_snn_torchs_neuron(tmp_path, cell):
    x_seq = torch.randint(-8, 9, (12, 8, 5)) / 4
    net = spq.convert(stateful(CELLS[cell]), with_membrane(spq.TernaryMembrane()), x_seq[0])
    graph = export(net, tmp_path / "net.nir")
    assert said(graph.nodes["1"])["reset_delay"] is (cell == "leaky, late")
    want = all_steps(net, x_seq)
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=True), want)
    assert not torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


def test_thresholds_of_channels_and_input_quantisers_are_told(tmp_path):
    config = with_membrane(
        spq.TernaryMembrane(),
        threshold=spq.LearnableThreshold(per_channel=True),
        input=spq.UniformInput(4, low=0.0, high=15.0),
    )
    x_seq = torch.randint(0, 80, (6, 2, 2, 8, 8)) / 5
    net = spq.convert(jelly(), config, x_seq)
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "threshold_bounds"):
                steps = torch.arange(module.v_threshold.numel()) / 16
                module.v_threshold.copy_(module.v_threshold * (0.75 + steps))
    with pytest.warns(ExportWarning, match="0 reads its input as it comes instead of UniformInput"):
        graph = spq.export_nir(net, tmp_path / "net.nir", x_seq)
    with torch.no_grad():
        want = net(x_seq)
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=True), want)
    learns = said(graph.nodes["2"])["learnable_threshold"]
    assert (learns["lower"], learns["upper"]) == (
        net[2].threshold_bounds[0].tolist(),
        net[2].threshold_bounds[1].tolist(),
    )


def test_a_norm_takes_the_layers_bias_along(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 4))
    net = spq.convert(plain_numbers(net).eval(), WEIGHTS, torch.rand(1, 2, 3, 3))
    x = torch.randint(0, 9, (5, 2, 3, 3)) / 8
    spq.export_nir(net, tmp_path / "net.nir", x)
    with torch.no_grad():
        want = net(x)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x[None], full=False)[0], want)


def test_levels_of_weights_come_back_from_their_scale(tmp_path):
    x_seq = events(2, 1, 2, 8, 8)
    net = spq.convert(jelly(), spq.SpQuantConfig(weights=spq.UniformWeights(4)), x_seq)
    graph = spq.export_nir(net, tmp_path / "net.nir", x_seq)
    node, about = graph.nodes["0"], said(graph.nodes["0"])
    assert about["weights"] == spq.UniformWeights(8).to_dict()
    assert (about["stored_bits"], about["folded_norm"]) == (8, "1")
    scale = np.array(about["scale"]).reshape(-1, 1, 1, 1)
    levels, _ = net[0].quantized_weight()
    assert torch.equal(torch.tensor(np.rint(node.weight / scale)), levels.detach().double())
    assert said(graph.nodes["4"])["groups"] == 2


@pytest.mark.parametrize("input", [None, spq.UniformInput(4, low=0.0, high=7.5)])
def test_a_quantised_norm_right_behind_its_layer_is_written_with_it(tmp_path, input):
    x_seq = torch.randint(0, 40, (8, 3, 2, 8, 8)) / 5 if input else events(8, 3, 2, 8, 8)
    norm = spq.QuantizedNorm()
    config = spq.SpQuantConfig(weights=POWERS, edge_weights=POWERS, norm=norm, input=input)
    net = spq.convert(jelly(), config, x_seq)
    assert type(net[1]).__name__ == "QuantizedBatchNorm2d"
    export(net, tmp_path / "net.nir", x_seq)
    with torch.no_grad():
        want = net(x_seq)
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=True), want)


def test_the_warning_names_every_neuron_and_strict_refuses(tmp_path):
    x_seq = events(2, 1, 2, 8, 8)
    net = spq.convert(jelly(), spq.presets.quant_snn(), x_seq)
    with pytest.warns(ExportWarning) as caught:
        spq.export_nir(net, tmp_path / "net.nir", x_seq)
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    for path in ("2", "5", "10"):
        assert f"{path} keeps its membrane in float instead of TernaryMembrane(" in text
    assert "strict=True" in text
    with pytest.raises(ExportError, match=r"strict=True.*2 keeps its membrane in float.*Convert"):
        spq.export_nir(net, tmp_path / "strict.nir", x_seq, strict=True)
    assert not (tmp_path / "strict.nir").exists()
    lost = json.loads(nir.read(tmp_path / "net.nir").metadata[KEY])["lost"]
    assert [text.split()[0] for text in lost] == ["2", "5", "10"]


# Ways of wiring.


class Residual(nn.Module):
    """Two additions, one in place, and a reshape that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = layer.Conv2d(2, 3, 3, padding=1), neuron.IFNode()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(3, 3, 3, padding="same", bias=False))
        self.second, self.pool = neuron.LIFNode(), layer.AdaptiveAvgPool2d(2)
        self.head = layer.Linear(12, 3)
        self.out = neuron.IFNode()
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        y = self.second(self.conv(x) + x)
        y += x
        return self.out(self.head(self.pool(y).flatten(2)))


def test_residual_sums_are_several_edges(tmp_path):
    x_seq = events(8, 2, 2, 4, 4)
    net = spq.convert(plain_numbers(Residual(), -1.0).eval(), WEIGHTS, x_seq)
    graph = spq.export_nir(net, tmp_path / "net.nir", x_seq)
    assert set(graph.edges) == {
        ("input", "stem"),
        ("stem", "first"),
        ("first", "conv.0"),
        ("conv.0", "second"),
        ("first", "second"),
        ("first", "pool"),
        ("second", "pool"),
        ("pool", "pool_flatten"),
        ("pool_flatten", "head"),
        ("head", "out"),
        ("out", "output"),
    }
    with torch.no_grad():
        want = net(x_seq)
        got, _ = import_from_nir(tmp_path / "net.nir", step_mode="m")(x_seq)
    assert lively(want)
    assert torch.equal(got, want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


def test_a_sum_that_is_written_over_its_parts_is_read_from_every_view(tmp_path):
    def way(net: Calls, x: Tensor) -> Tensor:
        y = net.a(x)
        view = y.unsqueeze(0)
        y += net.b(x)
        return net.lif(view.squeeze(0))[0]

    graph = spq.export_nir(Calls(way), tmp_path / "net.nir", VECTOR)
    edges = {("input", "a"), ("input", "b"), ("a", "lif"), ("b", "lif"), ("lif", "output")}
    assert set(graph.edges) == edges


class Loop(nn.Module):
    """snnTorch's way: states by hand, a loop over time inside forward."""

    def __init__(self, gather: Callable[..., object] = torch.stack) -> None:
        super().__init__()
        beta = {"beta": 0.5, "reset_mechanism": "zero"}
        self.conv, self.lif1 = nn.Conv1d(2, 3, 3, padding=1), snn.Leaky(**beta)
        self.fc, self.lif2 = nn.Linear(12, 4), snn.Leaky(**beta)
        self.gather = gather

    def forward(self, x: Tensor) -> object:
        mem1, mem2 = self.lif1.init_leaky(), x.new_zeros(x.shape[1], 4)
        spikes, membranes = [], []
        for t in range(len(x)):
            spk, mem1 = self.lif1(self.conv(x[t]), mem1)
            spk, mem2 = self.lif2(self.fc(spk.view(len(spk), -1)), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return self.gather(spikes), torch.stack(membranes)


@pytest.mark.parametrize("gather", [torch.stack, tuple], ids=["stacked", "as a tuple"])
def test_a_loop_over_time_is_one_step_of_the_graph(tmp_path, gather):
    x_seq = torch.randint(-8, 9, (6, 3, 2, 4)) / 4
    net = spq.convert(plain_numbers(Loop(gather)).eval(), WEIGHTS, x_seq)
    graph = spq.export_nir(net, tmp_path / "net.nir", x_seq)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == ["Input", "Conv1d", "LIF", "Flatten", "Affine", "LIF", "Output"]
    with torch.no_grad():
        want = torch.stack(list(net(x_seq)[0]))
    assert lively(want)
    assert torch.equal(read_and_run(tmp_path / "net.nir", x_seq, full=False), want)


def test_names_that_importers_confuse_are_told_apart(tmp_path):
    net = nn.Sequential()
    net.add_module("input", nn.Linear(3, 3))
    net.add_module("a", nn.Sequential(nn.Linear(3, 3)))
    net.add_module("a_0", nn.Linear(3, 2))
    graph = spq.export_nir(net, tmp_path / "net.nir")
    assert list(graph.nodes) == ["input", "input_1", "a.0", "a_0_1", "output"]
    assert [said(graph.nodes[n])["path"] for n in ("input_1", "a.0", "a_0_1")] == [
        "input",
        "a.0",
        "a_0",
    ]
    x = torch.randn(2, 3)
    with torch.no_grad():
        got, _ = import_from_nir(tmp_path / "net.nir")(x)
        assert torch.equal(got, net(x))


def test_a_model_of_one_layer_is_named_after_its_class(tmp_path):
    linear = spq.convert(nn.Linear(3, 2), WEIGHTS)
    graph = spq.export_nir(linear, tmp_path / "net.nir", torch.ones(3))
    assert graph.edges == [("input", "quantizedlinear"), ("quantizedlinear", "output")]
    weight = torch.tensor(graph.nodes["quantizedlinear"].weight)
    assert torch.equal(weight, linear.effective_weight().detach())


def test_an_input_that_is_flattened_keeps_its_shape(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    graph = spq.export_nir(net, tmp_path / "a.nir", torch.rand(3, 2, 2, 2))
    assert graph.nodes["input"].input_type["input"].tolist() == [2, 2, 2]

    class Reshapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(len(x), -1).float())

    graph = spq.export_nir(Reshapes(), tmp_path / "b.nir", torch.ones(1, 2, 2, 2))
    assert graph.nodes["input"].input_type["input"].tolist() == [2, 2, 2]
    assert graph.edges[0] == ("input", "input_flatten")


def test_the_model_is_neither_run_nor_changed(tmp_path):
    x_seq = events(2, 1, 2, 8, 8)
    net = spq.convert(jelly(), spq.presets.quant_snn(), x_seq).train()
    net(x_seq)
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, generator = net[2].v, torch.get_rng_state()
    export(net, str(tmp_path / "net.nir"), x_seq)
    assert net[2].v is state
    assert net.training
    assert not calls
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    known = len(snn.SpikingNeuron.instances)
    spq.export_nir(stateful(CELLS["leaky"]), tmp_path / "leaky.nir")
    assert len(snn.SpikingNeuron.instances) == known + 2  # the two of this very model


# Refusals.


def then(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *modules)


def leaky(**options: object) -> nn.Module:
    options = {"beta": 0.5, "init_hidden": True, "reset_mechanism": "zero", **options}
    return snn.Leaky(**options)


class Calls(nn.Module):
    """Two layers and a neuron, joined by what a test hands in."""

    def __init__(self, way: Callable[..., object]) -> None:
        super().__init__()
        self.a, self.b, self.lif = nn.Linear(4, 4), nn.Linear(4, 4), leaky(init_hidden=False)
        self.way = way

    def forward(self, x: Tensor) -> object:
        return self.way(self, x)


def gated(**options: object) -> nn.Module:
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(), **options)
    return spq.convert(jelly(), config, events(2, 1, 2, 8, 8))


class Odd(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OddLeaky(spq.snntorch.neuron.TernaryLeaky):
    pass


IMAGE, VECTOR = torch.ones(1, 2, 6, 6), torch.ones(3, 4)


def conv(*more: nn.Module, **options: object) -> nn.Sequential:
    options = {"kernel_size": 3, **options}
    return nn.Sequential(nn.Conv2d(2, 4, **options), *more)


def two_steps(net: Calls, x: Tensor) -> Tensor:
    return net.a(x[0]) if len(x) == 1 else torch.stack([net.a(x[0]), net.a(x[2])])


def written_to_a_view(net: Calls, x: Tensor) -> Tensor:
    y = net.a(x)
    seen_from_elsewhere = y.view(-1, 2, 2)
    y *= 2
    return net.b(seen_from_elsewhere.view(-1, 4))


def in_turn(net: Calls, x: Tensor) -> Tensor:
    out = []
    for t, step in enumerate(x):
        first = net.b(step)
        second = net.lif(first)[0]
        out.append(net.a(first if t else second))
    return torch.stack(out)


def without_its_norm() -> nn.Module:
    linear = spq.snntorch.layer.QuantizedLinear(4, 4, weights=POWERS)
    spq.snntorch.layer.QuantizedBatchNorm1d(4, layer=linear)
    return nn.Sequential(linear)


class OddQuantized(spq.snntorch.layer.QuantizedLinear):
    pass


def membrane_read(net: Calls, x: Tensor) -> Tensor:
    return net.b(net.lif(net.a(x))[1])


REFUSED = {
    "soft reset": (then(neuron.IFNode(v_reset=None)), VECTOR, "1 (IFNode) resets softly"),
    "delayed subtraction": (
        then(leaky(reset_mechanism="subtract")),
        VECTOR,
        "by subtracting its threshold one step later (reset_mechanism='subtract'",
    ),
    "no reset": (then(leaky(reset_mechanism="none")), VECTOR, "1 (Leaky) never resets"),
    "dropped step": (
        then(snn.Synaptic(0.5, 0.5, init_hidden=True, reset_mechanism="zero")),
        VECTOR,
        "1 (Synaptic) drops the step after a spike",
    ),
    "lapicque": (
        then(snn.Lapicque(0.5, init_hidden=True, reset_mechanism="zero")),
        VECTOR,
        "1 (Lapicque) drops the step",
    ),
    "recurrence": (
        then(snn.RLeaky(0.5, linear_features=4, init_hidden=True, reset_mechanism="zero")),
        VECTOR,
        "1 (RLeaky) feeds its spikes back one step later",
    ),
    "grades": (
        then(leaky(graded_spikes_factor=2.0)),
        VECTOR,
        "1 (Leaky) emits graded spikes",
    ),
    "leaky spikes": (
        then(leaky(spike_grad=lambda x: torch.where(x > 0, 1.0, 0.1 * x))),
        VECTOR,
        "1 (Leaky) emits other values than 0 and 1",
    ),
    "soft spikes": (
        then(neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False))),
        VECTOR,
        "1 (IFNode) emits other values than 0 and 1",
    ),
    "some integrators": (
        then(leaky(beta=torch.tensor([0.5, 1.0, 0.5, 0.5]))),
        VECTOR,
        "1 (Leaky) has beta = 1 for some neurons",
    ),
    "other neuron": (then(neuron.QIFNode()), VECTOR, "1 (QIFNode) QIFNode has dynamics of its own"),
    "own neuron": (
        then(OddLeaky(0.5, init_hidden=True)),
        VECTOR,
        "1 (OddLeaky) has code of its own",
    ),
    "spatial gate": (
        lambda: gated(spatial_gate=spq.SpatialGate()),
        events(2, 1, 2, 8, 8),
        "2 (TernaryMembraneLIFNode) masks pixels",
    ),
    "channel gate": (
        lambda: gated(channel_gate=spq.ChannelGate()),
        events(2, 1, 2, 8, 8),
        "(ChannelGate) closes channels",
    ),
    "max pool": (
        conv(nn.MaxPool2d(2), nn.Conv2d(4, 1, 2)),
        IMAGE,
        "2 (Conv2d) reads the result of aten.max_pool2d_with_indices, called in 1 (MaxPool2d)",
    ),
    "max pool last": (
        conv(nn.MaxPool2d(2)),
        IMAGE,
        "the model returns the result of aten.max_pool",
    ),
    "activation": (then(nn.ReLU(), nn.Linear(4, 2)), VECTOR, "reads the result of aten.relu"),
    "norm alone": (
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
        VECTOR,
        "0 (BatchNorm1d) reads (input) and does not fold",
    ),
    "norm of a neuron": (
        then(leaky(), nn.BatchNorm1d(4)),
        VECTOR,
        "2 (BatchNorm1d) reads 1 and does not fold",
    ),
    "layer norm": (then(nn.LayerNorm(4)), VECTOR, "1 (LayerNorm) normalises in its own way"),
    "norm of a batch": (
        then(nn.BatchNorm1d(4, track_running_stats=False)),
        VECTOR,
        "1 (BatchNorm1d) normalises by the batch",
    ),
    "padded pool": (
        conv(nn.AvgPool2d(2, padding=1)),
        IMAGE,
        "1 (AvgPool2d) has padding=1",
    ),
    "other divisor": (conv(nn.AvgPool2d(2, divisor_override=1)), IMAGE, "divisor_override=1"),
    "half windows": (
        conv(nn.AvgPool2d(3, ceil_mode=True)),
        IMAGE,
        "1 (AvgPool2d) turns (4, 4) pixels into (2, 2) (ceil_mode)",
    ),
    "windows that differ": (
        conv(nn.AdaptiveAvgPool2d(3)),
        IMAGE,
        "1 (AdaptiveAvgPool2d) turns (4, 4) pixels into (3, 3)",
    ),
    "transposed": (nn.ConvTranspose2d(2, 2, 3), IMAGE, "(ConvTranspose2d) has no node in NIR"),
    "three dimensions": (nn.Conv3d(1, 1, 1), torch.ones(1, 1, 2, 2, 2), "has no node in NIR"),
    "kernel": (conv(kernel_size=(3, 1)), IMAGE, "0 (Conv2d) has the kernel (3, 1)"),
    "even kernel": (
        conv(kernel_size=2, padding="same"),
        IMAGE,
        "with an even kernel",
    ),
    "padding": (conv(padding=1, padding_mode="reflect"), IMAGE, "padding_mode='reflect'"),
    "own layer": (Odd(4, 2), VECTOR, "(model) (Odd) Odd overrides Linear.forward"),
    "own quantised layer": (
        OddQuantized(4, 2, weights=POWERS),
        VECTOR,
        "(model) (OddQuantized) has code of its own",
    ),
    "quantised norm elsewhere": (
        without_its_norm,
        VECTOR,
        "0 (QuantizedLinear) and its quantised norm do not stand side by side",
    ),
    "in turn": (
        Calls(in_turn),
        torch.ones(2, 3, 4),
        "a (Linear) is called 2 times and reads lif; b in turn",
    ),
    "potential as output": (
        then(neuron.NonSpikingIFNode()),
        VECTOR,
        "1 (NonSpikingIFNode) does not spike: its potential is an output",
    ),
    "partial flatten": (conv(nn.Flatten(2)), IMAGE, "1 (Flatten) turns (4, 4, 4) into"),
    "tokens": (
        nn.Sequential(nn.Linear(6, 6), leaky()),
        IMAGE,
        "1 (Leaky) sees 1 signals of shape (2, 6, 6)",
    ),
    "reshape": (
        Calls(lambda net, x: net.lif(net.a(x).reshape(len(x), 2, 2))[0]),
        VECTOR,
        "lif (Leaky) reads (2, 2) from a, which gives (4,)",
    ),
    "called twice": (
        Calls(lambda net, x: net.b(net.a(net.a(x)))),
        VECTOR,
        "a (Linear) is called 2 times",
    ),
    "doubled": (
        Calls(lambda net, x: net.b((y := net.a(x)) + y)),
        VECTOR,
        "b (Linear) reads the result of aten.add",
    ),
    "scaled sum": (
        Calls(lambda net, x: net.b(torch.add(net.a(x), x, alpha=2))),
        VECTOR,
        "b (Linear) reads the result of aten.add",
    ),
    "concatenation": (
        Calls(lambda net, x: net.b(torch.cat([net.a(x)[:, :2], x[:, :2]], 1))),
        VECTOR,
        "b (Linear) reads the result of aten.cat",
    ),
    "written": (
        Calls(lambda net, x: net.b(torch.zeros(3, 4).copy_(net.a(x)))),
        VECTOR,
        "b (Linear) reads the result of aten.copy_",
    ),
    "written to a view": (
        Calls(written_to_a_view),
        VECTOR,
        "b (Linear) reads the result of aten.mul_",
    ),
    "mean": (
        Calls(lambda net, x: net.a(x).mean(0)),
        VECTOR,
        "the model returns the result of aten.mean",
    ),
    "constant": (
        Calls(lambda net, x: net.b(torch.ones(3, 4))),
        VECTOR,
        "b (Linear) reads a tensor that comes neither",
    ),
    "membrane": (Calls(membrane_read), VECTOR, "reads the membrane or another state of lif"),
    "given state": (
        Calls(lambda net, x: net.lif(net.a(x), net.b(x))[0]),
        VECTOR,
        "lif (Leaky) is given b as a second argument",
    ),
    "start": (
        Calls(lambda net, x: net.lif(net.a(x), torch.ones_like(x))[0]),
        VECTOR,
        "lif (Leaky) is given a constant as a second argument",
    ),
    "branch": (
        Calls(lambda net, x: net.a(x) if x.sum() > 0 else net.b(x)),
        VECTOR,
        "asks for a value (aten._local_scalar_dense)",
    ),
    "two results": (
        Calls(lambda net, x: (net.a(x), net.b(x))),
        VECTOR,
        "the model returns a and b: must be the results of one module",
    ),
    "sum returned": (Calls(lambda net, x: net.a(x) + x), VECTOR, "the model returns (input) and a"),
    "nothing": (Calls(lambda net, x: torch.ones(2)), VECTOR, "nothing that a node gives"),
    "steps left out": (
        Calls(two_steps),
        torch.ones(3, 2, 4),
        "a (Linear) is called 2 times, and at call 1 reads another step or only a part of (input)",
    ),
    "steps that nothing reads": (
        Calls(lambda net, x: net.b(torch.stack([net.a(step) for step in x][:2]))),
        torch.ones(3, 2, 4),
        "b (Linear) is called 1 times, and at call 1 reads another step or only a part of a",
    ),
    "last step": (
        Calls(lambda net, x: [net.a(step) for step in x][-1]),
        torch.ones(3, 2, 4),
        "the model returns a of some of its 3 steps",
    ),
    "a product": (
        Calls(lambda net, x: net.a(x) * net.b(x)),
        VECTOR,
        "the model returns the result of aten.mul, called in (model) (Calls)",
    ),
    "a difference": (
        Calls(lambda net, x: net.a(x) - net.b(x)),
        VECTOR,
        "the model returns the result of aten.sub, called in (model) (Calls)",
    ),
    "a repeated input": (
        Calls(lambda net, x: net.a(x.unsqueeze(0).repeat(3, 1, 1))),
        VECTOR,
        "a (Linear) reads the result of aten.repeat, called in (model) (Calls)",
    ),
    "several inputs": (Calls(lambda net, x: x), (VECTOR, VECTOR), "sample with 2 tensors"),
    "no sample": (conv(), None, "Sequential does not say the shape of its input"),
}


@pytest.mark.parametrize(("net", "sample", "text"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_nir_would_change_is_refused(tmp_path, net, sample, text):
    net = net if isinstance(net, nn.Module) else net()
    with pytest.raises(ExportError) as error:
        spq.export_nir(net, tmp_path / "net.nir", sample)
    assert text in str(error.value)
    assert not list(tmp_path.iterdir())


def test_inhibition_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Inhibition"):
        net = then(leaky(inhibition=True))
    with pytest.raises(ExportError, match=r"1 \(Leaky\) lets only the largest neuron fire"):
        spq.export_nir(net, tmp_path / "net.nir")


def test_a_norm_of_a_layer_that_others_read_is_refused(tmp_path):
    def way(net: Calls, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.b(net.norm(y) + y)

    net = Calls(way)
    net.norm = nn.BatchNorm1d(4)
    with pytest.raises(ExportError, match=r"norm \(BatchNorm1d\) reads a and does not fold"):
        spq.export_nir(net, tmp_path / "net.nir", VECTOR)


def test_a_sample_that_does_not_fit_is_an_error_of_the_sample(tmp_path):
    with pytest.raises(SampleError, match=r"sample of shape \(1, 9\)"):
        spq.export_nir(then(), tmp_path / "net.nir", torch.ones(1, 9))


def test_a_missing_package_is_an_error_with_the_command_that_fixes_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(MissingHostError, match=r'pip install "spquant-plugin\[nir\]"'):
        spq.export_nir(then(), tmp_path / "net.nir")
