"""What Linux guests do in a lab, with Linux's own programs, and the account of it.

    ping      neighbours ping each other, in turn
    pairs     the same, then iperf3 from each to its neighbour, one way after the other
    fan-in    all ping the first, then iperf3 from all to it at once
    alone     a guest that has a PF whole, or that is the only one on its PF, beside an uplink, has nobody to talk to:
              its driver tests the card, that of a VF its link (ethtool -t); virtio_net has a link, and no test
    none      nothing: frames are counted at functions, since guests may take no commands

Guests are neighbours by twos in the order of the lab, or in a ring if their number is odd.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from virtfn.api.flows import flow_report
from virtfn.api.linux import LinuxGuest, LinuxGuests, clean, words
from virtfn.api.machine import Machine
from virtfn.api.report import FlowReport, GuestReport
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome

__all__ = ["LinuxWork", "Ping", "iperf_mbps", "read_ping", "read_statistics", "report_of"]

IPERF_S = 3
_IPERF_PORT = 5201
_ANSWER_S = 30.0
_SELF_TEST_S = 120.0
_TIMED_OUT = 124
_MOST_MBPS = 1e9  # more is no rate
_READ = (("tx", "packets"), ("tx", "bytes"), ("rx", "packets"), ("rx", "bytes"), ("rx", "errors"))
_PINGS = re.compile(
    r"(?<![0-9])([0-9]{1,18}) packets transmitted, ([0-9]{1,18}) received(?:, \+([0-9]{1,18}) duplicates)?"
)
_ROUND_TRIP = re.compile(r"rtt min/avg/max/mdev = [0-9.]{1,16}/([0-9]{1,9}(?:\.[0-9]{1,6})?)/")


@dataclass(frozen=True, slots=True)
class Ping:
    """What a ping came to. ms: mean round trip; None if nothing came back."""

    sent: int
    answered: int
    repeated: int
    ms: float | None


def read_ping(said: str) -> Ping | None:
    """Read the summary of iputils' ping; None if there is none."""
    counts, times = _PINGS.search(said), _ROUND_TRIP.search(said)
    if counts is None:
        return None
    return Ping(int(counts[1]), int(counts[2]), int(counts[3] or 0), float(times[1]) if times else None)


def iperf_mbps(said: str) -> float:
    """Read Mb/s of payload, as the receiver counted, from iperf3's JSON.

    Raises VirtfnError with iperf3's own words if it failed.
    """
    try:
        document = json.loads(said)
        if "error" in document:
            raise VirtfnError(f"iperf3: {clean(str(document['error']))}")
        mbps = float(document["end"]["sum_received"]["bits_per_second"]) / 1e6
        if not 0 <= mbps < _MOST_MBPS:
            raise ValueError
    except (ValueError, OverflowError, LookupError, TypeError, RecursionError):
        raise VirtfnError(f"iperf3: {words(Outcome(1, said))}") from None
    return mbps


def read_statistics(guest: LinuxGuest, said: Sequence[str]) -> dict[str, Counter[str]]:
    """Read what interfaces of a guest have counted, added up, by way: tx, rx. said: of each, the JSON of `ip -s link`.

    Raises VirtfnError with the guest's own words for what is none.
    """
    total: dict[str, Counter[str]] = {"tx": Counter(), "rx": Counter()}
    for line in said:
        try:
            found = json.loads(line)[0]["stats64"]
            counts = [(way, name, found[way][name]) for way, name in _READ]
            if not all(type(count) is int and 0 <= count < 1 << 64 for _, _, count in counts):
                raise ValueError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise VirtfnError(f"guest {guest.lab.name}: ip -s link: {words(Outcome(1, line))}") from None
        for way, name, count in counts:
            total[way][name] += count
    return total


@dataclass(slots=True)
class _Findings:
    """What became of a guest's work. before, after: link statistics of its interface, and messages."""

    before: tuple[int, int] = (0, 0)
    ping: Ping | None = None
    lost: int = 0
    mbps: float | None = None
    tested: bool = False
    failure: str = ""
    per_frame: float = 0.0
    link: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class LinuxWork:
    """The work of all Linux guests of a lab."""

    def __init__(self, machine: Machine, linux: LinuxGuests) -> None:
        self._machine = machine
        self._work = machine.lab.workload
        self._linux = linux
        self._guests = linux.plain
        self._found = [_Findings() for _ in self._guests]
        self.flows: list[FlowReport] = []

    def run(self) -> None:
        """Do all of it. Raises VirtfnError if a guest ends or hangs; what fails inside a guest is in its report."""
        if self._work.kind == "none":
            return
        for guest, found, link in zip(self._guests, self._found, self._links(), strict=True):
            found.before = guest.vm.messages, _frames(link)
        for ways in self._ways():
            self._ping(ways)
        if self._work.kind != "ping":
            for ways in self._ways(at_once=self._work.kind == "fan-in"):
                self._iperf([(a, b) for a, b in ways if self._answered(a)])
        self._test_alone()
        for guest, found, link in zip(self._guests, self._found, self._links(), strict=True):
            exits, frames = found.before
            found.link = link
            found.per_frame = (guest.vm.messages - exits) / max(_frames(link) - frames, 1)

    def _teams(self) -> list[list[int]]:
        """List guests that share a switch, by their numbers."""
        teams: dict[str, list[int]] = {}
        for g, guest in enumerate(self._guests):
            teams.setdefault(guest.pf.name, []).append(g)
        return list(teams.values())

    def _ways(self, *, at_once: bool = False) -> list[list[tuple[int, int]]]:
        """List who talks to whom, in turns: what is in one turn happens at once, each guest in one at most."""
        turns: list[list[tuple[int, int]]] = []
        for team in self._teams():
            if len(team) < 2:
                continue
            n = len(team)
            if self._work.kind == "fan-in":
                pairs = [(g, team[0]) for g in team[1:]]
                mine = [pairs] if at_once else [[pair] for pair in pairs]
            elif n % 2:
                mine = [[(team[i], team[(i + 1) % n])] for i in range(n)]
            else:
                there = [(team[i], team[i + 1]) for i in range(0, n, 2)]
                mine = [there, [(b, a) for a, b in there]]
            turns += [[] for _ in range(len(mine) - len(turns))]
            for turn, pairs in zip(turns, mine, strict=False):
                turn += pairs
        return turns

    def _ping(self, ways: list[tuple[int, int]]) -> None:
        count = self._work.pings_each
        payload = max(self._work.frame_bytes - 46, 16)  # header, check sequence, IPv4, ICMP; 16 hold the time
        limit = 10 + count // 20
        drops = [self._drops_between(*way) for way in ways]
        jobs = [
            self._guests[a].start(
                # With a deadline of its own, ping goes on until it has so many answers, and one more may be on its way.
                f"timeout -s INT {limit} "
                f"ping -A -q -c {count} -s {payload} -W 1 -I {self._guests[a].device} {self._guests[b].ip}"
            )
            for a, b in ways
        ]
        outcomes = self._linux.wait(jobs, "ping", limit + _ANSWER_S)
        for (a, b), outcome, before in zip(ways, outcomes, drops, strict=True):
            found = self._found[a]
            found.ping = read_ping(outcome.output)
            # 1: of its pings, some have no answer; 124: it was ended after its time.
            if found.ping is None or outcome.status not in (0, 1, _TIMED_OUT):
                found.failure = f"ping {self._guests[b].lab.name}: {words(outcome)}"
                continue
            self._note_flow(a, b, found, self._drops_between(a, b) - before)

    def _note_flow(self, a: int, b: int, found: _Findings, dropped: Counter[str]) -> None:
        """Note what became of the pings of one guest to another. dropped: of both meanwhile."""
        ping = found.ping or Ping(0, 0, 0, None)
        missing = ping.sent - ping.answered
        # Where no answer came at all, it was the address that was not resolved: most were never sent.
        if ping.answered or not dropped:
            found.lost += max(0, missing - dropped.total())
        sender, receiver = (self._guests[g].lab.name for g in (a, b))
        self.flows.append(flow_report(self._machine.lab, sender, receiver, "pings", ping.sent, ping.answered, dropped))

    def _answered(self, g: int) -> bool:
        ping = self._found[g].ping
        return ping is not None and ping.answered > 0 and not self._found[g].failure

    def _drops_between(self, a: int, b: int) -> Counter[str]:
        """Count drops of two guests on a PF, and of the host's stack between them."""
        own = sum((Counter(self._guests[g].plug.drops()) for g in {a, b}), Counter())
        return own + Counter(self._guests[a].pf.host_drops())

    def _iperf(self, ways: list[tuple[int, int]]) -> None:
        ports = [_IPERF_PORT + i for i in range(len(ways))]
        servers = [
            self._guests[b].start(
                f"iperf3 -s -1 -D -p {port} --idle-timeout 60; "
                f"for i in $(seq 100); do ss -ltn | grep -q :{port} && exit; sleep 0.1; done; exit 1"
            )
            for (_, b), port in zip(ways, ports, strict=True)
        ]
        for (_, b), outcome in zip(ways, self._linux.wait(servers, "iperf3", _ANSWER_S), strict=True):
            if outcome.status:
                self._found[b].failure = f"iperf3 -s: {words(outcome)}"
        clients: list[Job] = [
            self._guests[a].start(f"iperf3 -J -c {self._guests[b].ip} -p {port} -t {IPERF_S} --connect-timeout 5000")
            for (a, b), port in zip(ways, ports, strict=True)
        ]
        outcomes = self._linux.wait(clients, "iperf3", IPERF_S + _ANSWER_S)
        for (a, b), outcome in zip(ways, outcomes, strict=True):
            try:
                self._found[a].mbps = iperf_mbps(outcome.output)
            except VirtfnError as error:
                self._found[a].failure = f"to {self._guests[b].lab.name}: {error}"

    def _test_alone(self) -> None:
        alone = [team[0] for team in self._teams() if len(team) == 1]
        jobs = [self._guests[g].start(_self_test(self._guests[g])) for g in alone]
        if not jobs:
            return
        outcomes = self._linux.wait(jobs, "self-test", _SELF_TEST_S)
        for g, job, outcome in zip(alone, jobs, outcomes, strict=True):
            self._found[g].tested = not outcome.status
            if outcome.status:
                self._found[g].failure = f"{' '.join(job.command.split()[:2])}: {words(outcome)}"

    def _links(self) -> list[dict[str, Counter[str]]]:
        """Ask each guest for the statistics of its interface."""
        jobs = [guest.start(f"ip -s -j link show dev {guest.device}") for guest in self._guests]
        outcomes = self._linux.wait(jobs, "asking guests", _ANSWER_S)
        return [read_statistics(guest, [outcome.output]) for guest, outcome in zip(self._guests, outcomes, strict=True)]

    # The report.

    def reports(self) -> list[GuestReport]:
        """Report of each guest."""
        return [self._report(guest, found) for guest, found in zip(self._guests, self._found, strict=True)]

    def _report(self, guest: LinuxGuest, found: _Findings) -> GuestReport:
        link = found.link or _link_of(guest)
        repeated = found.ping.repeated if found.ping else 0
        report = report_of(guest, link["tx"], link["rx"], lost=found.lost, reordered=repeated)
        if found.link:
            report["exits_per_frame"] = round(found.per_frame, 4)
        if claims := guest.plug.claims():
            report["addresses_refused"] = claims
        if found.ping is not None and found.ping.ms is not None:
            report["ping_ms"] = found.ping.ms
        if found.mbps is not None:
            report["iperf_mbps"] = round(found.mbps, 1)
        if found.tested:
            report["self_test"] = "passed"
        if found.failure:
            report["failure"] = found.failure
        return report


def report_of(
    guest: LinuxGuest, tx: Mapping[str, int], rx: Mapping[str, int], *, lost: int, reordered: int
) -> GuestReport:
    """Report of a guest what each has. tx, rx: statistics of its interface, or of all of them, in the words of `ip`."""
    meter, costs = guest.vm.meter, guest.vm.meter.read()
    return {
        "name": guest.lab.name,
        "io": guest.lab.nic.io,
        "vmm": guest.lab.vmm,
        "address": guest.plug.address,
        "mac": format_mac(guest.mac),
        "tx_frames": tx["packets"],
        "tx_bytes": tx["bytes"],
        "rx_frames": rx["packets"],
        "rx_bytes": rx["bytes"],
        "lost": lost,
        "corrupt": rx["errors"],
        "reordered": reordered,
        "dropped": guest.plug.drops(),
        "exits": meter.exits,
        "interrupts": costs["interrupts"],
        "copies": costs["copies"],
        "mailbox_messages": guest.plug.messages(),
        "boot_s": None if guest.boot_s is None else round(guest.boot_s, 2),
    }


def _self_test(guest: LinuxGuest) -> str:
    """Return the command by which a guest's driver tests what it drives."""
    if guest.lab.nic.io == "split":
        return f"cat /sys/class/net/{guest.device}/carrier | grep -x 1"
    return f"ethtool -t {guest.device} offline"


def _link_of(guest: LinuxGuest) -> dict[str, dict[str, int]]:
    """Return what a guest's function has counted, as Linux shows an interface."""
    moved = guest.plug.moved()
    rx = {"packets": moved.rx_frames, "bytes": moved.rx_bytes, "errors": 0}
    return {"tx": {"packets": moved.tx_frames, "bytes": moved.tx_bytes}, "rx": rx}


def _frames(link: Mapping[str, Mapping[str, int]]) -> int:
    return link["tx"]["packets"] + link["rx"]["packets"]
