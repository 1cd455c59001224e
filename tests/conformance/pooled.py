"""An 82576 whose pools are set up by hand, register by register, and whose VFs have rings, buffers and memory.

VF n's address is 02:00:00:00:00:1n, its rings of 16 descriptors and its memory are its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from conformance.rig import PF, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.rxtx import DTXSWC, MRQC, RCTL, TCTL

TX, RX, DATA, BUFFERS, REPORT = 0x1000, 0x2000, 0x10000, 0x40000, 0x8000
ENABLE, SIZE = 1 << 25, 16
RLPML, LPE, RSSE, AUPE, ROMPE, ROPE, BAM, MPME, STRVLAN, RSV = (
    1522, 1 << 16, 1 << 17, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 30, 1 << 31,
)  # fmt: skip
VMOLR = RSV | AUPE | BAM | LPE | RLPML
ONE_BUFFER, LEGACY, DROP = 0x02000002, 0x00000002, 1 << 31
DD, EOP, VP, LB = 1, 2, 8, 1 << 18


def mac(n: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, 0x10 + n])


@dataclass(frozen=True)
class Got:
    """A received frame. q0, q1: its descriptor as written back."""

    body: bytes
    q0: int
    q1: int

    @property
    def status(self) -> int:
        return self.q1 & 0xFFFFFFFF


class Pooled(Rig):
    """A NIC with VFs, pools and local switching on."""

    def __init__(self, vfs: int = 4, *, layout: int = ONE_BUFFER | DROP, connected: bool = True) -> None:
        super().__init__(vfs, connected=connected, chunks=vfs + 2)
        self.use_msix(PF, *range(vfs))
        self.link_up()
        self.bases = [self.domain(n + 1, n) for n in range(vfs)]
        self.base_of_pf = self.domain(99, PF)
        self.next = {(n, q): 0 for n in range(vfs) for q in (0, 1)}
        self.set(Regs.MRQC, MRQC.of(MODE=3).value)
        self.set(Regs.VT_CTL, 1 << 30 | 1 << 29)
        self.set(Regs.DTXSWC, DTXSWC.of(LOOPBACK_EN=1).value)
        self.set(Regs.RPLOLR, RSV)
        self.set(Regs.RXCSUM, 0x300)
        for n in range(8):
            self.set(Regs.VMOLR, VMOLR, n)
        for n in range(vfs):
            self.address(n, mac(n), 1 << n)
            for queue in (0, 1):
                self.open(n, queue, layout)
        self.set(Regs.VFRE, 0xFF)
        self.set(Regs.VFTE, 0xFF)
        self.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1).value)
        self.set(Regs.TCTL, TCTL.of(EN=1, PSP=1).value)
        self.get(Regs.ICR)
        self.take()

    def address(self, entry: int, address: bytes, pools: int) -> None:
        self.set(Regs.RAL, int.from_bytes(address[:4], "little"), entry)
        self.set(Regs.RAH, int.from_bytes(address[4:], "little") | pools << 18 | 1 << 31, entry)

    def vlan(self, entry: int, vid: int, pools: int, local: bool = False) -> None:
        self.set(Regs.VLVF, vid | pools << 12 | local << 20 | 1 << 31, entry)
        self.set(Regs.VFTA, self.get(Regs.VFTA, vid >> 5) | 1 << (vid & 31), vid >> 5)

    def open(self, n: int, queue: int, layout: int) -> None:
        at = queue * 0x400
        for i in range(SIZE):
            self.words(self.bases[n] + RX + at + 16 * i, BUFFERS + 0x20000 * queue + 2048 * i, 0)
        for decl, value in (
            (VfRegs.RDBAL, RX + at), (VfRegs.RDLEN, 16 * SIZE), (VfRegs.SRRCTL, layout), (VfRegs.RXDCTL, ENABLE),
            (VfRegs.RDT, SIZE - 1), (VfRegs.TDBAL, TX + at), (VfRegs.TDLEN, 16 * SIZE), (VfRegs.TXDCTL, ENABLE),
        ):  # fmt: skip
            self.set(decl, value, queue, vf=n)

    def post(self, n: int, *descriptors: tuple[int, int], queue: int = 0) -> None:
        """Give VF `n` descriptors to send, and let the port run."""
        tail = self.get(VfRegs.TDT, queue, vf=n)
        for pair in descriptors:
            self.words(self.bases[n] + TX + queue * 0x400 + 16 * tail, *pair)
            tail = (tail + 1) % SIZE
        self.set(VfRegs.TDT, tail, queue, vf=n)
        self.pass_time(10_000)

    def send(self, n: int, *frames: bytes, queue: int = 0) -> None:
        for i, body in enumerate(frames):
            self.store(self.bases[n] + DATA + 0x1000 * i, body)
            self.post(n, tuple(data_descriptor(DATA + 0x1000 * i, len(body))), queue=queue)

    def got(self, n: int, queue: int = 0) -> list[Got]:
        """Take what VF `n` received since the last call."""
        frames = []
        while True:
            i = self.next[n, queue]
            at = self.bases[n] + RX + queue * 0x400 + 16 * i
            q0, q1 = (int.from_bytes(self.load(at + 8 * k, 8), "little") for k in (0, 1))
            if not q1 & DD:
                return frames
            body = self.load(self.bases[n] + BUFFERS + 0x20000 * queue + 2048 * i, q1 >> 32 & 0xFFFF)
            frames.append(Got(body, q0, q1))
            self.words(at, BUFFERS + 0x20000 * queue + 2048 * i, 0)
            self.set(VfRegs.RDT, i, queue, vf=n)
            self.next[n, queue] = (i + 1) % SIZE

    def takers(self) -> list[int]:
        """Tell which VFs have received something on queue 0 since the last call."""
        return [n for n in range(len(self.bases)) if self.got(n)]


def untagged(n: int, m: int | None, size: int = 60) -> bytes:
    """Make a frame from VF `n` to VF `m`, or to someone on the wire."""
    return ethernet(b"\x02\0\0\0\0\x77" if m is None else mac(m), size, mac(n))
