"""An 82576 without pools: the PF has the port to itself, with one pair of queues in memory of its own."""

from __future__ import annotations

from conformance.pooled import ONE_BUFFER, STRVLAN, VMOLR
from conformance.rig import PF, Rig
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.fields import CTRL
from virtfn.hw.i82576.rxtx import RCTL, TCTL

ENABLE = 1 << 25


class Whole(Rig):
    """A port without pools: one pair of queues, the PF's."""

    RX, TX, BUFFERS, DATA = 0x1000, 0x2000, 0x10000, 0x80000

    def __init__(self, ctrl: CTRL) -> None:
        super().__init__(connected=True)
        self.base = self.domain(1, PF)
        self.used = 0
        self.set(Regs.CTRL, ctrl.replace(FD=1, SLU=1).value)
        self.set(Regs.VMOLR, VMOLR | STRVLAN * (not ctrl.VME))  # it must not matter
        for i in range(8):
            self.words(self.base + self.RX + 16 * i, self.BUFFERS + 2048 * i, 0)
        for decl, value in (
            (Regs.RDBAL, self.RX), (Regs.RDLEN, 128), (Regs.SRRCTL, ONE_BUFFER), (Regs.RXDCTL, ENABLE), (Regs.RDT, 7),
            (Regs.TDBAL, self.TX), (Regs.TDLEN, 128), (Regs.TXDCTL, ENABLE),
        ):  # fmt: skip
            self.set(decl, value)
        self.set(Regs.RCTL, RCTL.of(RXEN=1, UPE=1, BAM=1).value)
        self.set(Regs.TCTL, TCTL.of(EN=1, PSP=1).value)

    def got(self) -> tuple[bytes, int]:
        """Take the next received frame: its bytes, and the second word of its descriptor."""
        q1 = int.from_bytes(self.load(self.base + self.RX + 16 * self.used + 8, 8), "little")
        body = self.load(self.base + self.BUFFERS + 2048 * self.used, q1 >> 32 & 0xFFFF)
        self.used += 1
        return body, q1
