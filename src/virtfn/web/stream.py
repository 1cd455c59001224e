"""`GET /events`: what happens in the lab, as it happens, as server-sent events.

    id: 17
    event: GUEST_BOOTED
    data: {"sequence": 17, "event": ..., "timestamp": ..., "data": ...}

`?since=N` begins at a sequence number; a browser that comes again says where it was (`Last-Event-ID`). The lab is asked
four times a second for each listener; one who is slow loses events, and is told how many (`event: LOST`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from virtfn.api.session.requests import EventsDocument
from virtfn.machine.ports import VirtfnError
from virtfn.web.door import Door
from virtfn.web.guard import refusal
from virtfn.web.methods import refuse

__all__ = ["LISTENERS", "event_router"]

LISTENERS = 16
_LOOK_S = 0.25
_ALIVE_LOOKS = 60
_PASSING = ("EBUSY", "EAGAIN", "ETIMEDOUT")
"""What a lab that is there may refuse a question with, and answer the next."""


class _Events:
    """Events of the lab, and how many listen."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.listeners = 0

    async def since(self, sequence: int) -> EventsDocument:
        """Read events. Raises VirtfnError."""
        return cast(EventsDocument, await self._door.ask("events.read", {"since": sequence}))

    async def follow(self, first: EventsDocument) -> AsyncIterator[str]:
        """Yield events as they come, until the lab is gone."""
        looks, reading = 0, first
        yield "retry: 2000\n\n"
        while True:
            if reading["lost"]:
                yield f'event: LOST\ndata: {{"lost": {reading["lost"]}}}\n\n'
            for told in reading["events"]:
                yield f"id: {told['sequence']}\nevent: {told['event']}\ndata: {json.dumps(told)}\n\n"
            if not reading["events"]:
                looks += 1
                if looks % _ALIVE_LOOKS == 0:
                    yield ": alive\n\n"
                await asyncio.sleep(_LOOK_S)
            try:
                reading = await self.since(reading["next"])
            except VirtfnError as error:
                if error.errno_name in _PASSING:
                    reading = {"events": [], "lost": 0, "next": reading["next"]}
                    continue
                yield f"event: GONE\ndata: {json.dumps({'message': str(error)})}\n\n"
                return


def event_router(door: Door) -> APIRouter:
    """Make the route."""
    router = APIRouter()
    events = _Events(door)

    @router.get("/events", summary="Follow what happens, as server-sent events.", response_class=StreamingResponse)
    async def follow(
        since: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
        last_event_id: Annotated[str | None, Header(max_length=20)] = None,
    ) -> Response:
        if last_event_id is not None and last_event_id.isdecimal():
            since = min(int(last_event_id) + 1, (1 << 63) - 1)
        if events.listeners >= LISTENERS:
            return refusal(503, f"{LISTENERS} listen already", "EBUSY")
        try:
            first = await events.since(since)
        except VirtfnError as error:
            return refuse(error)
        return StreamingResponse(_counted(events, first), media_type="text/event-stream")

    return router


async def _counted(events: _Events, first: EventsDocument) -> AsyncIterator[str]:
    events.listeners += 1
    try:
        async for text in events.follow(first):
            yield text
    finally:
        events.listeners -= 1
