"""Vectors and who waits for them: the machine's stand-in for local APICs.

    interrupt remapping -> (destination, vector) -> whoever allocated the pair

A vector that nobody waits for is counted and goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

from virtfn.machine.ports import VirtfnError

__all__ = ["APIC_BASE", "InterruptController"]

APIC_BASE = 0xFEE00000
_FIRST_VECTOR, _VECTORS, _APICS = 0x20, 0xD0, 256


class InterruptController:
    """Gives out vectors, and delivers those that are raised."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], Callable[[], None]] = {}
        self._next = 0
        self.delivered = 0
        self.spurious = 0

    def allocate(self, deliver: Callable[[], None]) -> tuple[int, int]:
        """Reserve a vector; `deliver` is called each time that it is raised.

        Returns (destination, vector): an APIC ID below 256, and a vector from 32 on. Raises VirtfnError when there are
        none left.
        """
        for _ in range(_VECTORS * _APICS):
            pair = self._next // _VECTORS % _APICS, _FIRST_VECTOR + self._next % _VECTORS
            self._next += 1
            if pair not in self._waiting:
                self._waiting[pair] = deliver
                return pair
        raise VirtfnError("no interrupt vectors are left", errno_name="ENOSPC")

    def free(self, destination: int, vector: int) -> None:
        """Give a vector back; from now on it goes nowhere."""
        self._waiting.pop((destination, vector), None)

    def deliver(self, destination: int, vector: int) -> bool:
        """Raise a vector; False if nobody waits for it."""
        waiting = self._waiting.get((destination, vector))
        if waiting is None:
            self.spurious += 1
            return False
        self.delivered += 1
        waiting()
        return True
