"""The remapping driver's part for page requests: take them out of the unit's queue, have pages mapped, and answer.

    PQH ... PQT --> who asks for which page --> pager of its domain --> page group response, by the invalidation queue

The pager maps the page, or refuses; without one, all are refused. A group of several requests has one answer, with its
last one: success if every page is there. Requests that found the queue full are the device's to repeat.

Spec: VT-d, page request queue; software requirements for servicing page requests.
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.drivers.secondstage import TablePages
from virtfn.drivers.vtdregisters import UnitRegisters
from virtfn.hw.bits import Register
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import PAGE_REQUEST_BYTES, InvalidationType, PageGroupResponse, PageRequest, ResponseCode
from virtfn.hw.vtd.regs import PQA, PRS, EventControl, Regs
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import VirtfnError

__all__ = ["PageRequestHandler", "Pager"]

Pager = Callable[[Iova, bool], bool]
"""Map the page at an address, for writing or for reading, and return True; or refuse it. A VirtfnError refuses too."""


class PageRequestHandler:
    """A page request queue of one page. Made, it is on; `close` frees it.

    grant: maps a page for a requester, or refuses. submit: has descriptors done. event: address and message of the
    interrupt. counts: requests that were granted and refused, times that the queue was full.
    """

    def __init__(
        self,
        unit: UnitRegisters,
        pages: TablePages,
        grant: Callable[[Rid, Iova, bool], bool],
        submit: Callable[[Register], None],
        event: tuple[int, int] | None,
    ) -> None:
        self._unit = unit
        self._pages = pages
        self._map = grant
        self._submit = submit
        self._queue = pages.alloc()
        self._refused: set[tuple[Rid, int]] = set()
        self._serving = False
        self.counts = {"granted": 0, "refused": 0, "overflows": 0}
        unit.write(Regs.PQH, unit.read(Regs.PQT) % PAGE)
        unit.write(Regs.PQA, PQA(self._queue).value)
        unit.write(Regs.PRS, PRS.PPR.mask | PRS.PRO.mask)
        if event is not None:
            unit.enable_event(event, Regs.PECTL, Regs.PEDATA, Regs.PEADDR, Regs.PEUADDR)

    def close(self) -> None:
        """Switch the event off, answer what waits, and free the queue; nobody may ask any more."""
        self._unit.write(Regs.PECTL, EventControl.IM.mask)
        self.serve()
        self._unit.write(Regs.PQA, 0)
        self._pages.free(self._queue)

    def serve(self) -> int:
        """Answer the requests that wait, oldest first; return how many there were."""
        if self._serving:  # an answer lets the device go on, and it may ask again before this returns
            return 0
        self._serving = True
        try:
            served = 0
            while True:
                # Before the queue is looked at: what comes later then raises the event anew.
                status = PRS(self._unit.read(Regs.PRS))
                self._unit.write(Regs.PRS, PRS.PPR.mask)
                count = self._drain()
                served += count
                if status.PRO:
                    self.counts["overflows"] += 1
                    self._unit.write(Regs.PRS, PRS.PRO.mask)
                elif not count:
                    return served
        finally:
            self._serving = False

    def _drain(self) -> int:
        count = 0
        while (head := self._unit.read(Regs.PQH) % PAGE) != self._unit.read(Regs.PQT) % PAGE:
            words = self._pages.row(self._queue)[head // 8 : (head + PAGE_REQUEST_BYTES) // 8]
            request = PageRequest(int.from_bytes(words.tobytes(), "little"))
            self._unit.write(Regs.PQH, (head + PAGE_REQUEST_BYTES) % PAGE)
            self._answer(request)
            count += 1
        return count

    def _answer(self, request: PageRequest) -> None:
        group = Rid(request.RID), request.PRGI
        if request.R or request.W:
            granted = self._grant(request)
            self.counts["granted" if granted else "refused"] += 1
            if not granted:
                self._refused.add(group)
        if not request.LPIG:
            return
        code = ResponseCode.INVALID_REQUEST if group in self._refused else ResponseCode.SUCCESS
        self._refused.discard(group)
        kind = InvalidationType.PAGE_GROUP_RESPONSE
        self._submit(PageGroupResponse.of(TYPE=kind, CODE=code, RID=request.RID, PRGI=request.PRGI))

    def _grant(self, request: PageRequest) -> bool:
        try:
            return self._map(Rid(request.RID), Iova(request.ADDR * PAGE), bool(request.W))
        except VirtfnError:
            return False
