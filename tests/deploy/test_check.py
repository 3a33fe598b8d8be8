"""The rules of a graph: every kind that breaks one is named, and graphs that keep them pass."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.check.whole import check_graph
from spquant_plugin.errors import DeployError

from .graphs import Builder, chain, everything, line

GRAPH = everything(0)
BASE = g.Node(name="base", inputs=(), shape=(1,), low=0, high=1)
INT32 = torch.int32


def ones(*shape, dtype=INT32):
    return torch.ones(shape, dtype=dtype)


def changed(name: str, /, **changes) -> g.Graph:
    """The graph with every kind of node, one of them changed."""
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in GRAPH.nodes)
    return replace(GRAPH, nodes=nodes)


def outputs(**changes) -> g.Graph:
    return replace(GRAPH, outputs=(replace(GRAPH.outputs[0], **changes),))


def with_entry(name: str, field: str, index, value) -> g.Graph:
    """The graph with one number of a tensor changed."""
    tensor = getattr(GRAPH[name], field).clone()
    tensor[index] = value
    return changed(name, **{field: tensor})


def refused(graph: g.Graph, words: str) -> None:
    with pytest.raises(DeployError, match=re.escape(words)) as caught:
        check_graph(graph)
    assert "spq.to_integer makes graphs that keep every rule" in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [chain, everything, line])
def test_sound_graphs_pass(kind, seed):
    check_graph(kind(seed))


def test_every_kind_of_node_is_broken_here():
    kinds = {type(node) for node in GRAPH.nodes}
    subclasses, found = [g.Node], set()
    while subclasses:
        kind = subclasses.pop()
        subclasses += kind.__subclasses__()
        if not kind.__name__.startswith("_") and kind is not g.Node:
            found.add(kind)
    assert kinds == found


WHOLE_GRAPH = [
    (replace(GRAPH, nodes=()), "nodes = (): must be a tuple"),
    (replace(GRAPH, nodes=list(GRAPH.nodes)), "must be a tuple"),
    (replace(GRAPH, nodes=(*GRAPH.nodes, BASE)), "nodes[30] = 'Node': must be a kind"),
    (replace(GRAPH, nodes=GRAPH.nodes[1:]), "conv1 = 'Convolution': must be first if it is Input"),
    (replace(GRAPH, nodes=(*GRAPH.nodes, replace(GRAPH.input, name="two"))), "two = 'Input'"),
    (replace(GRAPH, nodes=(*GRAPH.nodes, GRAPH["fc28"])), "nodes[30].name = 'fc28': must be used"),
    (replace(GRAPH, nodes=(GRAPH.nodes[0], *GRAPH.nodes[2:])), "neuron2.inputs = 'conv1': must be"),
    (replace(GRAPH, takes="all"), "takes = 'all': must be one of"),
    (replace(GRAPH, repeats=0), "repeats = 0: must be a whole number from 1 to 65536"),
    (replace(GRAPH, single=1), "single = 1: must be True or False"),
    (replace(GRAPH, model="a\nb"), "model = 'a\\nb': must be printable text"),
    (replace(GRAPH, model=None), "model = None: must be printable text"),
    (replace(GRAPH, outputs=()), "outputs = (): must be a tuple with one output at least"),
    (replace(GRAPH, outputs=("fc28",)), "outputs[0] = 'str': must be an Output"),
    (outputs(value="nowhere"), "outputs[0].value = 'nowhere': must be the name of a node"),
    (outputs(reads="spikes"), "outputs[0].reads = 'spikes'"),
    (outputs(reads="membrane"), "outputs[0].value = 'Dense': must be a Neuron"),
    (outputs(over_time="max"), "outputs[0].over_time = 'max'"),
    (outputs(unit=torch.tensor([0.75])), "outputs[0].unit = [0.75]: must be powers of two"),
    (outputs(unit=torch.tensor([-1.0])), "must be powers of two"),
    (outputs(unit=torch.tensor([torch.inf])), "must be powers of two"),
    (outputs(unit=torch.tensor([0.0])), "must be powers of two"),
    (outputs(unit=torch.ones(3)), "outputs[0].unit = (3,): must be one number or 4 numbers"),
    (outputs(unit=ones(1)), "outputs[0].unit = torch.int32: must be a floating-point type"),
    (outputs(unit=torch.tensor(1.0)), "must be a tensor of one axis"),
    (outputs(gate="gate7"), "outputs[0].gate = 'gate7': must be a ChannelDecision"),
    (outputs(gate="conv1"), "outputs[0].gate = 'conv1': must be a ChannelDecision"),
    (outputs(steps=[]), "outputs[0].steps = []: must be a tuple"),
    (outputs(steps=(("power", torch.ones(1)),)), "must be (multiply, x)"),
    (outputs(steps=(("add",),)), "must be (multiply, x)"),
    (outputs(steps=(("add", 1.0),)), "outputs[0].steps[0][1] = 1.0: must be a tensor"),
    (outputs(steps=(("add", torch.ones(2)),)), "must be one number or 4 numbers"),
    (outputs(steps=(("add", torch.tensor(torch.nan)),)), "must be finite numbers"),
    (outputs(steps=(("norm", *[torch.ones(4)] * 4, -1.0),)), "a finite number of at least 0"),
    (outputs(steps=(("norm", *[torch.ones(1)] * 4, 0.1),)), "must be 4 numbers"),
    (outputs(steps=(("norm", *[torch.zeros(4)] * 4, 0.0),)), "of variance + eps above 0"),
    (outputs(steps=(("norm", None, *[torch.ones(4)] * 3, 0.1),)), "must be a tensor"),
]
NODES = [
    # What all have.
    (changed("fc28", name=""), "nodes[28].name = '': must be printable text"),
    (changed("fc28", name="x" * 1001), "must be printable text of at most 1000 characters"),
    (changed("fc28", inputs=["neuron27"]), "fc28.inputs = ['neuron27']: must be a tuple of names"),
    (changed("fc28", inputs=("fc28",)), "fc28.inputs = 'fc28': must be the name of a node before"),
    (changed("fc28", inputs=()), "fc28.inputs = (): must be 1 names"),
    (changed("fc28", shape=()), "fc28.shape = (): must be 1 to 8 whole numbers of at least 1"),
    (changed("fc28", shape=(4, 0)), "fc28.shape = (4, 0): must be 1 to 8"),
    (changed("fc28", shape=(True,)), "fc28.shape = (True,): must be 1 to 8"),
    (changed("fc28", shape=(2**15, 2**15)), "must be at most 268435456 elements"),
    (changed("fc28", low=-(2**31)), "fc28.low = -2147483648: must be a whole number"),
    (changed("fc28", low=5, high=4), "fc28.high = 4: must be a whole number from 5"),
    (changed("fc28", high=4.5), "fc28.high = 4.5: must be a whole number"),
    # Input.
    (changed("input", quantizer=(8, 0.0)), "input.quantizer = (8, 0.0): must be None or (1 to 8"),
    (changed("input", quantizer=(9, 0.0, 1.0)), "must be None or (1 to 8 bits"),
    (changed("input", quantizer=(4, 0.0, torch.inf)), "must be None or (1 to 8 bits"),
    (changed("input", quantizer=(4, 1.0, 2.0)), "must be low <= 0 <= high"),
    (changed("input", quantizer=(4, 0.0, 0.0)), "must be low <= 0 <= high"),
    (changed("input", quantizer=(4, 0.0, 5e-324)), "must be low <= 0 <= high"),
    (changed("input", quantizer=(4, -1.7e308, 1.7e308)), "must be low <= 0 <= high"),
    (changed("input", quantizer=(4, 0.0, 1.0)), "input.low, high = (-3, 6): must be (0, 15)"),
    # Sums.
    (changed("conv1", weight=None), "conv1.weight = None: must be a tensor of 4 axes"),
    (changed("conv1", weight=GRAPH["conv1"].weight.float()), "must be a tensor of torch.int8"),
    (changed("conv1", weight=GRAPH["conv1"].weight[:, :2]), "must be a tensor of torch.int8"),
    (changed("conv1", weight=GRAPH["conv1"].weight[:4]), "conv1.shape = (8, 9, 8): must be (4, 9"),
    (changed("conv1", stride=(1,)), "conv1.stride = (1,): must be 2 whole numbers of at least 1"),
    (changed("conv1", stride=(1, 0)), "conv1.stride = (1, 0): must be 2"),
    (changed("conv1", stride=(2, 1)), "conv1.shape = (8, 9, 8): must be (8, 5, 8)"),
    (changed("conv1", padding=(0, 1)), "conv1.shape = (8, 9, 8): must be (8, 7, 8)"),
    (changed("conv1", padding=(2**20, 2**20)), "at most 268435456 elements with zeros"),
    (changed("conv1", padding=(-1, 1)), "conv1.padding = (-1, 1): must be 2"),
    (changed("conv1", dilation=(9, 1)), "conv1.inputs = (3, 9, 8): must be large enough"),
    (changed("conv1", groups=0), "conv1.groups = 0: must be a divisor"),
    (changed("conv8", groups=3), "conv8.groups = 3: must be a divisor"),
    (changed("fc28", weight=ones(4, 11, dtype=torch.int8)), "fc28.weight = (torch.int8, (4, 11))"),
    (changed("fc28", weight=ones(5, 12, dtype=torch.int8)), "fc28.shape = (4,): must be (5,)"),
    (changed("fc28", weight=ones(48, dtype=torch.int8)), "must be a matrix"),
    (changed("fc26", inputs=("pool24",)), "fc26.inputs = (16, 2, 2): must be a flat value"),
    (changed("conv1", bits=0), "conv1.bits = 0: must be a whole number from 1 to 8"),
    (changed("fc28", bits=9), "fc28.bits = 9: must be a whole number from 1 to 8"),
    (changed("gate7", bits=2.0), "gate7.bits = 2.0: must be a whole number from 1 to 8"),
    (changed("conv1", low=0), "conv1.low, high = (0, 4158): must be a range that holds -4473"),
    (changed("conv1", high=100), "conv1.low, high = (-4473, 100): must be a range that holds"),
    (changed("input", high=2**31 - 1), "conv1.low, high = (-4473, 4158): must be a range"),
    # Pools.
    (changed("pool23", kernel=(2, 0)), "pool23.kernel = (2, 0): must be 2"),
    (changed("pool23", stride=(2,)), "pool23.stride = (2,): must be 2"),
    (changed("pool23", padding=(2, 0)), "pool23.padding = (2, 0): must be so that every window"),
    (changed("pool23", dilation=(6, 1)), "must be so that every window holds an input"),
    (changed("pool23", dilation=(0, 1)), "pool23.dilation = (0, 1): must be 2"),
    (changed("pool23", padding=(0, 0)), "pool23.shape = (16, 3, 3): must be (16, 2, 2)"),
    (changed("pool23", high=3), "pool23.low, high = (0, 3): must be a range that holds 0 to 4"),
    (changed("pool24", high=15), "pool24.low, high = (0, 15): must be a range that holds 0 to 16"),
    (changed("pool24", inputs=("flat25",)), "pool24.inputs = 'flat25': must be the name of a node"),
    # What moves numbers.
    (changed("flat25", shape=(63,)), "flat25.shape = (63,): must be as many elements as"),
    (changed("cat22", inputs=()), "cat22.inputs = (): must be one name at least"),
    (changed("cat22", inputs=("neuron21", "conv1")), "cat22.inputs = (8, 9, 8): must be alike in"),
    (changed("cat22", shape=(8, 5, 4)), "cat22.shape = (8, 5, 4): must be (16, 5, 4)"),
    (changed("add13", factors=(ones(1),)), "add13.factors = (tensor([1], dtype=torch.int32),)"),
    (changed("add13", factors=(ones(1), ones(7))), "add13.factors.1 = (torch.int32, (7,))"),
    (changed("add13", factors=(ones(1), ones(1).long())), "add13.factors.1 = (torch.int64, (1,))"),
    (changed("add13", factors=(ones(1), 2**29 * ones(1))), "add13.low, high = (0, 4): must be"),
    (changed("add13", factors=(ones(1), (2**31 - 1) * ones(1))), "that never exceed 2147483647"),
    (changed("add13", inputs=("neuron12", "conv1")), "add13.shape = (8, 5, 4): must be (8, 9, 8)"),
    (changed("norm15", multiplier=ones(1)), "norm15.multiplier = (torch.int32, (1,))"),
    (changed("norm15", offset=ones(8, 1)), "norm15.offset = (torch.int32, (8, 1))"),
    (changed("norm15", offset=500 * ones(8)), "norm15.low, high = (-109, 109): must be a range"),
    (changed("norm15", multiplier=2**29 * ones(8)), "norm15 = 107"),
    (changed("both29", inputs=("neuron2",)), "both29.inputs = ('neuron2',): must be 2 names"),
    (changed("both29", shape=(8, 72)), "both29.shape = (8, 72): must be (8, 5, 4)"),
    (changed("both29", inputs=("neuron12", "add13")), "both29.inputs = 'add13': must be a value"),
    (changed("both29", high=2), "both29.low, high = (0, 2): must be 0 and 1"),
    # Gates.
    (changed("gate7", reads="spikes"), "gate7.reads = 'spikes': must be membrane or value"),
    (changed("gate7", inputs=("conv3",)), "gate7.inputs = 'Convolution': must be a Neuron"),
    (changed("gate7", threshold=ones(8)), "gate7.threshold = (torch.int32, (8,))"),
    (changed("gate7", weight=ones(7, 8, dtype=torch.int8)), "gate7.shape = (8,): must be (7,)"),
    (changed("gate7", low=-1), "gate7.low, high = (-1, 1): must be 0 and 1"),
    (changed("mask17", inputs=("norm15", "norm15")), "mask17.inputs = 'norm15': must be a Channel"),
    (changed("mask17", low=5), "mask17.low, high = (5, 109): must be a range"),
    # Neurons.
    (changed("neuron2", inputs=("conv1", "conv1")), "neuron2.inputs = ('conv1', 'conv1'): must be"),
    (changed("neuron2", inputs=("input",)), "neuron2.inputs = (3, 9, 8): must be of shape"),
    (changed("neuron2", high=2), "neuron2.low, high = (0, 2): must be 0 and 1"),
    (changed("neuron2", lowest=1), "neuron2.lowest = 1: must be a whole number from -32 to 0"),
    (changed("neuron2", highest=-1), "neuron2.highest = -1: must be a whole number from 0 to 32"),
    (changed("neuron2", highest=2), "neuron2.breaks = (torch.int32, (8, 5, 1, 9)): must be"),
    (changed("neuron21", highest=8), "neuron21.states = 34: must be at most 32"),
    (changed("neuron2", remembers=None), "neuron2.remembers = None: must be True or False"),
    (changed("neuron2", gate="gate7"), "neuron2.closed = None: must be there if and only if"),
    (changed("neuron9", gate=None), "must be there if and only if there is a gate"),
    (
        changed("neuron9", gate="gate11"),
        "neuron9.gate = 'gate11': must be a ChannelDecision before",
    ),
    (changed("neuron9", gate="conv8"), "neuron9.gate = 'conv8': must be a ChannelDecision before"),
    (changed("neuron9", gate=3), "neuron9.gate = 3: must be a ChannelDecision before"),
    (changed("neuron12", counts=(0, 0)), "neuron12.counts = (0, 0): must be a range that holds 0"),
    (changed("neuron12", counts=(1, 0)), "neuron12.counts = 0: must be a whole number from 1"),
    (changed("neuron12", counts=(0,)), "neuron12.counts = (0,): must be a pair"),
    (changed("neuron12", counts=(0, 2)), "neuron12.breaks = (torch.int32, (8, 3, 2, 5)): must be"),
    (changed("neuron12", counts=(0, 2**30)), "neuron12.breaks = (8, 3, 1073741825, 5): must be at"),
    (changed("neuron2", sign=ones(8)), "neuron2.sign = (torch.int32, (8,)): must be a tensor of"),
    (
        changed("neuron2", outcomes=ones(1, 3, dtype=torch.int16)),
        "neuron2.outcomes = 1: must be 2 to",
    ),
    (changed("neuron2", outcomes=None), "neuron2.outcomes = 0: must be 2 to 256 rows"),
    (
        changed("neuron2", outcomes=ones(10, 2, dtype=torch.int16)),
        "(torch.int16, (10, 2)): must be",
    ),
    (
        changed("neuron9", closed=ones(8, 6, 1)),
        "neuron9.closed = (torch.int32, (8, 6, 1)): must be",
    ),
    (changed("neuron4", pixels="prior"), "neuron4.pixels = 'prior': must be None or a PixelMask"),
    (changed("neuron4", pixels=g.PixelMask("norm", 1)), "neuron4.pixels.score = 'norm'"),
    (changed("neuron4", pixels=g.PixelMask("prior", 21)), "neuron4.pixels.masked = 21: must be"),
    (changed("neuron27", pixels=g.PixelMask("prior", 1)), "must be on a value with space"),
    (changed("neuron2", semantics=None), "neuron2.semantics = None: must be a dictionary"),
    (changed("neuron2", semantics={"": "a"}), "neuron2.semantics = '': must be printable"),
    (changed("neuron2", semantics={"a": 1}), "neuron2.semantics['a'] = 1: must be printable"),
    (with_entry("neuron2", "sign", 3, 0), "neuron2.sign = ["),
    (with_entry("neuron2", "breaks", (0, 0, 0, 0), 2**31 - 1), "must be ascending"),
    (with_entry("neuron2", "outcomes", (0, 0), 2), "neuron2.outcomes, spikes = (0, 2): must be"),
    (with_entry("neuron2", "outcomes", (0, 1), 5), "neuron2.outcomes, states = (0, 5): must be"),
    (with_entry("neuron2", "outcomes", (0, 1), -1), "neuron2.outcomes, states = (-1, 4): must be"),
    (with_entry("neuron2", "outcomes", (0, 2), 2), "neuron2.outcomes, levels = (-3, 2): must be"),
    (with_entry("neuron9", "outcomes", (0, 1), 1), "must be states that remember the spike"),
    (with_entry("neuron9", "closed", (0, 0, 0), 6), "neuron9.closed = (0, 6): must be from 0 to 5"),
]


@pytest.mark.parametrize(("graph", "words"), WHOLE_GRAPH, ids=[words for _, words in WHOLE_GRAPH])
def test_a_graph_that_breaks_a_rule(graph, words):
    refused(graph, words)


@pytest.mark.parametrize(("graph", "words"), NODES, ids=[words for _, words in NODES])
def test_a_node_that_breaks_a_rule(graph, words):
    refused(graph, words)


def test_every_field_of_every_kind_of_node_is_broken_here():
    """A field that nobody breaks could be one that nobody checks."""
    broken = set()
    for graph, _ in NODES:
        for node in graph.nodes:
            if node.name in GRAPH._named and node is not GRAPH[node.name]:
                before = GRAPH[node.name]
                names = [field.name for field in fields(node)]
                broken |= {
                    (type(node), n) for n in names if getattr(node, n) is not getattr(before, n)
                }
    shared = {"name", "inputs", "shape", "low", "high"}
    # One check serves both kinds of these.
    alike = {(g.SumPool, name) for name in ("kernel", "stride", "padding")}
    everything = {(kind, f.name) for kind in map(type, GRAPH.nodes) for f in fields(kind)}
    assert {pair for pair in everything if pair[1] not in shared} - alike <= broken


def test_numbers_on_another_device_are_refused():
    weight = GRAPH["conv1"].weight
    with pytest.raises(DeployError, match="must be on the CPU"):
        check_graph(changed("conv1", weight=FakeDevice(weight)))


class FakeDevice(torch.Tensor):
    """A tensor that says it is elsewhere."""

    @property
    def device(self):
        return torch.device("cuda")


def test_scores_and_sums_that_leave_their_width_are_refused():
    b = Builder(0, (2, 2**13, 2**13), low=0, high=2**31 - 1)
    b.decision(b.nodes[0], 1, "value")
    with pytest.raises(DeployError, match=r"scores below 2\*\*62, to fit 64 bits"):
        check_graph(b.graph())
    b = Builder(0, (2, 4, 4), low=0, high=2**30)
    b.pool(b.nodes[0])
    b.nodes[-1] = replace(b.nodes[-1], high=2**31 - 1)
    with pytest.raises(DeployError, match="pool1 = 4294967296: must be sums that never exceed"):
        check_graph(b.graph())


def test_a_filter_of_too_many_weights_is_refused():
    b = Builder(0, (2**24,))
    weight = torch.zeros(1, dtype=torch.int8).expand(1, 2**24)
    b.add(g.Dense(name="fc", inputs=("input",), shape=(1,), low=0, high=0, weight=weight))
    with pytest.raises(DeployError, match="filters below 16777216 weights"):
        check_graph(b.graph())
