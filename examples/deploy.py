"""
Deploy: from a trained network to whole numbers and to C
========================================================

Train the quickstart's network with ternary membranes and 2-bit weights, lower it to an integer
network, prove that both are the same, store it in one file, write it as C, compile that, and let
the C program classify test images.

    python examples/deploy.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from quickstart import accuracy, convert, network, train
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spquant_plugin as spq


def trained(epochs: int, seed: int) -> tuple[nn.Module, spq.data.FrameDataset]:
    """A converted, fine-tuned network in eval mode, and the test images."""
    training = spq.data.DigitEvents("train", seed=seed)
    net = network(in_channels=2, classes=10)
    train(net, training, epochs, "full precision", seed=seed)
    quantized = convert(net, training)
    train(quantized, training, epochs, "quantised", seed=seed)
    return quantized.eval(), spq.data.DigitEvents("test", seed=seed)


@torch.no_grad()
def integer_accuracy(net: spq.IntegerNetwork, data: spq.data.FrameDataset) -> float:
    """Share of recordings whose label gets the largest output, averaged over time."""
    right = 0
    for frames, labels in spq.data.loader(data, batch_size=64):
        right += int((net(frames).mean(0).argmax(1) == labels).sum())
    return right / len(data)


@torch.no_grad()
def milliseconds(call: Callable[[], object], times: int = 9) -> float:
    """Median time of a call, after one to warm up."""
    call()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found)


def run_c(folder: Path) -> None:
    """Compile the C program and let it replay the stored sample."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        print("No C compiler here: the sources are written, but not built.")
        return
    done = subprocess.run(
        ["make", "-C", str(folder), "test"], capture_output=True, text=True, check=False
    )
    print(done.stdout.strip())
    if done.returncode:
        raise SystemExit(f"the C program failed:\n{done.stderr}")


def compare_speed(model: nn.Module, net: spq.IntegerNetwork, x: Tensor) -> None:
    """One sample, all steps: the trained model, in float, beside the integers."""

    def trained_model() -> None:
        functional.reset_net(model)
        model(x)

    before, after = milliseconds(trained_model), milliseconds(lambda: net(x))
    print(f"One sample: {before:.2f} ms in the trained model, {after:.2f} ms in integers.")


def main() -> None:
    parser = argparse.ArgumentParser(description="From a trained network to C.")
    parser.add_argument("--epochs", type=int, default=6, help="epochs before and after conversion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="outputs/deploy", help="folder of the file and the C code")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)

    model, test = trained(options.epochs, options.seed)
    frames, _ = next(iter(spq.data.loader(test, batch_size=64)))

    net = spq.to_integer(model, frames[:, :1])
    print(f"\n{net}\n")
    proof = spq.verify(net, model, frames)
    print(f"{proof}\n")
    if not proof.exact:
        raise SystemExit("the integer network differs from the trained one")
    trained_one, integer_one = accuracy(model, test), integer_accuracy(net, test)
    print(f"accuracy: trained {trained_one:.3f}, integer {integer_one:.3f}")

    net.save(folder / "digits.spq")
    again = spq.load_integer(folder / "digits.spq")
    size = (folder / "digits.spq").stat().st_size
    floats = sum(4 * p.numel() for p in model.parameters())
    print(f"file: {size:,} bytes, its parameters in float {floats:,}")
    print(f"loaded again it is the same: {torch.equal(again(frames), net(frames))}")
    compare_speed(model, net, frames[:, :1])

    report = spq.export_c(net, folder / "c")
    print(f"\n{report}\n")
    run_c(folder / "c")


if __name__ == "__main__":
    main()
