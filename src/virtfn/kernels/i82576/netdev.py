"""The driver's end of a queue pair: fill transmit descriptors, reap finished ones, take received frames, refill.

    transmit   buffer i belongs to descriptor i; finished ones are told by the head that the device writes to memory
    receive    buffer i belongs to descriptor i; DD and EOP tell a frame; the tail follows one descriptor behind

One row a driver. The driver touches its own memory, by the guest's view of it, and two tail registers: plain stores
into a mapped page, without any exit. It knows nothing of how the device works.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.i82576.desc import (
    DESC_BYTES,
    RXD_DD,
    RXD_EOP,
    RXD_VP,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IDX_SHIFT,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
    TXD_TXSM,
    TXD_VLE,
)
from virtfn.kernels._jit import (
    Row,
    entry,
    inlined,
    kernel,
    load8,
    load16,
    load32_acquire,
    load64,
    part,
    row_at,
    row_of,
    store32_release,
    store64,
    store64_release,
)
from virtfn.kernels.netdev import ASK_CHECKSUM, ASK_SECOND, ASK_TAG, ENTRY_BYTES, NETDEV_NAMES
from virtfn.kernels.ranges import row_address

__all__ = ["RINGS", "new_rings"]

RINGS = row_of(
    NETDEV_NAMES +
    # addresses of the tail registers
    "tx_tail_register rx_tail_register "
    # rings, in the guest's view
    "tx_ring rx_ring "
    # buffers: address of the first for the device, and of received frames here
    "tx_iova rx_iova rx_buffers "
    # where the device writes the transmit head
    "tx_done_head "
    # cursors: the head that was seen last, and the next descriptor to look at
    "tx_reaped rx_next "
    # address of 4096 bits, a VLAN each: tags of these are the guest's to see
    "vlans "
    # 1 while descriptors belong to a frame that came in pieces, which this driver does not take
    "in_pieces"
)
rings_at = row_at(RINGS)

_SEND = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT | TXD_IFCS
_HEADER = 14


def new_rings() -> npt.NDArray[np.void]:
    """Make the row of a driver, as (1,) RINGS, everything off."""
    row = np.zeros(1, RINGS)
    row_address(row, "a driver's rings")
    for name, function in (("tx_room", tx_room), ("tx_send", tx_send), ("rx_take", rx_take), ("rx_return", rx_return)):
        row[name] = entry(function, 2)
    return row


@kernel
def tx_room(address: int, _: int) -> int:
    """Descriptors free for sending, after reaping what the device has finished; one always stays empty."""
    d = rings_at(address)
    d.tx_reaped = load32_acquire(d.tx_done_head)
    free = d.tx_reaped - d.tx_tail - 1
    return free if free >= 0 else free + d.tx_size


@kernel
def tx_send(address: int, count: int) -> int:
    """Hand the next buffers to the ring and show the device the tail. It tells when the last of them is done."""
    d = rings_at(address)
    tail = d.tx_tail
    size = d.tx_size
    ring = d.tx_ring
    lengths = d.tx_lengths
    iova = d.tx_iova
    step = d.buffer_bytes
    total = 0
    for i in range(count):
        length = load64(lengths + tail * 8)
        asked = 0
        if length >= ASK_CHECKSUM:
            asked = TXD_TXSM if length & ASK_CHECKSUM else 0
            asked |= (TXD_VLE if length & ASK_TAG else 0) | (1 << TXD_IDX_SHIFT if length & ASK_SECOND else 0)
            length &= ASK_CHECKSUM - 1
        at = ring + tail * DESC_BYTES
        store64(at, iova + tail * step)
        store64(at + 8, _SEND | (TXD_RS if i == count - 1 else 0) | length | length << TXD_PAYLEN_SHIFT | asked)
        tail = tail + 1 if tail + 1 < size else 0
        total += length
    d.tx_tail = tail
    d.tx_frames += count
    d.tx_bytes += total
    store32_release(d.tx_tail_register, tail)
    return 0


@inlined
def frame_length(d: Row, status: int, at: int) -> int:
    """Tell how long the frame of a finished descriptor is; 0 if there is none, as in a frame that comes in pieces.

    A wrong checksum inside the frame is no reason to drop it: that is for the stack above to decide.
    """
    length = load16(at + 12)
    if status & RXD_EOP and d.in_pieces == 0 and _HEADER <= length <= d.buffer_bytes:
        return length
    d.rx_errors += 1 - d.in_pieces
    d.in_pieces = 0 if status & RXD_EOP else 1
    return 0


@part
def own_tag(d: Row, tag: int) -> int:
    """Return a tag that the device took out, -1 for one of a VLAN that is the host's and not the guest's."""
    vid = tag & 0xFFF
    return tag if load8(d.vlans + (vid >> 3)) >> (vid & 7) & 1 else -1


@kernel
def rx_take(address: int, most: int) -> int:
    """List received frames, in order."""
    d = rings_at(address)
    listed = d.taken
    next_one = d.rx_next
    size = d.rx_size
    ring = d.rx_ring
    buffers = d.rx_buffers
    step = d.buffer_bytes
    tags = d.bounce != 0
    count = 0
    frames = 0
    total = 0
    while count < most:
        at = ring + next_one * DESC_BYTES
        status = load32_acquire(at + 8)
        if not status & RXD_DD:
            break
        length = frame_length(d, status, at)
        frames += length > 0
        total += length
        store64(listed, buffers + next_one * step)
        store64(listed + 8, length)
        if tags:
            store64(listed + 16, own_tag(d, load16(at + 14)) if status & RXD_VP else -1)
        listed += ENTRY_BYTES
        next_one = next_one + 1 if next_one + 1 < size else 0
        count += 1
    d.rx_frames += frames
    d.rx_bytes += total
    return count


@kernel
def rx_return(address: int, count: int) -> int:
    """Give descriptors back to the ring and show the device the tail; one always stays empty."""
    d = rings_at(address)
    next_one = d.rx_next
    size = d.rx_size
    ring = d.rx_ring
    iova = d.rx_iova
    step = d.buffer_bytes
    for _ in range(count):
        at = ring + next_one * DESC_BYTES
        store64(at + 8, 0)
        store64_release(at, iova + next_one * step)
        next_one = next_one + 1 if next_one + 1 < size else 0
    d.rx_next = next_one
    store32_release(d.rx_tail_register, next_one - 1 if next_one > 0 else size - 1)
    return 0
