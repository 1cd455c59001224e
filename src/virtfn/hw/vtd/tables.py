"""The tables of DMA remapping in memory, and the reasons why a request is refused.

    requester ID   bus 15:8 -------+          device.function 7:0 ---+
                                   v                                 v
    RTADDR -> root table [256 x RootEntry] -> context table [256 x ContextEntry] -> second-stage tables
    address        47:39        38:30        29:21        20:12        11:0
    level          4            3            2            1            byte of the page
                                | PS: 1 GiB  | PS: 2 MiB  | 4 KiB

Plain integers beside the declarations are for compiled code, which cannot read class attributes.

Spec: VT-d, memory-resident structures; translation faults.
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Field, Register

__all__ = [
    "ADDRESS_WIDTH",
    "ContextEntry",
    "FaultReason",
    "Request",
    "RootEntry",
    "SecondStageEntry",
    "Translation",
    "level_shift",
]

ADDRESS_WIDTH = 48
"""Width of host addresses (HAW), and of the widest address a device may use (MGAW)."""


class Translation(enum.IntEnum):
    """What a context entry does with a request (T)."""

    SECOND_STAGE = 0
    DEVICE_TLB = 1
    PASS_THROUGH = 2


class FaultReason(enum.IntEnum):
    """Why a request was refused; the value is the fault record's FR."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    ADDRESS_BEYOND_WIDTH = 0x4
    WRITE_NOT_ALLOWED = 0x5
    READ_NOT_ALLOWED = 0x6
    PAGING_ENTRY_ACCESS = 0x7
    ROOT_TABLE_ACCESS = 0x8
    CONTEXT_TABLE_ACCESS = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    PAGING_ENTRY_RESERVED = 0xC
    BLOCKED_BY_TYPE = 0xD
    INTERRUPT_RANGE_OUTPUT = 0xE
    INTERRUPT_REQUEST_RESERVED = 0x20
    INTERRUPT_INDEX_BEYOND_TABLE = 0x21
    INTERRUPT_ENTRY_NOT_PRESENT = 0x22
    INTERRUPT_ENTRY_ACCESS = 0x23
    INTERRUPT_ENTRY_RESERVED = 0x24
    COMPATIBILITY_FORMAT_BLOCKED = 0x25
    INTERRUPT_SOURCE = 0x26
    INTERRUPT_DESCRIPTOR_ACCESS = 0x27

    @property
    def of_interrupt(self) -> bool:
        """Whether it is an interrupt message that was refused, not a memory access."""
        return self >= FaultReason.INTERRUPT_REQUEST_RESERVED

    @property
    def text(self) -> str:
        """Say it in words."""
        return self.name.lower().replace("_", " ")


class Request(enum.IntEnum):
    """How a request for memory comes: the AT field of its header, and of a fault record."""

    UNTRANSLATED = 0
    TRANSLATION = 1  # asks for a translation
    TRANSLATED = 2  # carries a host address

    @property
    def words(self) -> str:
        """Say it before what the request does; nothing for the usual kind."""
        return ("", "translation for a ", "translated ")[self]


class RootEntry(Register):
    """One bus: where its context table is. 128 bits; what is not named is reserved."""

    P = Field(0)
    CTP = Field(63, 12)


class ContextEntry(Register):
    """One function: its domain, and how its requests are translated. 128 bits; what is not named is reserved."""

    P = Field(0)
    FPD = Field(1)
    T = Field(3, 2, Translation)
    SSPTPTR = Field(63, 12)
    AW = Field(66, 64)
    IGN = Field(70, 67)
    DID = Field(87, 72)


class SecondStageEntry(Register):
    """One entry of a second-stage table: the next table, or a page. 64 bits."""

    R = Field(0)
    W = Field(1)
    X = Field(2)
    PS = Field(7)
    SNP = Field(11)
    ADDR = Field(ADDRESS_WIDTH - 1, 12)
    HIGH = Field(51, ADDRESS_WIDTH)  # beyond the host address width: reserved
    TM = Field(62)


def level_shift(level: int) -> int:
    """Return the lowest address bit that `level` decodes: 12, 21, 30, 39 for levels 1 to 4."""
    return 12 + 9 * (level - 1)


_LOW, _HIGH = (1 << 64) - 1, 64

ROOT_P = RootEntry.P.mask
ROOT_RESERVED_LOW = ~RootEntry.NAMED & _LOW
CTX_P = ContextEntry.P.mask
CTX_FPD = ContextEntry.FPD.mask
CTX_T_LSB, CTX_T_MASK = ContextEntry.T.lsb, (1 << ContextEntry.T.width) - 1
CTX_AW_LSB, CTX_AW_MASK = ContextEntry.AW.lsb - _HIGH, (1 << ContextEntry.AW.width) - 1
CTX_DID_LSB, CTX_DID_MASK = ContextEntry.DID.lsb - _HIGH, (1 << ContextEntry.DID.width) - 1
CTX_RESERVED_LOW = ~ContextEntry.NAMED & _LOW
# As int64: kernels see table words signed.
CTX_RESERVED_HIGH = (~ContextEntry.NAMED >> _HIGH & _LOW) - (1 << 64)
PAGE_MASK = -1 << 12
SS_R = SecondStageEntry.R.mask
SS_W = SecondStageEntry.W.mask
SS_RW = SS_R | SS_W
SS_PS = SecondStageEntry.PS.mask
SS_ADDR = SecondStageEntry.ADDR.mask
SS_RESERVED = SecondStageEntry.HIGH.mask
SS_RESERVED_LEAF = SS_RESERVED | SecondStageEntry.SNP.mask | SecondStageEntry.TM.mask
INTERRUPT_RANGE = 0xFEE0_0000
INTERRUPT_RANGE_END = 0xFEF0_0000
