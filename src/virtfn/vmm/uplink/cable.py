"""A cable between two cards of this machine: what leaves one by its wire arrives at the other, from where it lies.

Kernels carry it (`kernels/i82576/cable.py`), in turns and between them. What has no place at the other end stays where
it is, and a card drops what it has no room for, as ever.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from virtfn.machine.netports import Card
from virtfn.vmm.uplink.uplink import NOTHING, Burst

__all__ = ["CableEnd", "make_cable"]


def make_cable() -> tuple[CableEnd, CableEnd]:
    """Make a cable, and return its ends."""
    one, other = CableEnd(), CableEnd()
    one.peer, other.peer = other, one
    return one, other


class CableEnd:
    """One end; an `Uplink`, though nothing is handed to it. peer: the other; card: that it is plugged into."""

    live, bare = True, False
    peer: CableEnd

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.card: Card | None = None
        self._here = True

    def attend(self) -> bool:
        """Tell whether the cable is whole."""
        return self._here and self.peer._here

    @property
    def far_card(self) -> Card | None:
        """The card at the other end, as long as the cable is whole and that is plugged in."""
        return self.peer.card if self.attend() else None

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Take nothing: kernels carry."""
        return 0

    def receive(self) -> Burst:
        """Return nothing: what arrives is in the card already."""
        return NOTHING

    def fileno(self) -> int:
        """Return -1: nothing comes from outside."""
        return -1

    def close(self) -> None:
        """Pull it out."""
        self._here = False
