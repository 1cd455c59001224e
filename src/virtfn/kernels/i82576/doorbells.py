"""What a driver writes all the time, at its offset of BAR0: the tails of its queues, and EIMS. A PF has these, too.

Spec: 82576 datasheet, chapter "Programming Interface", VF register summary.
"""

from __future__ import annotations

from virtfn.hw.i82576.vfregs import VF_QUEUES, VfRegs
from virtfn.kernels._jit import Row, kernel
from virtfn.kernels.i82576.ring import TAIL
from virtfn.kernels.i82576.state import POOLS

__all__ = ["EIMS", "tail_at"]

EIMS = VfRegs.VTEIMS.offset
_RDT, _TDT = VfRegs.RDT.offset, VfRegs.TDT.offset
PF_WINDOWS = 4


@kernel
def tail_at(nic: Row, table: int, offset: int) -> int:
    """Find the tail register at an offset of BAR0; 0 if there is none, or its queue stands still."""
    sends = offset >= _TDT
    distance = offset - _TDT if sends else offset - _RDT
    i = distance >> 8
    if distance & 0xFF or not 0 <= i < (VF_QUEUES if table < POOLS else PF_WINDOWS):
        return 0
    q = table + i * POOLS if table < POOLS else i
    regs = nic.tx[q].regs if sends else nic.rx[q].regs
    return regs + TAIL if regs else 0
