"""Interrupt remapping once more, slowly, from the declarations: what the kernel must agree with."""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.hw.vtd.interrupts import (
    PostedControl,
    PostedIrte,
    RemappableAddress,
    RemappedIrte,
    SourceValidation,
)
from virtfn.hw.vtd.tables import FaultReason
from virtfn.machine.memory import HostMemory


@dataclass(frozen=True)
class Unit:
    """What the registers say. table: None while remapping is off."""

    table: int | None
    entries: int = 0
    compatible: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Raised:
    vector: int
    destination: int


@dataclass(frozen=True)
class Noted:
    """Posted, without a notification."""


@dataclass(frozen=True)
class Blocked:
    reason: FaultReason
    index: int = 0
    recorded: bool = True


def remap(memory: HostMemory, unit: Unit, rid: int, address: int, message: int) -> Raised | Noted | Blocked:
    """Do what the unit does with a message; a posted one changes its descriptor in `memory`."""
    if address >> 20 != 0xFEE:
        return Blocked(FaultReason.INTERRUPT_REQUEST_RESERVED)
    where = RemappableAddress(address)
    if unit.table is None or not where.FORMAT:
        if unit.table is not None and (unit.wide or not unit.compatible):
            return Blocked(FaultReason.COMPATIBILITY_FORMAT_BLOCKED)
        return Raised(message % 256, address // 4096 % 256)
    index = where.HANDLE + 0x8000 * where.HANDLE_HIGH
    if where.SHV:
        if message > 0xFFFF:
            return Blocked(FaultReason.INTERRUPT_REQUEST_RESERVED, index)
        index += message
    if index >= unit.entries:
        return Blocked(FaultReason.INTERRUPT_INDEX_BEYOND_TABLE, index & 0xFFFF)
    at = unit.table + 16 * index
    if not memory.contains(at, 16):
        return Blocked(FaultReason.INTERRUPT_ENTRY_ACCESS, index)
    offset = at - memory.base
    bits = int.from_bytes(memory.bytes[offset : offset + 16].tobytes(), "little")
    entry, posted = RemappedIrte(bits), PostedIrte(bits)
    loud = not entry.FPD
    if not entry.P:
        return Blocked(FaultReason.INTERRUPT_ENTRY_NOT_PRESENT, index, loud)
    known = sum(f.mask for f in (PostedIrte if entry.IM else RemappedIrte).FIELDS)
    if bits & ~known or entry.SVT == 3:
        return Blocked(FaultReason.INTERRUPT_ENTRY_RESERVED, index, loud)
    same = [b for b in range(16) if b not in ((), (2,), (1, 2), (0, 1, 2))[entry.SQ]]
    allowed = {
        SourceValidation.NONE: True,
        SourceValidation.REQUESTER: all(rid >> b & 1 == entry.SID >> b & 1 for b in same),
        SourceValidation.BUS_RANGE: rid // 256 in range(entry.SID // 256, entry.SID % 256 + 1),
    }[SourceValidation(entry.SVT)]
    if not allowed:
        return Blocked(FaultReason.INTERRUPT_SOURCE, index, loud)
    if not entry.IM:
        return Raised(entry.V, entry.DST if unit.wide else entry.DST >> 8 & 0xFF)
    descriptor = posted.PDA_HIGH << 32 | posted.PDA_LOW << 6
    if not memory.contains(descriptor, 64):
        return Blocked(FaultReason.INTERRUPT_DESCRIPTOR_ACCESS, index, loud)
    at = descriptor - memory.base
    memory.bytes[at + posted.VV // 8] |= 1 << posted.VV % 8
    control = PostedControl(int.from_bytes(memory.bytes[at + 32 : at + 40].tobytes(), "little"))
    if control.ON or (control.SN and not posted.URG):
        return Noted()
    memory.bytes[at + 32] |= 1
    return Raised(control.NV, control.NDST if unit.wide else control.NDST >> 8 & 0xFF)
