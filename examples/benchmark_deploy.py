"""How fast and how small VGG-9 runs as an integer network on a CPU.

    python examples/benchmark_deploy.py --json deploy.jsonl --plot deploy.png      # minutes
    python examples/benchmark_deploy.py --quick                    # only to see it run
    python examples/benchmark_deploy.py --show deploy.jsonl        # reprint a stored table

Each network is called once before the call that is timed, so that caches and waiting threads are
its own. One sample of random spikes. Weights are random; each layer's normalisation is measured on
the sample and shifted until the layer fires at its rate. It is compared with the float network in
SpikingJelly and, with ``pip install onnx onnxruntime``, with its convolutions and pools alone,
dense in int8 on ONNX Runtime.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from benchmarking import (
    OTHER,
    OURS,
    PEER,
    Case,
    arguments,
    bars,
    finish,
    headline,
    in_turns,
    machine,
    unsteady,
)
from matplotlib.figure import Figure
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spquant_plugin as spq

EAGER, COMPILED, ONNX = "SpikingJelly, float", "SpikingJelly, compiled", "ONNX Runtime, int8"
OURS_IS, SMALL = "integers", "integers, memory='small'"
GATED, PIXELS = "half the channels closed", "and 35 % of pixels masked"
COLORS = {EAGER: PEER, COMPILED: PEER, ONNX: OTHER} | dict.fromkeys(
    (OURS_IS, SMALL, GATED, PIXELS), OURS
)
RATES = (0.12, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.05)
SWEEP = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
CLASSES = 10
MASKED = 0.35


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: int = 10
    size: int = 48
    width: float = 1.0
    repeats: int = 15
    sweep: tuple[float, ...] = SWEEP


QUICK = Sizes(steps=2, size=16, width=0.125, repeats=3, sweep=(0.05, 0.2))


def sample(sizes: Sizes, rate: float = 0.1) -> Tensor:
    """Spikes that enter: ``[T, 1, 2, size, size]``."""
    torch.manual_seed(1)
    return (torch.rand(sizes.steps, 1, 2, sizes.size, sizes.size) < rate).float()


def floating(sizes: Sizes) -> nn.Module:
    """VGG-9 in SpikingJelly."""
    torch.manual_seed(0)
    return spq.models.create(
        "vgg9",
        host="spikingjelly",
        in_channels=2,
        size=sizes.size,
        num_classes=CLASSES,
        width=sizes.width,
    ).eval()


@torch.no_grad()
def tuned(net: nn.Module, x: Tensor, rates: tuple[float, ...]) -> nn.Module:
    """Measure each normalisation on its input, and shift it until its neurons fire so often."""
    left, norm, before = list(rates), None, x
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            norm, before = module, x
            over = (0, 1, 3, 4)
            module.running_mean.copy_(x.mean(over))
            module.running_var.copy_(x.var(over, unbiased=False))
        if "Node" in type(module).__name__ and norm is not None:
            x = _bisect(norm, module, before, left.pop(0))
        else:
            x = module(x)
    spq.reset(net)
    return net


def _bisect(norm: nn.Module, neuron: nn.Module, x: Tensor, rate: float) -> Tensor:
    low, high = -6.0, 6.0
    spikes = x
    for _ in range(12):
        norm.bias.fill_((low + high) / 2)
        functional.reset_net(neuron)
        spikes = neuron(norm(x))
        low, high = (low, norm.bias[0]) if spikes.mean() > rate else (norm.bias[0], high)
        low, high = float(low), float(high)
    return spikes


def converted(sizes: Sizes, rates: tuple[float, ...] = RATES, rate: float = 0.1) -> nn.Module:
    """The converted network that fires at these rates."""
    x = sample(sizes, rate)
    config = spq.presets.quant_snn(weight_bits=2)
    return tuned(spq.convert(floating(sizes), config, x).eval(), x, rates)


@torch.no_grad()
def gated(sizes: Sizes, plain: nn.Module, masked: float = 0.0) -> nn.Module:
    """The same with gates of random weights that close half of the channels on average.

    A share of the pixels may be masked too, by the membranes of the step before. Each layer is
    shifted until what is open fires as often as it did without gates.
    """
    x = sample(sizes)
    pixels = spq.SpatialGate(sparsity=masked, score="prior") if masked else None
    config = spq.presets.quant_snn(
        weight_bits=2, channel_gate=spq.ChannelGate(), spatial_gate=pixels
    )
    net = spq.convert(floating(sizes), config, x).eval()
    net.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(2)
    gates = [m for m in net.modules() if isinstance(m, spq.spikingjelly.layer.ChannelGate)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    neurons = [m for m in net.modules() if "Node" in type(m).__name__]
    for i, (norm, neuron, rate) in enumerate(zip(norms, neurons, RATES, strict=True)):
        fired: list[Tensor] = []
        hook = neuron.register_forward_hook(lambda *given, seen=fired: _stop(seen, given[-1]))
        if i:
            gate = gates[i - 1]
            gate.weight.normal_()
            _shift(net, x, gate.bias, lambda gate=gate: float(gate.open_mask.float().mean()), 0.5)
        wanted = (rate / 2 if i else rate) * (1 - masked)
        _shift(net, x, norm.bias, lambda seen=fired: float(seen[-1].mean()), wanted)
        hook.remove()
    spq.reset(net)
    return net


def _stop(seen: list[Tensor], spikes: Tensor) -> None:
    seen[:] = [spikes]
    raise StopIteration


def _shift(net: nn.Module, x: Tensor, bias: Tensor, share: Callable[[], float], to: float) -> None:
    """Find the bias at which a share, which grows with it, is what it should be."""
    low, high = -8.0, 8.0
    for _ in range(8):
        bias.fill_((low + high) / 2)
        spq.reset(net)
        with contextlib.suppress(StopIteration):  # what lies behind does not matter
            net(x)
        low, high = (low, (low + high) / 2) if share() > to else ((low + high) / 2, high)


def fired(net: spq.IntegerNetwork, x: Tensor) -> list[float]:
    """Rate of every neuron layer."""
    return [round(float(s.float().mean()), 4) for s in net.run(x, record=True).spikes.values()]


# --- what it is compared with -------------------------------------------------------------------


def onnx_case(net: spq.IntegerNetwork, sizes: Sizes) -> Case | None:
    """Convolutions and pools alone, dense: uint8 by int8, all steps as one batch."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    constants = [("s", np.float32(1)), ("u", np.uint8(0)), ("i", np.int8(0))]
    initial = [numpy_helper.from_array(np.array(value), name) for name, value in constants]
    nodes, last = [], "x"
    for node in net.graph.nodes:
        if node.kind == "Convolution":
            initial.append(numpy_helper.from_array(node.weight.numpy(), f"w{len(nodes)}"))
            given = [last, "s", "u", f"w{len(nodes)}", "s", "i", "s", "u"]
            nodes.append(
                helper.make_node(
                    "QLinearConv", given, [f"y{len(nodes)}"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]
                )
            )
        elif node.kind == "SumPool":
            options = {"kernel_shape": [2, 2], "strides": [2, 2], "domain": "com.microsoft"}
            given = [last, "s", "u", "s", "u"]
            nodes.append(
                helper.make_node("QLinearAveragePool", given, [f"y{len(nodes)}"], **options)
            )
        else:
            continue
        last = nodes[-1].output[0]
    shape = [sizes.steps, 2, sizes.size, sizes.size]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, dims)
        for name, dims in (("x", shape), (last, None))
    ]
    graph = helper.make_graph(nodes, "vgg9", ends[:1], ends[1:], initial)
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    x = sample(sizes)[:, 0].numpy().astype(np.uint8)

    def run() -> None:
        session.run(None, {"x": x})

    return Case(run, run)


def host_cases(sizes: Sizes) -> dict[str, Case]:
    """SpikingJelly's network as its users run it."""
    x = sample(sizes)
    cases = {}
    for name in (EAGER, COMPILED):
        net = floating(sizes)
        called = torch.compile(net) if name == COMPILED else net

        @torch.no_grad()
        def run(net: nn.Module = net, called: Any = called) -> None:
            functional.reset_net(net)
            called(x)

        cases[name] = Case(run, run)
    return cases


# --- measuring ----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, as one JSON object."""
    sizes = QUICK if options.quick else Sizes()
    if options.repeats:
        sizes = replace(sizes, repeats=options.repeats)
    x = sample(sizes)
    model = converted(sizes)
    net = spq.to_integer(model, x)
    exact = spq.verify(net, model, x).exact
    small = spq.to_integer(model, x)
    small.use("numba", memory="small")
    gates = spq.to_integer(gated(sizes, model), x)
    pixels = spq.to_integer(gated(sizes, model, MASKED), x)
    cases = host_cases(sizes)
    dense = onnx_case(net, sizes)
    if dense is not None:
        cases[ONNX] = dense
    nets = {OURS_IS: net, SMALL: small, GATED: gates, PIXELS: pixels}
    for name, network in nets.items():
        cases[name] = Case(*[lambda network=network: network(x)] * 2)
    rows: dict[str, dict[str, Any]] = dict(in_turns(cases, "cpu", sizes.repeats, "networks"))
    paths = dict(net.engine.choices)
    for name, network in nets.items():
        rows[name]["rates"] = fired(network, x)
        network.step(x[0])
        rows[name]["all bytes"] = network.held_bytes
        rows[name]["bytes"] = network.strip().held_bytes
    rows[EAGER]["bytes"] = float_bytes(sizes)
    return {
        "benchmark": "deploy",
        "quick": options.quick,
        "repeats": sizes.repeats,
        "machine": machine("cpu"),
        "steps": sizes.steps,
        "size": sizes.size,
        "exact": exact,
        "paths": paths,
        "networks": rows,
        "sweep": sweep(sizes),
    }


def float_bytes(sizes: Sizes) -> int:
    """Parameters, statistics and membranes of the float network."""
    net = floating(sizes)
    with torch.no_grad():
        net(sample(sizes))
    membranes = [m.v for m in net.modules() if isinstance(getattr(m, "v", None), Tensor)]
    held = [*net.parameters(), *net.buffers(), *membranes]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def sweep(sizes: Sizes) -> list[dict[str, Any]]:
    """Time against one spike rate of the input and all layers."""
    cases, nets = {}, {}
    for rate in sizes.sweep:
        x = sample(sizes, rate)
        net = spq.to_integer(converted(sizes, (rate,) * len(RATES), rate), x)
        nets[str(rate)] = (net, x)
        cases[str(rate)] = Case(*[lambda net=net, x=x: net(x)] * 2)
    rows = in_turns(cases, "cpu", sizes.repeats, "spike rates")
    return [
        {
            "rate": float(name),
            "measured": sum(fired(*nets[name])) / len(RATES),
            "dense": sum(path == "dense" for path in nets[name][0].engine.choices.values()),
            **took,
        }
        for name, took in rows.items()
    ]


def _change(ratio: float) -> str:
    return f"{abs(1 - ratio):.0%} {'less' if ratio < 1 else 'more'} time"


def table(results: list[dict[str, Any]]) -> str:
    """The last measurement as text."""
    found = results[-1]
    rows, ours = found["networks"], found["networks"][OURS_IS]
    plain = rows[EAGER]
    rates = ", ".join(f"{rate:.1%}" for rate in ours["rates"])
    lines = [
        headline(
            f"VGG-9, T={found['steps']}, one sample, {found['size']} x {found['size']}", found
        ),
        f"Spikes: 10 % of the input, of the layers {rates}.",
        f"Equal to the trained model spike for spike: {found['exact']}.",
        "",
        f"{'':28}{'ms':>9}{'integers are':>16}{'weights, states (MB)':>24}{'of float':>10}",
    ]
    for name, row in rows.items():
        held, part = "", ""
        if "bytes" in row:
            held = f"{row['bytes'] / 1e6:.2f}"
            part = f"1/{plain['bytes'] / row['bytes']:.1f}"
        faster = f"{row['ms'] / ours['ms']:.2f}x faster"
        lines.append(f"{name:28}{row['ms']:>9.2f}{faster:>16}{held:>24}{part:>10}")
    lines += [
        "",
        *[
            f"{name}: {_change(rows[name]['ms'] / ours['ms'])}; spikes of the layers "
            f"{', '.join(f'{rate:.1%}' for rate in rows[name]['rates'])}."
            for name in (GATED, PIXELS)
        ],
        "Weights, states: what the network holds between two steps, without what a run needs",
        f"meanwhile; integers after net.strip(), before it {ours['all bytes'] / 1e6:.2f} MB.",
        f"{ONNX}: convolutions and pools only, no neurons.",
        "",
        f"{'spikes of all layers':24}{'ms':>9}{'ms per %':>10}{'layers multiplied densely':>28}",
    ]
    for row in found["sweep"]:
        share = row["ms"] / row["measured"] / 100
        lines.append(f"{row['measured']:<24.1%}{row['ms']:>9.2f}{share:>10.2f}{row['dense']:>28}")
    return "\n".join([*lines, *unsteady(rows)])


def figure(found: dict[str, Any]) -> Figure:
    """Time of every network, and time against the spike rate."""
    drawn = Figure(figsize=(9, 3), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rows = found["networks"]
    values = {name: row["ms"] for name, row in rows.items()}
    notes = {name: f"{ms:.1f} ms" for name, ms in values.items()}
    bars(left, values, COLORS, "time (ms)", notes)
    rates = [100 * row["measured"] for row in found["sweep"]]
    right.plot(rates, [row["ms"] for row in found["sweep"]], "o-", color=OURS, label="integers")
    if ONNX in rows:
        right.axhline(rows[ONNX]["ms"], color=OTHER, ls="--", label=ONNX)
    right.set_xlabel("spikes of every layer (%)")
    right.set_ylabel("time (ms)")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(f"VGG-9, T={found['steps']}, one sample, {found['machine']['processor']}")
    return drawn


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    finish(options, lambda: measure(options), table, figure)


if __name__ == "__main__":
    main()
