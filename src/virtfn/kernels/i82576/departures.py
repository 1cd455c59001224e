"""Frames that leave by the wire wait in a store, from which the uplink takes them.

    | length, 4 bytes, big-endian | frame | length | frame | ...      no gaps, never more than the store
    ^ departed_head                                 ^ departed_tail

The layout is that of a stream uplink, so what waits is sent as it is. A store that is full drops frames: a peer that
does not read stops nobody. Short IPv4 frames may leave without their padding: what is no cable does not need it, and
Debian 12's passt drops packets that are shorter than their frame.
"""

from __future__ import annotations

from virtfn.hw.eth import HEADER_BYTES, IPV4_LOADED, MIN_FRAME
from virtfn.kernels._jit import Row, copy_bytes, inlined, kernel, load16, store32, unlikely
from virtfn.kernels.csum import swap16, swap32
from virtfn.kernels.i82576.seen import copy_frame, drop_seen
from virtfn.kernels.i82576.state import DEPARTURE_BYTES, DROP_UPLINK_FULL, WIRE
from virtfn.kernels.streams import LENGTH_BYTES

__all__ = ["book", "depart", "forget"]

_IPV4_HEADER = 20


@inlined
def book(nic: Row, length: int) -> int:
    """Take room for a frame of `length` bytes in the store; return where it goes, 0 if the store is full."""
    p = nic.port
    if unlikely(p.departed_tail + LENGTH_BYTES + length > DEPARTURE_BYTES):
        return 0
    at = p.departures + p.departed_tail
    store32(at, swap32(length))
    p.departed_tail += LENGTH_BYTES + length
    nic.card.departed += 1
    return at + LENGTH_BYTES


@kernel
def depart(nic: Row, head: int, body: int, length: int) -> None:
    """Put a frame where the uplink takes it from, or drop and count it."""
    p = nic.port
    if p.departed_bare and length <= MIN_FRAME:
        length = unpadded(head, length)
    at = book(nic, length)
    if at:
        copy_frame(at, head, body, length)
    else:
        drop_seen(nic, WIRE, 1, DROP_UPLINK_FULL, head, body, length)


@kernel
def unpadded(head: int, length: int) -> int:
    """Return the length of a short frame without what fills it up behind an IPv4 packet."""
    if length < HEADER_BYTES + _IPV4_HEADER or load16(head + 12) != IPV4_LOADED:
        return length
    total = swap16(load16(head + HEADER_BYTES + 2))
    return min(length, HEADER_BYTES + total) if total >= _IPV4_HEADER else length


@kernel
def forget(p: Row, head: int) -> None:
    """Let the room of frames that were taken be used again. p: the port; head: where the first of the others starts."""
    left = p.departed_tail - head
    if left == 0 or (head > DEPARTURE_BYTES // 2 and left <= head):
        copy_bytes(p.departures, p.departures + head, left)
        head = 0
    p.departed_head = head
    p.departed_tail = head + left
