"""
Quickstart with snnTorch
========================

Train a small spiking network in a loop over time, convert it to ternary membranes and 2-bit
weights, fine-tune it, and compare accuracy and memory.

The digits are scikit-learn's, recorded by a simulated event camera, so nothing is downloaded.
Every row of the table is trained for the same number of epochs.

    python examples/quickstart_snntorch.py
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from figures import membranes_and_spikes, table
from snntorch.functional import ce_rate_loss
from torch import Tensor, nn
from tqdm import tqdm

import spquant_plugin as spq


def network(in_channels: int, classes: int, **options: Any) -> nn.Module:
    """Two spiking convolutions (16, 32 channels) and a read-out, for 16 x 16 pixels, one step."""
    return spq.models.create(
        "conv_net",
        host="snntorch",
        in_channels=in_channels,
        size=16,
        num_classes=classes,
        width=0.5,
        **options,
    )


def run(net: nn.Module, frames: Tensor) -> Tensor:
    """Outputs ``[T, B, classes]`` of a whole recording, from rest."""
    spq.reset(net)
    return torch.stack([net(frame) for frame in frames])


def train(
    net: nn.Module,
    data: spq.data.FrameDataset,
    epochs: int,
    name: str,
    lr: float = 4e-3,
    seed: int = 0,
) -> None:
    """Adam, cosine to zero, TET loss. The optimizer is made here, so after any conversion."""
    batches = spq.data.loader(data, batch_size=32, shuffle=True, seed=seed, drop_last=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    tet_loss = ce_rate_loss()  # cross entropy of every step's output, averaged over the steps
    net.train()
    with tqdm(total=epochs * len(batches), desc=f"{name:26}", unit="batch") as bar:
        for _ in range(epochs):
            for frames, labels in batches:
                loss = tet_loss(run(net, frames), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    spq.reset(net)


@torch.no_grad()
def accuracy(net: nn.Module, data: spq.data.FrameDataset) -> float:
    """Share of recordings whose label gets the largest output, averaged over time."""
    net.eval()
    right = 0
    for frames, labels in spq.data.loader(data, batch_size=256):
        right += int((run(net, frames).mean(0).argmax(1) == labels).sum())
    spq.reset(net)
    return right / len(data)


@torch.no_grad()
def observe(net: nn.Module, frames: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Spikes and stored membranes ``[T, B, ...]`` of one neuron layer."""
    neuron = net.get_submodule(path)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = neuron.register_forward_hook(lambda module, args, spk: seen.append((spk, module.mem)))
    run(net.eval(), frames)
    hook.remove()
    spq.reset(net)
    spikes, membranes = zip(*seen, strict=True)
    return torch.stack(spikes), torch.stack(membranes)


def convert(net: nn.Module, data: spq.data.FrameDataset, adaptive: bool) -> nn.Module:
    """A low-precision copy whose batch norms know the quantised currents."""
    frames = [frames for frames, _ in spq.data.loader(data, batch_size=256)]
    config = spq.presets.quant_snn(weight_bits=2, adaptive=adaptive)
    quantized = spq.convert(net, config, sample=frames[0][0, :1])
    return spq.calibrate(quantized, frames, forward=run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--epochs", type=int, default=6, help="epochs before and after conversion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="quickstart_snntorch.png", help="where it is saved")
    options = parser.parse_args()
    begin = time.perf_counter()
    torch.manual_seed(options.seed)
    training = spq.data.DigitEvents("train", seed=options.seed)
    test = spq.data.DigitEvents("test", seed=options.seed)

    net = network(in_channels=2, classes=10)
    train(net, training, options.epochs, "full precision", seed=options.seed)
    rows = {
        "FP": copy.deepcopy(net),
        "Quant": convert(net, training, adaptive=False),
        "Quant, learned threshold": convert(net, training, adaptive=True),
    }
    for name, row in rows.items():
        train(row, training, options.epochs, name, seed=options.seed)

    frames, _ = next(iter(spq.data.loader(test, batch_size=64)))
    print(f"\n{spq.status(rows['Quant, learned threshold'])}\n")
    print(
        table(
            {name: accuracy(row, test) for name, row in rows.items()},
            {name: spq.analyze(row, frames[0, :1]) for name, row in rows.items()},
        )
    )
    figure = membranes_and_spikes(
        test.events(0),
        test.framing.width,
        before=observe(rows["FP"], frames, "neuron2"),
        after=observe(rows["Quant"], frames, "neuron2"),
    )
    figure.savefig(options.figure, dpi=150)
    print(f"\nFigure: {options.figure}. {time.perf_counter() - begin:.0f} s in all.")


if __name__ == "__main__":
    main()
