"""Frames of a byte stream: a length of four bytes, big-endian, then the frame, and so on, as stream sockets of QEMU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import HEADER_BYTES, MIN_FRAME
from virtfn.kernels._jit import copy_bytes, kernel, load32, store8
from virtfn.kernels.csum import swap32

__all__ = ["LENGTH_BYTES", "MAX_STREAM_FRAME", "cut_stream", "fill_up", "whole_frames"]

LENGTH_BYTES = 4
MAX_STREAM_FRAME = 68 << 10  # what QEMU's stream sockets bear; longer ones mean that the two sides have lost step


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
def fill_up(target: int, frame: int, length: int) -> None:
    """Copy a short frame of `length` bytes to where MIN_FRAME bytes are, and fill it up with zeros."""
    copy_bytes(target, frame, length)
    for i in range(length, MIN_FRAME):
        store8(target + i, 0)


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
        if HEADER_BYTES <= length < MIN_FRAME:
            fill_up(store + room, store + at, length)
            at = room
            room += MIN_FRAME
            length = MIN_FRAME
        offsets[count] = at
        lengths[count] = length
        count += 1
    return count, start, True
