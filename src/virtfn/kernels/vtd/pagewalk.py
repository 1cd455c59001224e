"""Walk the remapping tables in memory: requester to context, address to page.

    walk_context: RTADDR -> root entry -> context entry      once a requester, then cached
    walk_iova:    top table -> ... -> leaf                    once a page, then in the IOTLB

Nothing here is cached and nothing is recorded: `dma.py` does both. Tables are the words of whoever can write them, so
every address is checked against the machine's memory before it is read, and each word is read once.
"""

from __future__ import annotations

from virtfn.hw.vtd.tables import (
    CTX_AW_LSB,
    CTX_AW_MASK,
    CTX_FPD,
    CTX_P,
    CTX_RESERVED_HIGH,
    CTX_RESERVED_LOW,
    CTX_T_LSB,
    CTX_T_MASK,
    PAGE_MASK,
    ROOT_P,
    ROOT_RESERVED_LOW,
    SS_ADDR,
    SS_PS,
    SS_RESERVED,
    SS_RESERVED_LEAF,
    SS_RW,
    FaultReason,
)
from virtfn.kernels._jit import grant, kernel, load64

__all__ = ["ANY_RIGHT", "walk_context", "walk_iova"]

ROOT_NOT_PRESENT = int(FaultReason.ROOT_NOT_PRESENT)
CONTEXT_NOT_PRESENT = int(FaultReason.CONTEXT_NOT_PRESENT)
CONTEXT_INVALID = int(FaultReason.CONTEXT_INVALID)
WRITE_NOT_ALLOWED = int(FaultReason.WRITE_NOT_ALLOWED)
READ_NOT_ALLOWED = int(FaultReason.READ_NOT_ALLOWED)
PAGING_ENTRY_ACCESS = int(FaultReason.PAGING_ENTRY_ACCESS)
ROOT_TABLE_ACCESS = int(FaultReason.ROOT_TABLE_ACCESS)
CONTEXT_TABLE_ACCESS = int(FaultReason.CONTEXT_TABLE_ACCESS)
ROOT_RESERVED = int(FaultReason.ROOT_RESERVED)
CONTEXT_RESERVED = int(FaultReason.CONTEXT_RESERVED)
PAGING_ENTRY_RESERVED = int(FaultReason.PAGING_ENTRY_RESERVED)
ANY_RIGHT = 2
"""What to ask for when a page with any right will do."""


@kernel
def walk_context(
    root: int, rid: int, mem_base: int, mem_end: int, widths: int, displacement: int, kinds: int = 0b111
) -> tuple[int, int, int, int]:
    """Find the context entry of requester `rid` in the root table at `root`.

    mem_base, mem_end: memory that may be read. widths: bitmap of the AW values that are supported. displacement: what
    to add to a physical address to have it in this process. kinds: bitmap of the T values that are supported.
    Returns (reason, fpd, low word, high word); reason 0 if the entry can be used.
    """
    at = root + (rid >> 8 & 0xFF) * 16
    if at < mem_base or at > mem_end - 16:
        return ROOT_TABLE_ACCESS, 0, 0, 0
    grant(at + displacement, 16, 0, rid)
    low = load64(at + displacement)
    high = load64(at + 8 + displacement)
    if not low & ROOT_P:
        return ROOT_NOT_PRESENT, 0, 0, 0
    if low & ROOT_RESERVED_LOW or high:
        return ROOT_RESERVED, 0, 0, 0
    at = (low & PAGE_MASK) + (rid & 0xFF) * 16
    if at < mem_base or at > mem_end - 16:
        return CONTEXT_TABLE_ACCESS, 0, 0, 0
    grant(at + displacement, 16, 0, rid)
    low = load64(at + displacement)
    high = load64(at + 8 + displacement)
    fpd = 1 if low & CTX_FPD else 0
    if not low & CTX_P:
        return CONTEXT_NOT_PRESENT, fpd, 0, 0
    if low & CTX_RESERVED_LOW or high & CTX_RESERVED_HIGH:
        return CONTEXT_RESERVED, fpd, 0, 0
    if not kinds >> (low >> CTX_T_LSB & CTX_T_MASK) & 1 or not widths >> (high >> CTX_AW_LSB & CTX_AW_MASK) & 1:
        return CONTEXT_INVALID, fpd, 0, 0
    return 0, fpd, low, high


@kernel
def walk_iova(
    table: int, level: int, iova: int, write: int, mem_base: int, mem_end: int, large: int, displacement: int
) -> tuple[int, int, int, int]:
    """Walk from the top table at `level` to the page of `iova`, which is within the width of the tables.

    write: 1 asks for W, 0 for R, ANY_RIGHT for either. large: bitmap of page sizes with PS, bit 0 2 MiB, bit 1 1 GiB.
    The rest is as above.
    Returns (reason, host address of the page, its log2 size, rights as SS_R | SS_W); reason 0 if allowed.
    """
    need = write + 1
    rights = SS_RW
    while True:
        shift = 12 + 9 * (level - 1)
        at = table + (iova >> shift & 0x1FF) * 8
        if at < mem_base or at > mem_end - 8:
            return PAGING_ENTRY_ACCESS, 0, 0, 0
        grant(at + displacement, 8, 0, 0)
        entry = load64(at + displacement)
        rights &= entry
        if not rights & need:
            return (WRITE_NOT_ALLOWED if write else READ_NOT_ALLOWED), 0, 0, 0
        if level == 1 or entry & SS_PS:
            low_bits = (1 << shift) - 1 & SS_ADDR
            if entry & (SS_RESERVED_LEAF | low_bits) or (level > 1 and not large >> (level - 2) & 1):
                return PAGING_ENTRY_RESERVED, 0, 0, 0
            return 0, entry & SS_ADDR, shift, rights
        if entry & SS_RESERVED:
            return PAGING_ENTRY_RESERVED, 0, 0, 0
        table = entry & SS_ADDR
        level -= 1
