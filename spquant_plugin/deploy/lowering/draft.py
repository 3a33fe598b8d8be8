"""The graph while it grows: the same operation on the same values is one node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import DeployError
from ..bounds import Bounds, channel_bounds
from ..graph import WHOLE, Add, Affine, Concat, Input, Mask, Neuron, Node, Product, Reshape, size
from .symbol import Dyadic, Symbol

# Every whole number below this is a float32, so that no sum of the trained model was rounded.
EXACT = 2**24
# A branch of spikes is added to a current by tabulating every number that it can have.
ENUMERATED = 64


class Draft:
    """Nodes found so far; of a model whose weights change, those of one ``step``."""

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.nodes: dict[str, Node] = {}
        self.currents: dict[str, Symbol] = {}  # what each neuron reads
        # Of neurons, with what they read and its bounds.
        self.tables: dict[str, tuple[Symbol, Bounds, Neuron]] = {}
        # Weights that change, by the id of this step's, which stays alive here.
        self.changing: dict[int, tuple[Tensor, Tensor]] = {}
        self.calls: dict[str, int] = {}  # of each neuron in one call of the model
        self.dtype = torch.float32  # of the model
        self.lead: tuple[int, ...] = ()  # time and samples, or samples, of the whole run
        self.known: dict[tuple[Any, ...], str] = {}

    def add(self, key: tuple[Any, ...], node: Node) -> Node:
        """The node of this key, which is added with its proven bounds where it is new."""
        if key in self.known:
            return self.nodes[self.known[key]]
        name = self._free(node.name)
        least, most = self.bounds(node)
        node = replace(node, name=name, low=int(least.min()), high=int(most.max()))
        self.known[key] = name
        self.nodes[name] = node
        return node

    def bounds(self, node: Node) -> Bounds:
        """Proven bounds of every channel of a node, in all steps."""
        inputs = [self.nodes[name] for name in node.inputs]
        _, weights = self.changing.get(id(getattr(node, "weight", None)), (None, None))
        if weights is None:
            return channel_bounds(node, inputs)
        each = [channel_bounds(replace(node, weight=weight), inputs) for weight in weights]  # type: ignore[call-arg]
        least, most = zip(*each, strict=True)
        return torch.stack(least).amin(0), torch.stack(most).amax(0)

    def weight_of_step(self, weights: Tensor) -> Tensor:
        """This step's of weights ``[T, ...]``; :meth:`bounds` then knows them all."""
        weight = weights[self.step].contiguous()
        self.changing[id(weight)] = weight, weights
        return weight

    def _free(self, name: str) -> str:
        wanted, number = name or WHOLE, 2
        name = wanted
        while name in self.nodes:
            name, number = f"{wanted}#{number}", number + 1
        return name

    # What joins values, wherever the model does it.

    def input(self, shape: tuple[int, ...], low: int, high: int, quantizer: Any) -> Node:
        """What enters."""
        node = Input(
            name="(input)", inputs=(), shape=shape, low=low, high=high, quantizer=quantizer
        )
        return self.add(("input",), node)

    def whole_only(self, x: Symbol) -> Symbol:
        """The symbol, if it is whole numbers already."""
        if x.analogue:
            raise DeployError(
                "it reads the analogue input, which other layers quantise as they read it: must be "
                "read by such layers alone. Move it behind the first neuron."
            )
        return x

    def reshape(self, x: Symbol, shape: tuple[int, ...]) -> Symbol:
        """The same numbers in another shape; channels with numbers of their own stay channels."""
        if shape == x.shape:
            return x
        keeps_channels = shape[:1] == x.shape[:1] and size(shape) == size(x.shape) == shape[0]
        if x.added is not None or not (keeps_channels or x.analogue or (x.exact and x.uniform)):
            raise DeployError(
                f"currents of shape {x.shape} are reshaped to {shape}: their scales belong to "
                "channels, so only spikes may be. Put a neuron in between."
            )
        reshape = Reshape(name="(reshape)", inputs=(x.node,), shape=shape, low=0, high=0)
        node = self.add(("reshape", shape, x.node), reshape)
        unit = x.unit if keeps_channels else x.unit[:1]
        return x.but(node=node.name, shape=shape, unit=unit)

    def settled(self, x: Symbol) -> Symbol:
        """What a dyadic norm or a gate makes of whole numbers, as whole numbers."""
        self.whole_only(x)
        if x.dyadic is not None and x.added is None and x.over_time is None:
            x = self._affine(x, x.dyadic)
        if x.gate is None or x.steps or x.added is not None or x.over_time is not None:
            return x
        node = Mask(name="(mask)", inputs=(x.node, x.gate), shape=x.shape, low=0, high=0)
        return x.but(node=self.add(("mask", x.node, x.gate), node).name, gate=None)

    def _affine(self, x: Symbol, norm: Dyadic) -> Symbol:
        # In units of each channel: out = (m * u * a + n) / 2**k, with u the unit of the sums.
        unit = x.unit.expand(x.shape[0]).clamp(max=1.0)
        whole = [norm.multiplier.double() * x.unit / unit, norm.offset.double() / unit]
        if max(float(part.abs().max()) for part in whole) >= EXACT:
            raise DeployError(
                f"{norm.path}: its factors in units of the sums need more than 24 bits: the "
                "trained model rounds there. Use fewer bits in norm=spq.QuantizedNorm(...)."
            )
        multiplier, offset = (part.round().to(torch.int32) for part in whole)
        affine = Affine(
            name=norm.path,
            inputs=(x.node,),
            shape=x.shape,
            low=0,
            high=0,
            multiplier=multiplier,
            offset=offset,
        )
        self.fitting(replace(affine, offset=torch.zeros_like(offset)))  # the product on its way
        node = self.add(("norm", norm.path, x.node), self.fitting(affine))
        return x.but(node=node.name, unit=unit * 2.0**-norm.shift, steps=(), dyadic=None)

    def sum(self, one: Symbol, other: Symbol) -> Symbol:
        """Both added up: exactly, or a current and a branch of spikes."""
        one, other = self.settled(one), self.settled(other)
        if one.exact and other.exact:
            return self._exact_sum(one, other)
        if one.exact:
            one, other = other, one
        if not other.exact or one.added is not None or one.over_time is not None:
            raise DeployError(
                "two currents are added, each with float factors of its own: their sum is no "
                "function of one whole number. Normalise both branches with "
                'norm=spq.QuantizedNorm(mode="dyadic"), or add spikes.'
            )
        node = self.nodes[other.node]
        if node.high - node.low >= ENUMERATED:
            raise DeployError(
                f"a current is added to a value that runs from {node.low} to {node.high}: at most "
                f"{ENUMERATED} numbers can be tabulated. Add spikes, or normalise the branch with "
                'norm=spq.QuantizedNorm(mode="dyadic").'
            )
        return one.but(added=other)

    def negated(self, x: Symbol) -> Symbol:
        """The same numbers with the other sign."""
        x = self.settled(x)
        if x.exact:
            return x.but(node=self._scaled(x, -1))
        if x.added is not None or x.over_time is not None:
            raise DeployError(
                "a sum is subtracted, of a current and spikes or over time: must be one of its "
                "parts. Subtract them one by one."
            )
        minus = torch.tensor(-1.0, dtype=torch.float64)
        return x.but(steps=(*x.steps, ("multiply", minus)), dyadic=None)

    def shifted(self, x: Symbol, sign: int, number: float) -> Symbol:
        """Whole numbers, or these subtracted, and a constant that is one in units of theirs."""
        unit = x.unit.clamp(max=1.0)
        multiplier, offset = ((part / unit).expand(x.shape[0]) for part in (sign * x.unit, number))
        if not bool((offset == offset.round()).all()) or float(offset.abs().max()) >= EXACT:
            raise DeployError(
                f"{number:g} is added to multiples of {float(unit.min()):g}: must be one of them, "
                "below 2**24. Add a whole number."
            )
        node = Affine(
            name="(shift)",
            inputs=(x.node,),
            shape=x.shape,
            low=0,
            high=0,
            multiplier=multiplier.to(torch.int32).contiguous(),
            offset=offset.to(torch.int32).contiguous(),
        )
        key = ("shift", x.node, tuple(multiplier.tolist()), tuple(offset.tolist()))
        return x.but(node=self.add(key, self.fitting(node)).name, unit=unit)

    def product(self, one: Symbol, other: Symbol) -> Symbol:
        """Spikes where both have one."""
        one, other = self.settled(one), self.settled(other)
        nodes = self.nodes[one.node], self.nodes[other.node]
        if not (one.exact and other.exact and all(node.binary for node in nodes)):
            spans = " and ".join(f"from {node.low} to {node.high}" for node in nodes)
            raise DeployError(
                f"two values are multiplied, in whole numbers {spans}: must be spikes, 0 and 1, "
                "without float factors. Multiply behind neurons, before any sum or pool."
            )
        both = Product(
            name="(product)", inputs=(one.node, other.node), shape=one.shape, low=0, high=1
        )
        node = self.add(("product", one.node, other.node), both)
        return one.but(node=node.name, unit=one.unit * other.unit)

    def _exact_sum(self, one: Symbol, other: Symbol) -> Symbol:
        unit = torch.minimum(one.unit, other.unit)
        factors = [self._factor(symbol.unit / unit) for symbol in (one, other)]
        both = Add(
            name="(add)",
            inputs=(one.node, other.node),
            shape=one.shape,
            low=0,
            high=0,
            factors=(factors[0], factors[1]),
        )
        key = ("add", one.node, other.node, *(tuple(factor.tolist()) for factor in factors))
        node = self.add(key, self.fitting(both))
        return one.but(node=node.name, unit=unit)

    def _factor(self, ratio: Tensor) -> Tensor:
        if float(ratio.max()) > EXACT:
            raise DeployError(
                f"values are added whose units differ by {float(ratio.max()):g}: their sum needs "
                "more than 24 bits. Use fewer bits, or scales nearer to each other."
            )
        ratio = ratio[:1] if bool((ratio == ratio[0]).all()) else ratio
        return ratio.to(torch.int32)

    def fitting(self, node: Node) -> Node:
        """The node, if no float32 of the trained model can have been rounded."""
        least, most = self.bounds(node)
        reach = max(-int(least.min()), int(most.max()))
        if reach >= EXACT:
            raise DeployError(
                f"{node.name} ({node.kind}): its sums can reach {reach}: they must stay below "
                "2**24, to be exact in the float32 of the trained model. Use fewer bits for its "
                "weights or its input."
            )
        return node

    def concat(self, parts: list[Symbol]) -> Symbol:
        """Channels of all parts, one behind the other."""
        parts = [self.settled(part) for part in parts]
        if not all(part.exact and part.uniform for part in parts):
            raise DeployError(
                "currents are concatenated, each with float factors of its own: only spikes may "
                "be. Put neurons in front."
            )
        unit = min(part.unit[:1] for part in parts)
        names = [self._times(part, unit) for part in parts]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        node = Concat(name="(concat)", inputs=tuple(names), shape=shape, low=0, high=0)
        return parts[0].but(node=self.add(("concat", *names), node).name, shape=shape, unit=unit)

    def _times(self, part: Symbol, unit: Tensor) -> str:
        factor = int(self._factor(part.unit[:1] / unit))
        return part.node if factor == 1 else self._scaled(part, factor)

    def _scaled(self, x: Symbol, factor: int) -> str:
        node = Add(
            name="(scale)",
            inputs=(x.node,),
            shape=x.shape,
            low=0,
            high=0,
            factors=(torch.tensor([factor], dtype=torch.int32),),
        )
        return self.add(("scale", x.node, factor), self.fitting(node)).name
