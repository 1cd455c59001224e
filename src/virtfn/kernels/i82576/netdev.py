"""The driver's end of a queue pair: fill transmit descriptors, reap finished ones, take received frames, refill.

    transmit   buffer i belongs to descriptor i; finished ones are told by the head that the device writes to memory
    receive    buffer i belongs to descriptor i; DD and EOP tell a frame; the tail follows one descriptor behind

One row a driver. The driver touches its own memory, by the guest's view of it, and two tail registers: plain stores
into a mapped page, without any exit. It knows nothing of how the device works.
"""

from __future__ import annotations

import numpy as np

from virtfn.hw.eth import VLAN_LOADED
from virtfn.hw.i82576.desc import (
    RXD_DD,
    RXD_EOP,
    RXD_VP,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)
from virtfn.kernels._jit import (
    Row,
    copy_bytes,
    inlined,
    kernel,
    load16,
    load32_acquire,
    row_at,
    store16,
    store32_release,
    store64,
    store64_release,
)

__all__ = ["NETDEV", "netdev_at", "rx_done", "rx_frame", "rx_release", "rx_retag", "tx_kick", "tx_push", "tx_room"]

NETDEV = np.dtype(
    [
        (name, np.int64)
        for name in (
            # addresses of the tail registers
            "tx_tail_register rx_tail_register "
            # rings, in the guest's view, and their lengths in descriptors
            "tx_ring rx_ring tx_size rx_size "
            # buffers: address for the device, address here, bytes of one
            "tx_iova tx_buffers rx_iova rx_buffers buffer_bytes "
            # where the device writes the transmit head
            "tx_done_head "
            # room for one frame whose stripped VLAN tag is put back
            "bounce "
            # cursors
            "tx_tail tx_reaped rx_next "
            # 1 while descriptors belong to a frame that came in pieces, which this driver does not take
            "in_pieces "
            # 1 while the receive interrupt is masked and the guest polls; empty polls in a row
            "up polling empty_polls "
            # statistics
            "tx_frames tx_bytes rx_frames rx_bytes rx_errors"
        ).split()
    ]
)

netdev_at = row_at(NETDEV)

_SEND = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT | TXD_IFCS


@kernel
def tx_room(d: Row) -> int:
    """Descriptors free for sending, after reaping what the device has finished."""
    d.tx_reaped = load32_acquire(d.tx_done_head)
    free = d.tx_reaped - d.tx_tail - 1
    return free if free >= 0 else free + d.tx_size


@inlined
def tx_buffer(d: Row) -> int:
    """Address of the buffer that the next frame goes into."""
    return d.tx_buffers + d.tx_tail * d.buffer_bytes


@inlined
def tx_push(d: Row, length: int, report: bool) -> None:
    """Hand the next buffer, filled with `length` bytes, to the ring. report: ask the device to tell when it is done."""
    at = d.tx_ring + d.tx_tail * 16
    store64(at, d.tx_iova + d.tx_tail * d.buffer_bytes)
    store64(at + 8, _SEND | (TXD_RS if report else 0) | length | length << TXD_PAYLEN_SHIFT)
    d.tx_tail = d.tx_tail + 1 if d.tx_tail + 1 < d.tx_size else 0
    d.tx_frames += 1
    d.tx_bytes += length


@kernel
def tx_kick(d: Row) -> None:
    """Show the device the new tail."""
    store32_release(d.tx_tail_register, d.tx_tail)


@inlined
def rx_frame(d: Row) -> int:
    """Length of the next received frame; 0 if there is none, -1 if more of it follows, -2 if it is empty.

    A wrong checksum inside the frame is no reason to drop it: that is for the stack above to decide.
    """
    at = d.rx_ring + d.rx_next * 16
    status = load32_acquire(at + 8)
    if not status & RXD_DD:
        return 0
    if not status & RXD_EOP:
        return -1
    length = load16(at + 12)
    return length if length > 0 else -2


@inlined
def rx_buffer(d: Row) -> int:
    """Address of the next received frame."""
    return d.rx_buffers + d.rx_next * d.buffer_bytes


@kernel
def rx_retag(d: Row, length: int) -> int:
    """Put the VLAN tag that the device stripped back into a copy of the next received frame; 0 if it stripped none.

    Returns the address of the copy, 4 bytes longer than `length`.
    """
    at = d.rx_ring + d.rx_next * 16
    if not load32_acquire(at + 8) & RXD_VP or d.bounce == 0:
        return 0
    frame = rx_buffer(d)
    tci = load16(at + 14)
    copy_bytes(d.bounce, frame, 12)
    store16(d.bounce + 12, VLAN_LOADED)
    store16(d.bounce + 14, (tci & 0xFF) << 8 | tci >> 8)
    copy_bytes(d.bounce + 16, frame + 12, length - 12)
    return d.bounce


@inlined
def rx_release(d: Row) -> None:
    """Give the descriptor of the frame just taken back to the ring."""
    at = d.rx_ring + d.rx_next * 16
    store64(at + 8, 0)
    store64_release(at, d.rx_iova + d.rx_next * d.buffer_bytes)
    d.rx_next = d.rx_next + 1 if d.rx_next + 1 < d.rx_size else 0


@kernel
def rx_done(d: Row) -> None:
    """Show the device the descriptors given back; one always stays empty."""
    store32_release(d.rx_tail_register, d.rx_next - 1 if d.rx_next > 0 else d.rx_size - 1)
