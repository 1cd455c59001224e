"""Linux guests that are hosts: each makes VFs of its card, under the lab's policies, and lets them talk.

    set up   the PF's link; as many VFs as the lab says, by sysfs; their policies, by `ip link set ... vf`; then igbvf,
             and each VF's interface in a network namespace of its own, vf0, vf1, ..., as a container would have it
    work     VFs talk in twos, one way and then the other: those of one card, or, where a cable joins the cards of two
             hosts, each with that of its number on the other

All that is said and done here, whoever has a shell in the guest can say and do: nothing of it is virtfn's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from virtfn.api.lab import VfPolicy
from virtfn.api.labhosts import vf_name
from virtfn.api.linux import MTU, SET_UP_S, LinuxGuest, LinuxGuests, words
from virtfn.api.linuxwork import IPERF_S, Ping, iperf_mbps, read_ping, read_statistics, report_of
from virtfn.api.machine import Machine
from virtfn.api.report import FlowReport, GuestReport
from virtfn.hw.types import Mac, format_mac, parse_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome

__all__ = ["HostWork"]

_ANSWER_S = 60.0
_PORT = 5201
_FCS_AND_HEADER = 18
_FIND = """
soon() {{ for i in $(seq 300); do "$1" && return; sleep 0.1; done; echo "$2"; dmesg | tail -n 2; exit 1; }}
has_pf() {{ for d in /sys/class/net/*; do
    [ "$(cat $d/address)" = {mac} ] && [ -e $d/device/sriov_numvfs ] && pf=${{d##*/}}
done; [ -n "$pf" ]; }}
has_link() {{ [ "$(cat /sys/class/net/$pf/carrier 2>/dev/null)" = 1 ]; }}
soon has_pf "no interface with VFs has the address {mac}"
card=$(readlink -f /sys/class/net/$pf/device)
"""
_MAKE_VFS = """
ip link set $pf mtu {mtu} && ip link set $pf up || exit
soon has_link "$pf has no link"
echo 0 > $card/sriov_drivers_autoprobe && echo {count} > $card/sriov_numvfs || exit
echo 1 > $card/sriov_drivers_autoprobe || exit
"""
_GIVE_VF = """
vf=$(basename $(readlink $card/virtfn{n}))
echo $vf > /sys/bus/pci/drivers_probe || exit
has_vf() {{ dev=$(ls /sys/bus/pci/devices/$vf/net 2>/dev/null); [ -n "$dev" ]; }}
soon has_vf "VF {n}, $vf, has no driver"
ip netns add {space} && ip link set $dev netns {space} && ip -n {space} link set lo up || exit
ip -n {space} link set $dev mtu {mtu} up && ip -n {space} address add {ip}/24 dev $dev || exit
echo "VF {n} $dev"
"""
_AWAIT = """
linked() {{ [ "$(ip netns exec {space} cat /sys/class/net/{device}/carrier 2>/dev/null)" = 1 ]; }}
soon linked "VF {n}, {device}, has no link"
"""


@dataclass(slots=True)
class _HostVf:
    """A VF that a host has made. device: its interface, as its host calls it. flow: what it has sent, and to whom."""

    host: LinuxGuest
    n: int
    mac: Mac
    ip: str
    policy: VfPolicy
    device: str = ""
    ping: Ping | None = None
    flow: FlowReport | None = None

    @property
    def space(self) -> str:
        """Its network namespace."""
        return f"vf{self.n}"

    @property
    def name(self) -> str:
        """What reports call it."""
        return vf_name(self.host.lab.name, self.n)

    def run(self, command: str) -> Job:
        """Start a command there."""
        return self.host.start(f"ip netns exec {self.space} {command}")


@dataclass(slots=True)
class _Host:
    """A host, and what came of its work."""

    guest: LinuxGuest
    vfs: list[_HostVf]
    lost: int = 0
    failure: str = ""
    before: tuple[int, int] = (0, 0)
    link: dict[str, Counter[str]] = field(default_factory=lambda: {"tx": Counter(), "rx": Counter()})


class HostWork:
    """What the hosts of a lab do. flows: pings between their VFs."""

    def __init__(self, machine: Machine, linux: LinuxGuests) -> None:
        self._machine, self._linux = machine, linux
        self._work = machine.lab.workload
        self.flows: list[FlowReport] = []
        self._hosts = [_Host(guest, self._planned(guest)) for guest in linux.hosts]

    def _planned(self, guest: LinuxGuest) -> list[_HostVf]:
        pf = self._machine.lab.pf(guest.pf.name)
        number = self._machine.pfs.index(guest.pf)
        vfs = []
        for n in range(pf.total_vfs):
            policy = pf.policy(n)
            mac = parse_mac(policy.mac_address) if policy.mac_address else self._machine.offered_mac(guest.pf, n)
            vfs.append(_HostVf(guest, n, mac, f"10.83.0.{1 + 16 * number + n}", policy))
        return vfs

    # Setting up.

    def set_up(self) -> None:
        """Let each host make its VFs. Raises VirtfnError with the guest's own words if it cannot."""
        mtu = min(max(self._work.frame_bytes - _FCS_AND_HEADER, MTU.start), MTU.stop - 1)
        timeout_s = SET_UP_S + 30.0 * max((len(host.vfs) for host in self._hosts), default=0)
        self._run([(host.guest, _making(host, mtu)) for host in self._hosts], timeout_s)
        # One by one: together they are more than a guest's agent takes.
        for n in range(max((len(host.vfs) for host in self._hosts), default=0)):
            vfs = [host.vfs[n] for host in self._hosts if n < len(host.vfs)]
            for vf, outcome in zip(vfs, self._run([(vf.host, _giving(vf, mtu)) for vf in vfs], timeout_s), strict=True):
                vf.device = _device_of(vf, outcome)
        self._run([(host.guest, _links(host)) for host in self._hosts], timeout_s)

    def _run(self, scripts: Sequence[tuple[LinuxGuest, str]], timeout_s: float) -> list[Outcome]:
        """Run scripts in hosts. Raises VirtfnError with the guest's own words if one fails."""
        outcomes = self._linux.wait([guest.start(script) for guest, script in scripts], "making VFs", timeout_s)
        for (guest, _), outcome in zip(scripts, outcomes, strict=True):
            if outcome.status:
                raise VirtfnError(f"guest {guest.lab.name}: {words(outcome)}")
        return outcomes

    # Working.

    def run(self) -> None:
        """Do all of it. Raises VirtfnError if a host ends or hangs; what fails inside is in its report."""
        for host in self._hosts:
            host.before = host.guest.vm.messages, self._count(host)
        if self._work.kind == "none":
            return
        for ways in self._ways():
            self._ping(ways)
        if self._work.kind != "ping":
            for ways in self._ways():
                for way in ways:  # one after the other: they share a processor
                    self._iperf(*way)
        for host in self._hosts:
            self._count(host)

    def _ways(self) -> list[list[tuple[_HostVf, _HostVf]]]:
        """List who talks to whom, in turns: there, and back."""
        pairs: list[tuple[_HostVf, _HostVf]] = []
        by_pf = {host.guest.pf.name: host for host in self._hosts}
        for name, host in by_pf.items():
            other = by_pf.get(self._machine.lab.cable_of(name))
            if other is None:
                pairs += zip(host.vfs[::2], host.vfs[1::2], strict=False)
            elif name < other.guest.pf.name:
                pairs += zip(host.vfs, other.vfs, strict=False)
        return [pairs, [(b, a) for a, b in pairs]]

    def _drops(self, *vfs: _HostVf) -> Counter[str]:
        """Count what was dropped of VFs, and by the wires of their cards."""
        cards = {vf.host.pf.name: vf.host.pf.nic for vf in vfs}
        total = Counter[str]()
        for vf in vfs:
            total.update(vf.host.pf.nic.drops(vf.n))
        for card in cards.values():
            total.update(card.drops(None))
        return total

    def _ping(self, ways: Sequence[tuple[_HostVf, _HostVf]]) -> None:
        count = self._work.pings_each
        payload, limit = max(self._work.frame_bytes - 46, 16), 20 + count // 10
        drops = [self._drops(*way) for way in ways]
        # Without a deadline of its own, which makes ping send more than it is asked for until so many are answered.
        command = f"timeout -s INT {limit} ping -q -c {count} -i 0.02 -s {payload} -W 5"
        jobs = [a.run(f"{command} {b.ip}") for a, b in ways]
        outcomes = self._linux.wait(jobs, "ping", limit + _ANSWER_S)
        for (a, b), outcome, before in zip(ways, outcomes, drops, strict=True):
            a.ping = read_ping(outcome.output)
            if a.ping is None or outcome.status not in (0, 1, 124):  # not all answered; or not in time
                self._host_of(a).failure = f"{a.name}: ping {b.name}: {words(outcome)}"
                continue
            dropped = self._drops(a, b) - before
            missing = a.ping.sent - a.ping.answered
            if (
                a.ping.answered or not dropped
            ):  # else it was the address that was not resolved, and most were never sent
                self._host_of(a).lost += max(0, missing - dropped.total())
            a.flow = self._flow(a, b, a.ping, dropped)
            self.flows.append(a.flow)

    def _flow(self, a: _HostVf, b: _HostVf, ping: Ping, dropped: Counter[str]) -> FlowReport:
        heard = ping.answered
        flow: FlowReport = {
            "sender": a.name,
            "receiver": b.name,
            "unit": "pings",
            "sent": ping.sent,
            "heard": heard,
            "expected": self._machine.lab.expected(a.name, b.host.lab.name),
            "reasons": dict(dropped) if heard < ping.sent else {},
            "policy": ", ".join(_clauses(a)),
        }
        if ping.ms is not None:
            flow["ping_ms"] = ping.ms
        if heard < ping.sent and a.policy.vlan_id != b.policy.vlan_id:
            flow["note"] = f"{a.name} is in VLAN {a.policy.vlan_id}, {b.name} in {b.policy.vlan_id}; 0 is none"
        return flow

    def _host_of(self, vf: _HostVf) -> _Host:
        return next(host for host in self._hosts if host.guest is vf.host)

    def _iperf(self, a: _HostVf, b: _HostVf) -> None:
        if a.flow is None or not a.flow["heard"]:
            return
        listening = (
            f"sh -c 'iperf3 -s -1 -D -p {_PORT} --idle-timeout 60; "
            f"for i in $(seq 100); do ss -ltn | grep -q :{_PORT} && exit; sleep 0.1; done; exit 1'"
        )
        (outcome,) = self._linux.wait([b.run(listening)], "iperf3", _ANSWER_S)
        if outcome.status:
            self._host_of(b).failure = f"{b.name}: iperf3 -s: {words(outcome)}"
            return
        job = a.run(f"iperf3 -J -c {b.ip} -p {_PORT} -t {IPERF_S} --connect-timeout 5000")
        (outcome,) = self._linux.wait([job], "iperf3", IPERF_S + _ANSWER_S)
        try:
            a.flow["iperf_mbps"] = round(iperf_mbps(outcome.output), 1)
        except VirtfnError as error:
            self._host_of(a).failure = f"{a.name} to {b.name}: {error}"

    def _count(self, host: _Host) -> int:
        """Ask for the statistics of all its interfaces, note them, and return the frames so far."""
        commands = [f"ip -n {vf.space} -s -j link show dev {vf.device}" for vf in host.vfs]
        (outcome,) = self._linux.wait([host.guest.start(" && ".join(commands))], "asking guests", _ANSWER_S)
        host.link = read_statistics(host.guest, outcome.output.splitlines())
        return host.link["tx"]["packets"] + host.link["rx"]["packets"]

    # The report.

    def reports(self) -> Iterator[GuestReport]:
        """Report of each host: of all its VFs together."""
        for host in self._hosts:
            yield self._report(host)

    def _report(self, host: _Host) -> GuestReport:
        guest, tx, rx = host.guest, host.link["tx"], host.link["rx"]
        exits, frames = host.before
        moved = max(tx["packets"] + rx["packets"] - frames, 1)
        repeated = sum(vf.ping.repeated for vf in host.vfs if vf.ping)
        report = report_of(guest, tx, rx, lost=host.lost, reordered=repeated)
        report["exits_per_frame"] = round((guest.vm.meter.exits - exits) / moved, 4)
        report["vfs"] = guest.pf.nic.vfs
        pings = [vf.ping.ms for vf in host.vfs if vf.ping is not None and vf.ping.ms is not None]
        if pings:
            report["ping_ms"] = round(sum(pings) / len(pings), 3)
        streams = [vf.flow["iperf_mbps"] for vf in host.vfs if vf.flow is not None and "iperf_mbps" in vf.flow]
        if streams:
            report["iperf_mbps"] = round(sum(streams) / len(streams), 1)
        if host.failure:
            report["failure"] = host.failure
        return report


def _clauses(vf: _HostVf) -> Iterator[str]:
    """Say a VF's policy in the words of `ip link set PF vf N`."""
    policy = vf.policy
    yield f"mac {format_mac(vf.mac)}"
    if policy.vlan_id:
        yield f"vlan {policy.vlan_id} qos {policy.qos}"
    if policy.max_tx_rate:
        yield f"max_tx_rate {policy.max_tx_rate}"
    yield f"spoofchk {'on' if policy.spoof_check else 'off'}"
    yield f"trust {'on' if policy.trust else 'off'}"


def _making(host: _Host, mtu: int) -> str:
    """Return the script that makes VFs, under their policies."""
    script = _FIND.format(mac=format_mac(host.guest.mac)) + _MAKE_VFS.format(mtu=mtu, count=len(host.vfs))
    for vf in host.vfs:
        script += "".join(f"ip link set $pf vf {vf.n} {clause} || exit\n" for clause in _clauses(vf))
    return script


def _giving(vf: _HostVf, mtu: int) -> str:
    """Return the script that gives a VF its driver, a network namespace and an address, and says its interface."""
    script = _FIND.format(mac=format_mac(vf.host.mac))
    return script + _GIVE_VF.format(n=vf.n, space=vf.space, mtu=mtu, ip=vf.ip)


def _device_of(vf: _HostVf, outcome: Outcome) -> str:
    """Read what a host calls a VF's interface. Raises VirtfnError if it has said none."""
    for line in outcome.output.splitlines():
        match line.split():
            case ["VF", number, device] if number == str(vf.n):
                return device
    raise VirtfnError(f"guest {vf.host.lab.name}: VF {vf.n} has no interface: {words(outcome)}")


def _links(host: _Host) -> str:
    """Return the script that waits until each VF has a link."""
    script = _FIND.format(mac=format_mac(host.guest.mac))
    return script + "".join(_AWAIT.format(n=vf.n, space=vf.space, device=vf.device) for vf in host.vfs)
