"""The compiler: from a kernel, and all that it calls, to one object file. Only here and in `_gates.py` is Numba.

Other kernels get a *piece* of a kernel: typed and lowered once, without machine code. A *whole* is what Python, or a
call by address, gets: all pieces that it needs, each once, optimised together.

    kernel --Numba--> piece --+
    kernel --Numba--> piece --+-- link, optimise --> machine code of a whole, with two functions that can be found
    ...                       |
    call from Python ---------+
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, typeof, types
from numba.core import cgutils
from numba.core import typed_passes as typed
from numba.core import untyped_passes as untyped
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.registry import cpu_target
from numba.extending import typeof_impl
from numba.np import numpy_support

from virtfn.kernels import _gates
from virtfn.kernels._jit import Apart, Gate, Kernel
from virtfn.kernels.stray import CHECKED

__all__ = ["compile_whole", "for_c", "uncached"]

# A .numba_config.yaml in the working folder is none of ours, and Numba reads it again at each compilation.
setattr(numba.config, "_config_fname", os.devnull)  # noqa: B010
numba.config.reload_config()
if CHECKED:
    setattr(numba.config, "BOUNDSCHECK", 1)  # noqa: B010


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
    """A kernel with all that it calls, each once."""

    def machine_code(self, name: str, entry: str) -> bytes:
        """Return the object file in which function `name` and, as NAME.entry, function `entry` can be found."""
        module = self._final_module
        # Callers first: code is linked when something that is there calls it, and the first time only.
        found: dict[Any, None] = {}
        for library in self._linking_libraries:
            _find_callees(library, found)
        for library in reversed(found):
            module.link_in(library._get_module_for_linking(), preserve=True)
        module.get_function(entry).name = f"{name}.entry"
        module.get_function(f"{name}.entry").linkage = "external"
        self._optimize_final_module()
        for function in module.functions:
            if not function.is_declaration:
                function.linkage = "external" if function.name in (name, f"{name}.entry") else "internal"
        return cast(bytes, self._codegen._tm.emit_object(module))


def _find_callees(library: Any, found: dict[Any, None]) -> None:
    """Add a library to those found, behind all that its code calls."""
    if library not in found:
        for further in library._linking_libraries:
            _find_callees(further, found)
        found[library] = None


class _Passes(PassManager):
    """Does not look for trouble after each pass: half of the compiler's time."""

    _ENFORCING = False


class _Pipeline(CompilerBase):
    """The passes that kernels need: no closures, no exceptions of Python's, no arithmetic of whole arrays."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *further: Any) -> None:
        library = library or _Piece(targetctx.codegen(), "piece")
        super().__init__(typingctx, targetctx, library, *further)

    def define_pipelines(self) -> list[PassManager]:
        """List the passes. Numba asks."""
        passes = _Passes("kernel")
        for made in (
            untyped.TranslateByteCode,
            untyped.FixupArgs,
            untyped.IRProcessing,
            untyped.GenericRewrites,
            untyped.InlineInlinables,
            untyped.ReconstructSSA,
            typed.NopythonTypeInference,
            typed.PreLowerStripPhis,
            typed.InlineOverloads,
            typed.IRLegalization,
            typed.NativeLowering,
            typed.NoPythonBackend,
        ):
            passes.add_pass(made, made.__name__)
        passes.finalize()
        return [passes]


@functools.cache
def _piece(function: Kernel[..., object]) -> Any:
    # What `inline` asks for would else be inherited by what is first called there, and go with it into all its callers.
    how: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "no_cfunc_wrapper": True,
        "no_cpython_wrapper": True,
        "_nrt": False,
    }
    return cast(Any, njit)(pipeline_class=_Pipeline, forceinline=function.inline, **how)(function.py_func)


@typeof_impl.register(Kernel)
def _type_of_kernel(value: Kernel[..., object], _: object) -> Any:
    return _apart_type(value) if value.apart else types.Dispatcher(_piece(value))


@typeof_impl.register(Gate)
def _type_of_gate(value: Gate, _: object) -> types.Type:
    return _gate_type(value)


@functools.cache
def _gate_type(gate: Gate) -> types.Type:
    return _known(getattr(_gates, gate.what)(*gate.how))


@functools.cache
def _apart_type(function: Kernel[..., object]) -> types.Type:
    assert function.apart is not None
    return _known(_gates.apart(function.apart.name, _signature(function.apart)))


def _known(made: object) -> types.Type:
    cpu_target.typing_context.refresh()
    return cpu_target.typing_context.resolve_value_type(made)


def _signature(way: Apart) -> Any:
    """Return Numba's signature of a kernel that is called apart."""
    taken = [types.int64 if kind is int else numpy_support.from_dtype(cast(Any, kind)) for kind in way.takes]
    return _gates.results(way.gives)(*taken)


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


def _remember_names() -> None:
    """Spell the type of a row out once: Numba does so at each pass, and a card's row is long."""
    spell: Callable[[object], str] = types.Record.__repr__
    spelled: dict[int, tuple[object, str]] = {}

    def spell_once(self: object) -> str:
        if id(self) not in spelled:
            spelled[id(self)] = self, spell(self)
        return spelled[id(self)][1]

    setattr(types.Record, "__repr__", spell_once)  # noqa: B010


_remember_operators()
_remember_names()


def compile_whole(function: Kernel[..., object], name: str, args: tuple[object, ...]) -> bytes:
    """Compile a kernel for arguments such as these; return its machine code, an object file, for `_objects.py`."""
    taken = tuple(types.int64 if isinstance(arg, int | np.integer) else typeof(arg) for arg in args)
    dispatcher = _piece(function)
    dispatcher.compile(_signature(function.apart) if function.apart else taken)
    compiled = dispatcher.overloads[taken]
    context = cpu_target.target_context
    whole = _Whole(context.codegen(), name)
    whole.add_linking_library(compiled.library)
    module = whole.create_ir_module(name)
    _add_call(context, module, compiled.fndesc, name)
    whole.add_ir_module(module)
    return whole.machine_code(name, compiled.fndesc.llvm_func_name)


def _add_call(context: Any, module: Any, described: Any, name: str) -> None:
    """Add the function that Python calls: (address of arguments, address of results) -> number of results.

    -1: it was ended by an exception, which Numba describes at the address that is the first result.
    """
    word = ir.IntType(64)
    words = word.as_pointer()
    inner = context.declare_function(module, described)
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, [words, words]), name).append_basic_block())
    taken, given = builder.function.args
    packer = context.get_arg_packer(described.argtypes)
    loaded = []
    for i, wanted in enumerate(packer.argument_types):
        value = builder.load(builder.gep(taken, [word(i)]))
        loaded.append(builder.inttoptr(value, wanted) if isinstance(wanted, ir.PointerType) else value)
    arguments = packer.from_arguments(builder, loaded)
    status, returned = context.call_conv.call_function(builder, inner, described.restype, described.argtypes, arguments)
    with cgutils.if_unlikely(builder, status.is_error):
        builder.store(builder.ptrtoint(status.excinfoptr, word), given)
        builder.ret(word(-1))
    results = _results(builder, described.restype, returned)
    for i, value in enumerate(results):
        builder.store(value, builder.gep(given, [word(i)]))
    builder.ret(word(len(results)))


def _results(builder: Any, kind: types.Type, value: Any) -> list[Any]:
    """Make 64-bit words of what a kernel returned."""
    if kind == types.none:
        return []
    if isinstance(kind, types.BaseTuple):
        members = [(of, builder.extract_value(value, i)) for i, of in enumerate(cast(Any, kind))]
        return [word for of, member in members for word in _results(builder, of, member)]
    widen = builder.sext if getattr(kind, "signed", False) else builder.zext
    return [widen(value, ir.IntType(64)) if value.type.width < 64 else value]


def uncached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for this process alone."""
    return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy")(function))


def for_c(function: Callable[..., int], arguments: int) -> Any:
    """Compile a function of so many 64-bit numbers for callers that know the address only."""
    return cfunc(types.int64(*[types.int64] * arguments))(function)
