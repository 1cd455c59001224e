"""A remapping unit set up by register writes, over tables and queues written by hand."""

from __future__ import annotations

from unit.remapping import RID, ByHand
from virtfn.devices.iommu import IommuUnit
from virtfn.hw.bits import Decl, Register
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import (
    DESCRIPTOR_BYTES,
    ContextInvalidation,
    DeviceTlbInvalidation,
    InterruptInvalidation,
    InvalidationWait,
    IotlbInvalidation,
    PageGroupResponse,
)
from virtfn.hw.vtd.regs import FSTS, GCMD, GSTS, Regs
from virtfn.machine.clock import VirtualClock

R = Rid(RID)
TYPES = {
    ContextInvalidation: 1,
    IotlbInvalidation: 2,
    DeviceTlbInvalidation: 3,
    InterruptInvalidation: 4,
    InvalidationWait: 5,
    PageGroupResponse: 9,
}


def descriptor(kind: type[Register], **fields: int) -> int:
    """Build a descriptor with its type."""
    return kind.of(TYPE=TYPES[kind], **fields).value


class Rig(ByHand):
    """A unit set up by register writes over tables written by hand; page `page` is mapped at 0x1000."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, int]] = []
        self.clock = VirtualClock()
        self.device = IommuUnit(
            self.memory,
            64,
            send=lambda address, message: self.sent.append((address, message)),
            clock=self.clock,
            device_tlb_timeout_ps=1000,
        )
        self.iommu = self.device.iommu
        self.unit = self.iommu.unit[0]
        self.page = self.memory.alloc_page()
        self.put(self.ss[1] + 8, self.page | 3)

    def read(self, decl: Decl, index: int = 0) -> int:
        return self.device.read(decl.at(index), decl.size)

    def write(self, decl: Decl, value: int, index: int = 0) -> None:
        self.device.write(decl.at(index), decl.size, value)

    def enable(self) -> None:
        self.write(Regs.RTADDR, self.root)
        self.write(Regs.GCMD, GCMD.SRTP.mask)
        self.write(Regs.GCMD, GCMD.TE.mask)

    def refuse(self, count: int = 1) -> None:
        """Have `count` requests refused."""
        for i in range(count):
            assert self.device.dma_read(R, Iova(0x10000 * (i + 1) + 8), 8) is None

    def reaches(self, iova: int, rid: int = RID) -> bool:
        return self.device.dma_read(Rid(rid), Iova(iova), 4) is not None

    def word(self, address: int) -> int:
        return int.from_bytes(self.view(address, 4).tobytes(), "little")

    def event(self, control: Decl, message: int, masked: bool = False) -> None:
        """Set one of the unit's interrupts up; its registers follow each other."""
        at = control.offset
        for offset, value in ((4, message), (8, 0xFEE0_1000), (12, 0), (0, 1 << 31 if masked else 0)):
            self.device.write(at + offset, 4, value)


class FakeTlb:
    """A device with a TLB: notes what it is asked, answers at once or when told."""

    def __init__(self, device: IommuUnit, rid: int = RID, prompt: bool = False) -> None:
        self.device = device
        self.rid = Rid(rid)
        self.prompt = prompt
        self.asked: list[tuple[int, int, int]] = []
        self.answers: list[tuple[int, int]] = []
        device.device_tlbs[self.rid] = self

    def invalidate(self, address: int, nbytes: int, itag: int) -> None:
        self.asked.append((address, nbytes, itag))
        if self.prompt:
            self.complete(itag)

    def serve(self) -> None:
        """Answer nothing by itself."""

    def page_response(self, prgi: int, code: int) -> None:
        self.answers.append((prgi, code))

    def complete(self, itag: int) -> None:
        self.device.complete_device_tlb(self.rid, itag)


class Queued(Rig):
    """The same with its invalidation queue on: 2**qs pages, not yet any descriptor. status: a page for waits."""

    def __init__(self, qs: int = 0) -> None:
        super().__init__()
        self.enable()
        chunk = self.memory.alloc_chunks(1)[0]
        self.ring = chunk
        self.slots = 256 << qs
        self.status = self.memory.alloc_page()
        self.tail = 0
        self.write(Regs.IQA, self.ring | qs)
        self.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
        assert GSTS(self.read(Regs.GSTS)).QIES

    def place(self, word: int) -> None:
        """Write a descriptor at the tail, without telling the unit."""
        at = self.ring + self.tail
        self.put(at, word)
        self.put(at + 8, word >> 64)
        self.tail = (self.tail + DESCRIPTOR_BYTES) % (self.slots * DESCRIPTOR_BYTES)

    def go(self, *words: int) -> None:
        """Write descriptors and move the tail."""
        for word in words:
            self.place(word)
        self.write(Regs.IQT, self.tail)

    def wait(self, data: int, slot: int = 0, **fields: int) -> int:
        """Build a wait that writes `data` to word `slot` of the status page."""
        return descriptor(InvalidationWait, SW=1, DATA=data, ADDR=(self.status >> 2) + slot, **fields)

    @property
    def head(self) -> int:
        return self.read(Regs.IQH)

    @property
    def errors(self) -> FSTS:
        return FSTS(self.read(Regs.FSTS))
