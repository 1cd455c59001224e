"""Register writes of compiled code: a driver's kernel stores into a word, and the card learns it before its turn."""

from __future__ import annotations

import numpy as np

from virtfn.hw.types import Hva, Rid
from virtfn.kernels.ranges import address_of
from virtfn.kernels.traps import MOST_TRAPS, new_traps
from virtfn.machine.meter import EVENTS, Meter
from virtfn.machine.netports import Card
from virtfn.machine.ports import VirtfnError

__all__ = ["Traps"]

_LINE = 16  # of the cache, in 32-bit words: each trapped word has one


class Traps:
    """Trapped words of one function of a card. meter: of the guest, where each write is an exit; None: the host's own.

    It is served instead of the card: address, settle, handle, waits, follow_time.
    """

    def __init__(self, card: Card, rid: Rid, meter: Meter | None = None) -> None:
        self._card = card
        self._meter = Meter() if meter is None else meter  # its row is counted into
        exits = address_of(self._meter.row, "costs of a guest") + EVENTS.index("exit_bar") * 8
        self._row = new_traps(card.address, card.vectors(rid).function, exits)
        self._words = np.zeros(MOST_TRAPS * _LINE, np.uint32)
        self._base = address_of(self._words, "words that trap")
        self.address = int(self._row.ctypes.data)

    def word(self, offset: int, value: int) -> Hva:
        """Return the address of the word that stands for the register at `offset` of BAR0, which holds `value` now.

        Raises VirtfnError if there are no more.
        """
        row = self._row[0]
        count = int(row["count"])
        known = row["words"][:count, 1].tolist()
        n = known.index(offset) if offset in known else count
        if n == MOST_TRAPS:
            raise VirtfnError(f"at most {MOST_TRAPS} registers can be written by compiled code", errno_name="ENOSPC")
        self._words[n * _LINE] = value
        row["words"][n] = self._base + n * _LINE * 4, offset, value
        row["count"] = max(count, n + 1)
        return Hva(self._base + n * _LINE * 4)

    def settle(self) -> None:
        """Get the card ready."""
        self._card.settle()

    def handle(self, events: int) -> None:
        """Let the card do what a call of kernels asked for."""
        self._card.handle(events)

    @property
    def waits(self) -> bool:
        """Whether a frame holds up the card's line."""
        return self._card.waits

    def follow_time(self, limit_ps: int) -> None:
        """Let the card see time pass."""
        self._card.follow_time(limit_ps)
