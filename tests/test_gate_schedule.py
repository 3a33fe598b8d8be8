"""Closing channels by importance, and holding their share: by hand, and in training."""

from __future__ import annotations

import io
import warnings
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from spikingjelly.activation_based import neuron as host_neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.errors import GateError, GateWarning
from spquant_plugin.modules import ChannelGate
from spquant_plugin.spikingjelly import neuron


def one_gate(channels: int = 8) -> tuple[nn.ModuleList, ChannelGate, nn.Module]:
    """A gate with its source, whose decisions do not depend on the input."""
    lif = neuron.TernaryMembraneLIFNode()
    gate = ChannelGate(2, channels, neuron=lif)
    nn.init.zeros_(gate.weight)
    return nn.ModuleList([lif, gate]), gate, lif


def run(gate: ChannelGate, lif: nn.Module) -> None:
    functional.reset_net(lif)
    lif(torch.ones(1, 2, 3, 3))
    gate(torch.ones(1, gate.out_channels, 3, 3))


def step(schedule: spq.GateSchedule, gate: ChannelGate, gradient: torch.Tensor) -> None:
    gate.bias.grad = gradient
    schedule.step()


@pytest.mark.parametrize("target", [0.0, 0.25, 0.5, 0.77])
def test_the_least_important_channels_close_when_the_warmup_ends(target):
    net, gate, lif = one_gate()
    schedule = spq.GateSchedule(net, target, steps=100, warmup=2)
    run(gate, lif)
    assert gate.open_mask.all()
    step(schedule, gate, torch.tensor([3.0, -1.0, 0.1, 5.0, -6.0, 0.0, 2.0, -4.0]))
    run(gate, lif)
    assert gate.open_mask.all()  # still weighing
    step(schedule, gate, torch.tensor([3.0, -1.0, 0.1, 0.0, -6.0, 0.0, -2.0, 4.0]))
    run(gate, lif)
    # Sums of squares: 18, 2, 0.02, 25, 72, 0, 8, 32.
    by_importance = [5, 2, 1, 6, 0, 3, 7, 4]
    closed = by_importance[: round(target * 8)]
    assert gate.open_mask[0].tolist() == [float(c not in closed) for c in range(8)]


def test_a_last_channel_always_stays_open():
    net, gate, lif = one_gate(channels=4)
    schedule = spq.GateSchedule(net, 0.99, steps=100, warmup=1)
    step(schedule, gate, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    run(gate, lif)
    assert gate.open_mask[0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_channels_of_equal_importance_close_alike():
    net, gate, lif = one_gate(channels=4)
    schedule = spq.GateSchedule(net, 0.5, steps=100, warmup=1)
    step(schedule, gate, torch.zeros(4))
    run(gate, lif)
    assert bool(gate.bias.isfinite().all())
    assert len(set(gate.open_mask[0].tolist())) == 1


def test_the_bias_moves_by_what_the_closed_fraction_lacks():
    net, gate, lif = one_gate()
    schedule = spq.GateSchedule(net, 0.5, steps=100, warmup=1, rate=0.3, pace=1.0)
    step(schedule, gate, torch.arange(8.0))
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([-9.0, -9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]))
    run(gate, lif)
    before = gate.bias.detach().clone()
    step(schedule, gate, torch.arange(8.0))
    torch.testing.assert_close(gate.bias.detach(), before - 0.3 * (0.5 - 0.25))
    assert schedule.closed == {"1": 0.25}


def test_an_overflowed_gradient_is_left_out():
    net, gate, lif = one_gate(channels=4)
    schedule = spq.GateSchedule(net, 0.5, steps=100, warmup=2)
    step(schedule, gate, torch.tensor([torch.inf, torch.nan, torch.inf, torch.inf]))
    step(schedule, gate, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    run(gate, lif)
    assert gate.open_mask[0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_the_end_names_what_did_not_reach_its_target():
    net, gate, lif = one_gate()
    schedule = spq.GateSchedule(net, 0.5, steps=3, warmup=1)
    step(schedule, gate, torch.arange(8.0))
    for _ in range(2):
        with torch.no_grad():
            gate.bias.fill_(9.0)
        run(gate, lif)
        if schedule.taken == 2:
            with pytest.warns(GateWarning, match=r"target = 0.5: 1 of 1 gates .* closed 1 0.000"):
                schedule.step()
        else:
            schedule.step()


def test_a_target_that_is_reached_ends_without_a_warning():
    net, gate, lif = one_gate()
    schedule = spq.GateSchedule(net, 0.5, steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            run(gate, lif)
            step(schedule, gate, torch.arange(8.0))
    assert schedule.closed["1"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("pace", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("warmup", [9, 1])
def test_gates_take_a_share_of_the_optimizers_step(pace, warmup):
    net, gate, lif = one_gate()
    schedule = spq.GateSchedule(net, 0.25, steps=99, warmup=warmup, pace=pace, rate=0.3)
    run(gate, lif)  # all open
    step(schedule, gate, torch.arange(8.0))
    lacking = 0.25 if warmup == 1 else 0.0
    for _ in range(2):
        bias, weight = gate.bias.detach().clone(), gate.weight.detach().clone()
        with torch.no_grad():
            gate.bias.add_(1.0)
            gate.weight.add_(2.0)
        step(schedule, gate, torch.arange(8.0))
        torch.testing.assert_close(gate.bias.detach(), bias + pace - 0.3 * lacking)
        torch.testing.assert_close(gate.weight.detach(), weight + 2 * pace)


def test_the_warmup_is_a_twentieth():
    net, *_ = one_gate()
    assert spq.GateSchedule(net, 0.5, steps=400).warmup == 20
    assert spq.GateSchedule(net, 0.5, steps=3).warmup == 1


def test_without_a_warmup_closed_channels_stay_and_the_share_is_held():
    net, gate, lif = one_gate()
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([-9.0, 1.0] * 4))
    schedule = spq.GateSchedule(net, 0.5, steps=100, warmup=0, rate=0.3)
    for _ in range(3):
        run(gate, lif)
        assert gate.open_mask[0].tolist() == [0.0, 1.0] * 4
        before = gate.bias.detach().clone()
        step(schedule, gate, torch.ones(8))  # which weighs nothing
        assert torch.equal(gate.bias, before)
    assert schedule.closed == {"1": pytest.approx(0.5)}
    restored = spq.GateSchedule(net, 0.5, steps=100, warmup=0, rate=0.3)
    restored.load_state_dict(stored(schedule.state_dict()))
    assert (restored.taken, restored.closed) == (3, schedule.closed)
    schedule = spq.GateSchedule(net, 0.75, steps=100, warmup=0, rate=0.3)
    run(gate, lif)
    step(schedule, gate, torch.zeros(8))
    assert torch.allclose(gate.bias, before - 0.3 * (0.75 - 0.5))


def stored(state: dict) -> dict:
    """The same after a way through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("order", ["network first", "schedule first"])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_training_goes_on_bit_for_bit(stop, order):
    def fresh() -> tuple:
        torch.manual_seed(0)
        net, x, forward = spiking_jelly("m")
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        gates = spq.GateSchedule(net, 0.4, steps=99, warmup=4)
        return net, optimizer, gates, x, forward

    def go(net, optimizer, gates, x, forward, numbers) -> None:
        for number in numbers:
            labels = torch.arange(6).roll(number) % 4
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(x).mean(0), labels).backward()
            optimizer.step()
            gates.step()

    whole, first, second = fresh(), fresh(), fresh()
    go(*whole, range(9))
    go(*first, range(stop))
    kept = stored({"parts": [part.state_dict() for part in first[:3]]})["parts"]
    for index in (0, 1, 2) if order == "network first" else (2, 1, 0):
        second[index].load_state_dict(kept[index])
    go(*second, range(stop, 9))
    for key, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[key], value), key
    assert second[2].closed == whole[2].closed
    assert second[2].taken == whole[2].taken == 9


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, r"GateSchedule\(target=1.0\): must be at least 0 and below 1"),
        ({"target": float("nan")}, r"GateSchedule\(target=nan\)"),
        ({"steps": 0}, r"GateSchedule\(steps=0\): must be a whole number from 2 on"),
        ({"steps": 2.5}, r"GateSchedule\(steps=2.5\)"),
        ({"steps": True}, r"GateSchedule\(steps=True\)"),
        ({"warmup": 10}, r"GateSchedule\(warmup=10, steps=10\): must leave steps after"),
        ({"warmup": -1}, r"GateSchedule\(warmup=-1\)"),
        ({"spread": 0.0}, r"GateSchedule\(spread=0.0\): must be a number above 0"),
        ({"rate": -1.0}, r"GateSchedule\(rate=-1.0\): must be a number above 0"),
        ({"pace": 0.0}, r"GateSchedule\(pace=0.0\): must be a number above 0"),
        ({"pace": 1.5}, r"GateSchedule\(pace=1.5\): must be a number above 0 and at most 1"),
    ],
)
def test_bad_arguments_name_value_and_rule(options, message):
    net, *_ = one_gate()
    with pytest.raises(GateError, match=message):
        spq.GateSchedule(net, **{"target": 0.5, "steps": 10, **options})


def test_a_network_without_gates_is_refused():
    with pytest.raises(GateError, match="Linear holds no channel gate"):
        spq.GateSchedule(nn.Linear(1, 1), 0.5, steps=2)


def test_a_step_without_gradients_is_refused():
    net, gate, lif = one_gate()
    run(gate, lif)
    with pytest.raises(GateError, match=r"1 \(ChannelGate\): its bias has no gradient"):
        spq.GateSchedule(net, 0.5, steps=10).step()


def test_a_step_without_a_forward_is_refused():
    net, gate, _ = one_gate()
    schedule = spq.GateSchedule(net, 0.5, steps=10, warmup=1)
    step(schedule, gate, torch.ones(8))
    with pytest.raises(GateError, match=r"1 \(ChannelGate\): has not run"):
        step(schedule, gate, torch.ones(8))


def schedule_after(taken: int, channels: int = 8, **options) -> spq.GateSchedule:
    net, gate, lif = one_gate(channels)
    schedule = spq.GateSchedule(net, **{"target": 0.5, "steps": 10, "warmup": 2, **options})
    for _ in range(taken):
        run(gate, lif)
        step(schedule, gate, torch.arange(float(channels)))
    return schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.4}, r"of a schedule with target=0.4, and this one has target=0.5: must be"),
        ({"steps": 20}, r"of a schedule with steps=20, and this one has steps=10"),
        ({"warmup": 1}, r"of a schedule with warmup=1, and this one has warmup=2"),
        ({"pace": 0.5}, r"of a schedule with pace=0.5, and this one has pace=0.3"),
        (
            {"channels": 4},
            r"gates hold 1.weight of shape \(4, 2\): must hold 1.weight of shape \(8",
        ),
    ],
)
def test_the_state_of_another_schedule_or_network_is_refused(options, message):
    state = schedule_after(3, **options).state_dict()
    with pytest.raises(GateError, match=message):
        schedule_after(0).load_state_dict(state)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("taken", -1, r"taken = -1: must be a whole number from 0 on"),
        ("taken", 2.0, r"taken = 2.0: must be a whole number"),
        ("taken", 0, r"importance hold 1 of shape \(8,\): must hold no 1"),
        ("closed", {}, r"closed hold no 1: must hold 1 of shape \(\), as this network's do"),
        ("closed", {"1": 0.5}, r"closed hold 1 of shape \('\?',\)"),
        ("gates", {}, r"gates hold no 1.weight: must hold 1.weight of shape \(8, 2\)"),
        ("importance", 3, r"importance = 3: must map names to values. Pass what state_dict\(\)"),
        ("importance", {"conv9": torch.ones(8)}, r"importance hold no 1: must hold 1 of shape"),
    ],
)
def test_a_damaged_state_is_refused(part, value, message):
    with pytest.raises(GateError, match=message):
        schedule_after(0).load_state_dict({**schedule_after(3).state_dict(), part: value})


@pytest.mark.parametrize(("state", "told"), [({}, "nothing"), ({"a": 1}, "a"), (3, "int")])
def test_what_is_no_state_is_refused(state, told):
    with pytest.raises(GateError, match=f"received {told}: must hold 'settings' too"):
        schedule_after(0).load_state_dict(state)


def test_a_step_after_the_gradients_were_cleared_is_refused():
    net, gate, _ = one_gate()
    schedule = spq.GateSchedule(net, 0.5, steps=10, warmup=1)
    step(schedule, gate, torch.zeros(8))
    with pytest.raises(GateError, match=r"in 1 steps every gradient of every gate was 0"):
        step(schedule, gate, torch.zeros(8))


def test_a_softmax_cannot_be_held_at_a_share():
    lif = neuron.TernaryMembraneLIFNode()
    net = nn.ModuleList([lif, ChannelGate(2, 4, score="softmax", neuron=lif)])
    with pytest.raises(GateError, match=r"1 \(ChannelGate\): score='softmax'"):
        spq.GateSchedule(net, 0.5, steps=10)


# --- in training --------------------------------------------------------------------------------


def spiking_jelly(step_mode: str) -> tuple[nn.Module, torch.Tensor, object]:
    net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=4, width=0.5)
    x = (torch.rand(4, 6, 2, 16, 16) < 0.3).float()
    gated = spq.convert(net, spq.presets.spquant_snn(), sample=x)
    functional.set_step_mode(gated, step_mode)

    def forward(x):
        functional.reset_net(gated)
        return gated(x) if step_mode == "m" else torch.stack([gated(step) for step in x])

    return gated, x, forward


def snn_torch() -> tuple[nn.Module, torch.Tensor, object]:
    net = spq.models.create("conv_net", host="snntorch", in_channels=2, size=16, num_classes=4)
    x = (torch.rand(4, 6, 2, 16, 16) < 0.3).float()
    gated = spq.convert(net, spq.presets.spquant_snn(), sample=x[0])

    def forward(x):
        spq.reset(gated)
        return torch.stack([gated(step) for step in x])

    return gated, x, forward


# Biases close together, and gates at full pace, leave more of the decision to the input.
@pytest.mark.parametrize("options", [{}, {"spread": 0.05, "pace": 1.0}])
@pytest.mark.parametrize("target", [0.5, 0.77])
@pytest.mark.parametrize(
    "make", [partial(spiking_jelly, "m"), partial(spiking_jelly, "s"), snn_torch]
)
def test_learned_gates_reach_their_target_and_depend_on_the_input(make, target, options):
    torch.manual_seed(0)
    net, x, forward = make()
    labels = torch.arange(6) % 4
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    gates = spq.GateSchedule(net, target, steps=40, **options)
    for _ in range(40):
        loss = nn.functional.cross_entropy(forward(x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gates.step()
    assert all(abs(closed - target) <= 0.05 for closed in gates.closed.values())
    spq.calibrate(net, [x], forward=lambda _, x: forward(x))
    with torch.no_grad():
        forward(x)
    assert all(abs(closed - target) <= 0.05 for closed in spq.gate_stats(net).values())
    if not options:
        with torch.no_grad():
            forward((torch.rand(4, 64, 2, 16, 16) < torch.rand(64, 1, 1, 1)).float())
    masks = [net.get_submodule(path).open_mask.flatten(0, -2) for path in gates.gates]
    changing = torch.cat([mask.amin(0) != mask.amax(0) for mask in masks])
    assert bool(changing.any())


def test_the_gates_of_a_hand_written_model_are_found():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = neuron.TernaryMembraneLIFNode()
            self.fc = layer.Linear(2, 3)
            self.gate = ChannelGate(2, 3, neuron=self.lif)
            self.out = host_neuron.LIFNode()

    assert list(spq.GateSchedule(Net(), 0.5, steps=2).gates) == ["gate"]
