"""What a remapping unit knows: its registers, and memory that gives the pages of its tables.

A saved state is one NumPy `.npz` file, of our own unit or recorded from any other:

    addresses  (n,) uint64       physical addresses of pages that hold tables, multiples of 4096
    words      (n, 512) uint64   what is in them
    meta       JSON text         an object; numbers may also be texts like "0x1000"
        root, enabled        address of the root table (RTADDR 63:12), remapping on (GSTS.TES)
        irta, remapping      the whole register IRTA, interrupt remapping on (GSTS.IRES)
        compatible           compatibility-format messages allowed (GSTS.CFIS)
        cap, ecap            the registers CAP and ECAP
        faults               [{rid, iova, reason, write, kind}], reason and kind as FR and AT in a fault record
        counters, cached     what the unit counted, what it had cached; by name
        linux                what the operating system said; not read here

All keys but root, cap and ecap may be missing.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from virtfn import private
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.regs import CAP, ECAP, GSTS, IRTA, RTADDR, Fault, Regs
from virtfn.hw.vtd.tables import FaultReason, Request
from virtfn.iovm.iommu.caches import Cached, count_cached
from virtfn.kernels.vtd.iommu import Iommu
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import Host

__all__ = ["HostPages", "SavedPages", "StateError", "TableMemory", "UnitState", "load_state", "read_unit", "save_state"]

MAX_PAGES = 1 << 16
MAX_META_BYTES = 4 << 20
MAX_FAULTS = 1 << 12
MAX_HEADER = 1024
_HEADER = re.compile(
    r"\{'descr': '([<>|][a-zA-Z]\d{1,8})', 'fortran_order': False, 'shape': \(((?:\d{1,20}, ?)*\d{0,20})\), \} *\n"
)
_COUNTER = re.compile(r"[a-z][a-z0-9_]{0,47}")
_LOW = (1 << 64) - 1

Words = npt.NDArray[np.uint64]


class StateError(VirtfnError):
    """A file that holds no saved state."""

    exit_status = 2


class TableMemory(Protocol):
    """Memory as the unit reads it."""

    def page(self, address: int) -> Words | None:
        """Return the page at `address`, a multiple of 4096, as (512,) 64-bit words; None if there is no memory."""

    def contains(self, address: int, size: int) -> bool:
        """Tell whether `size` bytes at `address` are memory; what is not known counts as memory."""


class HostPages:
    """The memory of a machine that runs."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory

    def page(self, address: int) -> Words | None:
        """Return the page at `address`; its words are live."""
        if not self._memory.contains(address, PAGE):
            return None
        first = address - self._memory.base
        return self._memory.bytes[first : first + PAGE].view("<u8")

    def contains(self, address: int, size: int) -> bool:
        """Tell whether `size` bytes at `address` are memory of the machine."""
        return self._memory.contains(address, size)


class SavedPages:
    """Pages by address: (512,) words each."""

    def __init__(self, pages: Mapping[int, Words]) -> None:
        self.pages = pages

    def page(self, address: int) -> Words | None:
        """Return the page at `address`, if it was saved."""
        return self.pages.get(address)

    def contains(self, address: int, size: int) -> bool:
        """Pages that are not tables are not saved, so any may have been there."""
        return True


@dataclass(frozen=True, slots=True)
class UnitState:
    """A remapping unit at one moment. caches: of a unit that runs, by card; cached: the same in numbers."""

    memory: TableMemory
    root: int
    enabled: bool
    cap: CAP
    ecap: ECAP
    irta: IRTA = field(default_factory=IRTA)
    remapping: bool = False
    compatible: bool = False
    faults: tuple[Fault, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    cached: Cached | None = None
    caches: tuple[Iommu, ...] = ()

    def word(self, address: int) -> int | None:
        """Read the 64-bit word at an aligned `address`; None if it is not memory."""
        page = self.memory.page(address & -PAGE)
        return None if page is None else int(page[address % PAGE >> 3])

    def pair(self, address: int) -> int | None:
        """Read the 128 bits at an aligned `address`; None if they are not memory."""
        low, high = self.word(address), self.word(address + 8)
        return None if low is None or high is None else low | high << 64

    @property
    def registers(self) -> tuple[int, ...]:
        """What says where the tables are, and whether they count."""
        return self.root, self.enabled, self.irta.value, self.remapping, self.compatible

    @property
    def interrupt_table(self) -> int:
        """Address of the interrupt remapping table."""
        return self.irta.value & IRTA.IRTA.mask

    @property
    def interrupt_entries(self) -> int:
        """Entries that the interrupt remapping table has."""
        return 2 << self.irta.S


def read_unit(host: Host) -> UnitState:
    """Look at the unit of a machine that runs."""
    counters = host.iommu.stats()
    unit = host.iommu.iommu.unit[0]
    register = {decl.name: host.iommu.read(decl.offset, decl.size) for decl in (Regs.CAP, Regs.ECAP, Regs.GSTS)}
    status = GSTS(register["GSTS"])
    irta = IRTA.of(S=max(int(unit["irt_entries"]).bit_length() - 2, 0), EIME=int(unit["wide"]))
    return UnitState(
        memory=HostPages(host.memory),
        root=int(unit["root"]) & _LOW,
        enabled=bool(unit["enabled"]),
        cap=CAP(register["CAP"]),
        ecap=ECAP(register["ECAP"]),
        irta=IRTA(irta.value | int(unit["irta"]) & IRTA.IRTA.mask),
        remapping=bool(status.IRES),
        compatible=bool(status.CFIS),
        faults=tuple(host.iommu.faults()),
        counters=counters,
        cached=count_cached(*host.iommu.rows),
        caches=tuple(host.iommu.rows),
    )


def save_state(path: Path, state: UnitState, pages: Mapping[int, Words]) -> None:
    """Write a saved state. pages: of tables, by address.

    Raises VirtfnError if the file cannot be written.
    """
    meta = {
        "root": state.root,
        "enabled": state.enabled,
        "irta": state.irta.value,
        "remapping": state.remapping,
        "compatible": state.compatible,
        "cap": state.cap.value,
        "ecap": state.ecap.value,
        "faults": [{**fault._asdict(), "reason": int(fault.reason), "kind": int(fault.kind)} for fault in state.faults],
        "counters": dict(state.counters),
        "cached": state.cached,
    }
    order = sorted(pages)
    words = np.array([pages[address] for address in order], np.uint64).reshape(-1, PAGE // 8)
    try:
        with open(path, "wb", opener=private.opener) as file:
            np.savez_compressed(
                file, addresses=np.array(order, np.uint64), words=words, meta=np.array(json.dumps(meta).encode())
            )
    except OSError as error:
        raise VirtfnError(f"{path}: cannot be written ({error.strerror})") from None


def load_state(path: Path) -> UnitState:
    """Read a saved state; nothing in the file is run, and no more is read than a state can hold.

    Raises StateError if it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            addresses = _words(archive, "addresses", 1, 8 * MAX_PAGES)
            words = _words(archive, "words", 2, PAGE * MAX_PAGES)
            text = _text(archive)
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise StateError(f"{path}: is larger than there is memory for") from None
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise StateError(f"{path}: is no saved state ({error}); give a file of --save-iommu") from None
    try:
        if words.shape != (addresses.size, PAGE // 8):
            raise ValueError(f"{addresses.size} addresses need as many pages of {PAGE // 8} words, not {words.shape}")
        if (addresses % np.uint64(PAGE)).any():
            raise ValueError("an address is not that of a page")
        pages = dict(zip(addresses.tolist(), words, strict=True))
        return _state(SavedPages(pages), json.loads(text))
    except (ValueError, RecursionError) as error:
        reason = "meta is nested too deeply" if isinstance(error, RecursionError) else error
        raise StateError(f"{path}: is no saved state ({reason})") from None


def _words(archive: zipfile.ZipFile, name: str, dimensions: int, limit: int) -> Words:
    _, shape, payload = _member(archive, name, "<u8", dimensions, limit)
    return np.frombuffer(payload, "<u8").reshape(shape) if payload else np.zeros(shape, "<u8")


def _text(archive: zipfile.ZipFile) -> str | bytes:
    """Read `meta`. NumPy takes any 32 bits for a character of a text, and fails later; here it must be one."""
    descr, _, payload = _member(archive, "meta", r"\|S\d+|<U\d+", 0, MAX_META_BYTES)
    return payload.decode("utf-32-le").rstrip("\0") if descr.startswith("<U") else payload.rstrip(b"\0")


def _member(
    archive: zipfile.ZipFile, name: str, kind: str, dimensions: int, limit: int
) -> tuple[str, tuple[int, ...], bytes]:
    """Read one array: type, shape, bytes. kind: a pattern of its type. Sizes are checked before memory is made."""
    try:
        found = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"{name} is missing") from None
    if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that NumPy does not use")
    with archive.open(found) as member:
        descr, shape = _header(member, name)
        if not re.fullmatch(kind, descr) or len(shape) != dimensions:
            raise ValueError(f"{name} is an array of {descr} with shape {shape}")
        size = np.dtype(descr).itemsize * math.prod(shape)
        # An array without elements can still be too long in one of its dimensions.
        if max(size, *shape, 0) > limit:
            raise ValueError(f"{name} holds {size} bytes in the shape {shape}, more than {limit}")
        payload = member.read(size)
        if len(payload) != size:
            raise ValueError(f"{name} ends early")
        return descr, shape, payload


def _header(member: IO[bytes], name: str) -> tuple[str, tuple[int, ...]]:
    """Read type and shape of an array. NumPy's own reader evaluates what stands there; this one only looks."""
    version, _ = np.lib.format.read_magic(member)
    length = int.from_bytes(member.read(2 if version == 1 else 4), "little")
    header = _HEADER.fullmatch(member.read(length).decode("latin-1")) if length <= MAX_HEADER else None
    if header is None:
        raise ValueError(f"{name} is no array stored by rows")
    return header[1], tuple(int(n) for n in header[2].split(",") if n.strip())


def _state(memory: SavedPages, meta: object) -> UnitState:
    if not isinstance(meta, dict):
        raise ValueError("meta is no JSON object")
    faults, counters = meta.get("faults", []), meta.get("counters", {})
    if not isinstance(faults, list) or len(faults) > MAX_FAULTS or not isinstance(counters, dict):
        raise ValueError(f"faults is a list of up to {MAX_FAULTS}, counters an object")
    cached = meta.get("cached")
    return UnitState(
        memory=memory,
        root=_number(meta, "root") & RTADDR.RTA.mask,
        enabled=bool(meta.get("enabled", True)),
        cap=CAP(_number(meta, "cap")),
        ecap=ECAP(_number(meta, "ecap")),
        irta=IRTA(_number(meta, "irta", 0)),
        remapping=bool(meta.get("remapping", False)),
        compatible=bool(meta.get("compatible", False)),
        faults=tuple(_fault(fault) for fault in faults),
        counters={name: _number(counters, name) for name in counters if _COUNTER.fullmatch(name)},
        cached=None if cached is None else _cached(cached),
    )


def _fault(fault: object) -> Fault:
    if not isinstance(fault, dict):
        raise ValueError("a fault is an object")
    reason = FaultReason(_number(fault, "reason"))
    kind = Request(_number(fault, "kind", 0))
    rid, iova = Rid(_number(fault, "rid") & 0xFFFF), Iova(_number(fault, "iova"))
    return Fault(rid, iova, reason, bool(fault.get("write")), kind)


def _cached(cached: object) -> Cached:
    if not isinstance(cached, dict) or not isinstance(cached.get("in_use"), list) or len(cached["in_use"]) > MAX_PAGES:
        raise ValueError("cached says nothing about the caches")
    names = ("domain", "page_bytes", "entries")
    if not all(isinstance(use, dict) for use in cached["in_use"]):
        raise ValueError("cached says nothing about the caches")
    return {
        "entries": _number(cached, "entries"),
        "in_use": [{name: _number(use, name) for name in names} for use in cached["in_use"]],  # type: ignore[misc]
        "contexts": _number(cached, "contexts"),
        "interrupts": _number(cached, "interrupts"),
    }


def _number(meta: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = meta.get(name, default)
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _LOW:
        raise ValueError(f"{name} is no number of 64 bits")
    return number
