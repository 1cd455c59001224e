"""Interrupt messages and where they go: a write of `message` to `address` calls whoever asked for that pair.

The machine's stand-in for local APICs. Every message says who sent it; one that nobody asked for, or that comes from
another requester than the one it was given to, is counted and goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from virtfn.hw.types import Rid
from virtfn.machine.ports import VirtfnError

__all__ = ["APIC_BASE", "InterruptController"]

APIC_BASE = 0xFEE00000
_FIRST_VECTOR, _VECTORS, _APICS = 0x20, 0xD0, 256


@dataclass(frozen=True, slots=True)
class _Route:
    rid: Rid
    deliver: Callable[[], None]


class InterruptController:
    """Gives out messages, and delivers those that come in."""

    def __init__(self) -> None:
        self._routes: dict[tuple[int, int], _Route] = {}
        self._next = 0
        self.delivered = 0
        self.spurious = 0
        self.on_message: Callable[[Rid, int, int], object] | None = None

    def allocate(self, rid: Rid, deliver: Callable[[], None]) -> tuple[int, int]:
        """Reserve a message for requester `rid`; `deliver` is called for each one that comes.

        Returns (address, message). Raises VirtfnError when there are none left.
        """
        for _ in range(_VECTORS * _APICS):
            apic, vector = self._next // _VECTORS % _APICS, self._next % _VECTORS
            self._next += 1
            key = APIC_BASE | apic << 12, _FIRST_VECTOR + vector
            if key not in self._routes:
                self._routes[key] = _Route(rid, deliver)
                return key
        raise VirtfnError("no interrupt vectors are left", errno_name="ENOSPC")

    def free(self, address: int, message: int) -> None:
        """Give a message back; from now on it goes nowhere."""
        self._routes.pop((address, message), None)

    def send(self, rid: Rid, address: int, message: int) -> bool:
        """Deliver a message of requester `rid`; False if nobody wants it from there."""
        if self.on_message is not None:
            self.on_message(rid, address, message)
        route = self._routes.get((address, message))
        if route is None or route.rid != rid:
            self.spurious += 1
            return False
        self.delivered += 1
        route.deliver()
        return True
