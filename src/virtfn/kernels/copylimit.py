"""The yardstick of the data plane: a plain copy between the same buffers, in the same order, and nothing else."""

from __future__ import annotations

from virtfn.kernels._jit import copy_bytes, kernel, load64
from virtfn.kernels.netdev import ASK_CHECKSUM

__all__ = ["copy_buffers"]


@kernel
def copy_buffers(source: int, target: int, step: int, buffers: int, lengths: int, count: int) -> int:
    """Copy `count` frames from one driver's transmit buffers to another's receive buffers.

    source, target: addresses of the first of so many buffers, `step` bytes each. lengths: address of as many 64-bit
    words, whose low 20 bits are lengths. Returns the frames copied.
    """
    i = 0
    for _ in range(count):
        copy_bytes(target + i * step, source + i * step, load64(lengths + i * 8) & ASK_CHECKSUM - 1)
        i = i + 1 if i + 1 < buffers else 0
    return count
