"""Address translation services: a device that caches translations, and asks for pages that are not there.

    device                                              unit
      request (rid, iova, write)
        | device TLB: (rid, page) -> rights, page       hit -> translated request  -> is that allowed here?
        | miss                         translation request  -> context, IOTLB, tables
        |     <- rights and page, or none; untranslated only; completer abort; unsupported
        | no right, page requests on -> a slot of `pages` -> page request queue ... answer: try again, or give up

A device TLB entry ends by an invalidation, or by another entry: the unit does not look at the tables again. It does
look whether the requester may send translated requests at all, and that they stay within the machine's memory.

Unsupported Request means that the requester must not ask again until ATS is enabled anew: from then on its requests are
untranslated. Spec: PCI Express Base Specification, 10 (ATS); VT-d, device-TLBs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END, FaultReason, Request
from virtfn.kernels._jit import Row, apart, kernel, row_at, row_of
from virtfn.kernels.ranges import row_address
from virtfn.kernels.vtd.iommu import IOMMU, record_fault
from virtfn.kernels.vtd.iotlb import clip_to_memory, find_context, find_page
from virtfn.kernels.vtd.pagewalk import ANY_RIGHT

__all__ = [
    "DEVICE_TLB_MAX",
    "PAGE_SLOTS",
    "awaits_page",
    "device_tlb_at",
    "forget_pages",
    "new_device_tlb",
    "translate_by_device",
]


DEVICE_TLB_MAX = 1 << 14
PAGE_SLOTS = 64
CACHE = row_of(
    # set by Python: entries less one, page requests that may be under way
    "mask pages_allowed "
    # set for whoever was refused: the page has been asked for; and for Python: slots that hold a new request
    "awaited unsent pages_under_way "
    # accesses that an entry served, and that none did; requests for translations, and what became of them but for
    # success; entries that invalidations ended
    "hits misses translation_requests denied aborted unsupported invalidated page_requests"
)
ENTRY = row_of("rid page rights hpa")
PAGE = row_of("state rid page write group")  # group: the slot, and above it how often it was used, modulo 8
FREE, NEW, SENT, REFUSED = range(4)
"""State of a page request. Refused: for the next access of its kind, and forgotten then."""
TLB = np.dtype([("cache", CACHE, (1,)), ("pages", PAGE, (PAGE_SLOTS,)), ("entries", ENTRY, (DEVICE_TLB_MAX,))])
device_tlb_at = row_at(TLB)

SUCCESS, UNTRANSLATED_ONLY, UNSUPPORTED, ABORT = range(4)
"""How a translation request is completed."""
RID_STRIDE = 67  # spreads requesters that use the same addresses
PAGE_BYTES = 4096
GROUPS = 512  # numbers that page request groups can have
TRANSLATION = int(Request.TRANSLATION)
TRANSLATED = int(Request.TRANSLATED)
WRITE_NOT_ALLOWED = int(FaultReason.WRITE_NOT_ALLOWED)
ADDRESS_BEYOND_WIDTH = int(FaultReason.ADDRESS_BEYOND_WIDTH)
BLOCKED_BY_TYPE = int(FaultReason.BLOCKED_BY_TYPE)


def new_device_tlb(entries: int) -> npt.NDArray[np.void]:
    """Make a device TLB of a power of two of entries, as (1,) TLB. Parts that are not used cost no memory.

    Raises ValueError for a size that is not a power of two up to 16384.
    """
    if not 1 <= entries <= DEVICE_TLB_MAX or entries & (entries - 1):
        raise ValueError(f"a device TLB has a power of two of entries up to {DEVICE_TLB_MAX}, not {entries}")
    block = np.zeros(1, TLB)
    row_address(block, "a device TLB")
    block[0]["cache"]["mask"] = entries - 1
    return block


# The device.


@apart(IOMMU, int, int, int, int, gives=3)
def translate_by_device(iommu: Row, rid: int, iova: int, nbytes: int, write: int) -> tuple[bool, int, int]:
    """Translate as `translate` does, for a requester with a device TLB.

    Returns (decided, hpa, run); not decided: the request goes out untranslated.
    """
    context = iommu.contexts[rid]
    tlb = device_tlb_at(context.device_tlb)
    cache = tlb.cache[0]
    cache.awaited = 0
    page = iova >> 12
    entry = tlb.entries[(page + rid * RID_STRIDE) & cache.mask]
    if entry.page == page and entry.rid == rid and entry.rights >> write & 1:
        cache.hits += 1
    else:
        cache.misses += 1
        slot = find_slot(tlb, rid, page, write)
        if slot >= 0 and tlb.pages[slot].state == REFUSED:
            tlb.pages[slot].state = FREE
            cache.denied += 1
            return True, 0, 0
        if slot >= 0:
            cache.awaited = 1
            return True, 0, 0
        cache.translation_requests += 1
        status, hpa, rights = request_translation(iommu, rid, page << 12, write)
        if status == UNTRANSLATED_ONLY:
            return False, 0, 0
        if status == UNSUPPORTED:
            cache.unsupported += 1
            context.device_tlb = 0
            return False, 0, 0
        if status == ABORT:
            cache.aborted += 1
            return True, 0, 0
        if not rights >> write & 1:
            cache.denied += 1
            request_page(tlb, rid, page, write)
            return True, 0, 0
        entry.rid = rid
        entry.page = page
        entry.rights = rights
        entry.hpa = hpa
    offset = iova & (PAGE_BYTES - 1)
    hpa, run = request_translated(iommu, rid, entry.hpa + offset, min(nbytes, PAGE_BYTES - offset), write)
    return True, hpa, run


@kernel
def find_slot(tlb: Row, rid: int, page: int, write: int) -> int:
    """Find the page request that an access waits for, or that was refused to the like of it; -1 if there is none."""
    if not tlb.cache[0].pages_allowed:
        return -1
    for i in range(PAGE_SLOTS):
        slot = tlb.pages[i]
        if slot.rid == rid and slot.page == page:
            if slot.state == NEW or slot.state == SENT or (slot.state == REFUSED and slot.write == write):
                return i
    return -1


@kernel
def request_page(tlb: Row, rid: int, page: int, write: int) -> None:
    """Have a page asked for, if that is on; with too many requests under way, the device comes back and tries again."""
    cache = tlb.cache[0]
    if not cache.pages_allowed:
        return
    cache.awaited = 1
    if cache.pages_under_way >= cache.pages_allowed:
        return
    chosen = -1
    for i in range(PAGE_SLOTS):
        state = tlb.pages[i].state
        if state == FREE:
            chosen = i
            break
        if state == REFUSED:
            chosen = i  # to forget a refusal costs only that it is asked for again
    if chosen < 0:
        return
    slot = tlb.pages[chosen]
    slot.state = NEW
    slot.rid = rid
    slot.page = page
    slot.write = write
    slot.group = (slot.group + PAGE_SLOTS & GROUPS - PAGE_SLOTS) | chosen
    cache.unsent += 1
    cache.pages_under_way += 1
    cache.page_requests += 1


@kernel
def awaits_page(iommu: Row, rid: int) -> bool:
    """Tell whether the latest refusal, which was to `rid`, is one to wait for: its page has been asked for."""
    address = iommu.contexts[rid].device_tlb
    return address != 0 and device_tlb_at(address).cache[0].awaited != 0


@kernel
def forget_pages(tlb: Row, rid: int, first: int, last: int) -> None:
    """Forget what requester `rid` has cached of the pages from `first` to `last`."""
    cache = tlb.cache[0]
    if last - first < cache.mask:
        for page in range(first, last + 1):
            entry = tlb.entries[(page + rid * RID_STRIDE) & cache.mask]
            if entry.rid == rid and entry.page == page and entry.rights:
                entry.rights = 0
                cache.invalidated += 1
        return
    for i in range(cache.mask + 1):
        entry = tlb.entries[i]
        if entry.rid == rid and entry.rights and first <= entry.page <= last:
            entry.rights = 0
            cache.invalidated += 1


# The unit.


@kernel
def request_translation(iommu: Row, rid: int, iova: int, write: int) -> tuple[int, int, int]:
    """Complete a translation request of `rid` for the page at `iova`; write: it wants to write, for the record.

    Returns (status, host address of the page, rights as SS_R | SS_W). A right that is missing is no fault.
    """
    unit = iommu.unit[0]
    unit.translation_requests += 1
    if not unit.enabled:
        unit.rejected += 1
        return UNSUPPORTED, 0, 0
    if INTERRUPT_RANGE <= iova < INTERRUPT_RANGE_END:
        unit.iotlb_misses += 1
        return UNTRANSLATED_ONLY, 0, 0
    context = iommu.contexts[rid]
    reason = find_context(iommu, rid, iova)
    if (reason == 0 or reason == ADDRESS_BEYOND_WIDTH) and not context.ats:
        reason = BLOCKED_BY_TYPE
    if reason:
        unit.iotlb_misses += 1
        record_fault(iommu, rid, iova, reason, write, context.fpd, TRANSLATION)
        return ABORT if reason == ADDRESS_BEYOND_WIDTH else UNSUPPORTED, 0, 0
    reason, hpa, _, rights = find_page(iommu, rid, iova, write, ANY_RIGHT)
    if reason == WRITE_NOT_ALLOWED:
        return SUCCESS, 0, 0
    if reason:
        record_fault(iommu, rid, iova, reason, write, context.fpd, TRANSLATION)
        return ABORT, 0, 0
    return SUCCESS, hpa, rights


@kernel
def request_translated(iommu: Row, rid: int, hpa: int, nbytes: int, write: int) -> tuple[int, int]:
    """Let a request by host address pass, if the context of `rid` allows such; return (hpa, run), (0, 0) if refused."""
    unit = iommu.unit[0]
    unit.translated += 1
    if not unit.enabled:
        unit.aborted += 1
        return 0, 0
    context = iommu.contexts[rid]
    reason = find_context(iommu, rid, 0)
    if reason == 0 and not context.ats:
        reason = BLOCKED_BY_TYPE
    if reason:
        record_fault(iommu, rid, hpa, reason, write, context.fpd, TRANSLATED)
        return 0, 0
    return clip_to_memory(iommu, hpa, nbytes)
