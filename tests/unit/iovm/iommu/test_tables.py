"""The reader of tables: what is listed, what is merged, what is broken, and garbage without end."""

from __future__ import annotations

import time

import numpy as np

from unit.iovm.iommu.looking import live, saved
from unit.remapping import GIB, MIB2, RID, ByHand
from virtfn.hw.vtd.interrupts import PostedIrte, RemappedIrte
from virtfn.hw.vtd.regs import ECAP, IRTA
from virtfn.hw.vtd.tables import ContextEntry, FaultReason
from virtfn.iovm.iommu import tables
from virtfn.iovm.iommu.state import SavedPages, UnitState
from virtfn.iovm.iommu.tables import Recorded, TableReader

K4 = 4096
ROOT = {0x1000 + 16: 0x2001}  # bus 1


def context(function: int, low: int, high: int) -> dict[int, int]:
    return {0x2000 + 16 * function: low, 0x2008 + 16 * function: high}


def test_adjacent_pages_of_equal_rights_are_one_mapping_and_memory_is_in_pieces() -> None:
    words = {0x6000 + 8 * i: 0x100000 + i * K4 | 3 for i in range(4)}
    words |= {0x6000 + 8 * 4: 0x900000 | 3, 0x6000 + 8 * 5: 0x901000 | 1, 0x6000 + 8 * 9: 0x902000 | 2}
    words |= {0x3000: 0x4003, 0x4000: 0x5003, 0x5000: 0x6003, 0x5008: MIB2 | 0x83, 0x4008: GIB | 0x81}
    (domain,) = TableReader(saved(ROOT | context(0x80, 0x3001, 2 | 7 << 8) | words)).domains()
    assert (domain["id"], domain["rids"], domain["levels"], domain["tables"]) == (7, ["0000:01:10.0"], 4, 4)
    assert domain["mappings"] == [
        {"iova": 0, "bytes": 5 * K4, "read": True, "write": True},
        {"iova": 5 * K4, "bytes": K4, "read": True, "write": False},
        {"iova": 9 * K4, "bytes": K4, "read": False, "write": True},
        {"iova": MIB2, "bytes": MIB2, "read": True, "write": True},
        {"iova": GIB, "bytes": GIB, "read": True, "write": False},
    ]
    assert domain["targets"] == [
        {"iova": 0, "hpa": 0x100000, "bytes": 4 * K4},
        {"iova": 4 * K4, "hpa": 0x900000, "bytes": 2 * K4},
        {"iova": 9 * K4, "hpa": 0x902000, "bytes": K4},
        {"iova": MIB2, "hpa": MIB2, "bytes": MIB2},
        {"iova": GIB, "hpa": GIB, "bytes": GIB},
    ]
    assert (domain["broken"], domain["truncated"]) == (0, False)


def test_rights_of_all_levels_count() -> None:
    words = {0x3000: 0x4001, 0x4000: 0x5003, 0x5000: 0x83, 0x3008: 0x4002}
    (domain,) = TableReader(saved(ROOT | context(0, 0x3001, 2) | words)).domains()
    assert [(m["iova"], m["read"], m["write"]) for m in domain["mappings"]] == [
        (0, True, False),
        (1 << 39, False, True),
    ]


def test_requesters_share_a_domain_and_pass_through_has_no_tables() -> None:
    words = ROOT | context(0, 0x3001, 2 | 7 << 8) | context(1, 0x3001, 2 | 7 << 8) | context(2, 9, 2 | 1 << 8)
    passing, shared = TableReader(saved(words | {0x3000: 0})).domains()
    assert shared["rids"] == ["0000:01:00.0", "0000:01:00.1"]
    assert (passing["id"], passing["pass_through"], passing["levels"], passing["mappings"]) == (1, True, 0, [])


def test_device_tlbs_are_allowed_where_the_unit_has_them() -> None:
    entry = ROOT | context(0, 0x3001 | 1 << 2, 2 | 7 << 8) | {0x3000: 0}
    reader = TableReader(saved(entry))
    assert reader.domains() == []
    assert reader.broken[0]["code"] == FaultReason.CONTEXT_INVALID
    (domain,) = TableReader(saved(entry, ecap=ECAP.of(DT=1))).domains()
    assert domain["device_tlb"]


def test_entries_that_cannot_be_used_are_named_with_their_fault() -> None:
    words = {0x1000: 0x2001 | 8, **ROOT, 0x1020: 0x99000}  # reserved bits; good; absent
    words |= context(0, 0x3001 | 1 << 5, 2) | context(1, 0x3001, 7) | context(2, 0x3000, 2)
    reader = TableReader(saved(words))
    assert reader.domains() == []
    assert [(b["entry"], b["code"]) for b in reader.broken] == [
        ("root entry of bus 00", FaultReason.ROOT_RESERVED),
        ("context entry of 0000:01:00.0", FaultReason.CONTEXT_RESERVED),
        ("context entry of 0000:01:00.1", FaultReason.CONTEXT_INVALID),
    ]
    assert reader.broken[0]["value"] == f"{0x2009:#034x}"


def test_broken_pages_are_counted_and_not_mapped() -> None:
    words = {0x3000: 0x4003, 0x4000: 0x5003, 0x5000: 0x6003}
    words |= {0x5008: MIB2 + K4 | 0x83, 0x5010: 0x7003 | 1 << 50, 0x3008: GIB | 0x83, 0x4008: 0xABC003}
    words |= {0x6000: 0x100003, 0x6008: 0x101003 | 1 << 62, 0x6010: 0x102003 | 1 << 11}
    (domain,) = TableReader(saved(ROOT | context(0, 0x3001, 2) | words)).domains()
    assert domain["mappings"] == [{"iova": 0, "bytes": K4, "read": True, "write": True}]
    assert domain["broken"] == 6  # four entries above, two pages; one of them is a table that is no memory


def test_tables_that_name_each_other_end_at_a_bound() -> None:
    """One page that is its own table at every level: 2**36 pages, seen as one mapping or given up."""
    page = np.full(512, 0x3003, np.uint64)
    memory = SavedPages({0x1000: np.full(512, 0, np.uint64), 0x2000: np.full(512, 0, np.uint64), 0x3000: page})
    memory.pages[0x1000][:] = np.tile(np.array([0x2001, 0], np.uint64), 256)
    memory.pages[0x2000][:] = np.tile(np.array([0x3001, 2], np.uint64), 256)
    state = saved({})
    reader = TableReader(
        UnitState(memory=memory, root=0x1000, enabled=True, cap=state.cap, ecap=state.ecap), tables=500
    )
    before = time.perf_counter()
    (domain,) = reader.domains()
    assert time.perf_counter() - before < 20
    assert len(domain["rids"]) == 1 << 16
    assert domain["tables"] <= 500
    assert reader.truncated
    assert domain["truncated"]
    page[1::2] = 0  # now every other page: more mappings than an answer holds
    reader = TableReader(UnitState(memory=memory, root=0x1000, enabled=True, cap=state.cap, ecap=state.ecap))
    (domain,) = reader.domains()
    assert len(domain["mappings"]) == len(domain["targets"]) == tables.MAX_MAPPINGS
    assert domain["truncated"]


def test_interrupt_entries() -> None:
    remapped = RemappedIrte.of(P=1, V=0x31, DST=0x500, SID=0x180, SVT=1, SQ=2).value
    posted = PostedIrte.of(P=1, IM=1, VV=0x41, PDA_LOW=0x1240 >> 6, PDA_HIGH=1, SID=0x0103, SVT=2).value
    broken = RemappedIrte.of(P=1, V=0x51).value | 1 << 13
    bits = {0: remapped, 1: posted, 3: broken, 300: remapped}
    words = {
        0x8000 + 16 * i + 8 * half: value >> 64 * half & (1 << 64) - 1 for i, value in bits.items() for half in (0, 1)
    }
    reader = TableReader(saved(words, irta=IRTA(0x8000 | 7)))
    first, second, third = reader.interrupts()  # 256 entries
    assert (first["index"], first["vector"], first["destination"], first["descriptor"]) == (0, 0x31, 5, None)
    assert first["requester"] == "0000:01:10.0 to 0000:01:10.6, bits 110 ignored"
    assert (second["posted"], second["descriptor"], second["destination"]) == (True, 0x1_0000_1240, None)
    assert second["requester"] == "buses 01 to 03"
    assert (third["index"], third["broken"], third["requester"]) == (3, True, "anyone")
    (wide, *_) = TableReader(saved(words, irta=IRTA(0x8000 | 8 | 1 << 11))).interrupts()
    assert wide["destination"] == 0x500
    assert TableReader(saved(words)).interrupts() == []


def test_a_unit_that_runs_is_read_where_it_is() -> None:
    hand = ByHand()
    try:
        hand.put(hand.ss[1], hand.memory.base | 3)
        memory = Recorded(live(hand).memory)
        (domain,) = TableReader(live(hand, memory=memory)).domains()
        assert domain["id"] == 5
        assert domain["mappings"] == [{"iova": 0, "bytes": K4, "read": True, "write": True}]
        assert domain["targets"] == [{"iova": 0, "hpa": hand.memory.base, "bytes": K4}]
        assert set(memory.pages) == {hand.root, hand.context, *hand.ss.values()}
        hand.set_context(RID, ContextEntry.of(P=0).value, 0)
        assert TableReader(live(hand)).domains() == []
    finally:
        hand.memory.close()
