"""Queued invalidation: descriptors in memory, done in order, from the head up to the tail.

    IQA  [ done | done | head ... tail )     head: IQH, moved past a descriptor that is known to be valid
                  |
                  +-- context, IOTLB, interrupt entry     at once
                  +-- device TLB                          asked for; answered some time later
                  +-- wait                                done when all before it is; a fence holds back what follows
                  +-- page group response                 at once

An invalid descriptor or tail is FSTS.IQE, a device that does not answer is FSTS.ITE: nothing is fetched until software
has cleared them, and then from the head on. Waits that are pending at a time-out are dropped.

Spec: VT-d, queued invalidation interface.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

import numpy as np

from virtfn.devices.iommu.devicetlbs import TAGS, DeviceTlbs
from virtfn.devices.iommu.events import EventInterrupt, Send
from virtfn.devices.iommu.faults import FaultRecording
from virtfn.devices.iommu.invalidation import ALL_INTERRUPTS, Invalidator
from virtfn.hw.bits import Field, Register
from virtfn.hw.types import Rid
from virtfn.hw.vtd.queue import (
    DESCRIPTOR_BYTES,
    ContextInvalidation,
    DeviceTlbInvalidation,
    InterruptInvalidation,
    Invalidation,
    InvalidationType,
    InvalidationWait,
    IotlbInvalidation,
    PageGroupResponse,
)
from virtfn.hw.vtd.regs import ECAP, EXTENDED_CAPABILITIES, FSTS, ICS, IQA, Regs
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["InvalidationQueue"]

COUNTERS = (
    "invalidations",
    "invalidation_errors",
    "waits_dropped",
    "device_tlb_requests",
    "device_tlb_absent",
    "device_tlb_timeouts",
    "device_tlb_unexpected",
    "page_responses",
    "page_responses_absent",
)
EVERYTHING = 1 << 64


Descriptor = (
    ContextInvalidation
    | IotlbInvalidation
    | InterruptInvalidation
    | DeviceTlbInvalidation
    | InvalidationWait
    | PageGroupResponse
)


class _Outcome(enum.Enum):
    DONE = "fetched"
    BUSY = "to be tried again"
    INVALID = "no descriptor that this unit knows"


@dataclass(slots=True)
class _Wait:
    """A wait that was fetched, and the tags whose answers it waits for."""

    descriptor: InvalidationWait
    tags: set[int]


def _reserved(kind: type[Register], capable: int, *fields: Field) -> int:
    """Return the bits that must be 0: those without a name and, unless the unit is `capable`, those of `fields`."""
    named = sum(field.mask for field in kind.FIELDS if capable or field not in fields)
    return (1 << 8 * DESCRIPTOR_BYTES) - 1 & ~named


def _formats(able: ECAP) -> dict[int, tuple[type[Descriptor], int]]:
    """List the descriptors that a unit knows, by type, with their reserved bits."""
    pfsid = DeviceTlbInvalidation.PFSID_LOW, DeviceTlbInvalidation.PFSID_HIGH
    pasid = PageGroupResponse.PP, PageGroupResponse.PASID
    return {
        InvalidationType.CONTEXT_CACHE: (ContextInvalidation, _reserved(ContextInvalidation, 1)),
        InvalidationType.IOTLB: (IotlbInvalidation, _reserved(IotlbInvalidation, 1)),
        InvalidationType.DEVICE_TLB: (DeviceTlbInvalidation, _reserved(DeviceTlbInvalidation, able.DIT, *pfsid)),
        InvalidationType.INTERRUPT_ENTRY_CACHE: (InterruptInvalidation, _reserved(InterruptInvalidation, 1)),
        InvalidationType.WAIT: (InvalidationWait, _reserved(InvalidationWait, able.PDS, InvalidationWait.PD)),
        InvalidationType.PAGE_GROUP_RESPONSE: (PageGroupResponse, _reserved(PageGroupResponse, able.PASID, *pasid)),
    }


def _span(descriptor: DeviceTlbInvalidation) -> tuple[int, int]:
    """Decode what a device-TLB invalidation covers: address and bytes. With S, trailing ones of the address tell."""
    address = descriptor.value >> 64 & -PAGE
    if not descriptor.S:
        return address, PAGE
    page = address // PAGE
    nbytes = min(2 * PAGE * (~page & page + 1), EVERYTHING)
    return address & -nbytes, nbytes


class InvalidationQueue(Handlers):
    """IQA, IQH, IQT, ICS and the invalidation completion event. Off, on, or stopped by an error in FSTS."""

    def __init__(
        self,
        regfile: RegFile,
        memory: HostMemory,
        invalidator: Invalidator,
        device_tlbs: DeviceTlbs,
        faults: FaultRecording,
        send: Send,
    ) -> None:
        self._regs = regfile
        self._memory = memory
        self._invalidator = invalidator
        self._device_tlbs = device_tlbs
        self._faults = faults
        self._event = EventInterrupt(regfile, send, Regs.IECTL, Regs.IEDATA, Regs.IEADDR, Regs.IEUADDR)
        self._formats = _formats(EXTENDED_CAPABILITIES)
        self._waits: deque[_Wait] = deque()
        self._fetching = False
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.switch(0)

    def reset(self) -> None:
        """Switch off, and forget what is under way; counters stay."""
        self.switch(0)
        self._device_tlbs.reset()

    def switch(self, on: int) -> None:
        """Take IQA over and begin at its start, or stop, and drop waits that are pending."""
        queue = IQA(self._regs.peek(Regs.IQA))
        self._base = queue.value & IQA.IQA.mask
        self._size = PAGE << queue.QS if on else 0
        self._waits.clear()
        self._regs.poke(Regs.IQH, 0, 0)

    def expire(self) -> None:
        """Give up on devices that are late; then software has to clear FSTS.ITE before anything more is done."""
        if late := self._device_tlbs.expire():
            self.counts["device_tlb_timeouts"] += len(late)
            self.counts["waits_dropped"] += len(self._waits)
            self._waits.clear()
            self._faults.raise_status(FSTS.ITE)

    def run(self) -> None:
        """Do what the queue holds until it is empty, or must wait."""
        # Devices and software that are called below may call back; the outer call goes on for them.
        if self._fetching:
            return
        self._fetching = True
        try:
            while self._step():
                pass
        finally:
            self._fetching = False

    def complete(self, rid: Rid, itag: int) -> None:
        """Take a device's answer to an invalidation; one that nobody asked for is FSTS.ICE."""
        if not self._device_tlbs.complete(rid, itag):
            self.counts["device_tlb_unexpected"] += 1
            self._faults.raise_status(FSTS.ICE)
            return
        for wait in self._waits:
            wait.tags.discard(itag)
        while self._waits and not self._waits[0].tags:
            self._tell(self._waits.popleft().descriptor)
        self.run()

    def _step(self) -> bool:
        """Do one descriptor; False if there is none, or it cannot be done now."""
        head, tail = self._regs.peek(Regs.IQH), self._regs.peek(Regs.IQT)
        stopped = self._faults.status(FSTS.IQE, FSTS.ITE)
        fenced = self._waits and self._waits[-1].descriptor.FN
        if not self._size or head == tail or stopped or fenced:
            return False
        descriptor = self._fetch(head) if tail < self._size else None
        # Moved first: whoever is called may look, switch the queue off, or reset the unit.
        self._regs.poke(Regs.IQH, 0, (head + DESCRIPTOR_BYTES) % self._size)
        outcome = _Outcome.INVALID if descriptor is None else self._do(descriptor)
        if outcome is _Outcome.DONE:
            self.counts["invalidations"] += 1
            return True
        self._regs.poke(Regs.IQH, 0, head)
        if outcome is _Outcome.INVALID:
            self.counts["invalidation_errors"] += 1
            self._faults.raise_status(FSTS.IQE)
        return False

    def _fetch(self, head: int) -> Descriptor | None:
        """Read a descriptor; None if memory ends before, or it has a type or bits that it should not have."""
        at = self._base + head
        if not self._memory.contains(at, DESCRIPTOR_BYTES):
            return None
        at -= self._memory.base
        word = int.from_bytes(self._memory.bytes[at : at + DESCRIPTOR_BYTES].tobytes(), "little")
        common = Invalidation(word)
        found = self._formats.get(common.TYPE | common.TYPE_HIGH << 4)
        return None if found is None or word & found[1] else found[0](word)

    def _do(self, descriptor: Descriptor) -> _Outcome:
        granted = 1
        match descriptor:
            case ContextInvalidation() as d:
                granted = self._invalidator.contexts(d.G, d.DID, d.SID, d.FM)
            case IotlbInvalidation() as d:
                address = d.value >> 64 & IotlbInvalidation.ADDR.mask >> 64
                granted = self._invalidator.translations(d.G, d.DID, address, d.AM)
            case InterruptInvalidation() as d:
                self._invalidator.interrupts(d.IIDX if d.G else 0, d.IM if d.G else ALL_INTERRUPTS)
            case DeviceTlbInvalidation() as d:
                return self._ask(d)
            case InvalidationWait() as d:
                return self._wait(d)
            case PageGroupResponse() as d:
                answered = self._device_tlbs.respond(Rid(d.RID), d.PRGI, d.CODE)
                self.counts["page_responses" if answered else "page_responses_absent"] += 1
        return _Outcome.DONE if granted else _Outcome.INVALID

    def _ask(self, d: DeviceTlbInvalidation) -> _Outcome:
        """Have a device forget translations, unless it, or the unit, has enough under way already."""
        queue = d.PFSID_HIGH << 4 | d.PFSID_LOW if EXTENDED_CAPABILITIES.DIT else d.SID
        if not self._device_tlbs.has_room(queue, d.MIP or TAGS):
            return _Outcome.BUSY
        known = self._device_tlbs.invalidate(Rid(d.SID), queue, *_span(d))
        self.counts["device_tlb_requests" if known else "device_tlb_absent"] += 1
        return _Outcome.DONE

    def _wait(self, d: InvalidationWait) -> _Outcome:
        """Tell at once, or note what it waits for. Without IF, SW and FN it is valid, and tells nobody."""
        if d.SW and not self._memory.contains(self._status_address(d), 4):
            return _Outcome.INVALID
        if tags := self._device_tlbs.tags:
            self._waits.append(_Wait(d, tags))
        else:
            self._tell(d)
        return _Outcome.DONE

    @staticmethod
    def _status_address(d: InvalidationWait) -> int:
        return d.ADDR << 2

    def _tell(self, d: InvalidationWait) -> None:
        """Write the status word, and raise the event, as a wait wants it."""
        if d.SW:
            at = self._status_address(d) - self._memory.base
            self._memory.bytes[at : at + 4] = np.frombuffer(d.DATA.to_bytes(4, "little"), np.uint8)
        if d.IF and not ICS(self._regs.peek(Regs.ICS)).IWC:
            self._regs.poke(Regs.ICS, 0, ICS.IWC.mask)
            self._event.notify()

    @on_write(Regs.ICS)
    def _serviced(self, index: int, written: int, old: int) -> None:
        if not ICS(self._regs.peek(Regs.ICS)).IWC:
            self._event.withdraw()
