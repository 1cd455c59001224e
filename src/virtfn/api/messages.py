"""The messages of mailboxes, of the last while: what VFs and PFs have said to each other, read by sequence number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from virtfn.api.latest import Latest
from virtfn.hw.types import Rid
from virtfn.machine.clock import WallClock, epoch_ps
from virtfn.machine.ports import Clock

__all__ = ["KEPT", "Message", "Messages"]

KEPT = 512


class Message(NamedTuple):
    """One message. at: in ps since 1970; rid: of the VF; to_pf: or from it; text: what it says."""

    sequence: int
    at: int
    rid: Rid
    to_pf: bool
    text: str


class Messages:
    """The latest messages of all mailboxes, for the machine's thread. Who reads too late learns how many are gone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = epoch_ps(clock) if isinstance(clock, WallClock) else 0
        self._latest = Latest[Message](KEPT)

    def note(self, rid: Rid, to_pf: bool, words: Sequence[int], text: str) -> None:
        """Take note of a message, as a card tells of it."""
        self._latest.add(Message(self._latest.next, self._clock.now() + self._epoch, rid, to_pf, text))

    def since(self, sequence: int, most: int) -> tuple[list[Message], int, int]:
        """Read the oldest `most` from a sequence number on; return them, how many are lost, and where to read on."""
        return self._latest.since(sequence, most)
