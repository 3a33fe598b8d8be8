"""Integer graphs drawn at random, with every kind of node, for the tests of whatever reads one."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from spquant_plugin.deploy import graph as g


class Builder:
    """Grows a graph node by node; every value keeps its proven bounds."""

    def __init__(self, seed: int, shape: tuple[int, ...], low: int = 0, high: int = 1) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes: list[g.Node] = [
            g.Input(name="input", inputs=(), shape=shape, low=low, high=high)
        ]

    def add(self, node: g.Node) -> g.Node:
        self.nodes.append(node)
        return node

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers from low to high."""
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def convolution(
        self,
        source: g.Node,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        top: int = 1,
    ) -> g.Node:
        axes = len(source.shape) - 1
        weight = self.integers(-top, top, (channels, source.shape[0] // groups, *[kernel] * axes))
        weight = weight.to(torch.int8)
        reach = dilation * (kernel - 1) + 1
        space = [(side + 2 * padding - reach) // stride + 1 for side in source.shape[1:]]
        node = g.Convolution(
            name=self.name("conv"),
            inputs=(source.name,),
            shape=(channels, *space),
            low=0,
            high=0,
            weight=weight,
            stride=(stride,) * axes,
            padding=(padding,) * axes,
            dilation=(dilation,) * axes,
            groups=groups,
        )
        return self.add(self.bounded(node, source))

    def dense(self, source: g.Node, channels: int, top: int = 1) -> g.Node:
        weight = self.integers(-top, top, (channels, source.shape[0])).to(torch.int8)
        node = g.Dense(
            name=self.name("fc"),
            inputs=(source.name,),
            shape=(channels,),
            low=0,
            high=0,
            weight=weight,
        )
        return self.add(self.bounded(node, source))

    def bounded(self, node: g._Sums, source: g.Node) -> g.Node:
        least, most = node.bounds(source.low, source.high)
        return replace(node, low=int(least.min()), high=int(most.max()))

    def pool(
        self, source: g.Node, kind: type = g.SumPool, kernel: int = 2, padding: int = 0
    ) -> g.Node:
        axes = len(source.shape) - 1
        space = [(side + 2 * padding - kernel) // kernel + 1 for side in source.shape[1:]]
        options = {} if kind is g.SumPool else {"dilation": (1,) * axes}
        times = kernel**axes if kind is g.SumPool else 1
        low = min(0, source.low) if padding and kind is g.SumPool else source.low
        return self.add(
            kind(
                name=self.name("pool"),
                inputs=(source.name,),
                shape=(source.shape[0], *space),
                low=low * times,
                high=source.high * times,
                kernel=(kernel,) * axes,
                stride=(kernel,) * axes,
                padding=(padding,) * axes,
                **options,
            )
        )

    def flatten(self, source: g.Node) -> g.Node:
        shape = (g.size(source.shape),)
        return self.add(
            g.Reshape(
                name=self.name("flat"),
                inputs=(source.name,),
                shape=shape,
                low=source.low,
                high=source.high,
            )
        )

    def join(self, *sources: g.Node, top: int = 1) -> g.Node:
        factors = tuple(
            self.integers(1, top, (self.random.choice((1, sources[0].shape[0])),)).to(torch.int32)
            for _ in sources
        )
        low = sum(min(0, s.low) * top for s in sources)
        high = sum(max(0, s.high) * top for s in sources)
        return self.add(
            g.Add(
                name=self.name("add"),
                inputs=tuple(s.name for s in sources),
                shape=sources[0].shape,
                low=low,
                high=high,
                factors=factors,
            )
        )

    def concat(self, *sources: g.Node) -> g.Node:
        return self.add(
            g.Concat(
                name=self.name("cat"),
                inputs=tuple(s.name for s in sources),
                shape=(sum(s.shape[0] for s in sources), *sources[0].shape[1:]),
                low=min(s.low for s in sources),
                high=max(s.high for s in sources),
            )
        )

    def affine(self, source: g.Node) -> g.Node:
        channels = source.shape[0]
        multiplier = self.integers(-5, 5, (channels,)).to(torch.int32)
        offset = self.integers(-9, 9, (channels,)).to(torch.int32)
        reach = 5 * max(abs(source.low), abs(source.high)) + 9
        return self.add(
            g.Affine(
                name=self.name("norm"),
                inputs=(source.name,),
                shape=source.shape,
                low=-reach,
                high=reach,
                multiplier=multiplier,
                offset=offset,
            )
        )

    def decision(self, source: g.Node, channels: int, reads: str = "membrane") -> g.Node:
        weight = self.integers(-127, 127, (channels, source.shape[0])).to(torch.int8)
        return self.add(
            g.ChannelDecision(
                name=self.name("gate"),
                inputs=(source.name,),
                shape=(channels,),
                low=0,
                high=1,
                reads=reads,
                weight=weight,
                threshold=self.integers(-200, 200, (channels,)),
            )
        )

    def mask(self, source: g.Node, decision: g.Node) -> g.Node:
        return self.add(
            g.Mask(
                name=self.name("mask"),
                inputs=(source.name, decision.name),
                shape=source.shape,
                low=min(0, source.low),
                high=max(0, source.high),
            )
        )

    def product(self, one: g.Node, other: g.Node) -> g.Node:
        inputs = one.name, other.name
        return self.add(
            g.Product(name=self.name("both"), inputs=inputs, shape=one.shape, low=0, high=1)
        )

    def neuron(
        self,
        source: g.Node,
        *,
        levels: tuple[int, int] = (-1, 1),
        remembers: bool = False,
        count: g.Node | None = None,
        gate: g.Node | None = None,
        pixels: g.PixelMask | None = None,
    ) -> g.Node:
        """Any table is a neuron: breaks near zero, so that all outcomes occur."""
        channels = source.shape[0]
        states = (levels[1] - levels[0] + 1) * (2 if remembers else 1)
        counts = None if count is None else (count.low, count.high)
        numbers = 1 if counts is None else counts[1] - counts[0] + 1
        outcomes = []
        for spike in (0, 1):
            for level in range(levels[0], levels[1] + 1):
                stored = level if not spike or remembers else self.random.randint(*levels)
                index = stored - levels[0]
                after = 2 * index + spike if remembers else index
                outcomes.append((spike, after, level))
        reach = max(2, min(source.high, 40))
        breaks = self.integers(-reach // 3, reach, (channels, states, numbers, len(outcomes) - 1))
        breaks = breaks.sort(-1).values.to(torch.int32)
        closed = self.integers(0, len(outcomes) - 1, (channels, states, numbers)).to(torch.uint8)
        return self.add(
            g.Neuron(
                name=self.name("neuron"),
                inputs=(source.name,) if count is None else (source.name, count.name),
                shape=source.shape,
                low=0,
                high=1,
                lowest=levels[0],
                highest=levels[1],
                remembers=remembers,
                sign=(2 * self.integers(0, 1, (channels,)) - 1).to(torch.int8),
                breaks=breaks,
                outcomes=torch.tensor(outcomes, dtype=torch.int16),
                counts=counts,
                gate=None if gate is None else gate.name,
                closed=None if gate is None else closed,
                pixels=pixels,
                semantics={"reset": "drawn at random"},
            )
        )

    def graph(self, *outputs: g.Output, **options: object) -> g.Graph:
        chosen = outputs or (g.Output(self.nodes[-1].name),)
        return g.Graph(tuple(self.nodes), chosen, **options)


def chain(seed: int = 0, size: int = 8, width: int = 6, top: int = 1, classes: int = 5) -> g.Graph:
    """Two convolutions, a pool, a read-out: what most networks are."""
    b = Builder(seed, (2, size, size))
    first = b.neuron(b.convolution(b.nodes[0], width, top=127))
    pooled = b.pool(b.neuron(b.convolution(first, 2 * width, top=top)))
    last = b.dense(b.flatten(pooled), classes, top=127)
    unit = 2.0 ** -b.integers(2, 6, (classes,)).float()
    steps = (("multiply", torch.rand(classes, generator=b.generator)), ("add", torch.ones(classes)))
    return b.graph(g.Output(last.name, unit=unit, steps=steps))


def everything(seed: int = 0) -> g.Graph:
    """Each kind of node and option at least once."""
    b = Builder(seed, (3, 9, 8), low=-3, high=6)
    stem = b.neuron(b.convolution(b.nodes[0], 8, top=60), levels=(-3, 1))
    wide = b.neuron(
        b.convolution(stem, 8, stride=2, dilation=2, padding=2), pixels=g.PixelMask("current", 7)
    )
    depth = b.neuron(
        b.convolution(wide, 8, groups=8, top=7),
        pixels=g.PixelMask("prior", 5),
        levels=(0, 1),
    )
    gate = b.decision(wide, 8)
    gated = b.neuron(b.convolution(depth, 8, groups=2), gate=gate, remembers=True)
    skip = b.neuron(b.convolution(gated, 8), count=depth, gate=b.decision(depth, 8, "value"))
    summed = b.join(skip, depth, top=2)
    branch = b.mask(b.affine(b.convolution(summed, 8, kernel=1, padding=0)), b.decision(skip, 8))
    other = b.affine(b.convolution(skip, 8))
    joined = b.neuron(b.join(branch, other, top=4), levels=(-8, 7), remembers=True)
    both = b.concat(joined, summed)
    pooled = b.pool(b.pool(both, g.MaxPool, padding=1), padding=1)
    hidden = b.neuron(b.dense(b.flatten(pooled), 12, top=3), levels=(-2, 1), remembers=True)
    last = b.dense(hidden, 4, top=127)
    fired = b.product(joined, skip)
    return b.graph(
        g.Output(last.name, over_time="sum"),
        g.Output(joined.name, reads="membrane", unit=torch.tensor([0.25])),
        g.Output(hidden.name, over_time="mean"),
        g.Output(fired.name),
        single=False,
    )


def line(seed: int = 0) -> g.Graph:
    """One axis of space."""
    b = Builder(seed, (2, 20))
    first = b.neuron(b.convolution(b.nodes[0], 5, kernel=5, padding=2, stride=2, top=3))
    pooled = b.pool(first, g.MaxPool)
    last = b.neuron(b.convolution(pooled, 70, kernel=3, padding=0), levels=(-8, 7))
    return b.graph(g.Output(b.dense(b.flatten(last), 3).name, over_time="last"))


def random_input(
    graph: g.Graph, steps: int, batch: int, seed: int = 0, rate: float = 0.3
) -> Tensor:
    """Whole numbers ``[T, N, *shape]`` in the input's range, most of them zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, batch, *graph.input.shape)
    x = torch.randint(graph.input.low, graph.input.high + 1, shape, generator=generator)
    return (x * (torch.rand(shape, generator=generator) < rate)).to(torch.int32)
