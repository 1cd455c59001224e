"""Facts of PCI Express configuration space: headers and capabilities as register maps, each field named once."""

from virtfn.hw.bits import Decl
from virtfn.hw.pci.caps import (
    PCIE_SIZE,
    DevCap,
    DevCap2,
    DevCtl,
    DevCtl2,
    DevSta,
    Location,
    Msi,
    MsiControl,
    MsiX,
    MsiXControl,
    MsiXEntry,
    MsiXVectorControl,
    Pcie,
    PcieFlags,
    Pm,
    PmControl,
    PortType,
    Vpd,
)
from virtfn.hw.pci.extended import (
    PAGE_SIZES_REQUIRED,
    Acs,
    AcsControl,
    Aer,
    Ari,
    AriCapabilities,
    CorrectableError,
    Dsn,
    ExtendedHeader,
    SrIov,
    SrIovCapabilities,
    SrIovControl,
    UncorrectableError,
)
from virtfn.hw.pci.header import (
    Address,
    BridgeControl,
    ClassRevision,
    Command,
    HeaderType,
    PciStatus,
    RomAddress,
    Type0,
    Type1,
    Window,
)
from virtfn.hw.pci.ids import CLASS_NAMES, DEVICE_NAMES, NO_DEVICE, VENDOR_NAMES

__all__ = [
    "CLASS_NAMES",
    "CONFIG_SIZE",
    "DEVICE_NAMES",
    "EXTENDED_START",
    "HEADER_SIZE",
    "NO_DEVICE",
    "PAGE_SIZES_REQUIRED",
    "PCIE_SIZE",
    "ROM_BAR",
    "SURVIVES_FLR",
    "VENDOR_NAMES",
    "Acs",
    "AcsControl",
    "Address",
    "Aer",
    "Ari",
    "AriCapabilities",
    "BridgeControl",
    "ClassRevision",
    "Command",
    "CorrectableError",
    "DevCap",
    "DevCap2",
    "DevCtl",
    "DevCtl2",
    "DevSta",
    "Dsn",
    "ExtendedHeader",
    "HeaderType",
    "Location",
    "Msi",
    "MsiControl",
    "MsiX",
    "MsiXControl",
    "MsiXEntry",
    "MsiXVectorControl",
    "PciStatus",
    "Pcie",
    "PcieFlags",
    "Pm",
    "PmControl",
    "PortType",
    "RomAddress",
    "SrIov",
    "SrIovCapabilities",
    "SrIovControl",
    "Type0",
    "Type1",
    "UncorrectableError",
    "Vpd",
    "Window",
]

CONFIG_SIZE = 4096
HEADER_SIZE = 0x40
EXTENDED_START = 0x100
ROM_BAR = 6
"""Number under which the expansion ROM is counted beside BAR 0 to 5, as VFIO does."""

SURVIVES_FLR: dict[Decl, int] = {
    Pm.PMCSR: PmControl.PME_ENABLE.mask | PmControl.PME_STATUS.mask,
    Pcie.DEVCTL: DevCtl.MPS.mask,
    Pcie.LNKCTL: 0xFFFF,
    Aer.UE_STATUS: 0xFFFFFFFF,
    Aer.UE_MASK: 0xFFFFFFFF,
    Aer.UE_SEVERITY: 0xFFFFFFFF,
    Aer.CE_STATUS: 0xFFFFFFFF,
    Aer.CE_MASK: 0xFFFFFFFF,
    Aer.CONTROL: 0xFFFFFFFF,
}
"""Bits that a function level reset leaves alone: the sticky ones, and those that belong to the link.

Spec: PCI Express Base Specification, 6.6.2.
"""
