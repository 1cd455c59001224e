"""Primary fault recording: FRCD registers in turn, overflow, and the fault event.

    fault --> FRCD[next] free? --> record, F=1; first one: FSTS.PPF, FRI, event
                       occupied --> FSTS.PFO; nothing is recorded until software clears it

The event is a message to FEADDR; masked (FECTL.IM) it stays pending (FECTL.IP) until unmasked, or until software has
cleared every fault.

Spec: VT-d, non-recoverable fault reporting.
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.hw.vtd.regs import FAULT_RECORDS, FRCD_HIGH, FSTS, EventControl, Fault, Regs, encode_fault
from virtfn.machine.regfile import Handlers, RegFile, on_write

__all__ = ["FaultRecording"]


class FaultRecording(Handlers):
    """FSTS, FECTL and FRCD; `send` carries a fault event away: address and message of the interrupt."""

    def __init__(self, regfile: RegFile, send: Callable[[int, int], None]) -> None:
        self._regs = regfile
        self._send = send
        self.reset()

    def reset(self) -> None:
        """Start at the first record."""
        self._next = 0
        self.lost = 0

    def record(self, fault: Fault) -> None:
        """Record one fault, or count it as lost if there is no room."""
        status = FSTS(self._regs.peek(Regs.FSTS))
        if status.PFO:
            self.lost += 1
            return
        if FRCD_HIGH(self._regs.peek(Regs.FRCD_HIGH, self._next)).F:
            self.overflow(1)
            return
        low, high = encode_fault(fault)
        self._regs.poke(Regs.FRCD_LOW, self._next, low.value)
        self._regs.poke(Regs.FRCD_HIGH, self._next, high.value)
        if not status.PPF:
            self._regs.poke(Regs.FSTS, 0, status.replace(PPF=1, FRI=self._next).value)
            if not self._others_pending(status):
                self._event()
        self._next = (self._next + 1) % FAULT_RECORDS

    def overflow(self, lost: int) -> None:
        """Note that `lost` faults found no record."""
        self.lost += lost
        status = FSTS(self._regs.peek(Regs.FSTS))
        if not status.PFO:
            self._regs.poke(Regs.FSTS, 0, status.replace(PFO=1).value)
            if not status.PPF and not self._others_pending(status):
                self._event()

    @staticmethod
    def _others_pending(status: FSTS) -> bool:
        return bool(status.PFO or status.IQE or status.ICE or status.ITE)

    def _event(self) -> None:
        control = EventControl(self._regs.peek(Regs.FECTL))
        if control.IM:
            self._regs.poke(Regs.FECTL, 0, control.replace(IP=1).value)
        else:
            self._regs.poke(Regs.FECTL, 0, control.replace(IP=0).value)
            address = self._regs.peek(Regs.FEUADDR) << 32 | self._regs.peek(Regs.FEADDR)
            self._send(address, self._regs.peek(Regs.FEDATA))

    @on_write(Regs.FECTL)
    def _control(self, index: int, written: int, old: int) -> None:
        if EventControl(self._regs.peek(Regs.FECTL)).IP:
            self._event()

    @on_write(Regs.FSTS)
    def _status(self, index: int, written: int, old: int) -> None:
        self._settle()

    @on_write(Regs.FRCD_HIGH)
    def _cleared(self, index: int, written: int, old: int) -> None:
        pending = any(FRCD_HIGH(self._regs.peek(Regs.FRCD_HIGH, i)).F for i in range(FAULT_RECORDS))
        if not pending:
            self._regs.poke(Regs.FSTS, 0, FSTS(self._regs.peek(Regs.FSTS)).replace(PPF=0).value)
        self._settle()

    def _settle(self) -> None:
        """Withdraw a pending event when software has cleared all that it was about."""
        status = FSTS(self._regs.peek(Regs.FSTS))
        if not status.PPF and not self._others_pending(status):
            control = EventControl(self._regs.peek(Regs.FECTL))
            self._regs.poke(Regs.FECTL, 0, control.replace(IP=0).value)
