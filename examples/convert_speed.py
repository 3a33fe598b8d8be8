"""How long converting ResNet-34 takes, without a sample, for each weight precision.

python examples/convert_speed.py
"""

from __future__ import annotations

import statistics
import time

from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import spiking_resnet

import spquant_plugin as spq

REPEATS = 5


def main() -> None:
    net = spiking_resnet.spiking_resnet34(spiking_neuron=neuron.LIFNode, num_classes=1000)
    functional.set_step_mode(net, "m")
    weights = sum(parameter.numel() for parameter in net.parameters())
    print(f"spiking_resnet34, {weights:,} parameters, median of {REPEATS} conversions")
    for bits in (2, 4, 8):
        config = spq.presets.quant_snn(weight_bits=bits, adaptive=True)
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            spq.convert(net, config)
            times.append(time.perf_counter() - begin)
        print(f"{bits} bit: {statistics.median(times):.2f} s (first {times[0]:.2f} s)")


if __name__ == "__main__":
    main()
