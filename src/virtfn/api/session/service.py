"""Requests of a lab that stays up: how it is, that it end, and that its guests send."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.standing import MAX_RATE, Standing, TrafficCounts
from virtfn.machine.ports import VirtfnError

__all__ = ["EndLab", "EndedDocument", "ReadStatus", "StartTraffic", "StatusDocument", "StopTraffic", "standing_of"]


class StatusDocument(TypedDict):
    """What `lab.status` answers. vfs: enabled; attached: guests with an interface; traffic: null if it cannot be.

    unwritten: why the lab's state file does not know the latest change; null: it does.
    """

    lab: str
    state: str
    pid: int
    uptime_s: float
    pfs: int
    vfs: int
    guests: int
    attached: int
    traffic: TrafficCounts | None
    unwritten: str | None


@dataclass(frozen=True, slots=True)
class ReadStatus(Request[StatusDocument]):
    """Tell how the lab is."""

    method: ClassVar[str] = "lab.status"

    def answer(self, session: Answering) -> StatusDocument:
        """Look."""
        machine, standing = session.machine, session.live.standing
        linux = [guest for guest in session.linux_guests if guest.attached]
        return {
            "lab": session.lab.name,
            "state": session.state.value,
            "pid": os.getpid(),
            "uptime_s": round(session.elapsed_s, 3),
            "pfs": len(machine.pfs),
            "vfs": sum(pf.nic.vfs for pf in machine.pfs),
            "guests": len(machine.lab.guests),
            "attached": len(machine.guests) + len(linux),
            "traffic": standing.counts if standing is not None else None,
            "unwritten": session.behind,
        }


class EndedDocument(TypedDict):
    """What `lab.down` answers: it is about to end."""

    lab: str
    pid: int


@dataclass(frozen=True, slots=True)
class EndLab(Request[EndedDocument]):
    """Take the lab down, in good order, once this is answered."""

    method: ClassVar[str] = "lab.down"

    def answer(self, session: Answering) -> EndedDocument:
        """Have it end."""
        session.end()
        return {"lab": session.lab.name, "pid": os.getpid()}


@dataclass(frozen=True, slots=True)
class StartTraffic(Request[TrafficCounts]):
    """Let the embedded guests do the lab's work over and over. rate: frames a second from each sender."""

    method: ClassVar[str] = "traffic.start"
    rate: int = 1000

    @classmethod
    def from_params(cls, params: Params) -> StartTraffic:
        """Make it from JSON."""
        known(params, "rate")
        rate = number({"rate": 1000, **params}, "rate", 31)
        if not 1 <= rate <= MAX_RATE:
            raise VirtfnError(f"rate is 1 to {MAX_RATE} frames a second, not {rate}", errno_name="ERANGE")
        return cls(rate)

    def answer(self, session: Answering) -> TrafficCounts:
        """Begin."""
        standing = standing_of(session)
        standing.send(self.rate)
        session.changed()
        return standing.counts


@dataclass(frozen=True, slots=True)
class StopTraffic(Request[TrafficCounts]):
    """Let the embedded guests rest; the counts are those of the rounds that were over."""

    method: ClassVar[str] = "traffic.stop"

    def answer(self, session: Answering) -> TrafficCounts:
        """End it."""
        standing = standing_of(session)
        counts = standing.counts
        standing.send(0)
        session.changed()
        return counts


def standing_of(session: Answering) -> Standing:
    """Return the guests of a service. Raises VirtfnError (EOPNOTSUPP) where a lab does its work once, and ends."""
    if session.live.standing is None:
        raise VirtfnError(f"lab {session.lab.name} does its work once; virtfn up is for this", errno_name="EOPNOTSUPP")
    return session.live.standing
