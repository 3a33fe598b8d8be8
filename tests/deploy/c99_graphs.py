"""More graphs for the C export: drawn node by node, and single traps."""

from __future__ import annotations

from dataclasses import replace

import torch

from spquant_plugin.deploy import graph as g

from . import graphs


def drawn(seed: int) -> g.Graph:
    """Nodes in a random order with random settings, on zero to two axes of space."""
    torch.manual_seed(seed)
    pick = torch.Generator().manual_seed(seed)

    def one(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=pick))]

    space = one((), (11,), (7, 6), (5, 9))
    low, high = one((0, 1), (0, 255), (-128, 127), (-300, 9), (0, 3))
    b = graphs.Builder(seed, (one(1, 4, 6), *space), low=low, high=high)
    value = b.nodes[0]
    firing = None
    for _ in range(one(5, 8, 11)):
        kinds = ["layer", "neuron", "neuron", "affine", "join", "concat", "flatten", "mask", "pool"]
        kind = one(*kinds)
        wide = max(abs(value.low), abs(value.high)) > 10**6
        small = len(value.shape) > 1 and min(value.shape[1:]) < 3
        if kind == "neuron" or wide:
            value = firing = fires(b, value, firing, one)
        elif kind == "layer":
            value = layer(b, value, one)
        elif kind == "pool" and len(value.shape) > 1 and not small:
            value = b.pool(value, one(g.SumPool, g.MaxPool), kernel=one(2, 3), padding=one(0, 1))
        elif kind == "affine":
            value = b.affine(value)
        elif kind == "join":
            value = b.join(value, b.affine(value), top=3)
        elif kind == "concat" and g.size(value.shape) < 2000:
            value = b.concat(value, value)
        elif kind == "flatten" and len(value.shape) > 1:
            value = b.flatten(value)
        elif kind == "mask" and firing is not None:
            value = b.mask(value, b.decision(firing, value.shape[0], one("membrane", "value")))
    last = b.dense(b.flatten(fires(b, value, firing, one)), 5, top=9)
    return b.graph(g.Output(last.name), g.Output(value.name))


def layer(b: graphs.Builder, value: g.Node, one) -> g.Node:
    """A weight layer that fits the value."""
    top = one(1, 1, 3, 7, 127)
    if len(value.shape) == 1:
        return b.dense(value, one(3, 10, 16), top=top)
    groups = one(1, 1, *[n for n in (2, value.shape[0]) if value.shape[0] % n == 0])
    dilation = one(1, 2)
    return b.convolution(
        value,
        groups * one(1, 3, 5),
        kernel=one(1, 3) if min(value.shape[1:]) > 2 else 1,
        stride=one(1, 1, 2, 3),
        padding=one(0, 1, 2) + dilation,
        dilation=dilation,
        groups=groups,
        top=top,
    )


def fires(b: graphs.Builder, value: g.Node, firing: g.Node | None, one) -> g.Node:
    """A neuron with some of its options."""
    options = {"levels": one((-1, 1), (0, 1), (-3, 0), (-8, 7)), "remembers": one(True, False)}
    if firing is not None:
        options["gate"] = one(None, b.decision(firing, value.shape[0], one("membrane", "value")))
    if len(value.shape) > 1:
        pixels = g.size(value.shape[1:])
        rule = g.PixelMask(one("current", "prior"), one(0, 1, pixels // 3, pixels))
        options["pixels"] = one(None, rule)
    if firing is not None and firing.shape == value.shape:
        options["count"] = one(None, firing)
    return b.neuron(value, **options)


def uneven() -> g.Graph:
    """Kernels, strides, paddings and dilations that differ between the axes; spikes and wide sums
    side by side; a value that is read whole; negative counts; wide breaks; rows held one by one."""
    b = graphs.Builder(5, (4, 9, 13), low=-20000, high=30000)
    weight = b.integers(-127, 127, (48, 2, 3, 4)).to(torch.int8)
    node = g.Convolution(
        name="uneven",
        inputs=("input",),
        shape=(48, 11, 3),
        low=0,
        high=0,
        weight=weight,
        stride=(1, 3),
        padding=(2, 1),
        dilation=(1, 2),
        groups=2,
    )
    wide = b.add(b.bounded(node, b.nodes[0]))
    spikes = stretched(b, b.neuron(wide), 10**6)
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    pooled = b.add(
        g.MaxPool(
            name="largest",
            inputs=("uneven",),
            shape=(48, 6, 1),
            low=wide.low,
            high=wide.high,
            dilation=(1, 2),
            **window,
        )
    )
    summed = b.add(
        g.SumPool(name="summed", inputs=(spikes.name,), shape=(48, 6, 2), low=0, high=6, **window)
    )
    narrow = b.add(
        g.MaxPool(
            name="narrow",
            inputs=(summed.name,),
            shape=(48, 6, 1),
            low=0,
            high=6,
            kernel=(1, 2),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
        )
    )
    signed = b.add(
        g.Add(
            name="signed",
            inputs=(narrow.name,),
            shape=narrow.shape,
            low=-6,
            high=0,
            factors=(torch.tensor([-1], dtype=torch.int32),),
        )
    )
    counted = stretched(b, b.neuron(pooled, count=signed, levels=(-2, 1)), 10**7)
    return b.graph(g.Output(pooled.name), g.Output(signed.name), g.Output(counted.name))


def stretched(b: graphs.Builder, neuron: g.Neuron, factor: int, last: int = 0) -> g.Neuron:
    """The neuron with breaks so many times further, the last one of some channels further still."""
    breaks = neuron.breaks * factor
    breaks[::2, ..., -1] += last
    b.nodes[-1] = replace(neuron, breaks=breaks)
    return b.nodes[-1]


def bare() -> g.Graph:
    """No neuron, and no operation either."""
    b = graphs.Builder(3, (2, 3), low=0, high=40000)
    return b.graph(g.Output(b.flatten(b.nodes[0]).name))


def gated() -> g.Graph:
    """Gates that close single channels, and all filters of a group, of layers with groups."""
    b = graphs.Builder(11, (6, 5, 7))
    first = b.neuron(b.convolution(b.nodes[0], 6))
    value = first
    for channels, groups in ((6, 6), (12, 3), (12, 1)):
        sums = b.convolution(value, channels, groups=groups, stride=1)
        decision = b.decision(first, channels, "value")
        value = b.neuron(sums, gate=decision)
    sums = b.affine(b.convolution(value, 12, groups=4, top=7))
    masked = b.mask(sums, b.decision(value, 12))
    dense = b.dense(b.flatten(b.neuron(masked)), 9)
    last = b.neuron(dense, gate=b.decision(first, 9, "value"))
    return b.graph(g.Output(last.name), g.Output(value.name))


def heavy() -> g.Graph:
    """Sums of spikes that pass 16 bits, and breaks of 16 and 32 bits."""
    b = graphs.Builder(9, (4000,))
    far = b.dense(b.nodes[0], 12, top=127)
    far = b.nodes[-1] = b.bounded(replace(far, weight=far.weight.abs()), b.nodes[0])
    first = stretched(b, b.neuron(far), 1000)
    wide = b.dense(first, 9, top=127)
    wide = b.affine(b.affine(b.affine(wide)))
    second = stretched(b, b.neuron(wide, levels=(-3, 0)), 100, last=10**5)
    sums = b.dense(b.dense(second, 40), 40)
    third = stretched(b, b.neuron(sums, levels=(0, 1)), 1, last=300)
    return b.graph(g.Output(third.name), g.Output(first.name))


def readout() -> g.Graph:
    """The input, reshaped values, membranes and spikes read out; a gated output; shared weights."""
    b = graphs.Builder(8, (3, 4, 4), low=0, high=1)
    first = b.neuron(b.convolution(b.nodes[0], 3, top=1), remembers=True)
    again = g.Convolution(**{**vars(b.nodes[1]), "name": "again", "inputs": (first.name,)})
    second = b.neuron(b.add(b.bounded(again, first)))
    flat = b.flatten(first)
    square = b.add(g.Reshape(name="square", inputs=(flat.name,), shape=(12, 2, 2), low=0, high=1))
    third = b.neuron(b.convolution(square, 6, kernel=1, padding=0, groups=3))
    gate = b.decision(third, 5)
    last = b.dense(b.flatten(third), 5, top=1)
    return b.graph(
        g.Output("input"),
        g.Output(square.name),
        g.Output(first.name, reads="membrane"),
        g.Output(last.name, gate=gate.name),
        g.Output(second.name, reads="membrane"),
        single=False,
        model='odd */ name \\ ??/ "',
    )


NAMED = {
    "chain": lambda: graphs.chain(1),
    "everything": lambda: graphs.everything(1),
    "line": lambda: graphs.line(1),
    "uneven": uneven,
    "heavy": heavy,
    "gated": gated,
    "ragged": lambda: graphs.chain(2, size=13),
    "bare": bare,
    "readout": readout,
}
NAMED |= {f"drawn {seed}": lambda seed=seed: drawn(seed) for seed in range(12)}
