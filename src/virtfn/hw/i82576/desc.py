"""Descriptors of the 82576, as plain ints that compiled kernels can import.

All descriptors are 16 bytes, little-endian, seen here as two 64-bit words (Q0, Q1):

    Tx data     Q0 buffer address
                Q1 length 15:0, DTYP 23:20, DCMD 31:24, STA 35:32, IDX 38:36, POPTS 45:40, PAYLEN 63:46
    Tx context  Q0 IPLEN 8:0, MACLEN 15:9, VLAN 31:16    Q1 TUCMD 20:9, DTYP 23:20, IDX 38:36, L4LEN 47:40, MSS 63:48
    Tx legacy   Q0 buffer address            Q1 length 15:0, CSO 23:16, CMD 31:24, STA 35:32, CSS 47:40, VLAN 63:48
    Rx read     Q0 packet buffer             Q1 header buffer
    Rx written  Q0 RSS type 3:0, packet type 16:4, HDR_LEN 30:21, SPH 31, hash 63:32
                Q1 status and errors 31:0, length 47:32, VLAN 63:48
    Rx legacy   Q0 buffer address            Q1 length 15:0, checksum 31:16, status 39:32, errors 47:40, VLAN 63:48

Spec: 82576 datasheet, chapters "Receive Descriptors" and "Transmit Descriptors".
"""

from __future__ import annotations

from virtfn.hw.eth import FCS_BYTES, HEADER_BYTES, VLAN_BYTES

__all__ = [
    "DESC_BYTES",
    "MAX_FRAME",
    "MAX_MTU",
    "RSS_IPV4",
    "RSS_IPV6",
    "RSS_TCP4",
    "RSS_TCP6",
    "RSS_UDP4",
    "RSS_UDP6",
    "RXD_DD",
    "RXD_EOP",
    "RXD_ERR_IPE",
    "RXD_ERR_L4E",
    "RXD_HDRLEN_SHIFT",
    "RXD_IPCS",
    "RXD_L4CS",
    "RXD_LB",
    "RXD_LEN_SHIFT",
    "RXD_PIF",
    "RXD_PT_IPV4",
    "RXD_PT_IPV4EXT",
    "RXD_PT_IPV6",
    "RXD_PT_IPV6EXT",
    "RXD_PT_L2",
    "RXD_PT_SCTP",
    "RXD_PT_TCP",
    "RXD_PT_UDP",
    "RXD_SPH",
    "RXD_UDPCS",
    "RXD_VEXT",
    "RXD_VLAN_SHIFT",
    "RXD_VP",
    "SRRCTL_ADV_ONE",
    "SRRCTL_LEGACY",
    "SRRCTL_SPLIT",
    "SRRCTL_SPLIT_ALWAYS",
    "TXC_L4LEN_SHIFT",
    "TXC_L4T_SCTP",
    "TXC_L4T_SHIFT",
    "TXC_L4T_TCP",
    "TXC_L4T_UDP",
    "TXC_MACLEN_SHIFT",
    "TXC_MSS_SHIFT",
    "TXC_TUCMD_IPV4",
    "TXC_VLAN_SHIFT",
    "TXD_ASKS",
    "TXD_DD",
    "TXD_DEXT",
    "TXD_DTYP_CONTEXT",
    "TXD_DTYP_DATA",
    "TXD_DTYP_MASK",
    "TXD_EOP",
    "TXD_IC",
    "TXD_IDX_SHIFT",
    "TXD_IFCS",
    "TXD_IXSM",
    "TXD_LEN_MASK",
    "TXD_PAYLEN_SHIFT",
    "TXD_RS",
    "TXD_TSE",
    "TXD_TXSM",
    "TXD_VLE",
    "TXL_CSO_SHIFT",
    "TXL_CSS_SHIFT",
    "TXL_VLAN_SHIFT",
]  # fmt: skip

DESC_BYTES = 16
MAX_FRAME = 9728 - FCS_BYTES  # as everywhere, without the frame check sequence
MAX_MTU = MAX_FRAME - HEADER_BYTES - VLAN_BYTES

# Transmit, in Q1
TXD_LEN_MASK = 0xFFFF
TXD_DTYP_MASK = 0xF << 20
TXD_DTYP_CONTEXT = 2 << 20
TXD_DTYP_DATA = 3 << 20
TXD_EOP = 1 << 24
TXD_IFCS = 1 << 25
TXD_IC = 1 << 26  # legacy: insert checksum
TXD_RS = 1 << 27
TXD_DEXT = 1 << 29
TXD_VLE = 1 << 30
TXD_TSE = 1 << 31
TXD_DD = 1 << 32
TXD_IDX_SHIFT = 36
TXD_IXSM = 1 << 40
TXD_TXSM = 1 << 41
TXD_ASKS = TXD_VLE | TXD_IXSM | TXD_TXSM  # that the device changes the frame
TXD_PAYLEN_SHIFT = 46

TXL_CSO_SHIFT = 16
TXL_CSS_SHIFT = 40
TXL_VLAN_SHIFT = 48

# Transmit context
TXC_MACLEN_SHIFT = 9
TXC_VLAN_SHIFT = 16
TXC_TUCMD_IPV4 = 1 << 10
TXC_L4T_SHIFT = 11
TXC_L4T_UDP = 0
TXC_L4T_TCP = 1
TXC_L4T_SCTP = 2
TXC_L4LEN_SHIFT = 40
TXC_MSS_SHIFT = 48

# Receive write-back: status and errors in Q1 31:0
RXD_DD = 1 << 0
RXD_EOP = 1 << 1
RXD_VP = 1 << 3
RXD_UDPCS = 1 << 4
RXD_L4CS = 1 << 5
RXD_IPCS = 1 << 6
RXD_PIF = 1 << 7
RXD_VEXT = 1 << 9  # an outer tag was found, where each frame is to have one
RXD_LB = 1 << 18
RXD_ERR_L4E = 1 << 29
RXD_ERR_IPE = 1 << 30
RXD_LEN_SHIFT = 32
RXD_VLAN_SHIFT = 48
# Receive write-back: Q0
RXD_PT_IPV4 = 1 << 4
RXD_PT_IPV4EXT = 1 << 5  # it has options
RXD_PT_IPV6 = 1 << 6
RXD_PT_IPV6EXT = 1 << 7  # it has extension headers
RXD_PT_TCP = 1 << 8
RXD_PT_UDP = 1 << 9
RXD_PT_SCTP = 1 << 10
RXD_PT_L2 = 1 << 15
RXD_HDRLEN_SHIFT = 21
RXD_SPH = 1 << 31

RSS_TCP4 = 1
RSS_IPV4 = 2
RSS_TCP6 = 3
RSS_IPV6 = 5
RSS_UDP4 = 7
RSS_UDP6 = 8

# SRRCTL.DESCTYPE
SRRCTL_LEGACY = 0
SRRCTL_ADV_ONE = 1
SRRCTL_SPLIT = 2
SRRCTL_SPLIT_ALWAYS = 5
