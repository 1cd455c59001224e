"""Reads of registers, without Python: of those that need no more than memory, which drivers ask for all the time.

    REGISTER    a stored value; a read may clear bits, or set them
    RUNS_ON     a counter that wraps at 32 bits
    CLEARED     a counter that a read clears, and that stays at its end
    HIGH        the high half of a counter of 64 bits, which its read clears

Counters of the data plane never go back: what a read clears is remembered as a base. Python fills the table, in which a
row of zeros is a word that Python itself reads.
"""

from __future__ import annotations

from virtfn.hw.i82576.regs import BAR0_BYTES
from virtfn.hw.i82576.vfregs import VF_BAR0_BYTES
from virtfn.kernels._jit import Row, kernel, load32, load64, row_of, store32, store64

__all__ = ["CLEARED", "HIGH", "READ", "READS", "REGISTER", "RUNS_ON", "first_read", "read_register"]

# kind; address of the stored value or the counter, and of the counter's base; bits that a read clears, sets and hides
READ = row_of("kind at base clears sets hidden")
_POOLS = 8
_PF_WORDS, _VF_WORDS = BAR0_BYTES // 4, VF_BAR0_BYTES // 4
READS = _PF_WORDS + _POOLS * _VF_WORDS
REGISTER, RUNS_ON, CLEARED, HIGH = range(1, 5)
_M32 = 0xFFFFFFFF


@kernel
def first_read(function: int) -> int:
    """Find the row of the first word of a function's BAR0. function: a pool, or any other number for the PF."""
    return _PF_WORDS + function * _VF_WORDS if 0 <= function < _POOLS else 0


@kernel
def read_register(row: Row, take: int) -> int:
    """Read one register; -1, and nothing is done, where that is for Python.

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
