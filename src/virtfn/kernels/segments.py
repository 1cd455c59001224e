"""What differs from segment to segment of a large send, whoever cuts it: lengths, numbers, checksums."""

from __future__ import annotations

from virtfn.kernels._jit import kernel, load16, load32, store16, store32
from virtfn.kernels.csum import fold, sum_bytes, swap16, swap32

__all__ = ["number_segment", "put_ip_checksum"]


@kernel
def put_ip_checksum(frame: int, l3: int, l4: int) -> None:
    """Insert the IPv4 header checksum."""
    store16(frame + l3 + 10, 0)
    store16(frame + l3 + 10, fold(sum_bytes(frame + l3, l4 - l3)) ^ 0xFFFF)


@kernel
def number_segment(
    frame: int, l3: int, l4: int, ipv4: bool, tcp: bool, total: int, done: int, number: int
) -> None:  # fmt: skip
    """Edit the headers at `frame`, a copy of the whole send's, into those of one segment.

    total: its bytes. done: bytes of payload before it. number: segments before it.
    """
    if ipv4:
        store16(frame + l3 + 2, swap16(total - l3))
        store16(frame + l3 + 4, swap16(swap16(load16(frame + l3 + 4)) + number & 0xFFFF))
    else:
        store16(frame + l3 + 4, swap16(total - l3 - 40))
    if tcp:
        store32(frame + l4 + 4, swap32(swap32(load32(frame + l4 + 4)) + done & 0xFFFFFFFF))
    else:
        store16(frame + l4 + 4, swap16(total - l4))
