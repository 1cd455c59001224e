"""A card set up for probes, register by register, as the drivers of a PF and four VFs would.

Each function has a part of the board's memory, the PF's first: where its MSI-X vectors write their messages (a message
is a memory write), its rings, what it sends, its buffers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from probes.boards import Board
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import PHY_ADDRESS, PhyRegs, Regs, VfRegs
from virtfn.hw.i82576.desc import (
    RXD_DD,
    RXD_LEN_SHIFT,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, GPIE, MDIC, STATUS, MdiOp
from virtfn.hw.i82576.phy import BMCR
from virtfn.hw.i82576.rxtx import DTXSWC, MRQC, RAH, RCTL, RPLOLR, RXDCTL, SRRCTL, TCTL, TXDCTL, VLVF, VMOLR, VT_CTL
from virtfn.hw.pci import Command, MsiX, MsiXControl, Type0
from virtfn.hw.types import Rid
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.place import Range
from virtfn.iovm.walk import Registers, capability_of
from virtfn.machine.clock import S_PS, US_PS
from virtfn.machine.ports import VirtfnError

__all__ = ["DROP", "LEGACY", "ONE_BUFFER", "POOL", "RX", "TX", "VFS", "Bench", "Got", "mac", "to_send"]

ONE_BUFFER = SRRCTL.of(BSIZEPACKET=2, DESCTYPE=1)
LEGACY = SRRCTL.of(BSIZEPACKET=2, DESCTYPE=0)
DROP = ONE_BUFFER.replace(DROP_EN=1)
POOL = VMOLR.of(RLPML=1522, LPE=1, AUPE=1, BAM=1, RSV31=1)
VFS = 4
PF_VECTORS, VF_VECTORS = 10, 3

# A part of the memory, and what is where in it.
PART, MESSAGES, TX, RX, RING, DATA, BUFFERS, BUFFER = 0x40000, 0, 0x1000, 0x2000, 0x400, 0x10000, 0x20000, 2048
SIZE = 16
LOW = 0xFFFFFFFF


def mac(n: int) -> bytes:
    """Return VF `n`'s address."""
    return bytes([2, 0, 0, 0, 0, 0x10 + n])


def to_send(address: int, size: int) -> tuple[int, int]:
    """Make the words of an advanced descriptor of a whole frame that asks for a report."""
    return address, size | TXD_DTYP_DATA | TXD_EOP | TXD_IFCS | TXD_RS | TXD_DEXT | size << TXD_PAYLEN_SHIFT


def _place(decl: Decl, index: int) -> int:
    # QEMU has these at their old place only, where drivers use them.
    if decl in (Regs.ICR, Regs.ICS, Regs.IMS, Regs.IMC) and decl.alias is not None:
        return decl.alias[0]
    return decl.at(index)


@dataclass(frozen=True, slots=True)
class Got:
    """A received frame. word: upper half of its descriptor as written back."""

    body: bytes
    word: int


class Bench:
    """The card of a board with four VFs; VF n is pool n, its address `mac(n)`, and each has two queues of 16.

    layout: SRRCTL of all queues. A function is a VF's number, or None, the PF.
    """

    def __init__(self, board: Board, layout: SRRCTL = DROP) -> None:
        """Scan and set up. Raises VirtfnError if there is no card that can be."""
        self.board = board
        self.pcim = Pcim(board, board)
        self.pcim.scan()
        (self.pf,) = self.pcim.pfs()
        self.pcim.enable_function(self.pf.rid)
        vfs = self.pcim.enable_vfs(self.pf.rid, VFS)
        self._bars: dict[int | None, list[Range]] = {None: self.pf.bars} | {vf.index: vf.bars for vf in vfs}
        rids: dict[int | None, Rid] = {None: self.pf.rid} | {vf.index: vf.rid for vf in vfs}
        for n, rid in rids.items():
            Registers(board, rid).set(Type0.COMMAND, Command.of(MEM=1, BME=1).value)
            self._use_msix(n, rid)
        self._link_up()
        self.set(Regs.GPIE, GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value)
        self.set(Regs.CTRL_EXT, CTRL_EXT.of(PFRSTD=1).value)
        self.set(Regs.MRQC, MRQC.of(MODE=3).value)
        self.set(Regs.VT_CTL, VT_CTL.of(RPL_EN=1, DIS_DEF_POOL=1).value)
        self.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1).value)
        self.set(Regs.RPLOLR, RPLOLR.of(RSV31=1).value)
        for pool in range(8):
            self.set(Regs.VMOLR, POOL.value, pool)
        self._next: dict[tuple[int, int], int] = {}  # of each ring, the descriptor that is filled next
        for n in range(VFS):
            self.set(Regs.RAL, int.from_bytes(mac(n)[:4], "little"), n)
            self.set(Regs.RAH, RAH.of(RAH=int.from_bytes(mac(n)[4:], "little"), POOLSEL=1 << n, AV=1).value, n)
            self.get(VfRegs.V2PMAILBOX, vf=n)
            for queue in (0, 1):
                self._open(n, queue, layout)
        self.set(Regs.VFRE, 0xFF)
        self.set(Regs.VFTE, 0xFF)
        self.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, SECRC=1).value)
        self.set(Regs.TCTL, TCTL.of(EN=1, PSP=1).value)
        self.get(Regs.ICR)
        self.messages()

    def _link_up(self) -> None:
        self.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, VME=1).value)
        restart = BMCR(PhyRegs.BMCR.reset).replace(AN_RESTART=1)
        mdic = MDIC.of(DATA=restart.value, REG=PhyRegs.BMCR.offset, PHY=PHY_ADDRESS, OP=MdiOp.WRITE)
        self.set(Regs.MDIC, mdic.value)
        self.board.sleep(S_PS)
        if not STATUS(self.get(Regs.STATUS)).LU:
            raise VirtfnError("the link does not come up")

    def _use_msix(self, n: int | None, rid: Rid) -> None:
        for vector in range(PF_VECTORS if n is None else VF_VECTORS):
            address = self.part(n) + MESSAGES + 4 * vector
            for word, value in enumerate((address & LOW, address >> 32, 1, 0)):
                self.board.mmio_write(self._bar(n, 3) + 16 * vector + 4 * word, 4, value)
        capability = capability_of(self.board, rid, MsiX)
        assert capability is not None
        capability.set(MsiX.CONTROL, MsiXControl.of(ENABLE=1).value)

    def _open(self, n: int, queue: int, layout: SRRCTL) -> None:
        at = self.part(n) + queue * RING
        self._next[n, queue] = 0
        for i in range(SIZE):
            self._free(n, queue, i)
        for decl, value in (
            (VfRegs.RDBAL, at + RX & LOW), (VfRegs.RDBAH, at + RX >> 32), (VfRegs.RDLEN, 16 * SIZE),
            (VfRegs.SRRCTL, layout.value), (VfRegs.RXDCTL, RXDCTL.of(ENABLE=1).value), (VfRegs.RDT, SIZE - 1),
            (VfRegs.TDBAL, at + TX & LOW), (VfRegs.TDBAH, at + TX >> 32), (VfRegs.TDLEN, 16 * SIZE),
            (VfRegs.TXDCTL, TXDCTL.of(ENABLE=1).value),
        ):  # fmt: skip
            self.set(decl, value, queue, vf=n)

    # Accesses.

    def part(self, n: int | None) -> int:
        """Return the address of a function's part of the memory."""
        return self.board.memory + PART * (0 if n is None else 1 + n)

    def _bar(self, n: int | None, number: int) -> int:
        return next(bar.address for bar in self._bars[n] if bar.bar == number and not bar.io)

    def get(self, decl: Decl, index: int = 0, vf: int | None = None) -> int:
        """Read a register of the PF, or of a VF by the VF's map."""
        return self.peek(_place(decl, index), vf)

    def peek(self, offset: int, vf: int | None = None) -> int:
        """Read a word of BAR0."""
        return self.board.mmio_read(self._bar(vf, 0) + offset, 4)

    def poke(self, offset: int, value: int, vf: int | None = None) -> None:
        """Write a word of BAR0."""
        self.board.mmio_write(self._bar(vf, 0) + offset, 4, value)

    def set(self, decl: Decl, value: int, index: int = 0, vf: int | None = None) -> None:
        """Write a register of the PF, or of a VF by the VF's map."""
        self.poke(_place(decl, index), value, vf)

    def words(self, address: int, *words: int) -> None:
        """Write 64-bit words to memory."""
        self.board.store(address, struct.pack(f"<{len(words)}Q", *words))

    def vlan(self, entry: int, vid: int, pools: int, *, local: bool = False) -> None:
        """Let pools be members of a VLAN."""
        self.set(Regs.VLVF, VLVF.of(VID=vid, POOLSEL=pools, LVLAN=local, VI_EN=1).value, entry)
        self.set(Regs.VFTA, self.get(Regs.VFTA, vid >> 5) | 1 << (vid & 31), vid >> 5)

    def messages(self, us: int = 0) -> list[tuple[int | None, int]]:
        """Let time pass, and take the messages since the last call: (function, vector), by function; each once."""
        self.board.sleep(us * US_PS)
        sent: list[tuple[int | None, int]] = []
        for n in (None, *range(VFS)):
            cells = self.board.load(self.part(n) + MESSAGES, 4 * PF_VECTORS)
            sent += [(n, vector) for vector in range(PF_VECTORS) if cells[4 * vector]]
            self.board.store(self.part(n) + MESSAGES, bytes(4 * PF_VECTORS))
        return sent

    # Frames.

    def post(self, n: int, *descriptors: tuple[int, int], queue: int = 0, us: int = 10_000) -> None:
        """Give VF `n` descriptors to send, and let time pass."""
        tail = self.get(VfRegs.TDT, queue, vf=n)
        for pair in descriptors:
            self.words(self.part(n) + TX + queue * RING + 16 * tail, *pair)
            tail = (tail + 1) % SIZE
        self.set(VfRegs.TDT, tail, queue, vf=n)
        self.board.sleep(us * US_PS)

    def send(self, n: int, *frames: bytes) -> None:
        """Let VF `n` send frames."""
        for frame in frames:
            self.post(n, to_send(self.put(n, frame), len(frame)))

    def put(self, n: int, frame: bytes) -> int:
        """Store a frame where VF `n` sends from; return its address."""
        self.board.store(self.part(n) + DATA, frame)
        return self.part(n) + DATA

    def written(self, n: int, ring: int) -> int:
        """Return the upper word of the first descriptor of VF `n`'s ring, RX or TX."""
        return int.from_bytes(self.board.load(self.part(n) + ring + 8, 8), "little")

    def got(self, n: int, queue: int = 0) -> list[Got]:
        """Take what VF `n` received since the last call, and give the buffers back."""
        frames: list[Got] = []
        while True:
            i = self._next[n, queue]
            at = self.part(n) + RX + queue * RING + 16 * i + 8
            word = int.from_bytes(self.board.load(at, 8), "little")
            if not word & RXD_DD:
                return frames
            body = self.board.load(self._buffer(n, queue, i), word >> RXD_LEN_SHIFT & 0xFFFF)
            frames.append(Got(body, word))
            self._free(n, queue, i)
            self.set(VfRegs.RDT, i, queue, vf=n)
            self._next[n, queue] = (i + 1) % SIZE

    def _buffer(self, n: int, queue: int, i: int) -> int:
        return self.part(n) + BUFFERS + BUFFER * (SIZE * queue + i)

    def _free(self, n: int, queue: int, i: int) -> None:
        self.words(self.part(n) + RX + queue * RING + 16 * i, self._buffer(n, queue, i), 0)

    def takers(self) -> list[int]:
        """Tell which VFs have received something on queue 0 since the last call."""
        return [n for n in range(VFS) if self.got(n)]
