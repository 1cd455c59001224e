"""Cards, and what is like one, that are served one after the other as one: of one NIC, and of all that stands on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virtfn.kernels.card import new_row_of_cards
from virtfn.kernels.clock import CLOCK, set_up_clock
from virtfn.machine.netports import Served

__all__ = ["Together"]


class Together:
    """Several as one. parts: in the order in which they are served."""

    def __init__(self, parts: Sequence[Served]) -> None:
        self._parts = list(parts)
        self._row = new_row_of_cards([part.address for part in parts])
        self.address = int(self._row.ctypes.data)
        self._clock = np.zeros(1, CLOCK)

    def settle(self) -> None:
        """Get all ready."""
        for part in self._parts:
            part.settle()

    def handle(self, events: int) -> None:
        """Let each do what any has called for."""
        for part in self._parts:
            part.handle(events)

    @property
    def waits(self) -> bool:
        """Whether a frame holds up others anywhere."""
        return any(part.waits for part in self._parts)

    def follow_time(self, limit_ps: int) -> None:
        """Let all see time pass."""
        for part in self._parts:
            part.follow_time(limit_ps)
        self._row["card"]["clock"] = set_up_clock(self._clock)
        self._clock["limit"] = limit_ps
