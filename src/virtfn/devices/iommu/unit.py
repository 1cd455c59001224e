"""The remapping unit: registers in front, translation kernels behind, faults in between.

    registers (4 KiB window)                 Iommu row, shared with the data plane's kernels
      GCMD, RTADDR  ----------------------->   root table, enabled
      CCMD, IOTLB   ---- invalidation.py -->   context cache, IOTLB, interrupt entry cache
      IQA, IQH, IQT ---- queue.py ------+-->
                         devicetlbs.py <+      caches in devices
      PQA, PQH, PQT <--- pagerequests.py ---   pages that devices ask for
      IRTA          ---- interrupts.py --->   interrupt remapping table; messages written by DMA
      FSTS, FRCD    <--- faults.py ---------   ring of faults, drained by `service`

Kernels translate without asking this class. It owns the row, runs the register protocol, and serves devices that do
their DMA in Python.

Spec: VT-d, DMA remapping; global command register.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from virtfn.devices.iommu.devicetlbs import DeviceTlbs
from virtfn.devices.iommu.events import Send
from virtfn.devices.iommu.faults import FaultRecording
from virtfn.devices.iommu.interrupts import Deliver, InterruptRemapping
from virtfn.devices.iommu.invalidation import ALL_INTERRUPTS, Invalidator, RegisterInvalidation
from virtfn.devices.iommu.pagerequests import PageRequestQueue
from virtfn.devices.iommu.queue import InvalidationQueue
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.regs import (
    CAP,
    CAPABILITIES,
    EXTENDED_CAPABILITIES,
    GCMD,
    GSTS,
    RTADDR,
    WINDOW_BYTES,
    Fault,
    Granularity,
    Regs,
)
from virtfn.hw.vtd.tables import FaultReason, Request, Translation
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.dma import dma_copy_in, dma_copy_out
from virtfn.kernels.vtd.iommu import FAULT_SLOTS, UNIT, Iommu, new_iommu
from virtfn.kernels.vtd.iotlb import invalidate_contexts
from virtfn.machine.clock import S_PS
from virtfn.machine.memory import HostMemory
from virtfn.machine.ports import Clock, DeviceTlb
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["IommuUnit"]

FAULT_HISTORY = 1024
DEVICE_TLB_TIMEOUT_PS = 60 * S_PS
"""How long a device may take to answer an invalidation; the least that Address Translation Services allow."""
_WORDS = UNIT.names or ()
_MESSAGE_HEAD, _MESSAGE_TAIL = _WORDS.index("message_head"), _WORDS.index("message_tail")
_FAULT_HEAD, _FAULT_TAIL = _WORDS.index("fault_head"), _WORDS.index("fault_tail")
_FAULTS_LOST = _WORDS.index("faults_lost")
_SETTINGS = ("root", "enabled", "remapping", "irta", "irt_entries", "compatible", "wide")
COUNTERS = (
    "iotlb_hits",
    "iotlb_misses",
    "page_walks",
    "context_walks",
    "bypassed",
    "translation_requests",
    "translated",
    "faults",
    "suppressed",
    "aborted",
    "rejected",
    "interrupts",
    "interrupt_hits",
    "interrupt_walks",
    "delivered",
    "posted",
    "blocked",
    "messages_lost",
)
_COUNTED = {name: _WORDS.index(name) for name in COUNTERS}


def _signed(address: int) -> int:
    """Wrap a 64-bit address as compiled code sees it."""
    return (address + (1 << 63) & (1 << 64) - 1) - (1 << 63)


class IommuUnit(Handlers):
    """One remapping unit for all requesters of the machine. Off after reset: addresses pass unchanged.

    memory: the machine's memory; no DMA leaves it. iotlb_entries: a power of two. send: takes address and message of
    the unit's own interrupts, which nothing remaps. deliver: takes destination and vector of interrupts that are
    allowed. clock: measures how long devices take to answer; without one they may take for ever.
    device_tlb_timeout_ps: how long they may take.

    Raises ValueError for a size of the IOTLB that cannot be.
    """

    def __init__(
        self,
        memory: HostMemory,
        iotlb_entries: int = 1024,
        send: Send | None = None,
        deliver: Deliver | None = None,
        clock: Clock | None = None,
        device_tlb_timeout_ps: int = DEVICE_TLB_TIMEOUT_PS,
    ) -> None:
        able = EXTENDED_CAPABILITIES
        kinds = 1 | able.DT << Translation.DEVICE_TLB | able.PT << Translation.PASS_THROUGH
        large = CAPABILITIES.SSLPS
        self._shape = memory.base, memory.size, iotlb_entries, CAPABILITIES.SAGAW, large, kinds
        self.iommu: Iommu = new_iommu(*self._shape)
        self.rows: list[Iommu] = [self.iommu]
        self._memory = memory
        self._history: deque[Fault] = deque(maxlen=FAULT_HISTORY)
        self.on_fault: Callable[[Fault], None] | None = None
        self._lost_seen = [0]
        # For a look that costs next to nothing: whoever moves frames asks for service all the time.
        self._words = [self.iommu.unit.view(np.int64).data]
        self._regs = RegFile(Regs, np.zeros(WINDOW_BYTES, np.uint8), WINDOW_BYTES)
        send = send or _discard
        self._recording = FaultRecording(self._regs, send)
        self._device_tlbs = DeviceTlbs(clock, device_tlb_timeout_ps)
        self.invalidator = Invalidator(self.rows, CAP(CAPABILITIES.value).MAMV)
        self.interrupts = InterruptRemapping(self._regs, self.rows, deliver or _discard)
        self._by_register = RegisterInvalidation(self._regs, self.invalidator)
        self._queue = InvalidationQueue(self._regs, memory, self.invalidator, self._device_tlbs, self._recording, send)
        self._page_requests = PageRequestQueue(self._regs, memory, self._device_tlbs, send)
        for block in (self, self._recording, self._by_register, self._queue, self._page_requests):
            self._regs.bind(block)

    def row_for_a_card(self) -> Iommu:
        """Make a row for a card whose frames move at the same time as those of others.

        What the registers say is in every row, and every invalidation reaches all of them; IOTLB, context cache,
        counters and what is met are the row's own, so that no two kernels that run at once write to one.
        """
        row = new_iommu(*self._shape)
        for name in _SETTINGS:
            row.unit[0][name] = self.iommu.unit[0][name]
        self.rows.append(row)
        self._words.append(row.unit.view(np.int64).data)
        self._lost_seen.append(0)
        return row

    @property
    def device_tlbs(self) -> dict[Rid, DeviceTlb]:
        """The device TLBs of the machine, by requester; whoever plugs a device in or takes it away keeps it true."""
        return self._device_tlbs.targets

    def complete_device_tlb(self, rid: Rid, itag: int) -> None:
        """Take the answer of `rid` to the invalidation that it was sent with `itag`."""
        self._queue.complete(rid, itag)

    def page_request(self, rid: Rid, address: Iova, read: bool, write: bool, last: bool, prgi: int) -> None:
        """Take a request of `rid` for the page at `address`: one of group `prgi`, and the `last` of it or not.

        The answer to the group comes by `DeviceTlb.page_response`.
        """
        self._page_requests.request(rid, address, read, write, last, prgi)

    def reset(self) -> None:
        """Return to the state after power-on: off, caches empty, no fault; counters stay."""
        for i, row in enumerate(self.rows):
            unit = row.unit[0]
            unit["enabled"] = unit["root"] = 0
            unit["fault_head"] = unit["fault_tail"]
            self._lost_seen[i] = int(unit["faults_lost"])
        self._regs.reset()
        self._recording.reset()
        self._queue.reset()
        self.interrupts.reset()
        self._history.clear()
        self.invalidator.contexts(Granularity.GLOBAL, 0, 0, 0)
        self.invalidator.translations(Granularity.GLOBAL, 0, 0, 0)
        self.invalidator.interrupts(0, ALL_INTERRUPTS)

    def read(self, offset: int, size: int) -> int:
        """Read 4 or 8 aligned bytes of the register window; others read all ones."""
        if not _allowed(offset, size):
            return (1 << 8 * max(size, 0)) - 1
        self.service()
        return self._regs.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 aligned bytes of the register window; others are ignored."""
        if _allowed(offset, size):
            self.service()
            self._regs.write(offset, size, value)
            # A tail that moved, an error that was cleared, the queue switched on: all mean that there is work.
            self._queue.run()

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read memory as requester `rid`; None after a refusal."""
        if not 0 <= length <= self._memory.size:
            self.iommu.unit[0]["rejected"] += 1
            return None
        payload = np.empty(length, np.uint8)
        done = dma_copy_in(self.iommu.row, int(rid), _signed(iova), length, address_of(payload))
        self.service()
        return payload.tobytes() if done == length else None

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write memory as requester `rid`; False after a refusal, and then no byte was written."""
        source = np.frombuffer(payload, np.uint8)
        done = dma_copy_out(self.iommu.row, int(rid), _signed(iova), len(payload), address_of(source))
        self.service()
        return done == len(payload)

    def service(self) -> None:
        """Send the messages that kernels met, record the faults, let device TLBs answer, and give up on late ones."""
        for i, words in enumerate(self._words):
            if words[_MESSAGE_HEAD] < words[_MESSAGE_TAIL]:
                self.interrupts.send_written()
            if words[_FAULT_HEAD] < words[_FAULT_TAIL] or words[_FAULTS_LOST] != self._lost_seen[i]:
                self._record(i)
        self._device_tlbs.serve()
        self._queue.expire()

    def _record(self, i: int) -> None:
        unit = self.rows[i].unit[0]
        # Taken before it is told: whoever is told may come back here.
        while unit["fault_head"] < unit["fault_tail"]:
            row = self.rows[i].faults[int(unit["fault_head"]) % FAULT_SLOTS]
            unit["fault_head"] += 1
            iova = Iova(int(row["iova"]) & (1 << 64) - 1)
            reason, kind = FaultReason(int(row["reason"])), Request(int(row["kind"]))
            fault = Fault(Rid(int(row["rid"])), iova, reason, bool(row["write"]), kind)
            self._history.append(fault)
            if self.on_fault is not None:
                self.on_fault(fault)
            self._recording.record(fault)
        lost = int(unit["faults_lost"]) - self._lost_seen[i]
        if lost:
            self._lost_seen[i] += lost
            self._recording.overflow(lost)

    def faults(self) -> list[Fault]:
        """List the latest faults, oldest first, whether or not software has read and cleared their records."""
        self.service()
        return list(self._history)

    def walks(self, rid: Rid) -> int:
        """Count the page walks for a requester, since the start."""
        return sum(int(row.block[0]["walks"][rid]) for row in self.rows)

    def stats(self) -> dict[str, int]:
        """Count requests and what became of them.

        translations: requests that the tables decided; iotlb_hits of them were cached, page_walks walked. bypassed:
        passed unchanged. translation_requests: those translations that devices asked for, to cache them; translated:
        requests that came with a host address. faults: refused by the tables, suppressed of them not to be recorded;
        faults_lost: no record was free. aborted: allowed, but nothing is there. rejected: not a request at all.
        interrupts: messages, each delivered, posted without a notification, or blocked. messages_lost: written by DMA
        faster than sent. The rest is about the invalidation queue, device TLBs and page requests; `_absent`: of a
        requester without a device TLB.
        """
        self.service()
        counts = self.counted()
        return {
            "translations": counts["iotlb_hits"] + counts["iotlb_misses"],
            **counts,
            "faults_lost": self._recording.lost,
            **self._queue.counts,
            **self._page_requests.counts,
            "register_invalidations_refused": self._by_register.refused,
        }

    def counted(self) -> dict[str, int]:
        """Read what all rows have counted so far, for any thread, and without any service."""
        rows = list(self._words)
        return {name: sum([row[at] for row in rows]) for name, at in _COUNTED.items()}

    @on_write(Regs.GCMD)
    def _global_command(self, index: int, written: int, old: int) -> None:
        command = GCMD(written)
        status = GSTS(self._regs.peek(Regs.GSTS))
        if command.SRTP:
            # Cached contexts stay: without CAP.ESRTPS it is software that invalidates.
            for row in self.rows:
                row.unit[0]["root"] = _signed(self._regs.peek(Regs.RTADDR) & RTADDR.RTA.mask)
            status = status.replace(RTPS=1)
        if command.QIE != status.QIES:
            self._queue.switch(command.QIE)
            status = status.replace(QIES=command.QIE)
        if command.TE != status.TES:
            status = status.replace(TES=command.TE)
            for row in self.rows:
                row.unit[0]["enabled"] = command.TE
                # Marks of pass-through are kept where contexts are cached, and mean nothing after the switch.
                invalidate_contexts(row.row, 0, 0, -1)
        status = self.interrupts.command(command, status)
        self._regs.poke(Regs.GSTS, 0, status.value)


def _allowed(offset: int, size: int) -> bool:
    return size in (4, 8) and offset % size == 0 and 0 <= offset <= WINDOW_BYTES - size


def _discard(address: int, message: int) -> None:
    """Drop an interrupt that nobody takes."""
