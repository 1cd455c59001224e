"""A cable between two cards of this machine: what leaves one by its wire arrives at the other.

Between turns of a pump, kernels carry it at once (`kernels/i82576/cable.py`); in a turn it goes this way.

What is on its way has a place in a buffer of fixed size; a card whose other end is slow keeps the rest, and drops what
it has no room for, as ever.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import MIN_FRAME
from virtfn.kernels.ranges import address_of
from virtfn.kernels.streams import cut_stream, whole_frames
from virtfn.vmm.uplink.uplink import NOTHING, Burst

__all__ = ["CableEnd", "make_cable"]

_BURST = 256
_STORE_BYTES = 256 << 10


def make_cable() -> tuple[CableEnd, CableEnd]:
    """Make a cable, and return its ends."""
    one, other = CableEnd(), CableEnd()
    one.peer, other.peer = other, one
    return one, other


class CableEnd:
    """One end; an `Uplink`. peer: the other."""

    live, bare = True, False
    peer: CableEnd

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._here = True
        # What arrives is in one store, while the frames of the other are being taken.
        self._arriving, self._taken = _new_store(), _new_store()
        self._arrived = self._start = self._end = 0
        self._offsets, self._lengths = np.zeros(_BURST, np.int64), np.zeros(_BURST, np.int64)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def attend(self) -> bool:
        """Tell whether the cable is whole."""
        return self._here and self.peer._here

    @property
    def waiting(self) -> bool:
        """Whether frames are on their way to this end."""
        return self._arrived > 0 or self._start < self._end

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Put whole frames on their way, as many as there is room for."""
        peer = self.peer
        if not self.attend():
            return 0
        room = min(departures.size, _STORE_BYTES - peer._arrived)
        _, sent = whole_frames(int(departures.ctypes.data), room)
        if sent:
            peer._arriving[peer._arrived : peer._arrived + sent] = departures[:sent]
            peer._arrived += sent
            os.eventfd_write(peer._bell, 1)
        return int(sent)

    def receive(self) -> Burst:
        """Return frames that have arrived; none once it is pulled out."""
        if not self._here:
            return NOTHING
        if self._start == self._end:
            with suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            self._arriving, self._taken = self._taken, self._arriving
            self._start, self._end, self._arrived = 0, self._arrived, 0
        if self._start == self._end:
            return NOTHING
        count, self._start, _ = cut_stream(
            address_of(self._taken, "a cable's bytes"),
            self._start,
            self._end,
            _STORE_BYTES,
            self._offsets,
            self._lengths,
        )
        return Burst(self._taken, self._offsets[:count], self._lengths[:count])

    def fileno(self) -> int:
        """Return a descriptor that is readable when frames are on their way."""
        return self._bell if self._here else -1

    def close(self) -> None:
        """Pull it out."""
        if self._here:
            self._here = False
            os.close(self._bell)


def _new_store() -> npt.NDArray[np.uint8]:
    return np.zeros(_STORE_BYTES + _BURST * MIN_FRAME, np.uint8)
