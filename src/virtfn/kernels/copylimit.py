"""The yardstick of the data plane: a plain copy between the same buffers, in the same order, and nothing else."""

from __future__ import annotations

from virtfn.kernels._jit import copy_bytes, kernel
from virtfn.kernels.i82576.netdev import netdev_at

__all__ = ["copy_buffers"]


@kernel
def copy_buffers(source: int, target: int, length: int, count: int) -> int:
    """Copy `count` frames of `length` bytes from one driver's transmit buffers to another's receive buffers.

    source, target: addresses of NETDEV rows of equal ring and buffer sizes. Returns the frames copied.
    """
    a = netdev_at(source)
    b = netdev_at(target)
    i = 0
    for _ in range(count):
        copy_bytes(b.rx_buffers + i * b.buffer_bytes, a.tx_buffers + i * a.buffer_bytes, length)
        i = i + 1 if i + 1 < a.tx_size else 0
    return count
