"""The request for what has happened in a lab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.events import EventDocument

__all__ = ["EventsDocument", "ReadEvents"]

_AT_ONCE = 256


class EventsDocument(TypedDict):
    """What `events.read` answers. lost: events before these that are gone; next: what to ask with, to read on."""

    events: list[EventDocument]
    lost: int
    next: int


@dataclass(frozen=True, slots=True)
class ReadEvents(Request[EventsDocument]):
    """Read events from a sequence number on; 256 at a time."""

    method: ClassVar[str] = "events.read"
    since: int = 0

    @classmethod
    def from_params(cls, params: Params) -> ReadEvents:
        """Make it from JSON."""
        known(params, "since")
        return cls(number(params, "since", 63))

    def answer(self, session: Answering) -> EventsDocument:
        """Read."""
        reading = session.events.since(self.since, _AT_ONCE)
        return {"events": [told.document() for told in reading.events], "lost": reading.lost, "next": reading.next}
