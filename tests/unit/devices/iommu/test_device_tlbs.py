"""Device-TLB invalidation and page responses through the queue: tags, depth, fences, answers that are late or wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.devices.iommu.rig import RID, FakeTlb, Queued, descriptor
from virtfn.hw.types import Rid
from virtfn.hw.vtd.queue import DeviceTlbInvalidation, InvalidationWait, IotlbInvalidation, PageGroupResponse
from virtfn.hw.vtd.regs import FSTS, GCMD, Regs

EVERYTHING = 1 << 64


@pytest.fixture
def q() -> Iterator[Queued]:
    made = Queued()
    yield made
    made.memory.close()


def device_tlb(rid: int = RID, **fields: int) -> int:
    return descriptor(DeviceTlbInvalidation, SID=rid, **fields)


@pytest.mark.parametrize(
    ("s", "page", "address", "nbytes"),
    [
        (0, 0, 0, 4096),
        (0, 0x12345, 0x12345000, 4096),
        (0, 0x1FF, 0x1FF000, 4096),
        (1, 0, 0, 8192),
        (1, 0x12344, 0x12344000, 8192),
        (1, 0x12345, 0x12344000, 16384),
        (1, 0x2FF, 0x200000, 0x200000),
        (1, 0x8000_0000_0000_0 | 1, 1 << 63, 16384),
        (1, (1 << 51) - 1, 0, EVERYTHING),
        (1, (1 << 52) - 1, 0, EVERYTHING),
        (1, (1 << 50) - 1, 0, 1 << 63),
    ],
)
def test_what_is_covered(q: Queued, s: int, page: int, address: int, nbytes: int) -> None:
    tlb = FakeTlb(q.device, prompt=True)
    q.go(device_tlb(S=s, ADDR=page))
    assert [asked[:2] for asked in tlb.asked] == [(address, nbytes)]
    assert q.errors.value == 0


def test_a_wait_waits_for_every_answer(q: Queued) -> None:
    tlb, other = FakeTlb(q.device), FakeTlb(q.device, RID + 1)
    q.go(device_tlb(), device_tlb(RID + 1), q.wait(1), device_tlb(), q.wait(2, 1))
    assert q.head == q.tail, "later descriptors do not wait"
    first, second = (asked[2] for asked in tlb.asked)
    tlb.complete(first)
    assert q.word(q.status) == 0
    tlb.complete(second)
    assert (q.word(q.status), q.word(q.status + 4)) == (0, 0)
    other.complete(other.asked[0][2])
    assert (q.word(q.status), q.word(q.status + 4)) == (1, 2)
    assert q.errors.value == 0
    assert q.device.stats()["device_tlb_requests"] == 3


def test_waits_retire_in_order(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    q.event(Regs.IECTL, 0x52)
    q.go(device_tlb(), q.wait(1), device_tlb(), q.wait(2), descriptor(InvalidationWait, IF=1))
    first, second = (asked[2] for asked in tlb.asked)
    tlb.complete(second)
    assert q.word(q.status) == 0
    tlb.complete(first)
    assert q.word(q.status) == 2
    assert len(q.sent) == 1


def test_a_fence_holds_back_what_follows(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    assert q.reaches(0x1000)
    q.put(q.ss[1] + 8, 0)
    q.go(device_tlb(), q.wait(1, FN=1), descriptor(IotlbInvalidation, G=1), q.wait(2))
    assert q.head == 32
    assert q.reaches(0x1000)
    tlb.complete(tlb.asked[0][2])
    assert (q.word(q.status), q.head) == (2, 64)
    assert not q.reaches(0x1000)


def test_a_prompt_device_holds_nothing_up(q: Queued) -> None:
    tlb = FakeTlb(q.device, prompt=True)
    q.go(*[device_tlb(MIP=1)] * 100, q.wait(1, FN=1), q.wait(2))
    assert len(tlb.asked) == 100
    assert q.word(q.status) == 2


def test_at_most_32_tags(q: Queued) -> None:
    tlbs = [FakeTlb(q.device, RID + i) for i in range(5)]
    q.go(*[device_tlb(RID + i % 5) for i in range(40)], q.wait(1))
    tags = [asked[2] for tlb in tlbs for asked in tlb.asked]
    assert sorted(tags) == list(range(32))
    assert q.head == 32 * 16
    tlbs[3].complete(tlbs[3].asked[0][2])
    assert q.head == 33 * 16
    open_tags = {(tlb, asked[2]) for tlb in tlbs for asked in tlb.asked}
    for _ in range(40):
        for tlb, tag in open_tags:
            tlb.complete(tag) if q.device._device_tlbs._outstanding.get(tag, (0,))[0] == tlb.rid else None
        open_tags = {(tlb, asked[2]) for tlb in tlbs for asked in tlb.asked}
    assert (q.head, q.word(q.status), q.errors.value) == (q.tail, 1, 0)
    assert sum(len(tlb.asked) for tlb in tlbs) == 40


def test_a_device_has_at_most_mip_pending(q: Queued) -> None:
    tlb, other = FakeTlb(q.device), FakeTlb(q.device, RID + 1)
    q.go(device_tlb(MIP=2), device_tlb(RID + 1, MIP=1), device_tlb(MIP=2), device_tlb(MIP=2), q.wait(1))
    assert (len(tlb.asked), len(other.asked), q.head) == (2, 1, 48)
    other.complete(other.asked[0][2])
    assert q.head == 48
    tlb.complete(tlb.asked[0][2])
    assert (len(tlb.asked), q.head) == (3, q.tail)


def test_a_requester_without_a_tlb(q: Queued) -> None:
    q.go(device_tlb(), descriptor(PageGroupResponse, RID=RID), q.wait(1))
    assert q.word(q.status) == 1
    stats = q.device.stats()
    assert (stats["device_tlb_absent"], stats["page_responses_absent"]) == (1, 1)


def test_page_group_response(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    q.go(*(descriptor(PageGroupResponse, RID=RID, PRGI=0x1FF - code, CODE=code) for code in (0, 1, 0xF, 7)))
    assert tlb.answers == [(0x1FF, 0), (0x1FE, 1), (0x1F0, 0xF), (0x1F8, 7)]
    assert q.device.stats()["page_responses"] == 4


def test_no_answer_in_time(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    q.event(Regs.FECTL, 0x41)
    q.go(device_tlb(), q.wait(1), q.wait(2))
    q.clock.sleep(999)
    q.device.service()
    assert q.errors.value == 0
    q.clock.sleep(1)
    q.device.service()
    assert q.errors.value == FSTS.ITE.mask
    assert q.sent == [(0xFEE0_1000, 0x41)]
    stats = q.device.stats()
    assert (stats["device_tlb_timeouts"], stats["waits_dropped"]) == (1, 2)
    q.go(q.wait(3))
    assert (q.head, q.word(q.status)) == (48, 0), "nothing is fetched until software clears the error"
    q.write(Regs.FSTS, FSTS.ITE.mask)
    assert (q.head, q.word(q.status)) == (64, 3)
    tlb.complete(tlb.asked[0][2])
    assert q.errors.value == FSTS.ICE.mask, "too late"
    assert len(q.sent) == 2


def test_a_time_out_releases_a_fence_only_with_ite(q: Queued) -> None:
    FakeTlb(q.device)
    q.go(device_tlb(), q.wait(1, FN=1), q.wait(2))
    q.clock.sleep(2000)
    q.go()
    assert (q.head, q.errors.ITE, q.word(q.status)) == (32, 1, 0)
    q.write(Regs.FSTS, FSTS.ITE.mask)
    assert (q.head, q.word(q.status)) == (48, 2)


def test_one_late_device_among_prompt_ones(q: Queued) -> None:
    late, slow = FakeTlb(q.device), FakeTlb(q.device, RID + 1)
    q.go(device_tlb())
    q.clock.sleep(600)
    q.go(device_tlb(RID + 1))
    q.clock.sleep(600)
    q.device.service()
    assert q.errors.ITE
    q.write(Regs.FSTS, FSTS.ITE.mask)
    q.go(q.wait(1))
    assert q.word(q.status) == 0
    slow.complete(slow.asked[0][2])
    assert (q.word(q.status), q.errors.value) == (1, 0)
    assert len(late.asked) == 1


@pytest.mark.parametrize("what", ["nothing asked", "wrong tag", "wrong device", "twice", "no tag at all"])
def test_an_unexpected_answer(q: Queued, what: str) -> None:
    tlb = FakeTlb(q.device)
    q.event(Regs.FECTL, 0x41)
    if what != "nothing asked":
        q.go(device_tlb(), q.wait(1))
    if what == "twice":
        tlb.complete(0)
    rid = Rid(RID + 1) if what == "wrong device" else tlb.rid
    tag = {"wrong tag": 5, "no tag at all": -1}.get(what, 0)
    q.device.complete_device_tlb(rid, tag)
    assert q.errors.value == FSTS.ICE.mask
    assert q.sent == [(0xFEE0_1000, 0x41)]
    assert q.word(q.status) == (1 if what == "twice" else 0)
    q.go(descriptor(InvalidationWait, FN=1))
    assert q.head == q.tail, "the queue goes on"
    assert q.device.stats()["device_tlb_unexpected"] == 1


def test_reset_forgets_what_is_outstanding(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    q.go(*[device_tlb()] * 40, q.wait(1))
    q.device.reset()
    q.clock.sleep(1 << 40)
    q.device.service()
    assert (q.errors.value, q.word(q.status)) == (0, 0)
    tlb.complete(0)
    assert q.errors.ICE
    q.device.reset()
    q.tail = 0
    q.write(Regs.IQA, q.ring)
    q.write(Regs.GCMD, GCMD.QIE.mask)
    q.go(device_tlb(), q.wait(2))
    tlb.complete(tlb.asked[-1][2])
    assert q.word(q.status) == 2


def test_switching_off_drops_waits(q: Queued) -> None:
    tlb = FakeTlb(q.device)
    q.go(device_tlb(), q.wait(1))
    q.write(Regs.GCMD, GCMD.TE.mask)
    tlb.complete(0)
    assert (q.errors.value, q.word(q.status)) == (0, 0)
