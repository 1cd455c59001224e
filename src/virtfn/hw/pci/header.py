"""The 64-byte headers of configuration space: type 0 (endpoints) and type 1 (bridges).

Registers that both have are one declaration in both maps. Spec: PCI Express Base Specification, 7.5.1.
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Field, Register, RegMap, array, reg

__all__ = [
    "Address",
    "BridgeControl",
    "ClassRevision",
    "Command",
    "HeaderType",
    "PciStatus",
    "RomAddress",
    "Type0",
    "Type1",
    "Window",
]

RO, RW, W1C = Access.RO, Access.RW, Access.W1C


class Command(Register):
    """Command: what the function may claim and start."""

    IO = Field(0)  # answers in I/O space
    MEM = Field(1)  # answers in memory space
    BME = Field(2)  # may master the bus: DMA, and messages, which are writes too
    PERR = Field(6)
    SERR = Field(8)
    INTX_DISABLE = Field(10)


class PciStatus(Register):
    """Status: errors seen, and whether there is a capability list."""

    INTX = Field(3)
    CAP_LIST = Field(4)
    MASTER_PARITY = Field(8, access=W1C)
    SIGNALED_TARGET_ABORT = Field(11, access=W1C)
    RECEIVED_TARGET_ABORT = Field(12, access=W1C)
    RECEIVED_MASTER_ABORT = Field(13, access=W1C)
    SIGNALED_SYSTEM_ERROR = Field(14, access=W1C)
    PARITY_ERROR = Field(15, access=W1C)


class ClassRevision(Register):
    """Revision ID and class code."""

    REVISION = Field(7, 0)
    CLASS = Field(31, 8)


class HeaderType(Register):
    """Header layout, and whether device 0's other functions are worth asking."""

    LAYOUT = Field(6, 0)
    MULTIFUNCTION = Field(7)


class Address(Register):
    """Base address register; MEM_TYPE 2 means that the next register holds bits 63:32."""

    IO = Field(0)
    MEM_TYPE = Field(2, 1)
    PREFETCHABLE = Field(3)


class RomAddress(Register):
    """Expansion ROM base address."""

    ENABLE = Field(0)
    BASE = Field(31, 11)


class Window(Register):
    """Base or limit of what a bridge forwards: address bits 31:20 (memory) in bits 15:4."""

    TYPE = Field(3, 0, access=RO)
    BITS = Field(15, 4)


class BridgeControl(Register):
    """Bridge Control."""

    PERR = Field(0)
    SERR = Field(1)
    SECONDARY_RESET = Field(6)  # not offered by the model: reads 0


class Type0(RegMap):
    """Type 0 configuration space header."""

    VENDOR_ID = reg(0x00, access=RO, width=16)
    DEVICE_ID = reg(0x02, access=RO, width=16)
    COMMAND = reg(0x04, Command, width=16, writable=0x0547)
    STATUS = reg(0x06, PciStatus, RO, width=16)
    CLASS_REVISION = reg(0x08, ClassRevision, RO)
    CACHE_LINE = reg(0x0C, width=8, about="cache line size in dwords; no effect in PCI Express")
    LATENCY = reg(0x0D, access=RO, width=8)
    HEADER_TYPE = reg(0x0E, HeaderType, RO, width=8)
    BIST = reg(0x0F, access=RO, width=8)
    BAR = array(0x10, Address, stride=4, count=6)
    CARDBUS = reg(0x28, access=RO)
    SUBSYSTEM_VENDOR_ID = reg(0x2C, access=RO, width=16)
    SUBSYSTEM_ID = reg(0x2E, access=RO, width=16)
    ROM = reg(0x30, RomAddress)
    CAP_POINTER = reg(0x34, access=RO, width=8)
    INTERRUPT_LINE = reg(0x3C, width=8)
    INTERRUPT_PIN = reg(0x3D, access=RO, width=8)
    MIN_GRANT = reg(0x3E, access=RO, width=8)
    MAX_LATENCY = reg(0x3F, access=RO, width=8)


class Type1(RegMap):
    """Type 1 configuration space header: a bridge, its three bus numbers and its windows."""

    VENDOR_ID = Type0.VENDOR_ID
    DEVICE_ID = Type0.DEVICE_ID
    COMMAND = Type0.COMMAND
    STATUS = Type0.STATUS
    CLASS_REVISION = Type0.CLASS_REVISION
    CACHE_LINE = Type0.CACHE_LINE
    LATENCY = Type0.LATENCY
    HEADER_TYPE = Type0.HEADER_TYPE
    BIST = Type0.BIST
    BAR = array(0x10, Address, stride=4, count=2)
    PRIMARY = reg(0x18, width=8)
    SECONDARY = reg(0x19, width=8)
    SUBORDINATE = reg(0x1A, width=8)
    SECONDARY_LATENCY = reg(0x1B, access=RO, width=8)
    IO_BASE = reg(0x1C, width=8, writable=0xF0)
    IO_LIMIT = reg(0x1D, width=8, writable=0xF0)
    SECONDARY_STATUS = reg(0x1E, PciStatus, RO, width=16)
    MEMORY_BASE = reg(0x20, Window, width=16)
    MEMORY_LIMIT = reg(0x22, Window, width=16)
    PREFETCH_BASE = reg(0x24, Window, width=16, reset=1)
    PREFETCH_LIMIT = reg(0x26, Window, width=16, reset=1)
    PREFETCH_BASE_HIGH = reg(0x28)
    PREFETCH_LIMIT_HIGH = reg(0x2C)
    IO_BASE_HIGH = reg(0x30, access=RO, width=16)
    IO_LIMIT_HIGH = reg(0x32, access=RO, width=16)
    CAP_POINTER = Type0.CAP_POINTER
    ROM = reg(0x38, RomAddress)
    INTERRUPT_LINE = Type0.INTERRUPT_LINE
    INTERRUPT_PIN = Type0.INTERRUPT_PIN
    BRIDGE_CONTROL = reg(0x3E, BridgeControl, width=16, writable=0x0003)
