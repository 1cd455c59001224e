"""What the sender left to the device: checksums, and cutting large sends into segments.

Whatever the receiver bears is left to it again: nobody sums up a frame between two front ends that both negotiated
checksums, nobody cuts a large one that the receiver takes whole. Spec: virtio 1.3, 5.1.6.2.1, 5.1.6.4.
"""

from __future__ import annotations

from virtfn.hw.virtio.net import GSO_ECN, GSO_TCP4
from virtfn.kernels._jit import Row, copy_bytes, inlined, kernel, load8, load16, store8, store16
from virtfn.kernels.csum import fold, sum_bytes, swap16
from virtfn.kernels.segments import number_segment, put_ip_checksum
from virtfn.kernels.virtio.pieces import put_piece
from virtfn.kernels.virtio.state import (
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    PIECE_BYTES,
)
from virtfn.kernels.virtio.transmit import gather_frame

__all__ = ["complete", "cut_segment", "finish_checksum", "takes_whole"]

_FLAGS = 13  # of a TCP header
_FIN_PSH, _CWR = 0x09, 0x80
_UDP_SUM = 6  # place of the checksum in a UDP header


@inlined
def takes_whole(features: int, f: Row) -> bool:
    """Tell whether a front end takes a large send uncut."""
    wanted = F_GUEST_TSO4 if f.gso & ~GSO_ECN == GSO_TCP4 else F_GUEST_TSO6
    return features & wanted != 0 and (not f.gso & GSO_ECN or features & F_GUEST_ECN != 0)


@kernel
def finish_checksum(f: Row) -> None:
    """Store the checksum that the sender left open; the frame asks for nothing any more."""
    if not f.partial:
        return
    gather_frame(f)
    complete(f.linear, f.l4, f.sum_at, f.length)
    f.partial = 0


@kernel
def complete(frame: int, l4: int, sum_at: int, length: int) -> None:
    """Store the checksum of bytes l4..length-1 of the frame at `frame`; there is the sum of its pseudo-header."""
    total = fold(sum_bytes(frame + l4, length - l4)) ^ 0xFFFF
    if total == 0 and sum_at - l4 == _UDP_SUM:
        total = 0xFFFF  # 0 says that there is none
    store16(frame + sum_at, total)


@kernel
def cut_segment(f: Row, offset: int, partial: bool) -> int:
    """Make the segment whose payload starts at `offset` of a gathered frame; return its bytes.

    It is listed at `cut`: a place for the receiver's header, its headers, its payload where it lies. partial: its
    checksum is left to the receiver.
    """
    headers = f.headers
    size = min(f.mss, f.length - offset)
    total = headers + size
    here = f.cut_head
    l4 = f.l4
    copy_bytes(here, f.linear, headers)
    number = (offset - headers) // f.mss
    ipv4 = f.gso & ~GSO_ECN == GSO_TCP4
    number_segment(here, f.l3, l4, ipv4, True, total, offset - headers, number)
    flags = load8(here + l4 + _FLAGS)
    if offset + size < f.length:
        flags &= ~_FIN_PSH
    if number:
        flags &= ~_CWR
    store8(here + l4 + _FLAGS, flags)
    if ipv4:
        put_ip_checksum(here, f.l3, l4)
    # The field holds the pseudo-header with the length of the whole: put that of the segment in its place.
    field = fold(load16(here + f.sum_at) + (swap16(f.length - l4) ^ 0xFFFF) + swap16(total - l4))
    store16(here + f.sum_at, field)
    if not partial:
        summed = sum_bytes(here + l4, headers - l4) + sum_bytes(f.linear + offset, size)
        store16(here + f.sum_at, fold(summed) ^ 0xFFFF)
    put_piece(f.cut + PIECE_BYTES, here, headers)
    put_piece(f.cut + 2 * PIECE_BYTES, f.linear + offset, size)
    return total
