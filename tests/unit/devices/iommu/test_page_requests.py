"""The page request queue: entries, wrap-around, overflow, its event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.devices.iommu.rig import RID, FakeTlb, Rig
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import PageRequest, ResponseCode
from virtfn.hw.vtd.regs import PRS, EventControl, Regs

SUCCESS, FAILURE = ResponseCode.SUCCESS, ResponseCode.FAILURE


class Asking(Rig):
    """A unit with a page request queue of one page, 128 requests, and a device that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = self.memory.alloc_page()
        self.write(Regs.PQA, self.queue)
        self.tlb = FakeTlb(self.device)

    def ask_page(self, address: int = 0x5000, last: bool = True, prgi: int = 1, count: int = 1, rid: int = RID) -> None:
        for _ in range(count):
            self.device.page_request(Rid(rid), Iova(address), True, False, last, prgi)

    def entry(self, i: int) -> PageRequest:
        return PageRequest(int.from_bytes(self.view(self.queue + 32 * i, 32).tobytes(), "little"))


@pytest.fixture
def a() -> Iterator[Asking]:
    made = Asking()
    yield made
    made.memory.close()


def test_an_entry(a: Asking) -> None:
    a.device.page_request(Rid(RID), Iova(0x7FFF_FFFF_F123), False, True, True, 0x1AB)
    entry = a.entry(0)
    assert (entry.TYPE, entry.PP, entry.RID, entry.R, entry.W, entry.LPIG) == (1, 0, RID, 0, 1, 1)
    assert (entry.PRGI, entry.ADDR) == (0x1AB, 0x7_FFFF_FFFF)
    assert entry.value >> 128 == 0
    assert (a.read(Regs.PQT), a.read(Regs.PRS)) == (32, PRS.PPR.mask)
    assert a.tlb.answers == []


def test_event_with_the_last_of_a_group(a: Asking) -> None:
    a.event(Regs.PECTL, 0x63)
    a.ask_page(last=False)
    assert (a.sent, a.read(Regs.PRS)) == ([], 0)
    a.ask_page()
    a.ask_page()
    assert a.sent == [(0xFEE0_1000, 0x63)]
    a.write(Regs.PRS, PRS.PPR.mask)
    assert a.read(Regs.PRS) == 0
    a.ask_page()
    assert len(a.sent) == 2


def test_event_masked_and_withdrawn(a: Asking) -> None:
    a.ask_page()
    assert a.read(Regs.PECTL) == EventControl.IM.mask | EventControl.IP.mask
    a.write(Regs.PRS, PRS.PPR.mask)
    assert a.read(Regs.PECTL) == EventControl.IM.mask
    a.ask_page()
    a.event(Regs.PECTL, 0x63)
    assert a.sent == [(0xFEE0_1000, 0x63)]


def test_the_ring_wraps(a: Asking) -> None:
    for round_ in range(5):
        a.ask_page(count=100, prgi=round_)
        assert a.read(Regs.PQT) == (round_ + 1) * 3200 % 4096
        a.write(Regs.PQH, a.read(Regs.PQT))
    assert a.device.stats()["page_requests"] == 500
    assert a.entry(99 * 5 % 128).PRGI == 4


def test_overflow(a: Asking) -> None:
    a.event(Regs.PECTL, 0x63)
    a.ask_page(count=127)
    assert (a.read(Regs.PRS), a.tlb.answers) == (PRS.PPR.mask, [])
    a.write(Regs.PRS, PRS.PPR.mask)
    a.ask_page(prgi=9, last=False)
    a.ask_page(prgi=9)
    assert a.read(Regs.PRS) == PRS.PRO.mask
    assert a.read(Regs.PQT) == 127 * 32
    assert a.tlb.answers == [(9, SUCCESS)], "the device may try again"
    assert len(a.sent) == 2
    a.write(Regs.PQH, a.read(Regs.PQT))
    a.ask_page(prgi=10)
    assert a.tlb.answers[1:] == [(10, SUCCESS)], "lost until software clears the overflow"
    a.write(Regs.PRS, PRS.PRO.mask)
    a.ask_page(prgi=11)
    assert (len(a.tlb.answers), a.entry(127).PRGI, a.read(Regs.PQT)) == (2, 11, 0)
    assert a.device.stats()["page_requests_lost"] == 3


@pytest.mark.parametrize("address", [0, (1 << 64) - 4096])
def test_queue_outside_memory(a: Asking, address: int) -> None:
    a.write(Regs.PQA, address)
    a.ask_page(last=False)
    a.ask_page()
    a.ask_page(rid=RID + 1)
    assert a.tlb.answers == [(1, FAILURE)]
    assert (a.read(Regs.PRS), a.read(Regs.PQT)) == (0, 0)


def test_wild_values_are_cut(a: Asking) -> None:
    a.device.page_request(Rid(RID), Iova((1 << 70) | 0x1234), True, True, True, 1 << 20 | 3)
    assert (a.entry(0).ADDR, a.entry(0).PRGI) == (1, 3)
    a.write(Regs.PQH, (1 << 64) - 1)
    a.ask_page(count=1000)
    a.write(Regs.PQA, a.queue | 7)
    a.ask_page(count=10)


def test_registers(a: Asking) -> None:
    a.write(Regs.PQT, 0xFFFF)
    assert a.read(Regs.PQT) == 0
    a.write(Regs.PQH, (1 << 64) - 1)
    assert a.read(Regs.PQH) == 0x7FFF0
    a.write(Regs.PQA, (1 << 64) - 1)
    assert a.read(Regs.PQA) == (1 << 64) - 4096 | 7
    a.device.write(Regs.PQA.offset, 4, 0x5000)
    assert a.device.read(Regs.PQA.offset, 4) == 0x5000
    assert a.device.read(Regs.PQA.offset + 4, 4) == 0xFFFF_FFFF
    a.device.reset()
    assert [a.read(d) for d in (Regs.PQA, Regs.PQH, Regs.PQT, Regs.PRS)] == [0, 0, 0, 0]
