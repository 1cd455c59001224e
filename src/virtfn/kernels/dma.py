"""The one gate between a device's addresses and the machine's memory: translate, check, copy.

    request (rid, iova, nbytes, write)                        write to FEExxxxx: an interrupt message, not memory
       |  contexts[rid].key: domain << 6 | log2 of the page size last seen     0: not cached
       v
    iotlb[(page + f(domain, size)) & mask]:  page, key, rights, hpa            hit: no walk
       |  miss
       v
    other page sizes -> context walk -> page walk -> IOTLB                     stale until invalidated
       |  refused
       v
    faults[tail]: requester, address, reason, direction                        full: counted as lost

A host physical address is an address in this process, so what leaves this module lies within the machine's memory or
the page for messages, whatever the tables say. A page that is not wholly memory, or overlaps the interrupt range, is
cached in smaller pieces.
"""

from __future__ import annotations

import numpy as np

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
from virtfn.kernels._jit import Row, copy_bytes, inlined, kernel
from virtfn.kernels.iommu import record_fault, record_message
from virtfn.kernels.pagewalk import walk_context, walk_iova

__all__ = [
    "dma_copy_in",
    "dma_copy_out",
    "invalidate_contexts",
    "invalidate_iotlb",
    "invalidate_iotlb_pages",
    "translate",
]

IDENTITY = 63  # a key whose page size no IOTLB entry has: addresses pass unchanged
DOMAIN_STRIDE = 131  # spreads domains that use the same addresses,
SIZE_STRIDE = 37  # and pages of different sizes with the same number
ADDRESS_BEYOND_WIDTH = int(FaultReason.ADDRESS_BEYOND_WIDTH)
INTERRUPT_RANGE_OUTPUT = int(FaultReason.INTERRUPT_RANGE_OUTPUT)
PASS_THROUGH = int(Translation.PASS_THROUGH)


@kernel
def translate(iommu: Row, rid: int, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Translate `nbytes` at `iova` for requester `rid`; `write` is 1 for a write to memory, 0 for a read.

    Returns (hpa, run): host address, and how many bytes from 1 to `nbytes` are contiguous there. (0, 0) if the request
    is refused: a fault is recorded unless the context says otherwise. No length and no address is too wild to ask for.
    """
    unit = iommu.unit[0]
    key = iommu.contexts[np.uint64(rid & 0xFFFF)].key
    shift = key & 63
    page = iova >> shift
    entry = iommu.iotlb[np.uint64((page + (key >> 6) * DOMAIN_STRIDE + shift * SIZE_STRIDE) & unit.iotlb_mask)]
    if entry.page == page and entry.key == key and entry.rights >> (write & 1) & 1 and nbytes > 0:
        unit.iotlb_hits += 1
        size = 1 << shift
        offset = iova & (size - 1)
        return entry.hpa + offset, min(nbytes, size - offset)
    if key == IDENTITY and iova >= unit.mem_base and 0 < nbytes <= unit.mem_end - iova:
        unit.bypassed += 1
        return iova, nbytes
    return translate_miss(iommu, rid & 0xFFFF, iova, nbytes, write & 1)


translate_hot = inlined(translate.py_func)  # type: ignore[attr-defined]


@kernel
def translate_miss(iommu: Row, rid: int, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Do what `translate` does when the IOTLB entry at hand does not serve."""
    unit = iommu.unit[0]
    if nbytes <= 0:
        unit.rejected += 1
        return 0, 0
    # A write to the interrupt range is a message, not memory; a read of it reaches nothing.
    if INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
        unit.iotlb_misses += 1
        if write:
            return record_message(iommu, rid, iova, min(nbytes, INTERRUPT_RANGE_END - iova))
        unit.aborted += 1
        return 0, 0
    if not unit.enabled:
        if iommu.contexts[rid].limit == 0:
            iommu.contexts[rid].limit = ADDRESS_WIDTH
            cache_context(iommu, rid, 1, 0)
        unit.bypassed += 1
        return clip_to_memory(iommu, iova, nbytes)
    context = iommu.contexts[rid]
    if context.limit == 0:
        unit.context_walks += 1
        reason, fpd, low, high = walk_context(unit.root, rid, unit.mem_base, unit.mem_end, unit.widths, 0)
        if reason:
            unit.iotlb_misses += 1
            record_fault(iommu, rid, iova, reason, write, fpd)
            return 0, 0
        context.fpd = fpd
        context.table = low & PAGE_MASK
        context.level = (high >> CTX_AW_LSB & CTX_AW_MASK) + 2
        bypass = int((low >> CTX_T_LSB & CTX_T_MASK) == PASS_THROUGH)
        context.limit = ADDRESS_WIDTH if bypass else min(9 * context.level + 12, ADDRESS_WIDTH)
        cache_context(iommu, rid, bypass, high >> CTX_DID_LSB & CTX_DID_MASK)
    if iova >> context.limit:
        unit.iotlb_misses += 1
        record_fault(iommu, rid, iova, ADDRESS_BEYOND_WIDTH, write, context.fpd)
        return 0, 0
    if context.bypass:
        unit.bypassed += 1
        return clip_to_memory(iommu, iova, nbytes)
    for shift in range(12, 31, 9):
        entry = iommu.iotlb[iotlb_slot(iommu, context.domain, iova, shift)]
        key = context.domain << 6 | shift
        if entry.page == iova >> shift and entry.key == key and entry.rights >> write & 1:
            context.key = key
            unit.iotlb_hits += 1
            offset = iova & ((1 << shift) - 1)
            return entry.hpa + offset, min(nbytes, (1 << shift) - offset)
    return translate_walk(iommu, rid, iova, nbytes, write)


@kernel
def translate_walk(iommu: Row, rid: int, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Walk the tables of a cached context, and cache as much of the page as is safe to use unchecked."""
    unit = iommu.unit[0]
    context = iommu.contexts[rid]
    unit.iotlb_misses += 1
    unit.page_walks += 1
    reason, hpa, shift, rights = walk_iova(
        context.table, context.level, iova, write, unit.mem_base, unit.mem_end, unit.large, 0
    )
    hpa += iova & ((1 << shift) - 1)
    if reason == 0 and INTERRUPT_RANGE <= hpa < INTERRUPT_RANGE_END:
        reason = INTERRUPT_RANGE_OUTPUT
    if reason:
        record_fault(iommu, rid, iova, reason, write, context.fpd)
        return 0, 0
    while shift >= 12:
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
            context.key = entry.key
            return hpa, min(nbytes, first + size - iova)
        shift -= 9
    return clip_to_memory(iommu, hpa, min(nbytes, 4096 - (hpa & 4095)))


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
def cache_context(iommu: Row, rid: int, bypass: int, domain: int) -> None:
    """Mark a requester's context as cached."""
    unit = iommu.unit[0]
    context = iommu.contexts[rid]
    context.bypass = bypass
    context.domain = domain
    context.key = IDENTITY if bypass else domain << 6 | 12
    iommu.cached[unit.cached] = rid
    unit.cached += 1


@kernel
def clip_to_memory(iommu: Row, hpa: int, nbytes: int) -> tuple[int, int]:
    """Return (hpa, run) with the run ending where memory does; (0, 0) and a counted abort if `hpa` is outside."""
    unit = iommu.unit[0]
    if hpa < unit.mem_base or hpa >= unit.mem_end:
        unit.aborted += 1
        return 0, 0
    return hpa, min(nbytes, unit.mem_end - hpa)


@kernel
def dma_copy_in(iommu: Row, rid: int, iova: int, nbytes: int, dest: int) -> int:
    """Read `nbytes` at `iova` into private memory at `dest`; return the bytes read, fewer after a refusal."""
    done = 0
    while done < nbytes:
        hpa, run = translate(iommu, rid, iova + done, nbytes - done, 0)
        if run == 0:
            break
        copy_bytes(dest + done, hpa, run)
        done += run
    return done


@kernel
def dma_copy_out(iommu: Row, rid: int, iova: int, nbytes: int, source: int) -> int:
    """Write `nbytes` from private memory at `source` to `iova`; return the bytes written: all, or 0 after a refusal.

    Every page is translated before the first byte is written.
    """
    hpa, run = translate(iommu, rid, iova, nbytes, 1)
    if run == nbytes:
        copy_bytes(hpa, source, run)
        return run
    done = run
    while done < nbytes:
        if run == 0:
            return 0
        _, run = translate(iommu, rid, iova + done, nbytes - done, 1)
        done += run
    done = 0
    while done < nbytes:
        hpa, run = translate(iommu, rid, iova + done, nbytes - done, 1)
        if run == 0:
            break
        copy_bytes(hpa, source + done, run)
        done += run
    return done


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
