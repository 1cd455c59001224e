"""The embedded guests of a lab that is a service: they stay, may change, and send when they are told to.

At rest they answer ARP and pings, and nothing moves unless somebody asks. With traffic, the lab's work is done in
rounds of five seconds, at a pace: each is a workload of its own, judged at its end, and forgotten but for the totals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from virtfn.api.accounts import Group
from virtfn.api.machine import LabPf, Machine
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.types import Ps
from virtfn.iomodels.engine import BREATH_PS, Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.machine.captures import Frames
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.world import World

__all__ = ["MAX_RATE", "Standing", "TrafficCounts"]

MAX_RATE = 100_000
"""Frames a second of each sender, at most: a round is kept track of frame by frame."""
ROUND_S = 5


class TrafficCounts(TypedDict):
    """What has been sent since traffic was asked for, in rounds that are over.

    rate: frames a second of each sender; 0: none. heard: what arrived of what was sent; corrupt: altered on the way.
    What became of the rest, drops tell.
    """

    rate: int
    rounds: int
    sent: int
    heard: int
    corrupt: int


@dataclass(slots=True)
class _Round:
    """A group at work. again: when the next round may begin."""

    group: Group
    again: Ps


class Standing(Actor):
    """The guests of all PFs, at rest or at work. groups: those that there are now; frames: to be replayed.

    breath_ps: how long compiled code may work before others have their turn.
    """

    def __init__(
        self, machine: Machine, world: World, groups: list[Group], frames: Frames | None, breath_ps: int = BREATH_PS
    ) -> None:
        self.counts: TrafficCounts = {"rate": 0, "rounds": 0, "sent": 0, "heard": 0, "corrupt": 0}
        self._machine = machine
        self._world = world
        self._groups = groups
        self._frames = frames
        self._breath_ps = breath_ps
        self._rounds: list[_Round] = []

    def settle(self, pf: LabPf, *, without: str = "") -> None:
        """Take note of who is on a PF now; a round that was under way there ends unjudged. without: one who leaves."""
        self._leave(pf)
        runs = [run for run in self._machine.guests_of(pf) if run.lab.name != without]
        if not runs:
            return
        workload = self._workload(pf, [Station(run.driver.row, run.driver.mac) for run in runs])
        guests = [run.guest for run in runs]
        host, hosts = self._machine.host, pf.hosts
        engine = Engine(host, pf.served, guests, workload, wire=pf.wire, hosts=hosts, breath_ps=self._breath_ps)
        group = Group(pf, runs, workload, engine)
        self._groups.append(group)
        self._world.add_lane(engine)
        if workload.kind == "answer":
            engine.done = True  # nothing is waited for
        else:
            engine.start()
            self._rounds.append(_Round(group, Ps(host.now() + ROUND_S * S_PS)))

    def _leave(self, pf: LabPf) -> None:
        for group in [group for group in self._groups if group.pf is pf]:
            self._world.remove(group.engine)
            self._groups.remove(group)
        self._rounds = [each for each in self._rounds if each.group.pf is not pf]

    def _workload(self, pf: LabPf, stations: list[Station]) -> Workload:
        work, rate = self._machine.lab.workload, self.counts["rate"]
        if not rate or len(stations) < 2:
            return Workload("answer", stations)
        paced = work.kind not in ("ping", "pcap")
        return Workload(
            work.kind,
            stations,
            length=work.frame_bytes - FCS_BYTES,
            frames=None if work.kind == "pcap" else rate * ROUND_S,
            capture=self._frames if work.kind == "pcap" else None,
            rewrite=work.rewrite,
            pace_ps=S_PS // rate if paced else 0,
        )

    def send(self, rate: int) -> None:
        """Let guests do the lab's work again and again, so many frames a second from each sender; 0: let them rest.

        Raises VirtfnError: EOPNOTSUPP if no two embedded guests share a PF.
        """
        pfs = [pf for pf in self._machine.pfs if len(self._machine.guests_of(pf)) > 1]
        if rate and self._machine.lab.workload.kind == "none":
            raise VirtfnError("the lab has no work for guests to do: kind none", errno_name="EOPNOTSUPP")
        if rate and not pfs:
            raise VirtfnError("traffic is of embedded guests, and no two share a PF", errno_name="EOPNOTSUPP")
        self.counts = {"rate": rate, "rounds": 0, "sent": 0, "heard": 0, "corrupt": 0}
        for pf in pfs:
            self.settle(pf)

    def turn(self, now: Ps) -> int:
        """Judge rounds that are over, and begin others whose time has come."""
        begun = 0
        for each in list(self._rounds):
            if each.group.engine.over() and now >= each.again:
                self._judge(each.group)
                self.settle(each.group.pf)
                begun += 1
        return begun

    def _judge(self, group: Group) -> None:
        findings = group.workload.findings()
        flows = group.workload.flows(findings)
        self.counts["rounds"] += 1
        self.counts["sent"] += sum(flow.sent for flow in flows)
        self.counts["heard"] += sum(flow.heard for flow in flows)
        self.counts["corrupt"] += sum(found.corrupt for found in findings)

    def due(self) -> Ps | None:
        """Say when the next round begins."""
        return min((each.again for each in self._rounds if each.group.engine.done is not None), default=None)

    def stop(self) -> None:
        """Let all rest for good; nothing of the guests is used after this."""
        for pf in self._machine.pfs:
            self._leave(pf)
