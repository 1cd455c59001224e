"""Rings for single queues of a rig without pools' set-up, and switches that let frames move."""

from __future__ import annotations

from conformance.rig import BROADCAST, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.rxtx import MRQC, RCTL, TCTL

ENABLE = 1 << 25
RX, TX, DATA, BUFFER = 0x1000, 0x2000, 0x10000, 0x20000


def open_queues(rig: Rig, base: int, domain: int, n: int | None, queue: int = 0) -> None:
    """Give a function's queue rings of 8 and 2 KiB buffers, in 2 MiB of memory of its own."""
    regs = Regs if n is None else VfRegs
    for i in range(8):
        rig.words(base + RX + 16 * i, BUFFER + 2048 * i, 0)
    for decl, value in (
        (regs.RDBAL, RX), (regs.RDLEN, 128), (regs.SRRCTL, 0x82000002), (regs.RXDCTL, ENABLE), (regs.RDT, 7),
        (regs.TDBAL, TX), (regs.TDLEN, 128), (regs.TXDCTL, ENABLE),
    ):  # fmt: skip
        rig.set(decl, value, queue, vf=n)


def post(rig: Rig, base: int, n: int | None, queue: int = 0, size: int = 60) -> None:
    """Send one broadcast."""
    regs = Regs if n is None else VfRegs
    tail = rig.get(regs.TDT, queue, vf=n)
    rig.store(base + DATA, ethernet(BROADCAST, size))
    rig.words(base + TX + 16 * tail, *data_descriptor(DATA, size))
    rig.set(regs.TDT, (tail + 1) % 8, queue, vf=n)


def move_frames(rig: Rig, mode: int = 3) -> None:
    """Let frames be received and sent."""
    rig.link_up()
    rig.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1).value)
    rig.set(Regs.TCTL, TCTL.of(EN=1).value)
    rig.set(Regs.MRQC, MRQC.of(MODE=mode).value)
    for n in range(8):
        rig.set(Regs.VMOLR, 0x8900_0000 | 1522 | 1 << 16, n)
    rig.set(Regs.VFRE, 0xFF)
    rig.set(Regs.VFTE, 0xFF)
    rig.set(Regs.VT_CTL, 1 << 30)
    rig.nic.port.settle()
    rig.get(Regs.ICR)
    rig.take()
