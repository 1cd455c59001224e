"""The PHY behind MDIC: an IGP3-type copper transceiver at PHY address 1, 16-bit registers.

Registers 0 to 15 are those of IEEE 802.3 clause 22. Above, a register has an address of 16 bits: its number is the low
five, and software writes the address to register 31 first. The map counts in bytes: address `a` is at offset 2 `a`.

Spec: IEEE 802.3 clause 22 and 40; 82576 datasheet, chapter "PHY registers".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Field, Register, RegMap, Status, reg

__all__ = ["BMCR", "BMSR", "PHY_ADDRESS", "PORT_STATUS", "PhyRegs", "phy_address"]

PHY_ADDRESS = 1
PAGED_FROM = 16
PAGE_SELECT = 31

RO = Access.RO
MODELLED = Status.MODELLED


def phy_address(selected: int, number: int) -> int:
    """Find the address that register `number` (0..31) reaches while register 31 holds `selected`."""
    if number < PAGED_FROM or number == PAGE_SELECT:
        return number
    return selected & 0xFFE0 | number


def phy(
    address: int,
    kind: type[Register] = Register,
    access: Access = Access.RW,
    *,
    reset: int = 0,
    status: Status = Status.STORED,
    about: str = "",
) -> Decl:
    """Declare the PHY register at `address`."""
    return reg(address * 2, kind, access, reset=reset, width=16, status=status, about=about)


class BMCR(Register):
    """Control: reset, loopback, auto-negotiation."""

    SPEED_MSB = Field(6, stored=True)
    COLLISION_TEST = Field(7, stored=True)
    DUPLEX = Field(8, stored=True)
    AN_RESTART = Field(9, access=Access.SC, stored=True)
    ISOLATE = Field(10, stored=True)
    POWER_DOWN = Field(11)
    AN_EN = Field(12, stored=True)
    SPEED_LSB = Field(13, stored=True)
    LOOPBACK = Field(14)
    RESET = Field(15, access=Access.SC)


class BMSR(Register):
    """Status: link, auto-negotiation complete."""

    EXTENDED = Field(0)
    JABBER = Field(1)
    LINK = Field(2)  # a lost link stays visible until read
    AN_ABLE = Field(3)
    REMOTE_FAULT = Field(4)
    AN_DONE = Field(5)


class PORT_STATUS(Register):
    """Port status of the IGP PHY: resolved speed and duplex."""

    DUPLEX = Field(9)
    SPEED = Field(15, 14)  # 1: 10, 2: 100, 3: 1000 Mb/s


class PhyRegs(RegMap):
    """Registers of the PHY by address, two bytes each. The reset values are those of a link at 1000 Mb/s."""

    BMCR = phy(0, BMCR, reset=0x1140, status=MODELLED)
    BMSR = phy(1, BMSR, RO, reset=0x796D, status=MODELLED)
    PHY_ID1 = phy(2, access=RO, reset=0x02A8, status=MODELLED, about="Identifier, high half.")
    PHY_ID2 = phy(3, access=RO, reset=0x0391, status=MODELLED, about="Identifier, low half: IGP3, revision 1.")
    ANAR = phy(4, reset=0x01E1, about="Auto-negotiation: advertised.")
    ANLPAR = phy(5, access=RO, reset=0x45E1, about="Auto-negotiation: the link partner's.")
    ANER = phy(6, access=RO, reset=0x0001, about="Auto-negotiation expansion.")
    GCR = phy(9, reset=0x0300, about="1000BASE-T control.")
    GSR = phy(10, access=RO, reset=0x3C00, about="1000BASE-T status.")
    ESR = phy(15, access=RO, reset=0x3000, about="Extended status.")
    PORT_CONFIG = phy(0x10, reset=0x0120, about="Port configuration.")
    PORT_STATUS = phy(0x11, PORT_STATUS, RO, reset=0xC000, status=MODELLED)
    PORT_CONTROL = phy(0x12, about="Port control: crossover.")
    LINK_HEALTH = phy(0x13, access=RO, about="Link health.")
    POWER_MANAGEMENT = phy(0x19, reset=0x000F, about="Power management: low-power link up.")
    PAGE_SELECT = phy(0x1F, status=MODELLED, about="Address of the register to reach above 15.")
    PCS_INIT = phy(0xB4, about="Polarity correction.")
    # Linux reads cable length out of these; a code of 0 in bits 15:9 would be an error.
    AGC_A = phy(0x11B1, access=RO, reset=0x1400, about="Gain of pair A.")
    AGC_B = phy(0x12B1, access=RO, reset=0x1400, about="Gain of pair B.")
    AGC_C = phy(0x14B1, access=RO, reset=0x1400, about="Gain of pair C.")
    AGC_D = phy(0x18B1, access=RO, reset=0x1400, about="Gain of pair D.")
