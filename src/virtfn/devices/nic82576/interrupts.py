"""Interrupts: causes become vectors, vectors become messages.

    queue done -> IVAR, VTIVAR -> EICR bit v --- EIMS, EITR --> vector v -> MSI-X table of the PF, or of the VF it is
    ICR cause  -> IMS -> IVAR_MISC ----^                        auto-clear (EIAC), auto-mask (EIAM) as it leaves

Internal vector v is vector v - (22 - 3 n) of VF n; the rest are the PF's. The data plane keeps the 25 causes and masks
in its port row and fires them itself; Python carries the messages. Spec: 82576 datasheet, chapter "Interrupts".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import QUEUES, VECTORS, VFS, Regs, vf_vector
from virtfn.hw.i82576.fields import EITR, GPIE, ICR, IVAR_MISC, VTIVAR_MISC
from virtfn.machine.clock import NS_PS
from virtfn.machine.regfile import Handlers, on_read, on_write

__all__ = ["Interrupts"]

_ALL = (1 << VECTORS) - 1
_OTHER = 1 << 31
_EITR_PS = 250 * NS_PS  # the register counts quarters of a microsecond from bit 0


class Interrupts(Handlers):
    """Causes, masks and vectors of one port.

    send(function, vector): called for each message that leaves, with the VF's number or None for the PF.
    """

    def __init__(self, registers: PortRegisters, nic: np.void, send: Callable[[int | None, int], None]) -> None:
        self._registers = registers
        self._nic = nic
        self._port = nic["port"]
        self._send = send
        self.vfs = 0
        registers.bind(self)

    def _owned(self) -> int:
        """Vectors that are the PF's."""
        taken = sum(7 << vf_vector(n) for n in range(self.vfs))
        return _ALL & ~taken

    # Extended causes: the PF's view, and each VF's three bits of the same words.

    def _raise(self, bits: int) -> None:
        self._port["eicr"] |= bits
        self._port["pending"] |= bits

    def _unmask(self, bits: int) -> None:
        self._port["eims"] |= bits
        self._port["pending"] |= self._port["eicr"] & bits

    def _clear(self, bits: int) -> None:
        self._port["eicr"] &= ~bits
        self._port["pending"] &= ~bits

    @on_write(Regs.EICS)
    def _eics(self, index: int, written: int, old: int) -> None:
        self._raise(written & self._owned())

    @on_write(Regs.EIMS)
    def _eims(self, index: int, written: int, old: int) -> None:
        self._unmask(written & (self._owned() | 3 << 30))

    @on_read(Regs.EIMS)
    def _eims_read(self, index: int) -> int:
        return int(self._port["eims"]) & (self._owned() | 3 << 30)

    @on_write(Regs.EIMC)
    def _eimc(self, index: int, written: int, old: int) -> None:
        self._port["eims"] &= ~(written & (self._owned() | 3 << 30))

    @on_write(Regs.EIAC)
    def _eiac(self, index: int, written: int, old: int) -> None:
        own = self._owned()
        self._port["eiac"] = self._port["eiac"] & ~own | written & own

    @on_read(Regs.EIAC)
    def _eiac_read(self, index: int) -> int:
        return int(self._port["eiac"]) & self._owned()

    @on_write(Regs.EIAM)
    def _eiam(self, index: int, written: int, old: int) -> None:
        own = self._owned() | 3 << 30
        self._port["eiam"] = self._port["eiam"] & ~own | written & own

    @on_read(Regs.EIAM)
    def _eiam_read(self, index: int) -> int:
        return int(self._port["eiam"]) & (self._owned() | 3 << 30)

    @on_read(Regs.EICR)
    def _eicr_read(self, index: int) -> int:
        bits = int(self._port["eicr"]) & (self._owned() | 3 << 30)
        self._clear(bits)
        return bits

    @on_write(Regs.EICR)
    def _eicr(self, index: int, written: int, old: int) -> None:
        self._clear(written & (self._owned() | 3 << 30))

    @on_write(Regs.VTEICS)
    def _vteics(self, n: int, written: int, old: int) -> None:
        self._raise((written & 7) << vf_vector(n))

    @on_write(Regs.VTEIMS)
    def _vteims(self, n: int, written: int, old: int) -> None:
        self._unmask((written & 7) << vf_vector(n))

    @on_read(Regs.VTEIMS)
    def _vteims_read(self, n: int) -> int:
        return int(self._port["eims"]) >> vf_vector(n) & 7

    @on_write(Regs.VTEIMC)
    def _vteimc(self, n: int, written: int, old: int) -> None:
        self._port["eims"] &= ~((written & 7) << vf_vector(n))

    @on_write(Regs.VTEIAC)
    def _vteiac(self, n: int, written: int, old: int) -> None:
        shift = vf_vector(n)
        self._port["eiac"] = self._port["eiac"] & ~(7 << shift) | (written & 7) << shift

    @on_write(Regs.VTEIAM)
    def _vteiam(self, n: int, written: int, old: int) -> None:
        shift = vf_vector(n)
        self._port["eiam"] = self._port["eiam"] & ~(7 << shift) | (written & 7) << shift

    @on_read(Regs.VTEICR)
    def _vteicr_read(self, n: int) -> int:
        bits = int(self._port["eicr"]) >> vf_vector(n) & 7
        self._clear(bits << vf_vector(n))
        return bits

    @on_write(Regs.VTEICR)
    def _vteicr(self, n: int, written: int, old: int) -> None:
        self._clear((written & 7) << vf_vector(n))

    # Vectors, throttle, mode.

    @on_write(Regs.EITR)
    def _eitr(self, v: int, written: int, old: int) -> None:
        self._nic["eitr"][v, 0] = (written & EITR.INTERVAL.mask) * _EITR_PS
        if not written & EITR.CNT_INGR.mask:
            self._nic["eitr"][v, 1] = 0

    @on_write(Regs.GPIE)
    def _gpie(self, index: int, written: int, old: int) -> None:
        self._port["automask"] = 1  # EIAM acts as a message leaves; EIAME extends it to reads, which need no more
        self.route()

    @on_write(Regs.IVAR, Regs.VTIVAR)
    def _ivar(self, index: int, written: int, old: int) -> None:
        self.route()

    def route(self) -> None:
        """Work out the cause bit of each queue from IVAR and VTIVAR."""
        for q in range(QUEUES):
            n, upper = q % VFS, q // VFS
            if n < self.vfs:
                entries, limit, first = self._registers.peek(Regs.VTIVAR, n), 3, vf_vector(n)
            else:
                entries, limit, first = self._registers.peek(Regs.IVAR, n), 0x1F, 0
            for rows, byte in ((self._nic["rx"], 2 * upper), (self._nic["tx"], 2 * upper + 1)):
                entry = entries >> 8 * byte & 0xFF
                valid = entry & 0x80 and (entry & limit) < (3 if limit == 3 else VECTORS)
                rows[q]["cause"] = 1 << first + (entry & limit) if valid else 0

    # Other causes.

    def raise_other(self, causes: int) -> None:
        """Set bits of ICR, and the vector of other causes if one of them is enabled."""
        value = self._registers.peek(Regs.ICR) | causes
        if value & self._registers.peek(Regs.IMS):
            value |= ICR.INTA.mask
            if GPIE(self._registers.peek(Regs.GPIE)).MULTIPLE_MSIX:
                misc = IVAR_MISC(self._registers.peek(Regs.IVAR_MISC))
                if misc.OTHER_VALID and misc.OTHER < VECTORS:
                    self._raise(1 << misc.OTHER)
            else:
                self._raise(_OTHER)
        self._registers.poke(Regs.ICR, 0, value)

    @on_write(Regs.ICS)
    def _ics(self, index: int, written: int, old: int) -> None:
        self.raise_other(written & ~ICR.INTA.mask)

    @on_write(Regs.IMS)
    def _ims(self, index: int, written: int, old: int) -> None:
        if self._registers.peek(Regs.ICR) & written:
            self.raise_other(0)

    @on_write(Regs.IMC)
    def _imc(self, index: int, written: int, old: int) -> None:
        self._registers.poke(Regs.IMS, 0, self._registers.peek(Regs.IMS) & ~written)

    @on_read(Regs.ICR)
    def _icr_read(self, index: int) -> int:
        value = self._registers.peek(Regs.ICR)
        clears = GPIE(self._registers.peek(Regs.GPIE)).NSICR or not self._registers.peek(Regs.IMS)
        if clears or value & ICR.INTA.mask:
            self._registers.poke(Regs.ICR, 0, 0)
            masked = self._registers.peek(Regs.IMS) & ~self._registers.peek(Regs.IAM)
            if value & ICR.INTA.mask and not clears:
                self._registers.poke(Regs.IMS, 0, masked)
        self._clear(_OTHER)
        return value

    def ring_vf(self, n: int) -> None:
        """Raise the mailbox vector of VF `n`."""
        misc = VTIVAR_MISC(self._registers.peek(Regs.VTIVAR_MISC, n))
        if n < self.vfs and misc.MAILBOX_VALID and misc.MAILBOX < 3:
            self._raise(1 << vf_vector(n, misc.MAILBOX))

    # Messages.

    def set_vfs(self, count: int) -> None:
        """Share the vectors out anew: `count` VFs have three each."""
        self.vfs = count
        self.route()

    def deliver(self) -> None:
        """Send the messages of the vectors that fired."""
        fired = int(self._port["fired"])
        self._port["fired"] = 0
        if not fired:
            return
        self._registers.poke(Regs.IAC, 0, self._registers.peek(Regs.IAC) + fired.bit_count())
        if not GPIE(self._registers.peek(Regs.GPIE)).MULTIPLE_MSIX and not self.vfs:
            self._send(None, 0)
            return
        for n in range(self.vfs):
            for v in range(3):
                if fired >> vf_vector(n, v) & 1:
                    self._send(n, v)
        own = fired & self._owned()
        for v in range(VECTORS):
            if own >> v & 1:
                self._send(None, v)

    def reset_vf(self, n: int) -> None:
        """Clear the interrupt registers of VF `n`, its throttles and vectors included."""
        bits = ~(7 << vf_vector(n))
        for name in ("eicr", "pending", "fired", "eims", "eiac", "eiam"):
            self._port[name] &= bits
        for v in range(3):
            self._nic["eitr"][vf_vector(n, v)] = 0
            self._registers.poke(Regs.EITR, vf_vector(n, v), 0)
        self._registers.poke(Regs.VTIVAR, n, Regs.VTIVAR.reset)
        self._registers.poke(Regs.VTIVAR_MISC, n, 0)
        self.route()

    def reset(self, *, throttles: bool) -> None:
        """Forget every cause, mask and vector; the throttles too if asked."""
        for name in ("eicr", "pending", "fired", "eims", "eiac", "eiam"):
            self._port[name] = 0
        self._port["automask"] = 1
        if throttles:
            self._nic["eitr"][:] = 0
        self.route()
