"""What a driver shows to the work above it: frames in batches, whatever its rings are like.

    send   fill the next transmit buffers, their lengths in `tx_lengths`, and call `tx_send`
    take   call `rx_take`, look at the frames that it lists, and call `rx_return`

    transmit   buffer i is at tx_buffers + i * buffer_bytes; the free ones begin with tx_tail, in a circle of tx_size
    receive    rx_take lists up to BATCH frames in `taken`: (BATCH, 3) of address, length, tag

A length to send has, from ASK_CHECKSUM on, what the card shall do: insert the transport checksum, insert a VLAN tag,
and by which of the two contexts that the driver was told.

A received length of 0 is none: what lies there is to be returned with the rest. The tag is that of a VLAN, which it
took out of the frame, a number of 16 bits; -1 if it took none.

A driver's state begins with a NETDEV row; its address is `netdev` here:

    tx_room    (netdev, 0) -> how many frames can be sent now
    tx_send    (netdev, count) -> 0
    rx_take    (netdev, most) -> how many frames are listed
    rx_return  (netdev, count) -> 0: the first so many may be overwritten
"""

from __future__ import annotations

from virtfn.kernels._jit import by_address, row_at, row_of

__all__ = [
    "ASK_CHECKSUM",
    "ASK_SECOND",
    "ASK_TAG",
    "BATCH",
    "ENTRY_BYTES",
    "NETDEV",
    "NETDEV_NAMES",
    "call_netdev",
    "netdev_at",
]

BATCH = 64
ENTRY_BYTES = 24
ASK_CHECKSUM, ASK_TAG, ASK_SECOND = 1 << 20, 1 << 21, 1 << 22

NETDEV_NAMES = (
    # the kernels: `entry` of each
    "tx_room tx_send rx_take rx_return "
    # transmit buffers: how many, address of the first, bytes of each; the next one; address of lengths, 64 bits each
    "tx_size tx_buffers buffer_bytes tx_tail tx_lengths "
    # bytes of the longest frame that it sends, without frame check sequence
    "longest "
    # frames that a receive ring holds at most; where `rx_take` lists them
    "rx_size taken "
    # room for one frame whose tag is put back; 0: tags are left out
    "bounce "
    # 1 while frames are wanted; 1 while the receive interrupt is masked and the guest polls; empty polls in a row
    "up polling empty_polls "
    # statistics
    "tx_frames tx_bytes rx_frames rx_bytes rx_errors "
)
NETDEV = row_of(NETDEV_NAMES)
netdev_at = row_at(NETDEV)
call_netdev = by_address(2)
