"""Interrupt remapping: the message that a device sends, the table entry it names, the descriptor that it is posted to.

    address FEExxxxx, format 1: handle + subhandle -> IRTE [index]
        IM 0   remapped: vector and destination of a local APIC
        IM 1   posted:   bit `vector` in the PIR of a 64-byte descriptor, then at most one notification
    address FEExxxxx, format 0: destination and vector are in the message itself (compatibility format)

Plain integers beside the declarations are for compiled code, which cannot read class attributes.

Spec: VT-d, interrupt remapping; interrupt posting.
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Field, Register

__all__ = [
    "IRTE_BYTES",
    "PID_BYTES",
    "CompatibilityAddress",
    "PostedControl",
    "PostedIrte",
    "RemappableAddress",
    "RemappableData",
    "RemappedIrte",
    "SourceQualifier",
    "SourceValidation",
]

IRTE_BYTES = 16
PID_BYTES = 64


class SourceValidation(enum.IntEnum):
    """How an entry checks who sent the message (SVT)."""

    NONE = 0
    REQUESTER = 1
    BUS_RANGE = 2  # SID 15:8 is the first bus, 7:0 the last


class SourceQualifier(enum.IntEnum):
    """Which bits of the requester's function number do not count (SQ)."""

    ALL = 0
    IGNORE_BIT_2 = 1
    IGNORE_BITS_2_1 = 2
    IGNORE_BITS_2_0 = 3


class RemappableAddress(Register):
    """Address of a message that names a table entry."""

    HANDLE_HIGH = Field(2)  # bit 15 of the handle
    SHV = Field(3)  # the data holds a subhandle
    FORMAT = Field(4)  # 1
    HANDLE = Field(19, 5)  # bits 14:0
    BASE = Field(31, 20)  # FEEh


class RemappableData(Register):
    """Data of a message that names a table entry."""

    SUBHANDLE = Field(15, 0)


class CompatibilityAddress(Register):
    """Address of a message that holds its destination itself."""

    DM = Field(2)
    RH = Field(3)
    FORMAT = Field(4)  # 0
    DESTINATION = Field(19, 12)
    BASE = Field(31, 20)  # FEEh


class RemappedIrte(Register):
    """Interrupt Remapping Table Entry, remapped format. 128 bits; what is not named is reserved."""

    P = Field(0)
    FPD = Field(1)
    DM = Field(2)  # 1: logical
    RH = Field(3)
    TM = Field(4)
    DLM = Field(7, 5)
    AVAIL = Field(11, 8)
    IM = Field(15)  # 0
    V = Field(23, 16)
    DST = Field(63, 32)  # without EIME: 47:40
    SID = Field(79, 64)
    SQ = Field(81, 80, SourceQualifier)
    SVT = Field(83, 82, SourceValidation)


class PostedIrte(Register):
    """Interrupt Remapping Table Entry, posted format. 128 bits; what is not named is reserved."""

    P = Field(0)
    FPD = Field(1)
    AVAIL = Field(11, 8)
    URG = Field(14)
    IM = Field(15)  # 1
    VV = Field(23, 16)
    PDA_LOW = Field(63, 38)  # address 31:6
    SID = Field(79, 64)
    SQ = Field(81, 80, SourceQualifier)
    SVT = Field(83, 82, SourceValidation)
    PDA_HIGH = Field(127, 96)  # address 63:32


class PostedControl(Register):
    """The fifth quadword of a posted interrupt descriptor; the first four hold PIR, a bit for each vector."""

    ON = Field(0)  # a notification is under way
    SN = Field(1)  # suppress notifications that are not urgent
    NV = Field(23, 16)
    NDST = Field(63, 32)  # xAPIC: 47:40


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_LOW, _HIGH = (1 << 64) - 1, 64

MSI_BASE, MSI_BASE_LSB = 0xFEE, RemappableAddress.BASE.lsb
MSI_FORMAT = RemappableAddress.FORMAT.mask
MSI_SHV = RemappableAddress.SHV.mask
MSI_HANDLE_LSB = RemappableAddress.HANDLE.lsb
MSI_HANDLE_HIGH_LSB = RemappableAddress.HANDLE_HIGH.lsb
IRTE_P, IRTE_FPD, IRTE_IM = RemappedIrte.P.mask, RemappedIrte.FPD.mask, RemappedIrte.IM.mask
IRTE_URG = PostedIrte.URG.mask
IRTE_V_LSB = RemappedIrte.V.lsb
IRTE_DST_LSB = RemappedIrte.DST.lsb
IRTE_SQ_LSB, IRTE_SVT_LSB = RemappedIrte.SQ.lsb - _HIGH, RemappedIrte.SVT.lsb - _HIGH
REMAPPED_RESERVED_LOW = _signed(~RemappedIrte.NAMED & _LOW)
REMAPPED_RESERVED_HIGH = _signed(~RemappedIrte.NAMED >> _HIGH & _LOW)
POSTED_RESERVED_LOW = _signed(~PostedIrte.NAMED & _LOW)
POSTED_RESERVED_HIGH = _signed(~PostedIrte.NAMED >> _HIGH & _LOW)
PDA_LOW_MASK, PDA_LOW_SHIFT = 0xFFFF_FFC0, PostedIrte.PDA_LOW.lsb - 6
PID_CONTROL = 32  # byte offset of PostedControl
PID_ON, PID_SN = PostedControl.ON.mask, PostedControl.SN.mask
PID_NV_LSB, PID_NDST_LSB = PostedControl.NV.lsb, PostedControl.NDST.lsb
