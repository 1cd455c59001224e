"""The PF's statistics: 4000..42ff. Reading clears; of a 64-bit pair the low half rests until the high half is read.

Those marked stored count what cannot happen between software and software: symbol errors, collisions, flow control,
wrong check sequences, traffic of manageability firmware.

Spec: 82576 datasheet, chapter "Statistics Registers".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Status, reg

__all__ = ["Counters"]


def counted(offset: int, about: str) -> Decl:
    """Declare a counter that moves."""
    return reg(offset, access=Access.RC, writable=0, status=Status.MODELLED, about=about)


def still(offset: int, about: str) -> Decl:
    """Declare a counter of what cannot happen here."""
    return reg(offset, access=Access.RC, writable=0, about=about)


def low(offset: int, about: str) -> Decl:
    """Declare the low half of a 64-bit counter; reading the high half clears both."""
    return reg(offset, access=Access.RO, status=Status.MODELLED, about=about)


class Counters:
    """Statistics of a port."""

    CRCERRS = still(0x4000, "Frames with a wrong frame check sequence.")
    ALGNERRC = still(0x4004, "Alignment errors.")
    SYMERRS = still(0x4008, "Symbol errors.")
    RXERRC = still(0x400C, "Receive errors of the PHY.")
    MPC = counted(0x4010, "Frames missed: the packet buffer was full.")
    SCC = still(0x4014, "Single collisions.")
    ECOL = still(0x4018, "Excessive collisions.")
    MCC = still(0x401C, "Multiple collisions.")
    LATECOL = still(0x4020, "Late collisions.")
    COLC = still(0x4028, "Collisions.")
    CBTMPC = still(0x402C, "Circuit breaker: manageability frames transmitted.")
    DC = still(0x4030, "Deferred transmissions.")
    TNCRS = still(0x4034, "Transmissions without carrier sense.")
    SEC = still(0x4038, "Sequence errors.")
    HTDPMC = still(0x403C, "Frames of the host that the MAC discarded.")
    RLEC = still(0x4040, "Frames shorter or longer than their length field.")
    CBRDPC = still(0x4044, "Circuit breaker: frames dropped.")
    XONRXC = still(0x4048, "XON frames received.")
    XONTXC = still(0x404C, "XON frames transmitted.")
    XOFFRXC = still(0x4050, "XOFF frames received.")
    XOFFTXC = still(0x4054, "XOFF frames transmitted.")
    FCRUC = still(0x4058, "Flow control frames received and not supported.")
    PRC64 = counted(0x405C, "Frames of 64 bytes received.")
    PRC127 = counted(0x4060, "Frames of 65 to 127 bytes received.")
    PRC255 = counted(0x4064, "Frames of 128 to 255 bytes received.")
    PRC511 = counted(0x4068, "Frames of 256 to 511 bytes received.")
    PRC1023 = counted(0x406C, "Frames of 512 to 1023 bytes received.")
    PRC1522 = counted(0x4070, "Frames of 1024 bytes and more received.")
    GPRC = counted(0x4074, "Good frames received.")
    BPRC = counted(0x4078, "Broadcast frames received.")
    MPRC = counted(0x407C, "Multicast frames received.")
    GPTC = counted(0x4080, "Good frames transmitted.")
    GORCL = low(0x4088, "Good bytes received, low half.")
    GORCH = counted(0x408C, "Good bytes received, high half; reading clears both.")
    GOTCL = low(0x4090, "Good bytes transmitted, low half.")
    GOTCH = counted(0x4094, "Good bytes transmitted, high half; reading clears both.")
    RNBC = counted(0x40A0, "Frames for which no receive buffer was free.")
    RUC = counted(0x40A4, "Frames shorter than 64 bytes received.")
    RFC = counted(0x40A8, "Fragments received: short, with a wrong frame check sequence.")
    ROC = counted(0x40AC, "Oversize frames received.")
    RJC = still(0x40B0, "Jabbers received: oversize, with a wrong frame check sequence.")
    MGTPRC = still(0x40B4, "Manageability frames received.")
    MGTPDC = still(0x40B8, "Manageability frames dropped.")
    MGTPTC = still(0x40BC, "Manageability frames transmitted.")
    TORL = low(0x40C0, "Bytes received, low half.")
    TORH = counted(0x40C4, "Bytes received, high half; reading clears both.")
    TOTL = low(0x40C8, "Bytes transmitted, low half.")
    TOTH = counted(0x40CC, "Bytes transmitted, high half; reading clears both.")
    TPR = counted(0x40D0, "Frames received.")
    TPT = counted(0x40D4, "Frames transmitted.")
    PTC64 = counted(0x40D8, "Frames of 64 bytes transmitted.")
    PTC127 = counted(0x40DC, "Frames of 65 to 127 bytes transmitted.")
    PTC255 = counted(0x40E0, "Frames of 128 to 255 bytes transmitted.")
    PTC511 = counted(0x40E4, "Frames of 256 to 511 bytes transmitted.")
    PTC1023 = counted(0x40E8, "Frames of 512 to 1023 bytes transmitted.")
    PTC1522 = counted(0x40EC, "Frames of 1024 bytes and more transmitted.")
    MPTC = counted(0x40F0, "Multicast frames transmitted.")
    BPTC = counted(0x40F4, "Broadcast frames transmitted.")
    TSCTC = counted(0x40F8, "Segmentation contexts transmitted.")
    CBRMPC = still(0x40FC, "Circuit breaker: manageability frames received.")
    IAC = counted(0x4100, "Interrupts asserted.")
    RPTHC = counted(0x4104, "Frames handed to the host.")
    HGPTC = counted(0x4118, "Good frames of the host transmitted.")
    RXDMTC = still(0x4120, "Times that the receive descriptor minimum threshold was reached.")
    HTCBDPC = still(0x4124, "Circuit breaker: frames of the host dropped.")
    HGORCL = low(0x4128, "Good bytes handed to the host, low half.")
    HGORCH = counted(0x412C, "Good bytes handed to the host, high half; reading clears both.")
    HGOTCL = low(0x4130, "Good bytes of the host transmitted, low half.")
    HGOTCH = counted(0x4134, "Good bytes of the host transmitted, high half; reading clears both.")
    LENERRS = still(0x4138, "Frames whose length field is wrong.")
    SSVPC = counted(0x41A0, "Frames that the switch dropped for security: spoofed MAC address or VLAN.")
    SDPC = still(0x41A4, "Frames that the switch dropped.")
    SCVPC = still(0x4228, "Code violations of the SerDes.")
