"""Rows of bits in vector registers, for numba: 64, 128, 256 or 512 of them, one per channel.

numba knows no vectors, so a type is added whose values LLVM keeps in registers, with the few
operations that the kernels need. LLVM writes them in whatever instructions the processor has.

Where a function takes ``width``, a tuple of that many zeros, only its type is read: the number of
64-bit words in a row.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

WORD = ir.IntType(64)
LANES = 64
MAJORITY = 0xE8  # truth table of three bits
CODES = 16  # that are moved at a time
WIDE = (0,) * 8  # the widest row


class Row(types.Type):
    """A row of ``words`` times 64 bits."""

    def __init__(self, words: int) -> None:
        self.words = words
        super().__init__(name=f"Row({words})")


@register_model(Row)
class RowModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Row) -> None:
        super().__init__(manager, kind, ir.VectorType(WORD, kind.words))


def _processor_has(context: Any, feature: str) -> bool:
    """Whether code is made for a processor with this."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def _llvm(row: Row) -> ir.VectorType:
    return ir.VectorType(WORD, row.words)


def _splat(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic
def nothing(typing: Any, width: Any) -> Any:
    """All bits 0."""
    row = Row(len(width))
    return row(width), lambda context, builder, signature, arguments: _splat(_llvm(row), 0)


@intrinsic
def everything(typing: Any, width: Any) -> Any:
    """All bits 1."""
    row = Row(len(width))
    return row(width), lambda context, builder, signature, arguments: _splat(_llvm(row), -1)


@intrinsic
def load(typing: Any, width: Any, address: Any) -> Any:
    """The row at an address."""
    row = Row(len(width))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[1], _llvm(row).as_pointer())
        found = builder.load(pointer)
        found.align = 8
        return found

    return row(width, types.intp), generate


@intrinsic
def store(typing: Any, row: Any, address: Any) -> Any:
    """Write a row to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[1], arguments[0].type.as_pointer())
        builder.store(arguments[0], pointer).align = 8
        return context.get_dummy_value()

    return types.void(row, types.intp), generate


@intrinsic
def odd(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Low bit of ``a + b + c``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.xor(builder.xor(arguments[0], arguments[1]), arguments[2])

    return a(a, a, a), generate


@intrinsic
def most(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """High bit of ``a + b + c``: the majority."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, c = arguments
        row = a.type
        needed = {2: "avx512vl", 4: "avx512vl", 8: "avx512f"}
        # LLVM takes two instructions where one does it.
        if row.count in needed and _processor_has(context, needed[row.count]):
            kind = ir.FunctionType(row, [row, row, row, ir.IntType(32)])
            name = f"llvm.x86.avx512.pternlog.q.{64 * row.count}"
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(function, [a, b, c, ir.Constant(ir.IntType(32), MAJORITY)])
        return builder.or_(builder.and_(a, b), builder.and_(c, builder.or_(a, b)))

    return a(a, a, a), generate


@intrinsic
def both(typing: Any, a: Any, b: Any) -> Any:
    """Bits of a that b has too."""
    return a(a, a), lambda context, builder, signature, arguments: builder.and_(*arguments)


@intrinsic
def either(typing: Any, a: Any, b: Any) -> Any:
    """Bits of a or b."""
    return a(a, a), lambda context, builder, signature, arguments: builder.or_(*arguments)


@intrinsic
def differ(typing: Any, a: Any, b: Any) -> Any:
    """Bits that only one of a and b has."""
    return a(a, a), lambda context, builder, signature, arguments: builder.xor(*arguments)


@intrinsic
def without(typing: Any, a: Any, b: Any) -> Any:
    """Bits of a that b lacks."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(arguments[0], builder.not_(arguments[1]))

    return a(a, a), generate


@intrinsic
def trailing(typing: Any, word: Any) -> Any:
    """Number of zeros below the lowest bit of a word that has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def rest_of(typing: Any, word: Any) -> Any:
    """A word without its lowest set bit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(arguments[0], builder.sub(arguments[0], ir.Constant(WORD, 1)))

    return types.uint64(types.uint64), generate


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """Number of bits of a word that are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def number(typing: Any, address: Any, index: Any) -> Any:
    """The int64 at this place of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], WORD.as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]))

    return types.int64(types.intp, types.intp), generate


@intrinsic
def write_number(typing: Any, value: Any, address: Any) -> Any:
    """Write an int64 to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[0], builder.inttoptr(arguments[1], WORD.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.intp), generate


@intrinsic
def small_number(typing: Any, address: Any, index: Any) -> Any:
    """The int32 at this place of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.sext(builder.load(builder.gep(pointer, [arguments[1]])), WORD)

    return types.int64(types.intp, types.intp), generate


def in_all_lanes(builder: Any, value: Any, kind: Any) -> Any:
    """A vector whose lanes all hold a number."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(
        undefined, builder.trunc(value, kind.element), ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, undefined, lanes)


@intrinsic
def move_codes(typing: Any, source: Any, target: Any, shift: Any, scale: Any) -> Any:
    """Write ``(code + shift) * scale`` of the next CODES int32 to the target."""
    numbers = ir.VectorType(ir.IntType(32), CODES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target, shift, scale = arguments
        codes = builder.load(builder.inttoptr(source, numbers.as_pointer()))
        codes.align = 4
        moved = builder.add(codes, in_all_lanes(builder, shift, numbers))
        moved = builder.mul(moved, in_all_lanes(builder, scale, numbers))
        builder.store(moved, builder.inttoptr(target, numbers.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64, types.int64), generate


@intrinsic
def fill_codes(typing: Any, target: Any, value: Any) -> Any:
    """Write CODES times the same int32."""
    numbers = ir.VectorType(ir.IntType(32), CODES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = in_all_lanes(builder, arguments[1], numbers)
        builder.store(row, builder.inttoptr(arguments[0], numbers.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def list_bits(typing: Any, word: Any, first: Any, target: Any) -> Any:
    """Write ``first`` plus the place of each set bit, int32, and nothing behind the last.

    Returns False, and writes nothing, where the processor has no instruction that does it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, first, target = arguments
        if not _processor_has(context, "avx512vbmi2"):
            return ir.Constant(ir.IntType(1), 0)
        small = ir.VectorType(ir.IntType(8), LANES)
        flags = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(small, [small, small, flags])
        name = "llvm.x86.avx512.mask.compress.v64i8"
        compress = cgutils.get_or_insert_function(builder.module, kind, name)
        places = ir.Constant(small, list(range(LANES)))
        zeros = ir.Constant(small, [0] * LANES)
        packed = builder.call(compress, [places, zeros, builder.bitcast(word, flags)])
        count = builder.ctpop(word)
        group, indices = ir.VectorType(ir.IntType(32), CODES), ir.VectorType(ir.IntType(32), CODES)
        lane_flags = ir.VectorType(ir.IntType(1), CODES)
        kind = ir.FunctionType(
            ir.VoidType(), [group, group.as_pointer(), ir.IntType(32), lane_flags]
        )
        pointer_name = "p0" if str(group.as_pointer()) == "ptr" else "p0v16i32"
        write = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.masked.store.v16i32.{pointer_name}"
        )
        for begin in range(0, LANES, CODES):
            left = builder.sub(count, ir.Constant(WORD, begin))
            with builder.if_then(builder.icmp_signed(">", left, ir.Constant(WORD, 0))):
                chosen = ir.Constant(indices, list(range(begin, begin + CODES)))
                part = builder.zext(builder.shuffle_vector(packed, zeros, chosen), group)
                part = builder.add(part, in_all_lanes(builder, first, group))
                at = builder.add(target, ir.Constant(WORD, 4 * begin))
                mask = builder.icmp_signed(
                    "<", ir.Constant(group, list(range(CODES))), in_all_lanes(builder, left, group)
                )
                place = builder.inttoptr(at, group.as_pointer())
                builder.call(write, [part, place, ir.Constant(ir.IntType(32), 4), mask])
        return ir.Constant(ir.IntType(1), 1)

    return types.boolean(types.uint64, types.int64, types.intp), generate
