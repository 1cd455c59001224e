"""The slow, obvious twin of the remapping kernels: no cache, one request at a time, entries by their declarations."""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.hw.vtd.tables import ContextEntry, FaultReason, RootEntry, SecondStageEntry, Translation
from virtfn.machine.memory import HostMemory

WIDTH = 48
QUALIFIED = set(FaultReason) - {
    FaultReason.ROOT_NOT_PRESENT,
    FaultReason.ROOT_TABLE_ACCESS,
    FaultReason.CONTEXT_TABLE_ACCESS,
    FaultReason.ROOT_RESERVED,
}


@dataclass(frozen=True)
class Page:
    """A page that a request may use."""

    hpa: int
    size: int


@dataclass(frozen=True)
class Refusal:
    """A request that the tables refuse."""

    reason: FaultReason
    fpd: bool = False

    @property
    def recorded(self) -> bool:
        return not (self.fpd and self.reason in QUALIFIED)


@dataclass(frozen=True)
class Message:
    """A write to the interrupt range."""

    size: int


class Nothing:
    """A request that the tables allow, or do not decide, and that reaches nothing."""


def word(memory: HostMemory, address: int, size: int) -> int | None:
    """Read a table entry; None if it is not memory."""
    if not memory.contains(address, size):
        return None
    at = address - memory.base
    return int.from_bytes(memory.bytes[at : at + size].tobytes(), "little")


def walk(
    memory: HostMemory, root: int, rid: int, iova: int, write: bool, aws: set[int], large: set[int]
) -> Page | Refusal | None:
    """Decide a request; None if the context passes it through unchanged."""
    value = word(memory, root + (rid >> 8) * 16, 16)
    if value is None:
        return Refusal(FaultReason.ROOT_TABLE_ACCESS)
    if not RootEntry(value).P:
        return Refusal(FaultReason.ROOT_NOT_PRESENT)
    if value & ~(RootEntry.P.mask | RootEntry.CTP.mask):
        return Refusal(FaultReason.ROOT_RESERVED)
    value = word(memory, (RootEntry(value).CTP << 12) + (rid & 255) * 16, 16)
    if value is None:
        return Refusal(FaultReason.CONTEXT_TABLE_ACCESS)
    context = ContextEntry(value)
    fpd = bool(context.FPD)
    if not context.P:
        return Refusal(FaultReason.CONTEXT_NOT_PRESENT, fpd)
    if any(value >> bit & 1 for bit in [*range(4, 12), 71, *range(88, 128)]):
        return Refusal(FaultReason.CONTEXT_RESERVED, fpd)
    if context.T not in set(Translation) or context.AW not in aws:
        return Refusal(FaultReason.CONTEXT_INVALID, fpd)
    if context.T == Translation.PASS_THROUGH:
        return None if iova < 1 << WIDTH else Refusal(FaultReason.ADDRESS_BEYOND_WIDTH, fpd)
    if iova >= 1 << 30 + 9 * context.AW:
        return Refusal(FaultReason.ADDRESS_BEYOND_WIDTH, fpd)
    found = walk_page(memory, context.SSPTPTR << 12, context.AW + 2, iova, write, large)
    if isinstance(found, Page):
        if 0xFEE00000 <= found.hpa + iova % found.size <= 0xFEEFFFFF:
            return Refusal(FaultReason.INTERRUPT_RANGE_OUTPUT, fpd)
        return found
    return Refusal(found, fpd)


def walk_page(
    memory: HostMemory, table: int, level: int, iova: int, write: bool, large: set[int]
) -> Page | FaultReason:
    """Walk one table and those below it. large: levels where a leaf may be a large page."""
    size = 4096 * 512 ** (level - 1)
    value = word(memory, table + iova // size % 512 * 8, 8)
    if value is None:
        return FaultReason.PAGING_ENTRY_ACCESS
    entry = SecondStageEntry(value)
    if write and not entry.W:
        return FaultReason.WRITE_NOT_ALLOWED
    if not write and not entry.R:
        return FaultReason.READ_NOT_ALLOWED
    address = entry.ADDR << 12
    if entry.HIGH:
        return FaultReason.PAGING_ENTRY_RESERVED
    if level == 1 or entry.PS:
        if (level > 1 and level not in large) or address % size or entry.SNP or entry.TM:
            return FaultReason.PAGING_ENTRY_RESERVED
        return Page(address, size)
    return walk_page(memory, address, level - 1, iova, write, large)


def request(
    memory: HostMemory, root: int | None, rid: int, iova: int, nbytes: int, write: bool
) -> tuple[int, int] | Refusal | Nothing | Message:
    """Translate as the unit does: (host address, most bytes that may be contiguous there), or what became of it.

    root: None when remapping is off. iova: as an unsigned 64-bit number.
    """
    if 0xFEE00000 <= iova <= 0xFEEFFFFF:
        size = min(nbytes, 0xFEF00000 - iova, 4096 - iova % 4096)
        return Message(size) if write and iova % 4 == 0 and size >= 4 else Nothing()
    found = walk(memory, root, rid, iova, write, {1, 2}, {2, 3}) if root is not None else None
    if isinstance(found, Refusal):
        return found
    hpa, run = (iova, nbytes) if found is None else (found.hpa + iova % found.size, found.size - iova % found.size)
    if not memory.contains(hpa):
        return Nothing()
    return hpa, min(nbytes, run, memory.base + memory.size - hpa)
