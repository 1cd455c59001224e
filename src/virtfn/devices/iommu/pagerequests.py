"""The page request queue: devices ask for pages that are not present, software maps them and answers.

    request --> PQA [ head ... tail )  --> LPIG: PRS.PPR, event
                  full: PRS.PRO; this and all later requests are lost until software clears it

What is lost is answered by the unit, once a group, with Success: the device tries again. A queue that is not in memory
is answered with Response Failure.

Spec: VT-d, page request queue.
"""

from __future__ import annotations

import numpy as np

from virtfn.devices.iommu.devicetlbs import DeviceTlbs
from virtfn.devices.iommu.events import EventInterrupt, Send
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import PAGE_REQUEST_BYTES, PageRequest, ResponseCode
from virtfn.hw.vtd.regs import PQA, PRS, Regs
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["PageRequestQueue"]


class PageRequestQueue(Handlers):
    """PQA, PQH, PQT, PRS and the page request event. counts: requests queued, and requests lost."""

    def __init__(self, regfile: RegFile, memory: HostMemory, device_tlbs: DeviceTlbs, send: Send) -> None:
        self._regs = regfile
        self._memory = memory
        self._device_tlbs = device_tlbs
        self._event = EventInterrupt(regfile, send, Regs.PECTL, Regs.PEDATA, Regs.PEADDR, Regs.PEUADDR)
        self.counts = {"page_requests": 0, "page_requests_lost": 0}

    def request(self, rid: Rid, address: Iova, read: bool, write: bool, last: bool, prgi: int) -> None:
        """Queue a request of `rid` for the page at `address`, one of group `prgi`, or answer that it is lost."""
        queue = PQA(self._regs.peek(Regs.PQA))
        size = PAGE << queue.PQS
        tail = self._regs.peek(Regs.PQT) % size
        following = (tail + PAGE_REQUEST_BYTES) % size
        at = (queue.value & PQA.PQA.mask) + tail
        if not self._memory.contains(at, PAGE_REQUEST_BYTES):
            self._lose(rid, last, prgi, ResponseCode.FAILURE)
            return
        if following == self._regs.peek(Regs.PQH):
            self._raise_status(PRS.PRO.mask)
        if PRS(self._regs.peek(Regs.PRS)).PRO:
            self._lose(rid, last, prgi, ResponseCode.SUCCESS)
            return
        entry = PageRequest.of(
            TYPE=1,
            RID=rid & 0xFFFF,
            R=int(read),
            W=int(write),
            LPIG=int(last),
            PRGI=prgi & 0x1FF,
            ADDR=(address & (1 << 64) - 1) // PAGE,
        )
        at -= self._memory.base
        octets = entry.value.to_bytes(PAGE_REQUEST_BYTES, "little")
        self._memory.bytes[at : at + PAGE_REQUEST_BYTES] = np.frombuffer(octets, np.uint8)
        self._regs.poke(Regs.PQT, 0, following)
        self.counts["page_requests"] += 1
        if last:
            self._raise_status(PRS.PPR.mask)

    def _lose(self, rid: Rid, last: bool, prgi: int, code: ResponseCode) -> None:
        self.counts["page_requests_lost"] += 1
        if last:
            self._device_tlbs.respond(rid, prgi & 0x1FF, code)

    def _raise_status(self, bit: int) -> None:
        before = self._regs.peek(Regs.PRS)
        self._regs.poke(Regs.PRS, 0, before | bit)
        if not before:
            self._event.notify()

    @on_write(Regs.PRS)
    def _serviced(self, index: int, written: int, old: int) -> None:
        if not self._regs.peek(Regs.PRS):
            self._event.withdraw()
