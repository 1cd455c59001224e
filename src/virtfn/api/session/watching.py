"""Requests about VFs that are watched: how each is, stop one, let it run again; and what the watch has to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.machine import LabPf, Machine
from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.events import Event, VfQuarantined, VfReleased, VfSpoofed, VfThrottled, VfWarned
from virtfn.api.session.policy import refuse_whole
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.iovm import Vf, VfState
from virtfn.iovm.watch import Deed, Notice
from virtfn.machine.ports import VirtfnError

__all__ = ["LimitDocument", "ListVfs", "QuarantineVf", "ReleaseVf", "VfDocument", "event_of", "find_vf"]

_WHY = 200  # characters


class LimitDocument(TypedDict):
    """One limit. per_second: what there was, at the last look; allowed: what may be; action: what is done beyond."""

    per_second: int
    allowed: int
    action: str


class VfDocument(TypedDict):
    """One VF. state: free, assigned or quarantined; throttled_mbps: null if it is not held back; why: it is either.

    guest: who has it; null: nobody. watch: the limits, by kind.
    """

    pf: str
    vf: int
    address: str
    guest: str | None
    state: str
    throttled_mbps: int | None
    why: str
    watch: dict[str, LimitDocument]


def _describe(machine: Machine, pf: str, vf: Vf) -> VfDocument:
    watch = machine.watch
    rates, rules = watch.rates(vf), watch.rules(vf)
    return {
        "pf": pf,
        "vf": vf.index,
        "address": format_rid(vf.rid),
        "guest": None if vf.vm is None else vf.vm.name,
        "state": vf.state.value,
        "throttled_mbps": vf.throttled,
        "why": watch.why(vf),
        "watch": {
            kind.value: {"per_second": rates[kind], "allowed": limit.per_second, "action": limit.action.value}
            for kind, limit in rules.limits.items()
        },
    }


def _of_a_host(machine: Machine, pf: LabPf, n: int, rid: Rid) -> VfDocument:
    """Describe a VF that a guest has made: it is that guest's, which nobody watches."""
    return {
        "pf": pf.name,
        "vf": n,
        "address": format_rid(rid),
        "guest": machine.lab.host_of(pf.name),
        "state": VfState.ASSIGNED.value,
        "throttled_mbps": None,
        "why": "",
        "watch": {},
    }


@dataclass(frozen=True, slots=True)
class ListVfs(Request[list[VfDocument]]):
    """Tell how VFs are, and how much of what they are watched for they do. pf: its VFs alone."""

    method: ClassVar[str] = "vf.list"
    pf: str = ""

    @classmethod
    def from_params(cls, params: Params) -> ListVfs:
        """Make it from JSON."""
        known(params, "pf")
        return cls(_name(params) if "pf" in params else "")

    def answer(self, session: Answering) -> list[VfDocument]:
        """Look."""
        machine = session.machine
        pfs = [machine.pf(self.pf)] if self.pf else machine.pfs
        found = [_describe(machine, pf.name, vf) for pf in pfs for vf in list(pf.vfs)]
        return found + [_of_a_host(machine, pf, n, rid) for pf in pfs if not pf.driven for n, rid in pf.functions()]


@dataclass(frozen=True, slots=True)
class QuarantineVf(Request[VfDocument]):
    """Stop a VF: nothing goes in or out, and its guest sees no link, until it is released. why: for whoever looks."""

    method: ClassVar[str] = "vf.quarantine"
    pf: str
    vf: int
    why: str = ""

    @classmethod
    def from_params(cls, params: Params) -> QuarantineVf:
        """Make it from JSON."""
        known(params, "pf", "vf", "why")
        why = params.get("why", "")
        if not isinstance(why, str) or len(why) > _WHY or not why.isprintable():
            raise VirtfnError(f"why is a line of up to {_WHY} characters", errno_name="EINVAL")
        return cls(_name(params), number(params, "vf", 8), why)

    def answer(self, session: Answering) -> VfDocument:
        """Stop it."""
        vf = find_vf(session.machine, self.pf, self.vf)
        session.machine.watch.quarantine(vf, self.why)
        return _describe(session.machine, self.pf, vf)


@dataclass(frozen=True, slots=True)
class ReleaseVf(Request[VfDocument]):
    """Let a VF run again that was quarantined or throttled."""

    method: ClassVar[str] = "vf.release"
    pf: str
    vf: int

    @classmethod
    def from_params(cls, params: Params) -> ReleaseVf:
        """Make it from JSON."""
        known(params, "pf", "vf")
        return cls(_name(params), number(params, "vf", 8))

    def answer(self, session: Answering) -> VfDocument:
        """Release it."""
        vf = find_vf(session.machine, self.pf, self.vf)
        session.machine.watch.release(vf)
        return _describe(session.machine, self.pf, vf)


def _name(params: Params) -> str:
    name = params.get("pf")
    if not isinstance(name, str) or not name:
        raise VirtfnError("pf is the name of a PF of the lab", errno_name="EINVAL")
    return name[:64]


def find_vf(machine: Machine, name: str, n: int) -> Vf:
    """Find a VF by its PF's name and its number.

    Raises VirtfnError: ENODEV if there is none, EBUSY for the VFs of a guest that is a host.
    """
    pf = machine.pf(name)
    refuse_whole(pf)
    vfs = pf.vfs
    if n >= len(vfs):
        raise VirtfnError(f"{name} has no VF {n}: {len(vfs)} are enabled", errno_name="ENODEV")
    return vfs[n]


def event_of(machine: Machine, notice: Notice) -> Event:
    """Make the event of a notice of the watch."""
    vf = notice.vf
    pf = next((pf.name for pf in machine.pfs if any(vf is known for known in pf.vfs)), format_rid(vf.found.physfn))
    rid, guest, kind = format_rid(vf.rid), notice.owner, notice.kind.value if notice.kind is not None else None
    match notice.deed:
        case Deed.SPOOFED:
            return VfSpoofed(pf, vf.index, rid, guest, notice.amount)
        case Deed.WARNED:
            return VfWarned(pf, vf.index, rid, guest, kind or "", notice.amount, notice.limit, notice.why)
        case Deed.THROTTLED:
            return VfThrottled(pf, vf.index, rid, guest, kind or "", notice.why, vf.throttled or 0)
        case Deed.QUARANTINED:
            return VfQuarantined(pf, vf.index, rid, guest, kind, notice.why)
        case Deed.RELEASED:
            return VfReleased(pf, vf.index, rid, guest)
