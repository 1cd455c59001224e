"""Parts of the port that have no counterpart here: PCIe tuning, wake-up, manageability, exact filters, security, time.

Their registers are declared so that traces name them and drivers may write and read them back. *Absent* ones belong to
a function of the chip that virtfn does not have; *stored* ones need to do no more.

Spec: 82576 datasheet, chapter "Programming Interface".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Register, Status, array, reg

__all__ = ["Others"]

RO = Access.RO


def absent(offset: int, about: str, *, access: Access = Access.RW, reset: int = 0) -> Decl:
    """Declare a register of a function that is not there."""
    return reg(offset, access=access, reset=reset, status=Status.ABSENT, about=about)


def absents(offset: int, count: int, about: str, *, stride: int = 4) -> Decl:
    """Declare like registers of a function that is not there."""
    return array(offset, Register, stride=stride, count=count, status=Status.ABSENT, about=about)


class Others:
    """Registers beyond the model."""

    SCTL = absent(0x0024, "SerDes control.")
    CONNSW = absent(0x0034, "Switch between copper and SerDes.")
    TSSDP = absent(0x003C, "Time sync: use of the software-definable pins.")
    ITR = absent(0x00C4, "Interrupt throttle of older parts.")
    TXCW = absent(0x0178, "Auto-negotiation word of older SerDes parts.")
    PBA = absent(0x1000, "Packet buffer allocation of older parts.")
    PBS = absent(0x1008, "Packet buffer size of older parts.")
    EEARBC = absent(0x1024, "EEPROM auto-read bus control.")
    I2CCMD = absent(0x1028, "I2C command to an optical module.")
    WDSTP = absent(0x1040, "Software watchdog.")
    SWDSTS = absent(0x1044, "Software watchdog status.")
    PBRWAC = absent(0x24E8, "Receive packet buffer wrap-around counter.", access=RO)
    PBTWAC = absent(0x34E8, "Transmit packet buffer wrap-around counter.", access=RO)
    TDFH = absent(0x3410, "Transmit packet buffer head.")
    TDFT = absent(0x3418, "Transmit packet buffer tail.")
    TDFHS = absent(0x3420, "Transmit packet buffer head, saved.")
    TDFPC = absent(0x3430, "Transmit packet buffer: frames in it.")

    PCS_CFG0 = absent(0x4200, "SerDes coding configuration.")
    PCS_LCTL = absent(0x4208, "SerDes link control.")
    PCS_LSTAT = absent(0x420C, "SerDes link status.", access=RO)
    PCS_ANADV = absent(0x4218, "SerDes auto-negotiation: advertised.")
    PCS_LPAB = absent(0x421C, "SerDes auto-negotiation: partner.", access=RO)
    PCS_NPTX = absent(0x4220, "SerDes auto-negotiation: next page sent.")
    PCS_LPABNP = absent(0x4224, "SerDes auto-negotiation: next page of the partner.", access=RO)

    GCR = reg(0x5B00, about="PCIe control: completion timeout.")
    FUNCTAG = absent(0x5B08, "PCIe function tag.")
    GSCL = absents(0x5B10, 4, "PCIe statistics control.")
    GSCN = absents(0x5B20, 4, "PCIe statistics counters.")
    FACTPS = absent(0x5B30, "Function active and power state.", access=RO)
    GIOCTL = absent(0x5B44, "PCIe analog control.")
    CCMCTL = absent(0x5B48, "PCIe clock control.")
    SCCTL = absent(0x5B4C, "SerDes clock control.")
    MREVID = absent(0x5B64, "Mirrored revision ID.", access=RO)
    DCA_ID = absent(0x5B70, "Requester ID for direct cache access.", access=RO)
    DCA_CTRL = absent(0x5B74, "Direct cache access control.")

    WUC = absent(0x5800, "Wake-up control.")
    WUFC = absent(0x5808, "Wake-up filters.")
    WUS = absent(0x5810, "Wake-up status.")
    IPAV = absent(0x5838, "Wake-up: valid IP addresses.")
    IP4AT = absents(0x5840, 4, "Wake-up: IPv4 addresses.", stride=8)
    IP6AT = absents(0x5880, 4, "Wake-up: IPv6 address.")
    WUPL = absent(0x5900, "Length of the wake-up packet.", access=RO)
    WUPM = absents(0x5A00, 32, "Start of the wake-up packet.")
    FFLT = absents(0x5F00, 4, "Lengths of flexible wake-up filters.", stride=8)
    FHFT = absents(0x9000, 256, "Flexible wake-up filters.")
    MANC = absent(0x5820, "Manageability control; 0: no firmware.")
    MANC2H = absent(0x5860, "Manageability frames that the host sees too.")
    MDEF = absents(0x5890, 8, "Manageability filters.")
    HOST_IF = absents(0x8800, 448, "Mailbox to the manageability firmware.")
    HICR = absent(0x8F00, "Control of the mailbox to the firmware.")

    FTQF = absents(0x59E0, 8, "Five-tuple queue filters: protocol, queue.")
    SAQF = absents(0x5980, 8, "Five-tuple queue filters: source address.")
    DAQF = absents(0x59A0, 8, "Five-tuple queue filters: destination address.")
    SPQF = absents(0x59C0, 8, "Five-tuple queue filters: source port.")
    SYNQF = absent(0x55FC, "Queue of TCP SYN frames.")
    IMIR = absents(0x5A80, 8, "Immediate interrupts by port.")
    IMIREXT = absents(0x5AA0, 8, "Immediate interrupts by size and TCP flags.")
    IMIRVP = absent(0x5AC0, "Immediate interrupts by VLAN priority.")

    TSYNCRXCFG = absent(0x5F50, "Time stamps: which messages.")
    SYSTIML = absent(0xB600, "System time, low half.")
    SYSTIMH = absent(0xB604, "System time, high half.")
    TIMINCA = absent(0xB608, "System time: increment.")
    TIMADJL = absent(0xB60C, "System time: adjustment, low half.")
    TIMADJH = absent(0xB610, "System time: adjustment, high half.")
    TSYNCTXCTL = absent(0xB614, "Time stamps of frames sent: control.")
    TXSTMPL = absent(0xB618, "Time stamp of a frame sent, low half.", access=RO)
    TXSTMPH = absent(0xB61C, "Time stamp of a frame sent, high half.", access=RO)
    TSYNCRXCTL = absent(0xB620, "Time stamps of frames received: control.")
    RXSTMPL = absent(0xB624, "Time stamp of a frame received, low half.", access=RO)
    RXSTMPH = absent(0xB628, "Time stamp of a frame received, high half.", access=RO)
    RXSATRL = absent(0xB62C, "Source of the frame with the time stamp, low half.", access=RO)
    RXSATRH = absent(0xB630, "Source of the frame with the time stamp, high half.", access=RO)
    TSAUXC = absent(0xB640, "Auxiliary control of the system time.")
    TRGTTIM = absents(0xB644, 4, "Target times, low and high halves.")
    FREQOUT = absents(0xB654, 2, "Clock outputs.")
    AUXSTMP = absents(0xB65C, 4, "Auxiliary time stamps, low and high halves.")
    TSICR = absent(0xB66C, "Time sync interrupt causes.")
    TSIM = absent(0xB674, "Time sync interrupt mask.")

    LSECTXCAP = absent(0xB000, "MACsec transmit capabilities; 0: none.", access=RO)
    LSECTXCTRL = absent(0xB004, "MACsec transmit control.")
    LSECTXSC = absents(0xB008, 2, "MACsec transmit secure channel.")
    LSECTXSA = absent(0xB010, "MACsec transmit secure association.")
    LSECTXPN = absents(0xB018, 2, "MACsec transmit packet numbers.")
    LSECTXKEY = absents(0xB020, 8, "MACsec transmit keys.")
    LSECRXCAP = absent(0xB300, "MACsec receive capabilities; 0: none.", access=RO)
    LSECRXCTRL = absent(0xB304, "MACsec receive control.")
    LSECRXSA = absents(0xB310, 2, "MACsec receive secure associations.")
    LSECRXPN = absents(0xB330, 2, "MACsec receive packet numbers.")
    LSECRXKEY = absents(0xB350, 8, "MACsec receive keys.")
    LSECRXSCL = absent(0xB3D0, "MACsec receive secure channel, low half.")
    LSECRXSCH = absent(0xB3E0, "MACsec receive secure channel, high half.")
    IPSRXIDX = absent(0xB400, "IPsec receive index.")
    IPSRXSALT = absent(0xB404, "IPsec receive salt.")
    IPSRXCMD = absent(0xB408, "IPsec receive command.")
    IPSRXSPI = absent(0xB40C, "IPsec receive security parameters index.")
    IPSRXKEY = absents(0xB410, 4, "IPsec receive key.")
    IPSRXIPADDR = absents(0xB420, 4, "IPsec receive address.")
    IPSCTRL = absent(0xB430, "IPsec control.")
    IPSTXIDX = absent(0xB450, "IPsec transmit index.")
    IPSTXSALT = absent(0xB454, "IPsec transmit salt.")
    IPSTXKEY = absents(0xB460, 4, "IPsec transmit key.")
