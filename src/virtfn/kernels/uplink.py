"""Between the wire and its uplink: frames that leave wait in a store, frames of a byte stream are found in it.

    departures   | length, 4 bytes, big-endian | frame | length | frame | ...      no gaps, never more than the store
                 ^ departed_head                                 ^ departed_tail

The layout is that of a stream uplink, so what waits is sent as it is. A store that is full drops frames: a peer that
does not read stops nobody. Short IPv4 frames may leave without their padding: what is no cable does not need it, and
Debian 12's passt drops packets that are shorter than their frame. Who calls: `forward` in `tx.py`; uplinks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.i82576.desc import MIN_FRAME
from virtfn.kernels._jit import Row, copy_bytes, kernel, load16, load32, store8, store32
from virtfn.kernels.csum import swap16
from virtfn.kernels.offload import swap32
from virtfn.kernels.rx import copy_frame
from virtfn.kernels.state import DEPARTURE_BYTES, DROP_UPLINK_FULL, WIRE

__all__ = ["LENGTH_BYTES", "MAX_STREAM_FRAME", "cut_stream", "depart", "whole_frames"]

LENGTH_BYTES = 4
MAX_STREAM_FRAME = 68 << 10  # what QEMU's stream sockets bear; longer ones mean that the two sides have lost step
_HEADER = 14
_IPV4 = 0x0008  # ether type 0800, as loaded little-endian
_IPV4_HEADER = 20


@kernel
def depart(nic: Row, head: int, body: int, length: int) -> None:
    """Put a frame where the uplink takes it from, or drop and count it."""
    p = nic.port
    if p.departed_bare and length <= MIN_FRAME:
        length = unpadded(head, length)
    if p.departed_tail + LENGTH_BYTES + length > DEPARTURE_BYTES:
        nic.drops[WIRE, DROP_UPLINK_FULL] += 1
        return
    at = p.departures + p.departed_tail
    store32(at, swap32(length))
    copy_frame(at + LENGTH_BYTES, head, body, length)
    p.departed_tail += LENGTH_BYTES + length


@kernel
def unpadded(head: int, length: int) -> int:
    """Return the length of a short frame without what fills it up behind an IPv4 packet."""
    if length < _HEADER + _IPV4_HEADER or load16(head + 12) != _IPV4:
        return length
    total = swap16(load16(head + _HEADER + 2))
    return min(length, _HEADER + total) if total >= _IPV4_HEADER else length


@kernel
def whole_frames(address: int, nbytes: int) -> tuple[int, int]:
    """Count the frames that lie whole in the first `nbytes` of departures at `address`. Returns (frames, bytes)."""
    frames = 0
    done = 0
    while nbytes - done >= LENGTH_BYTES:
        size = LENGTH_BYTES + swap32(load32(address + done))
        if size > nbytes - done:
            break
        done += size
        frames += 1
    return frames, done


@kernel
def cut_stream(
    store: int,
    start: int,
    end: int,
    room: int,
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> tuple[int, int, bool]:
    """Find the whole frames in bytes start..end-1 of the store at address `store`, which came by a stream.

    Short ones are filled up with zeros, as whoever puts a frame on a wire does, in MIN_FRAME bytes each from `room` on.
    offsets, lengths: (n,), filled. Returns (frames found, where the rest starts, whether the next length is possible).
    """
    count = 0
    while count < len(offsets) and end - start >= LENGTH_BYTES:
        length = swap32(load32(store + start))
        if length > MAX_STREAM_FRAME:
            return count, start, False
        at = start + LENGTH_BYTES
        if end - at < length:
            break
        start = at + length
        if _HEADER <= length < MIN_FRAME:
            copy_bytes(store + room, store + at, length)
            for i in range(length, MIN_FRAME):
                store8(store + room + i, 0)
            at = room
            room += MIN_FRAME
            length = MIN_FRAME
        offsets[count] = at
        lengths[count] = length
        count += 1
    return count, start, True
