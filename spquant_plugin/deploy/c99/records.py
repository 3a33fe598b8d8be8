"""The constant records of the C network: what each kernel call needs, in the kernels' own words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..graph import (
    Add,
    Affine,
    ChannelDecision,
    Concat,
    Convolution,
    Dense,
    Graph,
    Mask,
    MaxPool,
    Neuron,
    Node,
    Product,
    SumPool,
)
from ..steps import variants
from .data import Constants, Packed, pack_steps, tight
from .memory import Memory, rows_held, source_of, storage
from .stages import Stage, gate_of, grid

NONE = "0"
ROWS = "rows"  # which storage of a node: its row buffer,
WHOLE = "whole"  # or all of it


def plain(name: str) -> str:
    """A name that may stand in a comment or a string of C.

    >>> plain("layer1.0*/conv")
    'layer1.0__conv'
    """
    return re.sub(r"[^A-Za-z0-9_.:\- ]", "_", name)


@dataclass
class Source:
    """Records written so far, and the statements of the step."""

    graph: Graph
    order: list[Stage]
    memory: Memory
    constants: Constants = field(default_factory=Constants)
    records: list[str] = field(default_factory=list)
    known: dict[tuple[str, str], str] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)
    arrays: set[str] = field(default_factory=set)  # records of which there is one for each step

    def __post_init__(self) -> None:
        self.numbers = {node.name: index for index, node in enumerate(self.graph.nodes)}
        self.roots = {stage.root.name for stage in self.order}

    @property
    def remembers_begin(self) -> bool:
        """Whether a pixel mask asks for the step before."""
        pixels = [neuron.pixels for neuron in self.graph.neurons]
        return any(rule is not None and rule.score == "prior" for rule in pixels)

    def record(self, kind: str, name: str, *each: dict[str, object]) -> str:
        """Address of a new constant record, or of that of the present step where there are more."""
        bodies = ["\n".join(f"    .{key} = {value}," for key, value in one.items()) for one in each]
        if all(body == bodies[0] for body in bodies):
            self.records.append(f"static const spq_{kind} {name} = {{\n{bodies[0]}\n}};")
            return f"&{name}"
        self.arrays.add(name)
        body = "".join(f"{{\n{body}\n}}, " for body in bodies).rstrip(", ")
        self.records.append(f"static const spq_{kind} {name}[{len(bodies)}] = {{ {body} }};")
        return self.address(kind, int(name.rpartition("_")[2]))

    def address(self, kind: str, number: int, step: str = "now") -> str:
        """Address of a record that is there, of this step where there are several."""
        name = f"{kind}_{number}"
        return f"&{name}[{step}]" if name in self.arrays else f"&{name}"

    def variants(self, node: Node) -> list[Any]:
        """The node in each step, or alone where no step changes it."""
        return variants(self.graph, node.name)

    def value(self, node: Node, which: str | None = None) -> str:
        """Address of a value's record: its whole, or its row where only that is held."""
        which = which or (WHOLE if node.name in self.roots else ROWS)
        key = (which, node.name)
        if key not in self.known:
            self.known[key] = self._value(node, which)
        return self.known[key]

    def _value(self, node: Node, which: str) -> str:
        channels, rows, columns = grid(node.shape)
        source = source_of(self.graph, node.name)
        if which == ROWS:
            row = ("row", node.name)
            kind, address = self.memory.storages[row], self.memory.address(row)
            held = rows_held(self.graph, node)
            steps, mask = (1, channels * columns, channels), str(held - 1)
        else:
            kind, address = storage(source), self.memory.address(("value", source.name))
            steps, mask = (rows * columns, columns, 1), "INT32_MAX"
        return self.record(
            "value",
            f"{which}_{self.numbers[node.name]}",
            {
                "data": address,
                "type": f"SPQ_{kind}",
                **dict(
                    zip(("channels", "rows", "columns"), (channels, rows, columns), strict=True)
                ),
                **dict(zip(("channel_step", "row_step", "column_step"), steps, strict=True)),
                "row_mask": mask,
            },
        )

    def read(self, node: Node, index: int = 0) -> str:
        """Address of the record of what a node reads."""
        return self.value(self.graph[node.inputs[index]])


def _two(values: tuple[int, ...], without: int) -> tuple[int, int]:
    """Rows and columns of a setting; a line has one column."""
    return (
        (values[0], values[1]) if len(values) > 1 else (values[0] if values else without, without)
    )


def _window(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> dict[str, object]:
    sizes = (_two(kernel, 1), _two(stride, 1), _two(padding, 0), _two(dilation, 1))
    names = (
        ("kernel_rows", "kernel_columns"),
        *[(f"row_{what}", f"column_{what}") for what in ("stride", "padding", "dilation")],
    )
    return {
        name: number
        for pair, numbers in zip(names, sizes, strict=True)
        for name, number in zip(pair, numbers, strict=True)
    }


def _convolution(source: Source, node: Convolution | Dense) -> list[str]:
    each = [_layer_fields(source, node, packed) for packed in pack_steps(source.variants(node))]
    address = source.record("convolution", f"convolution_{source.numbers[node.name]}", *each)
    return [f"spq_convolve_row({address}, y);"]


def _layer_fields(source: Source, node: Convolution | Dense, packed: Packed) -> dict[str, object]:
    gate = gate_of(source.graph, node)
    groups = getattr(node, "groups", 1)
    add = source.constants.add
    spaced = isinstance(node, Convolution)
    settings = (
        (node.stride, node.padding, node.dilation) if isinstance(node, Convolution) else 3 * ((),)
    )
    kernel = tuple(node.weight.shape[2:]) if spaced else ()
    return {
        "input": source.read(node),
        "sums": source.value(node, ROWS),
        "weights": add("weights", "U8", packed.data.flatten().tolist(), "weights"),
        "levels": add("levels", "S8", packed.levels) if packed.levels else NONE,
        "unpacked": f"(int8_t *)({source.memory.address(('unpacked', node.name))})",
        "gate": source.value(source.graph[gate]) if gate else NONE,
        "open": source.memory.address(("open", node.name)) if gate else NONE,
        "format": f"SPQ_{packed.format}",
        "bits": packed.bits,
        "run_bytes": packed.run_bytes,
        "inputs": node.weight.shape[1],
        "filters": node.weight.shape[0] // groups,
        **_window(kernel, *settings),
    }


def _pool(source: Source, node: SumPool | MaxPool) -> list[str]:
    dilation = node.dilation if isinstance(node, MaxPool) else (1,) * len(node.kernel)
    address = source.record(
        "pool",
        f"pool_{source.numbers[node.name]}",
        {
            "input": source.read(node),
            "output": source.value(node),
            "largest": int(isinstance(node, MaxPool)),
            "enough": source.graph[node.inputs[0]].high,
            **_window(node.kernel, node.stride, node.padding, dilation),
        },
    )
    return [f"spq_pool_row({address}, y);"]


def _sum(
    source: Source, node: Node, parts: list[tuple[tuple[Tensor, ...], Tensor | None]]
) -> list[str]:
    """``parts`` are factors and offsets, of each step where they change."""
    number, add = source.numbers[node.name], source.constants.add
    each: list[dict[str, object]] = []
    for step, (factors, offsets) in enumerate(parts):
        terms = []
        for index, factor in enumerate(factors):
            one = bool((factor == 1).all())
            name = NONE if one else add("factors", "S32", factor.flatten().tolist())
            terms.append(
                f"    {{ {source.read(node, index)}, {name}, {int(factor.numel() > 1)} }},"
            )
        body = "\n".join(terms)
        named = f"terms_{number}" if len(parts) == 1 else f"terms_{number}_{step}"
        source.records.append(f"static const spq_term {named}[{len(terms)}] = {{\n{body}\n}};")
        each.append(
            {
                "output": source.value(node),
                "terms": named,
                "count": len(terms),
                "offsets": NONE if offsets is None else add("offsets", "S32", offsets.tolist()),
            }
        )
    address = source.record("sum", f"sum_{number}", *each)
    return [f"spq_sum_row({address}, y);"]


def _add(source: Source, node: Add) -> list[str]:
    return _sum(source, node, [(one.factors, None) for one in source.variants(node)])


def _affine(source: Source, node: Affine) -> list[str]:
    each = source.variants(node)
    offsets = [one.offset.flatten().expand(node.shape[0]).contiguous() for one in each]
    pairs = zip(each, offsets, strict=True)
    return _sum(source, node, [((one.multiplier,), offset) for one, offset in pairs])


def _product(source: Source, node: Product) -> list[str]:
    values = f"{source.read(node)}, {source.read(node, 1)}, {source.value(node)}"
    return [f"spq_both_row({values}, y);"]


def _mask(source: Source, node: Mask) -> list[str]:
    values = f"{source.read(node)}, {source.read(node, 1)}, {source.value(node)}"
    return [f"spq_mask_row({values}, y);"]


def _concat(source: Source, node: Concat) -> list[str]:
    lines, channel = [], 0
    for index, name in enumerate(node.inputs):
        values = f"{source.read(node, index)}, {source.value(node)}"
        lines.append(f"spq_copy_row({values}, {channel}, y);")
        channel += source.graph[name].shape[0]
    return lines


def decision(source: Source, node: ChannelDecision) -> str:
    """Address of the record of a channel decision."""
    read = source.graph[node.inputs[0]]
    levels = node.reads == "membrane"
    add = source.constants.add
    limit = 2**62  # beyond every sum of 8-bit weights times 32-bit sums
    each: list[dict[str, object]] = [
        {
            "value": NONE if levels else source.value(read),
            # How a neuron stores its levels is the same in all steps.
            "neuron": source.address("neuron", source.numbers[read.name], "0") if levels else NONE,
            "weights": add("gate", "S8", one.weight.flatten().tolist(), "weights"),
            "thresholds": add("thresholds", "S64", one.threshold.clamp(-limit, limit).tolist()),
            "sums": source.memory.address(("sums", node.name)),
            "output": source.value(node),
        }
        for one in source.variants(node)
    ]
    return source.record("decision", f"decision_{source.numbers[node.name]}", *each)


def _neuron(source: Source, node: Neuron) -> list[str]:
    shared = {"importance": _importance(source, node) if node.pixels else NONE}
    each = [_neuron_fields(source, one) | shared for one in source.variants(node)]
    address = source.record("neuron", f"neuron_{source.numbers[node.name]}", *each)
    return [f"spq_fire_row({address}, y);"]


def _neuron_fields(source: Source, node: Neuron) -> dict[str, object]:
    sums, add = source.graph[node.inputs[0]], source.constants.add
    flips = bool((node.sign < 0).any())
    low, high = (
        (min(sums.low, -sums.high), max(sums.high, -sums.low)) if flips else (sums.low, sums.high)
    )
    kind, breaks = tight(node.breaks, low, high)
    gated = node.gate is not None and node.closed is not None
    return {
        "sums": source.read(node),
        "numbers": source.read(node, 1) if node.counts else NONE,
        "gate": source.value(source.graph[str(node.gate)]) if gated else NONE,
        "spikes": source.value(node),
        "states": f"spq_states + {source.memory.offsets['states', node.name]}",
        "breaks": add("breaks", kind, breaks.flatten().tolist()),
        "closed": _closed(source, node) if gated else NONE,
        "outcomes": add("outcomes", "S16", node.outcomes.flatten().tolist()),
        "sign": add("sign", "S8", node.sign.tolist()) if flips else NONE,
        "breaks_type": f"SPQ_{kind}",
        "breaks_count": breaks.shape[-1],
        "state_count": breaks.shape[1],
        "number_count": breaks.shape[2],
        "least_number": node.counts[0] if node.counts else 0,
        "state_bits": node.state_bits,
        "state_shift": (8 // node.state_bits).bit_length() - 1,
        "remembers": int(node.remembers),
        "lowest": node.lowest,
        "rest": node.rest,
        "prior": int(node.pixels is not None and node.pixels.score == "prior"),
        "masked": node.pixels.masked if node.pixels else 0,
    }


def _closed(source: Source, node: Neuron) -> str:
    rows = [] if node.closed is None else node.closed.flatten().tolist()
    return source.constants.add("closed", "U8", rows)


def _importance(source: Source, node: Neuron) -> str:
    key = ("importance", node.name)
    _, rows, columns = grid(node.shape)
    return source.record(
        "value",
        f"importance_{source.numbers[node.name]}",
        {
            "data": source.memory.address(key),
            "type": f"SPQ_{source.memory.storages[key]}",
            "channels": 1,
            "rows": rows,
            "columns": columns,
            "channel_step": rows * columns,
            "row_step": columns,
            "column_step": 1,
            "row_mask": "INT32_MAX",
        },
    )


WRITERS: dict[type[Node], Callable[[Source, Any], list[str]]] = {
    Convolution: _convolution,
    Dense: _convolution,
    SumPool: _pool,
    MaxPool: _pool,
    Affine: _affine,
    Add: _add,
    Product: _product,
    Mask: _mask,
    Concat: _concat,
    Neuron: _neuron,
}
