"""What a session can be asked: a class for each request, by the names that the control socket has for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

from virtfn.api.iommu import ShowDocument, show_live
from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.captures import ReadCard, StartCapture
from virtfn.api.session.changes import ApplyLab, AttachGuest, DetachGuest, GetLab, SetVfs
from virtfn.api.session.links import SetLinks, ShowLinks
from virtfn.api.session.looking import Look
from virtfn.api.session.mailbox import ReadMailbox
from virtfn.api.session.service import EndLab, ReadStatus, StartTraffic, StopTraffic
from virtfn.api.session.snapshot import Snapshot
from virtfn.api.session.stream import EventsDocument, ReadEvents
from virtfn.api.session.watching import ListVfs, QuarantineVf, ReleaseVf
from virtfn.hw.types import Iova, Rid
from virtfn.iovm.iommu.explanation import Explanation
from virtfn.iovm.iommu.state import UnitState, read_unit
from virtfn.iovm.iommu.walk import explain
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest

__all__ = [
    "REQUESTS",
    "Answering",
    "EventsDocument",
    "ExplainIommu",
    "OutcomeDocument",
    "Params",
    "ReadCard",
    "ReadEvents",
    "ReadSnapshot",
    "Request",
    "RunInGuest",
    "SetLinks",
    "ShowIommu",
    "ShowLinks",
    "StartCapture",
]


@dataclass(frozen=True, slots=True)
class ShowIommu(Request[ShowDocument]):
    """Describe the remapping unit with all of its tables."""

    method: ClassVar[str] = "iommu.show"
    long: ClassVar[bool] = True

    def pieces(self, session: Answering) -> InPieces[ShowDocument]:
        """Read the tables."""
        return show_live(session.machine.host, f"lab {session.lab.name}")


@dataclass(frozen=True, slots=True)
class ExplainIommu(Request[Explanation]):
    """Walk the tables for one request of a device. message: the data, if it is an interrupt message."""

    method: ClassVar[str] = "iommu.explain"
    rid: Rid
    iova: Iova
    write: bool = False
    message: int = 0

    @classmethod
    def from_params(cls, params: Params) -> ExplainIommu:
        """Make it from JSON."""
        known(params, "rid", "iova", "write", "message")
        write = params.get("write", False)
        if not isinstance(write, bool):
            raise VirtfnError("write is true or false", errno_name="EINVAL")
        return cls(
            Rid(number(params, "rid", 16)), Iova(number(params, "iova", 64)), write, number(params, "message", 32)
        )

    def answer(self, session: Answering) -> Explanation:
        """Walk."""
        return self.explain(read_unit(session.machine.host))

    def explain(self, state: UnitState) -> Explanation:
        """Walk the tables of a unit."""
        return explain(state, self.rid, self.iova, self.write, self.message)


@dataclass(frozen=True, slots=True)
class ReadSnapshot(Request[Snapshot]):
    """Read what guests, functions and cards have counted."""

    method: ClassVar[str] = "session.snapshot"

    def pieces(self, session: Answering) -> InPieces[Snapshot]:
        """Read."""
        return session.snapshot_pieces()


class OutcomeDocument(TypedDict):
    """What `guest.exec` answers. output: standard output and error, 1 MiB of them at most."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class RunInGuest(Request[OutcomeDocument]):
    """Run a shell command in a Linux guest, and wait for its end."""

    method: ClassVar[str] = "guest.exec"
    waits: ClassVar[bool] = True
    guest: str
    command: str

    @classmethod
    def from_params(cls, params: Params) -> RunInGuest:
        """Make it from JSON."""
        known(params, "guest", "command")
        guest, command = params.get("guest"), params.get("command")
        if not isinstance(guest, str) or not isinstance(command, str) or not command.strip():
            raise VirtfnError("guest and command are text, and there is a command", errno_name="EINVAL")
        try:
            command.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise VirtfnError("the command holds half a character", errno_name="EINVAL") from None
        return cls(guest[:64], command)

    def pieces(self, session: Answering) -> InPieces[OutcomeDocument]:
        """Start it, and look now and then."""
        job = self._guest(session).start(self.command)
        while not job.done:
            yield
        if job.outcome is None:
            raise VirtfnError(f"guest {self.guest} has restarted or ended meanwhile", errno_name="ECONNRESET")
        return {"status": job.outcome.status, "output": job.outcome.output}

    def _guest(self, session: Answering) -> LinuxGuest:
        for guest in session.linux_guests:
            if guest.lab.name == self.guest:
                if not guest.vm.guest.agent.ready:
                    if not guest.lab.has_agent:
                        words = f"guest {self.guest} boots an image without virtfn's agent; virtfn shell is its console"
                        raise VirtfnError(words, errno_name="EOPNOTSUPP")
                    raise VirtfnError(f"guest {self.guest} takes no commands yet", errno_name="EAGAIN")
                return guest
        if any(guest.name == self.guest for guest in session.lab.guests):
            raise VirtfnError(f"guest {self.guest} is none under QEMU, or not there yet", errno_name="EOPNOTSUPP")
        raise VirtfnError(f"lab {session.lab.name} has no guest called {self.guest}", errno_name="ENOENT")


REQUESTS: tuple[type[Request[object]], ...] = (
    ShowIommu,  # type: ignore[assignment]  # a request for a document is one for an object
    ExplainIommu,
    ReadSnapshot,
    Look,
    ReadEvents,
    RunInGuest,
    ReadStatus,
    EndLab,
    StartTraffic,
    StopTraffic,
    GetLab,
    ApplyLab,
    AttachGuest,
    DetachGuest,
    SetVfs,
    ListVfs,
    QuarantineVf,
    ReleaseVf,
    StartCapture,
    ReadCard,
    ReadMailbox,
    ShowLinks,
    SetLinks,
)
