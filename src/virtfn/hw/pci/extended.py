"""Extended capabilities, from offset 0x100 on; offsets are relative to the capability.

    +0 header: ID 15:0, version 19:16, next 31:20   +4... the capability's own registers

Spec: PCI Express Base Specification, 7.8.4 (AER), 7.9.3 (device serial number), 7.7.8 (ACS), 7.8.7 (ARI),
9.3.3 (SR-IOV), 10.5.1 (ATS), 10.5.2 (page requests).
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Field, Register, RegMap, array, reg

__all__ = [
    "PAGE_SIZES_REQUIRED",
    "Acs",
    "AcsControl",
    "Aer",
    "Ari",
    "AriCapabilities",
    "Ats",
    "AtsCapabilities",
    "AtsControl",
    "CorrectableError",
    "Dsn",
    "ExtendedHeader",
    "PageRequestControl",
    "PageRequestStatus",
    "PageRequests",
    "SrIov",
    "SrIovCapabilities",
    "SrIovControl",
    "UncorrectableError",
    "capability_id",
]

RO, RW, W1C = Access.RO, Access.RW, Access.W1C
PAGE_SIZES_REQUIRED = 0x553
"""System page sizes that every SR-IOV device supports: 4K, 8K, 64K, 256K, 1M, 4M; bit n means 4 KiB << n."""


class ExtendedHeader(Register):
    """First word of an extended capability."""

    ID = Field(15, 0)
    VERSION = Field(19, 16)
    NEXT = Field(31, 20)


def capability_id(regs: type[RegMap]) -> tuple[int, bool]:
    """Return the ID of the capability that `regs` describes, and whether it is an extended one."""
    head = regs.INDEX[0][0]
    extended = head.kind is ExtendedHeader
    return (ExtendedHeader(head.reset).ID if extended else head.reset), extended


def _header(number: int) -> Decl:
    return reg(0x00, ExtendedHeader, RO, reset=ExtendedHeader.of(ID=number, VERSION=1).value)


class UncorrectableError(Register):
    """Uncorrectable errors: one layout for status, mask and severity."""

    DLP = Field(4)
    SURPRISE_DOWN = Field(5)
    POISONED_TLP = Field(12)
    FLOW_CONTROL = Field(13)
    COMPLETION_TIMEOUT = Field(14)
    COMPLETER_ABORT = Field(15)
    UNEXPECTED_COMPLETION = Field(16)
    RECEIVER_OVERFLOW = Field(17)
    MALFORMED_TLP = Field(18)
    ECRC = Field(19)
    UNSUPPORTED_REQUEST = Field(20)
    ACS_VIOLATION = Field(21)


class CorrectableError(Register):
    """Correctable errors: one layout for status and mask."""

    RECEIVER = Field(0)
    BAD_TLP = Field(6)
    BAD_DLLP = Field(7)
    REPLAY_ROLLOVER = Field(8)
    REPLAY_TIMEOUT = Field(12)
    ADVISORY_NON_FATAL = Field(13)


class AerControl(Register):
    """Advanced error capabilities and control."""

    FIRST_ERROR = Field(4, 0, access=RO)
    ECRC_GENERATION_CAPABLE = Field(5, access=RO)
    ECRC_GENERATION = Field(6)
    ECRC_CHECK_CAPABLE = Field(7, access=RO)
    ECRC_CHECK = Field(8)


UE_BITS = 0x001FF010  # what an endpoint without ACS and hot-plug can meet


class Aer(RegMap):
    """Advanced Error Reporting."""

    HEADER = _header(0x0001)
    UE_STATUS = reg(0x04, UncorrectableError, W1C)
    UE_MASK = reg(0x08, UncorrectableError, writable=UE_BITS)
    UE_SEVERITY = reg(0x0C, UncorrectableError, reset=0x00062010, writable=UE_BITS)
    CE_STATUS = reg(0x10, CorrectableError, W1C)
    CE_MASK = reg(0x14, CorrectableError, reset=0x2000, writable=0x31C1)
    CONTROL = reg(0x18, AerControl, RO)
    HEADER_LOG = array(0x1C, access=RO, stride=4, count=4)


class Dsn(RegMap):
    """Device Serial Number."""

    HEADER = _header(0x0003)
    LOW = reg(0x04, access=RO)
    HIGH = reg(0x08, access=RO)


class AcsControl(Register):
    """Access Control Services: one layout for capability and control."""

    SOURCE_VALIDATION = Field(0)
    TRANSLATION_BLOCKING = Field(1)
    REQUEST_REDIRECT = Field(2)
    COMPLETION_REDIRECT = Field(3)
    UPSTREAM_FORWARDING = Field(4)
    EGRESS_CONTROL = Field(5)
    DIRECT_TRANSLATED = Field(6)


class Acs(RegMap):
    """Access Control Services."""

    HEADER = _header(0x000D)
    CAPABILITY = reg(0x04, AcsControl, RO, width=16)
    CONTROL = reg(0x06, AcsControl, width=16, writable=0x001D)


class AriCapabilities(Register):
    """ARI capability register."""

    MFVC = Field(0)
    ACS = Field(1)
    NEXT_FUNCTION = Field(15, 8)


class Ari(RegMap):
    """Alternative Routing-ID Interpretation."""

    HEADER = _header(0x000E)
    CAPABILITY = reg(0x04, AriCapabilities, RO, width=16)
    CONTROL = reg(0x06, access=RO, width=16)


class AtsCapabilities(Register):
    """ATS capability register."""

    QUEUE_DEPTH = Field(4, 0)  # invalidations that may be under way; 0: 32
    PAGE_ALIGNED = Field(5)  # addresses of translation requests are those of pages
    GLOBAL_INVALIDATE = Field(6)


class AtsControl(Register):
    """ATS control register."""

    STU = Field(4, 0)  # smallest translation unit, log2 of 4 KiB pages; VFs have their PF's
    ENABLE = Field(15)


class Ats(RegMap):
    """Address Translation Services."""

    HEADER = _header(0x000F)
    CAPABILITY = reg(0x04, AtsCapabilities, RO, width=16)
    CONTROL = reg(0x06, AtsControl, width=16)


class PageRequestControl(Register):
    """Page Request control register."""

    ENABLE = Field(0)
    RESET = Field(1, access=Access.SC)  # while disabled: forget what was asked for


class PageRequestStatus(Register):
    """Page Request status register."""

    RESPONSE_FAILURE = Field(0, access=W1C)
    UNEXPECTED_GROUP = Field(1, access=W1C)
    STOPPED = Field(8, access=RO)  # nothing is asked for, and nothing that was is without an answer


class PageRequests(RegMap):
    """Page Request Interface; VFs use that of their PF."""

    HEADER = _header(0x0013)
    CONTROL = reg(0x04, PageRequestControl, width=16)
    STATUS = reg(0x06, PageRequestStatus, RO, width=16)
    CAPACITY = reg(0x08, access=RO)
    ALLOCATION = reg(0x0C)


class SrIovCapabilities(Register):
    """SR-IOV Capabilities."""

    MIGRATION = Field(0)
    ARI_PRESERVED = Field(1)
    MIGRATION_MESSAGE = Field(31, 21)


class SrIovControl(Register):
    """SR-IOV Control."""

    VFE = Field(0)  # VF Enable
    MIGRATION_ENABLE = Field(1)
    MIGRATION_INTERRUPT = Field(2)
    MSE = Field(3)  # VF Memory Space Enable
    ARI = Field(4)  # ARI Capable Hierarchy; only the lowest-numbered PF has it


class SrIov(RegMap):
    """Single Root I/O Virtualization."""

    HEADER = _header(0x0010)
    CAPABILITIES = reg(0x04, SrIovCapabilities, RO)
    CONTROL = reg(0x08, SrIovControl, width=16, writable=0x0019)
    STATUS = reg(0x0A, access=RO, width=16)
    INITIAL_VFS = reg(0x0C, access=RO, width=16)
    TOTAL_VFS = reg(0x0E, access=RO, width=16)
    NUM_VFS = reg(0x10, width=16)
    DEPENDENCY_LINK = reg(0x12, access=RO, width=8)
    FIRST_VF_OFFSET = reg(0x14, access=RO, width=16)
    VF_STRIDE = reg(0x16, access=RO, width=16)
    VF_DEVICE_ID = reg(0x1A, access=RO, width=16)
    SUPPORTED_PAGE_SIZES = reg(0x1C, access=RO, reset=PAGE_SIZES_REQUIRED)
    SYSTEM_PAGE_SIZE = reg(0x20, reset=1)
    VF_BAR = array(0x24, stride=4, count=6)
    MIGRATION_STATE = reg(0x3C, access=RO)
