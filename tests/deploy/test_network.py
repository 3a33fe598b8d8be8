"""Running an integer network: what it returns, streams, batches, and what it does not take."""

from __future__ import annotations

import functools
import itertools

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import DeployError

from .lively import Loop, converted, events, jelly, positive, small

quant = spq.presets.quant_snn
make = functools.partial(snn.Leaky, beta=0.9)
READS = ("both", "stack", "total", "mean", "sum", "average", "last", "membrane")


def lower(model: nn.Module, x: Tensor) -> spq.IntegerNetwork:
    return spq.to_integer(model, x, engine="torch")


def expected(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    spq.reset(model)
    with torch.no_grad():
        found = model(x)
    spq.reset(model)
    return found if isinstance(found, tuple) else (found,)


def as_tuple(found: object) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


def read(name: str) -> tuple[nn.Module, spq.IntegerNetwork, Tensor]:
    x = events(6, 5, 6)
    model = converted(Loop(make, name), quant(4), x)
    return model, lower(model, x), x


@pytest.fixture(scope="module")
def lowered():
    """Lowered once: a graph is frozen, and states belong to the network around it."""
    torch.manual_seed(0)
    x = events(4, 5, 2, 8, 8)
    return lower(converted(small(v_reset=None), quant(4), x), x)


@pytest.fixture
def net(lowered):
    return spq.IntegerNetwork(lowered.graph, lowered.sample, "torch")


# --- what it returns ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", READS)
def test_it_returns_what_the_model_returns(name):
    model, net, x = read(name)
    for other in (x, events(6, 1, 6), events(6, 50, 6)):
        found = net(other)
        assert isinstance(found, tuple) == (name == "both")
        assert same(as_tuple(found), expected(model, other))
    assert any(part.unique().numel() > 1 for part in as_tuple(found))


@pytest.mark.parametrize("name", ["both", "stack", "total", "mean", "average", "last"])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_it_takes_any_number_of_steps(name, steps):
    model, net, _ = read(name)
    x = events(steps, 5, 6)
    assert same(as_tuple(net(x)), expected(model, x))


class Sums(nn.Module):
    """Reads currents out, summed one after the other or all at once."""

    def __init__(self, read) -> None:
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(6, 9), make(init_hidden=True), nn.Linear(9, 4)
        positive(self)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read([self.fc2(self.lif(self.fc1(step))) for step in x])


def one_by_one(parts):
    total = 0
    for part in parts:
        total = total + part
    return total


def other_way_round(parts):
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = part + total
    return total


def in_place(parts):
    total = torch.zeros(parts[0].shape)
    for part in parts:
        total += part
    return total


def averaged(parts):
    return one_by_one(parts) / len(parts)


def stacked_sum(parts):
    return torch.stack(parts).sum(0)


def stacked_mean(parts):
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        # One after the other is the same for any number; at once torch sums many in groups.
        *itertools.product((one_by_one, other_way_round, in_place, averaged, sum), (7, 24)),
        *itertools.product((stacked_sum, stacked_mean), (7, 64)),
    ],
)
def test_float_sums_over_time_are_rounded_as_in_the_model(how, steps):
    x = events(steps, 50, 6)
    model = converted(Sums(how), quant(4), x)
    net = lower(model, x)
    assert same(as_tuple(net(x)), expected(model, x))
    assert len(net(x).unique()) > 100


def test_a_number_of_steps_that_is_written_into_the_model_is_kept_to():
    x = events(6, 5, 6)
    model = converted(Sums(lambda parts: one_by_one(parts) / 6), quant(4), x)
    net = lower(model, x)
    assert same(as_tuple(net(x)), expected(model, x))
    longer = events(9, 5, 6)
    try:
        found = net(longer)
    except DeployError as error:
        assert "steps" in str(error)
    else:
        assert same(as_tuple(found), expected(model, longer))


def test_currents_and_membranes_are_read_out_as_floats():
    x = events(5, 50, 6)
    body = positive(nn.Sequential(nn.Linear(6, 9), make(init_hidden=True), nn.Linear(9, 4)))
    model = converted(body, quant(4), x, x[0])
    net = lower(model, x[0])
    with torch.no_grad():
        want = torch.stack([model(step) for step in x])
    assert torch.equal(net(x), want)
    run = net.run(x)
    assert run.integers[0].dtype == torch.int32
    assert not torch.equal(run.outputs[0], run.outputs[0].round())


def test_one_input_for_all_steps():
    x = events(5, 6)
    model = converted(Loop(make, steps=7), quant(4), x)
    net = lower(model, x)
    assert net.graph.repeats == 7
    for other in (x, events(50, 6), events(1, 6)):
        assert same(net(other), expected(model, other))
    stream = [net.step(x) for _ in range(7)]
    assert torch.equal(torch.stack([spikes for spikes, _ in stream]), net(x)[0])


def test_an_analogue_input_is_quantised_by_the_network():
    x = torch.randn(4, 50, 2, 8, 8)
    model = converted(small(), quant(4, input=spq.UniformInput(6, -1.0, 2.0)), x)
    net = lower(model, x)
    assert torch.equal(net(x), expected(model, x)[0])
    whole = net.integers(x)
    assert whole.dtype == torch.int32
    assert torch.equal(net(whole), net(x))
    assert torch.equal(net(x * 100), expected(model, x * 100)[0])  # clamped


def test_what_is_recorded(net):
    x = events(4, 5, 2, 8, 8)
    run = net.run(x, record=True)
    names = [neuron.name for neuron in net.graph.neurons]
    assert [*run.spikes] == [*run.membranes] == names
    for node in net.graph.neurons:
        assert run.spikes[node.name].shape == (4, 5, *node.shape)
        assert set(run.spikes[node.name].unique().tolist()) <= {0, 1}
        assert int(run.membranes[node.name].min()) >= node.lowest
        assert int(run.membranes[node.name].max()) <= node.highest
    assert net.run(x).spikes == {}
    assert torch.equal(net.run(x).outputs[0], run.outputs[0])


# --- streams and batches ------------------------------------------------------------------------

STREAMED = {
    "soft reset": lambda: (
        small(v_reset=None, decay_input=False, v_threshold=0.5),
        quant(4),
        events(5, 4, 2, 8, 8),
    ),
    "gates": lambda: (
        small(decay_input=False, v_threshold=0.5),
        spq.presets.spquant_snn(),
        events(5, 4, 2, 8, 8),
    ),
    "gates by the step before": lambda: (
        small(decay_input=False, v_threshold=0.5),
        quant(4, spatial_gate=spq.SpatialGate(0.4, "prior")),
        events(5, 4, 2, 8, 8),
    ),
    "delayed reset": lambda: (Loop(make), quant(4), events(5, 4, 6)),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_is_the_sequence_step_by_step(name):
    model, config, x = STREAMED[name]()
    model = converted(model, config, x)
    net = lower(model, x)
    whole = as_tuple(net(x))
    for _ in range(2):
        net.reset()
        steps = [as_tuple(net.step(step)) for step in x]
        assert same(tuple(torch.stack(parts) for parts in zip(*steps, strict=True)), whole)
        assert same(as_tuple(net(x)), whole)  # which does not touch the stream
    later = as_tuple(net.step(x[0]))
    net.reset()
    first = as_tuple(net.step(x[0]))
    assert same(first, tuple(part[0] for part in whole))
    assert not same(later, first)


@pytest.mark.parametrize("name", STREAMED)
def test_a_sample_does_not_feel_the_others_in_its_batch(name):
    model, config, x = STREAMED[name]()
    net = lower(converted(model, config, x), x)
    together = as_tuple(net(x))
    for sample in range(x.shape[1]):
        alone = as_tuple(net(x[:, sample : sample + 1]))
        assert same(alone, tuple(part[:, sample : sample + 1] for part in together))


def test_a_stream_keeps_its_batch_until_it_is_reset(net):
    net.step(events(5, 2, 8, 8))
    with pytest.raises(DeployError, match=r"received 3 samples, and the states are those of 5"):
        net.step(events(3, 2, 8, 8))
    net.step(events(5, 2, 8, 8))
    net.reset()
    net.step(events(3, 2, 8, 8))


def test_a_refused_step_does_not_move_the_stream(net):
    x = events(3, 4, 2, 8, 8)
    expected = net(x)
    net.step(x[0])
    for wrong in (x[1] * 0.5, x[1] * 3, x[1, :2], x[1, ..., :3]):
        with pytest.raises(DeployError):
            net.step(wrong)
    assert torch.equal(net.step(x[1]), expected[1])
    assert torch.equal(net.step(x[2]), expected[2])


def test_states_take_bytes_only_while_a_stream_runs(net):
    assert net.state_bytes == 0
    net.step(events(5, 2, 8, 8))
    neurons = sum(torch.Size(node.shape).numel() for node in net.graph.neurons)
    assert net.state_bytes >= 5 * neurons // 4
    net.reset()
    assert net.state_bytes == 0


def test_another_engine_begins_anew(net):
    x = events(4, 5, 2, 8, 8)
    expected = net(x)
    net.step(x[0])
    assert net.use("torch") is net
    assert net.state_bytes == 0
    assert torch.equal(net(x), expected)
    assert torch.equal(net.step(x[0]), expected[0])


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_whole_numbers_of_any_type_are_taken(net, dtype):
    x = events(4, 5, 2, 8, 8)
    assert torch.equal(net(x.to(dtype)), net(x))


def test_an_input_in_any_memory_format_is_taken_and_left_as_it_is(net):
    x = events(4, 5, 2, 8, 8).requires_grad_()
    before = x.detach().clone()
    apart = x.detach().permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(net(apart), net(x))
    assert not net(x).requires_grad
    assert torch.equal(x, before)
    one = x[:, :1].expand(4, 5, 2, 8, 8)
    assert torch.equal(net(one)[:, 3], net(x[:, :1])[:, 0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1, 2], r"x = list: must be a tensor \[T, N, \.\.\.\]"),
        (None, "x = NoneType"),
        (torch.ones(2, 3), r"x has shape \(2, 3\): must be \[T, N, 2, 8, 8\] with at least one"),
        (torch.ones(4, 2, 8, 8), r"x has shape \(4, 2, 8, 8\)"),
        (torch.ones(4, 5, 2, 8, 9), r"lowered for that size"),
        (torch.ones(0, 5, 2, 8, 8), r"at least one step and sample"),
        (torch.ones(4, 0, 2, 8, 8), r"at least one step and sample"),
        (torch.full((1, 1, 2, 8, 8), 0.5), r"x holds fractions.*input=spq.UniformInput"),
        (torch.full((1, 1, 2, 8, 8), float("nan")), "NaN or infinite"),
        (torch.full((1, 1, 2, 8, 8), float("inf")), "NaN or infinite"),
        (torch.full((1, 1, 2, 8, 8), 2), r"x runs from 2 to 2: accumulators are proven for 0 to 1"),
        (torch.full((1, 1, 2, 8, 8), -1), r"input_range=\(-1, -1\)|proven for 0 to 1"),
        (torch.full((1, 1, 2, 8, 8), 2**40), "proven for 0 to 1"),
        (torch.full((1, 1, 2, 8, 8), 1e30), "proven for 0 to 1"),
        (torch.ones(1, 1, 2, 8, 8, dtype=torch.complex64), "complex|must be"),
        (torch.ones(1, 1, 2, 8, 8).to_sparse(), "sparse|layout|must be"),
    ],
)
def test_what_it_does_not_take(net, x, message):
    with pytest.raises(DeployError, match=message):
        net(x)


def test_what_a_network_of_one_input_does_not_take():
    x = events(5, 6)
    net = lower(converted(Loop(make, steps=3), quant(4), x), x)
    with pytest.raises(DeployError, match=r"x has shape \(5, 7\): must be \[N, 6\] with at least"):
        net(torch.ones(5, 7))


def test_an_analogue_network_takes_whole_numbers_of_its_grid_only():
    x = torch.rand(4, 5, 2, 8, 8)
    net = lower(converted(small(), quant(4, input=spq.UniformInput(4)), x), x)
    with pytest.raises(
        DeployError, match=r"x runs from 16 to 16: accumulators are proven for 0 to 15"
    ):
        net(torch.full((1, 1, 2, 8, 8), 16))
    with pytest.raises(DeployError, match="NaN"):
        net(torch.full((1, 1, 2, 8, 8), float("nan")))


def test_its_sample_is_the_first_of_what_it_was_lowered_with():
    x = events(4, 5, 2, 8, 8)
    net = lower(converted(small(), quant(4), x), x)
    assert torch.equal(net.sample, x[:, :1].int())


def test_its_words(net):
    text = repr(net)
    assert "IntegerNetwork(of Sequential: 3 weight layers with 390 weights, 3 neuron" in text
    assert "engine='torch'" in text


def test_layers_of_one_axis_stream_too():
    x = events(5, 3, 2, 12)
    body = jelly(layer.Conv1d(2, 4, 3), neuron.IFNode(), layer.Flatten(), layer.Linear(40, 3))
    net = lower(converted(body, quant(4), x), x)
    assert torch.equal(torch.stack([net.step(step) for step in x]), net(x))
