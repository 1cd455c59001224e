"""Capabilities of the first 256 bytes; offsets are relative to the capability.

    +0 ID   +1 next capability   +2... the capability's own registers

Spec: PCI Express Base Specification, 7.5.2 (power management), 7.5.3 (PCI Express), 7.7.1 (MSI), 7.7.2 (MSI-X).
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Access, Decl, Field, Register, RegMap, reg

__all__ = [
    "PCIE_SIZE",
    "DevCap",
    "DevCap2",
    "DevCtl",
    "DevCtl2",
    "DevSta",
    "Location",
    "Msi",
    "MsiControl",
    "MsiX",
    "MsiXControl",
    "MsiXEntry",
    "MsiXVectorControl",
    "Pcie",
    "PcieFlags",
    "Pm",
    "PmControl",
    "PortType",
    "Vpd",
]

RO, RW, W1C = Access.RO, Access.RW, Access.W1C
PCIE_SIZE = 0x3C


def _id(number: int) -> Decl:
    return reg(0x00, access=RO, reset=number, width=8)


def _next() -> Decl:
    return reg(0x01, access=RO, width=8, about="offset of the next capability; 0 ends the list")


class PmCapabilities(Register):
    """Power management capabilities."""

    VERSION = Field(2, 0)
    DSI = Field(5)
    D1 = Field(9)
    D2 = Field(10)
    PME = Field(15, 11)


class PmControl(Register):
    """Power management control and status."""

    STATE = Field(1, 0)  # 0 D0, 3 D3hot
    NO_SOFT_RESET = Field(3, access=RO)
    PME_ENABLE = Field(8)
    SELECT = Field(12, 9)  # what the data register shows
    SCALE = Field(14, 13, access=RO)
    PME_STATUS = Field(15, access=W1C)


class Pm(RegMap):
    """PCI power management."""

    ID = _id(0x01)
    NEXT = _next()
    PMC = reg(0x02, PmCapabilities, RO, width=16)
    PMCSR = reg(0x04, PmControl, width=16, writable=0x1F03)
    BRIDGE = reg(0x06, access=RO, width=8)
    DATA = reg(0x07, access=RO, width=8)


class MsiControl(Register):
    """MSI message control."""

    ENABLE = Field(0)
    CAPABLE = Field(3, 1, access=RO)
    ENABLED = Field(6, 4)
    ADDRESS64 = Field(7, access=RO)
    MASKABLE = Field(8, access=RO)


class Msi(RegMap):
    """MSI with 64-bit address and per-vector masking."""

    ID = _id(0x05)
    NEXT = _next()
    CONTROL = reg(0x02, MsiControl, width=16, writable=0x0071)
    ADDRESS = reg(0x04, writable=0xFFFFFFFC)
    ADDRESS_HIGH = reg(0x08)
    MESSAGE = reg(0x0C, width=16)
    MASK = reg(0x10)
    PENDING = reg(0x14, access=RO)


class MsiXControl(Register):
    """MSI-X message control."""

    TABLE_SIZE = Field(10, 0, access=RO)  # vectors less one
    MASK = Field(14)  # the whole function
    ENABLE = Field(15)


class Location(Register):
    """A place in a BAR: which, and the offset, a multiple of 8 whose low bits are zero."""

    BIR = Field(2, 0)
    OFFSET = Field(31, 3)  # in units of 8 bytes


class MsiX(RegMap):
    """MSI-X."""

    ID = _id(0x11)
    NEXT = _next()
    CONTROL = reg(0x02, MsiXControl, width=16, writable=0xC000)
    TABLE = reg(0x04, Location, RO)
    PBA = reg(0x08, Location, RO)


class MsiXVectorControl(Register):
    """Last word of a table entry."""

    MASK = Field(0)


class MsiXEntry(RegMap):
    """One entry of the MSI-X table, in the BAR."""

    ADDRESS = reg(0x00, writable=0xFFFFFFFC)
    ADDRESS_HIGH = reg(0x04)
    MESSAGE = reg(0x08)
    CONTROL = reg(0x0C, MsiXVectorControl, reset=1, writable=1)


class PortType(enum.IntEnum):
    """Device or port type of a PCI Express function."""

    ENDPOINT = 0
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    ROOT_COMPLEX_ENDPOINT = 9


class PcieFlags(Register):
    """PCI Express capabilities."""

    VERSION = Field(3, 0)
    TYPE = Field(7, 4, PortType)
    SLOT = Field(8)


class DevCap(Register):
    """Device Capabilities."""

    MPS = Field(2, 0)  # 128 bytes << MPS
    EXTENDED_TAG = Field(5)
    L0S_LATENCY = Field(8, 6)
    L1_LATENCY = Field(11, 9)
    ROLE_BASED_ERRORS = Field(15)
    FLR = Field(28)


class DevCtl(Register):
    """Device Control."""

    REPORT = Field(3, 0)
    RELAXED_ORDERING = Field(4)
    MPS = Field(7, 5)
    EXTENDED_TAG = Field(8)
    PHANTOM = Field(9)
    AUX_POWER = Field(10)
    NO_SNOOP = Field(11)
    MRRS = Field(14, 12)
    FLR = Field(15, access=Access.SC)


class DevSta(Register):
    """Device Status."""

    CORRECTABLE = Field(0, access=W1C)
    NON_FATAL = Field(1, access=W1C)
    FATAL = Field(2, access=W1C)
    UNSUPPORTED_REQUEST = Field(3, access=W1C)
    AUX_POWER = Field(4)
    TRANSACTIONS_PENDING = Field(5)


class LnkCap(Register):
    """Link Capabilities."""

    SPEED = Field(3, 0)
    WIDTH = Field(9, 4)
    ASPM = Field(11, 10)
    L0S_LATENCY = Field(14, 12)
    L1_LATENCY = Field(17, 15)
    PORT = Field(31, 24)


class LnkCtl(Register):
    """Link Control."""

    ASPM = Field(1, 0)
    RCB = Field(3)
    COMMON_CLOCK = Field(6)
    EXTENDED_SYNCH = Field(7)


class LnkSta(Register):
    """Link Status."""

    SPEED = Field(3, 0)
    WIDTH = Field(9, 4)
    SLOT_CLOCK = Field(12)


class DevCap2(Register):
    """Device Capabilities 2."""

    TIMEOUT_RANGES = Field(3, 0)
    TIMEOUT_DISABLE = Field(4)
    ARI_FORWARDING = Field(5)


class DevCtl2(Register):
    """Device Control 2."""

    TIMEOUT = Field(3, 0)
    TIMEOUT_DISABLE = Field(4)
    ARI_FORWARDING = Field(5)


class Pcie(RegMap):
    """PCI Express capability, version 2."""

    ID = _id(0x10)
    NEXT = _next()
    FLAGS = reg(0x02, PcieFlags, RO, width=16)
    DEVCAP = reg(0x04, DevCap, RO)
    DEVCTL = reg(0x08, DevCtl, width=16)
    DEVSTA = reg(0x0A, DevSta, RO, width=16)
    LNKCAP = reg(0x0C, LnkCap, RO)
    LNKCTL = reg(0x10, LnkCtl, width=16, writable=0x00CB)
    LNKSTA = reg(0x12, LnkSta, RO, width=16)
    SLTCAP = reg(0x14, access=RO)
    SLTCTL = reg(0x18, access=RO, width=16)
    SLTSTA = reg(0x1A, access=RO, width=16)
    RTCTL = reg(0x1C, access=RO, width=16)
    RTCAP = reg(0x1E, access=RO, width=16)
    RTSTA = reg(0x20, access=RO)
    DEVCAP2 = reg(0x24, DevCap2, RO)
    DEVCTL2 = reg(0x28, DevCtl2, width=16, writable=0x003F)
    DEVSTA2 = reg(0x2A, access=RO, width=16)
    LNKCAP2 = reg(0x2C, access=RO)
    LNKCTL2 = reg(0x30, access=RO, width=16)
    LNKSTA2 = reg(0x32, access=RO, width=16)
    SLTCAP2 = reg(0x34, access=RO)
    SLTCTL2 = reg(0x38, access=RO, width=16)
    SLTSTA2 = reg(0x3A, access=RO, width=16)


class Vpd(RegMap):
    """Vital product data."""

    ID = _id(0x03)
    NEXT = _next()
    ADDRESS = reg(0x02, access=RO, width=16)
    CONTENT = reg(0x04, access=RO)
