"""What a driver writes all the time, at its offset of BAR0: the tails of its queues, and EIMS; and plain registers.

A PF has those of its first queues at the same offsets as a VF, and those of all queues at others.

Spec: 82576 datasheet, chapter "Programming Interface", VF register summary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.i82576.regs import Regs
from virtfn.hw.i82576.vfregs import VF_QUEUES, VfRegs
from virtfn.kernels._jit import entry, kernel, store32_release
from virtfn.kernels.i82576.port import enable_vectors, fire_vectors, serve_port
from virtfn.kernels.i82576.ring import TAIL
from virtfn.kernels.i82576.state import POOLS, QUEUES, nic_at
from virtfn.kernels.i82576.words import PF_WORDS, VF_WORDS, read_word, write_word

__all__ = ["plug_in", "read", "write"]

EIMS = VfRegs.VTEIMS.offset
_RDT, _TDT = VfRegs.RDT.offset, VfRegs.TDT.offset
_PF_RDT, _PF_TDT, _PF_SHIFT = Regs.RDT.offset, Regs.TDT.offset, Regs.RDT.stride.bit_length() - 1
_EIMS_TOKEN = 1
PF_WINDOWS = 4


@kernel
def doorbell(address: int, function: int, offset: int) -> int:
    """Find a register that drivers write all the time: a token for `ring`, or 0 if there is none at `offset`.

    function: a pool, or POOLS for the PF. A queue that stands still has no tail.
    """
    if offset == EIMS:
        return _EIMS_TOKEN
    nic = nic_at(address)
    if offset >= _PF_RDT:
        sends = offset >= _PF_TDT
        distance = offset - _PF_TDT if sends else offset - _PF_RDT
        q = distance >> _PF_SHIFT
        if function < POOLS or distance & (1 << _PF_SHIFT) - 1 or not 0 <= q < QUEUES:
            return 0
    else:
        sends = offset >= _TDT
        distance = offset - _TDT if sends else offset - _RDT
        i = distance >> 8
        if distance & 0xFF or not 0 <= i < (VF_QUEUES if function < POOLS else PF_WINDOWS):
            return 0
        q = function + i * POOLS if function < POOLS else i
    regs = nic.tx[q].regs if sends else nic.rx[q].regs
    return regs + TAIL if regs else 0


@kernel
def ring(address: int, token: int, written: int, first: int, vectors: int) -> int:
    """Do a write that `doorbell` has found. first, vectors: of the function, the latter as bits."""
    if token == _EIMS_TOKEN:
        enable_vectors(nic_at(address), written << first & vectors)
    else:
        store32_release(token, written & 0xFFFF)
    return 0


@kernel
def read(address: int, function: int, offset: int, take: int) -> int:
    """Read 4 bytes at `offset` of BAR0; -1, and nothing is done, where that is for Python.

    function: a pool, or POOLS for the PF. take: whether what a read clears and sets is cleared and set.
    """
    word = word_of(function, offset)
    return read_word(nic_at(address).words[word], take) if word >= 0 else -1


@kernel
def write(address: int, function: int, offset: int, written: int, take: int) -> int:
    """Write 4 bytes at `offset` of BAR0; 0, and nothing is done, where that is for Python.

    function: a pool, or POOLS for the PF. take: whether it is done, or only asked.
    """
    word = word_of(function, offset)
    return write_word(nic_at(address).words[word], written, take) if word >= 0 else 0


@kernel
def word_of(function: int, offset: int) -> int:
    """Find the number of the WORD row at `offset` of BAR0; -1 where no word can be."""
    vf = function < POOLS
    word = offset >> 2
    if offset & 3 or not 0 <= word < (VF_WORDS if vf else PF_WORDS):
        return -1
    return PF_WORDS + function * VF_WORDS + word if vf else word


def plug_in(block: npt.NDArray[np.void]) -> None:
    """Let kernels that know only cards call this one. block: (1,) NIC."""
    card = block[0]["card"]
    for name, function, arguments in (
        ("serve", serve_port, 3),
        ("fire", fire_vectors, 2),
        ("doorbell", doorbell, 3),
        ("ring", ring, 5),
        ("read", read, 4),
        ("write", write, 5),
    ):
        card[name] = entry(function, arguments)
