"""The remapping unit: registers in front, translation kernels behind, faults in between.

    registers (4 KiB window)                 Iommu row, shared with the data plane's kernels
      GCMD, RTADDR  ----------------------->   root table, enabled
      CCMD, IOTLB   ---- invalidation.py -->   context cache, IOTLB
      FSTS, FRCD    <--- faults.py ---------   ring of faults, drained by `service`

Kernels translate without asking this class. It owns the row, runs the register protocol, and serves devices that do
their DMA in Python. Invalidation by queue and interrupt remapping bind further blocks of registers to the same file.

Spec: VT-d, DMA remapping; global command register.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from virtfn.devices.iommu.faults import FaultRecording
from virtfn.devices.iommu.invalidation import Invalidator, RegisterInvalidation
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.regs import CAP, CAPABILITIES, GCMD, GSTS, RTADDR, WINDOW_BYTES, Fault, Granularity, Regs
from virtfn.hw.vtd.tables import FaultReason
from virtfn.kernels.dma import FAULT_SLOTS, Iommu, dma_copy_in, dma_copy_out, invalidate_contexts, new_iommu
from virtfn.machine.memory import HostMemory
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["IommuUnit"]

FAULT_HISTORY = 1024
COUNTERS = (
    "iotlb_hits",
    "iotlb_misses",
    "page_walks",
    "context_walks",
    "bypassed",
    "faults",
    "suppressed",
    "aborted",
    "rejected",
)


def _signed(address: int) -> int:
    """Wrap a 64-bit address as compiled code sees it."""
    return (address + (1 << 63) & (1 << 64) - 1) - (1 << 63)


class IommuUnit(Handlers):
    """One remapping unit for all requesters of the machine. Off after reset: addresses pass unchanged.

    memory: the machine's memory; no DMA leaves it. iotlb_entries: a power of two. send: takes address and message of
    the unit's own interrupts (fault events).

    Raises ValueError for a size of the IOTLB that cannot be.
    """

    def __init__(
        self, memory: HostMemory, iotlb_entries: int = 1024, send: Callable[[int, int], None] | None = None
    ) -> None:
        self.iommu: Iommu = new_iommu(memory.base, memory.size, iotlb_entries, CAPABILITIES.SAGAW, CAPABILITIES.SSLPS)
        self._memory = memory
        self._history: deque[Fault] = deque(maxlen=FAULT_HISTORY)
        self.on_fault: Callable[[Fault], None] | None = None
        self._lost_seen = 0
        self._regs = RegFile(Regs, np.zeros(WINDOW_BYTES, np.uint8), WINDOW_BYTES)
        self._recording = FaultRecording(self._regs, send or _discard)
        self.invalidator = Invalidator(self.iommu, CAP(CAPABILITIES.value).MAMV)
        for block in (self, self._recording, RegisterInvalidation(self._regs, self.invalidator)):
            self._regs.bind(block)

    def reset(self) -> None:
        """Return to the state after power-on: off, caches empty, no fault; counters stay."""
        unit = self.iommu.unit[0]
        unit["enabled"] = unit["root"] = 0
        unit["fault_head"] = unit["fault_tail"]
        self._lost_seen = int(unit["faults_lost"])
        self._regs.reset()
        self._recording.reset()
        self._history.clear()
        self.invalidator.contexts(Granularity.GLOBAL, 0, 0, 0)
        self.invalidator.translations(Granularity.GLOBAL, 0, 0, 0)

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

    def dma_read(self, rid: Rid, iova: Iova, length: int) -> bytes | None:
        """Read memory as requester `rid`; None after a refusal."""
        if not 0 <= length <= self._memory.size:
            self.iommu.unit[0]["rejected"] += 1
            return None
        payload = np.empty(length, np.uint8)
        done = dma_copy_in(self.iommu.row, int(rid), _signed(iova), length, int(payload.ctypes.data))
        self.service()
        return payload.tobytes() if done == length else None

    def dma_write(self, rid: Rid, iova: Iova, payload: bytes) -> bool:
        """Write memory as requester `rid`; False after a refusal, and then no byte was written."""
        source = np.frombuffer(payload, np.uint8)
        done = dma_copy_out(self.iommu.row, int(rid), _signed(iova), len(payload), int(source.ctypes.data))
        self.service()
        return done == len(payload)

    def service(self) -> None:
        """Move the faults that kernels met into the fault recording registers, and raise the fault event."""
        unit = self.iommu.unit[0]
        head, tail, lost = int(unit["fault_head"]), int(unit["fault_tail"]), int(unit["faults_lost"])
        for i in range(head, tail):
            row = self.iommu.faults[i % FAULT_SLOTS]
            iova = Iova(int(row["iova"]) & (1 << 64) - 1)
            fault = Fault(Rid(int(row["rid"])), iova, FaultReason(int(row["reason"])), bool(row["write"]))
            self._history.append(fault)
            if self.on_fault is not None:
                self.on_fault(fault)
            self._recording.record(fault)
        unit["fault_head"] = tail
        if lost != self._lost_seen:
            self._recording.overflow(lost - self._lost_seen)
            self._lost_seen = lost

    def faults(self) -> list[Fault]:
        """List the latest faults, oldest first, whether or not software has read and cleared their records."""
        self.service()
        return list(self._history)

    def stats(self) -> dict[str, int]:
        """Count requests and what became of them.

        translations: requests that the tables decided; iotlb_hits of them were cached, page_walks walked. bypassed:
        passed unchanged. faults: refused by the tables, suppressed of them not to be recorded; faults_lost: no record
        was free. aborted: allowed, but nothing is there. rejected: not a request at all.
        """
        self.service()
        unit = self.iommu.unit[0]
        counts = {name: int(unit[name]) for name in COUNTERS}
        return {
            "translations": counts["iotlb_hits"] + counts["iotlb_misses"],
            **counts,
            "faults_lost": self._recording.lost,
        }

    @on_write(Regs.GCMD)
    def _global_command(self, index: int, written: int, old: int) -> None:
        command = GCMD(written)
        status = GSTS(self._regs.peek(Regs.GSTS))
        unit = self.iommu.unit[0]
        if command.SRTP:
            # Cached contexts stay: without CAP.ESRTPS it is software that invalidates.
            unit["root"] = _signed(self._regs.peek(Regs.RTADDR) & RTADDR.RTA.mask)
            status = status.replace(RTPS=1)
        if command.TE != status.TES:
            unit["enabled"] = command.TE
            status = status.replace(TES=command.TE)
            # Marks of pass-through are kept where contexts are cached, and mean nothing after the switch.
            invalidate_contexts(self.iommu.row, 0, 0, -1)
        self._regs.poke(Regs.GSTS, 0, status.value)


def _allowed(offset: int, size: int) -> bool:
    return size in (4, 8) and offset % size == 0 and 0 <= offset <= WINDOW_BYTES - size


def _discard(address: int, message: int) -> None:
    """Drop an interrupt that nobody takes."""
