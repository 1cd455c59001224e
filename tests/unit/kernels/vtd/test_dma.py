"""Translation, its caches and its faults, on tables written by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from unit.remapping import GIB, MIB2, RID, ByHand
from virtfn.hw.vtd.tables import FaultReason as F
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.dma import dma_copy_in, dma_copy_out
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, MESSAGE_SLOTS, new_iommu
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb, invalidate_iotlb_pages


@pytest.fixture
def t() -> Iterator[ByHand]:
    tables = ByHand()
    yield tables
    tables.memory.close()


def test_small_page_is_found_and_cached(t: ByHand) -> None:
    page = t.memory.alloc_page()
    t.put(t.ss[1] + 8 * 3, page | 3)
    assert t.ask(0x3010, 64) == (page + 0x10, 64)
    assert t.ask(0x3FF0, 64) == (page + 0xFF0, 16)
    assert (t.unit["iotlb_hits"], t.unit["page_walks"]) == (1, 1)


@pytest.mark.parametrize("levels", [3, 4])
def test_large_pages(levels: int) -> None:
    t = ByHand(8 << 20, levels)
    page = t.memory.alloc_chunks(1)[0]
    t.put(t.ss[2] + 8 * 5, page | 0x83)
    assert t.ask(5 * MIB2 + 0x12345, 1 << 30) == (page + 0x12345, MIB2 - 0x12345)
    assert t.ask(6 * MIB2 - 1, 8) == (page + MIB2 - 1, 1)
    assert t.unit["iotlb_hits"] == 1
    t.memory.close()


def test_giant_page_is_used_only_where_there_is_memory(t: ByHand) -> None:
    first = t.memory.base & -GIB
    t.put(t.ss[3] + 8, first | 0x83)
    inside = GIB + t.memory.base - first
    assert t.ask(inside + 0x1234, 64) == (t.memory.base + 0x1234, 64)
    assert t.ask(inside + 0x1234, 64) == (t.memory.base + 0x1234, 64)
    assert t.unit["iotlb_hits"] == 1
    end = GIB + t.memory.base + t.memory.size - first
    if end < 2 * GIB:
        assert t.ask(end - 16, 64) == (t.memory.base + t.memory.size - 16, 16)
        assert t.ask(end, 64) == (0, 0)
    if inside > GIB:
        assert t.ask(inside - 16, 64) == (0, 0)
    assert t.unit["faults"] == 0


def test_sizes_share_a_domain(t: ByHand) -> None:
    chunk, page = t.memory.alloc_chunks(1)[0], t.memory.alloc_page()
    t.put(t.ss[2] + 8, chunk | 0x83)
    t.put(t.ss[1] + 8, page | 3)
    for _ in range(3):
        assert t.ask(MIB2 + 8, 8) == (chunk + 8, 8)
        assert t.ask(0x1008, 8) == (page + 8, 8)
    assert (t.unit["iotlb_hits"], t.unit["page_walks"]) == (4, 2)


def _root_absent(t: ByHand) -> None:
    t.put(t.root + (RID >> 8) * 16, 0)


def _root_low(t: ByHand) -> None:
    t.put(t.root + (RID >> 8) * 16, t.context | 0x801)


def _root_high(t: ByHand) -> None:
    t.put(t.root + (RID >> 8) * 16 + 8, 1 << 63)


def _root_outside(t: ByHand) -> None:
    t.unit["root"] = t.memory.base + t.memory.size - (RID >> 8) * 16


def _context_outside(t: ByHand) -> None:
    t.put(t.root + (RID >> 8) * 16, 0xFFFF_FFFF_FFFF_F001)


def _without_device_tlbs(t: ByHand) -> None:
    t.unit["kinds"] = 0b101
    t.set_context(RID, t.ss[4] | 1 | 1 << 2, 2)


def _context(low: int, high: int):  # type: ignore[no-untyped-def]
    def write(t: ByHand) -> None:
        t.set_context(RID, (t.ss[4] | low) if low & 1 else low, high)

    return write


def _leaf(level: int, entry: int, target: int = 0):  # type: ignore[no-untyped-def]
    def write(t: ByHand) -> None:
        t.put(t.ss[level], (t.memory.base + target if target >= 0 else 0) | entry)

    return write


REFUSALS = [
    (F.ROOT_NOT_PRESENT, _root_absent, 0),
    (F.CONTEXT_NOT_PRESENT, _context(0, 2), 0),
    (F.CONTEXT_INVALID, _without_device_tlbs, 0),
    (F.CONTEXT_INVALID, _context(1 | 3 << 2, 2), 0),
    (F.CONTEXT_INVALID, _context(1, 0), 0),
    (F.CONTEXT_INVALID, _context(1, 3), 0),
    (F.CONTEXT_INVALID, _context(1 | 2 << 2, 7), 0),
    (F.ADDRESS_BEYOND_WIDTH, _context(1, 1), 1 << 39),
    (F.ADDRESS_BEYOND_WIDTH, _context(1, 2), 1 << 48),
    (F.ADDRESS_BEYOND_WIDTH, _context(1, 2), (1 << 63) - 1),
    (F.ADDRESS_BEYOND_WIDTH, _context(1, 2), -4096),
    (F.ADDRESS_BEYOND_WIDTH, _context(1 | 2 << 2, 2), 1 << 48),
    (F.WRITE_NOT_ALLOWED, _leaf(1, 1), 0),
    (F.WRITE_NOT_ALLOWED, _leaf(1, 0), 0),
    (F.WRITE_NOT_ALLOWED, _leaf(4, 1), 0),
    (F.PAGING_ENTRY_ACCESS, _leaf(4, 0x0000_FFFF_FFFF_F003, -1), 0),
    (F.PAGING_ENTRY_ACCESS, _leaf(2, 3, -1), 0),
    (F.PAGING_ENTRY_ACCESS, _leaf(2, 3, 8 << 20), 0),
    (F.PAGING_ENTRY_ACCESS, _context(1 | 1 << 62, 2), 0),
    (F.ROOT_TABLE_ACCESS, _root_outside, 0),
    (F.CONTEXT_TABLE_ACCESS, _context_outside, 0),
    (F.ROOT_RESERVED, _root_low, 0),
    (F.ROOT_RESERVED, _root_high, 0),
    (F.CONTEXT_RESERVED, _context(1 | 1 << 4, 2), 0),
    (F.CONTEXT_RESERVED, _context(1, 2 | 1 << 7), 0),
    (F.CONTEXT_RESERVED, _context(1, 2 | 1 << 63), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(1, 3 | 1 << 11), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(1, 3 | 1 << 62), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(1, 3 | 1 << 48), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(3, 3 | 1 << 51), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(2, 0x83, 4096), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(3, 0x83 | 1 << 21, -1), 0),
    (F.PAGING_ENTRY_RESERVED, _leaf(4, 0x83, -1), 0),
    (F.INTERRUPT_RANGE_OUTPUT, _leaf(1, 3 | 0xFEE0_0000, -1), 0),
    (F.INTERRUPT_RANGE_OUTPUT, _leaf(2, 0x83 | 0xFEE0_0000, -1), 0xFF000),
]


@pytest.mark.parametrize(("reason", "break_it", "iova"), REFUSALS)
def test_refusal(t: ByHand, reason: F, break_it, iova: int) -> None:  # type: ignore[no-untyped-def]
    t.put(t.ss[1], t.memory.alloc_page() | 3)
    break_it(t)
    assert t.ask(iova) == (0, 0)
    assert t.fault() == (reason, {"rid": RID, "iova": iova, "reason": reason, "write": 1, "kind": 0})
    assert t.unit["faults"] == 1
    assert t.ask(iova, write=0, rid=RID)[1] == 0 or reason == F.WRITE_NOT_ALLOWED


def test_read_not_allowed(t: ByHand) -> None:
    t.put(t.ss[1], t.memory.alloc_page() | 2)
    assert t.ask(0, write=0) == (0, 0)
    assert t.fault()[0] == F.READ_NOT_ALLOWED
    assert t.ask(0, write=1)[1] == 64
    assert t.ask(0, write=0) == (0, 0), "a cached write-only page"
    assert t.fault()[0] == F.READ_NOT_ALLOWED


def test_every_reason_is_reached() -> None:
    # Translated requests and translation requests, which the type of a context may block, come with a device TLB.
    of_memory = {reason for reason in F if not reason.of_interrupt}
    assert {reason for reason, _, _ in REFUSALS} | {F.READ_NOT_ALLOWED, F.BLOCKED_BY_TYPE} == of_memory


def test_large_pages_the_unit_does_not_know(t: ByHand) -> None:
    t.unit["large"] = 0
    t.put(t.ss[2], t.memory.alloc_chunks(1)[0] | 0x83)
    assert t.ask(0) == (0, 0)
    assert t.fault()[0] == F.PAGING_ENTRY_RESERVED


def test_ignored_bits_are_ignored(t: ByHand) -> None:
    page = t.memory.alloc_page()
    t.put(t.ss[1], page | 3 | 1 << 63 | 0x3FF << 52 | 1 << 10 | 0xFC)
    t.put(t.ss[2], t.ss[1] | 3 | 1 << 63 | 1 << 62 | 1 << 11)
    t.set_context(RID, t.ss[4] | 1, 2 | 5 << 8 | 0xF << 3)
    assert t.ask(8, 8) == (page + 8, 8)


def test_rights_of_all_levels_are_needed(t: ByHand) -> None:
    t.put(t.ss[1], t.memory.alloc_page() | 3)
    t.put(t.ss[3], t.ss[2] | 1)
    assert t.ask(0, write=0)[1] == 64
    assert t.ask(0, write=1) == (0, 0)
    assert t.fault()[0] == F.WRITE_NOT_ALLOWED


def test_fpd_suppresses_what_is_qualified(t: ByHand) -> None:
    t.set_context(RID, t.ss[4] | 3, 2)
    assert t.ask(0x5000) == (0, 0)
    t.set_context(RID + 1, 2, 0)
    assert t.ask(0, rid=RID + 1) == (0, 0)
    assert (t.unit["faults"], t.unit["suppressed"], t.unit["fault_tail"]) == (2, 2, 0)


def test_a_full_ring_has_a_place_for_who_has_few(t: ByHand) -> None:
    """One requester's flood of faults leaves the others their records, and of the flood the oldest stay."""
    other = RID + 1
    for _ in range(FAULT_SLOTS + 7):
        t.ask(0x5000)
    share = FAULT_SLOTS // 8
    for n in range(2 * share):
        t.ask(0x6000 + n * 0x1000, rid=other)
    rids = [int(fault["rid"]) for fault in t.iommu.faults]
    assert rids.count(other) == share, "as many as make an eighth"
    assert rids[: FAULT_SLOTS - share] == [RID] * (FAULT_SLOTS - share)
    assert t.unit["fault_tail"] == FAULT_SLOTS
    assert t.unit["faults_lost"] == 7 + 2 * share, "each place taken is a record lost"


def test_fault_ring_overflow_is_counted(t: ByHand) -> None:
    for _ in range(FAULT_SLOTS + 7):
        t.ask(0x5000)
    assert (t.unit["fault_tail"], t.unit["faults_lost"], t.unit["faults"]) == (FAULT_SLOTS, 7, FAULT_SLOTS + 7)


@pytest.mark.parametrize("nbytes", [0, -1, -(1 << 63)])
def test_no_bytes_is_no_request(t: ByHand, nbytes: int) -> None:
    page = t.memory.alloc_page()
    t.put(t.ss[1], page | 3)
    t.ask(0)
    assert t.ask(0, nbytes) == (0, 0)
    assert t.unit["rejected"] == 1
    assert dma_copy_in(t.iommu.row, RID, 0, nbytes, 0) == 0
    assert dma_copy_out(t.iommu.row, RID, 0, nbytes, 0) == 0
    assert t.unit["faults"] == 0


def test_lengths_that_overflow_are_clipped(t: ByHand) -> None:
    page = t.memory.alloc_page()
    t.put(t.ss[1], page | 3)
    for _ in range(2):
        assert t.ask(0x10, (1 << 63) - 1) == (page + 0x10, 4096 - 0x10)


def test_domains_are_apart(t: ByHand) -> None:
    other = t.memory.alloc_page(), t.memory.alloc_page(), t.memory.alloc_page()
    mine, theirs = t.memory.alloc_page(), t.memory.alloc_page()
    t.put(t.ss[1], mine | 3)
    t.put(other[0], other[1] | 3)
    t.put(other[1], other[2] | 3)
    t.put(other[2], theirs | 3)
    t.set_context(RID + 1, other[0] | 1, 1 | 6 << 8)
    for _ in range(2):
        assert t.ask(0) == (mine, 64)
        assert t.ask(0, rid=RID + 1) == (theirs, 64)


def test_stale_translations_are_used_until_invalidated(t: ByHand) -> None:
    old, new = t.memory.alloc_page(), t.memory.alloc_page()

    def change_and(invalidate) -> tuple[int, int]:  # type: ignore[no-untyped-def]
        t.put(t.ss[1] + 8, old | 3)
        invalidate_iotlb(t.iommu.row, -1)
        assert t.ask(0x1000) == (old, 64)
        t.put(t.ss[1] + 8, new | 3)
        invalidate()
        return t.ask(0x1000)

    row = t.iommu.row
    assert change_and(lambda: None) == (old, 64)
    assert change_and(lambda: invalidate_iotlb(row, 6)) == (old, 64)
    assert change_and(lambda: invalidate_iotlb(row, 5)) == (new, 64)
    assert change_and(lambda: invalidate_iotlb(row, -1)) == (new, 64)
    assert change_and(lambda: invalidate_iotlb_pages(row, 5, 0x0000, 4096)) == (old, 64)
    assert change_and(lambda: invalidate_iotlb_pages(row, 5, 0x2000, 8192)) == (old, 64)
    assert change_and(lambda: invalidate_iotlb_pages(row, 6, 0x1000, 4096)) == (old, 64)
    assert change_and(lambda: invalidate_iotlb_pages(row, 5, 0x1000, 4096)) == (new, 64)
    assert change_and(lambda: invalidate_iotlb_pages(row, 5, 0, GIB)) == (new, 64)
    assert change_and(lambda: invalidate_contexts(row, 0, 0, -1)) == (old, 64), "contexts are another cache"


def test_one_page_of_a_large_one_takes_it_all_away(t: ByHand) -> None:
    chunk = t.memory.alloc_chunks(1)[0]
    t.put(t.ss[2], chunk | 0x83)
    assert t.ask(0x5000)[0] == chunk + 0x5000
    t.put(t.ss[2], 0)
    invalidate_iotlb_pages(t.iommu.row, 5, 0x1F0000, 4096)
    assert t.ask(0x5000) == (0, 0)


def test_stale_contexts_are_used_until_invalidated(t: ByHand) -> None:
    t.put(t.ss[1], t.memory.alloc_page() | 3)
    invalidations = [
        ((0, 0, -1), True),
        ((0, 0, 5), True),
        ((0, 0, 6), False),
        ((RID, 0xFFFF, 5), True),
        ((RID ^ 1, 0xFFFF, 5), False),
        ((RID ^ 3, 0xFFF8, 5), True),
        ((RID, 0xFFFF, 6), False),
    ]
    low, high = t.ss[4] | 1, 2 | 5 << 8
    for arguments, forgets in invalidations:
        t.set_context(RID, low, high)
        invalidate_contexts(t.iommu.row, 0, 0, -1)
        assert t.ask(0)[1] == 64
        t.set_context(RID, 0, 0)
        invalidate_contexts(t.iommu.row, *arguments)
        assert (t.ask(0)[1] == 0) is forgets, arguments


def test_remapping_off_passes_addresses_within_memory(t: ByHand) -> None:
    t.unit["enabled"] = 0
    base, size = t.memory.base, t.memory.size
    for _ in range(2):
        assert t.ask(base + 5, 64) == (base + 5, 64)
        assert t.ask(base + size - 5, 64) == (base + size - 5, 5)
        assert t.ask(base - 1, 64) == (0, 0)
        assert t.ask(base + size, 64) == (0, 0)
        assert t.ask(-1, 64) == (0, 0)
    assert (t.unit["bypassed"], t.unit["aborted"], t.unit["faults"]) == (10, 6, 0)


def test_pass_through_context(t: ByHand) -> None:
    t.set_context(RID, 1 | 2 << 2, 2)
    base = t.memory.base
    assert t.ask(base, 64) == (base, 64)
    assert t.ask(base, t.memory.size + 1) == (base, t.memory.size)
    assert t.ask(0, 64) == (0, 0)
    assert (t.unit["aborted"], t.unit["faults"]) == (1, 0)


def test_page_outside_memory_reaches_nothing(t: ByHand) -> None:
    t.put(t.ss[1], t.memory.base + t.memory.size | 3)
    assert t.ask(0) == (0, 0)
    assert (t.unit["aborted"], t.unit["faults"]) == (1, 0)


def test_interrupt_range_is_not_memory_even_if_mapped(t: ByHand) -> None:
    t.put(t.ss[3] + 8 * 3, (t.memory.base & -GIB) | 0x83)
    chunk = t.memory.alloc_chunks(1)[0]
    table = t.memory.alloc_page()
    t.put(t.ss[3] + 8 * 3, table | 3)
    t.put(table + 8 * (0xFEE0_0000 >> 21 & 511), chunk | 0x83)
    assert t.ask(0xFEF0_0000) == (chunk + 0x10_0000, 64), "the rest of the page"
    assert t.ask(0xFEE0_0000, write=0) == (0, 0)
    assert t.ask(0xFEEF_FFFF, 1) == (0, 0)
    assert (t.unit["aborted"], t.unit["faults"]) == (2, 0)


def test_messages_of_two_requesters_at_one_address_have_bytes_of_their_own(t: ByHand) -> None:
    source = np.array([0x41, 0x52], np.uint32)
    for rid, at in ((RID, 0), (RID + 1, 4)):
        assert dma_copy_out(t.iommu.row, rid, 0xFEE0_1008, 4, address_of(source) + at) == 4
    assert [m["rid"] for m in t.iommu.messages[:2]] == [RID, RID + 1]
    assert t.iommu.message_pages.view(np.uint32)[:2, 2].tolist() == [0x41, 0x52]


def test_a_write_to_the_interrupt_range_is_a_message(t: ByHand) -> None:
    source = np.array([0x41, 0x52], np.uint32)
    row = t.iommu.row
    assert dma_copy_out(row, RID, 0xFEE0_1008, 4, address_of(source)) == 4
    assert dma_copy_out(row, RID, 0xFEE0_1008, 4, address_of(source) + 4) == 4, "the same again, before it was sent"
    assert dma_copy_out(row, RID, 0xFEE0_2000, 4, address_of(source)) == 4
    assert [(m["rid"], m["address"]) for m in t.iommu.messages[: t.unit["message_tail"]]] == [
        (RID, 0xFEE0_1008),
        (RID, 0xFEE0_2000),
    ]
    assert t.iommu.message_pages.view(np.uint32)[[0, 1], [2, 0]].tolist() == [0x52, 0x41]
    for _ in range(MESSAGE_SLOTS):
        t.ask(0xFEE0_0010, 4)
        t.ask(0xFEE0_0020, 4)
    assert (t.unit["message_tail"], t.unit["messages_lost"]) == (MESSAGE_SLOTS, MESSAGE_SLOTS + 2)
    for odd, nbytes in ((0xFEE0_0002, 4), (0xFEE0_0000, 3), (0xFEEF_FFFE, 64)):
        assert t.ask(odd, nbytes) == (0, 0)
    assert t.unit["aborted"] == 3
    t.unit["enabled"] = 0
    t.unit["message_head"] = t.unit["message_tail"]
    assert t.ask(0xFEE0_0000, 4) == (t.iommu.message_pages.ctypes.data, 4), "with remapping off as well"


def test_smallest_iotlb_is_right() -> None:
    t = ByHand(iotlb_entries=1)
    pages = [t.memory.alloc_page() for _ in range(8)]
    for i, page in enumerate(pages):
        t.put(t.ss[1] + 8 * i, page | 3)
    for _ in range(2):
        assert [t.ask(4096 * i) for i in range(8)] == [(page, 64) for page in pages]
    assert t.unit["iotlb_hits"] == 0
    t.memory.close()


def test_one_slot_serves_domains_and_sizes_without_mixing_them() -> None:
    t = ByHand(iotlb_entries=1)
    tables = [t.memory.alloc_page() for _ in range(3)]
    t.put(tables[0], tables[1] | 3)
    t.put(tables[1], tables[2] | 3)
    mine, theirs, large = t.memory.alloc_page(), t.memory.alloc_page(), t.memory.alloc_chunks(1)[0]
    t.put(t.ss[1] + 8, mine | 3)
    t.put(t.ss[2] + 8, large | 0x83)
    t.put(tables[2] + 8, theirs | 3)
    t.set_context(RID + 1, tables[0] | 1, 1 | 6 << 8)
    for _ in range(2):
        assert t.ask(4096) == (mine, 64)
        assert t.ask(MIB2) == (large, 64)
        assert t.ask(4096) == (mine, 64), "page 1 of another size was in the slot"
        assert t.ask(4096, rid=RID + 1) == (theirs, 64), "page 1 of another domain was in the slot"
    t.memory.close()


@pytest.mark.parametrize("entries", [0, -1, 3, 1 << 15])
def test_iotlb_size_is_checked(entries: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        new_iommu(0, 4096, entries)


def test_copies_gather_and_scatter(t: ByHand) -> None:
    a, b = t.memory.alloc_page(), t.memory.alloc_page()
    t.put(t.ss[1], a | 3)
    t.put(t.ss[1] + 8, b | 3)
    source = np.arange(4096, dtype=np.uint64).view(np.uint8)[:5000].copy()
    assert dma_copy_out(t.iommu.row, RID, 100, 5000, address_of(source)) == 5000
    assert (t.view(a + 100, 3996) == source[:3996]).all()
    assert (t.view(b, 1004) == source[3996:]).all()
    back = np.zeros(5000, np.uint8)
    assert dma_copy_in(t.iommu.row, RID, 100, 5000, address_of(back)) == 5000
    assert (back == source).all()


@pytest.mark.parametrize("last", [0, 1], ids=["not mapped", "read only"])
def test_refused_write_touches_no_byte(t: ByHand, last: int) -> None:
    chunk = t.memory.alloc_chunks(1)[0]
    whole = t.view(chunk, MIB2)
    whole[:] = 0xA5
    page = chunk + 0x10000
    t.put(t.ss[1], page | 3)
    t.put(t.ss[1] + 8, (page + 4096) | 3)
    t.put(t.ss[1] + 16, (page + 8192) | last)
    source = np.zeros(16384, np.uint8)
    for _ in range(2):
        assert dma_copy_out(t.iommu.row, RID, 8, 8192, address_of(source)) == 0
        assert t.fault() == (F.WRITE_NOT_ALLOWED, {"rid": RID, "iova": 8192, "reason": 5, "write": 1, "kind": 0})
        assert (whole == 0xA5).all()
    assert dma_copy_out(t.iommu.row, RID, 8, 8184, address_of(source)) == 8184
    assert (t.view(page, 8) == 0xA5).all()
    assert (t.view(page + 8192, 4096) == 0xA5).all()


def test_refused_read_is_short(t: ByHand) -> None:
    t.put(t.ss[1], t.memory.alloc_page() | 3)
    target = np.full(8192, 0xA5, np.uint8)
    assert dma_copy_in(t.iommu.row, RID, 96, 8000, address_of(target)) == 4000
    assert (target[4000:] == 0xA5).all()
