"""64 whole numbers in vector registers, one for each bit of a word, for numba."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from .simd import LANES, WORD, in_all_lanes


class Numbers(types.Type):
    """64 int32, one for each bit of a word."""

    def __init__(self) -> None:
        super().__init__(name="Numbers")


NUMBERS = Numbers()
INTEGERS = ir.VectorType(ir.IntType(32), LANES)


@register_model(Numbers)
class NumbersModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Numbers) -> None:
        super().__init__(manager, kind, INTEGERS)


@intrinsic
def zero_numbers(typing: Any) -> Any:
    """64 times 0."""
    zeros = ir.Constant(INTEGERS, [0] * LANES)
    return NUMBERS(), lambda context, builder, signature, arguments: zeros


@intrinsic
def load_numbers(typing: Any, address: Any) -> Any:
    """64 int32 from an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.load(builder.inttoptr(arguments[0], INTEGERS.as_pointer()))
        found.align = 4
        return found

    return NUMBERS(types.intp), generate


@intrinsic
def store_numbers(typing: Any, numbers: Any, address: Any) -> Any:
    """Write 64 int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[1], INTEGERS.as_pointer())
        builder.store(arguments[0], pointer).align = 4
        return context.get_dummy_value()

    return types.void(NUMBERS, types.intp), generate


@intrinsic
def add_small(typing: Any, numbers: Any, address: Any) -> Any:
    """Add 64 int8 from an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), LANES)
        found = builder.load(builder.inttoptr(arguments[1], kind.as_pointer()))
        found.align = 1
        return builder.add(arguments[0], builder.sext(found, INTEGERS))

    return NUMBERS(NUMBERS, types.intp), generate


@intrinsic
def add_times(typing: Any, numbers: Any, address: Any, factor: Any) -> Any:
    """Add 64 int8 from an address, times a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), LANES)
        found = builder.load(builder.inttoptr(arguments[1], kind.as_pointer()))
        found.align = 1
        factors = in_all_lanes(builder, arguments[2], INTEGERS)
        return builder.add(arguments[0], builder.mul(builder.sext(found, INTEGERS), factors))

    return NUMBERS(NUMBERS, types.intp, types.int64), generate


@intrinsic
def at_least(typing: Any, numbers: Any, address: Any) -> Any:
    """A word of bits: which of the numbers reach those 64 int32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        limits = builder.load(builder.inttoptr(arguments[1], INTEGERS.as_pointer()))
        limits.align = 4
        return builder.bitcast(builder.icmp_signed(">=", arguments[0], limits), WORD)

    return types.uint64(NUMBERS, types.intp), generate


@intrinsic
def spread(typing: Any, plane: Any, step: Any, value: Any, target: Any) -> Any:
    """Add ``value`` to those of 64 int32 at ``target`` whose bit is set in the word at ``plane``.

    ``step`` 0 begins: what was at the target does not count.
    """
    numbers = ir.VectorType(ir.IntType(32), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plane, begins, value, target = arguments
        word = builder.load(builder.inttoptr(plane, WORD.as_pointer()))
        mask = builder.bitcast(word, ir.VectorType(ir.IntType(1), LANES))
        values = in_all_lanes(builder, value, numbers)
        pointer = builder.inttoptr(target, numbers.as_pointer())
        before = builder.load(pointer)
        before.align = 4
        zero = ir.Constant(numbers, [0] * LANES)
        start = builder.icmp_signed("==", begins, ir.Constant(begins.type, 0))
        base = builder.select(start, zero, before)
        after = builder.add(base, builder.select(mask, values, zero))
        builder.store(after, pointer).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64, types.intp), generate


@intrinsic
def collect(typing: Any, source: Any, plane: Any, target: Any, gap: Any) -> Any:
    """Write bits ``plane`` to ``plane + 7`` of 64 int32 as words, ``gap`` bytes apart."""
    small = ir.VectorType(ir.IntType(8), LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, plane, target, gap = arguments
        values = builder.load(builder.inttoptr(source, INTEGERS.as_pointer()))
        values.align = 4
        # Numbers cut to bytes: one comparison then finds a bit of all of them.
        low = builder.trunc(builder.lshr(values, in_all_lanes(builder, plane, INTEGERS)), small)
        for bit in range(8):
            found = builder.and_(low, ir.Constant(small, [1 << bit] * LANES))
            mask = builder.icmp_unsigned("!=", found, ir.Constant(small, [0] * LANES))
            at = builder.inttoptr(target, WORD.as_pointer())
            builder.store(builder.bitcast(mask, WORD), at).align = 8
            target = builder.add(target, gap)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64, types.intp, types.int64), generate
