"""The device's side of a split virtqueue: fetch chains, give them back used, wake and be woken.

    available ring -> head -> descriptors, direct or in a table of their own -> pieces of memory
    used ring <- (head, bytes written) ...            shown all at once, by one store of its index

The driver may write all of it at any time. So each index is loaded once and as a whole, each descriptor is copied once,
and what is checked is the copy. Spec: virtio 1.3, 2.7.
"""

from __future__ import annotations

from virtfn.hw.virtio.ring import (
    AVAIL_INDEX,
    AVAIL_RING,
    DESC_BYTES,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    NO_INTERRUPT,
    NO_NOTIFY,
    USED_ENTRY,
    USED_RING,
)
from virtfn.kernels._jit import (
    Row,
    fence,
    grant,
    inlined,
    kernel,
    load16,
    load16_acquire,
    load64,
    store16,
    store16_release,
    store64,
)
from virtfn.kernels.virtio.channel import let_sleep, passed, wake
from virtfn.kernels.virtio.memory import translate
from virtfn.kernels.virtio.state import (
    ERROR_AVAIL_INDEX,
    ERROR_DIRECTION,
    ERROR_HEAD,
    ERROR_INDIRECT,
    ERROR_LOOP,
    ERROR_NEXT,
    ERROR_ORDER,
    ERROR_PIECES,
    ERROR_TOO_LONG,
    ERROR_UNMAPPED,
    F_EVENT_IDX,
    F_INDIRECT,
    PIECE_BYTES,
)

__all__ = ["arm", "break_queue", "chain_at", "disarm", "give_back", "let_through", "open_queue", "show_used", "walk"]


@kernel
def let_through(q: Row) -> None:
    """Let this call touch a queue's rings, in a checked build: they were looked up when they were set up."""
    grant(q.desc, DESC_BYTES * q.size, 0, 0)
    grant(q.avail, AVAIL_RING + 2 * q.size + 2, 0, 0)
    grant(q.used, USED_RING + USED_ENTRY * q.size + 2, 1, 0)


@inlined
def open_queue(v: Row, q: Row) -> bool:
    """Tell whether a queue runs."""
    return v.own.up != 0 and q.started != 0 and q.broken == 0 and q.size != 0


@kernel
def break_queue(q: Row, error: int) -> None:
    """Fetch nothing from a queue any more, and say so."""
    q.broken = error
    q.errors[error] += 1
    wake(q.err)


@kernel
def chain_at(q: Row, ahead: int) -> int:
    """Find the chain that lies `ahead` places behind the next one: its first descriptor, or -1 if there is none."""
    place = (q.next_avail + ahead) & 0xFFFF
    if place == q.seen_avail:
        index = load16_acquire(q.avail + AVAIL_INDEX)
        if (index - q.next_avail) & 0xFFFF > q.size:
            break_queue(q, ERROR_AVAIL_INDEX)
            return -1
        q.seen_avail = index
        if place == index:
            return -1
    head = load16(q.avail + AVAIL_RING + 2 * (place & (q.size - 1)))
    if head >= q.size:
        break_queue(q, ERROR_HEAD)
        return -1
    return head


@kernel
def walk(
    v: Row, q: Row, head: int, write: int, enough: int, limit: int, pieces: int, room: int
) -> tuple[int, int, int]:
    """List the pieces of a chain.

    write: 1 for a chain that the device writes. enough: bytes behind which nobody looks any more. limit: bytes that it
    may have. pieces: address of the list, room: for so many. Returns (error or 0, bytes, pieces).
    """
    table = q.desc
    entries = q.size
    indirect = False
    at = head
    steps = 0
    total = 0
    count = 0
    written = False
    error = 0
    while error == 0:
        if at >= entries or steps == entries:
            error = ERROR_NEXT if at >= entries else ERROR_LOOP
            break
        steps += 1
        descriptor = find_descriptor(v, table, at, indirect)
        if descriptor == 0:
            error = ERROR_INDIRECT
            break
        address = load64(descriptor)
        word = load64(descriptor + 8)
        length = word & 0xFFFFFFFF
        flags = word >> 32 & 0xFFFF
        if flags & DESC_INDIRECT:
            entries = length // DESC_BYTES
            if indirect or not may_be_table(v, q, flags, length):
                error = ERROR_INDIRECT
                break
            q.descriptors += steps
            table = address
            indirect = True
            at = steps = 0
            continue
        total += length
        if flags & DESC_WRITE and not write:
            error = ERROR_DIRECTION
        elif write and not flags & DESC_WRITE:
            error = ERROR_ORDER if written else ERROR_DIRECTION
        elif total > limit:
            error = ERROR_TOO_LONG
        else:
            error, count = list_pieces(v, address, length, write, pieces, count, room)
        written = True
        if not flags & DESC_NEXT or total >= enough:
            break
        at = word >> 48 & 0xFFFF
    q.descriptors += steps
    return error, total, count


@inlined
def find_descriptor(v: Row, table: int, at: int, indirect: bool) -> int:
    """Find descriptor `at` of the ring's own table, at an address here, or of one in a front end's memory; else 0."""
    descriptor = table + at * DESC_BYTES
    if not indirect:
        return descriptor
    here, run = translate(v, descriptor, DESC_BYTES, 0)
    return here if run == DESC_BYTES else 0


@inlined
def may_be_table(v: Row, q: Row, flags: int, length: int) -> bool:
    """Tell whether a descriptor may name a table. Spec: 2.7.5.3."""
    agreed = v.own.features & F_INDIRECT != 0 and not flags & DESC_NEXT
    return agreed and length % DESC_BYTES == 0 and 0 < length <= q.size * DESC_BYTES


@inlined
def list_pieces(v: Row, address: int, length: int, write: int, pieces: int, count: int, room: int) -> tuple[int, int]:
    """Append what one descriptor names to a list, in several pieces where it lies in several regions.

    Returns (error or 0, pieces).
    """
    while length > 0:
        here, run = translate(v, address, length, write)
        if run == 0:
            return ERROR_UNMAPPED, count
        if count == room:
            return ERROR_PIECES, count
        store64(pieces + count * PIECE_BYTES, here)
        store64(pieces + count * PIECE_BYTES + 8, run)
        count += 1
        address += run
        length -= run
    return 0, count


@inlined
def give_back(q: Row, head: int, written: int) -> None:
    """Put a chain into the used ring, after the others; the driver sees it when `show_used` says so."""
    at = q.used + USED_RING + USED_ENTRY * (q.used_index & (q.size - 1))
    store64(at, head | written << 32)
    q.used_index = (q.used_index + 1) & 0xFFFF


@kernel
def show_used(v: Row, q: Row) -> int:
    """Show the driver what was given back since the last time, and wake it if it wants to hear of that.

    Returns 1 if that is for Python to do.
    """
    if q.shown == q.used_index:
        return 0
    store16_release(q.used + AVAIL_INDEX, q.used_index)
    q.shown = q.used_index
    fence()  # the driver sets what it wants to hear of, then looks at the index
    if v.own.features & F_EVENT_IDX:
        event = load16(q.avail + AVAIL_RING + 2 * q.size)
        wanted = not q.has_signalled or passed(event, q.used_index, q.signalled)
        q.signalled = q.used_index
        q.has_signalled = 1
    else:
        wanted = not load16(q.avail) & NO_INTERRUPT
    if wanted:
        return wake(q.call)
    let_sleep(q.call)
    return 0


@kernel
def disarm(v: Row, q: Row) -> None:
    """Ask for no kicks: the queue is looked at anyway. With EVENT_IDX the index that was asked for is behind."""
    q.armed = 0
    if not v.own.features & F_EVENT_IDX:
        store16(q.used, NO_NOTIFY)


@kernel
def arm(v: Row, q: Row) -> bool:
    """Ask for a kick at the next chain. False if there is one already: then there may be no kick for it."""
    if v.own.features & F_EVENT_IDX:
        store16(q.used + USED_RING + USED_ENTRY * q.size, q.next_avail)
    else:
        store16(q.used, 0)
    fence()  # the driver shows its index, then looks whether a kick is wanted
    q.armed = 1
    if load16_acquire(q.avail + AVAIL_INDEX) != q.next_avail:
        disarm(v, q)
        return False
    return True
