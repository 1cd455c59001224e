"""Give frames to a front end: into one of its chains, or, with MRG_RXBUF, into several.

A frame that finds no room is dropped, and the chains stay. Copies are made when all of it is known to fit.
Spec: virtio 1.3, 5.1.6.3, 5.1.6.4.
"""

from __future__ import annotations

from virtfn.hw.virtio.net import HEADER_BYTES, NEEDS_CSUM
from virtfn.kernels._jit import Row, kernel, load64, store32, store64
from virtfn.kernels.virtio.offload import cut_segment, finish_checksum, takes_whole
from virtfn.kernels.virtio.pieces import put_piece, scatter
from virtfn.kernels.virtio.queue import break_queue, chain_at, give_back, open_queue, walk
from virtfn.kernels.virtio.state import (
    ERROR_SHORT,
    F_GUEST_CSUM,
    F_MRG_RXBUF,
    FIRST_BROKEN,
    MOST_DESCRIPTORS,
    PIECE_BYTES,
    PIECES,
)
from virtfn.kernels.virtio.transmit import gather_frame

__all__ = ["DROP_DOWN", "DROP_NO_BUFFER", "DROP_TOO_SMALL", "GIVEN", "give_frame"]

GIVEN, DROP_DOWN, DROP_NO_BUFFER, DROP_TOO_SMALL = range(4)
_LIMIT = (1 << 32) - 1


@kernel
def give_frame(v: Row, f: Row) -> tuple[int, int]:
    """Give a frame to a front end, as it bears it. v: VIRTIO, f: FRAME.

    Returns (GIVEN, or why it was dropped, or a segment of it; frames that it was given as).
    """
    q = v.rx
    if not open_queue(v, q) or not q.enabled:
        return DROP_DOWN, 0
    bears = v.own.features & F_GUEST_CSUM != 0
    if f.gso and not takes_whole(v.own.features, f):
        return give_segments(v, f, bears)
    if f.partial and not bears:
        finish_checksum(f)
    if f.gso:
        write_header(f, NEEDS_CSUM, f.gso, f.headers, f.mss)
    else:
        write_header(f, NEEDS_CSUM if f.partial else 0, 0, 0, 0)
    reason = put_frame(v, f, f.list + f.first * PIECE_BYTES, f.length)
    return reason, 1 if reason == GIVEN else 0


@kernel
def give_segments(v: Row, f: Row, partial: bool) -> tuple[int, int]:
    """Cut a large frame, and give the segments; what does not fit is dropped with all that comes after it."""
    gather_frame(f)
    given = 0
    write_header(f, NEEDS_CSUM if partial else 0, 0, 0, 0)
    offset = f.headers
    while offset < f.length:
        total = cut_segment(f, offset, partial)
        reason = put_frame(v, f, f.cut + PIECE_BYTES, total)
        if reason != GIVEN:
            return reason, given
        given += 1
        offset += f.mss
    return GIVEN, given


@kernel
def write_header(f: Row, flags: int, gso: int, headers: int, mss: int) -> None:
    """Write the header that a frame goes with, but for the number of chains."""
    start = f.l4 if flags else 0
    store64(f.goes, flags | gso << 8 | headers << 16 | mss << 32 | start << 48)
    store32(f.goes + 8, f.sum_at - f.l4 if flags else 0)


@kernel
def put_frame(v: Row, f: Row, at: int, length: int) -> int:
    """Copy a frame into the next chains. at: address of its first piece; the place before it is for the header.

    Returns GIVEN or why not.
    """
    q = v.rx
    chains, reason = find_room(v, f, HEADER_BYTES + length)
    if chains == 0:
        return reason
    merge = v.own.features & F_MRG_RXBUF != 0
    put_piece(at - PIECE_BYTES, f.goes, HEADER_BYTES)
    store32(f.goes + 8, load64(f.goes + 8) & 0xFFFF | (chains if merge else 1) << 16)
    left = HEADER_BYTES + length
    scatter(f.target, at - PIECE_BYTES, left)
    for i in range(chains):
        chain = f.chains + i * PIECE_BYTES
        size = min(left, load64(chain + 8))
        give_back(q, load64(chain), size)
        left -= size
    q.next_avail = (q.next_avail + chains) & 0xFFFF
    q.frames += 1
    q.bytes += length
    q.copies += 1
    q.copy_bytes += length
    return GIVEN


@kernel
def find_room(v: Row, f: Row, needed: int) -> tuple[int, int]:
    """Find chains with room for so many bytes; list their pieces at `target`, and them, with their room, at `chains`.

    Chains that make no sense are given back empty, with those found before, and the search begins anew. Returns (number
    of chains, 0 if there is no room; why not).
    """
    q = v.rx
    merge = v.own.features & F_MRG_RXBUF != 0
    chains = 0
    room = 0
    pieces = 0
    last = q.descriptors + MOST_DESCRIPTORS
    while room < needed:
        head = chain_at(q, chains) if chains < min(q.size, PIECES) and q.descriptors < last else -1
        if head < 0:
            return 0, DROP_DOWN if q.broken else DROP_NO_BUFFER
        error, total, count = walk(
            v, q, head, 1, needed - room, _LIMIT, f.target + pieces * PIECE_BYTES, PIECES - pieces
        )
        if error >= FIRST_BROKEN:
            break_queue(q, error)
            return 0, DROP_DOWN
        if error == 0 and total < HEADER_BYTES and total < needed - room:
            error = ERROR_SHORT
        put_piece(f.chains + chains * PIECE_BYTES, head, total)
        chains += 1
        if error:
            q.errors[error] += 1
            for i in range(chains):
                give_back(q, load64(f.chains + i * PIECE_BYTES), 0)
            q.next_avail = (q.next_avail + chains) & 0xFFFF
            chains = room = pieces = 0
            continue
        if not merge and total < needed:
            return 0, DROP_TOO_SMALL
        room += total
        pieces += count
    return chains, GIVEN
