"""Trained networks whose weights change from step to step, as whole numbers."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.deploy.check import check_graph
from spquant_plugin.deploy.graph import Graph
from spquant_plugin.deploy.steps import changing, variants
from spquant_plugin.errors import DeployError, ExportError, FormatError
from spquant_plugin.functional.temporal import code_bits, temporal_levels, temporal_scale

from .c99_build import FAST, Builder, call, expected, need, told
from .format_editing import edit, same
from .lively import Loop, converted, events, jelly

lower = functools.partial(spq.to_integer, engine="torch")
Weights = spq.TemporalTernaryWeights
LIF = neuron.LIFNode
STEPS = 4


def config(
    steps: int = STEPS, scale: str = "per_step", bits: int = 2, **fields
) -> spq.SpQuantConfig:
    weights = Weights(bits, scale=scale, timesteps=steps)
    fields = {"membrane": spq.TernaryMembrane(), "edge_weights": spq.UniformWeights(8), **fields}
    return spq.SpQuantConfig(weights=weights, **fields)


def convolutions(mode: str = "m") -> nn.Sequential:
    """Two layers between the edges, for ``[T, N, 2, 6, 6]``."""
    return jelly(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        LIF(),
        layer.Conv2d(6, 6, 3, padding=1),
        layer.BatchNorm2d(6),
        LIF(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(54, 8),
        LIF(),
        layer.Linear(8, 3),
        step_mode=mode,
    )


@functools.cache
def made(
    mode: str = "m",
    scale: str = "per_step",
    bits: int = 2,
    steps: int = STEPS,
    edges: str = "uniform",
) -> tuple[nn.Module, Tensor, spq.IntegerNetwork]:
    """A converted model, a sequence for it, and what it was lowered to."""
    torch.manual_seed(bits + steps)
    x = events(steps, 8, 2, 6, 6)
    fields = (
        {} if edges == "uniform" else {"edge_weights": Weights(bits, scale=scale, timesteps=steps)}
    )
    rule = config(steps, scale, bits, **fields)
    if mode == "m":
        model = converted(convolutions(), rule, x)
        return model, x, lower(model, x)
    twin = converted(convolutions(), rule, x)  # norms measured over a sequence
    model = spq.convert(convolutions("s"), rule, x[0]).eval()
    model.load_state_dict(twin.state_dict())
    return model, x, lower(model, x[0])


def lively(checks: spq.deploy.Verification) -> bool:
    return all(0 < check.rate < 1 for check in checks.layers)


@pytest.mark.parametrize(
    ("mode", "scale", "bits", "steps", "edges"),
    [
        ("m", "per_step", 2, 4, "uniform"),
        ("s", "per_step", 2, 4, "uniform"),
        ("m", "shared", 2, 4, "temporal"),
        ("s", "shared", 3, 2, "uniform"),
        ("m", "per_step", 3, 6, "temporal"),
        ("m", "per_step", 4, 2, "uniform"),
        ("m", "per_step", 2, 1, "uniform"),
        ("s", "per_step", 2, 1, "temporal"),
    ],
)
def test_spikingjelly_networks_are_equal(mode, scale, bits, steps, edges):
    model, x, net = made(mode, scale, bits, steps, edges)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks
    assert lively(checks), checks
    assert len(net.graph.by_step) == steps
    assert ("0" in changing(net.graph)) == (edges == "temporal" and steps > 1)
    streamed = [net.step(one) for one in x]
    assert torch.equal(torch.stack(streamed), net(x))
    net.reset()


def test_the_fast_engine_is_equal():
    model, x, net = made()
    assert spq.verify(spq.IntegerNetwork(net.graph, net.sample, "numba"), model, x).exact


def test_both_modes_give_one_network():
    (_, _, many), (_, _, single) = made("m"), made("s")
    assert same(many.graph.nodes, single.graph.nodes)
    assert same(many.graph.later[-1].outputs, single.graph.later[-1].outputs)


def test_weights_and_tables_are_those_of_each_step():
    model, _, net = made()
    levels = temporal_levels(model[3].weight, STEPS)
    for t, one in enumerate(net.graph.by_step):
        assert torch.equal(one["3"].weight, levels[t].to(torch.int8))
        assert one["3"].bits == code_bits(STEPS) == 4
    # The scale of a step moves the thresholds of the neuron behind.
    assert len({tuple(one["5"].breaks.flatten().tolist()) for one in net.graph.by_step}) == STEPS
    assert changing(net.graph) == {"3", "5", "8", "9"}


def test_one_scale_for_all_steps_needs_one_table():
    _, _, net = made("m", "shared", 2, 4, "temporal")
    assert {"0", "3"} <= changing(net.graph) <= {"0", "3", "8", "10"}
    assert len(variants(net.graph, "5")) == 1


@pytest.mark.parametrize("over_time", [None, "sum", "mean", "running sum"])
def test_a_temporal_read_out_has_the_scale_of_each_step(over_time):
    torch.manual_seed(1)
    x = events(STEPS, 6, 5)
    body = jelly(layer.Linear(5, 9), LIF(), layer.Linear(9, 4))
    model = converted(Read(body, over_time), config(edge_weights=Weights(timesteps=STEPS)), x)
    net = lower(model, x)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks
    assert net.graph.outputs[0].over_time == over_time
    scale = temporal_scale(temporal_levels(model.body[2].weight, STEPS))
    for t, one in enumerate(net.graph.by_step):
        assert torch.equal(one.outputs[0].steps[0][1], scale[t].detach())


class Read(nn.Module):
    """Reads a network out over time."""

    def __init__(self, body: nn.Module, over_time: str | None) -> None:
        super().__init__()
        self.body, self.over_time = body, over_time

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.over_time == "running sum":
            return y[0] + y[1] + y[2] + y[3]
        return y if self.over_time is None else getattr(y, self.over_time)(0)


def test_an_analogue_input_of_a_temporal_layer_has_both_scales():
    torch.manual_seed(11)
    x = torch.rand(STEPS, 6, 2, 6, 6)
    rule = config(edge_weights=Weights(timesteps=STEPS), input=spq.UniformInput(8))
    model = converted(convolutions(), rule, x)
    net = lower(model, x)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks
    assert {"0", "2"} <= changing(net.graph)


class Residual(nn.Module):
    """A block whose spikes are added to the next current's counts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = jelly(layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), LIF())
        self.block = jelly(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4), LIF())
        self.join = jelly(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4))
        self.fire = jelly(LIF())
        self.head = jelly(layer.Flatten(), layer.Linear(100, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.block(x) + x
        return self.head(self.fire(self.join(x) + x)).mean(0)


@pytest.mark.parametrize("scale", ["per_step", "shared"])
def test_residual_networks_with_spike_counts_are_equal(scale):
    torch.manual_seed(2)
    x = events(STEPS, 6, 2, 5, 5)
    model = converted(Residual(), config(scale=scale), x)
    checks = spq.verify(lower(model, x), model, x)
    assert checks.exact, checks
    assert lively(checks)


GATES = {
    "channel": {"channel_gate": spq.ChannelGate()},
    "channel, of the input": {"channel_gate": spq.ChannelGate(source="input")},
    "spatial": {"spatial_gate": spq.SpatialGate(0.3)},
    "spatial, prior": {"spatial_gate": spq.SpatialGate(0.3, score="prior")},
}


@pytest.mark.parametrize("gates", GATES)
def test_gated_networks_are_equal_in_both_engines(gates):
    torch.manual_seed(3)
    x = events(STEPS, 4, 2, 6, 6)
    model = converted(convolutions(), config(**GATES[gates]), x)
    net = lower(model, x)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks
    assert spq.verify(net.use("numba"), model, x).exact


# --- the other ways through time ----------------------------------------------------------------


def test_snntorch_loops_are_equal_and_may_be_shorter():
    torch.manual_seed(4)
    x = events(STEPS, 8, 6)
    edges = Weights(timesteps=STEPS)
    model = converted(Loop(lambda: snn.Leaky(0.9), "stack"), config(edge_weights=edges), x)
    net = lower(model, x)
    assert net.graph.repeats == 1
    for steps in (STEPS, STEPS - 1):
        checks = spq.verify(net, model, x[:steps])
        assert checks.exact, checks
    with pytest.raises(DeployError, match=r"received 5 steps: .*known for 4"):
        net(torch.cat([x, x[:1]]))


def test_snntorch_networks_with_hidden_states_are_equal():
    torch.manual_seed(5)
    lif = functools.partial(snn.Leaky, 0.8, init_hidden=True, reset_mechanism="zero")
    model = jelly(nn.Linear(6, 9), lif(), nn.Linear(9, 9), lif(), nn.Linear(9, 3))
    x = events(STEPS, 8, 6)
    model = converted(model, config(), x, sample=x[0])
    net = lower(model, x[0])
    checks = spq.verify(net, model, x)
    assert net.graph.takes == "step"
    assert checks.exact, checks
    assert lively(checks)
    model(x[0])  # the model was left at rest


class Shown(nn.Module):
    """One picture, shown again and again."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.body = convolutions(mode)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "m":
            return self.body(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)).mean(0)
        return torch.stack([self.body(x) for _ in range(STEPS)]).mean(0)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_one_picture_for_all_steps(mode):
    torch.manual_seed(6)
    x = events(6, 2, 6, 6)
    model = converted(Shown(mode), config(edge_weights=Weights(timesteps=STEPS)), x)
    net = lower(model, x)
    assert (net.graph.takes, net.graph.repeats) == ("static", STEPS)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks


def test_layers_in_a_container_that_folds_time():
    torch.manual_seed(7)
    x = events(STEPS, 4, 2, 6, 6)
    body = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        LIF(step_mode="m"),
        layer.SeqToANNContainer(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        LIF(step_mode="m"),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(16, 3)),
    )
    model = converted(body, config(), x)
    net = lower(model, x)
    assert "2.0" in changing(net.graph)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks


# --- refusals -----------------------------------------------------------------------------------


def test_layers_for_different_numbers_of_steps_are_refused():
    model = spq.convert(convolutions("s"), config(4), torch.zeros(1, 2, 6, 6))
    other = spq.convert(convolutions("s"), config(3), torch.zeros(1, 2, 6, 6))
    model[8] = other[8]
    with pytest.raises(DeployError, match=r"numbers of steps: 3 4, 8 3: must be one number"):
        lower(model, torch.zeros(1, 2, 6, 6))


class EncodedOnce(Shown):
    """The first layer sees the picture once, in the weights of the first step."""

    def forward(self, x: Tensor) -> Tensor:
        current = self.body[0](x)
        return torch.stack([self.body[1:](current) for _ in range(STEPS)]).mean(0)


def test_a_layer_that_is_not_called_in_each_step_is_refused():
    x = torch.ones(1, 2, 6, 6)
    model = spq.convert(EncodedOnce("s"), config(edge_weights=Weights(timesteps=STEPS)), x)
    message = r"body\.0 \(QuantizedConv2d\): is called 1 times in 4 steps, .* once in each"
    with pytest.raises(DeployError, match=message):
        lower(model, x)
    model = spq.convert(EncodedOnce("s"), config(), x)
    assert spq.verify(lower(model, x), model, x).exact


def test_what_nir_cannot_say_is_refused():
    x = events(STEPS, 1, 6)
    model = jelly(layer.Linear(6, 6), LIF(), layer.Linear(6, 6), LIF(), layer.Linear(6, 3))
    model = spq.convert(model, config(), x)
    with pytest.raises(ExportError, match=r"2 \(QuantizedLinear\) has weights that change with"):
        spq.export_nir(model, "net.nir", x)


def test_the_papers_float_neurons_and_edges_are_refused_with_a_remedy():
    x = events(STEPS, 2, 2, 6, 6)
    model = spq.convert(convolutions(), spq.presets.tawq(STEPS), x)
    with pytest.raises(DeployError, match=r"its weights are float: .*edge_weights="):
        lower(model, x)


# --- the file -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    _, x, net = made("m", "per_step", 3, 6, "temporal")
    path = tmp_path / "net.spq"
    net.save(path)
    return net, x, path


def test_a_network_comes_back_from_its_file(saved):
    net, x, path = saved
    again = spq.load_integer(path, engine="torch", replay=True)
    assert same(again.graph, net.graph)
    assert changing(again.graph) == changing(net.graph)
    assert torch.equal(again(x), net(x))


def test_a_file_holds_one_code_per_weight(tmp_path):
    torch.manual_seed(8)
    x = events(STEPS, 1, 64)
    model = jelly(layer.Linear(64, 128), LIF(), layer.Linear(128, 256), LIF(), layer.Linear(256, 3))
    net = lower(converted(model, config(scale="shared"), x), x)
    net.save(tmp_path / "net")
    (tmp_path / "one").write_bytes(b"")
    alone = spq.IntegerNetwork(replace(net.graph, later=()), net.sample, "torch")
    alone.save(tmp_path / "one")
    more = (tmp_path / "net").stat().st_size - (tmp_path / "one").stat().st_size
    weights = 128 * 256
    # 4 bits for each weight in place of the 1.6 of one step's trits; the rest is description.
    assert weights * 0.5 - weights / 5 <= more <= weights * 0.5 - weights / 5 + 1500


def altered(parts, change):
    change(parts.network["later"], parts)


ALTERED = {
    "a step is missing": (
        lambda later, parts: later["steps"].pop(),
        r"later\.patterns\.0 = \(\d+, 6\): must be .* of 5 steps",
    ),
    "no steps": (
        lambda later, parts: later["steps"].clear(),
        r"later\.steps = '?\[\]'?: must be a list of 1 to 31 steps",
    ),
    "patterns of no layer": (
        lambda later, parts: later["patterns"].update(x=later["patterns"]["3"]),
        "later.patterns = 'x': must be the name of what can change there",
    ),
    "codes without a pattern": (
        lambda later, parts: parts.tensors["3.weight"][2].__setitem__(0, 255),
        r"'3': holds codes from -\d+ to 8: its 14 patterns have those from -7 to 6",
    ),
    "a weight beside its code": (
        lambda later, parts: later["steps"][0]["nodes"].update({"3": {"weight": {}}}),
        "later.1.3 = 'weight': must be the name of what can change there",
    ),
    "a bound of its own": (
        lambda later, parts: later["steps"][1]["nodes"]["5"].update(low=0),
        "later.2.5 = 'low': must be the name of what can change there",
    ),
    "an output too many": (
        lambda later, parts: later["steps"][0]["outputs"].append({}),
        "later.1.outputs = .*: must be a list of 1, one per output",
    ),
    "nothing said of the steps": (
        lambda later, parts: parts.network.pop("later"),
        "'later' is missing",
    ),
    "the version of other networks": (
        lambda later, parts: parts.metadata.update(version="1"),
        "network: 'later' is not known",
    ),
    "no object": (
        lambda later, parts: later["steps"].__setitem__(0, {"nodes": [], "outputs": [{}]}),
        "later.1 = .*: must be a JSON object",
    ),
    "more repeats than steps": (
        lambda later, parts: parts.network["graph"].update(repeats=7),
        "repeats = 7: must be at most 6, a graph for each",
    ),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_file_is_refused(what, saved):
    change, message = ALTERED[what]
    edit(saved[2], functools.partial(altered, change=change))
    with pytest.raises(FormatError, match=message):
        spq.load_integer(saved[2])


def test_a_truncated_file_is_refused(saved):
    content = saved[2].read_bytes()
    saved[2].write_bytes(content[:-40])
    with pytest.raises(FormatError, match="cut off"):
        spq.load_integer(saved[2])


BROKEN = {
    "nodes": (lambda one: replace(one, nodes=one.nodes[:-1]), r"later\[1\]\.nodes"),
    "shape": (
        lambda one: replace(one, nodes=(replace(one.nodes[0], high=5), *one.nodes[1:])),
        r"later\[1\]\.nodes\[0\]\.high = 5: must be 1, as in the first step",
    ),
    "kind": (
        lambda one: replace(one, nodes=(one.nodes[1], *one.nodes[1:])),
        r"later\[1\]\.nodes\[0\] = 'Convolution': must be a Input",
    ),
    "takes": (lambda one: replace(one, takes="step"), r"later\[1\]\.takes = 'step': must be 'seq"),
    "later": (lambda one: replace(one, later=(one,)), r"later\[1\]\.later = 1: must be \(\)"),
    "output": (
        lambda one: replace(one, outputs=(replace(one.outputs[0], over_time="sum"),)),
        r"later\[1\]\.outputs\[0\]\.over_time = 'sum': must be None, as in the first step",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_graph_whose_steps_do_not_fit_is_refused(what):
    change, message = BROKEN[what]
    _, _, net = made()
    first, second, third = net.graph.later
    graph = replace(net.graph, later=(first, change(second), third))
    with pytest.raises(DeployError, match=message):
        check_graph(graph)


# --- C ------------------------------------------------------------------------------------------


def test_c_gives_the_same_and_holds_one_code_per_weight(tmp_path):
    need("gcc")
    _, x, net = made()
    size = spq.export_c(net, tmp_path / "net")
    program = Builder(tmp_path).build(tmp_path / "net", FAST)
    whole = net.integers(x)
    assert told([str(program)], tmp_path / "net", whole) == expected(net.graph, whole)
    text = (tmp_path / "net" / "spq_network.c").read_text()
    assert text.count("[now]") >= 4  # two layers and two neurons
    stored = 108 + 54 * 6 / 2 + 54 * 8 / 2 + 24
    assert stored <= size.weights <= stored + 40  # runs of codes fill whole bytes


def test_scores_of_a_temporal_read_out_are_added_step_by_step(tmp_path):
    need("gcc")
    net = made("m", "per_step", 3, 6, "temporal")[2]
    spq.export_c(net, tmp_path)
    shift = int(re.search(r"SHIFT (\d+)", (tmp_path / "spq_network.h").read_text())[1])
    (tmp_path / "try.c").write_text(
        '#include <stdio.h>\n#include "spq_network.h"\nint main(void)\n{\n'
        "    int32_t sums[3] = { 9, -12, 7 };\n    int64_t scores[3] = { 0, 0, 0 };\n    int i;\n"
        "    spq_add_scores0(sums, 1, scores);\n    spq_add_scores0(sums, 5, scores);\n"
        '    for (i = 0; i < 3; i++) {\n        printf("%lld ", (long long)scores[i]);\n    }\n'
        "    return 0;\n}\n"
    )
    files = [str(tmp_path / name) for name in ("try.c", "spq_network.c", "spq_kernels.c")]
    call(["gcc", *FAST, *files, "-o", str(tmp_path / "try")])
    found = [int(word) for word in call([str(tmp_path / "try")]).split()]
    outputs = [net.graph.by_step[step].outputs[0] for step in (1, 5)]
    exact = [
        sum(number * Fraction(o.steps[0][1][c].item()) + Fraction(o.steps[1][1][c].item())
            for o in outputs)
        for c, number in enumerate((9, -12, 7))
    ]  # fmt: skip
    assert [Fraction(number, 2**shift) for number in found] == exact


# --- counting -----------------------------------------------------------------------------------


def pairs(graph: Graph, name: str, x: Tensor) -> int:
    """Nonzero weights that meet nonzero inputs ``[T, N, ...]``, each step with its own."""
    total = 0
    for one, part in zip(graph.by_step, x, strict=True):
        node, ones = one[name], part.ne(0).double()
        weight = node.weight.ne(0).double()
        if weight.ndim == 2:
            total += int((ones @ weight.T).sum())
        else:
            total += int(nn.functional.conv2d(ones, weight, padding=node.padding).sum())
    return total


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_operations_and_weights_are_counted_step_by_step(engine):
    _, x, net = made()
    graph = net.graph
    net = spq.IntegerNetwork(graph, net.sample, engine)
    counts = net.count_operations(net.integers(x))
    run = net.run(x, record=True)
    rows = {part.path: part for part in counts.parts.values()}
    layers = {"3": run.spikes["2"], "10": run.spikes["9"]}
    for name, given in layers.items():
        assert rows[name].effective == pairs(graph, name, given)
    zeros = [int(one["3"].weight.eq(0).sum()) for one in graph.by_step]
    assert rows["3"].zero_weights == sum(zeros) / STEPS
    assert (rows["3"].weight_bits, rows["10"].weight_bits) == (4, 8)
    tables = [node.breaks.nbytes for node in variants(graph, "5")]
    assert rows["5"].table_bytes > sum(tables) > tables[0]
    report = spq.analyze(net, x)
    row = next(row for row in report.memory.layers if row.path == "3")
    assert row.weight_bytes == 6 * 54 / 2


# --- distilled students -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_md_snn_students_become_whole_numbers(bits, tmp_path):
    torch.manual_seed(9)
    x = events(STEPS, 6, 2, 5, 5)
    model = converted(Residual(), spq.presets.md_snn(bits), x)
    net = lower(model, x)
    checks = spq.verify(net, model, x)
    assert checks.exact, checks
    assert lively(checks)
    if bits == 4:
        need("gcc")
        spq.export_c(net, tmp_path / "net")
        program = Builder(tmp_path).build(tmp_path / "net", FAST)
        whole = net.integers(x)
        assert told([str(program)], tmp_path / "net", whole) == expected(net.graph, whole)


def test_md_snn_students_of_snntorch():
    torch.manual_seed(10)
    lif = functools.partial(snn.Leaky, 0.8, init_hidden=True, reset_mechanism="zero")
    conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
    model = jelly(
        *(conv(2, 4), nn.BatchNorm2d(4), lif(), conv(4, 4), nn.BatchNorm2d(4), lif()),
        *(nn.Flatten(), nn.Linear(100, 3)),
    )
    x = events(STEPS, 6, 2, 5, 5)
    model = converted(model, spq.presets.md_snn(4), x, sample=x[0])
    checks = spq.verify(lower(model, x[0]), model, x)
    assert checks.exact, checks
    assert lively(checks)


def test_md_snn_students_of_8_bits_store_too_many_levels():
    x = events(STEPS, 2, 2, 5, 5)
    model = spq.convert(Residual(), spq.presets.md_snn(8), x)
    with pytest.raises(DeployError, match=r"its membrane has 256 levels: .* at most 16"):
        lower(model, x)
