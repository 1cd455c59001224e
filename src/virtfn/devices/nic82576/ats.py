"""Address translation services of the card, an extension of the 82576: its device TLB, and its page requests.

    ATS Control of PF and VFs     Enable: the function's requests go through the device TLB (`kernels/vtd/ats.py`)
    Page Request, PF's for all    Enable: pages that are not there are asked for, as many at a time as Allocation says
    invalidation                  noted when it comes, done and answered when no request of the card is under way

A transmit queue whose page is asked for stands still until the answer. A receive queue does what it does without a
descriptor: it drops the frame, as `page-absent`, or if it must not drop, holds the line up. A page that is refused is a
fault of DMA like any other. Spec: PCI Express Base Specification, 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from virtfn.hw.pci import Ats, AtsControl, PageRequestControl, PageRequests, PageRequestStatus
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.queue import ResponseCode
from virtfn.kernels.vtd.ats import FREE, NEW, PAGE_SLOTS, REFUSED, SENT, forget_pages, new_device_tlb
from virtfn.kernels.vtd.iommu import Iommu
from virtfn.machine.function import Function
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import Reset, TranslationAgent
from virtfn.machine.regfile import Handlers, on_read, on_write

__all__ = ["AddressTranslation"]

_LAST_PAGE = (1 << 64) // PAGE - 1
_COUNTERS = (
    "hits",
    "misses",
    "translation_requests",
    "denied",
    "aborted",
    "unsupported",
    "invalidated",
    "page_requests",
)


class _Requester:
    """One function with ATS enabled, as the unit speaks to it; a `DeviceTlb`."""

    def __init__(self, owner: AddressTranslation, rid: Rid) -> None:
        self.invalidate = partial(owner.invalidate, rid)
        self.page_response = partial(owner.page_response, rid)
        self.serve = owner.serve


class AddressTranslation(Handlers):
    """The device TLB of a card, for all its functions. pf: has the capabilities. entries: a power of two."""

    def __init__(self, pf: Function, iommu: Iommu, agent: TranslationAgent, entries: int) -> None:
        self._block = new_device_tlb(entries)
        self._tlb = self._block[0]
        self._cache = self._tlb["cache"][0]
        self._iommu = iommu
        self._agent = agent
        self._requesters: dict[Rid, _Requester] = {}
        self._pending: list[tuple[Rid, int, int, int]] = []
        self._regs = pf[PageRequests]
        self._regs.bind(self)
        pf.on_reset.append(self._reset)

    @property
    def address(self) -> int:
        """Where the device TLB is, for kernels."""
        return int(self._block.ctypes.data)

    def counts(self) -> dict[str, int]:
        """Count accesses that an entry served, and that none did; what was asked of the unit, and what came of it."""
        return {name: int(self._cache[name]) for name in _COUNTERS}

    def follow(self, functions: Iterable[tuple[Rid, Function]]) -> None:
        """Do what the ATS Control registers of the functions that there are now say."""
        enabled = {rid for rid, function in functions if AtsControl(function[Ats].peek(Ats.CONTROL)).ENABLE}
        for rid in self._requesters.keys() - enabled:
            self._leave(rid)
        for rid in enabled - self._requesters.keys():
            self._requesters[rid] = self._agent.device_tlbs[rid] = _Requester(self, rid)
            context = self._iommu.contexts[rid]
            context["device_tlb"] = self.address
            context["key"] = 0

    def _leave(self, rid: Rid) -> None:
        """Forget everything of a requester, and answer what it still owes: nothing of it is cached."""
        self._iommu.contexts[rid]["device_tlb"] = 0
        forget_pages(self._tlb, int(rid), 0, _LAST_PAGE)
        for slot in self._tlb["pages"]:
            if slot["rid"] == rid:
                self._end(slot, FREE)
        self.serve()
        if self._agent.device_tlbs.get(rid) is self._requesters.pop(rid):
            del self._agent.device_tlbs[rid]

    # Invalidations.

    def invalidate(self, rid: Rid, address: int, nbytes: int, itag: int) -> None:
        """Note an invalidation."""
        self._pending.append((rid, address // PAGE, (address + nbytes - 1) // PAGE, itag))

    def serve(self) -> None:
        """Do and answer the invalidations that have come, and ask for the pages that are wanted."""
        pending, self._pending = self._pending, []
        for rid, first, last, _ in pending:
            forget_pages(self._tlb, int(rid), first, last)
        for rid, _, _, itag in pending:
            self._agent.complete_device_tlb(rid, itag)
        if self._cache["unsent"]:
            self._ask()

    # Pages.

    def _ask(self) -> None:
        for slot in self._tlb["pages"]:
            if slot["state"] != NEW:
                continue
            if not self._cache["pages_allowed"]:
                self._end(slot, FREE)
                continue
            # Noted before it is sent: the answer may come from within.
            slot["state"] = SENT
            self._cache["unsent"] -= 1
            address = Iova(int(slot["page"]) * PAGE & (1 << 64) - 1)
            write = bool(slot["write"])
            self._agent.page_request(Rid(int(slot["rid"])), address, not write, write, True, int(slot["group"]))

    def page_response(self, rid: Rid, prgi: int, code: int) -> None:
        """Take an answer: the page is there, or is refused; a Response Failure switches page requests off."""
        slot = self._tlb["pages"][prgi % PAGE_SLOTS]
        if slot["state"] != SENT or slot["rid"] != rid or slot["group"] != prgi:
            self._raise_status(PageRequestStatus.UNEXPECTED_GROUP.mask)
            return
        self._end(slot, FREE if code == ResponseCode.SUCCESS else REFUSED)
        if code == ResponseCode.FAILURE:
            self._cache["pages_allowed"] = 0
            self._raise_status(PageRequestStatus.RESPONSE_FAILURE.mask)

    def _end(self, slot: dict[str, int], state: int) -> None:
        """Take a page request, if it is one, to an end."""
        if slot["state"] == NEW:
            self._cache["unsent"] -= 1
        if slot["state"] in (NEW, SENT):
            self._cache["pages_under_way"] -= 1
        slot["state"] = state

    def _raise_status(self, bit: int) -> None:
        self._regs.poke(PageRequests.STATUS, 0, self._regs.peek(PageRequests.STATUS) | bit)

    @on_write(PageRequests.CONTROL)
    def _control(self, index: int, written: int, old: int) -> None:
        control = PageRequestControl(written)
        if control.RESET and not control.ENABLE:
            self._reset()
        self._allow()

    @on_write(PageRequests.ALLOCATION)
    def _allocated(self, index: int, written: int, old: int) -> None:
        self._allow()

    @on_read(PageRequests.STATUS)
    def _status(self, index: int) -> int:
        stopped = not self._cache["pages_allowed"] and not self._cache["pages_under_way"]
        return PageRequestStatus(self._regs.peek(PageRequests.STATUS)).replace(STOPPED=int(stopped)).value

    def _allow(self) -> None:
        enabled = PageRequestControl(self._regs.peek(PageRequests.CONTROL)).ENABLE
        self._cache["pages_allowed"] = min(self._regs.peek(PageRequests.ALLOCATION), PAGE_SLOTS) if enabled else 0

    def _reset(self, kind: Reset = Reset.POWER_ON) -> None:
        """Forget what was asked for; answers that still come are unexpected."""
        for slot in self._tlb["pages"]:
            self._end(slot, FREE)
        self._allow()
