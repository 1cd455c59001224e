"""Primary fault recording, and the status of everything that can go wrong in the unit.

    fault --> FRCD[next] free? --> record, F=1; first one: FSTS.PPF, FRI
                       occupied --> FSTS.PFO; nothing is recorded until software clears it
    error of the invalidation queue --> FSTS.IQE, ICE or ITE

The fault event is raised when FSTS was clear before, and withdrawn when software has cleared all of it.

Spec: VT-d, non-recoverable fault reporting.
"""

from __future__ import annotations

from virtfn.devices.iommu.events import EventInterrupt, Send
from virtfn.hw.bits import Field
from virtfn.hw.vtd.regs import FAULT_RECORDS, FRCD_HIGH, FSTS, Fault, Regs, encode_fault
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["FaultRecording"]

_REASONS = FSTS.PFO.mask | FSTS.PPF.mask | FSTS.IQE.mask | FSTS.ICE.mask | FSTS.ITE.mask


class FaultRecording(Handlers):
    """FSTS, FRCD and the fault event; `send` carries the event away. lost: faults that found no record."""

    def __init__(self, regfile: RegFile, send: Send) -> None:
        self._regs = regfile
        self._event = EventInterrupt(regfile, send, Regs.FECTL, Regs.FEDATA, Regs.FEADDR, Regs.FEUADDR)
        self.reset()

    def reset(self) -> None:
        """Start at the first record."""
        self._next = 0
        self.lost = 0

    def record(self, fault: Fault) -> None:
        """Record one fault, or count it as lost if there is no room."""
        if self.status(FSTS.PFO):
            self.lost += 1
            return
        if FRCD_HIGH(self._regs.peek(Regs.FRCD_HIGH, self._next)).F:
            self.overflow(1)
            return
        at, self._next = self._next, (self._next + 1) % FAULT_RECORDS
        low, high = encode_fault(fault)
        self._regs.poke(Regs.FRCD_LOW, at, low.value)
        self._regs.poke(Regs.FRCD_HIGH, at, high.value)
        if not self.status(FSTS.PPF):
            status = FSTS(self._regs.peek(Regs.FSTS))
            self._regs.poke(Regs.FSTS, 0, status.replace(FRI=at).value)
            self.raise_status(FSTS.PPF)

    def overflow(self, lost: int) -> None:
        """Note that `lost` faults found no record."""
        self.lost += lost
        self.raise_status(FSTS.PFO)

    def status(self, *fields: Field) -> bool:
        """Tell whether any of these fields of FSTS is set."""
        value = self._regs.peek(Regs.FSTS)
        return any(value & field.mask for field in fields)

    def raise_status(self, field: Field) -> None:
        """Set a field of FSTS; the event tells of the first one only."""
        before = self._regs.peek(Regs.FSTS)
        self._regs.poke(Regs.FSTS, 0, before | field.mask)
        if not before & _REASONS:
            self._event.notify()

    @on_write(Regs.FSTS)
    def _cleared_status(self, index: int, written: int, old: int) -> None:
        self._settle()

    @on_write(Regs.FRCD_HIGH)
    def _cleared_record(self, index: int, written: int, old: int) -> None:
        if not any(FRCD_HIGH(self._regs.peek(Regs.FRCD_HIGH, i)).F for i in range(FAULT_RECORDS)):
            self._regs.poke(Regs.FSTS, 0, FSTS(self._regs.peek(Regs.FSTS)).replace(PPF=0).value)
        self._settle()

    def _settle(self) -> None:
        if not self._regs.peek(Regs.FSTS) & _REASONS:
            self._event.withdraw()
