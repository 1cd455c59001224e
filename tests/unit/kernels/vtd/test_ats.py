"""A device TLB: what it serves, what it asks the unit, and what the unit lets pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from unit.remapping import RID, ByHand
from virtfn.hw.vtd.tables import FaultReason as F
from virtfn.hw.vtd.tables import Request
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.ats import NEW, PAGE_SLOTS, REFUSED, SENT, awaits_page, forget_pages, new_device_tlb
from virtfn.kernels.vtd.dma import dma_copy_in, dma_copy_out
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb

TYPE_1 = 1 << 2


class Cached(ByHand):
    """Requester RID, with ATS on: its page `page` is at 0x1000, read and write, `readable` at 0x2000."""

    def __init__(self, entries: int = 8) -> None:
        super().__init__()
        self.page, self.readable = self.memory.alloc_page(), self.memory.alloc_page()
        self.put(self.ss[1] + 8, self.page | 3)
        self.put(self.ss[1] + 16, self.readable | 1)
        self.set_context(RID, self.ss[4] | 1 | TYPE_1, 2 | 5 << 8)
        self.block = new_device_tlb(entries)
        self.tlb = self.block[0]
        self.cache = self.tlb["cache"][0]
        self.switch_on()

    def switch_on(self) -> None:
        self.iommu.contexts[RID]["device_tlb"] = self.block.ctypes.data
        self.iommu.contexts[RID]["key"] = 0

    def counts(self) -> dict[str, int]:
        return {name: int(self.cache[name]) for name in ("hits", "misses", "denied", "aborted", "unsupported")}

    def set_type(self, kind: int) -> None:
        """Rewrite the context entry, and have the unit forget the old one."""
        self.set_context(RID, self.ss[4] | 1 | kind << 2, 2 | 5 << 8)
        invalidate_contexts(self.iommu.row, 0, 0, -1)


@pytest.fixture
def t() -> Iterator[Cached]:
    made = Cached()
    yield made
    made.memory.close()


def fault_of(t: Cached) -> tuple[F, Request, int]:
    reason, row = t.fault()
    return reason, Request(row["kind"]), row["iova"]


def test_a_page_is_asked_for_once(t: Cached) -> None:
    assert t.ask(0x1010) == (t.page + 0x10, 64)
    assert t.ask(0x1FF0, 64, 0) == (t.page + 0xFF0, 16)
    assert t.counts() == {"hits": 1, "misses": 1, "denied": 0, "aborted": 0, "unsupported": 0}
    assert (t.unit["translation_requests"], t.unit["translated"], t.unit["iotlb_misses"]) == (1, 2, 1)
    assert (t.unit["iotlb_hits"], t.unit["faults"]) == (0, 0)
    assert t.iommu.contexts[RID]["key"] == 0


def test_a_large_page_is_cached_page_by_page(t: Cached) -> None:
    t.put(t.ss[2] + 8, (t.memory.base + (2 << 20)) & -(2 << 20) | 0x83)
    hpa, run = t.ask(0x200000 + 0x5008, 1 << 20)
    assert (hpa - t.memory.base) & 0xFFF == 8
    assert run == 0xFF8


def test_copies_go_page_by_page(t: Cached) -> None:
    source = np.arange(5000, dtype=np.uint16).view(np.uint8)[:6000].copy()
    t.put(t.ss[1] + 24, t.readable | 3)
    t.put(t.ss[1] + 16, t.page | 3)
    t.put(t.ss[1] + 8, t.readable | 3)
    t.put(t.ss[1] + 24, t.memory.alloc_page() | 3)
    assert dma_copy_out(t.iommu.row, RID, 0x1100, 6000, address_of(source)) == 6000
    target = np.zeros(6000, np.uint8)
    assert dma_copy_in(t.iommu.row, RID, 0x1100, 6000, address_of(target)) == 6000
    assert (target == source).all()
    assert bytes(t.view(t.page, 16)) == source[0xF00:0xF10].tobytes()


def test_a_write_to_what_was_cached_for_reading_asks_again(t: Cached) -> None:
    assert t.ask(0x2000, 8, 0) == (t.readable, 8)
    assert t.ask(0x2000, 8, 1) == (0, 0)
    assert t.unit["faults"] == 0, "a missing right is no fault of a translation request"
    t.put(t.ss[1] + 16, t.readable | 3)
    assert t.ask(0x2000, 8, 1) == (t.readable, 8)
    assert t.counts() == {"hits": 0, "misses": 3, "denied": 1, "aborted": 0, "unsupported": 0}


def test_rights_come_whole_with_the_first_request(t: Cached) -> None:
    assert t.ask(0x1000, 8, 0) == (t.page, 8)
    assert t.ask(0x1000, 8, 1) == (t.page, 8)
    assert t.counts()["misses"] == 1


@pytest.mark.parametrize("write", [0, 1])
def test_an_absent_page_is_no_fault(t: Cached, write: int) -> None:
    assert t.ask(0x7000, 8, write) == (0, 0)
    assert (t.unit["faults"], t.cache["denied"], t.unit["page_walks"]) == (0, 1, 1)
    assert not awaits_page(t.iommu.row, RID)


def test_stale_entries_are_used_until_they_are_invalidated(t: Cached) -> None:
    assert t.ask(0x1000) == (t.page, 64)
    other = t.memory.alloc_page()
    t.put(t.ss[1] + 8, other | 3)
    invalidate_iotlb(t.iommu.row, -1)
    invalidate_contexts(t.iommu.row, 0, 0, -1)
    assert t.ask(0x1000) == (t.page, 64), "the unit's caches are not the device's"
    forget_pages(t.tlb, RID, 1, 1)
    assert t.ask(0x1000) == (other, 64)
    assert t.cache["invalidated"] == 1


def test_a_device_that_forgets_first_learns_the_stale_translation_again(t: Cached) -> None:
    """Why the IOTLB is invalidated before device TLBs."""
    assert t.ask(0x1000) == (t.page, 64)
    t.put(t.ss[1] + 8, 0)
    forget_pages(t.tlb, RID, 1, 1)
    assert t.ask(0x1000) == (t.page, 64)
    invalidate_iotlb(t.iommu.row, -1)
    forget_pages(t.tlb, RID, 1, 1)
    assert t.ask(0x1000) == (0, 0)


@pytest.mark.parametrize(
    ("first", "last", "left"), [(0, 0, {1, 9, 5}), (0, 1, {9, 5}), (2, 1 << 40, {1}), (0, 99, set())]
)
def test_what_an_invalidation_ends(t: Cached, first: int, last: int, left: set[int]) -> None:
    for page in (1, 9, 5):
        t.put(t.ss[1] + page * 8, t.page | 3)
    made = Cached(64)
    made.memory.close()
    t.block, t.tlb, t.cache = made.block, made.tlb, made.cache
    t.switch_on()
    for page in (1, 9, 5):
        t.ask(page << 12)
    forget_pages(t.tlb, RID + 1, 0, 1 << 51)
    forget_pages(t.tlb, RID, first, last)
    entries = t.tlb["entries"]
    assert {int(e["page"]) for e in entries[entries["rights"] != 0]} == left


def test_an_entry_is_one_requesters(t: Cached) -> None:
    other = RID + 2
    t.set_context(other, t.ss[4] | 1 | TYPE_1, 2 | 6 << 8)
    t.iommu.contexts[other]["device_tlb"] = t.block.ctypes.data
    small = new_device_tlb(1)
    for rid in (RID, other):
        t.iommu.contexts[rid]["device_tlb"] = small.ctypes.data
    for rid in (RID, other, RID):
        assert t.ask(0x1000, rid=rid) == (t.page, 64)
    assert (small[0]["cache"]["misses"], small[0]["cache"]["hits"]) == (3, 0)


@pytest.mark.parametrize("kind", [0, 2])
def test_a_type_that_allows_no_device_tlb(t: Cached, kind: int) -> None:
    t.set_type(kind)
    iova = 0x1000 if kind == 0 else t.page
    assert t.ask(iova) == (t.page, 64), "untranslated, after the translation request was refused"
    assert fault_of(t) == (F.BLOCKED_BY_TYPE, Request.TRANSLATION, iova)
    assert t.iommu.contexts[RID]["device_tlb"] == 0, "the device does not ask again until ATS is enabled anew"
    assert t.ask(iova) == (t.page, 64)
    assert (t.unit["faults"], t.cache["unsupported"], t.cache["misses"]) == (1, 1, 1)
    t.switch_on()
    assert t.ask(iova) == (t.page, 64)
    assert t.unit["faults"] == 2


@pytest.mark.parametrize("kind", [0, 2])
def test_a_translated_request_is_refused_by_type(t: Cached, kind: int) -> None:
    assert t.ask(0x1000) == (t.page, 64)
    t.set_type(kind)
    assert t.ask(0x1008) == (0, 0)
    assert fault_of(t) == (F.BLOCKED_BY_TYPE, Request.TRANSLATED, t.page + 8)
    t.set_type(1)
    assert t.ask(0x1008) == (t.page + 8, 64)


def test_a_translated_request_of_a_requester_without_a_context(t: Cached) -> None:
    assert t.ask(0x1000) == (t.page, 64)
    t.set_context(RID, 0, 0)
    invalidate_contexts(t.iommu.row, 0, 0, -1)
    assert t.ask(0x1000) == (0, 0)
    assert fault_of(t)[:2] == (F.CONTEXT_NOT_PRESENT, Request.TRANSLATED)


def test_a_forged_translation_stays_in_memory(t: Cached) -> None:
    assert t.ask(0x1000) == (t.page, 64)
    entry = next(e for e in t.tlb["entries"] if e["rights"])
    for hpa in (0, t.memory.base - 4096, t.memory.base + t.memory.size, 0xFEE00000, -4096):
        entry["hpa"] = hpa
        assert t.ask(0x1000) == (0, 0)
    assert (t.unit["aborted"], t.unit["faults"], t.unit["messages_lost"], t.unit["message_tail"]) == (5, 0, 0, 0)


def test_fpd_suppresses(t: Cached) -> None:
    t.set_context(RID, t.ss[4] | 3, 2 | 5 << 8)
    t.ask(0x1000)
    assert (t.unit["faults"], t.unit["suppressed"], t.unit["fault_tail"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("level", "entry", "reason"), [(1, 3 | 1 << 11, F.PAGING_ENTRY_RESERVED), (2, 3, F.PAGING_ENTRY_ACCESS)]
)
def test_tables_that_make_no_sense_are_a_fault_and_an_abort(t: Cached, level: int, entry: int, reason: F) -> None:
    t.put(t.ss[level] + (8 if level == 1 else 0), entry)
    assert t.ask(0x1000) == (0, 0)
    assert fault_of(t) == (reason, Request.TRANSLATION, 0x1000)
    assert (t.cache["aborted"], t.cache["unsupported"]) == (1, 0)
    assert t.iommu.contexts[RID]["device_tlb"] != 0


@pytest.mark.parametrize("iova", [1 << 48, (1 << 63) - 4096, -4096])
def test_an_address_beyond_the_width(t: Cached, iova: int) -> None:
    assert t.ask(iova) == (0, 0)
    assert fault_of(t) == (F.ADDRESS_BEYOND_WIDTH, Request.TRANSLATION, iova)


def test_a_page_that_is_interrupts(t: Cached) -> None:
    t.put(t.ss[1] + 8, 0xFEE00000 | 3)
    assert t.ask(0x1000) == (0, 0)
    assert fault_of(t)[:2] == (F.INTERRUPT_RANGE_OUTPUT, Request.TRANSLATION)


def test_a_page_outside_memory(t: Cached) -> None:
    t.put(t.ss[1] + 8, (t.memory.base + t.memory.size) | 3)
    assert t.ask(0x1000) == (0, 0)
    assert (t.unit["aborted"], t.unit["faults"]) == (1, 0)


def test_messages_are_never_translated(t: Cached) -> None:
    hpa, run = t.ask(0xFEE00000, 4)
    assert (hpa, run) == (t.unit["message_base"], 4)
    assert t.ask(0xFEE00000, 4, 0) == (0, 0)
    assert (t.unit["message_tail"], t.cache["hits"], t.cache["misses"]) == (1, 0, 2)


def test_with_remapping_off_the_device_falls_back(t: Cached) -> None:
    t.unit["enabled"] = 0
    assert t.ask(t.page) == (t.page, 64)
    assert (t.cache["unsupported"], t.unit["bypassed"], t.unit["faults"]) == (1, 1, 0)
    assert t.ask(t.page) == (t.page, 64)
    assert t.unit["bypassed"] == 2


def test_what_was_cached_is_of_no_use_with_remapping_off(t: Cached) -> None:
    assert t.ask(0x1000) == (t.page, 64)
    t.unit["enabled"] = 0
    assert t.ask(0x1000) == (0, 0)
    assert t.unit["aborted"] == 1


def test_without_a_device_tlb_type_1_is_like_type_0(t: Cached) -> None:
    t.iommu.contexts[RID]["device_tlb"] = 0
    assert t.ask(0x1000) == (t.page, 64)
    assert t.ask(0x1000) == (t.page, 64)
    assert (t.unit["iotlb_hits"], t.unit["iotlb_misses"], t.unit["translated"], t.cache["misses"]) == (1, 1, 0, 0)
    assert t.ask(0x2000) == (0, 0)
    assert t.fault()[0] == F.WRITE_NOT_ALLOWED


@pytest.mark.parametrize("entries", [0, 3, -1, 1 << 15])
def test_sizes_that_cannot_be(entries: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        new_device_tlb(entries)


# Page requests.


def slots(t: Cached, *states: int) -> list[tuple[int, int, int]]:
    return [(int(s["rid"]), int(s["page"]), int(s["write"])) for s in t.tlb["pages"] if s["state"] in states]


def test_a_page_is_asked_for_once_however_often_it_is_missed(t: Cached) -> None:
    t.cache["pages_allowed"] = 4
    for _ in range(3):
        assert t.ask(0x7000) == (0, 0)
        assert awaits_page(t.iommu.row, RID)
    assert slots(t, NEW) == [(RID, 7, 1)]
    assert (t.cache["unsent"], t.cache["pages_under_way"], t.cache["translation_requests"]) == (1, 1, 1)
    t.ask(0x7000, write=0)
    assert len(slots(t, NEW)) == 1, "for another right it is asked when the answer is there"
    assert t.unit["faults"] == 0
    assert t.ask(0x1000) == (t.page, 64)
    assert not awaits_page(t.iommu.row, RID)


def test_no_more_are_under_way_than_allowed(t: Cached) -> None:
    t.cache["pages_allowed"] = 2
    for page in range(10, 14):
        assert t.ask(page << 12) == (0, 0)
        assert awaits_page(t.iommu.row, RID), "whoever cannot ask yet comes back"
    assert slots(t, NEW) == [(RID, 10, 1), (RID, 11, 1)]


def test_every_slot_in_use(t: Cached) -> None:
    t.cache["pages_allowed"] = PAGE_SLOTS
    for page in range(100, 100 + PAGE_SLOTS + 5):
        t.ask(page << 12)
    assert len(slots(t, NEW)) == PAGE_SLOTS
    groups = [int(slot["group"]) for slot in t.tlb["pages"]]
    assert sorted(group % PAGE_SLOTS for group in groups) == list(range(PAGE_SLOTS))


def test_a_refusal_is_met_once(t: Cached) -> None:
    t.cache["pages_allowed"] = 4
    t.ask(0x7000)
    slot = t.tlb["pages"][0]
    slot["state"] = SENT
    assert t.ask(0x7000) == (0, 0)
    assert awaits_page(t.iommu.row, RID)
    slot["state"] = REFUSED
    t.cache["pages_under_way"] = t.cache["unsent"] = 0
    t.ask(0x7000, write=0)
    assert awaits_page(t.iommu.row, RID), "the other right was not refused"
    assert t.ask(0x7000) == (0, 0)
    assert not awaits_page(t.iommu.row, RID)
    assert t.ask(0x7000) == (0, 0)


def test_what_tables_refuse_is_not_asked_for(t: Cached) -> None:
    t.cache["pages_allowed"] = 4
    assert t.ask(1 << 48) == (0, 0)
    assert not awaits_page(t.iommu.row, RID)
    assert slots(t, NEW) == []
