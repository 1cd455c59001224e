"""The 82576's receive, transmit and switching registers with named bits: the second half of `fields.py`.

Spec: 82576 datasheet, chapter "Programming Interface".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Field, Register
from virtfn.hw.i82576.fields import DescType, RxMode, VlanInsert

# Receive


class RCTL(Register):
    """Receive control."""

    RXEN = Field(1)
    SBP = Field(2, stored=True)
    UPE = Field(3)
    MPE = Field(4)
    LPE = Field(5)
    LBM = Field(7, 6)
    RDMTS = Field(9, 8, stored=True)
    MO = Field(13, 12)
    BAM = Field(15)
    BSIZE = Field(17, 16)
    VFE = Field(18)
    CFIEN = Field(19, stored=True)
    CFI = Field(20, stored=True)
    PSP = Field(21, stored=True)
    DPF = Field(22, stored=True)
    PMCF = Field(23, stored=True)
    SECRC = Field(26, stored=True)


class SRRCTL(Register):
    """Split and replication receive control: buffer sizes and descriptor type of a queue."""

    BSIZEPACKET = Field(6, 0)  # KiB; 0: RCTL.BSIZE rules
    BSIZEHEADER = Field(13, 8)  # 64 bytes each; the part uses 11:8, Linux writes six bits
    RDMTS = Field(24, 20, stored=True)  # 16 descriptors each
    DESCTYPE = Field(27, 25, DescType)
    DROP_EN = Field(31)


class RDBAL(Register):
    """Ring base address, low half; 128-byte aligned."""

    BAL = Field(31, 7)


class RDLEN(Register):
    """Ring length in bytes, a multiple of 128."""

    # The test of Linux's driver wants bits 6:4 kept as well.
    LEN = Field(19, 4)


class RXCTL(Register):
    """Receive DCA control: how a queue's PCIe writes are marked."""

    DESC_DCA = Field(5, stored=True)
    HEAD_DCA = Field(6, stored=True)
    PAYLOAD_DCA = Field(7, stored=True)
    DESC_RRO = Field(9, stored=True)
    DESC_WRO = Field(11, stored=True)
    DATA_WRO = Field(13, stored=True)
    HEAD_WRO = Field(15, stored=True)
    CPUID = Field(31, 24, stored=True)


class RXDCTL(Register):
    """Receive descriptor control: thresholds, and the queue's enable."""

    PTHRESH = Field(4, 0, stored=True)
    HTHRESH = Field(12, 8, stored=True)
    WTHRESH = Field(20, 16, stored=True)
    ENABLE = Field(25)
    SWFLUSH = Field(26, access=Access.SC, stored=True)


class RXCSUM(Register):
    """Receive checksum control."""

    PCSS = Field(7, 0, stored=True)
    IPOFLD = Field(8)
    TUOFLD = Field(9)
    CRCOFLD = Field(11, stored=True)
    IPPCSE = Field(12, stored=True)
    PCSD = Field(13)


class RLPML(Register):
    """Longest frame to receive, in bytes with the frame check sequence."""

    RLPML = Field(13, 0)


class MRQC(Register):
    """Multiple receive queues command: queueing mode and what RSS hashes."""

    MODE = Field(2, 0, RxMode)
    DEF_Q = Field(5, 3, stored=True)
    RSS_TCP4 = Field(16)
    RSS_IPV4 = Field(17)
    RSS_TCP6_EX = Field(18, stored=True)
    RSS_IPV6_EX = Field(19, stored=True)
    RSS_IPV6 = Field(20)
    RSS_TCP6 = Field(21)
    RSS_UDP4 = Field(22)
    RSS_UDP6 = Field(23)
    RSS_UDP6_EX = Field(24, stored=True)


class RETA(Register):
    """Four entries of the redirection table."""

    ENTRY0 = Field(7, 0)
    ENTRY1 = Field(15, 8)
    ENTRY2 = Field(23, 16)
    ENTRY3 = Field(31, 24)


class RAL(Register):
    """Receive address, bytes 0 to 3, the first lowest."""

    RAL = Field(31, 0)


class RAH(Register):
    """Receive address, bytes 4 and 5, and the pools that it leads to."""

    RAH = Field(15, 0)
    ASEL = Field(17, 16, stored=True)
    POOLSEL = Field(25, 18)
    AV = Field(31)


class ETQF(Register):
    """Ether type queue filter."""

    ETYPE = Field(15, 0)
    QUEUE = Field(18, 16)
    FILTER_EN = Field(26)
    IMM_INT = Field(29)
    TIMESTAMP = Field(30)
    QUEUE_EN = Field(31)


# Transmit


class TCTL(Register):
    """Transmit control."""

    EN = Field(1)
    PSP = Field(3)
    CT = Field(11, 4, stored=True)
    BST = Field(21, 12, stored=True)
    SWXOFF = Field(22, stored=True)
    RTLC = Field(24, stored=True)


class TXCTL(Register):
    """Transmit DCA control: how a queue's PCIe accesses are marked."""

    DESC_DCA = Field(5, stored=True)
    DESC_RRO = Field(9, stored=True)
    WB_RO = Field(11, stored=True)
    DATA_RRO = Field(13, stored=True)
    CPUID = Field(31, 24, stored=True)


class TXDCTL(Register):
    """Transmit descriptor control: thresholds, and the queue's enable."""

    PTHRESH = Field(4, 0, stored=True)
    HTHRESH = Field(12, 8, stored=True)
    WTHRESH = Field(20, 16, stored=True)
    ENABLE = Field(25)
    SWFLUSH = Field(26, access=Access.SC, stored=True)
    PRIORITY = Field(27, stored=True)


class TDWBAL(Register):
    """Head write-back address, low half, and its enable."""

    HEAD_WB_EN = Field(0)
    SEQ_WB = Field(1, stored=True)
    ADDR = Field(31, 2)


class DTXCTL(Register):
    """DMA transmit control."""

    LL_8023 = Field(2, stored=True)
    VLAN_ADDED = Field(3, stored=True)
    OOS_EN = Field(4, stored=True)
    MDP_EN = Field(5)
    SPOOF_INT = Field(6)


class DTXTCPFLGL(Register):
    """TCP flags that the first and the middle segments of a large send keep: 12 bits, FIN the lowest."""

    # Reset: FIN and PSH go with the last segment, CWR with the first alone.
    FIRST = Field(11, 0)
    MIDDLE = Field(27, 16)


class DTXTCPFLGH(Register):
    """TCP flags that the last segment of a large send keeps."""

    LAST = Field(11, 0)


class RTTBCNRC(Register):
    """Transmit rate of the queue selected by RTTDQSEL: link rate over its limit, in 14.14 fixed point."""

    RF_DEC = Field(13, 0)
    RF_INT = Field(27, 14)
    RS_ENA = Field(31)


class LVMMC(Register):
    """Last VM misbehaviour cause."""

    BLOCK_CAUSE = Field(4, 2)
    LAST_Q = Field(19, 16)


class WVBR(Register):
    """Wrong VM behaviour: transmit queues that misbehaved, and those blocked for it."""

    MISBEHAVED = Field(15, 0)
    BLOCKED = Field(31, 16)


# Pools and switching


class QUEUE_BITS(Register):
    """One bit a queue."""

    QUEUES = Field(15, 0)


class VT_CTL(Register):
    """Virtualization control: default pool and replication."""

    DEF_PL = Field(9, 7)
    IGN_MAC = Field(28)
    DIS_DEF_POOL = Field(29)
    RPL_EN = Field(30)


class VMOLR(Register):
    """What a pool accepts, how long, and whether its tags are stripped."""

    RLPML = Field(13, 0)
    LPE = Field(16)
    RSSE = Field(17)
    AUPE = Field(24)
    ROMPE = Field(25)
    ROPE = Field(26)
    BAM = Field(27)
    MPME = Field(28)
    STRVLAN = Field(30)
    RSV31 = Field(31, stored=True)  # must be written 1


class RPLOLR(Register):
    """Offload of replicated frames."""

    STRVLAN = Field(30)
    RSV31 = Field(31, stored=True)  # must be written 1


class DTXSWC(Register):
    """DMA transmit switch control: anti-spoofing, local loopback."""

    MACAS = Field(7, 0)
    VLANAS = Field(15, 8)
    LLE = Field(23, 16)
    LOOPBACK_EN = Field(31)


class VLVF(Register):
    """A VLAN and the pools that are members of it."""

    VID = Field(11, 0)
    POOLSEL = Field(19, 12)
    LVLAN = Field(20)
    VI_EN = Field(31)


class VMVIR(Register):
    """VLAN insertion of a pool."""

    PORT_VLAN = Field(15, 0)
    VLANA = Field(31, 30, VlanInsert)


class VMRCTL(Register):
    """A mirror rule: what is mirrored, and to which pool."""

    VPME = Field(0)
    UPME = Field(1)
    DPME = Field(2)
    VLME = Field(3)
    MP = Field(10, 8)


STORM_BITS = 1_000_000
"""A unit of SCCRL.INTERVAL is what the link takes for so many: a millisecond at 1000 Mb/s, 100 at 10."""
STORM_CHUNK = 64
"""Bytes that a storm threshold counts in."""


class SCCRL(Register):
    """Storm control: what is dropped above the thresholds, in the window after that or at once; and the window.

    BIDU: unicast frames that nobody has the address of count as broadcasts.
    """

    MDIPW = Field(0)
    MDICW = Field(1)
    BDIPW = Field(2)
    BDICW = Field(3)
    BIDU = Field(4)
    INTERVAL = Field(17, 8)


class STORM_THRESHOLD(Register):
    """Most traffic of a window, in 64-byte units."""

    UTRESH = Field(18, 0)
