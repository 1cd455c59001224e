"""Machine code of kernels: where it is kept, and how it comes into this process. Nothing here needs Numba.

    compiled/NAME.o        came with virtfn, in a wheel: for a named processor and exactly these sources
    CACHE/BUILD/NAME.o     compiled on this machine, for its processor and these sources, by these compilers

A file is a relocatable object (ELF) that stands on nothing but the C library, wherever virtfn is installed. It has two
functions: NAME takes and returns 64-bit words by address, for Python; NAME.entry is what kernels call.
Files are code, so they are read from no folder that another user can write.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from llvmlite import binding

from virtfn import private
from virtfn.kernels.stray import CHECKED

__all__ = ["Code", "add_symbol", "cache", "compiled", "find", "keep", "shipped", "sources", "why_not_shipped"]

_HERE = Path(__file__).resolve().parent
SHIPPED = _HERE / "compiled"
BASELINE, BEYOND = "x86-64-v3", "pclmul"  # which every such processor has, though the level does not ask for it
_NEEDED = frozenset(
    "cx16 sahf popcnt sse3 ssse3 sse4.1 sse4.2 avx avx2 bmi bmi2 f16c fma lzcnt movbe xsave pclmul".split()
)  # System V ABI for AMD64, micro-architecture levels


compiled: list[str] = []
"""What this process had to compile."""


class Code(NamedTuple):
    """A kernel in this process. call: for Python, takes addresses of arguments and results; entry: for kernels."""

    call: int
    entry: int


@functools.cache
def sources() -> str:
    """Return the digest of all that kernels are made of: Numba's own key would cover one file only."""
    digest = hashlib.sha256()
    for folder in (_HERE.parent / "hw", _HERE):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(_HERE.parent)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def checks() -> str:
    """Name what this process's kernels check beyond what they do in an ordinary build; empty: nothing."""
    return "checked" if CHECKED else "boundscheck" if os.environ.get("NUMBA_BOUNDSCHECK") else ""


@functools.cache
def cache() -> Path:
    """Return the folder of what was compiled here, which no other user can write."""
    made_by = [f"{name} {metadata.version(name)}" for name in ("numba", "llvmlite")]
    processor = [binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    build = hashlib.sha256(" ".join([sources(), checks(), *made_by, *processor]).encode())
    return private.kernel_cache(build.hexdigest()[:16])


@functools.cache
def why_not_shipped() -> str:
    """Tell why this process does not run the machine code that came with virtfn; empty if it does, or none came."""
    try:
        made = json.loads((SHIPPED / "made.json").read_text())
    except FileNotFoundError:
        return ""
    if made["sources"] != sources():
        return "those that came with virtfn are of other sources"
    if checks():
        return "those that came with virtfn check nothing"
    has = {name for name, present in binding.get_host_cpu_features().items() if present}
    if platform.machine() != "x86_64" or _NEEDED - has:
        lacking = ", ".join(sorted(_NEEDED - has)) or platform.machine()
        return f"those that came with virtfn are for {BASELINE}, and this processor lacks {lacking}"
    return ""


@functools.cache
def shipped() -> bool:
    """Tell whether machine code came with virtfn that this process can run."""
    return not why_not_shipped() and (SHIPPED / "made.json").exists()


def find(name: str) -> Code | None:
    """Load a kernel that is on disk; None if it has to be compiled."""
    for folder in (lambda: SHIPPED, cache) if shipped() else (cache,):
        with contextlib.suppress(FileNotFoundError):
            return _load(name, (folder() / f"{name}.o").read_bytes())
    return None


def keep(name: str, machine_code: bytes, *, on_disk: bool) -> Code:
    """Load a kernel that was just compiled, and leave it on disk for the next time, if there is room."""
    compiled.append(name)
    if on_disk:
        with contextlib.suppress(OSError):
            path = cache() / f"{name}.o"
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_bytes(machine_code)
            scratch.rename(path)
    return _load(name, machine_code)


def add_symbol(name: str, address: int) -> None:
    """Make a function known to kernels that are loaded from now on."""
    binding.add_symbol(name, address)


@functools.cache
def _engine() -> binding.ExecutionEngine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _load(name: str, machine_code: bytes) -> Code:
    engine = _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    code = Code(engine.get_function_address(name), engine.get_function_address(f"{name}.entry"))
    assert all(code), f"no kernel is in {name}.o"
    return code
