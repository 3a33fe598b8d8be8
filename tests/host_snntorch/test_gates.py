"""Gates on snnTorch: masks against a slow loop, both idioms of state, and whole networks."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import GateError, UnsupportedModuleError
from spquant_plugin.modules.gates import ChannelGate
from spquant_plugin.snntorch import layer as ours
from spquant_plugin.snntorch import neuron as st

KINDS = ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
ARGUMENTS = {
    "Leaky": {"beta": 0.5},
    "Lapicque": {"R": 2.0, "C": 1.0, "time_step": 1.0},
    "Synaptic": {"alpha": 0.5, "beta": 0.5},
    "RLeaky": {"beta": 0.5, "all_to_all": False, "V": 0.5},
    "RSynaptic": {"alpha": 0.5, "beta": 0.5, "all_to_all": False, "V": 0.5},
}
RESETS = ("subtract", "zero", "none")
# Lowest and highest level, and the boundaries where they do not lie half way.
MEMBRANES = {
    "ternary": (spq.TernaryMembrane(), -1, 1, None, 1.0),
    "eq7": (spq.TernaryMembrane(boundaries="eq7"), -1, 1, (0.0, 0.5), 1.0),
    "binary": (spq.BinaryMembrane(), 0, 1, None, 1.0),
    "3 bits": (spq.UniformMembrane(3), -4, 3, None, 0.5),
    "float": (None, 0, 0, None, 1.0),
}
DELAYS = [(k, d) for k in KINDS for d in (True, False) if (k, d) != ("Lapicque", False)]


@pytest.fixture(autouse=True)
def _kept_instances():
    """The host's reset reaches every neuron of the process; those made here go again."""
    before = list(SpikingNeuron.instances)
    yield
    SpikingNeuron.instances[:] = before


def eighths(*shape: int) -> Tensor:
    """Multiples of 1/8: sums are exact, and ties are frequent."""
    return torch.randint(-12, 17, shape).float() / 8


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def neuron(kind: str, **options) -> nn.Module:
    return getattr(st, f"Ternary{kind}")(**ARGUMENTS[kind], **options)


def open_half(net: nn.Module) -> nn.Module:
    """Gates that decide by what they see: about half of the channels are open."""
    for gate in gates_of(net).values():
        nn.init.normal_(gate.weight, std=2)
        nn.init.normal_(gate.bias, std=0.3)
    return net


def gates_of(net: nn.Module) -> dict[str, ChannelGate]:
    return {path: m for path, m in net.named_modules() if isinstance(m, ChannelGate)}


# --- spatial gates against a slow loop ------------------------------------------------------------


def level(z: float, lowest: int, highest: int, cuts: tuple[float, ...] | None) -> int:
    if cuts is not None:
        return lowest + sum(z > cut for cut in cuts)
    return min(range(lowest, highest + 1), key=lambda k: (abs(z - k), k))


def masked_pixels(importance: list[float], sparsity: float) -> set[int]:
    order = sorted(range(len(importance)), key=lambda pixel: (importance[pixel], pixel))
    return set(order[: math.floor(sparsity * len(importance))])


class SlowNeuron:
    """One neuron of any kind: its potential, and what it keeps for the next step."""

    def __init__(self, kind: str, reset: str, delay: bool, membrane: str) -> None:
        self.kind, self.reset, self.delay = kind, reset, delay
        _, *self.levels, share = MEMBRANES[membrane]
        self.unit = None if membrane == "float" else share
        self.m = self.syn = self.spike = 0.0
        self.late = False

    def stored_level(self, u: float) -> float:
        return u if self.unit is None else level(u / self.unit, *self.levels)

    def charge(self, x: float) -> None:
        """The potential ``u`` of this step; what fired in the last one resets now."""
        drive = x + (0.5 * self.spike if self.kind.startswith("R") else 0.0)
        if self.kind.endswith("Synaptic"):
            self.syn = 0.5 * self.syn + drive
            drive = self.syn
        late = self.delay and self.late and self.reset != "none"
        if late and self.reset == "zero":
            self.u = drive if self.kind == "Leaky" else 0.0
        else:
            self.u = 0.5 * self.m + drive - (1.0 if late else 0.0)

    def finish(self, masked: bool) -> None:
        fired = self.u > 1.0
        v = self.u
        if not self.delay and fired and self.reset != "none":
            v = self.u - 1.0 if self.reset == "subtract" else 0.0
        stored = self.stored_level(v) * (self.unit or 1.0)
        self.m = 0.0 if masked else stored
        self.late = fired and not masked
        self.spike = float(self.late)


def slow_layer(
    x: Tensor, kind: str, reset: str, delay: bool, membrane: str, gate
) -> tuple[Tensor, Tensor]:
    """Spikes and stored membranes ``[T, N, C, P]`` of a gated layer."""
    steps, batch, channels, pixels = x.shape
    spikes, stored = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(batch):
        cells = [
            [SlowNeuron(kind, reset, delay, membrane) for _ in range(pixels)]
            for _ in range(channels)
        ]
        for t in range(steps):
            held = [[cell.m for cell in row] for row in cells]
            for c, row in enumerate(cells):
                for p, cell in enumerate(row):
                    cell.charge(x[t, n, c, p].item())
            importance = []
            for p in range(pixels):
                column = [cells[c][p] for c in range(channels)]
                if gate.score == "current":
                    ranks = [cell.stored_level(cell.u) for cell in column]
                else:
                    ranks = [held[c][p] / (column[c].unit or 1.0) for c in range(channels)]
                importance.append(sum(z * z for z in ranks))
            masked = masked_pixels(importance, gate.sparsity)
            if gate.score == "prior" and t == 0:
                masked = set()
            for c, row in enumerate(cells):
                for p, cell in enumerate(row):
                    cell.finish(p in masked)
                    spikes[t, n, c, p], stored[t, n, c, p] = cell.spike, cell.m
    return spikes, stored


def explicit(lif: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The explicit idiom, from the host's own fresh states."""
    state = lif.reset_mem()
    state = state if isinstance(state, tuple) else (state,)
    record = []
    for step in x:
        result = lif(step, *state)
        state = result if len(state) == len(result) else result[1:]
        record.append((result[0], result[-1]))
    spikes, stored = zip(*record, strict=True)
    return torch.stack(spikes), torch.stack(stored)


def hidden(lif: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    record = [(lif(step), lif.mem) for step in x]
    spikes, stored = zip(*record, strict=True)
    return torch.stack(spikes), torch.stack(stored)


def check_layer(x: Tensor, kind: str, reset: str, delay: bool, membrane: str, gate) -> Tensor:
    options = {"reset_mechanism": reset, "membrane": MEMBRANES[membrane][0], "spatial_gate": gate}
    if kind != "Lapicque":
        options["reset_delay"] = delay
    spikes, stored = (
        part.view_as(x) for part in slow_layer(x.flatten(3), kind, reset, delay, membrane, gate)
    )
    for init_hidden, run in ((False, explicit), (True, hidden)):
        s, m = run(neuron(kind, init_hidden=init_hidden, **options), x)
        assert torch.equal(s, spikes)
        assert torch.equal(m, stored)
    return spikes


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("kind", "delay"), DELAYS)
def test_masks_are_those_of_a_loop_for_every_neuron(kind, delay, reset, score):
    """A masked neuron stores no spike either, so that it does not reset late."""
    gate = spq.SpatialGate(0.35, score)
    spikes = check_layer(eighths(5, 2, 2, 3, 3), kind, reset, delay, "ternary", gate)
    assert 0 < spikes.mean() < 0.7


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("membrane", MEMBRANES)
def test_masks_are_those_of_a_loop_for_every_membrane(membrane, delay, score):
    gate = spq.SpatialGate(0.5, score)
    check_layer(eighths(5, 2, 2, 3, 3), "Leaky", "subtract", delay, membrane, gate)


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("sparsity", [0.0, 0.35, 0.95])
@pytest.mark.parametrize("space", [(3, 3), (5,), (2, 2, 3), (1, 1)], ids=str)
def test_masks_are_those_of_a_loop_in_every_space(space, sparsity, score):
    gate = spq.SpatialGate(sparsity, score)
    check_layer(eighths(4, 1, 2, *space), "Leaky", "zero", True, "ternary", gate)


def test_a_masked_neuron_does_not_reset_late():
    """Both pixels would fire; the first is masked, so nothing is subtracted from it."""
    lif = neuron("Leaky", init_hidden=True, spatial_gate=spq.SpatialGate(0.5))
    first = torch.full((1, 1, 2), 1.5)
    assert lif(first).flatten().tolist() == [0, 1]
    assert lif.mem.flatten().tolist() == [0, 1]
    assert lif(torch.tensor([[[1.6, 0.4]]])).flatten().tolist() == [1, 0]


# --- the first step -------------------------------------------------------------------------------

PRIOR = spq.SpatialGate(0.5, "prior")
STRONG = torch.full((2, 1, 2, 2), 5.0)
SILENT = torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_later_step_is_masked_by_index(kind):
    lif = neuron(kind, init_hidden=True, spatial_gate=PRIOR)
    assert not lif(SILENT).any()
    assert lif(STRONG).flatten(1).tolist() == [[0, 0, 1, 1]] * 2
    state = neuron(kind, spatial_gate=PRIOR)
    state_before = state(SILENT)
    assert state(STRONG, *state_before[-len(state.states) :])[0].flatten(1).tolist() == (
        [[0, 0, 1, 1]] * 2
    )


@pytest.mark.parametrize(
    "renew",
    [
        lambda lif: lif.reset_mem(),
        lambda lif: utils.reset(nn.Sequential(lif)),
        lambda lif: spq.reset(lif),
        lambda lif: lif(torch.zeros(2, 3, 2, 2)),
    ],
    ids=["reset_mem", "utils.reset", "spq.reset", "another shape"],
)
@pytest.mark.parametrize("kind", ["Leaky", "Lapicque", "Synaptic"])
def test_prior_masks_nothing_after_a_reset(kind, renew):
    lif = neuron(kind, init_hidden=True, spatial_gate=PRIOR, reset_mechanism="none")
    for _ in range(2):
        assert lif(STRONG).all()
        assert lif(STRONG).mean() == 0.5
        renew(lif)


@pytest.mark.parametrize("fresh", ["init_leaky", "zeros", "none"])
def test_prior_masks_nothing_after_fresh_states(fresh):
    lif = neuron("Leaky", spatial_gate=PRIOR, reset_mechanism="none")
    for _ in range(2):
        mem = {"init_leaky": lif.init_leaky(), "zeros": torch.zeros_like(SILENT), "none": None}
        if fresh == "none":
            lif.reset_mem()
        spk, mem = lif(STRONG, mem[fresh])
        assert spk.all()
        spk, mem = lif(STRONG, mem)
        assert spk.mean() == 0.5


def test_a_state_handed_in_from_elsewhere_ranks_where_it_is_not_at_rest():
    lif = neuron("Leaky", spatial_gate=PRIOR)
    held = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    assert lif(STRONG[:1], held)[0].flatten().tolist() == [1, 0, 0, 1]


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["current", "prior"])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_no_gradient_passes_the_mask(kind, delay, score):
    """At masked places none; elsewhere that of a neuron without a gate."""
    x, start = eighths(1, 3, 4, 4) + 0.3, torch.zeros(1, 3, 4, 4)
    start[..., ::2] += 1.0  # "prior" has something to rank
    results = {}
    for name, gate in (("gated", spq.SpatialGate(0.4, score)), ("plain", None)):
        lif = neuron(kind, reset_delay=delay, spatial_gate=gate)
        current, held = x.clone().requires_grad_(), start.clone().requires_grad_()
        given = (torch.zeros_like(x), held) if kind == "Synaptic" else (held,)
        spikes, *_, mem = lif(current, *given)
        weigh = torch.linspace(-1, 2, x.numel()).view_as(x)
        ((spikes + mem.square() + mem) * weigh).sum().backward()
        results[name] = (current.grad, held.grad)
    kept = results["gated"][0].ne(0).any(1, keepdim=True).expand_as(x)
    assert kept.float().mean() == pytest.approx(1 - 6 / 16)
    for gated, plain in zip(results["gated"], results["plain"], strict=True):
        assert torch.equal(gated[kept], plain[kept])
        assert not gated[~kept].any()
        assert plain[~kept].any()


# --- channel gates --------------------------------------------------------------------------------


def slow_mask(gate: ChannelGate, sums: Tensor, area: int) -> Tensor:
    """The decision, one weight after another: ``[M, C_in]`` whole numbers to ``[M, C_out]``."""
    mask = torch.zeros(len(sums), gate.out_channels)
    for o in range(gate.out_channels):
        row = gate.weight[o].detach().double().tolist()
        scale = max(abs(w) for w in row) / 127
        levels = [round(w / scale) for w in row]
        for i, values in enumerate(sums.tolist()):
            total = sum(k * round(v) for k, v in zip(levels, values, strict=True))
            score = scale * total / area + gate.bias[o].item()
            assert abs(score - math.log(0.47 / 0.53)) > 1e-5  # no tie to be decided by rounding
            mask[i, o] = float(1 / (1 + math.exp(-score)) >= 0.47)
    return mask


class Loop(nn.Module):
    """Explicit states and gates written by hand: a convolution and two linear layers."""

    def __init__(self, source: str = "membrane") -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(2, 4, 3), st.TernaryLeaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 5, 3), st.TernaryLeaky(beta=0.5)
        self.gate2 = ours.ChannelGate(4, 5, source=source, neuron=self.lif1)
        self.fc3, self.lif3 = nn.Linear(5, 6), st.TernaryLeaky(beta=0.5)
        self.gate3 = ours.ChannelGate(5, 6, source=source, neuron=self.lif2)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        self.seen: list[tuple[Tensor, ...]] = []
        record = []
        for step in x:
            spk1, mem1 = self.lif1(self.conv1(step), mem1)
            current2 = self.gate2(self.conv2(spk1), spk1)
            spk2, mem2 = self.lif2(current2.flatten(1), mem2)
            current3 = self.gate3(self.fc3(spk2), spk2)
            spk3, mem3 = self.lif3(current3, mem3)
            masks = self.gate2.open_mask, self.gate3.open_mask
            self.seen.append((spk1, mem1, current2, spk2, mem2, current3, *masks))
            record.append(spk3)
        return torch.stack(record)


def loop(source: str = "membrane") -> Loop:
    torch.manual_seed(0)
    net = Loop(source)
    for weight in (net.conv1.weight, net.conv2.weight, net.fc3.weight):
        nn.init.normal_(weight, std=0.5)
    return open_half(net)


@pytest.mark.parametrize("source", ["membrane", "input"])
def test_decisions_are_those_of_a_whole_number_loop(source):
    """The membrane is what a late reset stores; a linear layer has an area of one."""
    net = loop(source)
    net(eighths(4, 6, 2, 5, 5))
    for spk1, mem1, current2, spk2, mem2, current3, mask2, mask3 in net.seen:
        held = (mem1, mem2) if source == "membrane" else (spk1, spk2)
        sums = (held[0] / (net.lif1.membrane_unit if source == "membrane" else 1)).sum((2, 3))
        assert torch.equal(mask2, slow_mask(net.gate2, sums, 9))
        sums = held[1] / (net.lif2.membrane_unit if source == "membrane" else 1)
        assert torch.equal(mask3, slow_mask(net.gate3, sums, 1))
        assert not current2[mask2 == 0].any()
        assert not current3[mask3 == 0].any()
    masks = torch.stack([seen[-1] for seen in net.seen]).flatten(0, 1)
    assert len(masks.unique(dim=0)) > 2


def test_the_loss_and_the_numbers_are_those_of_the_masks():
    net = loop()
    net(eighths(4, 6, 2, 5, 5))
    masks = zip(*(seen[-2:] for seen in net.seen), strict=True)
    closed = {
        gate: 1 - torch.stack(steps).double().mean()
        for gate, steps in zip(("gate2", "gate3"), masks, strict=True)
    }
    assert spq.gate_stats(net) == pytest.approx({p: c.item() for p, c in closed.items()})
    expected = sum((c.item() - 0.3) ** 2 for c in closed.values()) / 2
    assert spq.gate_loss(net, 0.3).item() == pytest.approx(expected, rel=1e-5)


def chain() -> nn.Sequential:
    """Hidden states: one step for each call."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero"),
        nn.Flatten(),
        nn.Linear(6 * 25, 16),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(16, 12),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(12, 3),
    )


GATED = ("3", "7", "9")
SAMPLE = torch.ones(2, 2, 5, 5)


def lively(net: nn.Module) -> nn.Module:
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, 2.0)
            nn.init.constant_(m.bias, 0.47)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=3 / m.in_features**0.5)
            nn.init.constant_(m.bias, 0.31)
    return net


def converted(**fields) -> nn.Sequential:
    torch.manual_seed(0)
    return spq.convert(lively(chain()), spq.presets.spquant_snn(**fields), SAMPLE)


def run(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([net(step) for step in x])


def test_hidden_states_are_counted_since_they_began():
    net, x = open_half(converted()).eval(), events(4, 3, 2, 5, 5)
    seen: dict[str, list[Tensor]] = {path: [] for path in gates_of(net)}
    for path, gate in gates_of(net).items():
        gate.register_forward_hook(lambda g, a, o, p=path: seen[p].append(g.open_mask))
    for _ in range(2):
        run(net, x)
        closed = {p: 1 - torch.stack(masks).double().mean().item() for p, masks in seen.items()}
        assert spq.gate_stats(net) == pytest.approx(closed)
        utils.reset(net)
        for masks in seen.values():
            masks.clear()
    assert set(seen) == {f"{path}.channel_gate" for path in GATED}


@pytest.mark.parametrize(
    "renew",
    [
        utils.reset,
        spq.reset,
        lambda net: snn.Leaky.detach_hidden(),
        lambda net: net(events(5, 2, 5, 5)),
    ],
    ids=["utils.reset", "spq.reset", "detach_hidden", "another batch"],
)
def test_a_loop_of_steps_is_counted_anew(renew):
    net, x = open_half(converted()).train(), events(4, 3, 2, 5, 5)
    run(net, x[:3])
    assert net[3].channel_gate._calls == 3
    renew(net)
    net(x[3])
    assert net[3].channel_gate._calls == 1


@pytest.mark.parametrize("idiom", ["hidden", "detached", "explicit"])
def test_two_iterations_of_training_follow_each_other(idiom):
    """Nothing of the first one's graph is left."""
    net = loop() if idiom == "explicit" else converted().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def learn(out: Tensor) -> None:
        optimizer.zero_grad()
        (out.square().mean() + spq.gate_loss(net, 0.5)).backward()
        optimizer.step()

    for _ in range(2):
        x = events(3, 4, 2, 5, 5)
        if idiom == "explicit":
            learn(net(x))
        elif idiom == "hidden":
            learn(run(net, x))
            utils.reset(net)
        else:
            for step in x:
                learn(net(step))
                snn.Leaky.detach_hidden()


@pytest.mark.parametrize("target", [0.3, 0.77])
def test_the_loss_alone_reaches_its_target(target):
    net = converted().train()
    gates = gates_of(net).values()
    optimizer = torch.optim.Adam([p for gate in gates for p in gate.parameters()], lr=0.05)
    for _ in range(100):
        utils.reset(net)
        run(net, events(2, 16, 2, 5, 5))
        optimizer.zero_grad()
        spq.gate_loss(net, target).backward()
        optimizer.step()
    utils.reset(net)
    run(net, events(2, 64, 2, 5, 5))
    assert sum(spq.gate_stats(net).values()) / 3 == pytest.approx(target, abs=0.05)


# --- conversion -----------------------------------------------------------------------------------


def conv_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = spq.models.create(
        "conv_net", host="snntorch", in_channels=2, size=16, num_classes=3, width=0.25
    )
    return lively(net), events(3, 2, 2, 16, 16)


def answer(net: nn.Module, x: Tensor) -> Tensor:
    spq.reset(net)
    with torch.no_grad():
        return run(net.eval(), x)


def test_the_published_network_is_gated_by_path():
    net, x = conv_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plan = spq.plan(net, spq.presets.spquant_snn(), x[0])
    found = {step.path: (step.pair.source, step.pair.target, step.pair.end) for step in plan.gates}
    assert found == {"conv2": ("neuron1", "neuron2", "norm2")}
    assert "no channel gate: no spiking neuron reaches its input" in plan["conv1"].reason
    assert "no channel gate: no spiking neuron reads its output" in plan["fc1"].reason
    assert "masks 22 of 64 pixels" in plan["neuron2"].reason
    gated = open_half(spq.convert(net, spq.presets.spquant_snn(), x[0]))
    assert set(gates_of(gated)) == {"conv2.channel_gate"}
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    (run(gated, x).square().mean() + spq.gate_loss(gated, 0.5)).backward()
    for name, p in gated.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_round_trips():
    model, x = conv_net()
    net = open_half(spq.convert(model, spq.presets.spquant_snn(), x[0]))
    want, stats = answer(net, x), spq.gate_stats(net)
    assert 0 < stats["conv2.channel_gate"] < 1
    run(net.train(), x)  # leaves a graph behind
    net.eval()
    spq.reset(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), spq.fold(net)):
        torch.testing.assert_close(answer(other, x), answer(net, x), rtol=1e-4, atol=1e-5)
        assert other.conv2.channel_gate.neuron is other.neuron1
        assert spq.gate_stats(other) == pytest.approx(spq.gate_stats(net))
    second = spq.convert(model, spq.presets.spquant_snn(), x[0])
    second.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(answer(second, x), answer(net, x))
    gate = {k: v.clone() for k, v in net.state_dict().items() if "channel_gate" in k}
    report = spq.load_float_state_dict(net, model.state_dict())
    assert set(report.kept) == set(gate) == {f"conv2.channel_gate.{k}" for k in ("weight", "bias")}
    assert all(torch.equal(net.state_dict()[key], value) for key, value in gate.items())
    assert want.shape == (3, 2, 3)


def test_the_status_lists_the_gate():
    model, x = conv_net()
    net = spq.convert(model, spq.presets.spquant_snn(), x[0])
    assert "8 -> 16 channels" in spq.status(net)["conv2.channel_gate"].details
    assert "not run yet" in spq.status(net)["conv2.channel_gate"].details
    answer(net, x)
    assert "0.0% closed" in spq.status(net)["conv2.channel_gate"].details
    assert "masks 35% of the pixels (current)" in spq.status(net)["neuron1"].details


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_long_loop_compiles_once_and_without_a_graph_break():
    """More steps than a function may be compiled anew for."""
    net, x = open_half(converted(spatial_gate=None)).eval(), events(11, 4, 2, 5, 5)
    want, stats = answer(net, x), spq.gate_stats(net)
    spq.reset(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        out = torch.stack([compiled(step) for step in x])
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    assert spq.gate_stats(net) == pytest.approx(stats)


def test_an_impossible_gate_is_refused_with_path_and_reason():
    config = spq.presets.spquant_snn(overrides={"0": spq.presets.spquant_snn()})
    with pytest.raises(UnsupportedModuleError, match=r"  0 .*reads the raw input"):
        spq.convert(chain(), config, SAMPLE)
    recurrent = nn.Sequential(
        nn.Linear(5, 6),
        snn.RLeaky(beta=0.5, linear_features=6, init_hidden=True),
        nn.Linear(6, 6),
        snn.Leaky(beta=0.5, init_hidden=True),
    )
    path = "1.recurrent"
    config = spq.presets.spquant_snn(
        spatial_gate=None, overrides={path: spq.presets.spquant_snn(spatial_gate=None)}
    )
    with pytest.raises(UnsupportedModuleError, match=rf"  {path} .*inside the neuron 1"):
        spq.convert(recurrent, config, torch.ones(2, 5))


def test_the_input_of_a_float_network_can_decide():
    only = spq.SpQuantConfig(channel_gate=spq.ChannelGate(source="input"))
    net, x = open_half(spq.convert(lively(chain()), only, SAMPLE)).eval(), events(3, 4, 2, 5, 5)
    assert type(net[2]) is snn.Leaky
    assert set(gates_of(net)) == {f"{path}.channel_gate" for path in GATED}
    out = answer(net, x)
    assert torch.equal(answer(net, x[:, :1]), out[:, :1])
    assert 0 < sum(spq.gate_stats(net).values()) < 3


def test_a_gate_needs_its_source_to_run_first():
    gate = ours.ChannelGate(2, 3, neuron=st.TernaryLeaky(beta=0.5))
    with pytest.raises(GateError, match="ran before its source neuron"):
        gate(torch.zeros(1, 3, 4, 4))
    with pytest.raises(GateError, match="neuron=Leaky"):
        ours.ChannelGate(2, 3, neuron=snn.Leaky(beta=0.5))
