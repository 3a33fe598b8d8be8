"""Train a small SpikingJelly network, convert it to low precision, fine-tune it, compare.

The task is made on the spot: a dot crosses a noisy 10 x 10 field in one of four directions. No
single frame tells the direction, so the neurons' membranes have to remember.

    python examples/quickstart.py
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from tqdm import tqdm

import spquant_plugin as spq

STEPS, SIZE, NOISE = 6, 10, 0.02
DIRECTIONS = torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])


def moving_dots(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, count, 1, SIZE, SIZE]`` of a dot that moves, and its direction 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    start = torch.randint(SIZE, (count, 2), generator=generator)
    frames = (torch.rand(STEPS, count, 1, SIZE, SIZE, generator=generator) < NOISE).float()
    samples = torch.arange(count)
    for step in range(STEPS):
        row, column = ((start + step * DIRECTIONS[labels]) % SIZE).unbind(1)
        frames[step, samples, 0, row, column] = 1
    return frames, labels


def network() -> nn.Module:
    """Two spiking convolutions and a linear read-out, averaged over time."""
    net = nn.Sequential(
        layer.Conv2d(1, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan()),
        layer.Conv2d(16, 32, 3, padding=1, bias=False),
        layer.BatchNorm2d(32),
        neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan()),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(32 * (SIZE // 2) ** 2, 4),
    )
    functional.set_step_mode(net, "m")
    return net


def train(
    net: nn.Module, data: tuple[Tensor, Tensor], epochs: int, name: str, lr: float = 2e-3
) -> None:
    """Adam with a cosine schedule; the optimizer is made here, so after any conversion."""
    frames, labels = data
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    batches = len(labels) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    net.train()
    bar = tqdm(range(epochs), desc=f"{name:28}", unit="epoch")
    for _ in bar:
        for pick in torch.randperm(len(labels)).split(64):
            if len(pick) < 64:
                continue
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(frames[:, pick]).mean(0), labels[pick])
            loss.backward()
            optimizer.step()
            schedule.step()
            functional.reset_net(net)
        bar.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of test samples whose direction is right."""
    frames, labels = data
    net.eval()
    right = 0
    for pick in torch.arange(len(labels)).split(256):
        right += int((net(frames[:, pick]).mean(0).argmax(1) == labels[pick]).sum())
        functional.reset_net(net)
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    begin = time.perf_counter()
    training, test = moving_dots(4096, seed=1), moving_dots(1024, seed=2)

    float_net = network()
    train(float_net, training, options.epochs, "full precision")
    trained = copy.deepcopy(float_net)
    results = []
    for name, config in {
        "Quant": spq.presets.quant_snn(weight_bits=2),
        "Quant, learned threshold": spq.presets.quant_snn(weight_bits=2, adaptive=True),
    }.items():
        quantized = spq.convert(trained, config, sample=training[0][:, :1])
        if not results:
            print(f"\n{spq.plan(trained, config, sample=training[0][:, :1])}\n")
        spq.calibrate(quantized, training[0].split(256, dim=1))
        train(quantized, training, options.epochs, name)
        results.append((name, quantized))
    # The float network gets the same number of epochs as the others, for a fair comparison.
    train(float_net, training, options.epochs, "full precision, continued")

    print(f"\n{spq.status(results[-1][1])}\n")
    print(f"{'network':28}{'membrane':>10}{'weights':>12}{'accuracy':>10}")
    print(f"{'full precision':28}{'32 bit':>10}{'32 bit':>12}{accuracy(float_net, test):>10.1%}")
    for name, quantized in results:
        print(f"{name:28}{'1.58 bit':>10}{'2 / 8 bit':>12}{accuracy(quantized, test):>10.1%}")
    print("\nWeights: 2 bit inside, 8 bit in the first and the last layer.")
    print(f"{time.perf_counter() - begin:.0f} s in all.")


if __name__ == "__main__":
    main()
