"""Embedded guests that always send, receivers that take as much as they are told to, and how equal shares are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virtfn.drivers.igbvf import Igbvf
from virtfn.hw.i82576.desc import (
    DESC_BYTES,
    RXD_DD,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)
from virtfn.machine.memory import view_bytes

_SEND = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT | TXD_IFCS | TXD_RS
_HEAD = -8  # from a tail register to its head


def jain(shares: Sequence[float]) -> float:
    """Tell how equal shares are (Jain's index): 1 if they are, 1/n if one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


class Saturating:
    """A guest whose transmit ring is full of the same frames, over and over. They are without frame check sequence."""

    def __init__(self, driver: Igbvf, *frames: bytes) -> None:
        d = driver.netdev
        self._size, step = int(d["tx_size"]), int(d["buffer_bytes"])
        ring = view_bytes(int(d["tx_ring"]), self._size * DESC_BYTES).view(np.int64).reshape(-1, 2)
        assert self._size % len(frames) == 0
        for i, frame in enumerate(frames):
            view_bytes(int(d["tx_buffers"]) + i * step, len(frame))[:] = np.frombuffer(frame, np.uint8)
            ring[i :: len(frames)] = int(d["tx_iova"]) + i * step, _SEND | len(frame) | len(frame) << TXD_PAYLEN_SHIFT
        tail = int(d["tx_tail_register"])
        self._tail, self._head = (view_bytes(at, 4).view(np.uint32) for at in (tail, tail + _HEAD))

    def go_on(self) -> None:
        """Fill the ring up."""
        self._tail[0] = (int(self._head[0]) - 1) % self._size


class Sink:
    """A guest's receive ring, without its driver: what came is looked at, if at all, and the room given back."""

    def __init__(self, driver: Igbvf) -> None:
        d = driver.netdev
        self._size, self._step, self._buffers = int(d["rx_size"]), int(d["buffer_bytes"]), int(d["rx_buffers"])
        self._ring = view_bytes(int(d["rx_ring"]), self._size * DESC_BYTES).view(np.int64).reshape(-1, 2)
        self._fresh = np.zeros_like(self._ring)
        self._fresh[:, 0] = int(d["rx_iova"]) + np.arange(self._size) * self._step
        tail = int(d["rx_tail_register"])
        self._tail, self._head = (view_bytes(at, 4).view(np.uint32) for at in (tail, tail + _HEAD))
        self._next = int(d["rx_next"])

    def open(self) -> None:
        """Give all of the ring back, whatever came."""
        self._ring[:] = self._fresh
        self._next = int(self._head[0])
        self._tail[0] = (self._next - 1) % self._size

    def take(self, most: int) -> list[bytes]:
        """Take frames, so many at most, and give their room back."""
        frames = []
        while len(frames) < most and int(self._ring[self._next, 1]) & RXD_DD:
            at = self._next
            length = int(self._ring[at, 1]) >> 32 & 0xFFFF
            frames.append(view_bytes(self._buffers + at * self._step, length).tobytes())
            self._ring[at] = self._fresh[at]
            self._next = (at + 1) % self._size
            self._tail[0] = (int(self._tail[0]) + 1) % self._size
        return frames
