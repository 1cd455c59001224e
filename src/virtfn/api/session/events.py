"""What happened in a lab, in order: a bounded stream, read by sequence number.

GUEST_BOOTED     a guest works: an embedded one at once, Linux when it takes commands
GUEST_CONNECTED, GUEST_DISCONNECTED  a QEMU that somebody else has started comes to a guest's socket, and goes
VFS_REFUSED      the guest of such a QEMU can make no VFs, or those that it has made do not work
WORK_DONE        the work of the lab is over
FAULTS_RECORDED  the remapping unit refused something; up to ten such events a second, however many faults there are
ADDRESS_REFUSED  a guest asked for an address that is another's; as often at most
STATE_CHANGED    the session's
STATE_UNWRITTEN  a change holds that the lab's state file does not know
GUEST_ATTACHED   a VF was plugged into a guest; GUEST_DETACHED: and unplugged
GUEST_ENDED      a guest under QEMU has ended by itself, or was killed; its VF is free
VFS_CHANGED      a PF has another number of VFs, whoever has made them
VF_...           what a VF's owner does too often, and what is done about it: SPOOFED, WARNED, THROTTLED, QUARANTINED,
                 RELEASED; a few a second for each VF at most
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Generic, NamedTuple, TypedDict, TypeVar

from virtfn.api.latest import Latest
from virtfn.drivers.policy import Claim
from virtfn.hw.types import Ps, format_mac, format_rid
from virtfn.hw.vtd.regs import Fault
from virtfn.machine.clock import MS_PS, S_PS, US_PS, WallClock, epoch_ps
from virtfn.machine.netports import Card
from virtfn.machine.ports import Actor

__all__ = [
    "AddressRefused",
    "ClaimWatch",
    "Event",
    "EventDocument",
    "Events",
    "FaultWatch",
    "FaultsRecorded",
    "GuestAttached",
    "GuestBooted",
    "GuestConnected",
    "GuestDetached",
    "GuestDisconnected",
    "GuestEnded",
    "HostWatch",
    "Reading",
    "StateChanged",
    "StateUnwritten",
    "Told",
    "VfQuarantined",
    "VfReleased",
    "VfSpoofed",
    "VfThrottled",
    "VfWarned",
    "VfsChanged",
    "VfsRefused",
    "WorkDone",
]

KEPT = 1024
_QUIET_PS = 100 * MS_PS
_Noted = TypeVar("_Noted")


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The session has come from one state into another; both by name."""

    name: ClassVar[str] = "STATE_CHANGED"
    before: str
    state: str


@dataclass(frozen=True, slots=True)
class StateUnwritten:
    """The lab has changed, and the file that it is brought up from again could not be written. why: in words."""

    name: ClassVar[str] = "STATE_UNWRITTEN"
    why: str


@dataclass(frozen=True, slots=True)
class GuestBooted:
    """A guest works. boot_s: what it took, 0 for an embedded one."""

    name: ClassVar[str] = "GUEST_BOOTED"
    guest: str
    vmm: str
    boot_s: float


@dataclass(frozen=True, slots=True)
class GuestConnected:
    """Somebody else's QEMU has come to the socket of a guest."""

    name: ClassVar[str] = "GUEST_CONNECTED"
    guest: str


@dataclass(frozen=True, slots=True)
class GuestDisconnected:
    """It has gone. refusal: what it was refused last, in words, if anything."""

    name: ClassVar[str] = "GUEST_DISCONNECTED"
    guest: str
    refusal: str


@dataclass(frozen=True, slots=True)
class VfsRefused:
    """A guest that is a host, in a QEMU that somebody else has started, has no VFs that work. why: in words."""

    name: ClassVar[str] = "VFS_REFUSED"
    guest: str
    why: str


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The work is over. finished: whether all of it was done."""

    name: ClassVar[str] = "WORK_DONE"
    finished: bool


@dataclass(frozen=True, slots=True)
class FaultsRecorded:
    """The remapping unit has told of faults. count: since the last such event; the rest is of the latest."""

    name: ClassVar[str] = "FAULTS_RECORDED"
    count: int
    rid: str
    iova: int
    reason: str
    write: bool


@dataclass(frozen=True, slots=True)
class AddressRefused:
    """A guest asked for an address that is another's. count: since the last such event; the rest is of the latest.

    rid: of its VF. holder: whose address it is, a VF's routing ID or the PF's.
    """

    name: ClassVar[str] = "ADDRESS_REFUSED"
    count: int
    rid: str
    address: str
    holder: str


@dataclass(frozen=True, slots=True)
class GuestAttached:
    """A VF was plugged into a guest. vf: like pf0/vf1."""

    name: ClassVar[str] = "GUEST_ATTACHED"
    guest: str
    vf: str


@dataclass(frozen=True, slots=True)
class GuestDetached:
    """A VF was unplugged from a guest. vf: like pf0/vf1."""

    name: ClassVar[str] = "GUEST_DETACHED"
    guest: str
    vf: str


@dataclass(frozen=True, slots=True)
class GuestEnded:
    """A guest under QEMU has ended. how: in words."""

    name: ClassVar[str] = "GUEST_ENDED"
    guest: str
    how: str


@dataclass(frozen=True, slots=True)
class VfsChanged:
    """A PF has another number of VFs."""

    name: ClassVar[str] = "VFS_CHANGED"
    pf: str
    before: int
    vfs: int


@dataclass(frozen=True, slots=True)
class VfSpoofed:
    """A VF has sent frames that are not its to send, and they were dropped. count: since the last look."""

    name: ClassVar[str] = "VF_SPOOFED"
    pf: str
    vf: int
    rid: str
    guest: str
    count: int


@dataclass(frozen=True, slots=True)
class VfWarned:
    """A VF is over a limit. kind: of what; per_second: how much there was, and how much is allowed; why: in words."""

    name: ClassVar[str] = "VF_WARNED"
    pf: str
    vf: int
    rid: str
    guest: str
    kind: str
    per_second: int
    allowed: int
    why: str


@dataclass(frozen=True, slots=True)
class VfThrottled:
    """A VF was over a limit, and is held back from now on. mbps: what it may send."""

    name: ClassVar[str] = "VF_THROTTLED"
    pf: str
    vf: int
    rid: str
    guest: str
    kind: str
    why: str
    mbps: int


@dataclass(frozen=True, slots=True)
class VfQuarantined:
    """A VF was stopped. kind: of the limit that it was over; null: a person did it."""

    name: ClassVar[str] = "VF_QUARANTINED"
    pf: str
    vf: int
    rid: str
    guest: str
    kind: str | None
    why: str


@dataclass(frozen=True, slots=True)
class VfReleased:
    """A VF runs again as it was."""

    name: ClassVar[str] = "VF_RELEASED"
    pf: str
    vf: int
    rid: str
    guest: str


VfEvent = VfSpoofed | VfWarned | VfThrottled | VfQuarantined | VfReleased
Event = (
    StateChanged
    | StateUnwritten
    | GuestBooted
    | GuestConnected
    | GuestDisconnected
    | VfsRefused
    | WorkDone
    | FaultsRecorded
    | AddressRefused
    | GuestAttached
    | GuestDetached
    | GuestEnded
    | VfsChanged
    | VfEvent
)


class EventDocument(TypedDict):
    """An event as JSON, in the manner of QMP, with its place in the stream."""

    sequence: int
    event: str
    timestamp: dict[str, int]
    data: dict[str, object]


class Told(NamedTuple):
    """An event in the stream. at: in ps since 1970."""

    sequence: int
    at: int
    event: Event

    def document(self) -> EventDocument:
        """Return it as JSON can hold it."""
        return {
            "sequence": self.sequence,
            "event": self.event.name,
            "timestamp": {"seconds": self.at // S_PS, "microseconds": self.at % S_PS // US_PS},
            "data": asdict(self.event),
        }


class Reading(NamedTuple):
    """Events that were read. lost: how many before them are gone. next: where to read on."""

    events: list[Told]
    lost: int
    next: int


class Events:
    """The stream: the latest `kept` events, for readers in any thread. Who reads too late learns how many are gone."""

    def __init__(self, clock: WallClock, kept: int = KEPT) -> None:
        self._clock = clock
        self._epoch = epoch_ps(clock)
        self._lock = threading.Lock()
        self._latest = Latest[Told](kept)

    def tell(self, event: Event) -> None:
        """Add an event."""
        with self._lock:
            self._latest.add(Told(self._latest.next, self._clock.now() + self._epoch, event))

    def since(self, sequence: int, most: int = KEPT) -> Reading:
        """Read the oldest `most` events of those from `sequence` on."""
        with self._lock:
            return Reading(*self._latest.since(sequence, most))


class _Watch(Actor, Generic[_Noted]):
    """Turns what is noted into events, and many at a time into one. An actor of the world."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._untold: list[_Noted] = []  # the latest alone
        self._count = 0
        self._quiet_until = Ps(0)

    def event(self, count: int, latest: _Noted) -> Event:
        """Make the event."""
        raise NotImplementedError

    def note(self, what: _Noted) -> None:
        """Take what is to be told."""
        self._count += 1
        self._untold[:] = [what]

    def turn(self, now: Ps) -> int:
        """Tell of what was noted, if it is time to."""
        if not self._untold or now < self._quiet_until:
            return 0
        self._tell(self.event(self._count, self._untold.pop()))
        self._count, self._quiet_until = 0, Ps(now + _QUIET_PS)
        return 1

    def due(self) -> Ps | None:
        """Say when what was noted may be told."""
        return self._quiet_until if self._untold else None


class FaultWatch(_Watch[Fault]):
    """Tells of faults of the remapping unit."""

    def event(self, count: int, latest: Fault) -> Event:
        """Make the event of the latest fault."""
        return FaultsRecorded(count, format_rid(latest.rid), latest.iova, latest.reason.text, latest.write)


class HostWatch(Actor):
    """Tells of VFs that a guest makes of its PF, or takes away, and of what they spoof. An actor of the world."""

    def __init__(self, tell: Callable[[Event], None], pf: str, guest: str, card: Card) -> None:
        self._tell, self._pf, self._guest, self._card = tell, pf, guest, card
        self._known = card.vfs
        self._spoofed: list[int] = []
        self._next = Ps(0)

    def turn(self, now: Ps) -> int:
        """Look: at how many VFs there are each time, at what they did once a second."""
        known, self._known = self._known, self._card.vfs
        if self._known != known:
            self._tell(VfsChanged(self._pf, known, self._known))
        if now >= self._next:
            self._next = Ps(now + S_PS)
            self._look()
        return 0

    def due(self) -> Ps | None:
        """Say when to look again at what they did; nobody is woken while there are none."""
        return self._next if self._card.vfs else None

    def _look(self) -> None:
        before, self._spoofed = self._spoofed, [conduct.spoofed for conduct in self._card.conduct()]
        for n, (had, has) in enumerate(zip(before, self._spoofed, strict=False)):
            if has > had:
                rid = format_rid(self._card.vf_rid(n))
                self._tell(VfSpoofed(self._pf, n, rid, self._guest, has - had))


class ClaimWatch(_Watch[Claim]):
    """Tells of addresses that guests of a PF were refused. name: the function of a VF, or of the PF."""

    def __init__(self, tell: Callable[[Event], None], name: Callable[[int | None], str]) -> None:
        super().__init__(tell)
        self._name = name

    def event(self, count: int, latest: Claim) -> Event:
        """Make the event of the latest claim."""
        return AddressRefused(count, self._name(latest.vf), format_mac(latest.mac), self._name(latest.holder))
