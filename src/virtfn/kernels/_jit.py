"""The door to compiled code: decorators, and the handful of gates that touch memory shared with a guest.

    load16/32/64, store16/32/64     plain access at an address
    load16_acquire, load32_acquire  tails and descriptor done words: what they publish is read after them
    store16_release, ...            heads and write-backs, of 32 and 64 bits too: what they publish is written before
    fence()                         what was stored before is seen by all before anything is loaded after it
    copy_bytes                      memcpy; the regions do not overlap
    copy_32(target, source)         32 bytes, without a call
    sum_blocks(source, blocks)      adds blocks of 32 bytes as 32-bit words, many at a time
    copy_blocks(target, source, blocks)  the same, and copies them
    prefetch_write(address)         brings a line near that is about to be written; touches nothing
    unlikely(condition)             the condition; registers and code go to the case that it is false
    hash_words(key, words)          the Toeplitz hash of a tuple of 64-bit words (`csum.py`)
    row_of(names)                   makes a dtype: a row of 64-bit integers
    row_at(dtype)                   makes a gate: the structured row of that dtype at an address
    libc(name, 32, 64)              a function of the C library, for kernels that call the system
    touch(address, size, write)     says what a function of the C library, or another gate, will touch
    grant(address, size, write, rid)  lets this call touch what a gate has let through
    entry(kernel, 3)                the address at which a kernel of 3 numbers can be called
    by_address(3, results=2)        makes the call of such a kernel: at an address, with 3 numbers
    apart(NIC, int, gives=2)        compiles a kernel apart from those that call it, when it is first called

With VIRTFN_CHECKED set, every one of them compares what it touches with what it may (`ranges.py`), array indices are
checked too, and the first access that leaves its range ends the kernel with StrayAccessError. That build has a cache of
its own.

A kernel is compiled into each kernel that calls it, and again above. What is called by address is compiled once, and
what calls it need not know it: so cards and drivers plug in.

State reaches kernels as the address of one row that holds everything: tables of arrays would be passed member by
member, at every call between kernels.

Nothing here imports Numba: most processes find all machine code on disk (`_objects.py`), and only one that does not
needs the compiler (`_compiler.py`).
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import pickle
import threading
import zlib
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np

from virtfn.kernels import _objects

_P = ParamSpec("_P")
_R = TypeVar("_R")

Row: TypeAlias = Any
"""A structured row inside a kernel: members are attributes. NumPy's own types cannot say which."""

_MOST_RESULTS = 8
_CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
_loading = threading.RLock()


class Kernel(Generic[_P, _R]):
    """A function to compile. Kernels that call it get its code; machine code of its own is made when Python calls it.

    Python passes integers, arrays and rows, and gets integers: none, one, or a tuple. inline: whether each of its
    callers has a copy.
    """

    def __init__(self, function: Callable[_P, _R], *, inline: bool) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self.inline = inline
        self.apart: Apart | None = None
        self._takes = function.__code__.co_argcount
        self.targetoptions: dict[str, str] = {}  # Numba looks at it, where a kernel calls this one
        self._ours = function.__module__.startswith("virtfn.kernels.")  # of others, nobody knows when they change
        self.name = f"{function.__module__.removeprefix('virtfn.kernels.')}.{function.__name__}"
        self._known: dict[tuple[str, ...], tuple[_objects.Code, Callable[..., int]]] = {}

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call it from Python. Raises what a build that checks finds wrong."""
        if kwargs or len(args) < self._takes:
            bound = inspect.signature(self.py_func).bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args  # type: ignore[assignment]
        kinds, words = _flat(args)
        known = self._known.get(kinds) or self._load(kinds, args)
        results = (ctypes.c_int64 * _MOST_RESULTS)()
        count = known[1]((ctypes.c_int64 * len(words))(*words), results)
        if count < 0:
            raise _failures.pop() if _failures else _error_at(results[0])
        return cast(_R, None if count == 0 else results[0] if count == 1 else tuple(results[:count]))

    def code(self, *args: object) -> _objects.Code:
        """Return its machine code for such arguments, compiled now if need be."""
        kinds, _ = _flat(args)
        return (self._known.get(kinds) or self._load(kinds, args))[0]

    def _load(self, kinds: tuple[str, ...], args: tuple[object, ...]) -> tuple[_objects.Code, Callable[..., int]]:
        with _loading:
            if kinds not in self._known:
                name = "-".join((self.name, *kinds))
                code = _objects.find(name) if self._ours else None
                code = code or _objects.keep(
                    name, _compile(cast("Kernel[..., object]", self), name, args), on_disk=self._ours
                )
                self._known[kinds] = code, _CALL(code.call)
        return self._known[kinds]


listeners: list[Callable[[], None]] = []
"""Are told when a kernel has to be compiled: whoever called it waits."""


def _compile(function: Kernel[..., object], name: str, args: tuple[object, ...]) -> bytes:
    from virtfn.kernels import _compiler

    for tell in listeners:
        tell()
    return _compiler.compile_whole(function, name, args)


def _flat(args: tuple[Any, ...]) -> tuple[tuple[str, ...], list[int]]:
    """Take arguments apart: what kind each is, and the 64-bit words that compiled code takes for it."""
    kinds, words = [], []
    for arg in args:
        if isinstance(arg, int | np.integer):
            kinds.append("i")
            words.append(int(arg))
        elif isinstance(arg, np.void):
            kinds.append(_kind(arg.dtype, 0, True))
            words.append(np.frombuffer(arg, np.uint8).ctypes.data)
        else:
            kinds.append(_kind(arg.dtype, arg.ndim, arg.flags.c_contiguous))
            # as Numba has arrays: nobody to count references, no parent, members, bytes of each
            words += [0, 0, arg.size, arg.itemsize, arg.ctypes.data, *arg.shape, *arg.strides]
    return tuple(kinds), words


@functools.cache
def _kind(dtype: np.dtype[Any], dimensions: int, contiguous: bool) -> str:
    name = dtype.name if dtype.names is None else f"row{zlib.crc32(str(dtype.descr).encode()):08x}"
    return f"{name}x{dimensions}" + ("" if contiguous else "s")


def _error_at(address: int) -> BaseException:
    """Make the exception of a kernel that a build with checks has ended: Numba keeps it pickled in its code."""
    data = ctypes.c_void_p.from_address(address).value
    size = ctypes.c_int32.from_address(address + 8).value
    kind, arguments, *_ = pickle.loads(ctypes.string_at(data or 0, size))
    return cast(BaseException, kind(*(arguments or ())))


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel: no Python objects, no GIL, no exceptions, kept on disk, integers wrap as in C."""
    return Kernel(function, inline=False)


def inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel into each of its callers: for the few that run once or more a frame."""
    return Kernel(function, inline=True)


def part(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a part of a kernel into it, with no code of its own: each level above much code compiles that again."""
    made = Kernel(function, inline=False)
    made.targetoptions = {"inline": "always"}
    return made


_failures: list[BaseException] = []
_FAILED = -1  # for Numba: an exception


class Apart:
    """How a kernel that is called apart is reached: through a word of memory that has its address.

    At first that is the address of a stub, which loads the kernel, or compiles it, and then replaces itself.
    """

    def __init__(self, function: Kernel[..., object], takes: tuple[type[int] | np.dtype[Any], ...], gives: int) -> None:
        self.takes, self.gives = takes, gives
        self.name = f"virtfn.{function.name}"
        self._function = function
        self._word = ctypes.c_int64()
        self._kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * len(takes))
        self._stub = self._kind(self._load_and_call)
        self._word.value = ctypes.cast(self._stub, ctypes.c_void_p).value or 0
        _objects.add_symbol(self.name, ctypes.addressof(self._word))

    def load(self) -> None:
        """Load or compile the kernel now, so that no call has to wait for it."""
        examples = [0 if kind is int else np.zeros(1, kind)[0] for kind in self.takes]
        self._word.value = self._function.code(*examples).entry

    def _load_and_call(self, result: int | None, error: int | None, *words: int) -> int:
        try:
            self.load()
        except BaseException as failure:  # whoever called the kernel from Python hears of it
            _failures.append(failure)
            return _FAILED
        return cast(int, self._kind(self._word.value)(result, error, *words))


def apart(*takes: type[int] | np.dtype[Any], gives: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile a kernel apart from those that call it, when it is first called: for what is large, or rare.

    takes: what it takes, 64-bit numbers or rows of these dtypes; gives: how many numbers it returns.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        made = Kernel(function, inline=False)
        made.apart = Apart(cast("Kernel[..., object]", made), takes, gives)
        return made

    return decorate


def ready(*functions: Callable[..., object]) -> None:
    """Load or compile kernels that are called apart."""
    for function in functions:
        way = cast("Kernel[..., object]", function).apart
        assert way is not None
        way.load()


def entry(function: Callable[..., object], arguments: int) -> int:
    """Return the address at which kernels call a kernel of so many 64-bit numbers, compiled now if need be."""
    return cast("Kernel[..., object]", function).code(*[0] * arguments).entry


class Gate:
    """What only compiled code can do; `_gates.py` says how. what: the function there that makes it; how: of what."""

    def __init__(self, what: str, *how: Any) -> None:
        self.what, self.how = what, how


def _gate(what: str, *how: Any) -> Callable[..., Any]:
    return cast("Callable[..., Any]", Gate(what, *how))


load8: Callable[[int], int] = _gate("load", 8, None)
load16: Callable[[int], int] = _gate("load", 16, None)
load32: Callable[[int], int] = _gate("load", 32, None)
load64: Callable[[int], int] = _gate("load", 64, None)
load16_acquire: Callable[[int], int] = _gate("load", 16, "acquire")
load32_acquire: Callable[[int], int] = _gate("load", 32, "acquire")
store8: Callable[[int, int], None] = _gate("store", 8, None)
store16: Callable[[int, int], None] = _gate("store", 16, None)
store32: Callable[[int, int], None] = _gate("store", 32, None)
store64: Callable[[int, int], None] = _gate("store", 64, None)
store16_release: Callable[[int, int], None] = _gate("store", 16, "release")
store32_release: Callable[[int, int], None] = _gate("store", 32, "release")
store64_release: Callable[[int, int], None] = _gate("store", 64, "release")
# For the checks themselves.
load64_unchecked: Callable[[int], int] = _gate("load", 64, None, False)
store64_unchecked: Callable[[int, int], None] = _gate("store", 64, None, False)

copy_bytes: Callable[[int, int, int], None] = _gate("copy_bytes")
sum_blocks: Callable[[int, int], int] = _gate("sum_blocks", False)
copy_blocks: Callable[[int, int, int], int] = _gate("sum_blocks", True)
copy_32: Callable[[int, int], None] = _gate("copy_32")
hash_words: Callable[[int, tuple[int, ...]], int] = _gate("hash_words", True)
hash_words_by_bits: Callable[[int, tuple[int, ...]], int] = _gate("hash_words", False)
prefetch_write: Callable[[int], None] = _gate("prefetch_write")
unlikely: Callable[[bool], bool] = _gate("unlikely")
fence: Callable[[], None] = _gate("fence")
touch: Callable[[int, int, int], None] = _gate("touch")
grant: Callable[[int, int, int, int], None] = _gate("grant")


def by_address(arguments: int, results: int = 1) -> Callable[..., Any]:
    """Make the call of kernels that are known by the address that `entry` returns.

    arguments: 64-bit numbers that they take. results: how many they return, as a tuple if several.
    """
    return _gate("by_address", arguments, results)


def row_of(names: str) -> np.dtype[np.void]:
    """Make the dtype of a row of 64-bit integers, named by the words of `names`."""
    return np.dtype([(name, np.int64) for name in names.split()])


def row_at(dtype: np.dtype[np.void]) -> Callable[[int], Row]:
    """Make a gate that sees the row of `dtype` at an address; nothing is copied or owned."""
    return _gate("row_at", dtype)


def libc(name: str, *arguments: int, returns: int = 64) -> Callable[..., int]:
    """Find a function of the C library. arguments, returns: bits of its integers and pointers."""
    return _gate("libc", name, arguments, returns)


def uncached(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function for this process alone: what it knows of the process is in its code."""
    from virtfn.kernels import _compiler

    return cast("Callable[_P, _R]", _compiler.uncached(function))


def symbol(name: str, function: Callable[..., int], arguments: int) -> object:
    """Compile a function of so many 64-bit numbers anew, and make it known to kernels; return what must be kept."""
    from virtfn.kernels import _compiler

    compiled = _compiler.for_c(function, arguments)
    _objects.add_symbol(name, compiled.address)
    return compiled
