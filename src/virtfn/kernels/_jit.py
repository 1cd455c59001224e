"""The only door to Numba: one decorator, and the handful of intrinsics that touch memory shared with a guest.

The cache lives in a directory named by the content of `hw` and `kernels`: Numba's own key covers one file only, so a
changed constant or callee elsewhere would silently keep running old machine code.

    load16/32/64, store16/32/64     plain access at an address
    load16_acquire, load32_acquire  tails and descriptor done words: what they publish is read after them
    store16_release, ...            heads and write-backs, of 32 and 64 bits too: what they publish is written before
    fence()                         what was stored before is seen by all before anything is loaded after it
    copy_bytes                      memcpy; the regions do not overlap
    sum_blocks(source, blocks)      adds blocks of 32 bytes as 32-bit words, many at a time
    copy_blocks(target, source, blocks)  the same, and copies them
    row_of(names)                   makes a dtype: a row of 64-bit integers
    row_at(dtype)                   makes an intrinsic: the structured row of that dtype at an address
    libc(name, 32, 64)              a function of the C library, for kernels that call the system
    touch(address, size, write)     says what a function of the C library, or another gate, will touch
    grant(address, size, write, rid)  lets this call touch what a gate has let through
    entry(kernel, 3)                the address at which a kernel of 3 numbers can be called
    by_address(3, results=2)        makes the call of such a kernel: at an address, with 3 numbers

With VIRTFN_CHECKED set, every one of them compares what it touches with what it may (`ranges.py`), array indices are
checked too, and the first access that leaves its range ends the kernel with StrayAccessError. That build has a cache of
its own.

A kernel is compiled into each kernel that calls it, and again above. What is called by address is compiled once, and
what calls it need not know it: so cards and drivers plug in.

State reaches kernels as the address of one row that holds everything: tables of arrays would be passed member by
member, with a reference count each, at every call between kernels.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numba.core import caching

from virtfn import private
from virtfn.kernels.stray import CHECKED, StrayAccessError

_P = ParamSpec("_P")
_R = TypeVar("_R")

Row: TypeAlias = Any
"""A structured row inside a kernel: members are attributes. NumPy's own types cannot say which."""


def _cache_dir() -> str:
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(numba.__version__.encode())
    for folder in ("hw", "kernels"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    if CHECKED:
        digest.update(b"checked")
    elif os.environ.get("NUMBA_BOUNDSCHECK"):
        digest.update(b"boundscheck")
    return str(private.kernel_cache(digest.hexdigest()[:16]))


def _cache_only_in(folder: str) -> None:
    """Keep Numba from reading what it cached, which is code, anywhere else.

    It would look beside the sources and in a folder of its own where `folder` fails, and where a .numba_config.yaml in
    the working folder says, which it reads again at each compilation.
    """
    setattr(numba.config, "_config_fname", os.devnull)  # noqa: B010
    numba.config.reload_config()
    setattr(numba.config, "CACHE_DIR", folder)  # noqa: B010
    caching.CacheImpl._locator_classes = [
        locator
        for locator in caching.CacheImpl._locator_classes
        if locator.__name__.endswith("UserProvidedCacheLocator")
    ]


CACHE_DIR = _cache_dir()
_cache_only_in(CACHE_DIR)
if CHECKED:
    setattr(numba.config, "BOUNDSCHECK", 1)  # noqa: B010

from llvmlite import binding, ir  # noqa: E402
from numba import cfunc, njit, types  # noqa: E402
from numba.core import cgutils  # noqa: E402
from numba.core.codegen import JITCodeLibrary  # noqa: E402
from numba.core.compiler import Compiler  # noqa: E402
from numba.core.typing.templates import signature as signature_of  # noqa: E402
from numba.extending import intrinsic, typeof_impl  # noqa: E402
from numba.np import numpy_support  # noqa: E402


class _Piece(JITCodeLibrary):
    """Code of a kernel, for kernels that call it to link: no machine code, and nothing of what it calls itself."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # nobody calls it

    @property
    def codegen(self) -> Any:
        return _NOBODY


class _Nobody:
    def set_env(self, name: str, env: object) -> None:
        """Set nothing: there is no code that would look."""


_NOBODY = _Nobody()


class _Whole(JITCodeLibrary):
    """Machine code of a kernel with all that it calls, each once."""

    def add_linking_library(self, library: Any) -> None:
        if library in self._linking_libraries:
            return
        super().add_linking_library(library)
        if isinstance(library, _Piece):
            for further in library._linking_libraries:
                self.add_linking_library(further)


def _pipeline(kind: type[JITCodeLibrary]) -> type[Compiler]:
    class Pipeline(Compiler):
        def __init__(self, typingctx: Any, targetctx: Any, library: Any, *further: Any) -> None:
            if library is None:
                library = kind(targetctx.codegen(), kind.__name__)
                library.enable_object_caching()
            super().__init__(typingctx, targetctx, library, *further)

    return Pipeline


_HOW: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


class Kernel(Generic[_P, _R]):
    """A compiled function. Kernels that call it get its code; machine code of its own is made when Python calls it.

    So each is compiled once, and optimised as a part of what Python calls.
    """

    def __init__(self, function: Callable[_P, _R], **how: Any) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self.piece = cast(Any, njit)(no_cpython_wrapper=True, pipeline_class=_PIECE, **_HOW, **how)(function)
        self.whole = cast(Any, njit)(cache=True, pipeline_class=_WHOLE, **_HOW, **how)(function)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self.whole(*args, **kwargs)


_PIECE, _WHOLE = _pipeline(_Piece), _pipeline(_Whole)


@typeof_impl.register(Kernel)
def _type_of_kernel(value: Kernel[..., object], _: object) -> types.Dispatcher:
    return types.Dispatcher(value.piece)


def _remember_operators() -> None:
    """Let Numba type `a + b` of two kinds of integer once, instead of each time that it comes by such a line."""
    types_of: Callable[..., object] = types.Function.get_call_type
    known: dict[tuple[object, tuple[object, ...]], object] = {}
    plain = (types.Integer, types.Boolean)

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> object:
        if kws or not all(isinstance(arg, plain) for arg in args):
            return types_of(self, context, args, kws)
        key = self, tuple(args)
        if key not in known:
            known[key] = types_of(self, context, args, kws)
        return known[key]

    setattr(types.Function, "get_call_type", get_call_type)  # noqa: B010


_remember_operators()


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel: no Python objects, no GIL, no exceptions, cached on disk, integers wrap as in C.

    What `inlined` asks for would else be inherited by what is first called there, and go with it into all its callers.
    """
    return Kernel(function, forceinline=False)


def inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel into each of its callers: for the few that run once or more a frame."""
    return Kernel(function, forceinline=True)


def part(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a part of a kernel into it, with no code of its own: each level above much code compiles that again."""
    return cast("Callable[_P, _R]", njit(nogil=True, error_model="numpy", inline="always")(function))


_entries: dict[object, int] = {}


def entry(function: Callable[..., object], arguments: int) -> int:
    """Return the address at which kernels call a kernel of so many 64-bit numbers, compiled now if need be."""
    if function not in _entries:
        signature = (types.int64,) * arguments
        dispatcher = cast(Any, function).whole
        dispatcher.compile(signature)
        compiled = dispatcher.overloads[signature]
        _entries[function] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return _entries[function]


def by_address(arguments: int, results: int = 1) -> Callable[..., Any]:
    """Make the call of kernels that are known by the address that `entry` returns.

    arguments: 64-bit numbers that they take, 2 to 5. results: how many they return, as a tuple if several.
    """
    result = types.int64 if results == 1 else types.UniTuple(types.int64, results)
    signature = result(*[types.int64] * (arguments + 1))

    def codegen(context, builder, _, args):  # type: ignore[no-untyped-def]
        taken = signature.args[1:]
        pointer = context.call_conv.get_function_type(result, taken).as_pointer()
        function = builder.inttoptr(args[0], pointer)
        status, returned = context.call_conv.call_function(builder, function, result, taken, args[1:])
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return returned

    def two(typingctx, address, a, b):  # type: ignore[no-untyped-def]
        return signature, codegen

    def three(typingctx, address, a, b, c):  # type: ignore[no-untyped-def]
        return signature, codegen

    def five(typingctx, address, a, b, c, d, e):  # type: ignore[no-untyped-def]
        return signature, codegen

    return cast("Callable[..., Any]", intrinsic({2: two, 3: three, 5: five}[arguments]))


def uncached(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function for this process alone: what it knows of the process is in its code."""
    return cast("Callable[_P, _R]", njit(nogil=True, error_model="numpy")(function))


def compiled_files() -> int:
    """Count the compiled kernels on disk."""
    return sum(1 for _ in Path(CACHE_DIR).rglob("*.nbc"))


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


def _load(bits: int, ordering: str | None, *, checked: bool = True) -> Callable[[int], int]:
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

    return cast("Callable[[int], int]", intrinsic(typed))


def _store(bits: int, ordering: str | None, *, checked: bool = True) -> Callable[[int, int], None]:
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

    return cast("Callable[[int, int], None]", intrinsic(typed))


load8 = _load(8, None)
load16 = _load(16, None)
load32 = _load(32, None)
load64 = _load(64, None)
load16_acquire = _load(16, "acquire")
load32_acquire = _load(32, "acquire")
store8 = _store(8, None)
store16 = _store(16, None)
store32 = _store(32, None)
store64 = _store(64, None)
store16_release = _store(16, "release")
store32_release = _store(32, "release")
store64_release = _store(64, "release")
# For the checks themselves.
load64_unchecked = _load(64, None, checked=False)
store64_unchecked = _store(64, None, checked=False)


def _copy_bytes(typingctx, target, source, size):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _check(context, builder, _MAY_TOUCH, args[0], args[2], 1)
        _check(context, builder, _MAY_TOUCH, args[1], args[2], 0)
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1, align=1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


_LANES, _UNROLLED = 4, 4


def _sum_blocks(copy: bool) -> Callable[..., int]:
    """Make the intrinsic of `sum_blocks`, or of `copy_blocks`: blocks of 32 bytes, eight 32-bit words at a time."""
    lanes = ir.VectorType(ir.IntType(64), _LANES)
    low = ir.Constant(lanes, [0xFFFFFFFF] * _LANES)
    high = ir.Constant(lanes, [32] * _LANES)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        *target, source, blocks = args
        word = ir.IntType(64)
        nbytes = builder.shl(blocks, word(5))
        _check(context, builder, _MAY_TOUCH, source, nbytes, 0)
        for address in target:
            _check(context, builder, _MAY_TOUCH, address, nbytes, 1)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(lanes, None)) for _ in range(_UNROLLED)]

        def add(block: Any, total: Any) -> None:
            offset = builder.shl(block, word(5))
            value = builder.load(builder.inttoptr(builder.add(source, offset), lanes.as_pointer()))
            value.align = 1
            for address in target:
                builder.store(value, builder.inttoptr(builder.add(address, offset), lanes.as_pointer())).align = 1
            two = builder.add(builder.and_(value, low), builder.lshr(value, high))
            builder.store(builder.add(builder.load(total), two), total)

        whole = builder.sdiv(blocks, word(_UNROLLED))
        with cgutils.for_range(builder, whole) as loop:
            first = builder.mul(loop.index, word(_UNROLLED))
            for i, total in enumerate(totals):
                add(builder.add(first, word(i)), total)
        begun = builder.mul(whole, word(_UNROLLED))
        with cgutils.for_range(builder, builder.sub(blocks, begun)) as loop:
            add(builder.add(begun, loop.index), totals[0])
        sums = builder.load(totals[0])
        for total in totals[1:]:
            sums = builder.add(sums, builder.load(total))
        lane = [builder.extract_element(sums, ir.IntType(32)(i)) for i in range(_LANES)]
        return builder.add(builder.add(lane[0], lane[1]), builder.add(lane[2], lane[3]))

    def of_one(typingctx, source, blocks):  # type: ignore[no-untyped-def]
        return types.int64(types.int64, types.int64), codegen

    def of_two(typingctx, target, source, blocks):  # type: ignore[no-untyped-def]
        return types.int64(types.int64, types.int64, types.int64), codegen

    return cast("Callable[..., int]", intrinsic(of_two if copy else of_one))


def _fence(typingctx):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


def _touch(typingctx, address, size, write):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _check(context, builder, _MAY_TOUCH, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _grant(typingctx, address, size, write, rid):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if CHECKED:
            _ask(builder, _GRANT, list(args))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


copy_bytes = cast("Callable[[int, int, int], None]", intrinsic(_copy_bytes))
sum_blocks = _sum_blocks(copy=False)
copy_blocks = _sum_blocks(copy=True)
fence = cast("Callable[[], None]", intrinsic(_fence))
touch = cast("Callable[[int, int, int], None]", intrinsic(_touch))
grant = cast("Callable[[int, int, int, int], None]", intrinsic(_grant))


def row_of(names: str) -> np.dtype[np.void]:
    """Make the dtype of a row of 64-bit integers, named by the words of `names`."""
    return np.dtype([(name, np.int64) for name in names.split()])


def row_at(dtype: np.dtype[np.void]) -> Callable[[int], Row]:
    """Make an intrinsic that sees the row of `dtype` at an address; nothing is copied or owned."""
    record = numpy_support.from_dtype(dtype)

    def typed(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _check(context, builder, _IS_ROW, args[0], dtype.itemsize)
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return cast("Callable[[int], Row]", intrinsic(typed))


def libc(name: str, *arguments: int, returns: int = 64) -> Callable[..., int]:
    """Find a function of the C library. arguments, returns: bits of its integers and pointers."""
    of = {32: types.int32, 64: types.int64}
    signature = signature_of(of[returns], *(of[bits] for bits in arguments))
    return cast("Callable[..., int]", types.ExternalFunction(name, signature))


def symbol(name: str, function: Callable[..., int], arguments: int) -> object:
    """Compile a function of so many 64-bit numbers anew, and make it known to kernels; return what must be kept."""
    compiled = cfunc(types.int64(*[types.int64] * arguments))(function)
    binding.add_symbol(name, compiled.address)
    return compiled
