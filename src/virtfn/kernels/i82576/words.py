"""Accesses to registers without Python: to those that are no more than memory, which drivers use all the time.

    REGISTER    a stored value; a read may clear bits, or set them
    RUNS_ON     a counter that wraps at 32 bits
    CLEARED     a counter that a read clears, and that stays at its end
    HIGH        the high half of a counter of 64 bits, which its read clears

Counters of the data plane never go back: what a read clears is remembered as a base. Python fills the table, in which a
row of zeros is a word that Python itself reads and writes.
"""

from __future__ import annotations

from virtfn.hw.i82576.regs import BAR0_BYTES, VFS
from virtfn.hw.i82576.vfregs import VF_BAR0_BYTES
from virtfn.kernels._jit import Row, kernel, load32, load64, row_of, store32, store64

__all__ = [
    "CLEARED",
    "HIGH",
    "PF_WORDS",
    "REGISTER",
    "RUNS_ON",
    "VF_WORDS",
    "WORD",
    "WORDS",
    "read_word",
    "write_word",
]

# kind; address of the stored value or the counter, and of the counter's base; bits that a read clears, sets and hides;
# whether a write is no more than memory; bits that it stores, and that a written 1 clears and sets
WORD = row_of("kind at base clears sets hidden writable stores drops raises")
PF_WORDS, VF_WORDS = BAR0_BYTES // 4, VF_BAR0_BYTES // 4
WORDS = PF_WORDS + VFS * VF_WORDS
REGISTER, RUNS_ON, CLEARED, HIGH = range(1, 5)
_M32 = 0xFFFFFFFF


@kernel
def read_word(row: Row, take: int) -> int:
    """Read a register; -1, and nothing is done, where that is for Python.

    take: whether what a read clears and sets is cleared and set.
    """
    if row.kind == REGISTER:
        value = load32(row.at)
        left = value & ~row.clears | row.sets
        if take and left != value:
            store32(row.at, left)
        return value & ~row.hidden
    if row.kind == 0:
        return -1
    total = load64(row.at)
    count = total - load64(row.base)
    if row.kind == RUNS_ON:
        return count & _M32
    if take:
        store64(row.base, total)
    return min(count, _M32) if row.kind == CLEARED else count >> 32 & _M32


@kernel
def write_word(row: Row, written: int, take: int) -> int:
    """Write a register; 0, and nothing is done, where that is for Python.

    take: whether it is written, or only asked.
    """
    if take and row.writable:
        old = load32(row.at)
        store32(row.at, (old & ~row.stores | written & row.stores) & ~(written & row.drops) | written & row.raises)
    return row.writable
