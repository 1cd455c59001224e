"""A remapping unit's registers as its driver uses them: by declaration, one command bit at a time, with patience."""

from __future__ import annotations

from typing import Protocol

from virtfn.hw.bits import Decl
from virtfn.hw.vtd.regs import CAP, ECAP, GCMD, Regs
from virtfn.machine.clock import MS_PS, US_PS
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Registers", "UnitRegisters"]

_ONE_SHOT = GCMD.SRTP.mask | GCMD.SIRTP.mask | GCMD.SFL.mask | GCMD.WBF.mask


class Registers(Protocol):
    """The unit's register window."""

    def read(self, offset: int, size: int) -> int:
        """Read 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 bytes."""


class UnitRegisters:
    """The register window of one unit. cap, ecap: what it can do."""

    def __init__(self, window: Registers, clock: Clock) -> None:
        self.window = window
        self.clock = clock
        self.cap = CAP(self.read(Regs.CAP))
        self.ecap = ECAP(self.read(Regs.ECAP))

    def read(self, decl: Decl) -> int:
        """Read a register."""
        return self.window.read(decl.offset, decl.size)

    def write(self, decl: Decl, value: int) -> None:
        """Write a register."""
        self.window.write(decl.offset, decl.size, value)

    def enable_event(self, event: tuple[int, int], control: Decl, data: Decl, address: Decl, upper: Decl) -> None:
        """Give one of the unit's own interrupts its address and message, and unmask it."""
        where, message = event
        self.write(data, message)
        self.write(address, where & 0xFFFF_FFFF)
        self.write(upper, where >> 32)
        self.write(control, 0)

    def command(self, set_bits: int, clear_bits: int = 0, *, until: int, wanted: int) -> None:
        """Change one bit of GCMD, keep the others as they are, and wait until GSTS under `until` is `wanted`.

        Raises VirtfnError when it takes too long.
        """
        status = self.read(Regs.GSTS) & ~_ONE_SHOT
        self.write(Regs.GCMD, (status | set_bits) & ~clear_bits)
        self.wait(Regs.GSTS, until, wanted)

    def wait(self, decl: Decl, mask: int, wanted: int) -> int:
        """Read a register until its bits under `mask` are `wanted`; return it.

        Raises VirtfnError when it takes too long.
        """
        return self.wait_at(decl.offset, decl.size, mask, wanted, decl.name)

    def wait_at(self, offset: int, size: int, mask: int, wanted: int, name: str) -> int:
        """Do the same at an offset that the capabilities told."""
        deadline = self.clock.now() + 10 * MS_PS
        while True:
            got = self.window.read(offset, size)
            if got & mask == wanted:
                return got
            if self.clock.now() >= deadline:
                raise VirtfnError(f"the remapping unit hangs: {name} is {got:#x}", errno_name="ETIMEDOUT")
            self.clock.sleep(US_PS)
