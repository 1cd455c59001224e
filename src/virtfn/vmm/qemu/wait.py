"""Waiting without standing still: while one thing is awaited, the caller's tick keeps everything else going.

QEMU asks the vfio-user server of this process while it starts, plugs and unplugs, so nobody here may block.
A tick does a little work (or rests) and returns within milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Tick", "Watch", "rest"]

Tick = Callable[[], None]


def rest() -> None:
    """Rest for two milliseconds: the tick of a caller with nothing else to do."""
    WallClock().sleep(2 * MS_PS)


def _always() -> None:
    return


@dataclass(frozen=True, slots=True)
class Watch:
    """How to wait. alive: raises VirtfnError when waiting has become pointless, for example because QEMU ended."""

    alive: Callable[[], None] = _always
    clock: Clock = field(default_factory=WallClock)

    def until(self, done: Callable[[], bool], what: str, *, timeout_s: float, tick: Tick = rest) -> None:
        """Tick until `done()`.

        Raises VirtfnError after `timeout_s` seconds ("WHAT did not come within ..."), or whatever `alive` raises.
        """
        deadline = self.clock.now() + round(timeout_s * S_PS)
        while not done():
            self.alive()
            if self.clock.now() >= deadline:
                raise VirtfnError(f"{what} did not come within {timeout_s:g} s", errno_name="ETIMEDOUT")
            tick()
