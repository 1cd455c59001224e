"""The one gate between a device's addresses and the machine's memory: translate, check, copy.

    request (rid, iova, nbytes, write)                        write to FEExxxxx: an interrupt message, not memory
       |  contexts[rid].key: domain << 6 | log2 of the page size last seen     0: not cached, or the device has a TLB
       v                                                                          of its own (`ats.py`)
    iotlb[(page + f(domain, size)) & mask]:  page, key, rights, hpa            hit: no walk
       |  miss
       v
    other page sizes -> context walk -> page walk -> IOTLB                     stale until invalidated
       |  refused
       v
    faults[tail]: requester, address, reason, direction                        full: counted as lost

A host physical address is an address in this process, so what leaves this module lies within the machine's memory or
the pages for messages, whatever the tables say. A page that is not wholly memory, or overlaps the interrupt range, is
cached in smaller pieces.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.vtd.tables import ADDRESS_WIDTH, INTERRUPT_RANGE, INTERRUPT_RANGE_END
from virtfn.kernels._jit import Row, copy_bytes, grant, inlined, kernel, unlikely
from virtfn.kernels.vtd.ats import translate_by_device
from virtfn.kernels.vtd.iommu import record_fault, record_message
from virtfn.kernels.vtd.iotlb import (
    DOMAIN_STRIDE,
    IDENTITY,
    SIZE_STRIDE,
    cache_context,
    clip_to_memory,
    find_context,
    find_page,
    remember_key,
)

__all__ = ["dma_copy_in", "dma_copy_out", "translate", "translate_hot", "translate_near"]


@inlined
def iotlb_entry(iommu: Row, key: int, page: int) -> Row:
    """Find the IOTLB entry where a page is, if it is there. key: of its context."""
    spread = (key >> 6) * DOMAIN_STRIDE + (key & 63) * SIZE_STRIDE
    return iommu.iotlb[np.uint64((page + spread) & iommu.unit[0].iotlb_mask)]


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
    entry = iotlb_entry(iommu, key, page)
    if entry.page == page and entry.key == key and entry.rights >> (write & 1) & 1 and nbytes > 0:
        unit.iotlb_hits += 1
        size = 1 << shift
        offset = iova & (size - 1)
        run = min(nbytes, size - offset)
        grant(entry.hpa + offset, run, write & 1, rid)
        return entry.hpa + offset, run
    if key == IDENTITY and iova >= unit.mem_base and 0 < nbytes <= unit.mem_end - iova:
        unit.bypassed += 1
        grant(iova, nbytes, write & 1, rid)
        return iova, nbytes
    hpa, run = translate_miss(iommu, rid & 0xFFFF, iova, nbytes, write & 1)
    grant(hpa, run, write & 1, rid)
    return hpa, run


translate_hot = inlined(translate.py_func)  # type: ignore[attr-defined]


@inlined
def translate_near(iommu: Row, r: Row, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Do what `translate` does for the requester of `r`, whose `near` is the page that it used last, or nothing.

    Always the same way of access, and nothing is invalidated meanwhile. `nbytes` is more than 0.
    """
    offset = iova - r.near
    if unlikely(bool(np.uint64(offset) >= np.uint64(r.near_bytes))) or unlikely(offset + nbytes > r.near_bytes):
        return translate_far(iommu, r, iova, nbytes, write)
    iommu.unit[0].iotlb_hits += 1
    grant(r.near_hpa + offset, nbytes, write, r.rid)
    return r.near_hpa + offset, nbytes


@kernel
def translate_far(iommu: Row, r: Row, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Do what `translate_near` does when the page is another one, which then is the nearest."""
    hpa, run = translate_hot(iommu, r.rid, iova, nbytes, write)
    key = iommu.contexts[np.uint64(r.rid & 0xFFFF)].key
    shift = key & 63
    page = iova >> shift
    entry = iotlb_entry(iommu, key, page)
    r.near_bytes = 0
    if entry.page == page and entry.key == key and entry.rights >> write & 1:
        r.near = page << shift
        r.near_hpa = entry.hpa
        r.near_bytes = 1 << shift
    return hpa, run


@kernel
def translate_miss(iommu: Row, rid: int, iova: int, nbytes: int, write: int) -> tuple[int, int]:
    """Do what `translate` does when the IOTLB entry at hand does not serve."""
    unit = iommu.unit[0]
    if nbytes <= 0:
        unit.rejected += 1
        return 0, 0
    context = iommu.contexts[rid]
    if context.device_tlb:
        decided, hpa, run = translate_by_device(iommu, rid, iova, nbytes, write)
        if decided:
            return hpa, run
    # A write to the interrupt range is a message, not memory; a read of it reaches nothing.
    if INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
        unit.iotlb_misses += 1
        if write:
            return record_message(iommu, rid, iova, min(nbytes, INTERRUPT_RANGE_END - iova))
        unit.aborted += 1
        return 0, 0
    if not unit.enabled:
        if context.limit == 0:
            context.limit = ADDRESS_WIDTH
            cache_context(iommu, rid, 1, 0)
        remember_key(context, IDENTITY)
        unit.bypassed += 1
        return clip_to_memory(iommu, iova, nbytes)
    reason = find_context(iommu, rid, iova)
    if reason:
        unit.iotlb_misses += 1
        record_fault(iommu, rid, iova, reason, write, context.fpd, 0)
        return 0, 0
    if context.bypass:
        remember_key(context, IDENTITY)
        unit.bypassed += 1
        return clip_to_memory(iommu, iova, nbytes)
    reason, hpa, run, _ = find_page(iommu, rid, iova, write, write)
    if reason:
        record_fault(iommu, rid, iova, reason, write, context.fpd, 0)
        return 0, 0
    if run == 0:
        return clip_to_memory(iommu, hpa, min(nbytes, 4096 - (hpa & 4095)))
    return hpa, min(nbytes, run)


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
