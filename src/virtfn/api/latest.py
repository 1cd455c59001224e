"""The latest of what happens, in order: bounded, and read by sequence number."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["Latest"]

T = TypeVar("T")


class Latest(Generic[T]):
    """Keeps the latest `kept`, which have sequence numbers from 0 on. next: of the one to come.

    For one thread, or under its owner's lock.
    """

    def __init__(self, kept: int) -> None:
        self._kept: deque[T] = deque(maxlen=kept)
        self.next = 0

    def add(self, what: T) -> None:
        """Add one, numbered `next`."""
        self._kept.append(what)
        self.next += 1

    def since(self, sequence: int, most: int) -> tuple[list[T], int, int]:
        """Read the oldest `most` from a sequence number on; return them, how many are lost, and where to read on."""
        first = self.next - len(self._kept)
        begin = min(max(sequence, first), self.next)
        found = [self._kept[i] for i in range(begin - first, min(begin - first + most, len(self._kept)))]
        return found, max(first - max(sequence, 0), 0), begin + len(found)
