"""What a request is, and what it may use of the session that carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeVar

from virtfn.api.lab import Lab
from virtfn.api.machine import Machine
from virtfn.api.session.events import Events
from virtfn.api.session.snapshot import Snapshot
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.world import World

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest
    from virtfn.api.session.live import Live
    from virtfn.api.session.session import State

__all__ = ["AT_ONCE", "Answering", "Params", "ReadSince", "Request", "known", "number", "text"]

T = TypeVar("T")
Params = Mapping[str, object]
AT_ONCE = 256  # of what is numbered, in an answer


class Answering(Protocol):
    """What a request may use of the session that carries it out."""

    events: Events

    @property
    def lab(self) -> Lab:
        """The lab, as it is now."""

    @property
    def state(self) -> State:
        """Where the session is on its way."""

    @property
    def elapsed_s(self) -> float:
        """How long ago the session was made."""

    @property
    def behind(self) -> str | None:
        """Why whoever keeps the lab in a file has not written the latest change; None: it is written, or not kept."""

    @property
    def live(self) -> Live:
        """What stands. Raises VirtfnError if nothing is up."""

    def snapshot_pieces(self) -> InPieces[Snapshot]:
        """Do the same in pieces, between others' turns."""

    def changed(self) -> None:
        """Take note that the lab is not as it was: whoever keeps it in a file writes that anew."""

    def end(self) -> None:
        """Let the lab end that is kept up. Raises VirtfnError (EBUSY) if it is at work."""

    @property
    def machine(self) -> Machine:
        """The machine. Raises VirtfnError if none is up."""

    @property
    def linux_guests(self) -> Sequence[LinuxGuest]:
        """The guests under QEMU that are there. Raises VirtfnError if nothing is up."""

    @property
    def world(self) -> World:
        """The world: for actors that a request brings, and that leave it themselves."""

    def snapshot(self) -> Snapshot:
        """Return what everybody has counted. Raises VirtfnError if nothing ever was up."""


class Request(Generic[T]):
    """A request: how it is made from JSON, and how a session carries it out.

    method: its name at the control socket. long: whether it takes more than a moment; such requests are carried out one
    after the other, in pieces, and others pass them. waits: whether it waits for somebody else; then a piece is a look
    whether that has come. hands: whether descriptors come with the answer, so that only the socket can carry it.
    """

    method: ClassVar[str]
    long: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    hands: ClassVar[bool] = False

    @classmethod
    def from_params(cls, params: Params) -> Request[T]:
        """Make it from JSON.

        Raises VirtfnError (EINVAL) for what is no such request.
        """
        known(params)
        return cls()

    def answer(self, session: Answering) -> T:
        """Carry it out at once. Raises VirtfnError to refuse."""
        raise NotImplementedError

    def pieces(self, session: Answering) -> InPieces[T]:
        """Carry it out in pieces, each a fraction of a millisecond. Raises VirtfnError to refuse."""
        return self.answer(session)
        yield  # makes it a generator: of one piece


@dataclass(frozen=True, slots=True)
class ReadSince(Request[T]):
    """A request for what is numbered and kept for a while, from a sequence number on; `AT_ONCE` at a time."""

    since: int = 0

    @classmethod
    def from_params(cls, params: Params) -> Self:
        """Make it from JSON."""
        known(params, "since")
        return cls(number(params, "since", 63))


def known(params: Params, *names: str) -> None:
    """Refuse params that a request has not: VirtfnError (EINVAL)."""
    for name in params:
        if name not in names:
            there = f"there are {', '.join(names)}" if names else "there are none"
            raise VirtfnError(f"no such parameter: {name[:64]}; {there}", errno_name="EINVAL")


def text(params: Params, name: str) -> str:
    """Read a text; VirtfnError (EINVAL) for anything else."""
    value = params.get(name)
    if not isinstance(value, str):
        raise VirtfnError(f"{name} is text", errno_name="EINVAL")
    return value


def number(params: Params, name: str, bits: int) -> int:
    """Read a number of so many bits, 0 if it is not there; VirtfnError (EINVAL) for anything else."""
    value = params.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise VirtfnError(f"{name} is a number of {bits} bits", errno_name="EINVAL")
    return value
