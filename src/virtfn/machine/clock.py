"""Time, in integer picoseconds (1 byte at 1 Gb/s = 8000 ps).

The only module that may read a clock or sleep, but for kernels that wait (`kernels/posix.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from virtfn.hw.types import Ps

__all__ = ["MS_PS", "NS_PS", "S_PS", "US_PS", "VirtualClock", "WallClock", "epoch_ps", "work_clock"]

NS_PS = 1_000
US_PS = 1_000_000
MS_PS = 1_000_000_000
S_PS = 1_000_000_000_000


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> Ps:
        """Return monotonic time."""
        return Ps(time.monotonic_ns() * NS_PS)

    def sleep(self, duration_ps: int) -> None:
        """Sleep for real."""
        if duration_ps > 0:
            time.sleep(duration_ps / S_PS)


def epoch_ps(clock: WallClock | VirtualClock) -> int:
    """What to add to a clock's times to make them times since 1970; 0 for virtual time."""
    return time.time_ns() * NS_PS - clock.now() if isinstance(clock, WallClock) else 0


def work_clock(clock: object) -> Callable[[], int]:
    """Return what tells how long this thread has worked, in ps: with a virtual clock, its time."""
    if isinstance(clock, VirtualClock):
        return clock.now
    return lambda: time.thread_time_ns() * NS_PS


class VirtualClock:
    """A clock that moves only when someone sleeps: deterministic, and as fast as the work."""

    def __init__(self) -> None:
        self._now = 0

    def now(self) -> Ps:
        """Return virtual time."""
        return Ps(self._now)

    def sleep(self, duration_ps: int) -> None:
        """Advance virtual time."""
        self._now += max(0, duration_ps)
