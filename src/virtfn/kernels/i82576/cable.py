"""A cable between two cards: what has left one arrives at the other, from the store where it lies, without Python."""

from __future__ import annotations

from virtfn.hw.eth import HEADER_BYTES, MIN_FRAME
from virtfn.kernels._jit import kernel, load32
from virtfn.kernels.card import EV_MORE
from virtfn.kernels.csum import swap32
from virtfn.kernels.i82576.departures import forget
from virtfn.kernels.i82576.port import WAITS, arrive, begin, finish
from virtfn.kernels.i82576.state import HEAD_AREA, nic_at
from virtfn.kernels.streams import LENGTH_BYTES, fill_up

__all__ = ["carry"]

_BUDGET = 256  # frames in a call: a line that was held up may have left many, and messages wait meanwhile


@kernel
def carry(address: int, to: int, now: int) -> tuple[int, int]:
    """Let what has left a card arrive at another, as far as that takes it, at most 256 frames.

    address, to: of the NICs' rows. Returns (frames taken, events of the other).
    """
    p = nic_at(address).port
    at = p.departures + p.departed_head
    end = p.departures + p.departed_tail
    if at == end:
        return 0, 0
    other = nic_at(to)
    begin(other, now)
    spare = p.scratch + HEAD_AREA  # where short frames are filled up
    frames = 0
    events = 0
    while at < end:
        if frames == _BUDGET:
            events = EV_MORE
            break
        length = swap32(load32(at))
        frame = at + LENGTH_BYTES
        size = length
        if HEADER_BYTES <= length < MIN_FRAME:
            fill_up(spare, frame, length)
            frame = spare
            size = MIN_FRAME
        why = arrive(other, frame, size)
        if why:
            events = why & ~WAITS
            break
        at += LENGTH_BYTES + length
        frames += 1
    forget(p, at - p.departures)
    return frames, events | finish(other)
