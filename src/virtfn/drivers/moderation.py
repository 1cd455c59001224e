"""Interrupt moderation by traffic: few and late interrupts for bulk, many for single small frames.

The rules are those of Intel's driver guide for adapters of this family: from class to class, by what came since the
last look. An interval is in us, as EITR has it.
"""

from __future__ import annotations

import enum

__all__ = ["AdaptiveInterval"]


class _Class(enum.Enum):
    LOWEST_LATENCY = 14  # 70,000 interrupts a second
    LOW_LATENCY = 49  # 20,000
    BULK = 245  # 4,000


class AdaptiveInterval:
    """The interval of one vector. us: that is to be set."""

    def __init__(self) -> None:
        self._class = _Class.LOW_LATENCY

    @property
    def us(self) -> int:
        """The interval, in us."""
        return self._class.value

    def look(self, frames: int, nbytes: int) -> bool:
        """Choose by what came since the last look; return whether the interval is another now."""
        before = self._class
        if frames > 0:
            self._class = _next(before, frames, nbytes)
        return self._class is not before


def _next(now: _Class, frames: int, nbytes: int) -> _Class:
    mean = nbytes / frames
    if now is _Class.LOWEST_LATENCY:
        if mean > 8000:
            return _Class.BULK
        return _Class.LOW_LATENCY if frames < 5 and nbytes > 512 else now
    if now is _Class.LOW_LATENCY:
        if nbytes > 10000:
            if mean > 8000 or frames < 10 or mean > 1200:
                return _Class.BULK
            return _Class.LOWEST_LATENCY if frames > 35 else now
        if mean > 2000:
            return _Class.BULK
        return _Class.LOWEST_LATENCY if frames <= 2 and nbytes < 512 else now
    if nbytes > 25000:
        return _Class.LOW_LATENCY if frames > 35 else now
    return _Class.LOW_LATENCY if nbytes < 1500 else now
