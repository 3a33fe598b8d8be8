"""Batch norms over two processes: equal to one process that is given both batches."""

from __future__ import annotations

import copy
import io
import pickle
import socket
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import spquant_plugin as spq
from spquant_plugin.convert.gate_schedule import _over_processes
from spquant_plugin.errors import ConversionError
from spquant_plugin.modules import layers as torch_layers
from spquant_plugin.spikingjelly import layer as stepped

STEPS = 3
UNEVEN = (3, 1)  # samples of either process


def quantized(mode: str, kinds: object, **options) -> nn.Sequential:
    rule = spq.UniformWeights(4) if mode == "fold" else spq.PowerOfTwoWeights(3)
    conv = kinds.QuantizedConv2d(2, 4, 3, weights=rule, **options)
    norm = kinds.QuantizedBatchNorm2d(4, layer=conv, norm=spq.QuantizedNorm(mode), **options)
    return nn.Sequential(conv, norm)


# A network, the shape of one process's input, and where its batch is.
CASES = {
    "1d": (lambda: nn.BatchNorm1d(4), (4,), 0),
    "1d of sequences": (lambda: nn.BatchNorm1d(4, momentum=None), (4, 6), 0),
    "2d": (lambda: nn.BatchNorm2d(4), (4, 5, 6), 0),
    "2d, nothing kept": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 5, 6), 0),
    "2d, nothing learned": (lambda: nn.BatchNorm2d(4, affine=False), (4, 5, 6), 0),
    "3d": (lambda: nn.BatchNorm3d(4), (4, 3, 2, 3), 0),
    "s": (lambda: layer.BatchNorm2d(4), (4, 5, 6), 0),
    "m 1d": (lambda: layer.BatchNorm1d(4, step_mode="m"), (4,), 1),
    "m 2d": (lambda: layer.BatchNorm2d(4, step_mode="m"), (4, 5, 6), 1),
    "m 3d": (lambda: layer.BatchNorm3d(4, step_mode="m"), (4, 3, 2, 3), 1),
    **{
        f"{mode} {way}": (lambda mode=mode, args=args: quantized(mode, *args[:1], **args[1]), *last)
        for mode in ("dyadic", "shift", "fold")
        for way, args, last in (
            ("torch", (torch_layers, {}), ((2, 5, 6), 0)),
            ("m", (stepped, {"step_mode": "m"}), ((2, 5, 6), 1)),
        )
    },
}


def build(name: str) -> tuple[nn.Module, Tensor, int]:
    """A norm with uneven parameters, the input of both processes, and the axis of its batch."""
    make, shape, axis = CASES[name]
    torch.manual_seed(len(name))
    net = make()
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    lead = (STEPS, sum(UNEVEN)) if axis else (sum(UNEVEN),)
    x = torch.randn(*lead, *shape) * torch.rand(shape[0]).view(-1, *[1] * (len(shape) - 1)) + 2
    return net, x, axis


def measured(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Everything that one step of training makes."""
    with torch.no_grad():
        net(2 * x)
    x = x.clone().requires_grad_()
    y = net(x)
    y.square().sum().backward()
    found = {"y": y.detach(), "x": x.grad, **net.state_dict()}
    return found | {f"grad {name}": p.grad for name, p in net.named_parameters()}


class Looped(nn.Module):
    """A network of single steps, given all of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        spq.reset(self.net)
        return torch.stack([self.net(step) for step in x])


def trained(host: str, rank: int | None = None) -> dict[str, Tensor]:
    """Parameters, statistics and gates after five steps; of both batches where rank is None."""
    name = "vgg5" if host == "spikingjelly" else "conv_net"
    dtype = torch.float64 if host == "spikingjelly" else torch.float32  # snnTorch's spikes
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    net = spq.models.create(name, host=host, in_channels=2, size=8, num_classes=3, width=0.25)
    x, labels = (torch.rand(STEPS, 8, 2, 8, 8) < 0.4).to(dtype), torch.arange(8) % 3
    config = spq.presets.spquant_snn(weight_bits=2, adaptive=True)
    net = spq.convert(net, config, sample=x if host == "spikingjelly" else x[0])
    model = net if host == "spikingjelly" else Looped(net)
    if rank is not None:
        model = DistributedDataParallel(spq.synchronize_norms_(model))
        x, labels = x[:, 4 * rank : 4 * rank + 4], labels[4 * rank : 4 * rank + 4]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    gates = spq.GateSchedule(net, target=0.4, steps=99, warmup=2)
    for _ in range(5):
        spq.reset(net)
        loss = nn.functional.cross_entropy(model(x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gates.step()
    state = gates.state_dict()
    found = {
        f"{part} {path}": v for part in ("importance", "closed") for path, v in state[part].items()
    }
    return net.state_dict() | found


def wide(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A step in half precision, far from zero: what is measured is not."""
    net, x = net.float(), x.float() * 1e-2 + 100
    with torch.autocast("cpu", torch.bfloat16):
        return {"y": net(x), "var": net.running_var, "half": net(x.bfloat16())}


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found: dict[str, object] = {}
    for name in CASES:
        net, x, axis = build(name)
        part = x.split(UNEVEN, axis)[rank]
        found[name] = measured(spq.synchronize_norms_(net), part)
    net, x, axis = build("2d")
    found["wide"] = wide(spq.synchronize_norms_(net), x.split(UNEVEN, axis)[rank])
    for host in ("spikingjelly", "snntorch"):
        found[host] = trained(host, rank)
    found["weighed"] = _over_processes(torch.tensor(float(rank)), decisions=UNEVEN[rank])
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both() -> tuple[dict, dict]:
    """What either process found, in one start of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (port, folder), nprocs=2)
        return tuple(torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1))


def close(found: Tensor, wanted: Tensor, name: str) -> None:
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=tolerance / 10, msg=lambda told: f"{name}: {told}"
    )


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_both_batches(both, float64, name):
    net, x, axis = build(name)
    for key, wanted in measured(net, x).items():
        one, two = (result[name][key] for result in both)
        if key in ("x", "y"):
            close(torch.cat([one, two], axis), wanted, key)
        elif key.startswith("grad"):
            close(one + two, wanted, key)
        else:
            assert torch.equal(one, two), key
            close(one, wanted, key)


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_training_a_gated_network_on_two_processes_equals_one(both, float64, host):
    whole = trained(host)
    first, second = (result[host] for result in both)
    assert any(key.startswith("importance") for key in whole)
    for key, wanted in whole.items():
        assert torch.equal(first[key], second[key]), key
        close(first[key], wanted, key)


def test_closed_fractions_count_by_the_samples_of_each_process(both):
    assert [float(result["weighed"]) for result in both] == [0.25, 0.25]


def test_statistics_are_wide_under_autocast_and_stable_far_from_zero(both, float64):
    net, x, axis = build("2d")
    x = x.float().double() * 1e-2 + 100
    want = net(x)
    found = torch.cat([result["wide"]["half"] for result in both], axis)
    assert found.dtype == torch.bfloat16
    y = torch.cat([result["wide"]["y"] for result in both], axis)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), want, rtol=0, atol=5e-2)  # x has 24 bits around 100
    one, two = (result["wide"]["var"] for result in both)
    assert torch.equal(one, two)


# --- one process --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_alone_or_in_eval_mode_nothing_changes(name, training):
    plain, x, _ = build(name)
    changed = spq.synchronize_norms_(copy.deepcopy(plain))
    assert list(changed.state_dict()) == list(plain.state_dict())
    want, found = (net.train(training)(x) for net in (plain, changed))
    assert torch.equal(found, want)
    for key, value in plain.state_dict().items():
        assert torch.equal(changed.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["2d", "m 2d", "dyadic m", "fold torch"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "twice"])
def test_a_duplicate_stays_synchronised(name, way):
    plain, x, _ = build(name)
    kinds = [type(m) for m in plain.modules()]
    net = spq.synchronize_norms_(plain)
    if way == "deepcopy":
        other = copy.deepcopy(net)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(net))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = spq.synchronize_norms_(net)
    assert all(isinstance(m, kind) for m, kind in zip(other.modules(), kinds, strict=True))
    assert str(other) == str(net)
    assert str(other).count(", synchronized") == 1
    assert torch.equal(other(x), copy.deepcopy(net)(x))


def test_a_quantised_twin_stays_synchronised_and_knows_the_way_back():
    norm = spq.synchronize_norms_(layer.BatchNorm2d(4))
    conv = stepped.QuantizedConv2d(2, 4, 3, weights=spq.PowerOfTwoWeights(2))
    twin = stepped.QuantizedBatchNorm2d.from_float(norm, spq.QuantizedNorm(), conv)
    assert twin.synchronized
    assert twin.plain_class is layer.BatchNorm2d


def test_the_step_mode_can_still_be_changed():
    net = spq.synchronize_norms_(nn.Sequential(layer.BatchNorm2d(4)))
    functional.set_step_mode(net, "m")
    assert net(torch.rand(STEPS, 2, 4, 3, 3)).shape == (STEPS, 2, 4, 3, 3)


def test_a_synchronised_network_compiles_whole_in_one_process(fresh_compiler):
    net = spq.synchronize_norms_(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    x = torch.rand(2, 1, 5, 5)
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))


def test_a_norm_of_torch_that_is_synchronised_already_is_left_alone():
    net = nn.Sequential(nn.SyncBatchNorm(2), nn.InstanceNorm2d(2), nn.Linear(2, 2))
    kinds = [type(m) for m in net]
    assert [type(m) for m in spq.synchronize_norms_(net)] == kinds


class Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize("norm", [Own(2), layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 2)])
def test_a_norm_with_its_own_way_is_refused_before_anything_changes(norm):
    net = nn.Sequential(nn.BatchNorm2d(2), norm)
    message = rf"1 \({type(norm).__name__}\) normalises in its own way: must be BatchNorm1d"
    with pytest.raises(ConversionError, match=message):
        spq.synchronize_norms_(net)
    assert type(net[0]) is nn.BatchNorm2d


def test_a_norm_without_channels_is_refused():
    with pytest.raises(ConversionError, match=r"\(model\) \(LazyBatchNorm2d\) does not know its"):
        spq.synchronize_norms_(nn.LazyBatchNorm2d())


def test_a_network_with_synchronised_norms_is_quantised_and_lowered_as_without():
    events = torch.randint(0, 2, (STEPS, 2, 2, 8, 8)).float()
    plain = spq.models.create("vgg5", in_channels=2, size=8, num_classes=4, width=0.125)
    synchronised = spq.synchronize_norms_(copy.deepcopy(plain))
    for config in (spq.presets.quant_snn(2), spq.presets.md_snn(4)):  # float and quantised norms
        nets = [spq.convert(net, config, sample=events).eval() for net in (plain, synchronised)]
        kinds = [[type(module).__name__ for module in net.modules()] for net in nets]
        assert kinds[0] == kinds[1]
        integers = [spq.to_integer(net, events) for net in nets]
        assert torch.equal(*(net(events) for net in integers))
        assert spq.verify(integers[1], nets[1], events).exact
