"""Interrupts: causes become vectors, vectors become messages.

    queue done -> IVAR, VTIVAR -> EICR bit v --- EIMS, EITR --> vector v -> MSI-X table of the PF, or of the VF it is
    ICR cause  -> IMS -> IVAR_MISC ----^                        auto-clear (EIAC), auto-mask (EIAM) as it leaves

Internal vector v is vector v - (22 - 3 n) of VF n; the rest are the PF's. The data plane keeps the 25 causes and masks
in its port row and fires them itself; Python carries the messages.

Without vectors of its own (GPIE.MULTIPLE_MSIX clear) the PF has one message, sent for any enabled cause of ICR or EICR;
queues then set RXDW and TXDW in ICR beside their bits of EICR. Spec: 82576 datasheet, chapter "Interrupts".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import QUEUES, VECTORS, VFS, Regs, vf_vector
from virtfn.hw.i82576.fields import CTRL_EXT, EICR, EITR, GPIE, ICR, IVAR_MISC, VTIVAR_MISC
from virtfn.kernels.i82576.port import ALL_VECTORS
from virtfn.kernels.i82576.state import POOLS, RX_CAUSE, TX_CAUSE
from virtfn.machine.clock import NS_PS
from virtfn.machine.regfile import Handlers, on_read, on_write

__all__ = ["Interrupts"]

_SINGLE = EICR.TCP_TIMER.mask | EICR.OTHER.mask  # causes that have a bit of EICR where vectors have none
_EITR_PS = 250 * NS_PS  # the register counts quarters of a microsecond from bit 0


class Interrupts(Handlers):
    """Causes, masks and vectors of one port.

    send(function, vector): called for each message that leaves, with the VF's number or None for the PF.
    """

    def __init__(self, registers: PortRegisters, nic: np.void, send: Callable[[int | None, int], None]) -> None:
        self._registers = registers
        self._nic = nic
        self._port = nic["port"]
        self._card = nic["card"]
        self._send = send
        self.vfs = 0
        registers.bind(self)

    def _owned(self) -> int:
        """Bits of the extended registers that are the PF's."""
        taken = sum(7 << vf_vector(n) for n in range(self.vfs))
        return ALL_VECTORS & ~taken | (0 if self._mode.MULTIPLE_MSIX else _SINGLE)

    @property
    def _mode(self) -> GPIE:
        return GPIE(self._registers.peek(Regs.GPIE))

    def vectors(self, n: int | None) -> tuple[int, int, int]:
        """Tell where kernels find the vectors of VF `n`, or of the PF: (number, the first vector, all of them as bits).

        There are no bits where one message stands for all.
        """
        if n is not None:
            return n, vf_vector(n), 7 << vf_vector(n) if n < self.vfs else 0
        return POOLS, 0, self._owned() if self._mode.MULTIPLE_MSIX else 0

    # Extended causes: the PF's view, and each VF's three bits of the same words.

    def _raise(self, bits: int) -> None:
        self._port["eicr"] |= bits
        self._port["pending"] |= bits & ALL_VECTORS
        self._card["fired"] |= bits & _SINGLE & int(self._port["eims"])

    def _unmask(self, bits: int) -> None:
        self._port["eims"] |= bits
        kept = int(self._port["eicr"]) & bits
        self._port["pending"] |= kept & ALL_VECTORS
        self._card["fired"] |= kept & _SINGLE

    def _clear(self, bits: int) -> None:
        self._port["eicr"] &= ~bits
        self._port["pending"] &= ~bits

    def _mask(self, bits: int) -> None:
        self._port["eims"] &= ~bits

    def _acknowledge(self, bits: int, among: int) -> None:
        """Clear causes `bits`; unless messages mask as they leave, this masks what EIAM says `among` these vectors."""
        self._clear(bits)
        if not self._port["automask"]:
            self._mask(int(self._port["eiam"]) & among)

    @on_write(Regs.EICS)
    def _eics(self, index: int, written: int, old: int) -> None:
        self._raise(written & self._owned())

    @on_write(Regs.EIMS)
    def _eims(self, index: int, written: int, old: int) -> None:
        self._registers.poke(Regs.EIMS, 0, 0)
        self._unmask(written & self._owned())

    @on_read(Regs.EIMS)
    def _eims_read(self, index: int) -> int:
        return int(self._port["eims"]) & self._owned()

    @on_write(Regs.EIMC)
    def _eimc(self, index: int, written: int, old: int) -> None:
        self._mask(written & self._owned())

    @on_write(Regs.EIAC)
    def _eiac(self, index: int, written: int, old: int) -> None:
        own = self._owned() & ALL_VECTORS
        self._port["eiac"] = self._port["eiac"] & ~own | written & own

    @on_read(Regs.EIAC)
    def _eiac_read(self, index: int) -> int:
        return int(self._port["eiac"]) & self._owned()

    @on_write(Regs.EIAM)
    def _eiam(self, index: int, written: int, old: int) -> None:
        own = self._owned()
        self._port["eiam"] = self._port["eiam"] & ~own | written & own

    @on_read(Regs.EIAM)
    def _eiam_read(self, index: int) -> int:
        return int(self._port["eiam"]) & self._owned()

    @on_read(Regs.EICR)
    def _eicr_read(self, index: int) -> int:
        own = self._owned()
        bits = int(self._port["eicr"]) & own
        self._acknowledge(bits, own)
        return bits

    @on_write(Regs.EICR)
    def _eicr(self, index: int, written: int, old: int) -> None:
        own = self._owned()
        self._acknowledge(written & own, own)

    @on_write(Regs.VTEICS)
    def _vteics(self, n: int, written: int, old: int) -> None:
        self._raise((written & 7) << vf_vector(n))

    @on_write(Regs.VTEIMS)
    def _vteims(self, n: int, written: int, old: int) -> None:
        self._registers.poke(Regs.VTEIMS, n, 0)
        self._unmask((written & 7) << vf_vector(n))

    @on_read(Regs.VTEIMS)
    def _vteims_read(self, n: int) -> int:
        return int(self._port["eims"]) >> vf_vector(n) & 7

    @on_write(Regs.VTEIMC)
    def _vteimc(self, n: int, written: int, old: int) -> None:
        self._mask((written & 7) << vf_vector(n))

    @on_write(Regs.VTEIAC)
    def _vteiac(self, n: int, written: int, old: int) -> None:
        shift = vf_vector(n)
        self._port["eiac"] = self._port["eiac"] & ~(7 << shift) | (written & 7) << shift

    @on_read(Regs.VTEIAC)
    def _vteiac_read(self, n: int) -> int:
        return int(self._port["eiac"]) >> vf_vector(n) & 7

    @on_write(Regs.VTEIAM)
    def _vteiam(self, n: int, written: int, old: int) -> None:
        shift = vf_vector(n)
        self._port["eiam"] = self._port["eiam"] & ~(7 << shift) | (written & 7) << shift

    @on_read(Regs.VTEIAM)
    def _vteiam_read(self, n: int) -> int:
        return int(self._port["eiam"]) >> vf_vector(n) & 7

    @on_read(Regs.VTEICR)
    def _vteicr_read(self, n: int) -> int:
        bits = int(self._port["eicr"]) >> vf_vector(n) & 7
        self._acknowledge(bits << vf_vector(n), 7 << vf_vector(n))
        return bits

    @on_write(Regs.VTEICR)
    def _vteicr(self, n: int, written: int, old: int) -> None:
        self._acknowledge((written & 7) << vf_vector(n), 7 << vf_vector(n))

    # Vectors, throttle, mode.

    @on_write(Regs.EITR)
    def _eitr(self, v: int, written: int, old: int) -> None:
        self._nic["eitr"][v, 0] = (written & EITR.INTERVAL.mask) * _EITR_PS
        if not written & EITR.CNT_INGR.mask:
            self._nic["eitr"][v, 1] = 0

    @on_write(Regs.GPIE)
    def _gpie(self, index: int, written: int, old: int) -> None:
        self._port["automask"] = self._mode.EIAME
        self.route()

    @on_write(Regs.IVAR, Regs.VTIVAR)
    def _ivar(self, index: int, written: int, old: int) -> None:
        self.route()

    def route(self) -> None:
        """Work out the cause bits of each queue from IVAR and VTIVAR."""
        single = not self._mode.MULTIPLE_MSIX
        for q in range(QUEUES):
            n, upper = q % VFS, q // VFS
            if n < self.vfs:
                entries, limit, first = self._registers.peek(Regs.VTIVAR, n), 3, vf_vector(n)
            else:
                entries, limit, first = self._registers.peek(Regs.IVAR, n), 0x1F, 0
            sides = ((self._nic["rx"], 2 * upper, RX_CAUSE), (self._nic["tx"], 2 * upper + 1, TX_CAUSE))
            for rows, byte, legacy in sides:
                entry = entries >> 8 * byte & 0xFF
                valid = entry & 0x80 and (entry & limit) < (3 if limit == 3 else VECTORS)
                cause = 1 << first + (entry & limit) if valid else 0
                rows[q]["cause"] = cause | (legacy if single and n >= self.vfs else 0)
        self._card["received"] = np.bitwise_or.reduce(self._nic["rx"]["cause"])

    # Other causes.

    def raise_other(self, causes: int) -> None:
        """Set bits of ICR; if one is enabled, interrupt: by the vector of other causes or the one message."""
        value = self._registers.peek(Regs.ICR) | causes
        if causes & self._registers.peek(Regs.IMS):
            value |= ICR.INTA.mask
            misc = self._misc
            if not self._mode.MULTIPLE_MSIX:
                self._port["eicr"] |= EICR.OTHER.mask
                self._card["fired"] |= EICR.OTHER.mask
            elif misc.OTHER_VALID and misc.OTHER < VECTORS:
                self._raise(1 << misc.OTHER)
        self._registers.poke(Regs.ICR, 0, value)

    def raise_timer(self) -> None:
        """Set the cause of the TCP timer, in ICR and in EICR, where it has a vector of its own."""
        misc = self._misc
        if not self._mode.MULTIPLE_MSIX:
            self._raise(EICR.TCP_TIMER.mask)
        elif misc.TCP_TIMER_VALID and misc.TCP_TIMER < VECTORS:
            self._raise(1 << misc.TCP_TIMER)
        self.raise_other(ICR.TCP_TIMER.mask)

    @property
    def _misc(self) -> IVAR_MISC:
        return IVAR_MISC(self._registers.peek(Regs.IVAR_MISC))

    @on_write(Regs.ICS)
    def _ics(self, index: int, written: int, old: int) -> None:
        self.raise_other(written & ~ICR.INTA.mask)

    @on_write(Regs.IMS)
    def _ims(self, index: int, written: int, old: int) -> None:
        self.raise_other(self._registers.peek(Regs.ICR) & written & ~ICR.INTA.mask)

    @on_write(Regs.IMC)
    def _imc(self, index: int, written: int, old: int) -> None:
        self._registers.poke(Regs.IMS, 0, self._registers.peek(Regs.IMS) & ~written)

    @on_read(Regs.ICR)
    def _icr_read(self, index: int) -> int:
        value = self._registers.peek(Regs.ICR)
        enabled = self._registers.peek(Regs.IMS)
        asserted = value & ICR.INTA.mask
        if asserted and CTRL_EXT(self._registers.peek(Regs.CTRL_EXT)).IAME:
            self._registers.poke(Regs.IMS, 0, enabled & ~self._registers.peek(Regs.IAM))
        if asserted or not enabled or self._mode.NSICR:
            self._registers.poke(Regs.ICR, 0, 0)
        self._clear(EICR.OTHER.mask)
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
        fired = self._take_fired()
        if fired & (RX_CAUSE | TX_CAUSE):
            self._port["eicr"] &= ~(RX_CAUSE | TX_CAUSE)
            self.raise_other(ICR.of(RXDW=int(fired & RX_CAUSE > 0), TXDW=int(fired & TX_CAUSE > 0)).value)
            fired = fired & ~(RX_CAUSE | TX_CAUSE) | self._take_fired()
        if not fired:
            return
        own = fired & self._owned()
        single = own and not self._mode.MULTIPLE_MSIX
        messages = (fired & ~own).bit_count() + (1 if single else own.bit_count())
        self._card["messages"] += messages
        for n in range(self.vfs):
            for v in range(3):
                if fired >> vf_vector(n, v) & 1:
                    self._send(n, v)
        if single:
            self._send(None, 0)
            return
        for v in range(VECTORS):
            if own >> v & 1:
                self._send(None, v)

    def _take_fired(self) -> int:
        fired = int(self._card["fired"])
        self._card["fired"] = 0
        return fired

    def reset_vf(self, n: int) -> None:
        """Clear the interrupt registers of VF `n`, its throttles and vectors included."""
        bits = ~(7 << vf_vector(n))
        for name in ("eicr", "pending", "eims", "eiac", "eiam"):
            self._port[name] &= bits
        self._card["fired"] &= bits
        for v in range(3):
            self._nic["eitr"][vf_vector(n, v)] = 0
            self._registers.poke(Regs.EITR, vf_vector(n, v), 0)
        self._registers.poke(Regs.VTIVAR, n, Regs.VTIVAR.reset)
        self._registers.poke(Regs.VTIVAR_MISC, n, 0)
        self.route()

    def reset(self, *, throttles: bool) -> None:
        """Forget every cause, mask and vector; the throttles too if asked."""
        for name in ("eicr", "pending", "eims", "eiac", "eiam"):
            self._port[name] = 0
        self._card["fired"] = 0
        self._port["automask"] = 0
        if throttles:
            self._nic["eitr"][:] = 0
        self.route()
