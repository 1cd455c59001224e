"""The request for what has happened in a lab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.session.asking import AT_ONCE, Answering, ReadSince
from virtfn.api.session.events import EventDocument

__all__ = ["EventsDocument", "ReadEvents"]


class EventsDocument(TypedDict):
    """What `events.read` answers. lost: events before these that are gone; next: what to ask with, to read on."""

    events: list[EventDocument]
    lost: int
    next: int


@dataclass(frozen=True, slots=True)
class ReadEvents(ReadSince[EventsDocument]):
    """Read events from a sequence number on; 256 at a time."""

    method: ClassVar[str] = "events.read"

    def answer(self, session: Answering) -> EventsDocument:
        """Read."""
        reading = session.events.since(self.since, AT_ONCE)
        return {"events": [told.document() for told in reading.events], "lost": reading.lost, "next": reading.next}
