"""
Quickstart with SpikingJelly
============================

Train a small spiking VGG on digits that an event camera saw, convert it to ternary membranes and
2-bit weights, fine-tune it, and compare accuracy and memory.

The digits are scikit-learn's, recorded by a simulated event camera, so nothing is downloaded.
Every row of the table is trained for the same number of epochs.

    python examples/quickstart.py
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from figures import membranes_and_spikes, table
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from tqdm import tqdm

import spquant_plugin as spq

# The TET loss asks every step's output for the label, not only their mean.
tet_loss = functional.temporal_efficient_training_cross_entropy


def network(in_channels: int, classes: int, **options: Any) -> nn.Module:
    """Four spiking convolutions (16, 16, 32, 32 channels) and a read-out, for 16 x 16 pixels."""
    return spq.models.create(
        "vgg5", in_channels=in_channels, size=16, num_classes=classes, width=0.5, **options
    )


def train(
    net: nn.Module,
    data: spq.data.FrameDataset,
    epochs: int,
    name: str,
    lr: float = 4e-3,
    seed: int = 0,
    loss_of: Callable[[Tensor, Tensor], Tensor] = tet_loss,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Adam and a cosine to zero. The optimizer is made here, so after any conversion."""
    batches = spq.data.loader(data, batch_size=32, shuffle=True, seed=seed, drop_last=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    net.train()
    with tqdm(total=epochs * len(batches), desc=f"{name:26}", unit="batch") as bar:
        for _ in range(epochs):
            for frames, labels in batches:
                functional.reset_net(net)
                outputs = net(frames)  # [T, B, classes]
                loss = loss_of(outputs, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                after_step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    functional.reset_net(net)


@torch.no_grad()
def accuracy(net: nn.Module, data: spq.data.FrameDataset) -> float:
    """Share of recordings whose label gets the largest output, averaged over time."""
    net.eval()
    right = 0
    for frames, labels in spq.data.loader(data, batch_size=256):
        functional.reset_net(net)
        right += int((net(frames).mean(0).argmax(1) == labels).sum())
    functional.reset_net(net)
    return right / len(data)


@torch.no_grad()
def observe(net: nn.Module, frames: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Spikes and stored membranes ``[T, B, ...]`` of one neuron layer."""
    neuron = net.get_submodule(path)
    spikes: list[Tensor] = []
    hook = neuron.register_forward_hook(lambda module, args, output: spikes.append(output))
    neuron.store_v_seq = True
    net.eval()(frames)
    membranes = neuron.v_seq.clone()
    neuron.store_v_seq = False
    hook.remove()
    functional.reset_net(net)
    return spikes[0], membranes


def convert(
    net: nn.Module, data: spq.data.FrameDataset, adaptive: bool = False, **fields: Any
) -> nn.Module:
    """A low-precision copy whose batch norms know the quantised currents."""
    frames = [frames for frames, _ in spq.data.loader(data, batch_size=256)]
    config = spq.presets.quant_snn(weight_bits=2, adaptive=adaptive, **fields)
    return spq.calibrate(spq.convert(net, config, sample=frames[0][:, :1]), frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--epochs", type=int, default=6, help="epochs before and after conversion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="quickstart.png", help="where the figure is saved")
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
            {name: spq.analyze(row, frames[:, :1]) for name, row in rows.items()},
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
