"""How gates are made: the code of what `_jit.py` names, for Numba's kernels. Each function here makes one kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import signature as signature_of
from numba.extending import intrinsic
from numba.np import numpy_support

from virtfn.kernels.stray import CHECKED, StrayAccessError

__all__ = [
    "apart",
    "by_address",
    "copy_32",
    "copy_bytes",
    "fence",
    "grant",
    "hash_words",
    "libc",
    "load",
    "prefetch_write",
    "results",
    "row_at",
    "store",
    "sum_blocks",
    "touch",
    "unlikely",
]


def _intrinsic(typed: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Callable[..., Any]", intrinsic(typed))


_MAY_TOUCH, _IS_ROW, _GRANT = "virtfn_may_touch", "virtfn_is_row", "virtfn_grant"


def _ask(builder: Any, name: str, arguments: list[Any]) -> Any:
    """Call a function that `symbol` made known."""
    word = ir.IntType(64)
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, [word] * len(arguments)), name)
    return builder.call(function, arguments)


def _check(context: Any, builder: Any, name: str, *arguments: Any) -> None:
    """In a checked build, end the kernel that is being compiled with StrayAccessError unless `name` says yes."""
    if not CHECKED:
        return
    word = ir.IntType(64)
    said = _ask(builder, name, [word(a) if isinstance(a, int) else a for a in arguments])
    with cgutils.if_unlikely(builder, builder.icmp_signed("==", said, word(0))):
        context.call_conv.return_user_exc(builder, StrayAccessError, (_plain_name(builder.function.name),))


def _plain_name(mangled: str) -> str:
    """Find the name of a kernel in that of its machine code: the last word before its types."""
    words = []
    rest = mangled.removeprefix("_ZN")
    while rest[:1].isdigit():
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        words.append(rest[len(digits) : len(digits) + int(digits)])
        rest = rest[len(digits) + int(digits) :]
    return words[-1] if words else mangled


def load(bits: int, ordering: str | None, checked: bool = True) -> Callable[..., Any]:
    """Make a load of so many bits."""
    ltype = ir.IntType(bits)

    def typed(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if checked:
                _check(context, builder, _MAY_TOUCH, args[0], bits // 8, 0)
            pointer = builder.inttoptr(args[0], ltype.as_pointer())
            if ordering is None:
                value = builder.load(pointer)
                value.align = 1
            else:
                value = builder.load_atomic(pointer, ordering, bits // 8)
            return builder.zext(value, ir.IntType(64)) if bits < 64 else value

        return types.int64(types.int64), codegen

    return _intrinsic(typed)


def store(bits: int, ordering: str | None, checked: bool = True) -> Callable[..., Any]:
    """Make a store of so many bits."""
    ltype = ir.IntType(bits)

    def typed(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if checked:
                _check(context, builder, _MAY_TOUCH, args[0], bits // 8, 1)
            pointer = builder.inttoptr(args[0], ltype.as_pointer())
            word = builder.trunc(args[1], ltype) if bits < 64 else args[1]
            if ordering is None:
                builder.store(word, pointer).align = 1
            else:
                builder.store_atomic(word, pointer, ordering, bits // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return _intrinsic(typed)


def copy_bytes() -> Callable[..., Any]:
    """Make a memcpy."""

    def typed(typingctx, target, source, size):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _check(context, builder, _MAY_TOUCH, args[0], args[2], 1)
            _check(context, builder, _MAY_TOUCH, args[1], args[2], 0)
            byte = ir.IntType(8).as_pointer()
            cgutils.raw_memcpy(
                builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1, align=1
            )
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return _intrinsic(typed)


def copy_32() -> Callable[..., Any]:
    """Make a copy of 32 bytes, without a call."""

    def typed(typingctx, target, source):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _check(context, builder, _MAY_TOUCH, args[0], 32, 1)
            _check(context, builder, _MAY_TOUCH, args[1], 32, 0)
            block = ir.VectorType(ir.IntType(8), 32).as_pointer()
            value = builder.load(builder.inttoptr(args[1], block))
            value.align = 1
            builder.store(value, builder.inttoptr(args[0], block)).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return _intrinsic(typed)


_LANES, _UNROLLED = 4, 4


def _add_lanes(builder: Any, values: list[Any], sums: Any) -> Any:
    """Add the halves of vectors of words, and `sums`, to one word."""
    low, half = (ir.Constant(sums.type, [number] * _LANES) for number in (0xFFFFFFFF, 32))
    for value in values:
        sums = builder.add(sums, builder.add(builder.and_(value, low), builder.lshr(value, half)))
    lane = [builder.extract_element(sums, ir.IntType(32)(i)) for i in range(_LANES)]
    return builder.add(builder.add(lane[0], lane[1]), builder.add(lane[2], lane[3]))


def _lanes_at(builder: Any, address: Any, offset: Any) -> Any:
    """See words at an address."""
    return builder.inttoptr(builder.add(address, offset), ir.VectorType(ir.IntType(64), _LANES).as_pointer())


def sum_blocks(copy: bool) -> Callable[..., Any]:
    """Make `sum_blocks`, or `copy_blocks`: blocks of 32 bytes, four 64-bit words at a time.

    One's complement: carries are counted, and added in the end. One is seen by a sum that is less than it was; with its
    upper bit turned round from the beginning, it is that as a signed number.
    """
    lanes = ir.VectorType(ir.IntType(64), _LANES)
    none, turned = ir.Constant(lanes, None), ir.Constant(lanes, [1 << 63] * _LANES)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        *target, source, blocks = args
        word = ir.IntType(64)
        nbytes = builder.shl(blocks, word(5))
        _check(context, builder, _MAY_TOUCH, source, nbytes, 0)
        for address in target:
            _check(context, builder, _MAY_TOUCH, address, nbytes, 1)
        totals = [cgutils.alloca_once_value(builder, turned) for _ in range(_UNROLLED)]
        carries = cgutils.alloca_once_value(builder, none)

        def add(first: Any, into: list[Any]) -> None:
            # All are loaded before one is stored: a load waits for a store whose address looks like its own.
            offsets = [builder.shl(builder.add(first, word(i)), word(5)) for i in range(len(into))]
            values = [builder.load(_lanes_at(builder, source, offset)) for offset in offsets]
            for value in values:
                value.align = 1
            for address in target:
                for value, offset in zip(values, offsets, strict=True):
                    builder.store(value, _lanes_at(builder, address, offset)).align = 1
            for value, total in zip(values, into, strict=True):
                after = builder.add(builder.load(total), value)
                carried = builder.sext(builder.icmp_signed("<", after, builder.load(total)), lanes)
                builder.store(after, total)
                builder.store(builder.sub(builder.load(carries), carried), carries)

        whole = builder.sdiv(blocks, word(_UNROLLED))
        with cgutils.for_range(builder, whole) as loop:
            add(builder.mul(loop.index, word(_UNROLLED)), totals)
        begun = builder.mul(whole, word(_UNROLLED))
        with cgutils.for_range(builder, builder.sub(blocks, begun)) as loop:
            add(builder.add(begun, loop.index), totals[:1])
        return _add_lanes(
            builder, [builder.xor(builder.load(total), turned) for total in totals], builder.load(carries)
        )

    def of_one(typingctx, source, blocks):  # type: ignore[no-untyped-def]
        return types.int64(types.int64, types.int64), codegen

    def of_two(typingctx, target, source, blocks):  # type: ignore[no-untyped-def]
        return types.int64(types.int64, types.int64, types.int64), codegen

    return _intrinsic(of_two if copy else of_one)


def hash_words(carryless: bool) -> Callable[..., Any]:
    """Make `hash_words`. carryless: multiply without carries, where the processor can.

    Bit i of a word, from the top, adds bits i+1 to i+32 of its piece of the key, from the bottom, to the hash. That is
    32 bits in the middle of a product: the upper half of one by the piece, the lower half of one by the next piece.
    """
    word, pair = ir.IntType(64), ir.VectorType(ir.IntType(64), 2)

    def multiply(builder: Any, values: list[Any], at: list[Any]) -> Any:
        signature = ir.FunctionType(pair, [pair, pair, ir.IntType(8)])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.pclmulqdq")
        upper = lower = ir.Constant(pair, None)
        for value, address in zip(values, at, strict=True):
            key = builder.load(builder.inttoptr(address, pair.as_pointer()))
            key.align = 1
            both = builder.insert_element(ir.Constant(pair, None), value, word(0))
            upper = builder.xor(upper, builder.call(function, [both, key, ir.IntType(8)(0x00)]))
            lower = builder.xor(lower, builder.call(function, [both, key, ir.IntType(8)(0x10)]))
        down = builder.shuffle_vector(upper, upper, ir.Constant(ir.VectorType(ir.IntType(32), 2), [1, 0]))
        mixed = ir.FunctionType(pair, [pair])
        function = cgutils.get_or_insert_function(builder.module, mixed, "llvm.bitreverse.v2i64")
        return builder.extract_element(builder.call(function, [builder.xor(down, lower)]), word(0))

    def add_up(builder: Any, values: list[Any], at: list[Any]) -> Any:
        total = cgutils.alloca_once_value(builder, word(0))
        for value, address in zip(values, at, strict=True):
            for first in (0, 32):
                key = builder.load(builder.inttoptr(builder.add(address, word(first // 8)), word.as_pointer()))
                key.align = 1
                with cgutils.for_range(builder, word(32)) as loop:
                    piece = builder.lshr(builder.lshr(key, word(1)), loop.index)
                    bit = builder.and_(builder.lshr(value, builder.sub(word(63 - first), loop.index)), word(1))
                    added = builder.and_(piece, builder.neg(bit))
                    builder.store(builder.xor(builder.load(total), added), total)
        return builder.bitreverse(builder.load(total))

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        values = [builder.bswap(value) for value in cgutils.unpack_tuple(builder, args[1])]
        _check(context, builder, _MAY_TOUCH, args[0], 8 * len(values) + 8, 0)
        at = [builder.add(args[0], word(8 * i)) for i in range(len(values))]
        able = carryless and "+pclmul" in context.codegen()._tm_features.split(",")
        return builder.lshr((multiply if able else add_up)(builder, values, at), word(32))

    def typed(typingctx, key, words):  # type: ignore[no-untyped-def]
        return types.int64(types.int64, words), codegen

    return _intrinsic(typed)


def unlikely() -> Callable[..., Any]:
    """Make what says that a condition is seldom true."""

    def typed(typingctx, condition):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            bit = ir.IntType(1)
            expect = cgutils.get_or_insert_function(builder.module, ir.FunctionType(bit, [bit, bit]), "llvm.expect.i1")
            return builder.call(expect, [args[0], bit(0)])

        return types.boolean(types.boolean), codegen

    return _intrinsic(typed)


def fence() -> Callable[..., Any]:
    """Make a full fence."""

    def typed(typingctx):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), codegen

    return _intrinsic(typed)


def touch() -> Callable[..., Any]:
    """Make what says what is touched."""

    def typed(typingctx, address, size, write):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _check(context, builder, _MAY_TOUCH, *args)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return _intrinsic(typed)


def prefetch_write() -> Callable[..., Any]:
    """Make what brings a line of memory near."""

    def typed(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            builder.call(function, [builder.inttoptr(args[0], byte), word(1), word(3), word(1)])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return _intrinsic(typed)


def grant() -> Callable[..., Any]:
    """Make what lets a call touch memory."""

    def typed(typingctx, address, size, write, rid):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            if CHECKED:
                _ask(builder, _GRANT, list(args))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return _intrinsic(typed)


def row_at(dtype: np.dtype[np.void]) -> Callable[..., Any]:
    """Make what sees a row at an address."""
    record = numpy_support.from_dtype(dtype)

    def typed(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _check(context, builder, _IS_ROW, args[0], dtype.itemsize)
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return _intrinsic(typed)


def libc(name: str, arguments: tuple[int, ...], returns: int) -> Callable[..., Any]:
    """Make the call of a function of the C library."""
    of = {32: types.int32, 64: types.int64}
    signature = signature_of(of[returns], *(of[bits] for bits in arguments))
    return cast("Callable[..., Any]", types.ExternalFunction(name, signature))


def results(count: int) -> types.Type:
    """Return the type of so many 64-bit results."""
    return types.void if count == 0 else types.int64 if count == 1 else types.UniTuple(types.int64, count)


def by_address(arguments: int, count: int) -> Callable[..., Any]:
    """Make the call of a kernel at an address."""
    signature = results(count)(*[types.int64] * (arguments + 1))

    def codegen(context, builder, _, args):  # type: ignore[no-untyped-def]
        return _call(context, builder, args[0], signature.return_type, signature.args[1:], args[1:])

    return _of_arguments(signature, codegen)


def apart(name: str, signature: Any) -> Callable[..., Any]:
    """Make the call of a kernel at the address that is in the word `name`."""

    def codegen(context, builder, _, args):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        where = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, word, name)
        return _call(context, builder, builder.load(where), signature.return_type, signature.args, args)

    return _of_arguments(signature, codegen)


def _call(context: Any, builder: Any, address: Any, result: Any, kinds: Any, args: Any) -> Any:
    """Call a kernel as Numba's call each other, so that an error of a checked build ends the caller, too."""
    pointer = context.call_conv.get_function_type(result, kinds).as_pointer()
    function = builder.inttoptr(address, pointer)
    status, returned = context.call_conv.call_function(builder, function, result, kinds, args)
    with cgutils.if_unlikely(builder, status.is_error):
        context.call_conv.return_status_propagate(builder, status)
    return returned


def _of_arguments(signature: Any, codegen: Any) -> Callable[..., Any]:
    def typed(typingctx, *args):  # type: ignore[no-untyped-def]
        return signature, codegen

    names = ["typingctx", *(f"argument{i}" for i in range(len(signature.args)))]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    setattr(typed, "__signature__", inspect.Signature(parameters))  # noqa: B010  # Numba looks at it
    return _intrinsic(typed)
