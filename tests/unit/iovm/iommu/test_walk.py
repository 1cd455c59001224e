"""One request, entry by entry: what is said on the way, how it ends, and what caches still hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.iovm.iommu.looking import live, saved
from unit.remapping import MIB2, RID, ByHand
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.interrupts import RemappableAddress, RemappedIrte
from virtfn.hw.vtd.regs import ECAP, IRTA
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.explanation import Explanation
from virtfn.iovm.iommu.walk import explain
from virtfn.kernels.vtd.ats import RID_STRIDE, new_device_tlb
from virtfn.kernels.vtd.irqremap import DELIVERED, remap_interrupt

READ_ONLY, READ_WRITE = 1, 3


@pytest.fixture
def hand() -> Iterator[ByHand]:
    made = ByHand()
    made.put(made.ss[1], made.memory.base + MIB2 | READ_WRITE)
    made.put(made.ss[1] + 8, made.memory.base | READ_ONLY)
    yield made
    made.memory.close()


def ask(hand: ByHand, iova: int, write: bool = True, **changes: object) -> Explanation:
    return explain(live(hand, **changes), Rid(RID), Iova(iova), write)


def test_every_entry_on_the_way_to_a_page_is_told(hand: ByHand) -> None:
    said = ask(hand, 0x123)
    assert [step["entry"] for step in said["steps"]] == [
        "root entry 1", "context entry 128", "level 4 entry 0", "level 3 entry 0", "level 2 entry 0", "level 1 entry 0",
    ]  # fmt: skip
    assert [step["address"] for step in said["steps"]] == [
        hand.root + 16, hand.context + 128 * 16, hand.ss[4], hand.ss[3], hand.ss[2], hand.ss[1],
    ]  # fmt: skip
    assert said["steps"][1]["words"] == "device 10, function 0: domain 5, second stage, 48-bit addresses"
    assert said["steps"][-1]["value"] == f"{hand.memory.base + MIB2 | 3:#018x}"
    assert said["steps"][-1]["words"] == "read and write so far, 4 KiB page"
    verdict = said["verdict"]
    assert verdict["outcome"] == "page"
    assert (verdict["hpa"], verdict["page"]) == (hand.memory.base + MIB2 + 0x123, hand.memory.base + MIB2)
    assert (verdict["page_bytes"], verdict["read"], verdict["write"]) == (4096, True, True)


@pytest.mark.parametrize("fpd", [0, 2])
def test_a_fault_has_its_code_and_says_whether_it_is_recorded(hand: ByHand, fpd: int) -> None:
    hand.set_context(RID, hand.ss[4] | 1 | fpd, 2 | 5 << 8)
    verdict = ask(hand, 0x1000)["verdict"]
    assert (verdict["outcome"], verdict["code"]) == ("fault", FaultReason.WRITE_NOT_ALLOWED)
    assert verdict["recorded"] == (not fpd)
    assert verdict["words"] == "0x5, write not allowed; " + ("not recorded: FPD suppresses it" if fpd else "recorded")
    assert ask(hand, 0x1000, write=False)["verdict"]["outcome"] == "page"


def test_what_cannot_be_read_ends_the_walk_there(hand: ByHand) -> None:
    hand.put(hand.ss[3], 0xDEAD000 | 3)
    said = ask(hand, 0)
    assert said["steps"][-1] == {
        "entry": "level 2 entry 0", "address": 0xDEAD000, "value": "", "fields": "", "words": "cannot be read",
    }  # fmt: skip
    assert said["verdict"]["code"] == FaultReason.PAGING_ENTRY_ACCESS


def test_a_request_may_be_allowed_and_reach_nothing(hand: ByHand) -> None:
    hand.put(hand.ss[1], 0x5000 | 3)
    assert ask(hand, 0)["verdict"]["outcome"] == "nothing"
    assert ask(hand, hand.memory.base, enabled=False)["verdict"]["outcome"] == "remapping-off"
    assert ask(hand, 0, enabled=False)["verdict"]["outcome"] == "nothing"
    hand.set_context(RID, 1 | 2 << 2, 2)
    assert ask(hand, hand.memory.base)["verdict"]["outcome"] == "pass-through"


def test_device_tlb_contexts_translate_where_the_unit_allows_them(hand: ByHand) -> None:
    hand.set_context(RID, hand.ss[4] | 1 | 1 << 2, 2 | 5 << 8)
    assert ask(hand, 0)["verdict"]["code"] == FaultReason.CONTEXT_INVALID
    said = ask(hand, 0, ecap=ECAP.of(DT=1))
    assert said["verdict"]["outcome"] == "page"
    assert "device tlb" in said["steps"][1]["words"]


def test_a_translation_that_was_cached_and_changed_is_stale(hand: ByHand) -> None:
    assert ask(hand, 0)["caches"] == {"context": "none", "iotlb": None}
    hpa, _ = hand.ask(0)
    caches = ask(hand, 0)["caches"]
    assert caches is not None
    assert caches["context"] == "equal"
    assert caches["iotlb"] == {
        "iova": 0, "hpa": hpa, "bytes": 4096, "read": True, "write": True, "stale": False,
    }  # fmt: skip
    hand.put(hand.ss[1], 0)
    said = ask(hand, 0)
    assert said["verdict"]["outcome"] == "fault"
    assert said["caches"] == {"context": "equal", "iotlb": {**caches["iotlb"], "stale": True}}
    assert hand.ask(0)[0] == hpa, "as it said: the IOTLB serves"
    hand.set_context(RID, 0, 0)
    caches = ask(hand, 0)["caches"]
    assert caches is not None
    assert caches["context"] == "stale"
    assert caches["iotlb"]
    assert caches["iotlb"]["stale"]


def test_what_a_device_holds_is_seen_too(hand: ByHand) -> None:
    tlb = new_device_tlb(16)
    hand.iommu.contexts[RID]["device_tlb"] = tlb.ctypes.data
    none = ask(hand, 0)["caches"]
    assert none is not None
    assert none["device_tlb"] is None
    held = tlb[0]["entries"][(RID * RID_STRIDE) & 15]
    held["rid"], held["page"], held["rights"], held["hpa"] = RID, 0, 3, hand.memory.base + MIB2
    for stale in (False, True):
        caches = ask(hand, 0x10)["caches"]
        assert caches is not None
        assert caches["device_tlb"]
        assert (caches["device_tlb"]["hpa"], caches["device_tlb"]["stale"]) == (hand.memory.base + MIB2, stale)
        hand.put(hand.ss[1], 0)


def test_a_saved_state_says_nothing_of_caches() -> None:
    assert explain(saved({}), Rid(0), Iova(0), True)["caches"] is None


def test_a_message_is_decoded_and_its_entry_walked(hand: ByHand) -> None:
    table = hand.memory.alloc_page()
    entry = RemappedIrte.of(P=1, V=0x45, DST=0x300, SID=RID, SVT=1).value
    hand.put(table + 16 * 3, entry)
    hand.put(table + 16 * 3 + 8, entry >> 64)
    hand.unit["remapping"], hand.unit["irta"], hand.unit["irt_entries"] = 1, table, 16
    changes = {"remapping": True, "irta": IRTA(table | 3)}
    address = RemappableAddress.of(BASE=0xFEE, FORMAT=1, SHV=1, HANDLE=2).value
    state = live(hand, **changes)
    said = explain(state, Rid(RID), Iova(address), True, 1)
    assert [step["words"] for step in said["steps"]] == [
        "handle 2 and subhandle 1: entry 3", "may be used by 0000:01:10.0",
    ]  # fmt: skip
    verdict = said["verdict"]
    assert (verdict["outcome"], verdict["vector"], verdict["destination"]) == ("interrupt", 0x45, 3)
    assert said["caches"] == {"interrupt": "none"}
    assert remap_interrupt(hand.iommu.row, RID, address, 1) == (DELIVERED, 0x45, 3)
    assert explain(state, Rid(RID), Iova(address), True, 1)["caches"] == {"interrupt": "equal"}
    hand.put(table + 16 * 3, 0)
    said = explain(state, Rid(RID), Iova(address), True, 1)
    assert said["caches"] == {"interrupt": "stale"}
    assert said["verdict"]["code"] == FaultReason.INTERRUPT_ENTRY_NOT_PRESENT
    forged = explain(state, Rid(RID + 1), Iova(0xFEE00000), True)["verdict"]
    assert forged["code"] == FaultReason.COMPATIBILITY_FORMAT_BLOCKED
