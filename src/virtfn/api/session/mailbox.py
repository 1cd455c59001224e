"""The request for what VFs and PFs have said to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.session.asking import AT_ONCE, Answering, ReadSince
from virtfn.hw.types import format_rid
from virtfn.machine.clock import S_PS, US_PS

__all__ = ["MessageDocument", "MessagesDocument", "ReadMailbox"]


class MessageDocument(TypedDict):
    """One message. rid: of the VF; to_pf: it goes to the PF, and is from it else; text: what it says."""

    sequence: int
    timestamp: dict[str, int]
    rid: str
    to_pf: bool
    text: str


class MessagesDocument(TypedDict):
    """What `mailbox.read` answers. lost: messages before these that are gone; next: what to ask with, to read on."""

    messages: list[MessageDocument]
    lost: int
    next: int


@dataclass(frozen=True, slots=True)
class ReadMailbox(ReadSince[MessagesDocument]):
    """Read messages of mailboxes from a sequence number on; 256 at a time, and the latest 512 are kept."""

    method: ClassVar[str] = "mailbox.read"

    def answer(self, session: Answering) -> MessagesDocument:
        """Read."""
        found, lost, following = session.machine.messages.since(self.since, AT_ONCE)
        messages: list[MessageDocument] = [
            {
                "sequence": message.sequence,
                "timestamp": {"seconds": message.at // S_PS, "microseconds": message.at % S_PS // US_PS},
                "rid": format_rid(message.rid),
                "to_pf": message.to_pf,
                "text": message.text,
            }
            for message in found
        ]
        return {"messages": messages, "lost": lost, "next": following}
