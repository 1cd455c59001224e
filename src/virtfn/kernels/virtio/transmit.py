"""Take frames that a front end sends: one chain a frame, a header in front of it.

    chain -> pieces: | header | first bytes | rest ... |
                       copied   copied        stays where it is until somebody copies it to where it goes

Header and first bytes are copied once, and decisions are made by the copy: what the front end writes there later
changes nothing. The chain is given back when the frame has gone. Spec: virtio 1.3, 5.1.6.2, 5.1.6.4.
"""

from __future__ import annotations

from virtfn.hw.eth import HEADER_BYTES as ETHERNET_BYTES
from virtfn.hw.eth import IPV4_LOADED, IPV6_LOADED, VLAN_LOADED, as_loaded
from virtfn.hw.virtio.net import GSO_ECN, GSO_TCP4, GSO_TCP6, HEADER_BYTES, LONGEST, NEEDS_CSUM
from virtfn.kernels._jit import Row, kernel, load8, load16
from virtfn.kernels.virtio.pieces import gather, peel, put_piece
from virtfn.kernels.virtio.queue import break_queue, chain_at, give_back, walk
from virtfn.kernels.virtio.state import (
    ERROR_CHECKSUM,
    ERROR_NOT_NEGOTIATED,
    ERROR_SEGMENTATION,
    ERROR_SHORT,
    F_CSUM,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
    FIRST_BROKEN,
    HEAD_ROOM,
    LEAD,
    MOST_DESCRIPTORS,
    PIECE_BYTES,
    PIECES,
)

__all__ = ["gather_frame", "release_frame", "set_frame", "take_frame"]

_PLAIN_HEAD = 16  # bytes that are copied of a frame that is not cut: its addresses
_SERVICE_TAG_LOADED = as_loaded(0x88A8)
_TCP = 6
_CHECKSUM_AT = 16  # of TCP
_MAX_SEGMENTS = 1400
_ALL = 1 << 62


@kernel
def take_frame(v: Row, f: Row) -> int:
    """Look at the next frame that a front end sends. v: VIRTIO, f: FRAME, filled.

    Chains that make no sense are given back with nothing done, and counted; what breaks the ring ends it. Returns 1 for
    a frame, 0 if there is none, -1 if there may be one behind much that makes no sense.
    """
    q = v.tx
    last = q.descriptors + MOST_DESCRIPTORS
    while q.descriptors < last:
        head = chain_at(q, 0)
        if head < 0:
            return 0
        begun = q.descriptors
        error, total, count = walk(v, q, head, 0, _ALL, HEADER_BYTES + LONGEST, f.list + LEAD * PIECE_BYTES, PIECES)
        f.descriptors = q.descriptors - begun
        if error >= FIRST_BROKEN:
            break_queue(q, error)
            return 0
        if error == 0:
            error = read_header(v, f, total, LEAD + count)
        if error == 0:
            f.chain = head
            return 1
        q.errors[error] += 1
        q.next_avail = (q.next_avail + 1) & 0xFFFF
        give_back(q, head, 0)
    return -1


@kernel
def release_frame(v: Row, f: Row) -> None:
    """Give the chain of the frame that was taken back, and count it."""
    q = v.tx
    q.next_avail = (q.next_avail + 1) & 0xFFFF
    give_back(q, f.chain, 0)
    q.frames += 1
    q.bytes += f.length
    q.copies += f.copies
    q.copy_bytes += f.copy_bytes


@kernel
def set_frame(f: Row, first: int, end: int, length: int) -> None:
    """Note a frame that asks for nothing, by its pieces."""
    f.first = first
    f.end = end
    f.length = length
    f.partial = f.gso = f.mss = f.gathered = f.copies = f.copy_bytes = f.descriptors = 0


@kernel
def read_header(v: Row, f: Row, total: int, end: int) -> int:
    """Read the header of a chain of `total` bytes, its pieces ending at `end`, and check what it asks for.

    Returns an error or 0.
    """
    length = total - HEADER_BYTES
    if length < ETHERNET_BYTES:
        return ERROR_SHORT
    first = peel(f.list, LEAD, f.came, HEADER_BYTES)
    descriptors = f.descriptors
    set_frame(f, first, end, length)
    f.descriptors = descriptors
    gso = load8(f.came + 1)
    if load8(f.came) & NEEDS_CSUM:
        if not v.own.features & F_CSUM:
            return ERROR_NOT_NEGOTIATED
        f.partial = 1
        f.l4 = load16(f.came + 6)
        f.sum_at = f.l4 + load16(f.came + 8)
        if f.sum_at + 2 > length:
            return ERROR_CHECKSUM
    elif gso:
        return ERROR_SEGMENTATION
    head = min(length, HEAD_ROOM if gso else _PLAIN_HEAD)
    f.first = peel(f.list, first, f.head, head) - 1
    put_piece(f.list + f.first * PIECE_BYTES, f.head, head)
    return read_segmentation(v, f, gso) if gso else 0


@kernel
def read_segmentation(v: Row, f: Row, gso: int) -> int:
    """Check that a frame can be cut as its header asks; the headers inside are looked for, not believed.

    Returns an error or 0. One that is not longer than a segment is not to be cut.
    """
    kind = gso & ~GSO_ECN
    wanted = F_HOST_TSO4 if kind == GSO_TCP4 else F_HOST_TSO6
    if kind != GSO_TCP4 and kind != GSO_TCP6:
        return ERROR_NOT_NEGOTIATED
    if not v.own.features & wanted or (gso & GSO_ECN and not v.own.features & F_HOST_ECN):
        return ERROR_NOT_NEGOTIATED
    at = 12
    known = load16(f.head + at)
    while (known == VLAN_LOADED or known == _SERVICE_TAG_LOADED) and at < 20:
        at += 4
        known = load16(f.head + at)
    l3 = at + 2
    version = load8(f.head + l3)
    most = min(f.length, HEAD_ROOM)
    if f.l4 + 20 > most or f.sum_at != f.l4 + _CHECKSUM_AT:
        return ERROR_SEGMENTATION
    if kind == GSO_TCP4:
        if known != IPV4_LOADED or version >> 4 != 4 or f.l4 != l3 + (version & 15) * 4 or f.l4 < l3 + 20:
            return ERROR_SEGMENTATION
        if load8(f.head + l3 + 9) != _TCP:
            return ERROR_SEGMENTATION
    elif known != IPV6_LOADED or version >> 4 != 6 or f.l4 < l3 + 40:
        return ERROR_SEGMENTATION
    offset = (load8(f.head + f.l4 + 12) >> 4) * 4
    mss = load16(f.came + 4)
    f.headers = f.l4 + offset
    f.l3 = l3
    if offset < 20 or f.headers > most or mss == 0 or f.length - f.headers > mss * _MAX_SEGMENTS:
        return ERROR_SEGMENTATION
    if f.length - f.headers > mss:
        f.gso = gso
        f.mss = mss
    return 0


@kernel
def gather_frame(f: Row) -> None:
    """Gather the frame at one place, where it can be changed."""
    if f.gathered:
        return
    gather(f.linear, f.list + f.first * PIECE_BYTES, f.length)
    f.first = LEAD
    f.end = LEAD + 1
    put_piece(f.list + LEAD * PIECE_BYTES, f.linear, f.length)
    f.gathered = 1
    f.copies += 1
    f.copy_bytes += f.length
