"""State of a remapping unit, as one row: what the registers said, its caches, and what it has to tell.

    unit        settings and counters
    contexts    context cache, by requester ID        cached: which of them are
    iotlb       translations                          messages, message_pages: interrupts that DMA wrote
    interrupts  interrupt entry cache                 faults: requests that were refused

Kernels see the row by its address, `iommu_at`; Python sees the views of `Iommu`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virtfn.hw.vtd.tables import FaultReason
from virtfn.kernels._jit import Row, apart, kernel, row_at, row_of
from virtfn.kernels.ranges import machine_memory_of, row_address

__all__ = [
    "FAULT_SLOTS",
    "INTERRUPT_SLOTS",
    "IOMMU",
    "IOTLB_MAX",
    "MESSAGE_SLOTS",
    "Iommu",
    "iommu_at",
    "new_iommu",
    "record_fault",
    "record_message",
]


UNIT = row_of(
    # from the registers: root table, remapping on; what the unit supports; the machine's memory
    "root enabled widths large kinds mem_base mem_end iotlb_mask message_base "
    # from the registers: interrupt remapping on, its table, compatibility format allowed, wide destinations
    "remapping irta irt_entries compatible wide "
    # requests: every one is counted in exactly one of these
    "iotlb_hits iotlb_misses bypassed rejected translated "
    # of the hits and misses: asked for a translation, not for memory
    "translation_requests "
    # what became of the misses; aborted: no fault of the tables, but nothing to reach there
    "context_walks page_walks faults suppressed aborted "
    # interrupt messages: every one is counted in exactly one of delivered, posted, blocked
    "interrupts interrupt_hits interrupt_walks delivered posted blocked "
    # rings of faults and of messages written by DMA, and the number of rows in `cached`
    "fault_head fault_tail faults_lost message_head message_tail messages_lost cached"
)
# key: 0, or what IOTLB entries of the page size last seen have; limit: 0 if nothing is cached; ats: requests for
# translations and translated requests are allowed; device_tlb: address of the requester's own, where its requests begin
# (`ats.py`), then key is 0
CONTEXT = row_of("key domain bypass table level limit fpd ats device_tlb")
IOTLB = row_of("page key rights hpa")
FAULT = row_of("rid iova reason write kind")
MESSAGE = row_of("rid address")
INTERRUPT = row_of("index low high spare")  # index: of the table entry plus one

FAULT_SLOTS = 64
MESSAGE_SLOTS = 64
INTERRUPT_SLOTS = 256
IOTLB_MAX = 1 << 14
IOMMU = np.dtype(
    [
        ("unit", UNIT, (1,)),
        ("contexts", CONTEXT, (1 << 16,)),
        ("cached", np.int64, (1 << 16,)),
        ("walks", np.int64, (1 << 16,)),  # page walks, by requester ID
        ("faults", FAULT, (FAULT_SLOTS,)),
        ("messages", MESSAGE, (MESSAGE_SLOTS,)),
        ("message_pages", np.int64, (MESSAGE_SLOTS + 1, 512)),
        ("interrupts", INTERRUPT, (INTERRUPT_SLOTS,)),
        ("iotlb", IOTLB, (IOTLB_MAX,)),
    ]
)
iommu_at = row_at(IOMMU)

ROOT_NOT_PRESENT = int(FaultReason.ROOT_NOT_PRESENT)
ROOT_TABLE_ACCESS = int(FaultReason.ROOT_TABLE_ACCESS)
CONTEXT_TABLE_ACCESS = int(FaultReason.CONTEXT_TABLE_ACCESS)
ROOT_RESERVED = int(FaultReason.ROOT_RESERVED)


class Iommu(NamedTuple):
    """State of a remapping unit for Python: views of one IOMMU row. Kernels take the row itself, by `iommu_at`."""

    block: npt.NDArray[np.void]  # (1,) IOMMU, what the rest looks into
    unit: npt.NDArray[np.void]  # (1,) UNIT
    contexts: npt.NDArray[np.void]  # (65536,) CONTEXT, by requester ID
    cached: npt.NDArray[np.int64]  # (65536,) requester IDs with a cached context, unit.cached of them
    iotlb: npt.NDArray[np.void]  # (power of two,) IOTLB
    faults: npt.NDArray[np.void]  # (FAULT_SLOTS,) FAULT
    messages: npt.NDArray[np.void]  # (MESSAGE_SLOTS,) MESSAGE
    message_pages: npt.NDArray[np.uint8]  # (MESSAGE_SLOTS + 1, 4096) what was written, by slot and offset in a page

    @property
    def address(self) -> int:
        """Where the row is, for `iommu_at`."""
        return int(self.block.ctypes.data)

    @property
    def row(self) -> Row:
        """The row, for kernels that Python calls."""
        return self.block[0]


def new_iommu(
    mem_base: int,
    mem_bytes: int,
    iotlb_entries: int = 1024,
    widths: int = 0b0110,
    large: int = 3,
    kinds: int = 0b111,
) -> Iommu:
    """Make a unit that passes addresses unchanged until it is enabled. Parts that are not used cost no memory.

    mem_base, mem_bytes: the machine's memory. iotlb_entries: a power of two. widths: bitmap of supported AW values.
    large: bitmap of page sizes, bit 0 2 MiB, bit 1 1 GiB. kinds: bitmap of supported T values.

    Raises ValueError for a size that is not a power of two up to 16384.
    """
    if not 1 <= iotlb_entries <= IOTLB_MAX or iotlb_entries & (iotlb_entries - 1):
        raise ValueError(f"an IOTLB has a power of two of entries up to {IOTLB_MAX}, not {iotlb_entries}")
    block = np.zeros(1, IOMMU)
    row_address(block, "the state of an IOMMU")
    row = block[0]
    unit = row["unit"]
    unit["mem_base"] = mem_base
    unit["mem_end"] = mem_base + mem_bytes
    unit["iotlb_mask"] = iotlb_entries - 1
    unit["widths"] = widths
    unit["large"] = large
    unit["kinds"] = kinds
    pages = row["message_pages"].view(np.uint8)
    unit["message_base"] = machine_memory_of(pages, "pages for messages")
    return Iommu(
        block,
        unit,
        row["contexts"],
        row["cached"],
        row["iotlb"][:iotlb_entries],
        row["faults"],
        row["messages"],
        pages,
    )


@kernel
def slot_to_take(rows: npt.NDArray[np.void], head: int, slots: int, rid: int) -> int:
    """Find the slot that requester `rid` may take in a full ring that begins at `head`: the latest of whoever has most.

    -1 if it has its share, an eighth, itself, or nobody has more.
    """
    share = slots >> 3
    mine = 0
    for i in range(slots):
        mine += rows[i].rid == rid
    if mine >= share:
        return -1
    most = share
    taken = -1
    last = -1
    for i in range(head + slots - 1, head - 1, -1):
        other = rows[i % slots].rid
        if other == last:
            continue
        last = other
        held = 0
        for k in range(slots):
            held += rows[k].rid == other
        if held > most:
            most = held
            taken = i
    return taken


@apart(IOMMU, int, int, int, int, int, int, gives=0)
def record_fault(iommu: Row, rid: int, iova: int, reason: int, write: int, fpd: int, kind: int) -> None:
    """Count a fault, and put it into the ring unless FPD suppresses its reason. kind: of request, as AT has it.

    In a full ring, a requester that has few slots takes one from a requester that has many.
    """
    unit = iommu.unit[0]
    unit.faults += 1
    qualified = not (
        reason == ROOT_NOT_PRESENT
        or reason == ROOT_TABLE_ACCESS
        or reason == CONTEXT_TABLE_ACCESS
        or reason == ROOT_RESERVED
    )
    if fpd and qualified:
        unit.suppressed += 1
        return
    slot = unit.fault_tail
    if slot - unit.fault_head >= FAULT_SLOTS:
        unit.faults_lost += 1
        slot = slot_to_take(iommu.faults, unit.fault_head, FAULT_SLOTS, rid)
        if slot < 0:
            return
    else:
        unit.fault_tail += 1
    fault = iommu.faults[slot % FAULT_SLOTS]
    fault.rid = rid
    fault.iova = iova
    fault.reason = reason
    fault.write = write
    fault.kind = kind


@apart(IOMMU, int, int, int, gives=2)
def record_message(iommu: Row, rid: int, address: int, nbytes: int) -> tuple[int, int]:
    """Take a write to the interrupt range as the message that it is; return (where its bytes go, how many do).

    Whoever serves the unit sends it when the bytes are there: in a page for each message, and one for what is lost. A
    message is an aligned word: less than that is aborted.
    """
    unit = iommu.unit[0]
    if address & 3 or nbytes < 4:
        unit.aborted += 1
        return 0, 0
    last = iommu.messages[(unit.message_tail - 1) % MESSAGE_SLOTS]
    repeated = unit.message_tail > unit.message_head and last.rid == rid and last.address == address
    slot = MESSAGE_SLOTS
    if unit.message_tail - unit.message_head >= MESSAGE_SLOTS:
        unit.messages_lost += 1
        taken = slot_to_take(iommu.messages, unit.message_head, MESSAGE_SLOTS, rid)
        if taken >= 0:
            slot = taken % MESSAGE_SLOTS
            iommu.messages[slot].rid = rid
            iommu.messages[slot].address = address
    else:
        if not repeated:
            message = iommu.messages[unit.message_tail % MESSAGE_SLOTS]
            message.rid = rid
            message.address = address
            unit.message_tail += 1
        slot = (unit.message_tail - 1) % MESSAGE_SLOTS
    offset = address & 4095
    return unit.message_base + slot * 4096 + offset, min(nbytes, 4096 - offset)
