"""Whole networks, counted by loops over every multiplication, neuron update and gate decision."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise, product

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, prune

import spquant_plugin as spq
from spquant_plugin.modules.gates import ChannelGate, SpatialGate

T, N = 3, 2
SPARSITY = 0.4


def spikes(*shape, rate=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def lively(net):
    """Weights that are multiples of 1/8, a third of them 0, and large enough for spikes."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                low, high = (-0.5, 0.9) if isinstance(module, nn.Conv2d) else (-0.5, 0.75)
                module.weight.copy_((module.weight.uniform_(low, high) * 8).round() / 8)
                module.weight *= spikes(*module.weight.shape, rate=0.67)
                if module.bias is not None:
                    module.bias.zero_()
    return net


# --- every multiplication of a layer -----------------------------------------------------------


def multiplications(module, weight, x):
    """Each product of one sample: output channel, output place, weight and input."""
    weight, values = weight.tolist(), x.tolist()
    if isinstance(module, nn.Linear):
        for o, row in enumerate(weight):
            for i, w in enumerate(row):
                yield o, (), w, values[i]
        return
    (height, width), (dy, dx) = x.shape[1:], module.dilation
    (ph, pw), (sy, sx) = module.padding, module.stride
    rows = (height + 2 * ph - dy * (module.kernel_size[0] - 1) - 1) // sy + 1
    columns = (width + 2 * pw - dx * (module.kernel_size[1] - 1) - 1) // sx + 1
    outs, ins = module.out_channels // module.groups, module.in_channels // module.groups
    for o, i in product(range(module.out_channels), range(ins)):
        source = o // outs * ins + i
        for y, x_, ky, kx in product(range(rows), range(columns), *map(range, module.kernel_size)):
            row, column = y * sy - ph + ky * dy, x_ * sx - pw + kx * dx
            if 0 <= row < height and 0 <= column < width:
                yield o, (y, x_), weight[o][i][ky][kx], values[source][row][column]


@dataclass
class Count:
    """What a layer, neuron or gate was seen to do."""

    dense: int = 0
    nonzero: int = 0
    effective: int = 0
    acs: int = 0
    macs: int = 0
    comparisons: int = 0


def count_layer(module, weight, x, opened=None, kept=None):
    """All rows ``[rows, C, ...]``; masks are ``[rows, C]`` and ``[rows, H, W]``."""
    count, adds = Count(), bool(((x == 0) | (x == 1)).all())
    for row in range(x.shape[0]):
        for o, place, w, value in multiplications(module, weight, x[row]):
            count.dense += 1
            if w == 0 or value == 0:
                continue
            count.nonzero += 1
            is_open = opened is None or bool(opened[row, o])
            if is_open and (kept is None or bool(kept[(row, *place)])):
                count.effective += 1
    count.acs, count.macs = (count.effective, 0) if adds else (0, count.effective)
    return count


# --- every update of a neuron ------------------------------------------------------------------


@dataclass
class Spec:
    """A neuron's rule as its documentation states it; the threshold is 1 and rest is 0."""

    leak: float | None = 0.5  # None: nothing decays
    gain: float = 1.0
    soft: bool = False
    delayed: bool = False  # the reset acts one step later
    strict: bool = False
    drops: bool = False  # a hard reset that is delayed forgets the input too
    synapse: float | None = None  # the decay of a synaptic current
    levels: tuple[int, ...] = ()  # of a quantised membrane
    unit: float = 1.0
    score: str | None = None  # of a spatial gate


@dataclass
class Updates:
    count: Count = field(default_factory=Count)
    gate: Count = field(default_factory=Count)
    spikes: list = field(default_factory=list)  # [N][T][C * places]
    stored: list = field(default_factory=list)  # the same, in units of the membrane
    kept: list = field(default_factory=list)  # [N][T][places]


def nearest(levels, z):
    """The nearest level, a tie to the lower one, ends clamped."""
    return min(max(math.ceil(z - 0.5), levels[0]), levels[-1])


def update(spec, count, state, x):
    """One neuron, one step: from (membrane, synapse, fired) to potential and synapse."""
    membrane, synapse, fired = state
    if spec.synapse is not None:
        synapse = spec.synapse * synapse + x
        count.macs += 1
        x = synapse
    leak = 1.0 if spec.leak is None else spec.leak
    # A float times its decay, with the input added; level times decay is one of few constants.
    potential = leak * membrane + spec.gain * x
    if spec.leak is None or spec.levels:
        count.acs += 1
    else:
        count.macs += 1
    if fired and spec.delayed:
        if spec.soft:
            potential -= 1.0
        else:
            potential = 0.0 if spec.drops else spec.gain * x
    return potential, synapse


def rank(spec, gate, magnitudes, places):
    """The pixels that a spatial gate keeps; ``magnitudes`` are levels ``[C * places]``."""
    importance = [0] * places
    for index, level in enumerate(magnitudes):
        if level != 0:
            gate.acs += 1  # the square of -1 or 1 is added
            importance[index % places] += level * level
    gate.comparisons += places * math.ceil(math.log2(places))
    order = sorted(range(places), key=lambda place: importance[place])  # stable
    masked = set(order[: math.floor(SPARSITY * places)])
    return [place not in masked for place in range(places)]


def simulate(spec, current):
    """All neurons over ``current [T, N, C, ...]``, one update after the other."""
    found, places = Updates(), math.prod(current.shape[3:])
    for sample in range(current.shape[1]):
        size = current[0, sample].numel()
        state = [(0.0, 0.0, False)] * size
        train, stored, kept_steps = [], [], []
        for step in range(current.shape[0]):
            given = current[step, sample].flatten().tolist()
            kept = [True] * places
            if spec.score == "prior" and step > 0:
                before = [round(membrane / spec.unit) for membrane, _, _ in state]
                kept = rank(spec, found.gate, before, places)
            moved = [update(spec, found.count, state[i], given[i]) for i in range(size)]
            if spec.score == "current":
                levels = [nearest(spec.levels, u / spec.unit) for u, _ in moved]
                kept = rank(spec, found.gate, levels, places)
            fired_now = []
            for i, (potential, synapse) in enumerate(moved):
                state[i], fired = fire(spec, found.count, potential, synapse, kept[i % places])
                fired_now.append(fired)
            train.append(fired_now)
            stored.append([membrane / spec.unit for membrane, _, _ in state])
            kept_steps.append(kept)
        found.spikes.append(train)
        found.stored.append(stored)
        found.kept.append(kept_steps)
    return found


def fire(spec, count, potential, synapse, kept):
    """Compare, reset and store."""
    count.comparisons += 1
    fired = (potential > 1.0 if spec.strict else potential >= 1.0) and kept
    membrane = potential
    if fired and spec.soft:
        count.acs += 1
    if fired and not spec.delayed:
        membrane = potential - 1.0 if spec.soft else 0.0
    if spec.levels:
        count.comparisons += math.ceil(math.log2(len(spec.levels)))
        membrane = spec.unit * nearest(spec.levels, membrane / spec.unit)
    if not kept:
        membrane = 0.0
    return (membrane, synapse, fired), fired


# --- every decision of a channel gate ----------------------------------------------------------


def decide(gate, levels):
    """Masks ``[T][N][C_out]`` of levels ``[T, N, C_in, *space]``, and what they took."""
    weight, scale = (part.detach() for part in gate.weight_quantizer(gate.weight))
    bias, count, masks = gate.bias.tolist(), Count(), []
    edge = math.log(0.47 / 0.53)
    for step in levels:
        masks.append([])
        for sample in step:
            sums = [0.0] * sample.shape[0]
            for channel, plane in enumerate(sample.flatten(1).tolist()):
                for level in plane:
                    if level != 0:
                        sums[channel] += level
                        count.acs += 1
            area, row = sample[0].numel(), []
            for o in range(gate.out_channels):
                score = 0.0
                for i, total in enumerate(sums):
                    score += float(weight[o, i]) * total
                    count.macs += 1
                score = score * float(scale.flatten()[o]) / area + bias[o]
                row.append(score >= edge)
                count.comparisons += 1
            masks[-1].append(row)
    return masks, count


# --- a network while it runs -------------------------------------------------------------------


def watch(net, x, run):
    """What weight layers read, and what neurons read and emit: ``[T, N, ...]`` by path."""
    net = copy.deepcopy(net).eval()
    seen = {"in": {}, "out": {}}
    for path, module in net.named_modules():
        known = isinstance(module, nn.Conv2d | nn.Linear | neuron.BaseNode | snn.SpikingNeuron)

        def note(module, args, output, path=path):
            output = output[0] if isinstance(output, tuple) else output
            seen["in"].setdefault(path, []).append(args[0].detach().clone())
            seen["out"].setdefault(path, []).append(output.detach().clone())

        if known:
            module.register_forward_hook(note)
    with torch.no_grad():
        run(net, x)
    return {
        side: {
            path: torch.cat(calls).view(T, N, *calls[0].shape[-rank_of(calls[0]) :])
            for path, calls in found.items()
        }
        for side, found in seen.items()
    }


def rank_of(call):
    """Axes behind time and batch of ``[T, N, ...]`` or ``[N, ...]``."""
    return call.ndim - (2 if call.shape[:2] == (T, N) else 1)


def whole(net, x):
    return net(x)


def stepwise(net, x):
    return [net(step) for step in x]


def state_of(net, x, paths, name):
    """The stored state after each step of a copy that runs step by step."""
    net = copy.deepcopy(net).eval()
    if name == "v":
        functional.set_step_mode(net, "s")
    found = {path: [] for path in paths}
    with torch.no_grad():
        for step in x:
            net(step)
            for path in paths:
                found[path].append(getattr(net.get_submodule(path), name).clone())
    return found


class Expected:
    """All rows of one network, by the loops above."""

    def __init__(self, net, x, run, specs):
        self.net, self.rows, self.updates = net, {}, {}
        self.seen = watch(net, x, run)
        self.masks = {}
        for path, spec in specs.items():
            self.neuron(path, spec)
        for path, module in net.named_modules():
            if isinstance(module, ChannelGate):
                self.channel_gate(path, module)
        targets = self.prior_targets(specs)
        for path, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.layer(path, module, targets.get(path))

    def neuron(self, path, spec):
        found = simulate(spec, self.seen["in"][path])
        emitted = self.seen["out"][path].transpose(0, 1).flatten(2) != 0
        assert emitted.tolist() == found.spikes, f"{path}: the loop fires otherwise"
        assert path == "7" or 0 < emitted.float().mean() < 1
        self.updates[path] = found
        count = found.count
        taken = count.acs + count.macs + count.comparisons
        count.dense, count.nonzero, count.effective = taken, taken, taken
        if spec.soft:  # each neuron might have to
            count.dense += emitted.numel() - int(emitted.sum())
        self.rows[path] = count
        if spec.score is not None:
            gate = found.gate
            gate.effective = gate.nonzero = gate.acs + gate.comparisons
            decided = T - (spec.score == "prior")
            gate.dense = gate.comparisons + N * decided * emitted[0, 0].numel()
            self.rows[f"{path}.spatial_gate"] = gate

    def channel_gate(self, path, gate):
        source = next(p for p, m in self.net.named_modules() if m is gate.neuron)
        shape = self.seen["in"][source].shape
        stored = torch.tensor(self.updates[source].stored).transpose(0, 1).reshape(shape)
        masks, count = decide(gate, stored)
        count.effective = count.nonzero = count.acs + count.macs + count.comparisons
        count.dense = stored.numel() + count.macs + count.comparisons
        self.masks[path] = torch.tensor(masks)
        self.rows[path] = count

    def prior_targets(self, specs):
        """Each layer stands before the neuron behind it."""
        order, found = list(self.seen["in"]), {}
        for path, following in pairwise(order):
            if following in specs and specs[following].score == "prior":
                found[path] = following
        return found

    def layer(self, path, module, target):
        quantised = hasattr(module, "effective_weight")
        weight = module.effective_weight() if quantised else module.weight
        x = self.seen["in"][path].flatten(0, 1)
        opened = self.masks.get(f"{path}.channel_gate")
        kept = None
        if target is not None:
            kept = torch.tensor(self.updates[target].kept).transpose(0, 1)
            kept = kept.reshape(T * N, *self.seen["in"][target].shape[3:])
        opened = None if opened is None else opened.flatten(0, 1)
        self.rows[path] = count_layer(module, weight.detach(), x, opened, kept)

    def check(self, operations):
        """Every row and every total to the last unit; N is a power of two, so nothing rounds."""
        assert {row.path for row in operations} == set(self.rows)
        for path, count in self.rows.items():
            row = operations[path]
            for name, number in vars(count).items():
                assert N * getattr(row, name) == number, (path, name)
            assert N * row.skipped == count.nonzero - count.effective
        layers = [path for path in self.rows if path in self.seen["in"] and not self.fires(path)]
        neurons = [path for path in self.rows if self.fires(path)]
        gates = [path for path in self.rows if path not in (*layers, *neurons)]
        for name, paths, part in (
            ("dense", layers, "dense"),
            ("effective", layers, "effective"),
            ("effective_acs", layers, "acs"),
            ("effective_macs", layers, "macs"),
            ("neurons", neurons, "effective"),
            ("gates", gates, "effective"),
            ("total", self.rows, "effective"),
            ("acs", self.rows, "acs"),
            ("macs", self.rows, "macs"),
            ("comparisons", self.rows, "comparisons"),
        ):
            total = sum(getattr(self.rows[path], part) for path in paths)
            assert N * getattr(operations, name) == total, name
        dense = dict.fromkeys(("AC", "MAC"), 0)
        for path in layers:
            dense["AC" if is_binary(self.seen["in"][path]) else "MAC"] += self.rows[path].dense
        assert (N * operations.dense_acs, N * operations.dense_macs) == (dense["AC"], dense["MAC"])

    def fires(self, path):
        return path in self.updates

    def check_sparsity(self, sparsity, net, x, state):
        for path, found in self.updates.items():
            trains = [fired for train in found.spikes for step in train for fired in step]
            assert sparsity[path].firing_rate == sum(trains) / len(trains)
        stored = state_of(net, x, self.updates, state)
        for path, found in self.updates.items():
            row = sparsity[path]
            for step, membrane in enumerate(stored[path]):
                unit = float(getattr(net.get_submodule(path), "membrane_unit", None) or 1.0)
                simulated = [level for sample in found.stored for level in sample[step]]
                held = (membrane / unit).flatten()
                assert held.tolist() == pytest.approx(simulated, abs=1e-5)
                if row.levels:
                    times = Counter(held.round().flatten().tolist())
                    shares = [times[level] / held.numel() for level in row.levels]
                    assert list(row.level_shares[step]) == shares
            assert len(row.level_shares) == (T if row.levels else 0)
        for path, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                own = module.effective_weight() if hasattr(module, "effective_weight") else None
                weight = (module.weight if own is None else own).flatten().tolist()
                assert sparsity[path].zero_weights == weight.count(0.0) / len(weight)


def is_binary(x):
    return bool(((x == 0) | (x == 1)).all())


# --- SpikingJelly ------------------------------------------------------------------------------

TERNARY = (-1, 0, 1)
NODES = {
    "IF, hard": (lambda: neuron.IFNode(v_reset=0.0), Spec(leak=None), 0.75),
    "IF, soft": (lambda: neuron.IFNode(v_reset=None), Spec(leak=None, soft=True), 0.75),
    "LIF, hard": (lambda: neuron.LIFNode(tau=2.0), Spec(gain=0.5), 1.0),
    "LIF, soft": (
        lambda: neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None),
        Spec(soft=True),
        1.0,
    ),
    "ParametricLIF, hard": (lambda: neuron.ParametricLIFNode(init_tau=2.0), Spec(gain=0.5), 1.0),
    "ParametricLIF, soft": (
        lambda: neuron.ParametricLIFNode(init_tau=2.0, v_reset=None, decay_input=False),
        Spec(soft=True),
        1.0,
    ),
}


def spiking_jelly(make, pool):
    """Padding, strides, dilation and groups, with pooling between and a read-out that fires."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=(1, 2), stride=(1, 2), bias=False),
        make(),
        pool(2),
        layer.Conv2d(4, 6, (3, 2), padding=1, groups=2, bias=False),
        make(),
        layer.Flatten(),
        layer.Linear(6 * 3 * 3, 3),
        make(),
    )
    functional.set_step_mode(net, "m")
    return lively(net)


def events():
    return spikes(T, N, 2, 6, 5)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("pool", [layer.AvgPool2d, layer.MaxPool2d])
@pytest.mark.parametrize("name", NODES)
def test_spikingjelly_counts_as_the_loops(name, pool, quantised):
    make, spec, unit = NODES[name]
    net, x = spiking_jelly(make, pool), events()
    if quantised:
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=3), x)
        spec = Spec(**{**vars(spec), "levels": TERNARY, "unit": unit})
        assert float(net[1].membrane_unit) == unit
    specs = dict.fromkeys("147", spec)
    expected = Expected(net, x, whole, specs)
    report = spq.analyze(net, x)
    expected.check(report.operations)
    expected.check_sparsity(report.sparsity, net, x, "v")
    assert report.operations["3"].kind == ("AC" if pool is layer.MaxPool2d else "MAC")
    functional.set_step_mode(net, "s")
    steps = spq.analyze(net, x, timesteps=T)
    assert steps.operations == report.operations
    assert steps.sparsity == report.sparsity
    assert steps.energy == report.energy


def open_some(net):
    """Channel gates that open some channels here and others there."""
    for path, module in net.named_modules():
        if isinstance(module, ChannelGate):
            generator = torch.Generator().manual_seed(len(path))
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
    return net


GATES = {
    "channels": (spq.ChannelGate(), None),
    "pixels, current": (None, spq.SpatialGate(SPARSITY, score="current")),
    "pixels, prior": (None, spq.SpatialGate(SPARSITY, score="prior")),
    "both, current": (spq.ChannelGate(), spq.SpatialGate(SPARSITY, score="current")),
    "both, prior": (spq.ChannelGate(), spq.SpatialGate(SPARSITY, score="prior")),
}


@pytest.mark.parametrize("name", ["LIF, hard", "LIF, soft"])
@pytest.mark.parametrize("gates", GATES)
def test_gated_spikingjelly_counts_as_the_loops(gates, name):
    make, spec, unit = NODES[name]
    channels, pixels = GATES[gates]
    net, x = spiking_jelly(make, layer.AvgPool2d), events()
    config = spq.presets.spquant_snn(3, channel_gate=channels, spatial_gate=pixels)
    net = open_some(spq.convert(net, config, x))
    spec = Spec(**{**vars(spec), "levels": TERNARY, "unit": unit})
    scored = Spec(**{**vars(spec), "score": None if pixels is None else pixels.score})
    specs = {"1": scored, "4": scored, "7": spec}
    found = [m for m in net.modules() if isinstance(m, ChannelGate | SpatialGate)]
    assert len(found) == 2 * (channels is not None) + 2 * (pixels is not None)
    expected = Expected(net, x, whole, specs)
    report = spq.analyze(net, x)
    expected.check(report.operations)
    expected.check_sparsity(report.sparsity, net, x, "v")
    if channels is not None:
        assert report.operations["3"].skipped > 0 < report.operations["6"].skipped
    if scored.score == "prior":
        assert report.operations["0"].skipped > 0
    functional.set_step_mode(net, "s")
    steps = spq.analyze(net, x, timesteps=T)
    assert steps.operations == report.operations
    assert steps.sparsity == report.sparsity


# --- snnTorch ----------------------------------------------------------------------------------

LATE = {"delayed": True, "strict": True}
CELLS = {
    "Leaky, subtract": (lambda **own: snn.Leaky(0.5, **own), Spec(soft=True, **LATE)),
    "Leaky, zero": (
        lambda **own: snn.Leaky(0.5, reset_mechanism="zero", **own),
        Spec(**LATE),
    ),
    "Leaky, subtract at once": (
        lambda **own: snn.Leaky(0.5, reset_delay=False, **own),
        Spec(soft=True, strict=True),
    ),
    "Leaky, zero at once": (
        lambda **own: snn.Leaky(0.5, reset_mechanism="zero", reset_delay=False, **own),
        Spec(strict=True),
    ),
    "Synaptic, subtract": (
        lambda **own: snn.Synaptic(0.25, 0.5, **own),
        Spec(soft=True, synapse=0.25, **LATE),
    ),
    "Synaptic, zero": (
        lambda **own: snn.Synaptic(0.25, 0.5, reset_mechanism="zero", **own),
        Spec(synapse=0.25, drops=True, **LATE),
    ),
}


def snn_torch(make):
    return lively(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=(0, 1), stride=(2, 1), bias=False),
            make(init_hidden=True),
            nn.MaxPool2d(2, padding=1),
            nn.Conv2d(4, 4, 2, groups=2, padding=1),
            make(init_hidden=True),
            nn.Flatten(),
            nn.Linear(4 * 3 * 4, 3),
            make(init_hidden=True, output=True),
        )
    )


class Unrolled(nn.Module):
    """The explicit-state idiom around the same modules, in a loop of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.stack([self.net(step)[0] for step in x])


class Run(Unrolled):
    """Layer by layer over all steps."""

    def forward(self, x):
        return spq.snntorch.run(self.net, x)


# Where the host's float neuron is still above its threshold after a reset, it subtracts again.
ONCE = [(name, False) for name in CELLS if name != "Leaky, subtract at once"]


@pytest.mark.parametrize(("name", "quantised"), [*ONCE, *((name, True) for name in CELLS)])
def test_snntorch_counts_as_the_loops(name, quantised):
    make, spec = CELLS[name]
    net, x = snn_torch(make), events()
    if quantised:
        net = spq.convert(net, spq.presets.quant_snn(weight_bits=3), x[0])
        spec = Spec(**{**vars(spec), "levels": TERNARY})
        assert float(net[1].membrane_unit) == 1.0
    specs = dict.fromkeys("147", spec)
    expected = Expected(net, x, stepwise, specs)
    report = spq.analyze(net, x, timesteps=T)
    expected.check(report.operations)
    expected.check_sparsity(report.sparsity, net, x, "mem")
    for wrapper in (Unrolled, Run):
        looped = spq.analyze(wrapper(net), x)
        assert [vars(row) | {"path": ""} for row in looped.operations] == [
            vars(row) | {"path": ""} for row in report.operations
        ]
        assert looped.operations.total == report.operations.total


@pytest.mark.parametrize("gates", GATES)
def test_gated_snntorch_counts_as_the_loops(gates):
    make, spec = CELLS["Leaky, subtract"]
    channels, pixels = GATES[gates]
    net, x = snn_torch(make), events()
    config = spq.presets.spquant_snn(3, channel_gate=channels, spatial_gate=pixels)
    net = open_some(spq.convert(net, config, x[0]))
    spec = Spec(**{**vars(spec), "levels": TERNARY})
    scored = Spec(**{**vars(spec), "score": None if pixels is None else pixels.score})
    expected = Expected(net, x, stepwise, {"1": scored, "4": scored, "7": spec})
    report = spq.analyze(net, x, timesteps=T)
    expected.check(report.operations)
    expected.check_sparsity(report.sparsity, net, x, "mem")
    assert report.operations.skipped > 0 or gates == "pixels, current"


# --- odd, but legal ----------------------------------------------------------------------------


def check_layers(net, sample, batch, run=whole, **options):
    """Each call of each weight layer against the loops, whatever shape it has."""
    found, watched = {}, copy.deepcopy(net).eval()
    for path, module in watched.named_modules():

        def note(module, args, output, path=path):
            x = args[0].detach().clone()
            own = x.reshape(-1, *x.shape[-max(module.weight.ndim - 1, 1) :])
            found.setdefault((path, module), []).append(own)

        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    with torch.no_grad():
        run(watched, sample)
    operations = spq.analyze(net, sample, **options).operations
    for (path, module), calls in found.items():
        quantised = hasattr(module, "effective_weight")
        weight = module.effective_weight() if quantised else module.weight
        counts = [count_layer(module, weight.detach(), x) for x in calls]
        for name in ("dense", "nonzero", "effective"):
            expected = sum(getattr(count, name) for count in counts)
            assert batch * getattr(operations[path], name) == pytest.approx(expected, abs=1e-9)
        adds = all(is_binary(x) for x in calls)
        assert operations[path].kind == ("AC" if adds else "MAC")
        assert batch * operations[path].inputs == sum(x.numel() for x in calls)
    return operations


class Twice(nn.Module):
    """A layer and a neuron that are called twice, and functions between them."""

    def __init__(self, returns=tuple):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 2, 3, padding=1), neuron.LIFNode(decay_input=False)
        self.fc, self.out, self.returns = nn.Linear(18, 4), neuron.IFNode(), returns
        lively(self)

    def forward(self, x, gain=1.0):
        x = self.lif(self.conv(x) * gain)
        x = torch.relu_(nn.functional.pad(self.lif(self.conv(x)), (0, 1)) - 0.0)
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        spk = self.out(self.fc(x))
        return self.returns((spk, x)) if self.returns is tuple else {"spikes": spk}


@pytest.mark.parametrize("returns", [tuple, dict])
def test_modules_that_are_called_twice_count_twice(returns):
    net, x = Twice(returns), spikes(3, 2, 6, 5)
    operations = check_layers(net, x, batch=3)
    assert operations["lif"].outputs == 2 * 2 * 6 * 5
    assert operations["lif"].macs == 2 * 2 * 6 * 5
    assert operations["fc"].effective > 0
    loaded = spq.analyze(net, {"x": x, "gain": torch.tensor(1.0)}).operations
    assert loaded == operations


def test_tokens_count_one_by_one():
    net = nn.Sequential(nn.Linear(4, 5), neuron.IFNode(), nn.LayerNorm(5), nn.Linear(5, 2))
    operations = check_layers(lively(net), spikes(3, 7, 4), batch=3)
    assert operations["0"].dense == 7 * 20
    assert operations["1"].outputs == 7 * 5


def test_a_sample_without_a_batch_is_one_sample():
    net = lively(
        nn.Sequential(nn.Conv2d(2, 3, 3), neuron.IFNode(), nn.Flatten(0), nn.Linear(27, 2))
    )
    check_layers(net, spikes(2, 5, 5), batch=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_count_alike(dtype):
    net = lively(nn.Sequential(nn.Conv2d(2, 3, 3), neuron.IFNode(), nn.Flatten(), nn.Linear(27, 2)))
    x = spikes(2, 2, 5, 5)
    expected = spq.analyze(net, x).operations
    operations = check_layers(net.to(dtype), x.to(dtype), batch=2)
    assert operations["0"].numbers == ("FP32" if dtype == torch.float64 else "FP16")
    for row in operations:
        assert row.effective == expected[row.path].effective


@pytest.mark.filterwarnings("ignore::spquant_plugin.errors.AnalysisWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**25 + 4, 1e-40])
def test_no_number_is_too_odd_to_be_counted(value):
    net, x = lively(nn.Sequential(nn.Linear(6, 5), neuron.IFNode())), spikes(2, 6)
    x[0, 0] = value
    check_layers(net, x, batch=2)
    quantised = spq.convert(net, spq.presets.quant_snn(weight_bits=2))
    operations = check_layers(quantised, x, batch=2)
    assert operations["0"].numbers == ("INT" if value == 2.0**25 + 4 else "FP32")


def test_sums_of_wide_numbers_have_their_width():
    net = spq.convert(
        nn.Sequential(nn.Linear(3, 5), neuron.IFNode()),
        spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights()),
    )
    row = spq.analyze(net, torch.tensor([[2.0**24 - 1, -5.0, 0.25]])).operations["0"]
    # Quarters up to 2**24 - 1, with a sign; three of them times -1, 0 or 1, with a sign.
    assert row.input_bits == 26 + 1
    assert row.sum_bits == (3 * 4 * (2**24 - 1)).bit_length() + 1


@pytest.mark.parametrize("compute", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_that_are_computed_count_as_they_come_out(compute):
    net = nn.Sequential(compute(lively(nn.Linear(6, 5))), neuron.IFNode(), nn.Linear(5, 2))
    check_layers(net.eval(), spikes(3, 6), batch=3)


def test_pruned_weights_are_skipped():
    net = lively(nn.Sequential(nn.Linear(6, 5), neuron.IFNode()))
    prune.l1_unstructured(net[0], "weight", 0.5)
    weight, x = net[0].weight.detach(), spikes(3, 6)
    report = spq.analyze(net, x)
    assert 3 * report.operations["0"].effective == pytest.approx(
        count_layer(net[0], weight, x).effective
    )
    assert report.sparsity["0"].zero_weights == int((weight == 0).sum()) / 30 >= 0.5


def test_layers_that_write_into_their_input_leave_the_sample_alone():
    net = lively(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5), neuron.IFNode()))
    x = 9 * torch.randn(3, 6)
    before = x.clone()
    operations = spq.analyze(net, [x, x], progress=False).operations
    assert torch.equal(x, before)
    assert 3 * operations["1"].effective == pytest.approx(
        count_layer(net[1], net[1].weight.detach(), x.clamp(min=0)).effective
    )


def test_a_sample_that_is_lost_in_numpy_still_counts_per_sample():
    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.lif = nn.Linear(4, 8), neuron.LIFNode()
            self.two, self.out = nn.Linear(8, 3), neuron.IFNode()
            lively(self)

        def forward(self, x):
            x = self.lif(torch.from_numpy(self.one(x).numpy().copy()))
            return self.out(self.two(torch.from_numpy(x.numpy().copy())))

    net, x = Lost(), 3 * spikes(4, 4)
    single = spq.analyze(net, x).operations
    assert [(row.dense, row.outputs) for row in single] == [(32, 8), (16, 8), (24, 3), (6, 3)]
    check_layers(net, x, batch=4)
    for batches in ([x[:2], x[2:]], [x[:3], x[3:]]):
        assert spq.analyze(net, batches, progress=False).operations == single


def test_a_network_s_own_hooks_are_not_called_on_the_copy():
    net, calls = lively(nn.Sequential(nn.Linear(6, 5), neuron.IFNode())), []
    for module in net:  # not their surrogates, which all neurons of the process share
        module.register_forward_hook(lambda *_: calls.append("after"))
        module.register_forward_pre_hook(lambda *_: calls.append("before"))
    net[0].weight.register_hook(lambda gradient: calls.append("gradient"))
    spq.analyze(net, [spikes(3, 6)] * 2, training=True, progress=False)
    assert not calls


def test_autocast_does_not_round_what_a_gate_leaves():
    net = nn.Sequential(
        layer.Conv1d(1, 2, 3, padding=1, bias=False),
        neuron.LIFNode(),
        layer.Conv1d(2, 4, 3, padding=1, bias=False),
        neuron.LIFNode(),
    )
    functional.set_step_mode(net, "m")
    nn.init.constant_(net[0].weight, 1.0)
    x = torch.ones(2, 1, 1, 999)
    net = open_some(spq.convert(net, spq.presets.spquant_snn(2, spatial_gate=None), x))
    expected = spq.analyze(net, x).operations["2"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        row = spq.analyze(net, x).operations["2"]
    assert (row.nonzero, row.effective) == (expected.nonzero, expected.effective)
    assert row.nonzero == 2 * 4 * 2 * (3 * 999 - 2)


@pytest.mark.parametrize("again", [slice(None), slice(None, None, 2)])
def test_pixels_of_a_layer_that_is_called_on_two_sizes_are_matched(again):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            gate = spq.SpatialGate(SPARSITY, score="prior")
            self.conv = layer.Conv2d(2, 3, 3, padding=1, bias=False, step_mode="m")
            self.lif = spq.spikingjelly.neuron.TernaryMembraneLIFNode(
                step_mode="m", spatial_gate=gate, decay_input=False
            )
            lively(self)

        def forward(self, x):
            first = self.lif(self.conv(x))
            self.lif.reset()
            return first, self.lif(self.conv(x[..., again, again].flip(-1)))

    net, x, expected = Pyramid(), spikes(T, N, 2, 6, 6), 0
    for part in (x, x[..., again, again].flip(-1)):
        with torch.no_grad():
            current = net.conv(part)
        found = simulate(
            Spec(levels=TERNARY, score="prior"),
            current,
        )
        kept = torch.tensor(found.kept).transpose(0, 1).reshape(T * N, *part.shape[3:])
        flat = part.flatten(0, 1)
        expected += count_layer(net.conv, net.conv.weight.detach(), flat, None, kept).effective
    row = spq.analyze(net, x).operations["conv"]
    assert (N * row.effective, row.note) == (expected, "")
    assert row.skipped > 0


def test_a_layer_whose_weight_changes_between_calls_is_looked_at_anew():
    class Fades(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3, bias=False), neuron.IFNode()

        def forward(self, x):
            out = 0
            for step in x:
                out = out + self.lif(self.fc(step))
                with torch.no_grad():
                    self.fc.weight[:, 0] = 0
            return out

    net, x = Fades(), torch.ones(3, 2, 4)
    assert spq.analyze(net, x).operations["fc"].effective == 12 + 9 + 9
    assert bool((net.fc.weight != 0).all())


def test_a_neuron_called_twice_in_a_step_is_not_two_steps():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
            self.shared, self.own, self.last = (neuron.IFNode(step_mode="m") for _ in range(3))

        def forward(self, x):
            x = self.own(self.one(self.shared(x)))
            return self.last(self.three(self.shared(self.two(x))))

    energy = spq.analyze(Twice(), spikes(4, 2, 4)).energy
    assert energy.timesteps == 4
