"""What an uplink is, and the one that plays a capture.

    departures of the NIC   --send-->      uplink      a tap of this machine, a peer at a socket, nobody
    `wire_in` of the NIC    <--receive--

Both ways frames go in bulk, without frame check sequence: the wire's two ends do not make mistakes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from virtfn.machine.captures import Frames, read_capture

__all__ = ["NOTHING", "Burst", "PcapUplink", "Uplink"]


@dataclass(frozen=True, slots=True)
class Burst:
    """Frames that came in. bytes: (n,) uint8; offsets, lengths: (frames,) int64, into `bytes`."""

    bytes: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)


NOTHING = Burst(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))


class Uplink(Protocol):
    """Where a wire leads to. Nothing here waits.

    live: whether frames may come as long as it is up. bare: whether it wants short IPv4 frames without padding. counts:
    what happened to it, by name.
    """

    live: bool
    bare: bool
    counts: Counter[str]

    def attend(self) -> bool:
        """Look after the connection, and return whether there is one."""

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Take frames from the front, each after its length in 4 bytes, big-endian; return the bytes of those taken."""

    def receive(self) -> Burst:
        """Return frames that came; they stay as they are until the next call."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when something came, or -1."""

    def close(self) -> None:
        """Let go of it."""


class PcapUplink:
    """Frames of a capture come in, once; what leaves is heard by nobody.

    Raises CaptureError if the capture cannot be read.
    """

    live = bare = False

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.frames: Frames = read_capture(path)
        self._left = Burst(self.frames.bytes, self.frames.offsets, self.frames.lengths)

    def attend(self) -> bool:
        """Return True: a capture does not go away."""
        return True

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Take everything."""
        return departures.size

    def receive(self) -> Burst:
        """Return the whole capture, and nothing after that."""
        burst, self._left = self._left, NOTHING
        return burst

    def fileno(self) -> int:
        """There is nothing to wait for."""
        return -1

    def close(self) -> None:
        """There is nothing to let go of."""
