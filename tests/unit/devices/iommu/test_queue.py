"""Queued invalidation: its registers, every descriptor, errors, waits, the completion event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.devices.iommu.rig import RID, Queued, descriptor
from virtfn.hw.vtd.queue import (
    ContextInvalidation,
    DeviceTlbInvalidation,
    InterruptInvalidation,
    InvalidationWait,
    IotlbInvalidation,
    PageGroupResponse,
)
from virtfn.hw.vtd.regs import CCMD, FSTS, GCMD, GSTS, ICS, IOTLB, IQA, EventControl, Regs
from virtfn.kernels.vtd.irqremap import DELIVERED, remap_interrupt

NOTHING = descriptor(InvalidationWait, FN=1)


@pytest.fixture
def q() -> Iterator[Queued]:
    made = Queued()
    yield made
    made.memory.close()


def test_a_wait_writes_its_word(q: Queued) -> None:
    q.go(q.wait(0xDEADBEEF, 3))
    assert q.word(q.status + 12) == 0xDEADBEEF
    assert q.head == q.read(Regs.IQT) == 16
    assert q.device.stats()["invalidations"] == 1


@pytest.mark.parametrize("qs", [0, 1, 3])
def test_the_ring_wraps(qs: int) -> None:
    q = Queued(qs)
    for i in range(2 * q.slots // 100 + 2):
        q.go(*[NOTHING] * 99, q.wait(i + 1))
        assert q.word(q.status) == i + 1
        assert q.head == q.tail == (i + 1) * 1600 % (q.slots * 16)
    q.memory.close()


def test_a_full_ring(q: Queued) -> None:
    q.go(*[NOTHING] * 254, q.wait(7))
    assert q.head == q.tail == 255 * 16
    q.go(*[NOTHING] * 254, q.wait(8))
    assert q.word(q.status) == 8
    assert q.head == 254 * 16
    assert q.device.stats()["invalidations"] == 510


def test_nothing_happens_while_it_is_off(q: Queued) -> None:
    q.write(Regs.GCMD, GCMD.TE.mask)
    assert GSTS(q.read(Regs.GSTS)).QIES == 0
    q.go(q.wait(1))
    assert (q.word(q.status), q.head) == (0, 0)
    q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
    assert (q.word(q.status), q.head) == (1, 16), "what was queued before is done when it is switched on"
    q.write(Regs.GCMD, GCMD.TE.mask)
    assert q.head == 0


def test_address_takes_effect_when_switched_on(q: Queued) -> None:
    other = q.memory.alloc_page()
    q.write(Regs.IQA, other)
    q.go(q.wait(1))
    assert q.word(q.status) == 1
    q.write(Regs.GCMD, GCMD.TE.mask)
    q.write(Regs.IQT, 0)
    q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
    q.ring, q.tail = other, 0
    q.go(q.wait(2))
    assert q.word(q.status) == 2


def test_registers_of_the_queue(q: Queued) -> None:
    q.write(Regs.GCMD, 0)
    q.write(Regs.IQA, (1 << 64) - 1)
    assert q.read(Regs.IQA) == (1 << 64) - 4096 | IQA.QS.mask, "256-bit descriptors are of scalable mode"
    q.write(Regs.IQT, (1 << 64) - 1)
    assert q.read(Regs.IQT) == 0x7FFF0
    q.write(Regs.IQH, (1 << 64) - 1)
    assert q.read(Regs.IQH) == 0
    q.write(Regs.ICS, 0xFFFF_FFFF)
    assert q.read(Regs.ICS) == 0
    q.write(Regs.IECTL, 0xFFFF_FFFF)
    assert q.read(Regs.IECTL) == EventControl.IM.mask
    q.write(Regs.IEADDR, 0xFFFF_FFFF)
    assert q.read(Regs.IEADDR) == 0xFFFF_FFFC


def test_registers_in_halves(q: Queued) -> None:
    q.place(q.wait(5))
    q.device.write(Regs.IQT.offset, 4, q.tail)
    assert q.word(q.status) == 5
    q.device.write(Regs.IQT.offset + 4, 4, 0xFFFF_FFFF)
    assert q.read(Regs.IQT) == q.device.read(Regs.IQT.offset, 4) == q.device.read(Regs.IQH.offset, 4) == 16
    assert q.device.read(Regs.IQT.offset + 4, 4) == q.device.read(Regs.IQH.offset + 4, 4) == 0
    q.write(Regs.GCMD, GCMD.TE.mask)
    q.device.write(Regs.IQA.offset, 4, 0x1234_5001)
    q.device.write(Regs.IQA.offset + 4, 4, 0x9)
    assert q.read(Regs.IQA) == 0x9_1234_5001
    assert (q.device.read(Regs.IQA.offset, 4), q.device.read(Regs.IQA.offset + 4, 4)) == (0x1234_5001, 9)


@pytest.mark.parametrize(
    ("fields", "forgets"),
    [
        ({"G": 1}, True),
        ({"G": 2, "DID": 5}, True),
        ({"G": 2, "DID": 6}, False),
        ({"G": 3, "DID": 5, "SID": RID}, True),
        ({"G": 3, "DID": 6, "SID": RID}, False),
        ({"G": 3, "DID": 5, "SID": RID ^ 1}, False),
        ({"G": 3, "DID": 5, "SID": RID ^ 4, "FM": 1}, True),
        ({"G": 3, "DID": 5, "SID": RID ^ 6, "FM": 2}, True),
        ({"G": 3, "DID": 5, "SID": RID ^ 7, "FM": 3}, True),
        ({"G": 3, "DID": 5, "SID": RID ^ 1, "FM": 2}, False),
    ],
)
def test_contexts(q: Queued, fields: dict[str, int], forgets: bool) -> None:
    assert q.reaches(0x1000)
    q.set_context(RID, 0, 0)
    assert q.reaches(0x1000), "stale until invalidated"
    q.go(descriptor(ContextInvalidation, **fields))
    assert q.reaches(0x1000) is not forgets


@pytest.mark.parametrize(
    ("fields", "forgets"),
    [
        ({"G": 1}, True),
        ({"G": 1, "DW": 1, "DR": 1}, True),
        ({"G": 2, "DID": 5}, True),
        ({"G": 2, "DID": 6}, False),
        ({"G": 3, "DID": 5, "ADDR": 1}, True),
        ({"G": 3, "DID": 5, "ADDR": 1, "IH": 1}, True),
        ({"G": 3, "DID": 6, "ADDR": 1}, False),
        ({"G": 3, "DID": 5, "ADDR": 2}, False),
        ({"G": 3, "DID": 5, "ADDR": 2, "AM": 2}, True),
        ({"G": 3, "DID": 5, "ADDR": 0x3FFFF, "AM": 18}, True),
        ({"G": 3, "DID": 5, "ADDR": 0x40000, "AM": 18}, False),
        ({"G": 3, "DID": 5, "ADDR": (1 << 52) - 1, "AM": 18}, False),
    ],
)
def test_translations(q: Queued, fields: dict[str, int], forgets: bool) -> None:
    assert q.reaches(0x1000)
    q.put(q.ss[1] + 8, 0)
    assert q.reaches(0x1000), "stale until invalidated"
    q.go(descriptor(IotlbInvalidation, **fields))
    assert q.errors.value & ~FSTS.FRI.mask == 0
    assert q.reaches(0x1000) is not forgets


@pytest.mark.parametrize(
    ("fields", "forgets"),
    [
        ({}, True),
        ({"G": 1, "IIDX": 9}, True),
        ({"G": 1, "IIDX": 8}, False),
        ({"G": 1, "IIDX": 8, "IM": 1}, True),
        ({"G": 1, "IIDX": 0xFFFF, "IM": 15}, False),
        ({"G": 1, "IIDX": 0xFFFF, "IM": 31}, True),
    ],
)
def test_interrupt_entries(q: Queued, fields: dict[str, int], forgets: bool) -> None:
    table = q.memory.alloc_page()
    q.put(table + 9 * 16, 1 | 0x41 << 16)
    unit = q.iommu.unit[0]
    unit["remapping"], unit["irta"], unit["irt_entries"] = 1, table, 256
    message = 0xFEE0_0000 | 9 << 5 | 1 << 4
    row = q.iommu.row
    assert remap_interrupt(row, RID, message, 0)[0] == DELIVERED
    q.put(table + 9 * 16, 0)
    assert remap_interrupt(row, RID, message, 0)[0] == DELIVERED, "stale until invalidated"
    q.go(descriptor(InterruptInvalidation, **fields))
    assert (remap_interrupt(row, RID, message, 0)[0] != DELIVERED) is forgets


BAD = {
    "type 0": 0,
    "type 6": 6,
    "type 10": 10,
    "type 15": 15,
    "high type": NOTHING | 1 << 9,
    "context: granularity 0": descriptor(ContextInvalidation),
    "context: bit 6": descriptor(ContextInvalidation, G=1) | 1 << 6,
    "context: bit 50": descriptor(ContextInvalidation, G=1) | 1 << 50,
    "context: high half": descriptor(ContextInvalidation, G=1) | 1 << 127,
    "iotlb: granularity 0": descriptor(IotlbInvalidation),
    "iotlb: bit 8": descriptor(IotlbInvalidation, G=1) | 1 << 8,
    "iotlb: bit 32": descriptor(IotlbInvalidation, G=1) | 1 << 32,
    "iotlb: bit 71": descriptor(IotlbInvalidation, G=1) | 1 << 71,
    "iotlb: too many pages": descriptor(IotlbInvalidation, G=3, AM=19),
    "device TLB: bit 65": descriptor(DeviceTlbInvalidation) | 1 << 65,
    "device TLB: PFSID without DIT": descriptor(DeviceTlbInvalidation, PFSID_LOW=1),
    "interrupts: bit 5": descriptor(InterruptInvalidation) | 1 << 5,
    "interrupts: high half": descriptor(InterruptInvalidation) | 1 << 64,
    "wait: page requests drained": descriptor(InvalidationWait, FN=1, PD=1),
    "wait: bit 8": NOTHING | 1 << 8,
    "wait: bit 64": NOTHING | 1 << 64,
    "wait: status at 0": descriptor(InvalidationWait, SW=1),
    "wait: status far away": descriptor(InvalidationWait, SW=1, ADDR=(1 << 62) - 1),
    "response: PASID": descriptor(PageGroupResponse, PP=1),
    "response: bit 64": descriptor(PageGroupResponse) | 1 << 64,
}


@pytest.mark.parametrize("word", BAD.values(), ids=BAD.keys())
def test_bad_descriptors_stop_the_queue(q: Queued, word: int) -> None:
    q.event(Regs.FECTL, 0x41)
    q.go(NOTHING, word, q.wait(1))
    assert (q.head, q.word(q.status)) == (16, 0)
    assert q.errors.value == FSTS.IQE.mask
    assert q.sent == [(0xFEE0_1000, 0x41)]
    q.go(q.wait(2))
    assert (q.head, len(q.sent)) == (16, 1), "nothing is fetched until software clears the error"
    q.write(Regs.FSTS, FSTS.IQE.mask)
    assert (q.head, len(q.sent)) == (16, 2), "and then it is tried again"
    q.put(q.ring + 16, NOTHING)
    q.put(q.ring + 24, 0)
    q.write(Regs.FSTS, FSTS.IQE.mask)
    assert (q.head, q.word(q.status), q.errors.value) == (64, 2, 0)
    assert q.device.stats()["invalidation_errors"] == 2


def test_status_word_at_the_very_end_of_memory(q: Queued) -> None:
    end = q.memory.base + q.memory.size
    q.go(descriptor(InvalidationWait, SW=1, DATA=9, ADDR=end - 4 >> 2))
    assert q.word(end - 4) == 9
    q.go(descriptor(InvalidationWait, SW=1, DATA=9, ADDR=end >> 2))
    assert q.errors.IQE


def test_a_wait_that_tells_nobody_is_done(q: Queued) -> None:
    q.go(descriptor(InvalidationWait, DATA=5, ADDR=1))
    assert (q.head, q.errors.value) == (16, 0)


def test_tail_beyond_the_queue(q: Queued) -> None:
    for _ in range(256):
        q.place(NOTHING)
    q.write(Regs.IQT, 4096)
    assert (q.errors.IQE, q.head) == (1, 0)
    q.write(Regs.FSTS, FSTS.IQE.mask)
    assert q.errors.IQE == 1
    q.write(Regs.IQT, 0)
    q.write(Regs.FSTS, FSTS.IQE.mask)
    q.go(q.wait(1))
    assert (q.errors.value, q.word(q.status)) == (0, 1)


@pytest.mark.parametrize("where", ["nowhere", "wild", "before", "after"])
def test_queue_outside_memory(q: Queued, where: str) -> None:
    base, size = q.memory.base, q.memory.size
    address = {"nowhere": 0, "wild": (1 << 64) - 4096, "before": base - 4096, "after": base + size}[where]
    q.write(Regs.GCMD, GCMD.TE.mask)
    q.write(Regs.IQA, address)
    q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
    assert q.errors.value == 0, "an empty queue is not read"
    q.write(Regs.IQT, 16)
    assert (q.errors.value, q.head) == (FSTS.IQE.mask, 0)


def test_queue_that_memory_cuts(q: Queued) -> None:
    q.write(Regs.GCMD, GCMD.TE.mask)
    q.ring = q.memory.base + q.memory.size - 4096
    q.write(Regs.IQA, q.ring | 1)
    q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
    q.slots = 256
    q.go(*[NOTHING] * 255)
    q.place(NOTHING)
    q.write(Regs.IQT, 4096)
    assert (q.head, q.errors.value) == (4096, 0)
    q.write(Regs.IQT, 4096 + 16)
    assert (q.head, q.errors.value) == (4096, FSTS.IQE.mask)


def test_an_error_does_not_survive_switching_off_and_reset(q: Queued) -> None:
    q.go(0)
    q.write(Regs.GCMD, GCMD.TE.mask)
    q.write(Regs.FSTS, FSTS.IQE.mask)
    assert q.errors.value == 0
    q.device.reset()
    assert [q.read(d) for d in (Regs.IQA, Regs.IQH, Regs.IQT, Regs.GSTS)] == [0, 0, 0, 0]
    assert q.read(Regs.IECTL) == EventControl.IM.mask


@pytest.mark.parametrize("decl", [Regs.CCMD, Regs.IOTLB])
def test_registers_are_refused_while_the_queue_is_on(q: Queued, decl) -> None:
    assert q.reaches(0x1000)
    q.set_context(RID, 0, 0)
    q.put(q.ss[1] + 8, 0)
    q.write(decl, CCMD.of(ICC=1, CIRG=1).value if decl is Regs.CCMD else IOTLB.of(IVT=1, IIRG=1).value)
    done = q.read(decl)
    if decl is Regs.CCMD:
        assert (CCMD(done).ICC, CCMD(done).CAIG) == (0, 0)
    else:
        assert (IOTLB(done).IVT, IOTLB(done).IAIG) == (0, 0)
    assert q.reaches(0x1000)
    assert q.device.stats()["register_invalidations_refused"] == 1


def test_completion_event(q: Queued) -> None:
    q.event(Regs.IECTL, 0x52)
    q.go(descriptor(InvalidationWait, IF=1), descriptor(InvalidationWait, IF=1))
    assert q.sent == [(0xFEE0_1000, 0x52)], "one event until software clears IWC"
    assert q.read(Regs.ICS) == ICS.IWC.mask
    q.write(Regs.ICS, 0)
    assert q.read(Regs.ICS) == ICS.IWC.mask
    q.write(Regs.ICS, ICS.IWC.mask)
    assert q.read(Regs.ICS) == 0
    q.go(q.wait(3, IF=1))
    assert len(q.sent) == 2
    assert q.word(q.status) == 3


def test_completion_event_masked(q: Queued) -> None:
    q.event(Regs.IECTL, 0x52, masked=True)
    q.go(descriptor(InvalidationWait, IF=1))
    assert q.sent == []
    assert q.read(Regs.IECTL) == EventControl.IM.mask | EventControl.IP.mask
    q.write(Regs.IECTL, EventControl.IM.mask)
    assert EventControl(q.read(Regs.IECTL)).IP, "still masked, still pending"
    q.write(Regs.IECTL, 0)
    assert (q.sent, q.read(Regs.IECTL)) == ([(0xFEE0_1000, 0x52)], 0)
    q.write(Regs.IECTL, 0)
    assert len(q.sent) == 1


def test_completion_event_withdrawn(q: Queued) -> None:
    q.event(Regs.IECTL, 0x52, masked=True)
    q.go(descriptor(InvalidationWait, IF=1))
    q.write(Regs.ICS, ICS.IWC.mask)
    assert q.read(Regs.IECTL) == EventControl.IM.mask
    q.write(Regs.IECTL, 0)
    assert q.sent == []


def test_software_may_go_on_from_within_the_event(q: Queued) -> None:
    q.event(Regs.IECTL, 0x52)
    rounds = []

    def handler(address: int, message: int) -> None:
        rounds.append(message)
        q.write(Regs.ICS, ICS.IWC.mask)
        if len(rounds) < 300:
            q.go(descriptor(InvalidationWait, IF=1))

    q.device._queue._event._send = handler
    q.go(descriptor(InvalidationWait, IF=1))
    assert len(rounds) == 300
    assert q.head == q.tail


def test_software_may_reset_from_within_the_event(q: Queued) -> None:
    q.event(Regs.IECTL, 0x52)
    q.device._queue._event._send = lambda address, message: q.device.reset()
    q.go(descriptor(InvalidationWait, IF=1), q.wait(1))
    assert (q.head, q.word(q.status), q.read(Regs.GSTS)) == (0, 0, 0)
