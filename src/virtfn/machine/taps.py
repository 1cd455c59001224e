"""Taps: frames of a card, copied into memory that another process reads. How it is laid out: `kernels/tapring.py`.

Tap          the card's side: it makes the memory, and says which frames are wanted
TapReader    the other side: it takes frames, and makes room by that

Nobody waits: what the reader does not take in time is lost, and counted.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from virtfn.kernels.tapring import (
    DETAIL_SHIFT,
    FILLING,
    HEAD_AT,
    HEADER_BYTES,
    LOST_AT,
    OUTBOUND_SHIFT,
    POINT_SHIFT,
    RECORD_BYTES,
    TAIL_AT,
)
from virtfn.machine.memory import SharedRegion
from virtfn.machine.ports import VirtfnError

__all__ = ["Seen", "Tap", "TapInterface", "TapReader"]

MAX_INTERFACES = 64
_RECORD = struct.Struct("<4q")
_WORD = struct.Struct("<q")


class TapInterface(NamedTuple):
    """What frames pass, as a tap numbers it. n: the VF; without one, the wire, or the PF."""

    number: int
    n: int | None
    wire: bool = False


class Seen(NamedTuple):
    """A frame as a tap has it: its bytes, as far as they are kept, and how many there were.

    interface, point, detail: as in `kernels/tapring.py`. outbound: on its way out of the function.
    """

    interface: int
    point: int
    outbound: bool
    detail: int
    time_ps: int
    length: int
    frame: memoryview


class Tap:
    """The card's side of a tap, until `close`. row: TAP; interfaces, points: wanted, as bits; snap: bytes of a frame.

    size: bytes of the ring, a power of two. fd: of the memory, whose size nobody can change. on_close: are told.
    Raises VirtfnError if the system refuses the memory.
    """

    def __init__(self, row: np.void, points: int, interfaces: int, snap: int, size: int) -> None:
        self.on_close: list[Callable[[], None]] = []
        self.size = size
        self._row = row
        self._region = SharedRegion(HEADER_BYTES + size)
        try:
            self.fd = self._region.share("virtfn-tap", 0, HEADER_BYTES + size)
        except VirtfnError:
            self._region.close()
            raise
        row["ring"], row["mask"], row["head"], row["snap"] = self._region.base, size - 1, 0, snap
        row["points"], row["interfaces"] = points, interfaces

    @property
    def open(self) -> bool:
        """Whether frames still come."""
        return bool(self._region.size)

    def close(self) -> None:
        """Take no more frames; the reader keeps the memory. No kernel may be under way. Closing twice is harmless."""
        if self.open:
            self._row["points"] = self._row["ring"] = 0
            self._region.close()
            for tell in self.on_close:
                tell()


class TapReader:
    """The reader's side of a tap. fd: of its memory, which may be closed afterwards; size: bytes of the ring.

    Raises VirtfnError (EINVAL) if that is no ring, or the system refuses it.
    """

    def __init__(self, fd: int, size: int) -> None:
        if size <= 0 or size & (size - 1):
            raise VirtfnError(f"a tap's ring of {size} bytes", errno_name="EINVAL")
        try:
            self._memory = mmap.mmap(fd, HEADER_BYTES + size)
        except (OSError, ValueError) as error:
            name = errno.errorcode.get(getattr(error, "errno", 0) or 0, "EINVAL")
            raise VirtfnError(f"a tap's memory cannot be mapped: {error}", errno_name=name) from None
        self._size = size
        self._tail = self._word(TAIL_AT)

    def _word(self, at: int) -> int:
        return int(_WORD.unpack_from(self._memory, at)[0])

    def lost(self, interface: int) -> int:
        """Count frames of an interface that did not fit."""
        return self._word(LOST_AT + interface * 8)

    def read(self, most: int) -> Iterator[Seen]:
        """Yield up to `most` frames that are there; each is gone when the next is asked for.

        Raises VirtfnError (EIO) for a ring that makes no sense.
        """
        head = self._word(HEAD_AT)
        view = memoryview(self._memory)
        try:
            while self._tail < head and most:
                at = HEADER_BYTES + (self._tail & self._size - 1)
                total, time_ps, what, sizes = _RECORD.unpack_from(view, at)
                captured = sizes >> 32
                if total <= 0 or total & 31 or total > head - self._tail or at + total > HEADER_BYTES + self._size:
                    raise VirtfnError("a tap's ring makes no sense", errno_name="EIO")
                if what & 0xFF != FILLING:
                    if not 0 <= captured <= total - RECORD_BYTES:
                        raise VirtfnError("a tap's ring makes no sense", errno_name="EIO")
                    start = at + RECORD_BYTES
                    yield Seen(
                        what & 0xFF,
                        what >> POINT_SHIFT & 0xFF,
                        bool(what >> OUTBOUND_SHIFT & 1),
                        what >> DETAIL_SHIFT,
                        time_ps,
                        sizes & 0xFFFFFFFF,
                        view[start : start + captured],
                    )
                    most -= 1
                self._tail += total
        finally:
            _WORD.pack_into(self._memory, TAIL_AT, self._tail)

    def close(self) -> None:
        """Unmap the memory, once no frame of it is held any more."""
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
