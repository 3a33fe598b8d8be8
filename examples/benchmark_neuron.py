"""How fast a layer of ternary neurons is: against both hosts, the memory floor and itself.

    python examples/benchmark_neuron.py --json neuron.jsonl --plot neuron.png      # minutes
    python examples/benchmark_neuron.py --device cuda
    python examples/benchmark_neuron.py --quick                    # only to see it run
    python examples/benchmark_neuron.py --show neuron.jsonl        # reprint a stored table

SpikingJelly is what we compare with, as its users run it: on a CPU step by step in torch, on a GPU
by its own Triton kernels, which it chooses by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import snntorch
import torch
from benchmark_neuron_tables import (
    CODED,
    COMPILED,
    EAGER,
    FIXED,
    HOST,
    HOST_COMPILED,
    LOOP,
    MODES,
    RUN,
    SNNTORCH,
    UNCONVERTED,
    figure,
    table,
)
from benchmarking import (
    Case,
    arguments,
    finish,
    fresh,
    in_turns,
    kept_bytes,
    machine,
    peak_bytes,
    synchronize,
)
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.spikingjelly.neuron import TernaryMembraneLIFNode
from spquant_plugin.spikingjelly.surrogate import Triangle


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    shape: tuple[int, ...] = (10, 8, 128, 24, 24)
    steps: tuple[int, ...] = (2, 4, 8, 16, 32)
    repeats: int = 30
    copied: int = 2**29  # bytes: far more than caches hold
    net: tuple[int, int] = (25, 512)  # steps, width
    batches: tuple[int, ...] = (16, 64, 128)
    first: tuple[str, ...] = (COMPILED, HOST_COMPILED)  # whose first call


QUICK = Sizes((3, 2, 4, 8, 8), (2, 4), 3, 2**20, (3, 16), (2, 4), (COMPILED,))


@dataclass(frozen=True)
class Variant:
    """A layer of neurons: spikes of a sequence, and how our kernels are to compute them."""

    spikes: Callable[[Tensor], Tensor]
    reset: Callable[[], object] = lambda: None
    provider: str = "auto"
    saved_bits: int = 32
    module: nn.Module | None = None

    def run(self, x: Tensor, mode: str, gradient: Tensor) -> None:
        """Reset and run as in training; the reset frees what the run before left."""
        grad = torch.no_grad() if mode == "inference" else contextlib.nullcontext()
        with spq.kernels.use(self.provider, saved_bits=self.saved_bits), grad:
            self.reset()
            spikes = self.spikes(x)
            if mode == "both":
                spikes.backward(gradient)

    def forget(self, x: Tensor) -> None:
        """Drop the gradients, so that none is added to another."""
        x.grad = None
        if self.module is not None:
            self.module.zero_grad()


def of_module(module: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> Variant:
    run = module if run is None else run
    return Variant(run, lambda: functional.reset_net(module), module=module)


def ours(device: str) -> nn.Module:
    """A ternary membrane, and a threshold that learns by GPW."""
    return TernaryMembraneLIFNode(
        surrogate_function=Triangle(),
        step_mode="m",
        learnable_threshold=spq.LearnableThreshold(),
    ).to(device)


def hosts_own() -> nn.Module:
    return neuron.LIFNode(step_mode="m")


def leaky_loop(device: str) -> Variant:
    """snnTorch as its users run it: a loop over time, the outputs stacked."""
    layer = snntorch.Leaky(beta=0.5, reset_mechanism="zero").to(device)

    def spikes(x: Tensor) -> Tensor:
        membrane, train = torch.zeros_like(x[0]), []
        for current in x:
            fired, membrane = layer(current, membrane)
            train.append(fired)
        return torch.stack(train)

    return Variant(spikes, module=layer)


def fixed_threshold(x: Tensor) -> Tensor:
    """The kernel without a module: threshold 1, nothing learned but the input."""
    rule = spq.kernels.Rule()
    return spq.kernels.membrane_sequence(x, rule, threshold=1.0, decay=0.5, gain=0.5).spikes


def variants(device: str) -> dict[str, Callable[[], Variant]]:
    """How to make everything that is compared; each of ours has a neuron of its own."""

    def host_compiled() -> Variant:
        module = hosts_own()
        return of_module(module, torch.compile(module))

    def of_ours(provider: str, saved_bits: int = 32) -> Callable[[], Variant]:
        return lambda: replace(of_module(ours(device)), provider=provider, saved_bits=saved_bits)

    return {
        HOST: lambda: of_module(hosts_own()),
        HOST_COMPILED: host_compiled,
        SNNTORCH: lambda: leaky_loop(device),
        COMPILED: of_ours("compiled"),
        EAGER: of_ours("eager"),
        **{name: of_ours("compiled", bits) for bits, name in CODED.items()},
        FIXED: lambda: Variant(fixed_threshold, provider="compiled"),
    }


def inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Currents that want a gradient, and the gradient that arrives at the spikes."""
    return torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)


def layer(sizes: Sizes, device: str) -> dict[str, dict[str, Any]]:
    """Times of every variant, and what each keeps for its backward pass."""
    x, gradient = inputs(sizes.shape, device)
    compared = {name: make() for name, make in variants(device).items()}
    if not compiles(compared[HOST_COMPILED], x, gradient):
        del compared[HOST_COMPILED]
    found: dict[str, dict[str, Any]] = {name: {} for name in compared}
    for mode, label in MODES.items():
        cases = {name: case(variant, x, mode, gradient) for name, variant in compared.items()}
        for name, took in in_turns(cases, device, sizes.repeats, label).items():
            found[name][mode] = took
    for name, variant in compared.items():
        kept = kept_bytes(lambda v=variant: v.run(x, "forward", gradient))  # type: ignore[misc]
        found[name]["kept"] = kept / x.numel()
        variant.forget(x)
        variant.reset()
        if device == "cuda":
            peak = peak_bytes(lambda v=variant: v.run(x, "both", gradient))  # type: ignore[misc]
            found[name]["peak"] = peak / x.numel()
    return found


def compiles(variant: Variant, x: Tensor, gradient: Tensor) -> bool:
    """Whether torch can compile the host's neuron: that is the host's affair, and may fail."""
    try:
        variant.run(x, "both", gradient)
    except Exception as error:
        told = str(error).strip() or type(error).__name__
        print(f"{HOST_COMPILED} is left out: {told.splitlines()[0]}", file=sys.stderr)
        return False
    return True


def case(variant: Variant, x: Tensor, mode: str, gradient: Tensor) -> Case:
    return Case(lambda: variant.run(x, mode, gradient), lambda: variant.forget(x))


def floor(sizes: Sizes, device: str, ours_ms: dict[str, float]) -> dict[str, float]:
    """The time that memory alone needs, from the rate of a copy, and what share of ours it is."""
    elements = math.prod(sizes.shape)
    rates = {}
    for name, size in (("large", sizes.copied // 4), ("layer", elements)):
        source, target = torch.randn(size, device=device), torch.empty(size, device=device)
        copy = {"": Case(lambda a=source, b=target: b.copy_(a))}  # type: ignore[misc]
        took = in_turns(copy, device, sizes.repeats, f"copy of {4 * size / 1e6:.0f} MB")[""]
        rates[name] = 2 * 4 * size / took["ms"] / 1e6
    # Forward: read x, write s. Backward: read g and x, write the gradient.
    passes = {"inference": 2, "forward": 2, "both": 5}
    least = {mode: count * 4 * elements / rates["large"] / 1e6 for mode, count in passes.items()}
    return {
        "large_gb_s": rates["large"],
        "layer_gb_s": rates["layer"],
        **{f"{mode}_ms": value for mode, value in least.items()},
        **{f"{mode}_share": value / ours_ms[mode] for mode, value in least.items()},
    }


def lengths(sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
    """Nanoseconds per element, forward and backward, when the same elements are more steps."""
    elements = math.prod(sizes.shape) // max(sizes.steps) * max(sizes.steps)
    cases = {}
    for steps in sizes.steps:
        x, gradient = inputs((steps, elements // steps), device)
        for name, module in ((HOST, hosts_own()), (COMPILED, ours(device))):
            variant = replace(of_module(module), provider="compiled")
            cases[f"{name}/{steps}"] = case(variant, x, "both", gradient)
    times = in_turns(cases, device, sizes.repeats, "numbers of steps")
    return {
        name: {str(steps): 1e6 * times[f"{name}/{steps}"]["ms"] / elements for steps in sizes.steps}
        for name in (HOST, COMPILED)
    }


def first_calls(sizes: Sizes, device: str, names: list[str]) -> dict[str, dict[str, float]]:
    """First and second step in a new process, with nothing kept on disk and with what that kept."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                "SPQUANT_CACHE": f"{folder}/ours",
                "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
                "TRITON_CACHE_DIR": f"{folder}/triton",
            }
            options = ["--device", device, "--shape", *sizes.shape, "--first-call", name]
            for state in ("cold", "warm"):
                found[f"{name}, {state}"] = fresh(__file__, *options, environment=environment)
    return found


def first_call(shape: tuple[int, ...], device: str, name: str) -> None:
    """What a fresh process runs: two steps, and how long each took."""
    x, gradient = inputs(shape, device)
    synchronize(device)
    begin = time.perf_counter()
    variant = variants(device)[name]()
    seconds = []
    for _ in range(2):
        variant.run(x, "both", gradient)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
        variant.forget(x)
        begin = time.perf_counter()
    print(json.dumps({"first_s": seconds[0], "second_s": seconds[1]}))


def snntorch_network(sizes: Sizes, batch: int, device: str) -> dict[str, dict[str, float]]:
    """Forward and backward of a snnTorch Sequential: the loop over time, and layer by layer."""
    steps, width = sizes.net
    layers: list[nn.Module] = []
    for _ in range(3):
        neuron = snntorch.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero")
        layers += [nn.Linear(width, width), neuron]
    plain = nn.Sequential(*layers).to(device)
    net = spq.convert(plain, spq.presets.quant_snn())
    x = torch.randn(steps, batch, width, device=device)
    gradient = torch.randn(steps, batch, width, device=device)

    def loop(net: nn.Module) -> Tensor:
        return torch.stack([net(current) for current in x])

    def run(net: nn.Module) -> Tensor:
        return spq.snntorch.run(net, x)

    def step(net: nn.Module, outputs: Callable[[nn.Module], Tensor]) -> Case:
        def once() -> None:
            spq.reset(net)
            outputs(net).backward(gradient)

        return Case(once, net.zero_grad)

    cases = {UNCONVERTED: step(plain, loop), LOOP: step(net, loop), RUN: step(net, run)}
    return in_turns(cases, device, sizes.repeats, f"snnTorch Sequential, batch {batch}")


def deviation(sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
    """Relative error of the gradients, in norm, that keeping fewer bits costs."""
    x, gradient = inputs(sizes.shape, device)
    module = ours(device)
    found = {}
    for bits in (32, *CODED):
        variant = replace(of_module(module), provider="compiled", saved_bits=bits)
        variant.forget(x)
        variant.run(x, "both", gradient)
        found[bits] = {"input": x.grad, "threshold": module.v_threshold.grad}
    exact = found.pop(32)
    return {
        str(bits): {
            name: float((value - exact[name]).norm() / exact[name].norm())
            for name, value in gradients.items()
        }
        for bits, gradients in found.items()
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, as one JSON object."""
    sizes = sizes_of(options)
    device = options.device
    compared = layer(sizes, device)
    ours_ms = {mode: compared[COMPILED][mode]["ms"] for mode in MODES}
    return {
        "benchmark": "neuron",
        "quick": options.quick,
        "repeats": sizes.repeats,
        "machine": machine(device),
        "shape": sizes.shape,
        "layer": compared,
        "floor": floor(sizes, device, ours_ms),
        "ns_per_element": lengths(sizes, device),
        "first_call": first_calls(
            sizes, device, [name for name in sizes.first if name in compared]
        ),
        "net": sizes.net,
        "snntorch": {str(batch): snntorch_network(sizes, batch, device) for batch in sizes.batches},
        "deviation": deviation(sizes, device),
    }


def sizes_of(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    if options.shape:
        sizes = replace(sizes, shape=tuple(options.shape))
    return replace(sizes, repeats=options.repeats) if options.repeats else sizes


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", help="of the input, time first")
    parser.add_argument("--first-call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_call:
        first_call(tuple(options.shape), options.device, options.first_call)
        return
    finish(options, lambda: measure(options), table, figure)


if __name__ == "__main__":
    main()
