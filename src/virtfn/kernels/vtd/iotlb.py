"""The unit's caches in compiled code: contexts by requester, and translations, the IOTLB.

    find_context   cached, or walked and cached         find_page   in the IOTLB in any size, or walked and cached
    invalidate_*   what ends an entry: nothing else does, so what is stale is used until then

Who asks is another's matter: requests for memory (`dma.py`), and requests for translations (`ats.py`).
"""

from __future__ import annotations

from virtfn.hw.vtd.tables import (
    ADDRESS_WIDTH,
    CTX_AW_LSB,
    CTX_AW_MASK,
    CTX_DID_LSB,
    CTX_DID_MASK,
    CTX_T_LSB,
    CTX_T_MASK,
    INTERRUPT_RANGE,
    INTERRUPT_RANGE_END,
    PAGE_MASK,
    FaultReason,
    Translation,
)
from virtfn.kernels._jit import Row, kernel
from virtfn.kernels.vtd.pagewalk import walk_context, walk_iova

__all__ = [
    "DOMAIN_STRIDE",
    "IDENTITY",
    "SIZE_STRIDE",
    "cache_context",
    "clip_to_memory",
    "find_context",
    "find_page",
    "invalidate_contexts",
    "invalidate_iotlb",
    "invalidate_iotlb_pages",
    "remember_key",
]

IDENTITY = 63  # a key whose page size no IOTLB entry has: addresses pass unchanged
DOMAIN_STRIDE = 131  # spreads domains that use the same addresses,
SIZE_STRIDE = 37  # and pages of different sizes with the same number
ADDRESS_BEYOND_WIDTH = int(FaultReason.ADDRESS_BEYOND_WIDTH)
INTERRUPT_RANGE_OUTPUT = int(FaultReason.INTERRUPT_RANGE_OUTPUT)
DEVICE_TLB = int(Translation.DEVICE_TLB)
PASS_THROUGH = int(Translation.PASS_THROUGH)


@kernel
def find_context(iommu: Row, rid: int, iova: int) -> int:
    """Have the context of requester `rid` in the cache, and `iova` in its width; return why not, or 0.

    Walks the tables if it is not cached; a refused one is not, but its FPD is noted.
    """
    unit = iommu.unit[0]
    context = iommu.contexts[rid]
    if context.limit == 0:
        unit.context_walks += 1
        reason, fpd, low, high = walk_context(unit.root, rid, unit.mem_base, unit.mem_end, unit.widths, 0, unit.kinds)
        context.fpd = fpd
        if reason:
            return reason
        kind = low >> CTX_T_LSB & CTX_T_MASK
        context.table = low & PAGE_MASK
        context.level = (high >> CTX_AW_LSB & CTX_AW_MASK) + 2
        context.ats = int(kind == DEVICE_TLB)
        bypass = int(kind == PASS_THROUGH)
        context.limit = ADDRESS_WIDTH if bypass else min(9 * context.level + 12, ADDRESS_WIDTH)
        cache_context(iommu, rid, bypass, high >> CTX_DID_LSB & CTX_DID_MASK)
    return ADDRESS_BEYOND_WIDTH if iova >> context.limit else 0


@kernel
def cache_context(iommu: Row, rid: int, bypass: int, domain: int) -> None:
    """Mark a requester's context as cached."""
    unit = iommu.unit[0]
    context = iommu.contexts[rid]
    context.bypass = bypass
    context.domain = domain
    remember_key(context, IDENTITY if bypass else domain << 6 | 12)
    iommu.cached[unit.cached] = rid
    unit.cached += 1


@kernel
def remember_key(context: Row, key: int) -> None:
    """Let the next request try `key` first, unless the requester begins with its own device TLB."""
    context.key = 0 if context.device_tlb else key


@kernel
def find_page(iommu: Row, rid: int, iova: int, write: int, wanted: int) -> tuple[int, int, int, int]:
    """Translate `iova`, which a cached context decides, by an IOTLB entry with the right to `write`, or by a walk.

    write: 1 or 0. wanted: of a walk, as `walk_iova` has it: the same, or ANY_RIGHT.

    Returns (reason, host address, bytes from there to the end of the page, rights); 0 bytes if the page cannot be used
    unchecked: it is not all memory.
    """
    unit = iommu.unit[0]
    context = iommu.contexts[rid]
    need = write + 1
    for shift in range(12, 31, 9):
        entry = iommu.iotlb[iotlb_slot(iommu, context.domain, iova, shift)]
        key = context.domain << 6 | shift
        if entry.page == iova >> shift and entry.key == key and entry.rights & need:
            remember_key(context, key)
            unit.iotlb_hits += 1
            offset = iova & ((1 << shift) - 1)
            return 0, entry.hpa + offset, (1 << shift) - offset, entry.rights
    unit.iotlb_misses += 1
    unit.page_walks += 1
    iommu.walks[rid] += 1
    reason, hpa, shift, rights = walk_iova(
        context.table, context.level, iova, wanted, unit.mem_base, unit.mem_end, unit.large, 0
    )
    hpa += iova & ((1 << shift) - 1)
    if reason == 0 and INTERRUPT_RANGE <= hpa < INTERRUPT_RANGE_END:
        reason = INTERRUPT_RANGE_OUTPUT
    if reason:
        return reason, 0, 0, 0
    while shift >= 12:
        # As much of the page as is safe to use unchecked.
        size = 1 << shift
        first = iova & -size
        target = hpa & -size
        in_memory = target >= unit.mem_base and target + size <= unit.mem_end
        if in_memory and not in_interrupt_range(first, size) and not in_interrupt_range(target, size):
            entry = iommu.iotlb[iotlb_slot(iommu, context.domain, iova, shift)]
            entry.page = iova >> shift
            entry.key = context.domain << 6 | shift
            entry.rights = rights
            entry.hpa = target
            remember_key(context, entry.key)
            return 0, hpa, first + size - iova, rights
        shift -= 9
    return 0, hpa, 0, rights


@kernel
def iotlb_slot(iommu: Row, domain: int, iova: int, shift: int) -> int:
    """Return the only place in the IOTLB where the page of 2**shift bytes at `iova` can be."""
    slot: int = ((iova >> shift) + domain * DOMAIN_STRIDE + shift * SIZE_STRIDE) & iommu.unit[0].iotlb_mask
    return slot


@kernel
def in_interrupt_range(first: int, size: int) -> bool:
    """Tell whether `size` bytes at `first` overlap the addresses that mean interrupts."""
    return first < INTERRUPT_RANGE_END and first + size > INTERRUPT_RANGE


@kernel
def clip_to_memory(iommu: Row, hpa: int, nbytes: int) -> tuple[int, int]:
    """Return (hpa, run) with the run ending where memory does; (0, 0) and a counted abort if `hpa` is outside."""
    unit = iommu.unit[0]
    if hpa < unit.mem_base or hpa >= unit.mem_end:
        unit.aborted += 1
        return 0, 0
    return hpa, min(nbytes, unit.mem_end - hpa)


@kernel
def invalidate_contexts(iommu: Row, rid: int, rid_mask: int, domain: int) -> None:
    """Forget cached contexts whose requester matches `rid` under `rid_mask`, of `domain` or, if negative, of any."""
    unit = iommu.unit[0]
    kept = 0
    for i in range(unit.cached):
        cached = iommu.cached[i]
        context = iommu.contexts[cached]
        if (cached ^ rid) & rid_mask == 0 and (domain < 0 or context.domain == domain):
            context.key = 0
            context.limit = 0
        else:
            iommu.cached[kept] = cached
            kept += 1
    unit.cached = kept


@kernel
def invalidate_iotlb(iommu: Row, domain: int) -> None:
    """Forget the translations of `domain` or, if negative, all."""
    for i in range(iommu.unit[0].iotlb_mask + 1):
        entry = iommu.iotlb[i]
        if domain < 0 or entry.key >> 6 == domain:
            entry.rights = 0


@kernel
def invalidate_iotlb_pages(iommu: Row, domain: int, iova: int, nbytes: int) -> None:
    """Forget the translations of `domain` that overlap `nbytes` at `iova`, in pages of every size."""
    for i in range(iommu.unit[0].iotlb_mask + 1):
        entry = iommu.iotlb[i]
        first = entry.page << (entry.key & 63)
        if entry.key >> 6 == domain and first < iova + nbytes and first + (1 << (entry.key & 63)) > iova:
            entry.rights = 0
