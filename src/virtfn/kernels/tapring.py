"""A tap: copies of frames for another process, in a ring of memory that both map; who writes never waits for who reads.

    | head | tail | lost, by interface | ... a page | record | record | ... | filling |    its size a power of two
    record: bytes of it all | time, ps | interface, point, outbound, detail | length, captured | frame | up to 32 bytes

`head` and `tail` count bytes since the start. The writer trusts nothing in the ring: where it writes it knows by its
own row, and a tail that cannot be is a ring that is full. What does not fit is counted as lost.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, kernel, load64, part, row_of, store64, store64_release

__all__ = [
    "DETAIL_SHIFT",
    "FILLING",
    "HEADER_BYTES",
    "HEAD_AT",
    "LOST_AT",
    "OUTBOUND_SHIFT",
    "POINT_SHIFT",
    "RECORD_BYTES",
    "TAIL_AT",
    "TAP",
    "TAP_DROP",
    "TAP_RX",
    "TAP_SWITCH",
    "TAP_TX",
    "count_lost",
    "has_room",
    "put_record",
    "start_record",
]

HEADER_BYTES = 4096
HEAD_AT, TAIL_AT, LOST_AT = 0, 64, 128  # each in a cache line of its own
RECORD_BYTES = 32
POINT_SHIFT, OUTBOUND_SHIFT, DETAIL_SHIFT = 8, 16, 32
FILLING = 0xFF  # instead of an interface: nothing, up to the end of the ring

# Where a frame is seen, as bits.
TAP_TX = 1  # as whoever sends hands it to the card
TAP_SWITCH = 2  # where it goes: the detail is a bitmap of interfaces
TAP_RX = 4  # as it is delivered
TAP_DROP = 8  # why it goes no further: the detail is the reason

# ring: address of the memory, 0 without one. points, interfaces: wanted, as bits. snap: bytes of a frame, at most
TAP = row_of("ring mask head points interfaces snap")


@kernel
def start_record(t: Row, interface: int, captured: int) -> int:
    """Find room for a record with so many bytes of a frame; return its address, 0 if it is lost."""
    total = RECORD_BYTES + captured + 31 & ~31
    at = t.head & t.mask
    rest = t.mask + 1 - at
    used = t.head - load64(t.ring + TAIL_AT)
    if used < 0 or used + total + (0 if total <= rest else rest) > t.mask + 1:
        count_lost(t, interface, 1)
        return 0
    if total > rest:
        store64(t.ring + HEADER_BYTES + at, rest)
        store64(t.ring + HEADER_BYTES + at + 16, FILLING)
        t.head += rest
        at = 0
    return t.ring + HEADER_BYTES + at


@kernel
def has_room(t: Row) -> bool:
    """Tell whether a good part of the ring is free."""
    used = t.head - load64(t.ring + TAIL_AT)
    return 0 <= used <= (t.mask + 1) // 4 * 3


@kernel
def count_lost(t: Row, interface: int, frames: int) -> None:
    """Count frames that the ring has no room for."""
    lost = t.ring + LOST_AT + interface * 8
    store64(lost, load64(lost) + frames)


@part
def put_record(t: Row, at: int, time_ps: int, what: int, length: int, captured: int) -> None:
    """Complete the record at `at`, whose frame is there already, and show it to the reader."""
    total = RECORD_BYTES + captured + 31 & ~31
    store64(at, total)
    store64(at + 8, time_ps)
    store64(at + 16, what)
    store64(at + 24, length | captured << 32)
    t.head += total
    store64_release(t.ring + HEAD_AT, t.head)
