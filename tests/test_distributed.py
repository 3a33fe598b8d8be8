"""Two processes train one converted model: parameters and scales stay equal on both."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from networks import Loop, spiking_jelly
from torch.nn.parallel import DistributedDataParallel

import spquant_plugin as spq


def train(rank: int, port: int, host: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = spiking_jelly() if host == "spikingjelly" else Loop()
    shape = (3, 2, 2, 8, 8) if host == "spikingjelly" else (3, 4, 5)
    config = spq.presets.spquant_snn(2, adaptive=True)
    if host == "snntorch":
        config = spq.presets.spquant_snn(2, adaptive=True, spatial_gate=None)  # linear layers
    net = spq.convert(model, config, sample=torch.zeros(shape))
    for module in net.modules():
        if isinstance(module, spq.modules.ChannelGate):
            torch.nn.init.normal_(module.weight, std=9.0)  # each process closes its own share
    parallel = DistributedDataParallel(net)
    gates = spq.GateSchedule(parallel, target=0.5, steps=100, warmup=1)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.05)
    torch.manual_seed(1 + rank)  # each process sees its own data
    for _ in range(4):
        spq.reset(net)
        optimizer.zero_grad()
        (parallel(torch.randint(0, 2, shape).float()) - 1).square().sum().backward()
        optimizer.step()
        gates.step()
    torch.save(net.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_parameters_are_equal_on_both_processes(host):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (port, host, folder), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1))
    assert list(first) == list(second)
    start = spiking_jelly() if host == "spikingjelly" else Loop()
    local = ("running_mean", "running_var", "num_batches_tracked")  # as in any plain model
    for key, value in first.items():
        if not key.endswith(local):
            assert torch.equal(value, second[key]), key
    assert any(not torch.equal(first[k], v) for k, v in start.state_dict().items())
