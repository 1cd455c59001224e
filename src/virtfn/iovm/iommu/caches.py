"""What a remapping unit that runs has cached: in numbers, and for one request."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, TypedDict

import numpy as np

from virtfn.kernels.vtd.ats import TLB
from virtfn.kernels.vtd.iommu import INTERRUPT_SLOTS, Iommu
from virtfn.machine.memory import view_bytes

__all__ = [
    "Cached",
    "CachedContext",
    "CachedPage",
    "InUse",
    "cached_context",
    "cached_device_page",
    "cached_interrupt",
    "cached_page",
    "count_cached",
    "has_device_tlb",
]

_LOW = (1 << 64) - 1


class InUse(TypedDict):
    """IOTLB entries of one domain and page size."""

    domain: int
    page_bytes: int
    entries: int


class Cached(TypedDict):
    """How full the caches are. entries: what the IOTLB has room for."""

    entries: int
    in_use: list[InUse]
    contexts: int
    interrupts: int


class CachedContext(NamedTuple):
    """What the context cache has for a requester."""

    domain: int
    table: int
    level: int
    pass_through: bool


class CachedPage(NamedTuple):
    """An IOTLB entry. rights: bit 0 read, bit 1 write."""

    iova: int
    hpa: int
    bytes: int
    rights: int


def count_cached(*caches: Iommu) -> Cached:
    """Count what the caches hold, those of all cards together."""
    uses: Counter[int] = Counter()
    for iommu in caches:
        keys, counts = np.unique(iommu.iotlb["key"][iommu.iotlb["rights"] != 0], return_counts=True)
        uses.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    return {
        "entries": sum(len(iommu.iotlb) for iommu in caches),
        "in_use": [
            {"domain": key >> 6, "page_bytes": 1 << (key & 63), "entries": count} for key, count in sorted(uses.items())
        ],
        "contexts": sum(int(iommu.unit[0]["cached"]) for iommu in caches),
        "interrupts": sum(int(np.count_nonzero(iommu.block[0]["interrupts"]["index"])) for iommu in caches),
    }


def cached_context(iommu: Iommu, rid: int) -> CachedContext | None:
    """Find what the context cache has for a requester."""
    row = iommu.contexts[rid]
    if not row["limit"]:
        return None
    return CachedContext(int(row["domain"]), int(row["table"]) & _LOW, int(row["level"]), bool(row["bypass"]))


def cached_page(iommu: Iommu, rid: int, domain: int, iova: int, write: bool) -> CachedPage | None:
    """Find the IOTLB entry that serves a request, as the unit looks for it: the size last seen first, then by size."""
    last = int(iommu.contexts[rid]["key"]) & 63
    for shift in (last, 12, 21, 30):
        found = (iommu.iotlb["key"] == (domain << 6 | shift)) & (iommu.iotlb["page"] == iova >> shift)
        for row in iommu.iotlb[found & (iommu.iotlb["rights"] >> int(write) & 1 == 1)]:
            return CachedPage(iova >> shift << shift, int(row["hpa"]), 1 << shift, int(row["rights"]))
    return None


def has_device_tlb(iommu: Iommu, rid: int) -> bool:
    """Tell whether a requester has a device TLB, and it is on."""
    return bool(iommu.contexts[rid]["device_tlb"])


def cached_device_page(iommu: Iommu, rid: int, iova: int, write: bool) -> CachedPage | None:
    """Find the entry of a requester's device TLB that serves a request."""
    tlb = view_bytes(int(iommu.contexts[rid]["device_tlb"]), TLB.itemsize).view(TLB)[0]
    rows = tlb["entries"][: int(tlb["cache"][0]["mask"]) + 1]
    found = (rows["rid"] == rid) & (rows["page"] == iova >> 12) & (rows["rights"] >> int(write) & 1 == 1)
    for row in rows[found]:
        return CachedPage(iova >> 12 << 12, int(row["hpa"]), 4096, int(row["rights"]))
    return None


def cached_interrupt(iommu: Iommu, index: int) -> int | None:
    """Find the 128 bits that the interrupt entry cache has for a table entry."""
    row = iommu.block[0]["interrupts"][index % INTERRUPT_SLOTS]
    if int(row["index"]) != index + 1:
        return None
    return int(row["low"]) & _LOW | (int(row["high"]) & _LOW) << 64
