"""The 82576's registers with named bits, in the order of their chapters: one class a register, fields `msb, lsb`.

Where they are, how many, and what they reset to is said in `regs.py`. A bit that the datasheet calls reserved, but that
drivers use or must keep, has a name and a reason here.

Spec: 82576 datasheet, chapter "Programming Interface".
"""

from __future__ import annotations

import enum

from virtfn.hw.bits import Access, Field, Register


class Speed(enum.IntEnum):
    """Link speed as CTRL and STATUS hold it."""

    MBPS_10 = 0
    MBPS_100 = 1
    MBPS_1000 = 2


class LinkMode(enum.IntEnum):
    """What the port is wired to."""

    COPPER = 0
    SGMII = 2
    SERDES = 3


class MdiOp(enum.IntEnum):
    """Direction of a PHY access."""

    WRITE = 1
    READ = 2


class DescType(enum.IntEnum):
    """Layout of receive descriptors and use of their two buffers."""

    LEGACY = 0
    ADV_ONE_BUFFER = 1
    ADV_SPLIT = 2
    REPLICATE_ALWAYS = 3
    REPLICATE_SPLIT = 4
    ADV_SPLIT_ALWAYS = 5


class RxMode(enum.IntEnum):
    """How a receive queue is found."""

    OFF = 0
    RSS = 2
    VMDQ = 3
    VMDQ_RSS = 5


class VlanInsert(enum.IntEnum):
    """What VMVIR does to the VLAN tag of a frame to send."""

    BY_DESCRIPTOR = 0
    ALWAYS = 1
    NEVER = 2


# General


class CTRL(Register):
    """Device control."""

    FD = Field(0, stored=True)
    GIO_MASTER_DISABLE = Field(2)
    LRST = Field(3, stored=True)
    ASDE = Field(5, stored=True)
    SLU = Field(6)
    ILOS = Field(7, stored=True)
    SPEED = Field(9, 8, Speed, stored=True)
    FRCSPD = Field(11, stored=True)
    FRCDPLX = Field(12, stored=True)
    SDP0_DATA = Field(18, stored=True)
    SDP1_DATA = Field(19, stored=True)
    ADVD3WUC = Field(20, stored=True)
    SDP0_IODIR = Field(22, stored=True)
    SDP1_IODIR = Field(23, stored=True)
    RST = Field(26, access=Access.SC)
    RFCE = Field(27, stored=True)
    TFCE = Field(28, stored=True)
    VME = Field(30)
    PHY_RST = Field(31, access=Access.SC)


class STATUS(Register):
    """Device status; PHYRA is cleared by writing 0 to it."""

    FD = Field(0)
    LU = Field(1)
    LAN_ID = Field(3, 2, stored=True)
    TXOFF = Field(4, stored=True)
    SPEED = Field(7, 6, Speed)
    ASDV = Field(8)  # bit 9 was its other half; here it tells that the NVM has been loaded
    LAN_INIT_DONE = Field(9)
    PHYRA = Field(10)
    NUM_VFS = Field(17, 14)
    IOV_MODE = Field(18)
    GIO_MASTER_EN = Field(19)
    DMA_CLOCK_GATING = Field(31, stored=True)


class EECD(Register):
    """EEPROM control: four wires, the request for them, and what was found."""

    SK = Field(0)
    CS = Field(1)
    DI = Field(2)
    DO = Field(3, access=Access.RO)
    FWE = Field(5, 4, stored=True)
    REQ = Field(6)
    GNT = Field(7, access=Access.RO)
    PRES = Field(8, access=Access.RO)
    AUTO_RD = Field(9, access=Access.RO)
    ADDR16 = Field(10, access=Access.RO)  # addresses on the wires have 16 bits, not 8
    SIZE_EX = Field(14, 11, access=Access.RO)
    BLOCKED = Field(15, access=Access.RO)


class EERD(Register):
    """EEPROM read: one word by address."""

    START = Field(0, access=Access.SC)
    DONE = Field(1, access=Access.RO)
    ADDR = Field(15, 2)
    DATA = Field(31, 16, access=Access.RO)


class EEWR(Register):
    """EEPROM write: one word by address."""

    START = Field(0, access=Access.SC)
    DONE = Field(1, access=Access.RO)
    ADDR = Field(15, 2)
    DATA = Field(31, 16)


class CTRL_EXT(Register):
    """Extended device control."""

    EE_RST = Field(13, access=Access.SC)
    PFRSTD = Field(14, access=Access.SC)
    SPD_BYPS = Field(15, stored=True)
    RO_DIS = Field(17, stored=True)
    LINK_MODE = Field(23, 22, LinkMode, stored=True)
    EXT_VLAN = Field(26)
    IAME = Field(27)
    DRV_LOAD = Field(28, stored=True)


class MDIC(Register):
    """MDI control: one PHY register access."""

    DATA = Field(15, 0)
    REG = Field(20, 16)
    PHY = Field(25, 21)
    OP = Field(27, 26, MdiOp)
    READY = Field(28)
    INT_EN = Field(29, stored=True)
    ERROR = Field(30, access=Access.RO)
    DEST = Field(31, stored=True)


class VET(Register):
    """VLAN ether types."""

    INNER = Field(15, 0)
    OUTER = Field(31, 16)


class EEMNGCTL(Register):
    """Manageability EEPROM control: PHY configuration is done."""

    CFG_DONE0 = Field(18)
    CFG_DONE1 = Field(19)


class TCPTIMER(Register):
    """TCP timer: an interrupt after a time, once or again and again."""

    DURATION = Field(7, 0)
    KICKSTART = Field(8, access=Access.SC)
    ENABLE = Field(9)
    FINISH = Field(10, access=Access.SC)
    LOOP = Field(11)


class SWSM(Register):
    """Software semaphore: reading SMBI sets it, SWESMBI is granted by reading back 1."""

    SMBI = Field(0, access=Access.RS)
    SWESMBI = Field(1, stored=True)


class SW_FW_SYNC(Register):
    """Which shared resources software and firmware hold."""

    SW_EEPROM = Field(0)
    SW_PHY0 = Field(1)
    SW_PHY1 = Field(2)
    SW_MAC = Field(3)
    FW_EEPROM = Field(16)
    FW_PHY0 = Field(17)
    FW_PHY1 = Field(18)
    FW_MAC = Field(19)


class FCRTL(Register):
    """Flow control receive threshold low."""

    RTL = Field(15, 4)
    XONE = Field(31)


class LOW16(Register):
    """A register that keeps 16 bits."""

    VALUE = Field(15, 0)


class IOVCTL(Register):
    """I/O virtualization control."""

    REUSE_VFQ = Field(0)


# Interrupts


class ICR(Register):
    """Interrupt causes other than queues."""

    TXDW = Field(0)
    LSC = Field(2)
    RXSEQ = Field(3, stored=True)
    RXDMT = Field(4, stored=True)
    RXO = Field(6, stored=True)
    RXDW = Field(7)
    VMMB = Field(8)
    GPI = Field(14, 11, stored=True)
    MNG = Field(18, stored=True)
    TS = Field(19, stored=True)
    FER = Field(22, stored=True)
    NFER = Field(23, stored=True)
    SW_WD = Field(26, stored=True)
    DOUTSYNC = Field(28)  # spoofing and malicious-driver events share it; later parts call it MDDET
    TCP_TIMER = Field(30)
    INTA = Field(31)


class EICR(Register):
    """Extended interrupt causes: with MSI-X one bit a vector, without it the names at 30 and 31."""

    VECTORS = Field(24, 0)
    TCP_TIMER = Field(30)
    OTHER = Field(31)


class GPIE(Register):
    """General purpose interrupt enable: the interrupt mode."""

    NSICR = Field(0)
    MULTIPLE_MSIX = Field(4)
    LL_INTERVAL = Field(11, 7, stored=True)
    EIAME = Field(30)
    PBA_SUPPORT = Field(31, stored=True)


class EITR(Register):
    """Interrupt throttle: least time between two messages of a vector, in microseconds."""

    INTERVAL = Field(14, 2)
    LLI_EN = Field(15, stored=True)
    LL_COUNTER = Field(20, 16, stored=True)
    MODERATION_COUNTER = Field(30, 21, stored=True)
    CNT_INGR = Field(31, access=Access.WO)  # written 1: this write leaves the counters alone


class IVAR(Register):
    """Vectors of queues n and n+8."""

    RX_LOW = Field(4, 0)
    RX_LOW_VALID = Field(7)
    TX_LOW = Field(12, 8)
    TX_LOW_VALID = Field(15)
    RX_HIGH = Field(20, 16)
    RX_HIGH_VALID = Field(23)
    TX_HIGH = Field(28, 24)
    TX_HIGH_VALID = Field(31)


class IVAR_MISC(Register):
    """Vectors of the TCP timer and of the other causes."""

    TCP_TIMER = Field(4, 0)
    TCP_TIMER_VALID = Field(7)
    OTHER = Field(12, 8)
    OTHER_VALID = Field(15)


# Mailbox, functions


class P2VMAILBOX(Register):
    """PF side of a mailbox. Ownership is stored as written, so that STS or ACK alone gives the buffer back."""

    STS = Field(0, access=Access.WO)
    ACK = Field(1, access=Access.WO)
    VFU = Field(2, access=Access.RO)
    PFU = Field(3)
    RVFU = Field(4, access=Access.WO)


class V2PMAILBOX(Register):
    """VF side of a mailbox. PFSTS, PFACK and RSTD are cleared by reading."""

    REQ = Field(0, access=Access.WO)
    ACK = Field(1, access=Access.WO)
    VFU = Field(2)
    PFU = Field(3, access=Access.RO)
    PFSTS = Field(4, access=Access.RC)
    PFACK = Field(5, access=Access.RC)
    RSTI = Field(6, access=Access.RO)
    RSTD = Field(7, access=Access.RC)


class MBVFICR(Register):
    """Mailbox causes: which VFs asked, which acknowledged."""

    VFREQ = Field(7, 0)
    VFACK = Field(23, 16)


class VF_BITS(Register):
    """One bit a VF or pool."""

    VFS = Field(7, 0)


class VTCTRL(Register):
    """VF control: RST resets the VF."""

    RST = Field(26, access=Access.SC)


class VF_VECTORS(Register):
    """Interrupt causes of a VF, one bit a vector."""

    VECTORS = Field(2, 0)


class VTIVAR(Register):
    """Vectors of a VF's two queue pairs."""

    RX0 = Field(1, 0)
    RX0_VALID = Field(7)
    TX0 = Field(9, 8)
    TX0_VALID = Field(15)
    RX1 = Field(17, 16)
    RX1_VALID = Field(23)
    TX1 = Field(25, 24)
    TX1_VALID = Field(31)


class VTIVAR_MISC(Register):
    """Vector of a VF's mailbox."""

    MAILBOX = Field(1, 0)
    MAILBOX_VALID = Field(7)
