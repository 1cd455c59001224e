"""The driver's side of a pair of virtqueues: fill and send buffers, take received frames, make room again.

    transmit   buffer i belongs to descriptor i: a header of 12 bytes, then the frame
    receive    the same, all of them available from the start

Descriptors never change after they were written, but for the length of what is sent; heads are made available in a
circle, and a device that gives back another one than it was given next is broken. One row a driver.
Spec: virtio 1.3, 2.7.13, 5.1.6.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import HEADER_BYTES as ETHERNET_BYTES
from virtfn.hw.virtio.net import HEADER_BYTES, NEEDS_CSUM
from virtfn.hw.virtio.ring import AVAIL_INDEX, AVAIL_RING, DESC_BYTES, NO_INTERRUPT, NO_NOTIFY, USED_ENTRY, USED_RING
from virtfn.kernels._jit import (
    Row,
    entry,
    fence,
    inlined,
    kernel,
    load16,
    load16_acquire,
    load32,
    load64,
    row_at,
    row_of,
    store16,
    store16_release,
    store32,
    store64,
)
from virtfn.kernels.netdev import ASK_CHECKSUM, ASK_SECOND, ENTRY_BYTES, NETDEV_NAMES
from virtfn.kernels.ranges import row_address
from virtfn.kernels.virtio.channel import let_sleep, passed, wake

__all__ = ["VIRTIO_RINGS", "new_rings", "quiet", "rearm"]

VIRTIO_RINGS = row_of(
    NETDEV_NAMES +
    # parts of the queues, in the guest's view
    "tx_desc tx_avail tx_used rx_desc rx_avail rx_used "
    # the first receive buffer, at its header; bytes of a frame that one holds
    "rx_buffers rx_longest "
    # whether EVENT_IDX was agreed on; address of the CHANNEL row that kicks go by
    "event_idx tx_kick "
    # indices: sent; given back; of received frames: looked at and returned; made available
    "tx_index tx_reaped rx_index rx_filled "
    # the two contexts: where the transport header is, and its checksum behind that
    "context0_start context0_offset context1_start context1_offset "
    # the device gave back what makes no sense; buffers that still come of a frame that is not taken
    "broken in_pieces"
)
rings_at = row_at(VIRTIO_RINGS)


def new_rings() -> npt.NDArray[np.void]:
    """Make the row of a driver, as (1,) VIRTIO_RINGS, everything off."""
    row = np.zeros(1, VIRTIO_RINGS)
    row_address(row, "a virtio driver's rings")
    for name, function in (("tx_room", tx_room), ("tx_send", tx_send), ("rx_take", rx_take), ("rx_return", rx_return)):
        row[name] = entry(function, 2)
    return row


@kernel
def tx_room(address: int, _: int) -> int:
    """Buffers free for sending, after reaping what the device has finished."""
    d = rings_at(address)
    index = load16_acquire(d.tx_used + AVAIL_INDEX)
    while d.tx_reaped != index and not d.broken:
        slot = d.tx_reaped & (d.tx_size - 1)
        if load32(d.tx_used + USED_RING + USED_ENTRY * slot) != slot:
            d.broken = 1
        d.tx_reaped = (d.tx_reaped + 1) & 0xFFFF
    if d.event_idx:
        # What has been reaped already: nobody is to be woken for more.
        store16(d.tx_avail + AVAIL_RING + 2 * d.tx_size, d.tx_reaped - 1)
    return 0 if d.broken else d.tx_size - ((d.tx_index - d.tx_reaped) & 0xFFFF)


@kernel
def tx_send(address: int, count: int) -> int:
    """Make the next buffers available, and wake the device if it waits for that."""
    d = rings_at(address)
    mask = d.tx_size - 1
    begun = d.tx_index
    total = 0
    for i in range(count):
        slot = (begun + i) & mask
        length = load64(d.tx_lengths + slot * 8)
        header = d.tx_buffers + slot * d.buffer_bytes - HEADER_BYTES
        store64(header, 0)
        store32(header + 8, 0)
        if length >= ASK_CHECKSUM:
            if length & ASK_CHECKSUM:
                second = length & ASK_SECOND
                start = d.context1_start if second else d.context0_start
                store64(header, NEEDS_CSUM | start << 48)
                store16(header + 8, d.context1_offset if second else d.context0_offset)
            length &= ASK_CHECKSUM - 1
        store32(d.tx_desc + slot * DESC_BYTES + 8, HEADER_BYTES + length)
        store16(d.tx_avail + AVAIL_RING + 2 * slot, slot)
        total += length
    d.tx_index = (begun + count) & 0xFFFF
    d.tx_tail = d.tx_index & mask
    d.tx_frames += count
    d.tx_bytes += total
    store16_release(d.tx_avail + AVAIL_INDEX, d.tx_index)
    fence()  # the device asks for a kick, then looks at the index
    if d.event_idx:
        wanted = passed(load16(d.tx_used + USED_RING + USED_ENTRY * d.tx_size), d.tx_index, begun)
    else:
        wanted = not load16(d.tx_used) & NO_NOTIFY
    if wanted:
        wake(d.tx_kick)
    else:
        let_sleep(d.tx_kick)
    return 0


@inlined
def received_length(d: Row, slot: int, header: int) -> int:
    """Tell how long the frame in buffer `slot` is; 0 if there is none, as in one that comes in several buffers."""
    at = d.rx_used + USED_RING + USED_ENTRY * slot
    length = load32(at + 4) - HEADER_BYTES
    if load32(at) != slot:
        d.broken = 1
        return 0
    if d.in_pieces:
        d.in_pieces -= 1
        return 0
    if not ETHERNET_BYTES <= length <= d.rx_longest:
        d.rx_errors += 1
        return 0
    buffers = load16(header + 10)
    if buffers > 1:
        d.in_pieces = buffers - 1
        d.rx_errors += 1
        return 0
    return length


@kernel
def rx_take(address: int, most: int) -> int:
    """List received frames, in order."""
    d = rings_at(address)
    index = load16_acquire(d.rx_used + AVAIL_INDEX)
    mask = d.rx_size - 1
    listed = d.taken
    count = frames = total = 0
    while count < most and (d.rx_index + count) & 0xFFFF != index and not d.broken:
        slot = (d.rx_index + count) & mask
        header = d.rx_buffers + slot * d.buffer_bytes
        length = received_length(d, slot, header)
        store64(listed, header + HEADER_BYTES)
        store64(listed + 8, length)
        store64(listed + 16, -1)
        frames += length > 0
        total += length
        listed += ENTRY_BYTES
        count += 1
    d.rx_frames += frames
    d.rx_bytes += total
    return count


@kernel
def rx_return(address: int, count: int) -> int:
    """Make buffers available again. The device drops what finds no room, so it waits for no kick here."""
    d = rings_at(address)
    mask = d.rx_size - 1
    for _ in range(count):
        store16(d.rx_avail + AVAIL_RING + 2 * (d.rx_filled & mask), d.rx_index & mask)
        d.rx_index = (d.rx_index + 1) & 0xFFFF
        d.rx_filled = (d.rx_filled + 1) & 0xFFFF
    store16_release(d.rx_avail + AVAIL_INDEX, d.rx_filled)
    return 0


@kernel
def quiet(address: int) -> None:
    """Ask for no interrupts while frames are polled for; with EVENT_IDX the index that was asked for is behind."""
    d = rings_at(address)
    if not d.event_idx:
        store16(d.rx_avail, NO_INTERRUPT)


@kernel
def rearm(address: int) -> bool:
    """Ask for an interrupt at the next frame. False if there is one already: then there may be no interrupt for it."""
    d = rings_at(address)
    if d.event_idx:
        store16(d.rx_avail + AVAIL_RING + 2 * d.rx_size, d.rx_index)
    else:
        store16(d.rx_avail, 0)
    fence()  # the device shows its index, then looks whether an interrupt is wanted
    return load16_acquire(d.rx_used + AVAIL_INDEX) == d.rx_index
