"""Constant arrays of the C network: packed weights and tables in their narrowest type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...functional.packing import pack_bits
from ..graph import Convolution, Dense
from ..steps import patterns
from .memory import narrowest

WIDTH = 96
TYPES = {"U8": ("uint8_t", 1), "S8": ("int8_t", 1), "S16": ("int16_t", 2), "S32": ("int32_t", 4)}
TYPES |= {"S64": ("int64_t", 8), "U32": ("uint32_t", 4), "U16": ("uint16_t", 2)}
TRITS = 5


def literal(number: int, kind: str) -> str:
    """A whole number in C, where a literal's sign does not belong to it.

    >>> literal(-5, "S8"), literal(-(2**31), "S32"), literal(7, "S64")
    ('-5', '(-2147483647 - 1)', 'INT64_C(7)')
    """
    if kind == "S32" and number == -(2**31):
        return f"({number + 1} - 1)"
    if kind == "S64":
        return f"INT64_C({number})"
    return f"{number}u" if kind == "U32" else str(number)


def array(name: str, kind: str, numbers: Sequence[int], scope: str = "static ") -> str:
    """Definition of a constant array; C has no empty ones.

    >>> print(array("x", "S8", [1, -2]))
    static const int8_t x[2] = {
        1, -2,
    };
    """
    lines, line = [], ""
    for number in numbers or [0]:
        text = literal(number, kind) + ","
        if len(line) + len(text) + 5 > WIDTH:
            lines.append(line)
            line = ""
        line += f" {text}" if line else text
    body = "\n".join(f"    {line}" for line in [*lines, line])
    return f"{scope}const {TYPES[kind][0]} {name}[{max(1, len(numbers))}] = {{\n{body}\n}};"


@dataclass
class Constants:
    """Arrays by their content, so that layers that share weights share the array."""

    text: list[str] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=lambda: {"weights": 0, "tables": 0})
    names: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, what: str, kind: str, numbers: Iterable[int], part: str = "tables") -> str:
        """Name of the array with these numbers."""
        listed = list(numbers)
        key = (kind, part, tuple(listed))
        if key not in self.names:
            self.names[key] = f"{what}_{len(self.names)}"
            self.text.append(array(self.names[key], kind, listed))
            self.bytes[part] += TYPES[kind][1] * max(1, len(listed))
        return self.names[key]


@dataclass(frozen=True)
class Packed:
    """Weights in runs that begin a byte: of input ``i`` and kernel row ``ky``, all kernel columns
    and, in each, all filters of its group."""

    format: str  # TRITS, CODES or BYTES
    bits: int
    levels: list[int]
    run_bytes: int
    data: Tensor


def runs(node: Convolution | Dense) -> Tensor:
    """Weights ``[inputs * kernel rows, kernel columns * filters of a group]``."""
    weight = node.weight.to(torch.int64)
    groups = getattr(node, "groups", 1)
    while weight.ndim < 4:
        weight = weight.unsqueeze(-1)
    grouped = weight.unflatten(0, (groups, -1))  # [G, O/G, I/G, ky, kx]
    return grouped.permute(0, 2, 3, 4, 1).flatten(3).flatten(0, 2).contiguous()


def pack(node: Convolution | Dense) -> Packed:
    """The smallest of five trits to a byte, codes of 1, 2 or 4 bits, and plain bytes."""
    rows = runs(node)
    levels = sorted(set(rows.flatten().tolist()))
    choices = [_packed("BYTES", 8, [], rows.to(torch.uint8))]
    bits = next((bits for bits in (1, 2, 4) if len(levels) <= 2**bits), None)
    if bits is not None:
        codes = torch.searchsorted(torch.tensor(levels), rows)
        choices.append(_packed("CODES", bits, levels, _in_codes(codes, bits)))
    if levels[0] >= -1 and levels[-1] <= 1:
        choices.append(_packed("TRITS", 0, [], pack_fractions(rows)))
    # Of equal size, codes: they are quicker to unpack than trits.
    return min(choices, key=lambda choice: (choice.data.numel(), choice.format != "CODES"))


def pack_steps(nodes: Sequence[Convolution | Dense]) -> list[Packed]:
    """A layer's weights in each step: one code for all of them, or apart where that is smaller."""
    apart = [pack(node) for node in nodes]
    follows = patterns([node.weight for node in nodes]) if len(nodes) > 1 else None
    if follows is None:
        return apart
    count = len(follows.levels)
    bits = next(bits for bits in (1, 2, 4, 8) if count <= 2**bits)
    rows = runs(replace(nodes[0], weight=follows.codes)) + count // 2
    packed = _in_codes(rows, bits)
    if packed.numel() + follows.levels.numel() > sum(one.data.numel() for one in apart):
        return apart
    return [_packed("CODES", bits, column, packed) for column in follows.levels.t().tolist()]


def _in_codes(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes, each of which fills whole bytes."""
    filled = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (8 // bits)))
    return pack_bits(filled, bits).view(len(codes), -1)


def _packed(name: str, bits: int, levels: list[int], data: Tensor) -> Packed:
    return Packed(name, bits, levels, data.shape[1], data)


def pack_fractions(rows: Tensor) -> Tensor:
    """Rows of -1, 0 and 1, five to a byte: the byte is a fraction of 256 in base 3.

    Times 3, what passes 255 is the next digit; a decoder then needs no division. A byte rounded
    up is right in all five digits, since ``3**5 < 256``.

    >>> pack_fractions(torch.tensor([[-1, 0, 1, 1, -1, 1]]))
    tensor([[ 54, 171]], dtype=torch.uint8)
    """
    missing = -rows.shape[1] % TRITS
    digits = torch.nn.functional.pad(rows + 1, (0, missing)).unflatten(1, (-1, TRITS))
    number = (digits * 3 ** torch.arange(TRITS - 1, -1, -1)).sum(-1)
    return torch.div(number * 256 + 3**TRITS - 1, 3**TRITS, rounding_mode="floor").to(torch.uint8)


def tight(breaks: Tensor, low: int, high: int) -> tuple[str, Tensor]:
    """Breaks no further than one past the numbers they are compared with, and their storage."""
    clamped = breaks.to(torch.int64).clamp(low, high + 1)
    return narrowest(int(clamped.min()), int(clamped.max()), ("S8", "S16", "S32")), clamped
