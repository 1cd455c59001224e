"""The PHY and the link: MDIC accesses, speed, loopback, and what STATUS says of them.

Spec: 82576 datasheet, chapter "PHY"; IEEE 802.3 clause 22.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import PHY_ADDRESS, PhyRegs, Regs, phy_address
from virtfn.hw.i82576.fields import MDIC, MdiOp
from virtfn.hw.i82576.phy import BMCR, BMSR, PORT_STATUS
from virtfn.machine.regfile import Handlers, RegFile, on_read, on_write

__all__ = ["Phy"]

_SPEEDS = {10: 0, 100: 1, 1000: 2}


class Phy(Handlers):
    """The PHY of a port. on_link: called when the link may have come or gone, or loopback changed."""

    def __init__(self, registers: PortRegisters, on_link: Callable[[], None]) -> None:
        self._registers = registers
        self._on_link = on_link
        size = 2 * (max(decl.offset for decl in PhyRegs.DECLS) // 2 + 1)
        self._bytes = np.zeros(size + 4, np.uint8)
        self._file = RegFile(PhyRegs, self._bytes, size)
        self._selected = 0
        self._lost = False
        self.carrier = True
        self.mbps = 1000
        registers.bind(self)
        self._file.bind(_PhySide(self, self._file))

    @property
    def loopback(self) -> bool:
        """Whether the PHY sends back what it is given."""
        return bool(BMCR(self._file.peek(PhyRegs.BMCR)).LOOPBACK)

    @property
    def link(self) -> bool:
        """Whether the PHY has a link."""
        return self.carrier and not BMCR(self._file.peek(PhyRegs.BMCR)).POWER_DOWN

    @property
    def speed(self) -> int:
        """Speed of the link, as CTRL and STATUS hold it."""
        return _SPEEDS[self.mbps]

    @on_write(Regs.MDIC)
    def _mdic(self, index: int, written: int, old: int) -> None:
        command = MDIC(written)
        value = command.replace(READY=1, ERROR=0)
        if command.PHY != PHY_ADDRESS or command.OP not in (MdiOp.READ, MdiOp.WRITE):
            value = value.replace(ERROR=1)
        elif command.OP == MdiOp.READ:
            value = value.replace(DATA=self._file.read(2 * phy_address(self._selected, command.REG), 2))
        else:
            if PhyRegs.PAGE_SELECT.offset // 2 == command.REG:
                self._selected = command.DATA
            self._file.write(2 * phy_address(self._selected, command.REG), 2, command.DATA)
        self._registers.poke(Regs.MDIC, 0, value.value)

    def set_link(self, carrier: bool, mbps: int) -> None:
        """Plug or pull the cable. mbps: 10, 100 or 1000."""
        self.carrier, self.mbps = carrier, mbps
        self.settle()
        self._on_link()

    def settle(self) -> None:
        """Let the status registers say what the link is."""
        self._lost = self._lost or not self.link
        bmsr = BMSR(PhyRegs.BMSR.reset).replace(LINK=int(self.link), AN_DONE=int(self.link))
        self._file.poke(PhyRegs.BMSR, 0, bmsr.value)
        status = PORT_STATUS.of(DUPLEX=1, SPEED=self.speed + 1) if self.link else PORT_STATUS(0)
        self._file.poke(PhyRegs.PORT_STATUS, 0, status.value)

    def take_bmsr(self) -> int:
        """Read the status register; a link that was lost since the last read shows as down once."""
        value = BMSR(self._file.peek(PhyRegs.BMSR))
        if self._lost:
            self._lost = not self.link
            value = value.replace(LINK=0)
        return value.value

    def controlled(self) -> None:
        """Follow a write of the control register: loopback on or off, power down or up."""
        self.settle()
        self._on_link()

    def reset(self) -> None:
        """Reset the PHY."""
        self._file.reset()
        self._selected = 0
        self.settle()


class _PhySide(Handlers):
    """Side effects on the PHY's own registers."""

    def __init__(self, phy: Phy, file: RegFile) -> None:
        self._phy = phy
        self._file = file

    @on_read(PhyRegs.BMSR)
    def _status(self, index: int) -> int:
        return self._phy.take_bmsr()

    @on_write(PhyRegs.BMCR)
    def _control(self, index: int, written: int, old: int) -> None:
        if BMCR(written).RESET:
            self._phy.reset()
        self._phy.controlled()
