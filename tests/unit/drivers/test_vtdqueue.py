"""The driver's side of queued invalidation: batches, errors of the unit, devices that answer late; and by register."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.vtd import VtdDriver
from virtfn.drivers.vtdqueue import blocks
from virtfn.hw.bits import Register
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import (
    ContextInvalidation,
    DeviceTlbInvalidation,
    InterruptInvalidation,
    InvalidationWait,
    IotlbInvalidation,
    PageGroupResponse,
)
from virtfn.hw.vtd.regs import CCMD, EXTENDED_CAPABILITIES, FSTS, IOTLB, IVA, Regs
from virtfn.kernels.vtd.dma import translate
from virtfn.machine.clock import MS_PS, S_PS, US_PS, VirtualClock
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.ports import VirtfnError

R = Rid(0x0180)
GIB = 1 << 30
ALL = IotlbInvalidation.of(TYPE=2, G=1)
DEVICE = DeviceTlbInvalidation.of(TYPE=3, SID=R)
BAD = IotlbInvalidation.of(TYPE=2)


class Spy:
    """A register window that remembers writes; `fixed` registers read as told, `deaf` ones are not written."""

    def __init__(self, unit: IommuUnit, deaf: tuple[str, ...] = (), **fixed: int) -> None:
        self.unit = unit
        self.writes: list[tuple[str, int]] = []
        self.deaf = deaf
        self.fixed = {getattr(Regs, name).offset: value for name, value in fixed.items()}

    def read(self, offset: int, size: int) -> int:
        return self.fixed.get(offset, self.unit.read(offset, size))

    def write(self, offset: int, size: int, value: int) -> None:
        found = Regs.lookup(offset)
        assert found is not None
        self.writes.append((found[0].name, value))
        if found[0].name not in self.deaf:
            self.unit.write(offset, size, value)


class Rig:
    """A started driver. delay_ps: how long the device with a TLB takes to answer, None for ever."""

    def __init__(self, delay_ps: int | None = 0, timeout_ps: int = S_PS, queue: bool = True, **fixed: int) -> None:
        self.memory = HostMemory(8 << 20)
        self.clock = VirtualClock()
        self.unit = IommuUnit(self.memory, clock=self.clock, device_tlb_timeout_ps=timeout_ps)
        if not queue:
            fixed["ECAP"] = EXTENDED_CAPABILITIES.replace(QI=0).value
        self.spy = Spy(self.unit, **fixed)
        self.driver = VtdDriver(self.spy, self.memory, self.clock)
        self.driver.start()
        self.delay_ps = delay_ps
        self.asked: list[tuple[int, int]] = []
        self.due: list[tuple[int, int]] = []
        self.unit.device_tlbs[R] = self
        self.clock.sleep = self._sleep  # type: ignore[method-assign]

    def invalidate(self, address: int, nbytes: int, itag: int) -> None:
        self.asked.append((address, nbytes))
        if self.delay_ps == 0:
            self.unit.complete_device_tlb(R, itag)
        elif self.delay_ps is not None:
            self.due.append((self.clock.now() + self.delay_ps, itag))

    def serve(self) -> None:
        """Answer in its own time."""

    def page_response(self, prgi: int, code: int) -> None:
        self.asked.append((prgi, code))

    def _sleep(self, duration_ps: int) -> None:
        VirtualClock.sleep(self.clock, duration_ps)
        for when, itag in [due for due in self.due if due[0] <= self.clock.now()]:
            self.due.remove((when, itag))
            self.unit.complete_device_tlb(R, itag)

    def done(self) -> int:
        return self.unit.stats()["invalidations"]

    def pages(self) -> list[tuple[int, int]]:
        """List (page, mask) of the translations that were invalidated since the last call, a domain's as (-1, 0)."""
        found = []
        row = self.driver.pages.row(self.unit.read(Regs.IQA.offset, 8))
        for name, tail in self.spy.writes:
            if name == "IQT":
                for at in range(self._seen, self._seen + (tail - self._seen) % PAGE, 16):
                    word = IotlbInvalidation(int(row[at % PAGE // 8]) | int(row[at % PAGE // 8 + 1]) << 64)
                    if word.TYPE == 2:
                        found.append((word.ADDR, word.AM) if word.G == 3 else (-1, 0))
                self._seen = tail
        self.spy.writes.clear()
        return found

    _seen = 0


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


def test_a_batch_has_one_wait(rig: Rig) -> None:
    before = rig.done()
    rig.spy.writes.clear()
    rig.driver.submit(ALL, ALL, ALL)
    assert rig.done() == before + 4
    assert [name for name, _ in rig.spy.writes] == ["IQT"]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 600])
def test_batches_of_any_length(rig: Rig, count: int) -> None:
    before = rig.done()
    for _ in range(3):
        rig.driver.submit(*[ALL] * count)
    assert rig.done() - before == 3 * (count + -(-count // 100))
    assert rig.clock.now() == 0, "nothing had to be waited for"


def test_detach_is_one_batch(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    rig.driver.attach(R, domain)
    before = rig.done()
    rig.driver.detach(R)
    assert rig.done() == before + 3


def test_few_pages_are_invalidated_by_page(rig: Rig) -> None:
    domain = rig.driver.create_domain(1)
    page = rig.memory.alloc_page()
    rig.pages()
    for first in (1, 3, 64):
        domain.map(Iova(first * PAGE), page, PAGE)
        domain.unmap(Iova(first * PAGE), PAGE)
        assert rig.pages() == [(first, 0)]
    chunk = rig.memory.alloc_chunks(1)[0]
    domain.map(Iova(510 * PAGE), chunk, 6 * PAGE)
    domain.unmap(Iova(510 * PAGE), 6 * PAGE)
    assert rig.pages() == [(510, 1), (512, 2)], "no single aligned block covers both"
    domain.map(Iova(0), chunk, PAGE)
    domain.unmap(Iova(0), 3 * GIB)
    assert rig.pages() == [(0, 18), (1 << 18, 18), (2 << 18, 18)]
    domain.map(Iova(0), chunk, PAGE)
    domain.unmap(Iova(0), 9 * GIB)
    assert rig.pages() == [(-1, 0)], "the whole domain costs less"


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 24), st.integers(0, 18))
def test_blocks_cover_little_more_than_the_range(first: int, pages: int, max_mask: int) -> None:
    pieces = []
    for piece in blocks(first, pages, max_mask):
        pieces.append(piece)
        if len(pieces) > 40:
            break
    assert all(0 <= mask <= max_mask and page % (1 << mask) == 0 for page, mask in pieces)
    assert all(a + (1 << mask) == b for (a, mask), (b, _) in pairwise(pieces))
    assert pieces[0][0] <= first < pieces[0][0] + (1 << pieces[0][1])
    if pages <= 1 << max_mask:
        assert len(pieces) <= 6
    if len(pieces) <= 40:
        end = pieces[-1][0] + (1 << pieces[-1][1])
        assert end >= first + pages
        assert first - pieces[0][0] <= pages / 4
        assert end - first - pages <= pages / 4


def test_a_refused_descriptor_is_named_and_the_rest_is_done(rig: Rig) -> None:
    before = rig.done()
    with pytest.raises(VirtfnError, match="refused to invalidate: Register") as caught:
        rig.driver.submit(ALL, BAD, ALL, BAD)
    assert caught.value.errno_name == "EIO"
    assert rig.driver.queue_errors == {"IQE": 2}
    assert rig.done() == before + 5, "two fences in place of the bad ones, and the wait"
    assert FSTS(rig.unit.read(Regs.FSTS.offset, 4)).IQE == 0
    rig.driver.submit(ALL)


def test_a_queue_that_cannot_be_read() -> None:
    memory, clock = HostMemory(8 << 20), VirtualClock()
    driver = VtdDriver(Spy(IommuUnit(memory), deaf=("IQA",)), memory, clock)
    with pytest.raises(VirtfnError, match="cannot read its invalidation queue") as caught:
        driver.start()
    assert caught.value.errno_name == "EIO"
    memory.close()


def test_a_unit_that_does_not_fetch() -> None:
    memory, clock = HostMemory(8 << 20), VirtualClock()
    driver = VtdDriver(Spy(IommuUnit(memory), deaf=("IQT",)), memory, clock)
    with pytest.raises(VirtfnError, match="hangs: IQH is 0x0") as caught:
        driver.start()
    assert caught.value.errno_name == "ETIMEDOUT"
    assert 10 * MS_PS <= clock.now() <= 12 * MS_PS
    memory.close()


def test_a_queue_that_does_not_start() -> None:
    memory = HostMemory(8 << 20)
    driver = VtdDriver(Spy(IommuUnit(memory), GSTS=0), memory, VirtualClock())
    with pytest.raises(VirtfnError, match="hangs: GSTS"):
        driver.start()
    memory.close()


def test_waiting_for_a_device() -> None:
    rig = Rig(delay_ps=700 * US_PS)
    rig.driver.submit(DEVICE, ALL)
    assert 700 * US_PS <= rig.clock.now() <= 1500 * US_PS
    assert rig.driver.queue_errors == {}
    rig.memory.close()


def test_a_device_that_never_answers() -> None:
    rig = Rig(delay_ps=None)
    with pytest.raises(VirtfnError, match="a device does not answer") as caught:
        rig.driver.submit(ALL, DEVICE)
    assert caught.value.errno_name == "ETIMEDOUT"
    assert rig.driver.queue_errors == {"ITE": 2}
    assert len(rig.asked) == 2, "it is asked twice"
    assert rig.clock.now() < 3 * S_PS
    rig.driver.submit(ALL)
    rig.memory.close()


def test_a_device_that_answers_the_second_time() -> None:
    rig = Rig(delay_ps=1500 * MS_PS)
    rig.driver.submit(DEVICE)
    assert rig.driver.queue_errors["ITE"] >= 1
    rig.memory.close()


def test_a_device_that_answers_too_often(rig: Rig) -> None:
    rig.unit.complete_device_tlb(R, 3)
    rig.delay_ps = 5 * US_PS
    rig.driver.submit(DEVICE)
    assert rig.driver.queue_errors == {"ICE": 1}
    assert FSTS(rig.unit.read(Regs.FSTS.offset, 4)).ICE == 0


def test_a_device_that_holds_up_more_than_a_ring() -> None:
    rig = Rig(delay_ps=None)
    for _ in range(4):
        with pytest.raises(VirtfnError, match="a device does not answer"):
            rig.driver.submit(*[DEVICE] * 90)
    before = len(rig.asked)
    rig.delay_ps = US_PS
    rig.driver.submit(DEVICE, ALL)
    assert len(rig.asked) > before
    assert not rig.due
    rig.memory.close()


@pytest.mark.parametrize("before", [0, 250])
def test_a_fault_handler_may_invalidate_in_the_middle_of_it(rig: Rig, before: int) -> None:
    for _ in range(before):
        rig.driver.submit()
        rig.driver.submit(ALL)
    nested = []

    def on_fault(fault: object) -> None:
        nested.append(fault)
        rig.driver.submit(ALL, ALL)

    rig.unit.on_fault = on_fault
    count = rig.done()
    assert translate(rig.unit.iommu.row, R, 0x5000, 4, 1) == (0, 0)
    rig.driver.submit(ALL, ALL, ALL)
    assert len(nested) == 1
    assert rig.done() == count + 7
    assert rig.driver.queue_errors == {}


def test_a_fault_handler_may_invalidate_while_a_device_is_awaited() -> None:
    rig = Rig(delay_ps=100 * US_PS)
    rig.unit.on_fault = lambda fault: rig.driver.submit(ALL)
    count = rig.done()
    plain = rig.clock.sleep

    def sleep(duration_ps: int) -> None:
        plain(duration_ps)
        rig.clock.sleep = plain  # type: ignore[method-assign]
        translate(rig.unit.iommu.row, R, 0x5000, 4, 1)

    rig.clock.sleep = sleep  # type: ignore[method-assign]
    rig.driver.submit(DEVICE)
    assert rig.done() == count + 4
    assert rig.clock.now() < MS_PS
    rig.memory.close()


def test_page_group_responses_go_by_the_queue(rig: Rig) -> None:
    rig.driver.submit(PageGroupResponse.of(TYPE=9, RID=R, PRGI=4, CODE=1))
    assert rig.asked == [(4, 1)]


def test_numbers_of_waits_wrap(rig: Rig) -> None:
    rig.driver._invalidations._number = 0xFFFF_FFFE
    rig.driver.pages.row(rig.driver._invalidations._status)[0] = 0xFFFF_FFFE
    for _ in range(5):
        rig.driver.submit(ALL)
    assert rig.driver._invalidations._number == 3


def test_without_a_queue() -> None:
    rig = Rig(queue=False)
    rig.spy.writes.clear()
    rig.driver.submit(
        ContextInvalidation.of(TYPE=1, G=3, DID=5, SID=R, FM=2),
        IotlbInvalidation.of(TYPE=2, G=3, DID=5, ADDR=0x1234, AM=2, DR=1),
        IotlbInvalidation.of(TYPE=2, G=2, DID=6),
    )
    (a, ccmd), (b, iva), (c, pages), (d, domain) = rig.spy.writes
    assert (a, b, c, d) == ("CCMD", "IVA", "IOTLB", "IOTLB")
    assert ccmd == CCMD.of(ICC=1, CIRG=3, DID=5, SID=R, FM=2).value
    assert iva == IVA.of(ADDR=0x1234, AM=2).value
    assert pages == IOTLB.of(IVT=1, IIRG=3, DID=5, DR=1).value
    assert domain == IOTLB.of(IVT=1, IIRG=2, DID=6).value
    with pytest.raises(VirtfnError, match="knows no InterruptInvalidation"):
        rig.driver.submit(InterruptInvalidation.of(TYPE=4))
    rig.memory.close()


@pytest.mark.parametrize("bad", [Register(0), InvalidationWait.of(TYPE=5, PD=1), Register(15)])
def test_after_stop_registers_serve(rig: Rig, bad: Register) -> None:
    with pytest.raises(VirtfnError):
        rig.driver.submit(bad)
    rig.driver.stop()
    count = rig.driver.pages.count()
    rig.driver.submit(ALL)
    rig.driver.start()
    rig.driver.submit(ALL)
    assert rig.driver.pages.count() == count + 2
    rig.driver.close()
    assert rig.driver.pages.count() == 0
