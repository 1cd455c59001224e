"""The request of who looks again and again: all that has come since the last look, in one answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypedDict, TypeVar

from virtfn.api.link import LinkDocument
from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.links import ShowLinks
from virtfn.api.session.mailbox import MessagesDocument, ReadMailbox
from virtfn.api.session.snapshot import Snapshot
from virtfn.api.session.stream import EventsDocument, ReadEvents
from virtfn.api.session.watching import ListVfs, VfDocument
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

__all__ = ["Look", "LookDocument"]

T = TypeVar("T")


class LookDocument(TypedDict):
    """What `session.look` answers: `snapshot`, and as of the other requests `events`, `messages`, `links` and `vfs`.

    links, vfs: null if they were not asked for, or the lab refuses them: a guest has the PF whole, say.
    """

    snapshot: Snapshot
    events: EventsDocument
    messages: MessagesDocument
    links: list[LinkDocument] | None
    vfs: list[VfDocument] | None


@dataclass(frozen=True, slots=True)
class Look(Request[LookDocument]):
    """Read counters, and the events and messages since the last look. policies: also what is in force for VFs."""

    method: ClassVar[str] = "session.look"
    events: int = 0
    messages: int = 0
    policies: bool = False

    @classmethod
    def from_params(cls, params: Params) -> Look:
        """Make it from JSON."""
        known(params, "events", "messages", "policies")
        policies = params.get("policies", False)
        if not isinstance(policies, bool):
            raise VirtfnError("policies is true or false", errno_name="EINVAL")
        return cls(number(params, "events", 63), number(params, "messages", 63), policies)

    def pieces(self, session: Answering) -> InPieces[LookDocument]:
        """Read."""
        snapshot = yield from session.snapshot_pieces()
        yield
        events = ReadEvents(self.events).answer(session)
        messages = ReadMailbox(self.messages).answer(session)
        yield
        links = _unless_refused(lambda: ShowLinks().answer(session)) if self.policies else None
        yield
        vfs = _unless_refused(lambda: ListVfs().answer(session)) if self.policies else None
        return {"snapshot": snapshot, "events": events, "messages": messages, "links": links, "vfs": vfs}


def _unless_refused(answer: Callable[[], T]) -> T | None:
    try:
        return answer()
    except VirtfnError:
        return None
