"""The PF's registers: BAR0 of a port, 128 KiB. The first file to read about the NIC.

    0000..05ff  general, flow control, RCTL, TCTL      1500..17ff  interrupts: causes, masks, throttle, vectors
    0800..0cff  mailboxes, function level resets       4000..42ff  statistics, SerDes (`counters.py`, `others.py`)
    2404..36ff  packet buffers, switch, rates          5000..5dff  receive filters: MAC, VLAN, pools, RSS, mirroring
    a000..a1ff  unicast table                          b000..b6ff  MACsec, IPsec, time stamps (`others.py`)
    c000..ffff  16 receive, 16 transmit queues         10000..     the PF's view of what each VF sees

Queue q of a pool p is physical queue p + 8 q. Vector v of VF n is internal vector 22 - 3 n + v. Queues 0 to 3 are also
reached at 2800 and 3800, as on older parts. Where a bit is: `fields.py`, `rxtx.py`.

Spec: 82576 datasheet, chapter "Programming Interface".
"""

from __future__ import annotations

from virtfn.hw.bits import Access, Decl, Register, RegMap, Status, array, reg
from virtfn.hw.i82576 import fields as f
from virtfn.hw.i82576 import rxtx as x
from virtfn.hw.i82576.counters import Counters
from virtfn.hw.i82576.others import Others

__all__ = ["BAR0_BYTES", "QUEUES", "VECTORS", "VFS", "VF_VECTORS", "Regs", "vf_vector"]

BAR0_BYTES = 0x20000
VFS = 8
QUEUES = 16
VECTORS = 25
VF_VECTORS = 3

RO, RW, RC, WO = Access.RO, Access.RW, Access.RC, Access.WO
W1S, W1C, RC_W1C = Access.W1S, Access.W1C, Access.RC_W1C
MODELLED, ABSENT = Status.MODELLED, Status.ABSENT


def per_vf(offset: int, kind: type[Register], access: Access = RW, *, writable: int | None = None, about: str) -> Decl:
    """Declare the PF's view of a VF register, 100h apart."""
    return array(offset, kind, access, stride=0x100, count=VFS, writable=writable, status=MODELLED, about=about)


def rx_queue(
    offset: int,
    kind: type[Register],
    access: Access = RW,
    *,
    writable: int | None = None,
    reset: int = 0,
    about: str = "",
) -> Decl:
    """Declare a register of each receive queue; queues 0 to 3 answer in the old place too."""
    return array(
        0xC000 + offset,
        kind,
        access,
        stride=0x40,
        count=QUEUES,
        reset=reset,
        writable=writable,
        alias=(0x2800 + offset, 0x100, 4),
        status=MODELLED,
        about=about,
    )


def tx_queue(
    offset: int, kind: type[Register], *, writable: int | None = None, reset: int = 0, about: str = ""
) -> Decl:
    """Declare a register of each transmit queue; queues 0 to 3 answer in the old place too."""
    return array(
        0xE000 + offset,
        kind,
        stride=0x40,
        count=QUEUES,
        reset=reset,
        writable=writable,
        alias=(0x3800 + offset, 0x100, 4),
        status=MODELLED,
        about=about,
    )


def vf_vector(vf: int, vector: int = 0) -> int:
    """Number the internal vector that is VF `vf`'s vector `vector`."""
    return 22 - 3 * vf + vector


class General:
    """Device, EEPROM, PHY access, flow control, semaphores."""

    CTRL = reg(0x0000, f.CTRL, reset=0x1, alias=0x0004, status=MODELLED)
    # Link and speed come from the PHY, the number of VFs from configuration space; of one port, LAN_ID is 0.
    STATUS = reg(0x0008, f.STATUS, RO, reset=0x00080600, status=MODELLED)
    EECD = reg(0x0010, f.EECD, reset=0x00000B00, writable=0x77, status=MODELLED)
    EERD = reg(0x0014, f.EERD, status=MODELLED)
    CTRL_EXT = reg(0x0018, f.CTRL_EXT, status=MODELLED)
    MDIC = reg(0x0020, f.MDIC, status=MODELLED)
    FCAL = reg(0x0028, reset=0x00C28001, about="Flow control address, bytes 0 to 3.")
    FCAH = reg(0x002C, f.LOW16, reset=0x0100, writable=0xFFFF, about="Flow control address, bytes 4 and 5.")
    FCT = reg(0x0030, f.LOW16, reset=0x8808, writable=0xFFFF, about="Ether type of flow control frames.")
    VET = reg(0x0038, f.VET, reset=0x81008100, status=MODELLED)
    FCTTV = reg(0x0170, f.LOW16, writable=0xFFFF, about="Pause time of flow control frames sent.")
    TIPG = reg(0x0410, reset=0x00601008, writable=0x3FFFFFFF, about="Gaps between frames sent.")
    LEDCTL = reg(0x0E00, reset=0x07068302, about="What the four LEDs show.")
    EEMNGCTL = reg(0x1010, f.EEMNGCTL, RO, reset=0x000C0000, status=MODELLED)
    EEWR = reg(0x102C, f.EEWR, status=MODELLED)
    FRTIMER = reg(0x1048, access=RO, status=MODELLED, about="Free-running timer, in microseconds.")
    TCPTIMER = reg(0x104C, f.TCPTIMER, writable=0xAFF, status=MODELLED)
    FCRTL = reg(0x2160, f.FCRTL, writable=0x8000FFF0)
    FCRTH = reg(0x2168, writable=0xFFF0, about="Flow control receive threshold high.")
    FCRTV = reg(0x2460, f.LOW16, writable=0xFFFF, about="Flow control refresh time.")
    SWSM = reg(0x5B50, f.SWSM, writable=0x3, status=MODELLED)
    FWSM = reg(0x5B54, access=RO, about="Firmware semaphore; 0: no manageability firmware.")
    SW_FW_SYNC = reg(0x5B5C, f.SW_FW_SYNC)
    IOVCTL = reg(0x5BBC, f.IOVCTL, writable=0x1)


class Interrupts:
    """Causes, masks, throttle, vectors. The old names at 00c0 are the same registers."""

    ICR = reg(0x1500, f.ICR, RC_W1C, alias=0x00C0, status=MODELLED)
    ICS = reg(0x1504, f.ICR, WO, alias=0x00C8, status=MODELLED, about="Set interrupt causes.")
    IMS = reg(0x1508, f.ICR, W1S, alias=0x00D0, status=MODELLED, about="Interrupt mask; write 1 enables.")
    IMC = reg(0x150C, f.ICR, WO, alias=0x00D8, status=MODELLED, about="Clear interrupt mask bits.")
    IAM = reg(0x1510, f.ICR, alias=0x00E0, status=MODELLED, about="Mask bits that an acknowledge clears.")
    GPIE = reg(0x1514, f.GPIE, writable=0xC0000F91, status=MODELLED)
    EICS = reg(0x1520, f.EICR, WO, status=MODELLED, about="Set extended causes.")
    EIMS = reg(0x1524, f.EICR, W1S, status=MODELLED, about="Extended mask; write 1 enables.")
    EIMC = reg(0x1528, f.EICR, WO, status=MODELLED, about="Clear extended mask bits.")
    EIAC = reg(0x152C, f.EICR, writable=0x1FFFFFF, status=MODELLED, about="Causes that sending their message clears.")
    EIAM = reg(0x1530, f.EICR, status=MODELLED, about="Mask bits that sending a message clears.")
    EICR = reg(0x1580, f.EICR, RC_W1C, status=MODELLED)
    EITR = array(0x1680, f.EITR, stride=4, count=VECTORS, status=MODELLED)
    IVAR = array(0x1700, f.IVAR, stride=4, count=8, status=MODELLED)
    IVAR_MISC = reg(0x1740, f.IVAR_MISC, status=MODELLED)
    PBACL = reg(0x5B68, access=WO, status=MODELLED, about="Clear pending bits of the MSI-X table.")


class Virtualization:
    """Mailboxes, resets of VFs, and the PF's view of each VF's registers."""

    VMBMEM = array(0x0800, stride=4, count=16 * VFS, status=MODELLED, about="Mailbox words: 16 for each VF, in order.")
    P2VMAILBOX = array(0x0C00, f.P2VMAILBOX, stride=4, count=VFS, writable=0x8, status=MODELLED)
    V2PMAILBOX = array(0x0C40, f.V2PMAILBOX, stride=4, count=VFS, writable=0x4, status=MODELLED)
    MBVFICR = reg(0x0C80, f.MBVFICR, W1C, status=MODELLED)
    MBVFIMR = reg(0x0C84, f.VF_BITS, reset=0xFF, writable=0xFF, status=MODELLED, about="VFs whose mailbox interrupts.")
    VFLRE = reg(0x0C88, f.VF_BITS, W1C, status=MODELLED, about="VFs that were reset.")
    VFRE = reg(0x0C8C, f.VF_BITS, reset=0xFF, writable=0xFF, status=MODELLED, about="Pools that may receive.")
    VFTE = reg(0x0C90, f.VF_BITS, reset=0xFF, writable=0xFF, status=MODELLED, about="Pools that may transmit.")
    VTCTRL = per_vf(0x10000, f.VTCTRL, WO, about="Control of a VF: RST resets it.")
    VFGPRC = per_vf(0x10010, Register, RO, about="Good frames that a VF received.")
    VFGPTC = per_vf(0x10014, Register, RO, about="Good frames that a VF transmitted.")
    VFGORC = per_vf(0x10018, Register, RO, about="Good bytes that a VF received.")
    VTEICS = per_vf(0x10020, f.VF_VECTORS, WO, about="Set interrupt causes of a VF.")
    VTEIMS = per_vf(0x10024, f.VF_VECTORS, W1S, about="Interrupt mask of a VF; write 1 enables.")
    VTEIMC = per_vf(0x10028, f.VF_VECTORS, WO, about="Clear interrupt mask bits of a VF.")
    VTEIAC = per_vf(0x1002C, f.VF_VECTORS, writable=0x7, about="Causes of a VF that sending their message clears.")
    VTEIAM = per_vf(0x10030, f.VF_VECTORS, writable=0x7, about="Mask bits of a VF that sending a message clears.")
    VFGOTC = per_vf(0x10034, Register, RO, about="Good bytes that a VF transmitted.")
    VFMPRC = per_vf(0x10038, Register, RO, about="Multicast frames that a VF received.")
    # Intel's headers have it one word lower than other software: both offsets reach it.
    VFMPRC.alias = (0x1003C, 0x100, VFS)
    VFGPRLBC = per_vf(0x10040, Register, RO, about="Frames that a VF received from other local functions.")
    VFGPTLBC = per_vf(0x10044, Register, RO, about="Frames that a VF transmitted to other local functions.")
    VFGORLBC = per_vf(0x10048, Register, RO, about="Bytes that a VF received from other local functions.")
    VFGOTLBC = per_vf(0x10050, Register, RO, about="Bytes that a VF transmitted to other local functions.")
    VTEICR = per_vf(0x10080, f.VF_VECTORS, RC_W1C, about="Interrupt causes of a VF.")
    # Silicon reads back 0a in each byte before software writes it, unused bits included.
    VTIVAR = array(0x11700, f.VTIVAR, stride=4, count=VFS, reset=0x0A0A0A0A, status=MODELLED)
    VTIVAR_MISC = array(0x11720, f.VTIVAR_MISC, stride=4, count=VFS, status=MODELLED)


class Queues:
    """Receive and transmit queues, and what they share. The model enables queue 0 at reset."""

    RDBAL = rx_queue(0x00, x.RDBAL, writable=0xFFFFFF80)
    RDBAH = rx_queue(0x04, Register, about="Receive ring base address, high half.")
    RDLEN = rx_queue(0x08, x.RDLEN, writable=0x000FFFF0)
    SRRCTL = rx_queue(0x0C, x.SRRCTL, reset=0x400)
    RDH = rx_queue(0x10, f.LOW16, writable=0xFFFF, about="Receive ring head: the next descriptor hardware fills.")
    RXCTL = rx_queue(0x14, x.RXCTL, reset=0xA200)
    RDT = rx_queue(0x18, f.LOW16, writable=0xFFFF, about="Receive ring tail: one past the last free descriptor.")
    RXDCTL = rx_queue(0x28, x.RXDCTL, reset=0x00010000)
    RQDPC = rx_queue(0x30, Register, RC, writable=0, about="Frames that found a queue without descriptors.")
    TDBAL = tx_queue(0x00, x.RDBAL, writable=0xFFFFFF80, about="Transmit ring base address, low half.")
    TDBAH = tx_queue(0x04, Register, about="Transmit ring base address, high half.")
    TDLEN = tx_queue(0x08, x.RDLEN, writable=0x000FFFF0, about="Transmit ring length in bytes, a multiple of 128.")
    TDH = tx_queue(0x10, f.LOW16, writable=0xFFFF, about="Transmit ring head: the next descriptor hardware sends.")
    TXCTL = tx_queue(0x14, x.TXCTL, reset=0x2A00)
    TDT = tx_queue(0x18, f.LOW16, writable=0xFFFF, about="Transmit ring tail: one past the last descriptor to send.")
    TXDCTL = tx_queue(0x28, x.TXDCTL)
    TDWBAL = tx_queue(0x38, x.TDWBAL)
    TDWBAH = tx_queue(0x3C, Register, about="Head write-back address, high half.")

    RCTL = reg(0x0100, x.RCTL, writable=0x04FFB3FE, status=MODELLED)
    TCTL = reg(0x0400, x.TCTL, reset=0x000400F8, writable=0x017FFFFA, status=MODELLED)
    TCTL_EXT = reg(0x0404, about="Transmit control, extended: collisions at half duplex.")
    RXPBS = reg(0x2404, reset=0x40, writable=0x7F, about="Receive packet buffer, KiB.")
    QDE = reg(0x2408, x.QUEUE_BITS, writable=0xFFFF, status=MODELLED, about="Queues that drop when out of descriptors.")
    SWPBS = reg(0x3004, reset=0x14, writable=0x7F, about="Switch packet buffer, KiB.")
    TXPBS = reg(0x3404, reset=0x28, writable=0x7F, about="Transmit packet buffer, KiB.")
    DTXSWC = reg(0x3500, x.DTXSWC, writable=0x80FFFFFF, status=MODELLED)
    DTXMXSZRQ = reg(0x3540, reset=0x10, writable=0xFFF, about="Most DMA read bytes under way, in 256-byte units.")
    LVMMC = reg(0x3548, x.LVMMC, RC, writable=0, status=MODELLED)
    WVBR = reg(0x3554, x.WVBR, RC, writable=0, status=MODELLED)
    DTXCTL = reg(0x3590, x.DTXCTL, reset=0x44, status=MODELLED)
    DTXTCPFLGL = reg(0x359C, x.DTXTCPFLGL, reset=0x0F760FF6, writable=0x0FFF0FFF, status=MODELLED)
    DTXTCPFLGH = reg(0x35A0, x.DTXTCPFLGH, reset=0x00000F7F, writable=0x00000FFF, status=MODELLED)
    RTTDQSEL = reg(0x3604, writable=0xF, status=MODELLED, about="Transmit queue that RTTBCNRC speaks of.")
    RTTBCNRM = reg(0x3690, about="Rate limiter memory window; Linux writes 14h.")
    RTTBCNRC = reg(0x36B0, x.RTTBCNRC, writable=0x8FFFFFFF, status=MODELLED)


class Filters:
    """From a frame to pools and queues: addresses, VLANs, hashes, mirrors, storms."""

    RXCSUM = reg(0x5000, x.RXCSUM, reset=0x300, status=MODELLED)
    RLPML = reg(0x5004, x.RLPML, reset=0x2600, writable=0x3FFF, status=MODELLED)
    RFCTL = reg(0x5008, about="Receive filter control: NFS and IPv6 parsing.")
    MTA = array(0x5200, stride=4, count=128, status=MODELLED, about="Multicast table: 4096 bits by hash.")
    RAL = array(0x5400, x.RAL, stride=8, count=16, status=MODELLED)
    RAH = array(0x5404, x.RAH, stride=8, count=16, writable=0x83FFFFFF, status=MODELLED)
    PSRTYPE = array(0x5480, stride=4, count=VFS, status=ABSENT, about="Headers at which a pool's frames are split.")
    RALX = array(0x54E0, x.RAL, stride=8, count=8, status=MODELLED, about="RAL of addresses 16 to 23.")
    RAHX = array(
        0x54E4, x.RAH, stride=8, count=8, writable=0x83FFFFFF, status=MODELLED, about="RAH of addresses 16 to 23."
    )
    VFTA = array(0x5600, stride=4, count=128, status=MODELLED, about="VLAN filter: 4096 bits by VLAN ID.")
    MRQC = reg(0x5818, x.MRQC, status=MODELLED)
    VT_CTL = reg(0x581C, x.VT_CTL, writable=0x70000380, status=MODELLED)
    VMVIR = array(0x3700, x.VMVIR, stride=4, count=VFS, writable=0xC000FFFF, status=MODELLED)
    VMOLR = array(0x5AD0, x.VMOLR, stride=4, count=VFS, reset=0x80002600, status=MODELLED)
    RPLOLR = reg(0x5AF0, x.RPLOLR, reset=0x80000000, writable=0xC0000000, status=MODELLED)
    RETA = array(0x5C00, x.RETA, stride=4, count=32, status=MODELLED)
    RSSRK = array(0x5C80, stride=4, count=10, status=MODELLED, about="RSS key, first byte lowest.")
    ETQF = array(0x5CB0, x.ETQF, stride=4, count=8, status=ABSENT)
    VLVF = array(0x5D00, x.VLVF, stride=4, count=32, writable=0x801FFFFF, status=MODELLED)
    VMRCTL = array(0x5D80, x.VMRCTL, stride=4, count=4, writable=0x70F, status=MODELLED)
    VMRVLAN = array(0x5D90, stride=4, count=4, status=MODELLED, about="VLVF entries that a mirror rule copies.")
    VMRVM = array(0x5DA0, f.VF_BITS, stride=4, count=4, writable=0xFF, status=MODELLED, about="Pools of a mirror rule.")
    SCCRL = reg(0x5DB0, x.SCCRL, writable=0x3FF1F, status=MODELLED)
    BSCTRH = reg(0x5DB8, x.STORM_THRESHOLD, writable=0x7FFFF, status=MODELLED, about="Broadcast storm threshold.")
    MSCTRH = reg(0x5DBC, x.STORM_THRESHOLD, writable=0x7FFFF, status=MODELLED, about="Multicast storm threshold.")
    # Write-only on silicon; here a read gives the table, which only helps.
    UTA = array(0xA000, stride=4, count=128, status=MODELLED, about="Unicast table: 4096 bits by hash.")


class Regs(General, Interrupts, Virtualization, Queues, Filters, Counters, Others, RegMap):
    """BAR0 of the 82576's PF."""
