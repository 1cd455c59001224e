"""Interrupt remapping: from the message that a requester sent to the vector it may raise, and where.

    (rid, address, message) -> format? -> handle -> interrupt entry cache -> IRTE -> source? -> remapped or posted
                                                        miss: read the table

A cached entry serves until it is invalidated, whatever the table says by then.

Spec: VT-d, interrupt remapping; interrupt posting.
"""

from __future__ import annotations

from virtfn.hw.vtd.interrupts import (
    IRTE_BYTES,
    IRTE_DST_LSB,
    IRTE_FPD,
    IRTE_IM,
    IRTE_P,
    IRTE_SQ_LSB,
    IRTE_SVT_LSB,
    IRTE_URG,
    IRTE_V_LSB,
    MSI_BASE,
    MSI_BASE_LSB,
    MSI_FORMAT,
    MSI_HANDLE_HIGH_LSB,
    MSI_HANDLE_LSB,
    MSI_SHV,
    PDA_LOW_MASK,
    PDA_LOW_SHIFT,
    PID_BYTES,
    PID_CONTROL,
    PID_NDST_LSB,
    PID_NV_LSB,
    PID_ON,
    PID_SN,
    POSTED_RESERVED_HIGH,
    POSTED_RESERVED_LOW,
    REMAPPED_RESERVED_HIGH,
    REMAPPED_RESERVED_LOW,
    SourceValidation,
)
from virtfn.hw.vtd.tables import FaultReason
from virtfn.kernels._jit import Row, apart, grant, kernel, load64, part, store64
from virtfn.kernels.vtd.iommu import INTERRUPT_SLOTS, IOMMU, record_fault

__all__ = ["BLOCKED", "DELIVERED", "POSTED", "invalidate_interrupts", "remap_interrupt"]

BLOCKED, DELIVERED, POSTED = 0, 1, 2

REQUEST_RESERVED = int(FaultReason.INTERRUPT_REQUEST_RESERVED)
INDEX_BEYOND_TABLE = int(FaultReason.INTERRUPT_INDEX_BEYOND_TABLE)
ENTRY_NOT_PRESENT = int(FaultReason.INTERRUPT_ENTRY_NOT_PRESENT)
ENTRY_ACCESS = int(FaultReason.INTERRUPT_ENTRY_ACCESS)
ENTRY_RESERVED = int(FaultReason.INTERRUPT_ENTRY_RESERVED)
COMPATIBILITY_BLOCKED = int(FaultReason.COMPATIBILITY_FORMAT_BLOCKED)
SOURCE = int(FaultReason.INTERRUPT_SOURCE)
DESCRIPTOR_ACCESS = int(FaultReason.INTERRUPT_DESCRIPTOR_ACCESS)
BY_REQUESTER = int(SourceValidation.REQUESTER)
BY_BUS_RANGE = int(SourceValidation.BUS_RANGE)


@apart(IOMMU, int, int, int, gives=3)
def remap_interrupt(iommu: Row, rid: int, address: int, message: int) -> tuple[int, int, int]:
    """Find what `message`, written to `address` by requester `rid`, may raise.

    Returns (outcome, vector, destination). DELIVERED: raise this vector there. POSTED: it is noted in its descriptor,
    and no notification is due. BLOCKED: nothing; a fault is recorded unless the entry says otherwise.
    """
    unit = iommu.unit[0]
    unit.interrupts += 1
    if address >> MSI_BASE_LSB != MSI_BASE:
        return _block(iommu, rid, 0, REQUEST_RESERVED, 0)
    if not unit.remapping or not address & MSI_FORMAT:
        if unit.remapping and (not unit.compatible or unit.wide):
            return _block(iommu, rid, 0, COMPATIBILITY_BLOCKED, 0)
        unit.delivered += 1
        return DELIVERED, message & 0xFF, address >> 12 & 0xFF
    index = address >> MSI_HANDLE_LSB & 0x7FFF | (address >> MSI_HANDLE_HIGH_LSB & 1) << 15
    if address & MSI_SHV:
        if message >> 16:
            return _block(iommu, rid, index, REQUEST_RESERVED, 0)
        index += message & 0xFFFF
    if index >= unit.irt_entries:
        return _block(iommu, rid, index, INDEX_BEYOND_TABLE, 0)
    cached = iommu.interrupts[index % INTERRUPT_SLOTS]
    if cached.index == index + 1:
        unit.interrupt_hits += 1
    else:
        unit.interrupt_walks += 1
        reason, fpd = _read_entry(iommu, rid, index, cached)
        if reason:
            return _block(iommu, rid, index, reason, fpd)
    low = cached.low
    high = cached.high
    fpd = 1 if low & IRTE_FPD else 0
    if not _source_allowed(rid, high):
        return _block(iommu, rid, index, SOURCE, fpd)
    if low & IRTE_IM:
        return _post(iommu, rid, index, low, high)
    destination = low >> IRTE_DST_LSB & 0xFFFFFFFF
    unit.delivered += 1
    return DELIVERED, low >> IRTE_V_LSB & 0xFF, destination if unit.wide else destination >> 8 & 0xFF


@part
def _read_entry(iommu: Row, rid: int, index: int, cached: Row) -> tuple[int, int]:
    """Read an entry of the table into the cache; returns (why not, 0 if it was; whether no fault is to be recorded)."""
    unit = iommu.unit[0]
    at = unit.irta + index * IRTE_BYTES
    if at < unit.mem_base or at > unit.mem_end - IRTE_BYTES:
        return ENTRY_ACCESS, 0
    grant(at, IRTE_BYTES, 0, rid)
    low = load64(at)
    high = load64(at + 8)
    fpd = 1 if low & IRTE_FPD else 0
    if not low & IRTE_P:
        return ENTRY_NOT_PRESENT, fpd
    if low & IRTE_IM:
        reserved = low & POSTED_RESERVED_LOW or high & POSTED_RESERVED_HIGH
    else:
        reserved = low & REMAPPED_RESERVED_LOW or high & REMAPPED_RESERVED_HIGH
    if reserved or high >> IRTE_SVT_LSB & 3 == 3:
        return ENTRY_RESERVED, fpd
    cached.index = index + 1
    cached.low = low
    cached.high = high
    return 0, fpd


@kernel
def _block(iommu: Row, rid: int, index: int, reason: int, fpd: int) -> tuple[int, int, int]:
    iommu.unit[0].blocked += 1
    record_fault(iommu, rid, (index & 0xFFFF) << 48, reason, 0, fpd, 0)
    return BLOCKED, 0, 0


@kernel
def _source_allowed(rid: int, high: int) -> bool:
    """Check who sent a message against the high half of its entry."""
    how = high >> IRTE_SVT_LSB & 3
    sid = high & 0xFFFF
    if how == BY_REQUESTER:
        qualifier = high >> IRTE_SQ_LSB & 3
        ignored = 0 if qualifier == 0 else 8 - (1 << (3 - qualifier))
        return (rid ^ sid) & 0xFFFF & ~ignored == 0
    if how == BY_BUS_RANGE:
        return sid >> 8 <= rid >> 8 & 0xFF <= sid & 0xFF
    return True


@kernel
def _post(iommu: Row, rid: int, index: int, low: int, high: int) -> tuple[int, int, int]:
    """Set the vector's bit in the posted interrupt descriptor, and see whether a notification is due."""
    unit = iommu.unit[0]
    at = (low >> PDA_LOW_SHIFT & PDA_LOW_MASK) | (high >> 32) << 32
    if at < unit.mem_base or at > unit.mem_end - PID_BYTES:
        return _block(iommu, rid, index, DESCRIPTOR_ACCESS, 1 if low & IRTE_FPD else 0)
    grant(at, PID_BYTES, 1, rid)
    vector = low >> IRTE_V_LSB & 0xFF
    word = at + (vector >> 6) * 8
    store64(word, load64(word) | 1 << (vector & 63))
    control = load64(at + PID_CONTROL)
    if control & PID_ON or (control & PID_SN and not low & IRTE_URG):
        unit.posted += 1
        return POSTED, 0, 0
    store64(at + PID_CONTROL, control | PID_ON)
    unit.delivered += 1
    destination = control >> PID_NDST_LSB & 0xFFFFFFFF
    return DELIVERED, control >> PID_NV_LSB & 0xFF, destination if unit.wide else destination >> 8 & 0xFF


@kernel
def invalidate_interrupts(iommu: Row, index: int, mask: int) -> None:
    """Forget the 2**mask entries at `index`, rounded down to a multiple of that; with a mask of 16 all."""
    for i in range(INTERRUPT_SLOTS):
        cached = iommu.interrupts[i]
        if cached.index - 1 >> mask == index >> mask:
            cached.index = 0
