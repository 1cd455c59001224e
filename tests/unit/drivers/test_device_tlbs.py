"""The remapping driver with device TLBs and page requests: what it writes, asks for, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from virtfn.devices.iommu import IommuUnit
from virtfn.drivers.vtd import Domain, VtdDriver
from virtfn.drivers.vtdqueue import device_tlb_invalidation
from virtfn.hw.bits import Register
from virtfn.hw.types import Hpa, Iova, Rid
from virtfn.hw.vtd.queue import ContextInvalidation, DeviceTlbInvalidation, IotlbInvalidation, ResponseCode
from virtfn.hw.vtd.regs import EXTENDED_CAPABILITIES, PRS, Regs
from virtfn.hw.vtd.tables import ContextEntry, Translation
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import CHUNK, PAGE, HostMemory
from virtfn.machine.ports import VirtfnError

R = Rid(0x0180)
OTHER = Rid(0x0182)


class Device:
    """A device that answers at once."""

    def __init__(self, unit: IommuUnit, rid: Rid) -> None:
        self.unit, self.rid = unit, rid
        self.asked: list[tuple[int, int]] = []
        self.answers: list[tuple[int, int]] = []
        unit.device_tlbs[rid] = self

    def invalidate(self, address: int, nbytes: int, itag: int) -> None:
        self.asked.append((address, nbytes))
        self.unit.complete_device_tlb(self.rid, itag)

    def serve(self) -> None:
        """Owe nothing."""

    def page_response(self, prgi: int, code: int) -> None:
        self.answers.append((prgi, code))


class Rig:
    """A started driver, and a domain of it with two chunks of memory mapped at 0; all batches are kept."""

    def __init__(self) -> None:
        self.memory = HostMemory(4 * CHUNK)
        self.unit = IommuUnit(self.memory, clock=VirtualClock())
        self.driver = VtdDriver(self.unit, self.memory, VirtualClock())
        self.driver.start()
        self.domain: Domain = self.driver.create_domain(7)
        self.chunks = self.memory.alloc_chunks(2)
        for i, chunk in enumerate(self.chunks):
            self.domain.map(Iova(i * CHUNK), chunk, CHUNK)
        self.batches: list[tuple[Register, ...]] = []
        submit = self.driver.submit

        def keep(*descriptors: Register) -> None:
            self.batches.append(descriptors)
            submit(*descriptors)

        self.driver.submit = keep  # type: ignore[method-assign]

    def entry(self, rid: Rid) -> ContextEntry:
        row = self.driver.pages.row(self.driver._contexts[rid >> 8])
        return ContextEntry(int(row[2 * (rid & 255)]) | int(row[2 * (rid & 255) + 1]) << 64)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


def test_the_context_says_who_may(rig: Rig) -> None:
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.driver.attach(OTHER, rig.domain)
    assert rig.entry(R).T == Translation.DEVICE_TLB
    assert rig.entry(OTHER).T == Translation.SECOND_STAGE
    assert rig.unit.dma_read(R, Iova(0), 4) is not None


@pytest.mark.parametrize("without", ["DT", "QI"])
def test_a_unit_that_allows_none(rig: Rig, without: str) -> None:
    rig.driver._ecap = EXTENDED_CAPABILITIES.replace(**{without: 0})
    with pytest.raises(VirtfnError, match="device TLBs"):
        rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.driver.attach(R, rig.domain)


def test_unmap_tells_the_iotlb_first_and_then_each_device(rig: Rig) -> None:
    devices = {rid: Device(rig.unit, rid) for rid in (R, OTHER)}
    rig.driver.attach(OTHER, rig.domain, device_tlb=True)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.driver.attach(Rid(0x188), rig.domain)
    rig.domain.unmap(Iova(3 * PAGE), PAGE)
    (batch,) = rig.batches
    assert [type(d) for d in batch] == [IotlbInvalidation, DeviceTlbInvalidation, DeviceTlbInvalidation]
    assert [d.SID for d in batch if isinstance(d, DeviceTlbInvalidation)] == [R, OTHER]
    assert [device.asked for device in devices.values()] == [[(3 * PAGE, PAGE)]] * 2


def test_detach_tells_context_iotlb_and_device(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.driver.detach(R)
    (batch,) = rig.batches
    assert [type(d) for d in batch] == [ContextInvalidation, IotlbInvalidation, DeviceTlbInvalidation]
    assert device.asked == [(0, 1 << 64)]
    rig.driver.attach(R, rig.domain)
    rig.driver.detach(R)
    assert len(rig.batches[-1]) == 2, "it has none any more"


def test_a_large_unmap_covers_every_page(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.domain.unmap(Iova(0x5000), CHUNK)
    pages = set(range(5, 5 + CHUNK // PAGE))
    covered = {at // PAGE + i for at, nbytes in device.asked for i in range(min(nbytes, 1 << 30) // PAGE)}
    assert pages <= covered
    assert len(covered) < 1.5 * len(pages)
    assert all(at % nbytes == 0 for at, nbytes in device.asked)


@pytest.mark.parametrize("mask", range(20))
def test_sizes_are_read_as_they_are_written(rig: Rig, mask: int) -> None:
    device = Device(rig.unit, R)
    for page in (0, 1 << mask, 5 << mask):
        rig.driver.submit(device_tlb_invalidation(R, page, mask))
    assert device.asked == [(page << mask + 12, PAGE << mask) for page in (0, 1, 5)]


def test_everything(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.submit(device_tlb_invalidation(R))
    assert device.asked == [(0, 1 << 64)]


# Page requests.


def test_page_requests_are_granted_by_the_domains_pager(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    asked = []

    def pager(iova: Iova, write: bool) -> bool:
        asked.append((iova, write))
        if iova >= 1 << 32:
            return False
        rig.domain.map(iova, Hpa(rig.chunks[0]), PAGE)
        return True

    rig.domain.pager = pager
    rig.driver.start_page_requests()
    for i, address in enumerate((1 << 30, 1 << 32, 1 << 30, 1 << 60)):
        rig.unit.page_request(R, Iova(address), True, i % 2 == 1, True, i)
    rig.unit.page_request(OTHER, Iova(0), True, False, True, 9)
    assert rig.driver.serve_pages() == 5
    ok, refused = ResponseCode.SUCCESS, ResponseCode.INVALID_REQUEST
    assert device.answers == [(0, ok), (1, refused), (2, ok), (3, refused)]
    assert asked == [(1 << 30, False), (1 << 32, True)], "neither for what is there by now, nor beyond the tables"
    assert rig.unit.stats()["page_responses_absent"] == 1, "who is attached nowhere is refused, too"
    assert rig.driver.serve_pages() == 0


def test_a_group_has_one_answer(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    far = 1 << 30
    rig.domain.pager = lambda iova, write: iova != far + PAGE
    rig.driver.start_page_requests()
    for page, last, group in ((0, False, 5), (1, False, 6), (2, True, 5), (3, True, 6)):
        rig.unit.page_request(R, Iova(far + page * PAGE), True, False, last, group)
    rig.driver.serve_pages()
    assert device.answers == [(5, ResponseCode.SUCCESS), (6, ResponseCode.INVALID_REQUEST)]


def test_more_requests_than_the_queue_holds(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.domain.pager = lambda iova, write: True
    rig.driver.start_page_requests()
    for i in range(130):
        rig.unit.page_request(R, Iova(i * PAGE), True, False, True, i)
    assert rig.driver.serve_pages() == 127
    assert len(device.answers) == 130, "the unit answers what it lost"
    assert rig.unit.read(Regs.PRS.offset, 4) == 0
    assert rig.driver._pages is not None
    assert rig.driver._pages.counts == {"granted": 127, "refused": 0, "overflows": 1}
    rig.unit.page_request(R, Iova(0), True, False, True, 200)
    assert rig.driver.serve_pages() == 1


def test_a_device_that_asks_again_from_within_the_answer(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.domain.pager = lambda iova, write: True
    rig.driver.start_page_requests()

    def ask_again(prgi: int, code: int) -> None:
        device.answers.append((prgi, code))
        if prgi < 300:
            rig.unit.page_request(R, Iova(prgi * PAGE), True, False, True, prgi + 1)
            rig.driver.serve_pages()

    device.page_response = ask_again  # type: ignore[method-assign]
    rig.unit.page_request(R, Iova(0), True, False, True, 1)
    assert rig.driver.serve_pages() == 300
    assert len(device.answers) == 300


def test_stopping_answers_what_waits(rig: Rig) -> None:
    device = Device(rig.unit, R)
    rig.driver.attach(R, rig.domain, device_tlb=True)
    rig.driver.start_page_requests((0xFEE0_1000, 0x41))
    pages = rig.driver.pages.count()
    rig.unit.page_request(R, Iova(1 << 30), True, False, True, 1)
    assert PRS(rig.unit.read(Regs.PRS.offset, 4)).PPR
    rig.driver.stop()
    assert device.answers == [(1, ResponseCode.INVALID_REQUEST)]
    assert rig.driver.pages.count() == pages - 3
    assert rig.driver.serve_pages() == 0


def test_a_unit_without_page_requests(rig: Rig) -> None:
    rig.driver._ecap = EXTENDED_CAPABILITIES.replace(PRS=0)
    with pytest.raises(VirtfnError, match="page requests"):
        rig.driver.start_page_requests()
