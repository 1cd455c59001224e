"""Registers of a remapping unit: one 4 KiB window of memory-mapped registers.

64-bit registers are declared whole. Software may access them whole, or as two 32-bit halves, low then high. What a
write sets off is asked for by a bit of the high half, so that it happens once; the tail of a queue, in the low half,
may be written again without harm.

    00 VER CAP ECAP | 18 GCMD GSTS RTADDR CCMD | 34 FSTS FECTL FEDATA FEADDR | 80 invalidation queue | b8 IRTA |
    c0 page request queue |
    f0 IVA IOTLB (where ECAP.IRO says) | 220 FRCD[8] (where CAP.FRO says)

Spec: VT-d, register descriptions.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from virtfn.hw.bits import Access, Field, Register, RegMap, Status, array, reg
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.hw.vtd.tables import ADDRESS_WIDTH, FaultReason, Request

__all__ = [
    "CAP",
    "CAPABILITIES",
    "CCMD",
    "ECAP",
    "EXTENDED_CAPABILITIES",
    "FAULT_RECORDS",
    "FRCD_HIGH",
    "FRCD_LOW",
    "FSTS",
    "GCMD",
    "GSTS",
    "ICS",
    "IOTLB",
    "IQA",
    "IRTA",
    "IVA",
    "PQA",
    "PRS",
    "RTADDR",
    "VER",
    "WINDOW_BYTES",
    "EventControl",
    "Fault",
    "Granularity",
    "QueueOffset",
    "Regs",
    "decode_fault",
    "encode_fault",
]

WINDOW_BYTES = 4096
FAULT_RECORDS = 8
INVALIDATION_OFFSET = 0xF0
FAULT_OFFSET = 0x220


class Granularity(enum.IntEnum):
    """How much an invalidation covers: asked for in CIRG and IIRG, granted in CAIG and IAIG (0: refused)."""

    GLOBAL = 1
    DOMAIN = 2
    SELECTIVE = 3  # of a domain: a device's contexts, a range of pages


class VER(Register):
    """Version."""

    MIN = Field(3, 0)
    MAX = Field(7, 4)


class CAP(Register):
    """Capability."""

    ND = Field(2, 0)  # domain IDs have 2 * ND + 4 bits
    AFL = Field(3)
    RWBF = Field(4)
    PLMR = Field(5)
    PHMR = Field(6)
    CM = Field(7)  # entries that are not present may be cached
    SAGAW = Field(12, 8)  # bit n: AW value n
    MGAW = Field(21, 16)  # width less one
    ZLR = Field(22)
    FRO = Field(33, 24)  # fault records, in 16 bytes
    SSLPS = Field(37, 34)  # bit 0: 2 MiB, bit 1: 1 GiB
    PSI = Field(39)
    NFR = Field(47, 40)  # fault records less one
    MAMV = Field(53, 48)
    DWD = Field(54)
    DRD = Field(55)
    FS1GP = Field(56)
    PI = Field(59)
    FS5LP = Field(60)
    ESIRTPS = Field(62)
    ESRTPS = Field(63)


class ECAP(Register):
    """Extended Capability."""

    C = Field(0)  # tables are read coherently
    QI = Field(1)
    DT = Field(2)
    IR = Field(3)
    EIM = Field(4)
    PT = Field(6)
    SC = Field(7)
    IRO = Field(17, 8)  # IVA and IOTLB, in 16 bytes
    MHMV = Field(23, 20)
    NEST = Field(26)
    PRS = Field(29)
    ERS = Field(30)
    SRS = Field(31)
    NWFS = Field(33)
    EAFS = Field(34)
    PSS = Field(39, 35)
    PASID = Field(40)
    DIT = Field(41)
    PDS = Field(42)
    SMTS = Field(43)
    VCS = Field(44)
    SSADS = Field(45)
    SSTS = Field(46)
    FSTS = Field(47)
    SMPWCS = Field(48)
    RPS = Field(49)


class GCMD(Register):
    """Global Command: change one bit a write, and keep the others as GSTS has them."""

    CFI = Field(23)
    SIRTP = Field(24)
    IRE = Field(25)
    QIE = Field(26)
    WBF = Field(27, stored=True)
    EAFL = Field(28, stored=True)
    SFL = Field(29, stored=True)
    SRTP = Field(30)
    TE = Field(31)


class GSTS(Register):
    """Global Status."""

    CFIS = Field(23)
    IRTPS = Field(24)
    IRES = Field(25)
    QIES = Field(26)
    WBFS = Field(27)
    AFLS = Field(28)
    FLS = Field(29)
    RTPS = Field(30)
    TES = Field(31)


class RTADDR(Register):
    """Root Table Address; takes effect with GCMD.SRTP."""

    TTM = Field(11, 10, access=Access.RSV)  # legacy mode only
    RTA = Field(63, 12)


class CCMD(Register):
    """Context Command."""

    DID = Field(15, 0)
    SID = Field(31, 16)
    FM = Field(33, 32)  # low bits of the function number that do not count
    CAIG = Field(60, 59, Granularity, access=Access.RO)
    CIRG = Field(62, 61, Granularity)
    ICC = Field(63)


class FSTS(Register):
    """Fault Status."""

    PFO = Field(0, access=Access.W1C)
    PPF = Field(1)
    AFO = Field(2)
    APF = Field(3)
    IQE = Field(4, access=Access.W1C)
    ICE = Field(5, access=Access.W1C)
    ITE = Field(6, access=Access.W1C)
    PRO = Field(7)
    FRI = Field(15, 8)


class EventControl(Register):
    """Control of one of the unit's own interrupts: fault event, invalidation completion event, page request event."""

    IP = Field(30, access=Access.RO)
    IM = Field(31)


class QueueOffset(Register):
    """Head or tail of a queue, as an offset from its start in bytes."""

    OFFSET = Field(18, 4)


class IQA(Register):
    """Invalidation Queue Address."""

    QS = Field(2, 0)  # log2 of the 4 KiB pages
    DW = Field(11, access=Access.RSV)  # 256-bit descriptors belong to scalable mode
    IQA = Field(63, 12)


class ICS(Register):
    """Invalidation Completion Status."""

    IWC = Field(0, access=Access.W1C)


class IRTA(Register):
    """Interrupt Remapping Table Address; takes effect with GCMD.SIRTP."""

    S = Field(3, 0)  # 2**(S + 1) entries
    EIME = Field(11)  # 32-bit destinations (x2APIC)
    IRTA = Field(63, 12)


class PQA(Register):
    """Page Request Queue Address."""

    PQS = Field(2, 0)
    PQA = Field(63, 12)


class PRS(Register):
    """Page Request Status."""

    PPR = Field(0, access=Access.W1C)
    PRO = Field(1, access=Access.W1C)


class IVA(Register):
    """Invalidate Address."""

    AM = Field(5, 0)  # log2 of the pages
    IH = Field(6, stored=True)
    ADDR = Field(63, 12)


class IOTLB(Register):
    """IOTLB Invalidate."""

    DID = Field(47, 32)
    DW = Field(48, stored=True)
    DR = Field(49, stored=True)
    IAIG = Field(58, 57, Granularity, access=Access.RO)
    IIRG = Field(61, 60, Granularity)
    IVT = Field(63)


class FRCD_LOW(Register):
    """Fault Recording, low half."""

    FI = Field(63, 12)


class FRCD_HIGH(Register):
    """Fault Recording, high half."""

    SID = Field(15, 0)
    T2 = Field(28)
    PRIV = Field(29)
    EXE = Field(30)
    PP = Field(31)
    FR = Field(39, 32, FaultReason)
    PN = Field(59, 40)
    AT = Field(61, 60)
    T1 = Field(62)  # 1: a read
    F = Field(63, access=Access.W1C)


CAPABILITIES = CAP.of(
    ND=6,
    SAGAW=0b00110,
    MGAW=ADDRESS_WIDTH - 1,
    FRO=FAULT_OFFSET // 16,
    SSLPS=0b0011,
    PSI=1,
    NFR=FAULT_RECORDS - 1,
    MAMV=18,
    DWD=1,
    DRD=1,
    PI=1,
)
EXTENDED_CAPABILITIES = ECAP.of(C=1, QI=1, DT=1, IR=1, EIM=1, PT=1, IRO=INVALIDATION_OFFSET // 16, MHMV=15, PRS=1)

_DONE = Status.MODELLED
_NO = Status.ABSENT
_OFFSET = QueueOffset.OFFSET.mask
_IM = EventControl.IM.mask


class Regs(RegMap):
    """Every register of the window; what the capability registers deny is absent: it reads 0."""

    VER = reg(0x00, VER, Access.RO, reset=0x10, status=_DONE)
    CAP = reg(0x08, CAP, Access.RO, reset=CAPABILITIES.value, width=64, status=_DONE)
    ECAP = reg(0x10, ECAP, Access.RO, reset=EXTENDED_CAPABILITIES.value, width=64, status=_DONE)
    GCMD = reg(0x18, GCMD, Access.WO, status=_DONE)
    GSTS = reg(0x1C, GSTS, Access.RO, status=_DONE)
    RTADDR = reg(0x20, RTADDR, width=64, writable=RTADDR.RTA.mask, status=_DONE)
    CCMD = reg(0x28, CCMD, width=64, status=_DONE)
    FSTS = reg(0x34, FSTS, Access.RO, status=_DONE)
    FECTL = reg(0x38, EventControl, reset=_IM, writable=_IM, about="Fault Event Control", status=_DONE)
    FEDATA = reg(0x3C, about="Fault Event Data", status=_DONE)
    FEADDR = reg(0x40, writable=0xFFFF_FFFC, about="Fault Event Address", status=_DONE)
    FEUADDR = reg(0x44, about="Fault Event Upper Address", status=_DONE)
    AFLOG = reg(0x58, access=Access.RSV, width=64, about="Advanced Fault Log", status=_NO)
    PMEN = reg(0x64, access=Access.RSV, about="Protected Memory Enable", status=_NO)
    PLMBASE = reg(0x68, access=Access.RSV, about="Protected Low-Memory Base", status=_NO)
    PLMLIMIT = reg(0x6C, access=Access.RSV, about="Protected Low-Memory Limit", status=_NO)
    PHMBASE = reg(0x70, access=Access.RSV, width=64, about="Protected High-Memory Base", status=_NO)
    PHMLIMIT = reg(0x78, access=Access.RSV, width=64, about="Protected High-Memory Limit", status=_NO)
    IQH = reg(0x80, QueueOffset, Access.RO, width=64, about="Invalidation Queue Head", status=_DONE)
    IQT = reg(0x88, QueueOffset, width=64, writable=_OFFSET, about="Invalidation Queue Tail", status=_DONE)
    IQA = reg(0x90, IQA, width=64, writable=IQA.IQA.mask | IQA.QS.mask, status=_DONE)
    ICS = reg(0x9C, ICS, Access.RO, status=_DONE)
    IECTL = reg(0xA0, EventControl, reset=_IM, writable=_IM, about="Invalidation Event Control", status=_DONE)
    IEDATA = reg(0xA4, about="Invalidation Event Data", status=_DONE)
    IEADDR = reg(0xA8, writable=0xFFFF_FFFC, about="Invalidation Event Address", status=_DONE)
    IEUADDR = reg(0xAC, about="Invalidation Event Upper Address", status=_DONE)
    IQERCD = reg(0xB0, access=Access.RSV, width=64, about="Invalidation Queue Error Record", status=_NO)
    IRTA = reg(0xB8, IRTA, width=64, status=_DONE)
    PQH = reg(0xC0, QueueOffset, width=64, writable=_OFFSET, about="Page Request Queue Head", status=_DONE)
    PQT = reg(0xC8, QueueOffset, Access.RO, width=64, about="Page Request Queue Tail", status=_DONE)
    PQA = reg(0xD0, PQA, width=64, writable=PQA.PQA.mask | PQA.PQS.mask, status=_DONE)
    PRS = reg(0xDC, PRS, Access.RO, status=_DONE)
    PECTL = reg(0xE0, EventControl, reset=_IM, writable=_IM, about="Page Request Event Control", status=_DONE)
    PEDATA = reg(0xE4, about="Page Request Event Data", status=_DONE)
    PEADDR = reg(0xE8, writable=0xFFFF_FFFC, about="Page Request Event Address", status=_DONE)
    PEUADDR = reg(0xEC, about="Page Request Event Upper Address", status=_DONE)
    IVA = reg(INVALIDATION_OFFSET, IVA, width=64, about="written before IOTLB", status=_DONE)
    IOTLB = reg(INVALIDATION_OFFSET + 8, IOTLB, width=64, status=_DONE)
    FRCD_LOW = array(FAULT_OFFSET, FRCD_LOW, Access.RO, stride=16, count=FAULT_RECORDS, width=64, status=_DONE)
    FRCD_HIGH = array(FAULT_OFFSET + 8, FRCD_HIGH, Access.RO, stride=16, count=FAULT_RECORDS, width=64, status=_DONE)


class Fault(NamedTuple):
    """A refused request: who asked for which page, why it was refused, and whether it was a write.

    Of an interrupt message, iova holds the index of the table entry in bits 63:48, and it is neither read nor write.
    Of a request that came translated, it is a host address.
    """

    rid: Rid
    iova: Iova
    reason: FaultReason
    write: bool
    kind: Request = Request.UNTRANSLATED

    def __str__(self) -> str:
        if self.reason.of_interrupt:
            entry = self.iova >> 48
            return f"{format_rid(self.rid)}: interrupt by entry {entry} refused: {self.reason.text}"
        what = self.kind.words + ("write to" if self.write else "read of")
        return f"{format_rid(self.rid)}: {what} {self.iova:#x} refused: {self.reason.text}"


def encode_fault(fault: Fault) -> tuple[FRCD_LOW, FRCD_HIGH]:
    """Put a fault into the two halves of a fault recording register."""
    low = FRCD_LOW(fault.iova & FRCD_LOW.FI.mask)
    read = not (fault.write or fault.reason.of_interrupt)
    return low, FRCD_HIGH.of(F=1, T1=int(read), AT=fault.kind, FR=fault.reason, SID=fault.rid)


def decode_fault(low: int, high: int) -> Fault:
    """Read a fault out of the two halves of a fault recording register; the address is that of the page.

    Raises ValueError if the reason or the kind of request is none that this module knows.
    """
    record = FRCD_HIGH(high)
    reason = FaultReason(record.FR)
    return Fault(
        Rid(record.SID),
        Iova(low & FRCD_LOW.FI.mask),
        reason,
        not (record.T1 or reason.of_interrupt),
        Request(record.AT),
    )
